"""What every way of teaching holds, whatever it teaches: a row of `REGIMES` is tested by being listed.

Tables below say where a regime needs more than its defaults, or is by its nature an exception, and why.
"""

import copy
import io
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from bitwise import assert_same
from torch import Tensor, nn

import spaces
from spaces import BadInput
from spaces.settings import Choice, Flag, Number, Setting
from trainables.contracts import Data, Member
from trainables.curriculum import Augment, Curriculum
from trainables.data import DataConfig, load
from trainables.declare import SHARED, Made, Of, Phase, Program, Source, Term
from trainables.evaluate import accuracy, predict
from trainables.fit import EpochReport, Fit, OptimizerConfig, PhaseRun, Step
from trainables.losses import LOSSES
from trainables.regimes import REGIMES, Kit, Regime, check_settings, declare
from trainables.teacher_outputs import TeacherOutputs

SETTINGS: dict[str, dict[str, Any]] = {
    # Assistants of the networks' own size: the default draws from the whole space.
    "teacher_assistants": {"assistants": [{"depth1": 1, "depth2": 1, "depth3": 1, "width": 3}]},
    "residual": {"assistant": [{"depth1": 1, "depth2": 1, "depth3": 1, "width": 2}]},
    # Noughts and ones, and any network that is no worse than chance: nothing is learned in so few steps.
    "transfer": {"source_classes": [0, 1], "source_share": 0.6, "gate": 0.51},
}
"""What a regime is given where its defaults do not do for 80 images and networks of width 2."""

LEARNING_TARGETS: dict[str, str] = {}
"""Regimes with a term whose target learns from it too, and why. In all others, gradients reach learners only."""

NO_COPIES: dict[str, str] = {
    "plain": "nobody teaches",
    "ffl": "the fusion has weights of its own",
    "one": "the gate has weights of its own, and branches end differently",
    "be_your_own_teacher": "exits end differently",
    "multi_exit": "exits end differently",
    "cheap_convolutions": "the online teacher has other convolutions",
    "quantised": "the student says what its rounded weights say",
    "noisy_teacher": "what the teacher says is changed at random",
    "tf_kd": "the virtual teacher is no network",
    "cs_kd": "the partner is another image",
    "sla_sd": "the target is of several views",
    "noisy_student": "labels were made before, of images without noise",
    "clustered_labels": "the target is a mean over images",
}
"""Regimes in which nobody is taught by what a network of equal weights says of the same images, and why."""

COPYING: dict[str, dict[str, Any]] = {
    "kdcl": {"distort": False},
    "transfer": {"how": "distil"},
    "teacher_assistants": {"assistants": [{"depth1": 1, "depth2": 1, "depth3": 1, "width": 2}]},
}
"""Settings with which a network can be taught by its copy, where the defaults have none or other images."""

MORE_THAN_LABELS: dict[str, str] = {
    "ffl": "the fused classifier trains the student's maps, too",
    "codistillation": "the student sees its shard",
    "afd": "maps are to pass for another's",
    "teacher_assistants": "the student has a share of the epochs",
    "residual": "the sum with the assistant is deployed",
    "truncated_start": "it begins with the teacher's weights",
    "transfer": "it begins with those of another task",
    "sla_sd": "the joint head trains the student, too",
    "noisy_student": "other images, and labels of its own",
    "quantised": "weights are rounded",
    "cheap_convolutions": "other convolutions",
    "blockwise": "blocks are trained first",
    "triage": "blocks are trained first",
    "one": "the ensemble trains the trunk, too",
    "be_your_own_teacher": "exits train the trunk, too",
    "multi_exit": "exits train the trunk, too",
    "snapshot": "cycles of the learning rate",
    "born_again": "several generations",
}
"""Regimes whose student is not bit for bit that of `plain` where nobody is taught, and why."""

HARMED: dict[str, dict[str, Any]] = {
    "residual": {"assistant": [{"depth1": 1, "depth2": 1, "depth3": 1, "width": 2}]},
}
"""Settings for the control in which a teacher talks of other images."""

UNHARMED: dict[str, str] = {
    "teacher_assistants": "a chain of networks learns too little in so few epochs",
    "blockwise": "a teacher is cut, and one that mixes up images cannot be",
    "triage": "a teacher is cut, and one that mixes up images cannot be",
}
"""Regimes for which that control does not show in few epochs, and why."""

