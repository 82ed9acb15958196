"""Trials without Ray: what they report, whatever interrupts them, and in whichever worker they run."""

import errno
import gc
import io
import json
import math
import os
import weakref
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import nn

import spaces
from spaces import Arch, BadInput, Space, Task
from trainables import scores, teachers
from trainables import trial as trials
from trainables.checkpoints import checkpoint_name
from trainables.context import StageContext, TeacherContext
from trainables.contracts import Data
from trainables.data import DataConfig, load
from trainables.failures import WorkerSpoilt
from trainables.regimes import REGIMES
from trainables.scores import SCORES
from trainables.trial import DistillTrial, Json, ScoreTrial, trial_of
from trainables.worker import Worker

EPOCHS = 4
ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}
MEASURED = ("seconds", "passes", "_ms")  # ends of the names of metrics that are never twice the same
KD: dict[str, Any] = {"cross_entropy": 0.1, "kd": {"weight": 0.9}}
LOSSES: dict[str, dict[str, Any]] = {"kd": KD, "connector": {"cross_entropy": 0.1, "fitnets": 1.0}}


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig(subset=64, valid=40, test_subset=40))


@pytest.fixture(autouse=True)
def epochs_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """So long that each is saved; see `test_short_epochs_are_saved_now_and_then_and_the_last_always`."""
    monkeypatch.setattr(trials, "SAVED_EVERY", 0.0)


@pytest.fixture
def context(data: Data, tmp_path: Path) -> StageContext:
    config = teachers.TeacherConfig(space="resnet", arch={**ARCH, "width": 6}, random=True)
    member = teachers.build(config, data)
    weights = {name: tensor.numpy() for name, tensor in member.net.state_dict().items()}
    for array in weights.values():
        array.flags.writeable = False  # as they come from the object store
    teacher = TeacherContext(config, lambda: weights, teachers.weights_hash(member), tmp_path / "teacher-outputs")
    return StageContext(
        data, spaces.get("resnet"), {"teacher": teacher}, 0, tmp_path / "stage", gpu=False, epochs=EPOCHS
    )


def config_of(number: int = 0, losses: Mapping[str, Any] = KD, learning_rate: float = 0.05, **changed: Any) -> Json:
    optimizer = {"learning_rate": learning_rate}
    settings = {
        "regime": {"name": "offline"},
        "losses": losses,
        "optimizer": optimizer,
        "batch_size": 32,
        "augment": {"crop": 1},
        "precision": "float32",
    }
    base = {"number": number, "seed": 0, "arch": ARCH, "control": False, "settings": settings}
    return {**base, "until": EPOCHS, "reported": 0, "parent": None, **changed}


def started(kind: type[Any], config: Json, context: StageContext) -> Any:
    """A trial as in a worker."""
    trial = kind(context)
    trial.begin(config)
    return trial


def steps(trial: Any, count: int | None = None) -> list[Json]:
    """The reports of so many steps, or of all until the trial is done; each can be written to a ledger as JSON."""
    found: list[Json] = []
    done = False
    while not done and (count is None or len(found) < count):
        result = trial.step()
        [report] = result["reports"]
        done = result["done"]
        assert done == report["done"]
        found.append(json.loads(json.dumps(report)))
    return found


def distil(config: Json, context: StageContext, count: int | None = None) -> list[Json]:
    return steps(started(DistillTrial, config, context), count)


def elsewhere(context: StageContext) -> StageContext:
    """The same stage in another folder."""
    return replace(context, folder=context.folder.with_name("other"))


def numbers(reports: list[Json]) -> str:
    """What must be the same bit for bit: all but times, places and who paid for the teacher. NaN equals NaN."""
    kept = [
        {**report, "metrics": {k: v for k, v in report["metrics"].items() if not k.endswith(MEASURED)}}
        for report in reports
    ]
    return json.dumps([{k: v for k, v in r.items() if k not in ("seconds", "worker", "number")} for r in kept])


def weights(context: StageContext, number: int = 0) -> Json:
    return torch.load((context.folder / checkpoint_name(number)), weights_only=True)["fit"]["deployed"]


