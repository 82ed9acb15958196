"""What dux is compared with in `against.py`: a hand-written loop, Optuna and Ray Tune, each as one would write it.

`loop`, `optuna` and `ray_tune` take a recipe of dux, and for each of its students the epoch after which it was stopped
there; they give its last accuracy on the validation images. Their own schedulers and pruners are asked, and overruled.
"""

import math
import multiprocessing
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

PROCESSES = 2
REDUCTION = 3  # of ASHA
WEIGHTS = {"cross_entropy": 0.1, "kd": 0.9}
TEMPERATURE = 4.0
LAYOUT = "AGAINST_LAYOUT"  # in the environment: "dux" lends its layout of memory to all
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
Ends = dict[int, list[float]]  # by student: epochs and the last accuracy


class Setup:
    """What every side makes of a recipe before it trains: images and space."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        import torch

        import spaces
        from trainables import data, teachers

        torch.set_num_threads(1)
        self.recipe, self.stage = recipe, recipe["stages"][0]
        self.data = data.load(data.DataConfig(**recipe["task"]))
        self.space = spaces.get(recipe["space"]["name"])
        self.config = teachers.TeacherConfig(**recipe["teacher"])

    def teacher(self) -> Any:
        """The frozen teacher, read from its file."""
        from trainables import teachers

        member = teachers.build(self.config, self.data)
        teachers.load_weights(member, str(self.config.weights))
        return member.to(memory_format=layout_of(member)).eval().requires_grad_(False)


def layout_of(network: Any) -> Any:
    """torch's default, or what dux would take."""
    import torch

    from trainables.fit import memory_format

    own = os.environ.get(LAYOUT) == "dux"
    return memory_format(network, torch.device("cpu")) if own else torch.contiguous_format


def by_hand(setup: Setup, teacher: Any, student: int) -> Iterator[float]:
    """Train a student as one would write it down; its accuracy on the validation images after each epoch."""
    import torch
    from torch.nn import functional as F

    from spaces.seeding import derive_seed
    from trainables.contracts import Member
    from trainables.curriculum import Augment, Curriculum

    stage, data, device = setup.stage, setup.data, torch.device("cpu")
    torch.manual_seed(derive_seed(0, "init", 0))
    net = Member.of(setup.space, setup.space.build(setup.recipe["students"][student], data.task), data)
    layout = layout_of(net)
    net = net.to(memory_format=layout)
    matrices = {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": DECAY}
    vectors = {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0}
    optimizer = torch.optim.SGD([matrices, vectors], lr=RATE, momentum=MOMENTUM, nesterov=True, fused=True)
    curriculum = Curriculum(data.train, len(data.classes), 0, stage["batch_size"], Augment(**stage["augment"]), device)
    steps = len(curriculum)

    def rate(step: int) -> float:
        """Cosine decay to 0 over all epochs after a linear ramp over the first; a share of `RATE`."""
        done = step / steps
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done / stage["epochs"]))) * min(1.0, done + 0.5 / steps)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    valid, labels = torch.tensor(data.valid.images) / 255, torch.from_numpy(data.valid.labels)
    for epoch in range(1, stage["epochs"] + 1):
        net.train()
        for batch in curriculum.batches(epoch):
            images = batch.images.contiguous(memory_format=layout)
            with torch.no_grad():
                taught = teacher(images)
            logits = net(images)
            soft = [(outputs / TEMPERATURE).log_softmax(1) for outputs in (logits, taught)]
            kd = TEMPERATURE**2 * F.kl_div(*soft, reduction="batchmean", log_target=True)
            loss = WEIGHTS["cross_entropy"] * F.cross_entropy(logits, batch.labels) + WEIGHTS["kd"] * kd
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        net.eval()
        with torch.inference_mode():
            yield (net(valid).argmax(1) == labels).double().mean().item()


def trained(setup: Setup, teacher: Any, student: int, epochs: int) -> list[float]:
    """Epochs and the last accuracy of a student that is trained for as long as was decided."""
    *_, accuracy = islice(by_hand(setup, teacher, student), epochs)
    return [epochs, accuracy]