CE: dict[str, Any] = {"cross_entropy": 1.0}
CPU = torch.device("cpu")
RESNET = spaces.get("resnet")
ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 2}
LOGITS = [name for name, entry in LOSSES.items() if entry.compares == "logits"]
Teachers = Mapping[str, Callable[[], Member]]
State = dict[str, Any]

of_every_regime = pytest.mark.parametrize("name", REGIMES)


# A run of any regime


@cache
def data(images: int = 80) -> Data:
    """Digits of 8 x 8 pixels: two batches of 32 and some that are left out."""
    return load(DataConfig(subset=images, valid=20, test_subset=200 if images > 80 else 20))


def network(width: int, seed: int, images: int = 80) -> Member:
    torch.manual_seed(seed)
    return Member.of(RESNET, RESNET.build({**ARCH, "width": width}, data().task), data(images))


def frozen(member: Member) -> Member:
    return member.eval().requires_grad_(False)


@cache
def teachers(count: int) -> Teachers:
    """So many different frozen teachers; the same for all tests, so that one who spoils them is found."""
    made = [frozen(network(3 + number, seed=number)) for number in range(count)]
    return {f"teacher{number or ''}": (lambda member=member: member) for number, member in enumerate(made)}


def taught_by(name: str) -> Teachers:
    return teachers(max(1, REGIMES[name].teachers))


def kit_of(name: str, epochs: int, losses: Mapping[str, Any] | None = None, teachers: Teachers | None = None) -> Kit:
    given = REGIMES[name].losses if losses is None else losses
    return Kit(data(), RESNET, ARCH, given, epochs, 0, 0, taught_by(name) if teachers is None else teachers)


def declared(
    name: str,
    epochs: int,
    losses: Mapping[str, Any] | None = None,
    teachers: Teachers | None = None,
    more: Mapping[str, Any] | None = None,
) -> Program:
    return declare({"name": name, **SETTINGS.get(name, {}), **(more or {})}, kit_of(name, epochs, losses, teachers))


@cache
def shortest(name: str) -> int:
    """The fewest epochs that the regime takes."""
    for epochs in range(1, 24):
        try:
            declared(name, epochs)
        except BadInput:
            continue
        return epochs
    declared(name, 24)  # says what is wrong
    return 24


def length(name: str) -> int:
    """Epochs enough for a phase of more than one."""
    return shortest(name) + 2


def fit_of(
    program: Program,
    teachers: Teachers,
    folder: Any = None,
    images: int = 80,
    seed: int = 7,
    device: torch.device = CPU,
) -> Fit:
    curriculum = Curriculum(data(images).train, 10, seed, 32, Augment(crop=1), device)
    outputs = {
        name: TeacherOutputs(make, name, data(images).fingerprint, curriculum, program.views_of(name), folder)
        for name, make in teachers.items()
    }
    return Fit(program, curriculum, outputs, OptimizerConfig(learning_rate=0.05), seed)


def saved(fit: Fit) -> bytes:
    file = io.BytesIO()
    torch.save(fit.state_dict(), file)
    return file.getvalue()


def read(state: bytes) -> State:
    return torch.load(io.BytesIO(state), weights_only=True)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, BN's counters included."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def clones(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors(module).items()}


def ids(modules: Iterable[nn.Module]) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}


@dataclass
class Whole:
    """A run without a break, and what was seen meanwhile.

    Attributes:
        states: the checkpoint after each epoch; the first is None.
        spoiled: tensors that changed within an epoch although nobody trains them.
        idle: members that a phase trains, and that did not change within an epoch.
    """

    program: Program
    fit: Fit
    reports: list[EpochReport] = field(default_factory=list)
    states: list[bytes] = field(default_factory=lambda: [b""])
    spoiled: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)