def assert_same_weights(one: Json, other: Json) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_short_epochs_are_saved_now_and_then_and_the_last_always(context, monkeypatch) -> None:
    monkeypatch.setattr(trials, "SAVED_EVERY", 60.0)
    whole, file = distil(config_of(), elsewhere(context)), context.folder / checkpoint_name(0)
    cut_off = distil(config_of(), context, 3)
    assert not file.exists()
    again = distil(config_of(reported=3), context)  # the three are trained again, and only the fourth is told
    assert file.exists()
    assert numbers([*cut_off, *again]) == numbers(whole)
    assert_same_weights(weights(context), weights(elsewhere(context)))


# What a distillation reports


def test_a_report_has_its_figures_and_their_costs(context) -> None:
    context = replace(context, objective={"valid_accuracy": 1.0, "teacher_similarity": 0.25})
    reports = distil(config_of(number=5), context)
    assert [report["epoch"] for report in reports] == [1, 2, 3, 4]
    assert [report["done"] for report in reports] == [False, False, False, True]
    for report in reports:
        metrics = report["metrics"]
        assert report["number"] == 5
        assert metrics["objective"] == metrics["valid_accuracy"] + 0.25 * metrics["teacher_similarity"]
        assert metrics["train_loss"] == pytest.approx(0.1 * metrics["cross_entropy_loss"] + 0.9 * metrics["kd_loss"])
        assert {"agreement", "kl", "cka", "rdm"} <= metrics.keys()
        assert metrics["teacher_passes"] == 1
        parts = [metrics[f"{name}_seconds"] for name in ("student", "teacher", "evaluate", "checkpoint")]
        assert (metrics["setup_seconds"] > 0.1 * metrics["checkpoint_seconds"]) == (report["epoch"] == 1)
        assert min(parts) > 0
        assert sum(parts) + metrics["setup_seconds"] <= report["seconds"]
    # The second student finds the teacher's outputs.
    assert [report["metrics"]["teacher_passes"] for report in distil(config_of(number=6, seed=1), context)] == [0] * 4


def test_numbers_follow_from_the_seed_and_from_nothing_else(context) -> None:
    first = distil(config_of(), context)
    torch.manual_seed(99)
    assert numbers(distil(config_of(number=1), context)) == numbers(first)
    live = replace(context, teachers={"teacher": replace(context.teachers["teacher"], outputs=None)})
    assert numbers(distil(config_of(number=2), live)) == numbers(first)
    assert numbers(distil(config_of(number=3, seed=1), context)) != numbers(first)
    assert numbers(distil(config_of(number=4), replace(context, seed=1))) != numbers(first)


def test_the_test_images_are_looked_at_once_and_last(context) -> None:
    finals = distil(config_of(), replace(context, test=True))
    others = distil(config_of(number=1), context)
    for report in finals[:-1] + others:
        assert not any(name.startswith("test_") for name in report["metrics"])
    last = finals[-1]["metrics"]
    tested = {name for name in last if name.startswith("test_")}
    assert {"test_accuracy", "test_agreement"} <= tested
    deployed = {"latency_ms", "compression", *(f"deployed_{name}" for name in ("params", "flops", "bytes"))}
    assert last.keys() - tested - deployed == others[-1]["metrics"].keys()


def test_a_control_learns_from_the_labels_alone(context) -> None:
    control = distil(config_of(control=True), context)
    plain = distil(config_of(number=1, losses={"cross_entropy": 1.0}), context)
    taught = distil(config_of(number=2), context)
    assert numbers(control) == numbers(plain)
    assert_same_weights(weights(context, 0), weights(context, 1))
    assert numbers(control) != numbers(taught)
    for report in control:
        assert "kd_loss" not in report["metrics"]
        assert report["metrics"]["teacher_passes"] == 0
        assert "agreement" in report["metrics"]  # compared with the teacher it is


