"""The trials of students that a worker runs: distillations, and scorings of many at once.

A trial's own checkpoint, written before it reports, is what it resumes from; Tune's checkpoints are not used. So a
killed worker, a killed driver and a moved run are one case: the trial is set up again and finds its file.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch

from spaces import BadInput, Task
from spaces.redact import redacted
from spaces.seeding import derive_seed
from trainables import regimes, scores
from trainables.checkpoints import checkpoint_name, packed, unpacked
from trainables.context import StageContext
from trainables.contracts import Data, Member, Probe, Split
from trainables.cost import flops, latency_ms
from trainables.curriculum import Augment, Batch, Curriculum
from trainables.curves import curves_file, curves_name
from trainables.declare import Program
from trainables.evaluate import Predictions, evaluate, evaluating, predict
from trainables.failures import WorkerSpoilt, timed
from trainables.figures import FIGURES
from trainables.fit import Fit, NonFiniteLoss, OptimizerConfig, memory_format
from trainables.images import cache_dir
from trainables.rdm import drawn_images, guidance, layer_rdms
from trainables.speed import Passes
from trainables.teacher_outputs import TeacherOutputs

Json = dict[str, Any]
GUIDANCE_IMAGES = 256  # validation images that `teacher_guidance` looks at, drawn by the run's seed: 32,640 pairs
SCORED_EVERY = 2.0  # seconds; what a kill can cost of a trial that scores many candidates
SAVED_EVERY = 2.0  # seconds; what a kill can cost of a trial whose epochs take less


class StudentTrial(ABC):
    """What both kinds of trial do: survive their own errors, and be reused by many trials of a stage."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self._teachers: dict[str, Member] = {}

    @abstractmethod
    def begin(self, config: Json) -> None:
        """Begin a trial, wherever the last one is."""

    @abstractmethod
    def _step(self) -> list[Json]: ...

    @abstractmethod
    def _is_done(self, reports: list[Json]) -> bool: ...

    def step(self) -> Json:
        """Reports of one or several of the run's trials.

        An error that would come again ends a trial with its reason; what a lost worker was doing is taken up again.

        Raises:
            WorkerSpoilt: out of memory, or a broken device: the worker is given up.
        """
        reports = self._step()
        return {"reports": reports, "done": self._is_done(reports)}

    def cleanup(self) -> None:  # noqa: B027 (there may be nothing to do)
        """Let go of the trial."""

    def _teacher(self, name: str = "teacher") -> Member:
        """A frozen teacher; each is made once for all trials of the worker."""
        if name not in self._teachers:
            self._teachers[name] = self.context.teacher_member(name)
        return self._teachers[name]