@cache
def whole(name: str) -> Whole:
    program = declared(name, length(name))
    before: dict[str, Tensor] = {}
    # After the regime's own actions, which may change anybody.
    phases = [replace(p, each_epoch=(*p.each_epoch, lambda fit: before.update(clones(fit.members)))) for p in
              program.phases]  # fmt: skip
    run = Whole(program, fit_of(replace(program, phases=tuple(phases)), taught_by(name)))
    for epoch in range(1, program.epochs + 1):
        run.reports.append(run.fit.run_epoch(epoch))
        run.states.append(saved(run.fit))
        after, trains = tensors(run.fit.members), phase_of(program, epoch).trains
        trained = {id(tensor) for member in trains for tensor in tensors(run.fit.members[member]).values()}
        changed = {id(tensor) for key, tensor in after.items() if not torch.equal(tensor, before[key])}
        run.spoiled += [f"{key} in epoch {epoch}" for key, tensor in after.items() if id(tensor) in changed - trained]
        weights = {member: ids([run.fit.members[member]]) for member in trains}
        run.idle += [f"{member} in epoch {epoch}" for member, own in weights.items() if own and not own & changed]
    return run


def phase_of(program: Program, epoch: int) -> Phase:
    """The phase that an epoch belongs to."""
    return [phase for phase in program.phases for _ in range(phase.epochs)][epoch - 1]


def resumed(name: str, epoch: int, folder: Any = None) -> Fit:
    """A fit that knows nothing but the checkpoint after this epoch."""
    torch.manual_seed(12345 + epoch)  # what others draw in between does not matter
    fit = fit_of(declared(name, length(name)), taught_by(name), folder)
    if epoch:
        fit.load_state_dict(read(whole(name).states[epoch]))
    return fit


def one_line(error: pytest.ExceptionInfo[BadInput]) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


def accepted(declare_it: Callable[[], Program]) -> Program | None:
    """What is declared; None if it is refused, in one line."""
    try:
        return declare_it()
    except BadInput as error:
        refusal = str(error)
    assert refusal
    assert "\n" not in refusal
    return None


# The table


def test_the_exceptions_are_of_regimes_that_there_are() -> None:
    for table in (SETTINGS, LEARNING_TARGETS, NO_COPIES, COPYING, MORE_THAN_LABELS, HARMED, UNHARMED):
        assert set(table) <= set(REGIMES)


@of_every_regime
def test_a_row_says_what_the_regime_is(name: str) -> None:
    row = REGIMES[name]
    assert (row.declare.__doc__ or "").splitlines()[0].endswith((".", ")."))
    assert name == "plain" or row.paper
    assert row.teachers >= 1
    assert all(setting.takes(setting.default) for setting in row.settings.values())


# What is declared


@of_every_regime
def test_declared_epochs_add_up(name: str) -> None:
    for more in (0, 1, 2, 30):
        program = declared(name, shortest(name) + more)
        assert program.epochs == shortest(name) + more
        assert all(phase.epochs >= 1 for phase in program.phases)


@of_every_regime
def test_too_few_epochs_are_refused(name: str) -> None:
    for epochs in range(1, shortest(name)):
        with pytest.raises(BadInput) as caught:
            declared(name, epochs)
        assert "epoch" in one_line(caught)


@of_every_regime
def test_names_are_unique_and_known(name: str) -> None:
    program = declared(name, length(name))
    readable = {*program.members, *(taught_by(name) if REGIMES[name].teacher != "unused" else ())}
    assert program.deploys in program.members
    assert not any("." in member for member in program.members)
    phases = [phase.name for phase in program.phases]
    assert len(set(phases)) == len(phases)
    for phase in program.phases:
        terms = [term.name for term in phase.terms]
        assert len(set(terms)) == len(terms), "two metrics of one name"
        assert "train" not in terms  # `train_loss` is the objective
        assert {term.group for term in phase.terms} <= {"main", *phase.others}
        assert set(phase.trains) <= set(program.members)
        assert {member for members in phase.others.values() for member in members} <= set(phase.trains)
        reads = [read for term in phase.terms for read, _ in term.reads()]
        assert {read.member for read in reads} <= readable
        assert {read.view for read in reads} <= {SHARED, *program.views}


@of_every_regime
def test_a_teacher_is_asked_for_or_not_as_the_table_says(name: str) -> None:
    row, epochs = REGIMES[name], length(name)
    if row.teacher == "needed":
        for count in range(row.teachers):
            with pytest.raises(BadInput) as caught:
                declared(name, epochs, teachers=teachers(count))
            assert "needs" in one_line(caught)
    else:
        alone = declared(name, epochs, teachers={})
        reads = [read for phase in alone.phases for term in phase.terms for read, _ in term.reads()]
        assert {read.member for read in reads} <= set(alone.members)