@pytest.mark.parametrize("regime", [name for name, row in REGIMES.items() if row.alone])
def test_the_control_of_a_changed_network_is_the_same_network_without_a_teacher(context, regime) -> None:
    """Not plain training of the network as it was: the difference would be the price of the change."""
    trials = [(regime, False), (regime, True), ("plain", False)]
    taught, control, plain = (
        started(DistillTrial, regime_config(name, number, control=alone), context)
        for number, (name, alone) in enumerate(trials)
    )
    reports = [steps(trial, 1)[0] for trial in (taught, control, plain)]
    assert not [report["failed"] for report in reports if "failed" in report]
    assert "kd_loss" in reports[0]["metrics"]
    assert "kd_loss" not in reports[1]["metrics"]
    assert not control.fit.program.views_of("teacher")
    sizes = [
        {name: tuple(tensor.shape) for name, tensor in trial.fit.student.deployed().items()}
        for trial in (taught, control, plain)
    ]
    assert type(control.fit.student) is type(taught.fit.student)
    assert sizes[0] == sizes[1]
    assert sizes[1] != sizes[2] or type(control.fit.student) is not type(plain.fit.student)


def regime_config(name: str, number: int = 0, **changed: Any) -> Json:
    """A trial of a regime with its own losses."""
    config = config_of(number, REGIMES[name].losses, **changed)
    return {**config, "settings": {**config["settings"], "regime": {"name": name}}}


def test_the_teacher_is_not_asked_in_epochs_in_which_nobody_reads_it(context) -> None:
    """The student of a chain learns from its assistant, after the assistant has learned from the teacher."""
    reports = distil(regime_config("teacher_assistants"), context)
    passes = [report["metrics"]["teacher_passes"] for report in reports]
    assert passes == sorted(passes, reverse=True)
    assert 0 < sum(passes) < EPOCHS
    outputs = context.teachers["teacher"].outputs
    assert outputs is not None
    kept = [path for path in outputs.glob("*.safetensors") if not path.name.startswith("valid")]
    assert len(kept) == sum(passes)


def test_what_a_regime_found_out_in_one_number_is_reported(context) -> None:
    [report] = steps(started(DistillTrial, regime_config("truncated_start"), context), 1)
    assert 0 < report["metrics"]["share_taken"] <= 1


def test_a_reused_worker_holds_nothing_of_the_trial_before(context) -> None:
    """Its memory is free at once, without Python's collector of circles."""
    trial = started(DistillTrial, config_of(losses=LOSSES["connector"]), context)
    steps(trial, 1)
    weights_, curriculum = next(trial.fit.student.parameters()), trial.fit.curriculum
    kept = [weakref.ref(one) for one in (trial.fit, trial.fit._run, trial.fit.members, weights_, curriculum)]
    del weights_, curriculum
    gc.disable()
    try:
        trial.begin(config_of(number=1))
        assert [ref() for ref in kept] == [None] * len(kept)
    finally:
        gc.enable()
    assert steps(trial, 1)[0]["epoch"] == 1


def test_without_a_teacher_there_is_no_likeness_to_one(context) -> None:
    reports = distil(config_of(losses={"cross_entropy": 1.0}), replace(context, teachers={}))
    assert {"valid_accuracy", "objective", "train_loss"} <= reports[-1]["metrics"].keys()
    assert not {"agreement", "kl", "cka", "rdm"} & reports[-1]["metrics"].keys()
    with_one = distil(config_of(losses={"cross_entropy": 1.0}), elsewhere(context))
    assert reports[-1]["metrics"]["train_loss"] == with_one[-1]["metrics"]["train_loss"]


# Interruptions


@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("at", range(1, EPOCHS))
def test_a_trial_resumed_after_any_epoch_equals_an_uninterrupted_one(context, losses, at) -> None:
    context = replace(context, test=True)
    whole = distil(config_of(losses=losses), context)
    other = elsewhere(context)
    before = distil(config_of(losses=losses), other, at)
    after = distil(config_of(losses=losses, reported=at), other)
    assert numbers(before + after) == numbers(whole)
    assert_same_weights(weights(other), weights(context))


def test_what_was_trained_but_not_reported_is_reported_without_training(context) -> None:
    whole = distil(config_of(), context)
    path = context.folder / checkpoint_name(0)
    stamp = path.stat().st_mtime_ns
    assert numbers(distil(config_of(reported=1), context)) == numbers(whole[1:])
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("found", [True, False])
def test_what_was_reported_but_is_not_in_the_checkpoint_is_trained_and_not_reported_again(context, found) -> None:
    whole = distil(config_of(), context)
    other = elsewhere(context)
    if found:
        distil(config_of(), other, 1)
    assert numbers(distil(config_of(reported=3), other)) == numbers(whole[3:])
    assert_same_weights(weights(other), weights(context))