class DistillTrial(StudentTrial):
    """Distils one student; reports after each epoch.

    Its config: `number` and `seed` of the trial; `arch`; `control` (train without the teacher); `settings` (losses,
    optimizer, batch_size, augment, precision; no domains); `until` (the epoch after which it is done); `reported`
    (epochs that the run has already logged); `parent` (the config of the trial from whose end it starts, or None).
    """

    def __init__(self, context: StageContext) -> None:
        super().__init__(context)
        self._taught: dict[str, Predictions] = {}  # the (first) teacher's of a split, for all trials of the worker

    def begin(self, config: Json) -> None:
        self.spec = config
        self.fit: Fit | None = None
        self.history: list[Json] = []
        self.saved = -math.inf  # when, by `time.monotonic`
        self.at = config["reported"]

    def cleanup(self) -> None:
        self.fit = None

    def _step(self) -> list[Json]:
        return [{"number": self.spec["number"], **timed(self._next_report)}]

    def _is_done(self, reports: list[Json]) -> bool:
        return all(report["done"] for report in reports)

    def _next_report(self) -> Json:
        started = time.perf_counter()
        if self.fit is None:
            self.fit = self._set_up()
        spent = {"setup_seconds": time.perf_counter() - started, "checkpoint_seconds": 0.0}
        while len(self.history) <= self.at:
            self.history.append(self._epoch(len(self.history) + 1))
            started = time.perf_counter()
            self._save_if_due()
            spent["checkpoint_seconds"] += time.perf_counter() - started
        report = self.history[self.at]
        self.at += 1
        # What was spent on this report is not in the history: a checkpoint cannot hold how long writing it took.
        metrics = {**report["metrics"], **spent}
        return {**report, "metrics": metrics, "done": report["epoch"] >= self.spec["until"]}

    def _set_up(self) -> Fit:
        import torch._dynamo  # noqa: F401 (2 s that the first optimiser would take, and count as the student's steps)

        context, settings = self.context, self.spec["settings"]
        curriculum = Curriculum(
            context.data.train,
            len(context.data.classes),
            context.seed,
            settings["batch_size"],
            Augment(**settings["augment"]),
            context.device,
        )
        program = self._declared()
        optimizer = OptimizerConfig(**settings["optimizer"])
        seed = derive_seed(context.seed, "fit", self.spec["seed"])
        passes = Passes(settings["precision"], context.compiled)
        fit = Fit(program, curriculum, self._outputs(program, curriculum), optimizer, seed, passes)
        state = self._saved(self.spec)
        if state is None and self.spec["parent"] is not None:
            state = self._end_of(self.spec["parent"])
        if state is not None:
            fit.load_state_dict(state["fit"])
            self.history = state["history"]
        self.saved = time.monotonic()
        return fit

    def _end_of(self, parent: Json) -> Json:
        """A parent's state after its last epoch; where it is lost, the parent is trained again."""
        state = self._saved(parent)
        if state is None or len(state["history"]) < parent["until"]:
            waiting = self.spec
            self.begin({**parent, "reported": parent["until"] - 1})
            self._next_report()
            self.begin(waiting)
            state = self._saved(parent)
        assert state is not None
        return state

    def _declared(self) -> Program:
        context, settings = self.context, self.spec["settings"]
        regime, given = settings["regime"], settings["losses"]
        if self.spec["control"]:
            context, given = replace(context, teachers={}), {"cross_entropy": 1.0}
            if not regimes.REGIMES[regime["name"]].alone:
                regime = {"name": "plain"}
        return regimes.declare(regime, context.kit(self.spec["arch"], given, self.spec["seed"], self._teacher))

    def _outputs(self, program: Program, curriculum: Curriculum) -> dict[str, TeacherOutputs]:
        """The outputs of each teacher, as far as the program reads them, or likeness is measured to it."""
        fingerprint = self.context.data.fingerprint
        return {
            name: TeacherOutputs(
                partial(self._teacher, name),
                teacher.hash,
                fingerprint,
                curriculum,
                partial(program.views_of, name),
                teacher.outputs and cache_dir() / teacher.outputs,
                self.spec["settings"]["precision"],
            )
            for name, teacher in self.context.teachers.items()
        }

    def _epoch(self, epoch: int) -> Json:
        assert self.fit is not None
        trained = self.fit.run_epoch(epoch)
        started = time.perf_counter()
        metrics = {f"{name}_loss": value for name, value in trained.losses.items()}
        metrics["train_loss"] = trained.objective
        # What a regime has found out about its training in one number, such as the share of weights taken.
        metrics |= {name.replace(" ", "_"): table.item() for name, table in self.fit.tables.items() if not table.dim()}
        metrics |= self._validated()
        objective = self.context.objective or {"valid_accuracy": 1.0}
        if "teacher_guidance" in objective:
            metrics["teacher_guidance"] = self._guidance()
        metrics["objective"] = sum(weight * metrics[name] for name, weight in objective.items() if weight)
        if self.context.test and epoch >= self.context.epochs:
            metrics |= self._tested()
        if not math.isfinite(metrics["objective"]):
            raise NonFiniteLoss(f"non-finite objective after epoch {epoch}: {metrics['objective']}")
        metrics |= {
            "student_seconds": trained.seconds - trained.teacher_seconds,
            "teacher_seconds": trained.teacher_seconds,
            "teacher_passes": trained.teacher_passes,
            "evaluate_seconds": time.perf_counter() - started,
        }
        return {"epoch": epoch, "metrics": metrics}

    def _predictions(self, split: Split) -> Predictions:
        assert self.fit is not None
        return predict(self.fit.student, split, self.context.device)

    def _figures(self, name: str, split: Split, student: Predictions) -> dict[str, float]:
        """The student's figures on a split, with its likeness to the (first) teacher."""
        assert self.fit is not None
        outputs = self.fit.teachers.get("teacher")
        if outputs is not None and name not in self._taught:
            self._taught[name] = outputs.on(name, split)
        return evaluate(student, self._taught[name] if outputs is not None else None, split.labels)

    def _validated(self) -> dict[str, float]:
        valid = self.context.data.valid
        found = self._figures("valid", valid, self._predictions(valid))
        return {f"valid_{key}" if key in FIGURES else key: value for key, value in found.items()}

    def _tested(self) -> dict[str, float]:
        """The figures on the test images, whose curves are written to a file; and what the student costs deployed.

        Latency is of one image, with the worker's threads, while other workers may be at work.
        """
        assert self.fit is not None
        context, data, member = self.context, self.context.data, self.fit.student
        student = self._predictions(data.test)
        curves = curves_file(student.logits, data.test.labels, data.classes)
        context.store.write(curves_name(self.spec["number"]), curves)
        found = {f"test_{key}": value for key, value in self._figures("test", data.test, student).items()}
        found["latency_ms"] = latency_ms(member.net, data.task, context.device)
        found |= {f"deployed_{name}": value for name, value in _deployed(member, data.task).items()}
        if teacher := context.teachers.get("teacher"):
            found["compression"] = sum(array.nbytes for array in teacher.weights().values()) / member.deployed_bytes()
        return found

    @cached_property
    def _guide(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The images of `teacher_guidance`, and the teacher's dissimilarities between them: once for all trials."""
        images = drawn_images(self.context.data.valid, GUIDANCE_IMAGES, self.context.seed).to(self.context.device)
        layers = layer_rdms(self._teacher(), images)
        if not layers:
            raise BadInput("teacher_guidance compares feature maps, and the teacher has none")
        return images, layers

    def _guidance(self) -> float:
        """TGSA's guidance by the teacher after an epoch; a pass of the student of its own, since it needs all taps."""
        assert self.fit is not None
        images, teacher = self._guide
        with evaluating(self.fit.student):
            student = layer_rdms(self.fit.student, images)
        if not student:
            raise BadInput("teacher_guidance compares feature maps, and the student has none")
        return guidance(student, teacher)

    def _save_if_due(self) -> None:
        """Write a checkpoint: after the last epoch, and of the others so many that a kill costs little."""
        assert self.fit is not None
        if len(self.history) < self.spec["until"] and time.monotonic() - self.saved < SAVED_EVERY:
            return
        self.saved = time.monotonic()
        data = packed({"fit": self.fit.state_dict(), "history": self.history}, self.spec)
        self.context.store.write(checkpoint_name(self.spec["number"]), data)

    def _saved(self, spec: Json) -> Json | None:
        """What a trial goes on from; None where there is nothing that can be read."""
        try:
            data = self.context.store.read(checkpoint_name(spec["number"]))
        except OSError:  # all of it can be computed again
            return None
        return unpacked(data, spec, self.context.device)


def _deployed(member: Member, task: Task) -> dict[str, int]:
    """What is deployed, which may be more, fewer or shorter numbers than the architecture has."""
    # All parameters: those of a part that the last phase did not train are frozen by now.
    numbers = sum(parameter.numel() for parameter in member.net.parameters())
    return {"params": numbers, "flops": flops(member.net, task), "bytes": member.deployed_bytes()}


class ScoreTrial(StudentTrial):
    """Scores many candidates without training them; reports those that it is through with every two seconds or so.

    Its config: `trials`, a list of `{number, seed, arch}`.
    """

    def begin(self, config: Json) -> None:
        self.left = list(config["trials"])

    def _step(self) -> list[Json]:
        started = time.monotonic()
        reports: list[Json] = []
        while self.left and (not reports or time.monotonic() - started < SCORED_EVERY):
            trial = self.left[0]
            try:
                reports.append({"number": trial["number"], **timed(partial(self._scored, trial))})
            except WorkerSpoilt:
                if reports:
                    break  # which are told first; the next step raises it again
                raise
            self.left.pop(0)
        return reports

    def _is_done(self, reports: list[Json]) -> bool:
        return not self.left

    @cached_property
    def _batch(self) -> Batch:
        context = self.context
        whole = Curriculum(
            context.data.train, len(context.data.classes), context.seed, context.score_batch, Augment(), context.device
        )
        return next(whole.batches(1))

    def _scored(self, trial: Json) -> Json:
        """Every term; what could not be computed is NaN with its reason."""
        context = self.context
        assert context.scores is not None
        teacher = self._teacher() if context.teachers else None
        student = context.student(trial["arch"], trial["seed"]).to(context.device)
        # On a CPU a cell of NAS-Bench-201 is scored in 0.65 of the time that the default layout takes.
        student = student.to(memory_format=memory_format(student.net, context.device))
        probe = Probe(student, teacher, self._batch.images, self._batch.labels, context.data.task)
        metrics, reasons = scores.compute(context.scores, probe)
        reasons = {name: redacted(text) for name, text in reasons.items()}
        return {"epoch": 0, "metrics": metrics, "reasons": reasons, "done": True}


def trial_of(make_context: Callable[[Data], StageContext], data: Data) -> StudentTrial:
    """A stage's kind of trial, for a worker that has the images."""
    context = make_context(data)
    return ScoreTrial(context) if context.scores is not None else DistillTrial(context)