def wrong_values(setting: Setting) -> list[Any]:
    tried = [None, True, "nonsense", "", 0.5, -1, 0, 10**9, math.nan, math.inf, -math.inf, [], [1], ["a"], {}, {"a": 1}]
    return [value for value in tried if not setting.takes(value)]


def other_values(setting: Setting) -> list[Any]:
    """Values at the edges of what the setting takes, or beside its default."""
    match setting:
        case Number():
            base = setting.default or 1
            tried: list[Any] = [setting.low, setting.high, base + 1, base / 2]
            return [value for value in tried if setting.takes(value) and value <= 4 * max(1, base)]
        case Choice():
            return list(setting.names)
        case Flag():
            return [True, False]
    return []


of_every_setting = pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, row in REGIMES.items() for key in row.settings]
)


@of_every_setting
def test_a_setting_of_the_wrong_kind_is_refused_in_one_line(name: str, key: str) -> None:
    wrong = wrong_values(REGIMES[name].settings[key])
    assert len(wrong) > 4
    for value in wrong:
        with pytest.raises(BadInput) as caught:
            declare({"name": name, key: value}, kit_of(name, 24))
        assert f"regime {name!r}: {key} must be" in one_line(caught)


@of_every_setting
def test_any_value_that_a_setting_takes_declares_or_is_refused_in_one_line(name: str, key: str) -> None:
    for value in other_values(REGIMES[name].settings[key]):
        given = {"name": name, **SETTINGS.get(name, {}), key: value}
        program = accepted(lambda given=given: declare(given, kit_of(name, 24)))
        assert program is None or program.epochs == 24


@of_every_regime
def test_what_a_regime_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        check_settings({"name": name, "nonsense": 1}, 2)
    assert f"unknown setting of regime {name!r} 'nonsense'" in one_line(caught)


def test_an_unknown_regime_is_named_with_the_nearest() -> None:
    with pytest.raises(BadInput, match="unknown regime 'offlin'; did you mean 'offline'"):
        check_settings({"name": "offlin"}, 1)


# What is trained, and by whom


@of_every_regime
def test_whom_a_phase_does_not_train_stays_as_he_is(name: str) -> None:
    assert not whole(name).spoiled


@of_every_regime
def test_whom_a_phase_trains_changes(name: str) -> None:
    assert not whole(name).idle