def flipped(raw: bytes, at: int) -> bytes:
    """64 bytes with all bits turned over."""
    return raw[:at] + bytes(255 - byte for byte in raw[at : at + 64]) + raw[at + 64 :]


def compressed(raw: bytes) -> bytes:
    """The archive with its entries compressed, as nothing that unpacks to more than it is may be."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return packed.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "half": lambda raw: raw[: len(raw) // 2],
    "text": lambda raw: b"not a checkpoint at all\n" * 9,
    "zeros": lambda raw: bytes(len(raw)),
    "start": lambda raw: flipped(raw, 0),
    "compressed": compressed,
    "weights": lambda raw: flipped(raw, len(raw) // 2),
    "end": lambda raw: flipped(raw, len(raw) - 64),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_costs_its_epochs_and_changes_nothing(context, damage) -> None:
    whole = distil(config_of(), context)
    other = elsewhere(context)
    distil(config_of(), other, 2)
    path = other.folder / checkpoint_name(0)
    path.write_bytes(damage(path.read_bytes()))
    assert numbers(distil(config_of(reported=2), other)) == numbers(whole[2:])
    assert_same_weights(weights(other), weights(context))


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EIO, {"failed": "OSError: [Errno 5] "}), (errno.ENOSPC, {"disk": [28, os.strerror(28)]})],
)
def test_a_save_that_breaks_off_leaves_the_last_checkpoint(context, monkeypatch, number, said) -> None:
    distil(config_of(), context, 2)
    before = (context.folder / checkpoint_name(0)).read_bytes()

    def dying(path: Path, raw: bytes) -> None:
        with path.open("wb") as file:
            file.write(raw[:99])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", dying)
    [report] = distil(config_of(reported=2), context, 1)
    assert report["done"]
    for key, value in said.items():
        assert report[key][: len(value)] == value
    assert (context.folder / checkpoint_name(0)).read_bytes() == before
    assert [path.name for path in (context.folder / "checkpoints").iterdir()] == ["00000.pt"]


# Starting from a parent (population based training)


def test_a_child_with_its_parent_s_settings_goes_on_as_the_parent_would_have(context) -> None:
    whole = distil(config_of(), context)
    other = elsewhere(context)
    distil(config_of(until=2), other)
    child = config_of(number=1, parent=config_of(until=2), reported=2)
    assert numbers(distil(child, other)) == numbers(whole[2:])
    assert_same_weights(weights(other, 1), weights(context))
    (other.folder / checkpoint_name(0)).unlink()
    before = (other.folder / checkpoint_name(1)).stat().st_mtime_ns
    assert numbers(distil({**child, "reported": 3}, other)) == numbers(whole[3:])
    assert (other.folder / checkpoint_name(1)).stat().st_mtime_ns == before  # from its first epoch on it is its own
    assert not (other.folder / checkpoint_name(0)).exists()


def test_a_child_starts_from_its_parent_s_weights_with_its_own_settings(context) -> None:
    distil(config_of(until=2), context)
    parent, tiny = weights(context), 1e-9
    [report] = distil(config_of(number=1, parent=config_of(until=2), reported=2, until=3, learning_rate=tiny), context)
    assert report["epoch"] == 3
    for name, tensor in weights(context, 1).items():
        if name.endswith(("weight", "bias")):
            torch.testing.assert_close(tensor, parent[name], rtol=0, atol=1e-6)
    distil(config_of(number=2, parent=config_of(until=2), reported=2, until=3, learning_rate=0.5), context)
    moved = (weights(context, 2)["fc.weight"] - parent["fc.weight"]).abs().max()
    assert moved > 1e-3


@pytest.mark.parametrize("lost", [(0,), (1,), (0, 1)], ids=["first", "second", "both"])
def test_ancestors_that_are_lost_or_cut_off_are_trained_again(context, lost) -> None:
    first = config_of(until=1)
    second = config_of(number=1, parent=first, reported=1, until=3, learning_rate=0.2)
    third = config_of(number=2, parent=second, reported=3)
    whole = [distil(config, context) for config in (first, second, third)][-1]
    other = elsewhere(context)
    distil(first, other)
    distil(second, other, 1)  # cut off in its middle
    for number in lost:
        (other.folder / checkpoint_name(number)).unlink()
    assert numbers(distil(third, other)) == numbers(whole)
    for number in (1, 2):
        assert_same_weights(weights(other, number), weights(context, number))


def test_the_checkpoint_of_another_trial_of_its_number_is_not_taken_for_its_own(context) -> None:
    """A ledger that was cut off goes on with other proposals than those whose files are still there."""
    distil(config_of(learning_rate=0.2), context, 2)
    distil(config_of(number=1), context)
    other = elsewhere(context)
    assert numbers(distil(config_of(), context)) == numbers(distil(config_of(), other))
    assert_same_weights(weights(context), weights(context, 1))


# Failures


def building(error: Exception) -> Space:
    """The space, whose students of width 5 cannot be built."""
    space = spaces.get("resnet")

    def build(arch: Arch, task: Task, **options: Any) -> nn.Module:
        if arch["width"] == 5:
            raise error
        return space.builder(arch, task, **options)

    return replace(space, builder=build)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no such\n  width"), "RuntimeError: no such width (test_trial.py:"),
        (BadInput("width must be even"), "width must be even"),
    ],
)
def test_a_student_that_cannot_be_built_is_a_failure_with_its_reason(context, error, reason) -> None:
    trial = started(DistillTrial, config_of(arch={**ARCH, "width": 5}), replace(context, space=building(error)))
    [report] = steps(trial)
    assert report["failed"].startswith(reason)
    assert "metrics" not in report
    assert report["number"] == 0
    trial.begin(config_of(number=1))
    assert numbers(steps(trial)) == numbers(distil(config_of(), context))


def test_numbers_that_are_not_finite_are_a_failure(context) -> None:
    [report] = distil(config_of(learning_rate=1e30), context)
    assert report["failed"].startswith("non-finite loss in epoch 1")
    [report] = distil(config_of(number=1), replace(context, objective={"valid_accuracy": math.inf}))
    assert report["failed"].startswith("non-finite objective after epoch 1")


# Reused workers


def test_a_reused_worker_gives_the_numbers_of_a_fresh_one(context) -> None:
    configs = [
        config_of(0),
        config_of(1, losses=LOSSES["connector"], seed=3, arch={**ARCH, "width": 8}),
        config_of(2, control=True),
        config_of(3, arch={**ARCH, "width": 3}),
    ]
    fresh = [numbers(distil(config, elsewhere(context))) for config in configs]
    trial = started(DistillTrial, configs[0], context)
    reused = [numbers(steps(trial))]
    for config in configs[1:]:
        trial.cleanup()
        trial.begin(config)
        reused.append(numbers(steps(trial)))
    assert reused == fresh
    trial = started(DistillTrial, config_of(10), context)
    steps(trial, 1)  # left in the middle
    trial.begin(config_of(11, arch={**ARCH, "width": 3}))
    assert numbers(steps(trial)) == fresh[3]


# Scores

CANDIDATES = [{"number": 3 + i, "seed": 0, "arch": {**ARCH, "width": width}} for i, width in enumerate((3, 5, 8))]


def scored(context: StageContext, trials: list[Json]) -> list[Json]:
    trial, reports, done = started(ScoreTrial, {"trials": trials}, context), [], False
    while not done:
        result = trial.step()
        reports, done = [*reports, *result["reports"]], result["done"]
    return json.loads(json.dumps(reports))


@pytest.fixture
def scoring(context: StageContext) -> StageContext:
    return replace(context, scores={name: {} for name in SCORES}, score_batch=16)


def test_each_candidate_has_one_report_of_all_scores(scoring) -> None:
    reports = scored(scoring, CANDIDATES)
    assert [report["number"] for report in reports] == [3, 4, 5]
    for report in reports:
        assert list(report["metrics"]) == list(scores.terms_of(list(SCORES)))
        assert all(math.isfinite(value) for value in report["metrics"].values())
        assert (report["epoch"], report["done"], report["reasons"]) == (0, True, {})
        assert report["seconds"] > 0
    assert len({json.dumps(report["metrics"]) for report in reports}) == 3


def test_what_is_scored_is_reported_before_all_is(scoring, monkeypatch) -> None:
    monkeypatch.setattr("trainables.trial.SCORED_EVERY", 0.0)
    trial = started(ScoreTrial, {"trials": CANDIDATES}, scoring)
    results = [trial.step() for _ in CANDIDATES]
    assert [[report["number"] for report in result["reports"]] for result in results] == [[3], [4], [5]]
    assert [result["done"] for result in results] == [False, False, True]


def test_what_is_scored_is_told_before_a_worker_is_given_up(scoring) -> None:
    trial = started(ScoreTrial, {"trials": CANDIDATES}, replace(scoring, space=building(MemoryError("too large"))))
    result = trial.step()
    assert ([report["number"] for report in result["reports"]], result["done"]) == ([3], False)
    with pytest.raises(WorkerSpoilt, match="MemoryError: too large"):
        trial.step()


def test_a_candidate_that_fails_does_not_spoil_the_others(scoring) -> None:
    alone = [scored(scoring, [trial])[0] for trial in CANDIDATES]
    reports = scored(replace(scoring, space=building(RuntimeError("no such width"))), CANDIDATES)
    assert reports[1]["failed"].startswith("RuntimeError: no such width")
    assert numbers([reports[0], reports[2]]) == numbers([alone[0], alone[2]])


def test_a_score_without_a_value_is_nan_with_its_reason(scoring) -> None:
    scoring = replace(scoring, teachers={}, scores={"snip": {}, "diswot": {}})
    [report] = scored(scoring, CANDIDATES[:1])
    terms = SCORES["diswot"].terms
    assert math.isfinite(report["metrics"]["snip"])
    assert all(math.isnan(report["metrics"][term]) and report["reasons"][term] for term in terms)
    assert set(report["reasons"]) == set(terms)


def test_a_worker_goes_from_kind_to_kind_of_work_and_back_as_fresh_ones_would(
    context, scoring, tmp_path, monkeypatch
) -> None:
    """Tune's trainable, without Tune's own constructor and the object store, which need Ray."""
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    short, score = ({"shared": partial(trial_of, kind.but_for_images())} for kind in (context, scoring))
    worker = Worker.__new__(Worker)
    worker.setup({**short, **config_of(20)}, context.data, alive=tmp_path / "nobody-looks")
    [report] = steps(worker, 1)  # left in the middle
    assert report["worker"].endswith(f":{os.getpid()}")
    assert worker.reset_config({**score, "trials": CANDIDATES})
    reports, done = [], False
    while not done:
        result = worker.step()
        reports, done = [*reports, *result["reports"]], result["done"]
    assert numbers(reports) == numbers(scored(scoring, CANDIDATES))
    worker.cleanup()
    assert worker.reset_config({**short, **config_of(21)})
    assert numbers(steps(worker)) == numbers(distil(config_of(), elsewhere(context)))
    worker.cleanup()


@pytest.mark.parametrize("of", ["context", "scoring"])
def test_a_context_travels_without_its_images(of: str, request: pytest.FixtureRequest) -> None:
    context = request.getfixturevalue(of)
    shipped = context.but_for_images()
    assert context.data not in shipped.keywords.values()
    assert shipped(context.data) == context


def test_another_seed_is_another_initialisation_on_the_same_images(scoring) -> None:
    first, second, again = (scored(scoring, [{**CANDIDATES[0], "seed": seed}])[0]["metrics"] for seed in (0, 1, 0))
    assert first == again
    assert first["snip"] != second["snip"]


def test_a_reused_worker_scores_as_a_fresh_one(scoring) -> None:
    trial = started(ScoreTrial, {"trials": CANDIDATES[:1]}, scoring)
    trial.step()
    trial.begin({"trials": CANDIDATES[1:2]})
    assert numbers(trial.step()["reports"]) == numbers(scored(scoring, CANDIDATES[1:2]))