def loop(recipe: dict[str, Any], decided: list[int], folder: Path) -> Ends:
    """Processes that take the next student from a queue."""
    context = multiprocessing.get_context("spawn")
    queue, ends = context.Queue(), context.Queue()
    for work in [*enumerate(decided), *[None] * PROCESSES]:
        queue.put(work)
    return _all_of(loop_worker, (recipe, queue, ends), ends, len(decided))


def loop_worker(recipe: dict[str, Any], queue: Any, ends: Any) -> None:
    """One process of the loop."""
    setup = Setup(recipe)
    teacher = setup.teacher()
    while (work := queue.get()) is not None:
        ends.put((work[0], trained(setup, teacher, *work)))


def _all_of(worker: Any, given: tuple[Any, ...], ends: Any, count: int) -> Ends:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=worker, args=given, daemon=True) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    found = dict(ends.get() for _ in range(count))
    for process in processes:
        process.join()
    return found


def optuna(recipe: dict[str, Any], decided: list[int], folder: Path) -> Ends:
    """A study in a journal; each student is a trial that waits in it."""
    study = optuna_study(recipe, decided, folder)
    for student in range(len(decided)):
        study.enqueue_trial({"student": student})
    ends = multiprocessing.get_context("spawn").Queue()
    return _all_of(optuna_worker, (recipe, decided, folder, ends), ends, len(decided))


def optuna_study(recipe: dict[str, Any], decided: list[int], folder: Path) -> Any:
    """The study, made or joined, with a pruner that is asked and then overruled."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    class Told(optuna.pruners.HyperbandPruner):
        def prune(self, study: Any, trial: Any) -> bool:
            super().prune(study, trial)
            return trial.last_step >= decided[trial.params["student"]]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = Told(min_resource=1, max_resource=recipe["stages"][0]["epochs"], reduction_factor=REDUCTION)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    return optuna.create_study(
        storage=storage, study_name="against", direction="maximize", pruner=pruner, load_if_exists=True
    )


def optuna_worker(recipe: dict[str, Any], decided: list[int], folder: Path, ends: Any) -> None:
    """One process of the study, until no student waits."""
    import optuna
    from optuna.trial import TrialState

    setup = Setup(recipe)
    teacher = setup.teacher()

    def objective(trial: Any) -> float:
        student = trial.suggest_categorical("student", list(range(len(decided))))
        for epoch, accuracy in enumerate(by_hand(setup, teacher, student), 1):
            trial.report(accuracy, epoch)
            if trial.should_prune():
                break
        ends.put((student, [epoch, accuracy]))
        if epoch < setup.stage["epochs"]:
            raise optuna.TrialPruned
        return accuracy

    taken = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    enough = optuna.study.MaxTrialsCallback(len(decided), states=taken)
    optuna_study(recipe, decided, folder).optimize(objective, callbacks=[enough])


def ray_tune(recipe: dict[str, Any], decided: list[int], folder: Path) -> Ends:
    """A function trainable, as Tune's guides have it."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    class Told(ASHAScheduler):  # which is asked, and then overruled
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            super().on_trial_result(tune_controller, trial, result)
            is_over = result["training_iteration"] >= decided[trial.config["student"]]
            return TrialScheduler.STOP if is_over else TrialScheduler.CONTINUE

    def trainable(config: dict[str, Any]) -> None:
        setup = Setup(config["recipe"])
        for accuracy in by_hand(setup, setup.teacher(), config["student"]):
            tune.report({"accuracy": accuracy})

    ray.init(address="local", num_cpus=PROCESSES)
    scheduler = Told(max_t=recipe["stages"][0]["epochs"], grace_period=1, reduction_factor=REDUCTION)
    tuner = tune.Tuner(
        trainable,
        param_space={"student": tune.grid_search(list(range(len(decided)))), "recipe": recipe},
        tune_config=tune.TuneConfig(metric="accuracy", mode="max", scheduler=scheduler),
        run_config=tune.RunConfig(storage_path=str(folder)),
    )
    found = [result.metrics for result in tuner.fit()]
    return {one["config"]["student"]: [one["training_iteration"], one["accuracy"]] for one in found}