@of_every_regime
def test_the_teachers_stay_as_they_were(name: str) -> None:
    known = {which: make() for which, make in taught_by(name).items()}
    as_made = {which: network(3 + number, seed=number) for number, which in enumerate(known)}
    whole(name)
    for which, teacher in known.items():
        assert_same(clones(teacher), clones(as_made[which]))  # weights, BN's means, variances and counters
        assert not any(module.training for module in teacher.modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        assert all(parameter.grad is None for parameter in teacher.parameters())


@dataclass(frozen=True)
class Audit:
    """Whose parameters a term's gradient may reach, and which of those that its optimiser moves it does."""

    term: Term
    allowed: set[int]
    reached: set[int]
    moved: set[int]


def modules_that_make(source: Source) -> list[nn.Module]:
    """The modules of a source through which a gradient passes."""
    if not isinstance(source, Made) or source.stop:
        return []
    own = [source.function] if isinstance(source.function, nn.Module) else []
    return [*own, *(module for inner in source.inputs for module in modules_that_make(inner))]


def steps(fit: Fit, epoch: int) -> Iterable[Step]:
    """What everybody puts out for each batch of an epoch, in the phase and modes of the last one that was run."""
    _ = fit.optimizers  # enters the phase
    run = fit._run
    assert isinstance(run, PhaseRun)
    run.set_modes()
    kept = {which: fit.teachers[which].epoch(epoch) for which in run.kept}
    for batch in fit.curriculum.batches(epoch):
        yield Step(run, batch, {which: next(outputs) for which, outputs in kept.items()})


def audits(fit: Fit, epoch: int) -> list[Audit]:
    """Each term alone, over the batches of an epoch."""
    found: dict[str, Audit] = {}
    for step in steps(fit, epoch):
        for term in fit.terms:
            own = [p for group in fit.optimizers[term.group].param_groups for p in group["params"]]
            makers = [module for end in (term.source, term.target) for module in modules_that_make(end)]
            makers += [term.loss] if isinstance(term.loss, nn.Module) else []
            allowed = ids([*(fit.members[member] for member in term.learners() & {*fit.members}), *makers])
            audit = found.setdefault(term.name, Audit(term, allowed, set(), {id(p) for p in own}))
            value = step.value(term)
            assert value.shape == ()
            assert value.isfinite(), term.name
            if value.requires_grad and own:
                gradients = torch.autograd.grad(value, own, allow_unused=True, retain_graph=True)
                audit.reached.update(id(p) for p, g in zip(own, gradients, strict=True) if g is not None and g.any())
    return list(found.values())


@cache
def audited(name: str) -> list[tuple[Fit, Phase, list[Audit]]]:
    """Every phase after its first epoch."""
    found, before = [], 0
    for phase in whole(name).program.phases:
        fit = resumed(name, before + 1)
        found.append((fit, phase, audits(fit, before + 1)))
        before += phase.epochs
    return found


@of_every_regime
def test_a_gradient_reaches_the_learners_of_its_term_and_nobody_else(name: str) -> None:
    for fit, phase, found in audited(name):
        for audit in found:
            where = f"{phase.name}: {audit.term.name}"
            assert audit.reached <= audit.allowed, where
            for member in audit.term.learners() & {*fit.members}:
                own = ids([fit.members[member]]) & audit.moved
                assert not own or own & audit.reached, f"{where} does not reach {member}"


@of_every_regime
def test_every_trained_member_is_reached_by_some_term(name: str) -> None:
    for fit, phase, found in audited(name):
        reached = set().union(*(audit.reached for audit in found))
        for member in phase.trains:
            own = ids([fit.members[member]])  # none of a module that only counts
            assert not own or own & reached, f"{phase.name}: nothing reaches {member}"


@of_every_regime
def test_whoever_is_learned_from_does_not_learn_by_it(name: str) -> None:
    if name in LEARNING_TARGETS:
        return
    for phase in whole(name).program.phases:
        for term in phase.terms:
            open_ = [read.member for read, _ in term.target.reads() if not read.stop] if term.needs_teacher else []
            assert not set(open_) - set(taught_by(name)), f"{phase.name}: {term.name} teaches its target"


# Going on


@of_every_regime
def test_going_on_from_any_epoch_is_bit_for_bit_not_stopping(name: str, tmp_path: Any) -> None:
    """The beginning included, from which another run is the same."""
    run = whole(name)
    for epoch in range(run.program.epochs):
        # Here the teachers' outputs are kept in files; in the run without a break they were not.
        fit = resumed(name, epoch, tmp_path)
        report = fit.run_epoch(epoch + 1)
        assert (report.losses, report.objective) == (run.reports[epoch].losses, run.reports[epoch].objective)
        assert_same(read(saved(fit)), read(run.states[epoch + 1]))


@of_every_regime
def test_all_that_is_reported_is_finite_and_named_after_its_term(name: str) -> None:
    run = whole(name)
    for epoch, report in enumerate(run.reports, start=1):
        terms = phase_of(run.program, epoch).terms
        assert set(report.losses) == {term.name for term in terms if term.weight != 0}
        assert all(map(math.isfinite, (*report.losses.values(), report.objective)))


# What is taught


def outcome(name: str, program: Program) -> State:
    """The deployed member after a run."""
    fit = fit_of(program, taught_by(name))
    for epoch in range(1, program.epochs + 1):
        fit.run_epoch(epoch)
    return clones(fit.student)


@cache
def plain_alone(epochs: int) -> State:
    return outcome("plain", declared("plain", epochs, CE))


def without_kd(program: Program) -> Program:
    """The same with the terms of `kd` taken out by hand."""
    kept = [tuple(t for t in phase.terms if "kd" not in t.name.split(".")) for phase in program.phases]
    assert sum(map(len, kept)) < sum(len(phase.terms) for phase in program.phases)
    phases = (replace(phase, terms=terms) for phase, terms in zip(program.phases, kept, strict=True))
    return replace(program, phases=tuple(phases))


@of_every_regime
def test_a_taught_loss_of_weight_0_is_none(name: str) -> None:
    epochs, distilling = shortest(name), {"transfer": {"how": "distil"}}.get(name)
    weighed = outcome(name, declared(name, epochs, {**CE, "kd": 0.0}, more=distilling))
    if name != "plain":  # which has no term to take out
        assert_same(weighed, outcome(name, without_kd(declared(name, epochs, {**CE, "kd": 0.7}, more=distilling))))
    if name not in MORE_THAN_LABELS:
        assert_same(weighed, plain_alone(epochs))


@pytest.mark.parametrize("name", [name for name, row in REGIMES.items() if row.teacher == "unused"])
def test_whom_no_teacher_teaches_needs_labels(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        declared(name, length(name), {"cross_entropy": 0.0, "kd": 1.0})
    assert f"regime {name!r} needs a loss of labels with a weight above 0: cross_entropy" in one_line(caught)


def test_a_phase_in_which_nobody_learns_anything_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(kit: Kit) -> Program:
        student, nothing = kit.network(), Term("nothing", 0.0, LOSSES["cross_entropy"].make({}, {}))
        phases = (Phase("first", 1, tuple(kit.terms())), Phase("second", kit.epochs - 1, (nothing,)))
        return Program({"student": student}, phases)

    monkeypatch.setitem(REGIMES, "idle", Regime(idle, "", "welcome"))
    with pytest.raises(BadInput) as caught:
        declared("idle", 3)
    assert "regime 'idle' learns nothing from cross_entropy, kd in phase 'second'" in one_line(caught)


def leaves(source: Source) -> list[Source]:
    """What a source is made of; itself where it is made with weights that no network's copy has."""
    if not isinstance(source, Made) or isinstance(source.function, nn.Module):
        return [source]
    return [leaf for inner in source.inputs for leaf in leaves(inner)]


def shapes_in(module: nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in module.state_dict().items()}


def copies(term: Term, equal: set[str]) -> bool:
    """Whether a term compares the logits of networks of equal weights for the same images."""
    ends = [term.source, *leaves(term.target)]
    views = {end.view for end in ends}
    known = {*term.name.split(".")} & {*LOGITS}
    return bool(known and len(views) == 1 and all(isinstance(end, Of) and end.member in equal for end in ends))


@of_every_regime
def test_a_copy_of_the_learner_teaches_nothing(name: str) -> None:
    student = network(ARCH["width"], seed=5)
    student(torch.rand(64, 1, 8, 8))  # in training mode: its BN has seen something
    teacher = frozen(copy.deepcopy(student))
    copied: Teachers = {which: lambda: teacher for which in taught_by(name)}
    losses = {**CE, **dict.fromkeys(LOGITS, 1.0)}
    program = accepted(lambda: declared(name, length(name), losses, copied, COPYING.get(name)))
    program = program or declared(name, length(name), None, copied, COPYING.get(name))
    fit = fit_of(program, copied)
    equal, seen = set(copied), list[tuple[str, float]]()
    for member, module in fit.members.items():
        if type(module) is Member and shapes_in(module) == shapes_in(student):
            module.load_state_dict(student.state_dict())
            equal.add(member)
    batch = next(fit.curriculum.batches(1))
    for phase in program.phases:
        fit.members.requires_grad_(True)
        run = PhaseRun(fit, replace(phase, terms=tuple(term for term in phase.terms if copies(term, equal))))
        fit.members.eval()  # one mode for all
        step = Step(run, batch, {})
        for term in run.phase.terms:
            own = [p for p in fit.members.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(step.value(term), own, allow_unused=True, retain_graph=True)
            largest = max(g.abs().max().item() for g in gradients if g is not None)
            seen.append((f"{phase.name}: {term.name}", largest))
    if name not in NO_COPIES:
        assert seen
        assert all(largest < 1e-4 for _, largest in seen), seen  # cross-entropy's is about 0.1


@of_every_regime
def test_every_loss_is_taken_or_refused_in_one_line(name: str) -> None:
    everything: dict[str, Any] = dict.fromkeys(LOSSES, 0.01)
    unprepared = {loss: weight for loss, weight in everything.items() if loss != "ft"}
    some = dict.fromkeys(("cross_entropy", *LOGITS), 0.01)
    for losses in ({**everything, "ft": {"weight": 0.01, "prepare_epochs": 1}}, unprepared, some, CE):
        program = accepted(lambda losses=losses: declared(name, length(name), losses))
        if program is not None:
            assert fit_of(program, taught_by(name)).run_epoch(1).losses
            return
    pytest.fail("refuses all losses, even that of labels alone")


# What is deployed


@of_every_regime
def test_what_is_deployed_can_be_rebuilt_and_says_the_same(name: str) -> None:
    run = whole(name)
    student = run.fit.student
    said = predict(student, data().test, CPU).logits
    assert said.shape == (len(data().test), 10)
    assert said.isfinite().all()
    deployed = student.deployed()
    assert {key: tensor.shape for key, tensor in deployed.items()} == shapes_in(student.net)
    assert all(tensor.isfinite().all() for tensor in deployed.values())
    other = declare({"name": name, **SETTINGS.get(name, {})}, replace(kit_of(name, length(name)), init=1, members={}))
    rebuilt = other.members[other.deploys]
    assert isinstance(rebuilt, Member)
    assert not torch.allclose(predict(rebuilt, data().test, CPU).logits, said)  # another initialisation
    rebuilt.net.load_state_dict(deployed)
    torch.testing.assert_close(predict(rebuilt, data().test, CPU).logits, said, rtol=1e-3, atol=1e-4)


# The control


class OfTheNeighbour(Member):
    """A teacher who says of each image what it thinks of another: the one before it in the batch."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return super().forward(images_BCHW).roll(1, 0)


def taught(program: Program, teacher: Member | None, epochs: int, seed: int = 7) -> Fit:
    fit = fit_of(program, {} if teacher is None else {"teacher": lambda: teacher}, None, 400, seed)
    for epoch in range(1, epochs + 1):
        fit.run_epoch(epoch)
    return fit


@cache
def honest() -> Member:
    """A teacher that is right about most images."""
    alone = declare({"name": "plain"}, Kit(data(400), RESNET, {**ARCH, "width": 8}, CE, 8))
    teacher = frozen(taught(alone, None, 8).student)
    assert accuracy(predict(teacher, data(400).test, CPU).logits, data(400).test.labels) > 0.6
    return teacher


@pytest.mark.parametrize("name", [name for name, row in REGIMES.items() if row.teacher == "needed"])
def test_a_teacher_who_talks_of_other_images_does_harm(name: str) -> None:
    if name in UNHARMED:
        pytest.skip(UNHARMED[name])
    good = honest()
    bad = frozen(OfTheNeighbour(good.net, good.taps, good.head, good.mean.flatten(), good.std.flatten()))
    accuracies = []
    for teacher in (good, bad):
        known: Teachers = {which: lambda teacher=teacher: teacher for which in taught_by(name)}
        given = {"name": name, **HARMED.get(name, {})}
        kit = Kit(data(400), RESNET, {**ARCH, "width": 4}, {"cross_entropy": 0.1, "kd": 0.9}, 5, 0, 0, known)
        fit = fit_of(declare(given, kit), known, None, 400)
        for epoch in range(1, 6):
            fit.run_epoch(epoch)
        accuracies.append(accuracy(predict(fit.student, data(400).test, CPU).logits, data(400).test.labels))
    assert accuracies[0] > accuracies[1] + 0.15, accuracies


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@of_every_regime
def test_a_regime_runs_and_goes_on_on_a_gpu(name: str) -> None:
    """Two epochs; and the second again from the checkpoint, but for the order in which a GPU adds."""
    device = torch.device("cuda")
    runs = [fit_of(declared(name, length(name)), taught_by(name), device=device) for _ in range(2)]
    try:
        runs[0].run_epoch(1)
        state = saved(runs[0])
        report = runs[0].run_epoch(2)
        runs[1].load_state_dict(torch.load(io.BytesIO(state), weights_only=True, map_location=device))
        again = runs[1].run_epoch(2)
        assert {parameter.device.type for parameter in runs[1].members.parameters()} <= {"cuda"}
        assert again.losses == pytest.approx(report.losses, rel=1e-2, abs=1e-4)
        said, says = (predict(fit.student, data().test, device).logits for fit in runs)
        torch.testing.assert_close(says, said, rtol=1e-2, atol=1e-2)
    finally:
        for make in taught_by(name).values():  # which other tests share
            make().to(CPU)
