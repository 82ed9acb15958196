"""Several teachers, and one whose word is not always the same."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from bitwise import assert_same, through_a_file
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import spaces
from spaces import BadInput
from trainables import regimes
from trainables.contracts import Data, Member, Outputs
from trainables.curriculum import Augment, Curriculum
from trainables.data import DataConfig, load
from trainables.declare import Made, Of, Source, Term
from trainables.fit import Fit, OptimizerConfig, PhaseRun, Step
from trainables.losses.kd import kd
from trainables.regimes.several import among_the_right, disturbed, mean_logits, mean_probabilities, where_nobody_is
from trainables.schedule import value_at
from trainables.teacher_outputs import TeacherOutputs

RESNET = spaces.get("resnet")
ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}
TINY = {**ARCH, "width": 2}
EPOCHS = 4
BOTH = {"cross_entropy": 1.0, "kd": {"temperature": 4.0}}
MAPS = {**BOTH, "fitnets": 1.0}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mean of logits": ({"name": "several_teachers", "mean_of": "logits"}, BOTH),
    "weighted": (
        {"name": "several_teachers", "combine": "weighted", "weights": [1, 3], "mean_of": "probabilities"},
        BOTH,
    ),
    "oracle": ({"name": "several_teachers", "combine": "oracle"}, BOTH),
    "distilled": ({"name": "transfer", "gate": 0.0, "source_share": 0.5, "how": "distil"}, MAPS),
}
"""What the contract of all regimes, which looks at the defaults, does not see."""


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig(subset=100, valid=60, test_subset=20))


def teacher_of(data: Data, seed: int = 0, width: int = 6, classes: int = 10) -> Member:
    torch.manual_seed(100 + seed)
    net = RESNET.build({**ARCH, "width": width}, replace(data.task, classes=classes))
    return Member(net, *RESNET.look(net, data.task), data.mean, data.std).eval().requires_grad_(False)


def kit_of(data: Data, losses: Mapping[str, Any], teachers: Sequence[Member], epochs: int = EPOCHS) -> regimes.Kit:
    known = {f"teacher{number or ''}": (lambda one=one: one) for number, one in enumerate(teachers)}
    return regimes.Kit(data, RESNET, ARCH, losses, epochs, teachers=known)


def fit_of(
    data: Data, regime: Mapping[str, Any], losses: Mapping[str, Any], teachers: Sequence[Member], epochs: int = EPOCHS
) -> Fit:
    kit = kit_of(data, losses, teachers, epochs)
    program = regimes.declare(regime, kit)
    curriculum = Curriculum(data.train, 10, 0, 32, Augment(crop=1), torch.device("cpu"))
    outputs = {
        name: TeacherOutputs(made, name, data.fingerprint, curriculum, program.views_of(name), None)
        for name, made in kit.teachers.items()
    }
    return Fit(program, curriculum, outputs, OptimizerConfig(learning_rate=0.05), 7)


# Settings that are not the defaults


@pytest.mark.parametrize("name", CASES)
def test_it_can_be_paused_after_any_epoch_and_leaves_its_teachers_alone(data: Data, name: str) -> None:
    teachers = [teacher_of(data, 0), teacher_of(data, 1)]
    before = [through_a_file(teacher.state_dict()) for teacher in teachers]
    whole = fit_of(data, *CASES[name], teachers)
    states, reports = {}, {}
    for epoch in range(1, EPOCHS + 1):
        reports[epoch] = whole.run_epoch(epoch).losses
        states[epoch] = through_a_file(whole.state_dict())
    for pause in range(1, EPOCHS):  # those of two phases change after the second epoch
        after = fit_of(data, *CASES[name], teachers)
        torch.manual_seed(pause)  # what others draw in between does not matter
        after.load_state_dict(states[pause])
        assert [after.run_epoch(epoch).losses for epoch in range(pause + 1, EPOCHS + 1)] == [
            reports[epoch] for epoch in range(pause + 1, EPOCHS + 1)
        ]
        assert_same(after.state_dict(), states[EPOCHS])
    for teacher, was in zip(teachers, before, strict=True):
        assert_same(dict(teacher.state_dict()), was)
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert not any(module.training for module in teacher.modules())


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_each_term_reaches_exactly_whom_it_declares(data: Data, name: str) -> None:
    fit = fit_of(data, *CASES[name], [teacher_of(data, 0), teacher_of(data, 1)])
    trained = {member for phase in fit.program.phases for member in phase.trains}
    for phase in fit.program.phases:
        run = PhaseRun(fit, phase)
        assert phase.terms
        for term in phase.terms:
            # Nobody is frozen here: where no gradient arrives, a stop has kept it away.
            fit.members.requires_grad_(True).train()
            fit.members.zero_grad(set_to_none=True)
            kept = {teacher: next(fit.teachers[teacher].epoch(1)) for teacher in run.kept}
            step = Step(run, next(iter(fit.curriculum.batches(1))), kept)
            step.value(term).backward()
            reached = {
                member for member in trained
                if any(p.grad is not None and p.grad.any() for p in fit.members[member].parameters())
            }  # fmt: skip
            assert reached == term.learners() <= set(phase.trains), term.name


# Several teachers


def values(terms: Sequence[Term], known: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """The objective of terms for given logits of members and teachers."""

    def outputs(source: Source) -> Outputs:
        if isinstance(source, Of):
            return Outputs(known[source.member])
        assert isinstance(source, Made)
        return source.function(labels, *(outputs(own) for own in source.inputs))

    total = torch.zeros((), dtype=torch.float64)
    for term in terms:
        source = outputs(term.source)
        target = outputs(term.target) if term.needs_teacher else source
        total = total + value_at(term.weight, 0) * term.loss(source, target, labels)
    return total


def objective(data: Data, known: Mapping[str, Tensor], labels: Tensor, **setting: Any) -> tuple[Tensor, Tensor]:
    """The objective of `several_teachers` for given logits, and its gradient by the student's."""
    teachers = [teacher_of(data, number) for number in range(len(known) - 1)]
    program = regimes.declare({"name": "several_teachers", **setting}, kit_of(data, BOTH, teachers))
    student = known["student"].clone().requires_grad_(True)
    value = values(program.phases[0].terms, {**known, "student": student}, labels)
    [gradient] = torch.autograd.grad(value, student)
    return value.detach(), gradient


def logits(teachers: int = 2, images: int = 6, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ["student", "teacher", *(f"teacher{number}" for number in range(1, teachers))]
    return {name: 3 * torch.randn(images, 10, generator=generator, dtype=torch.float64) for name in names}


def test_an_image_that_no_teacher_gets_right_has_the_gradient_of_cross_entropy(data: Data) -> None:
    known = logits()
    labels = torch.tensor([next(k for k in range(10) if k not in wrong) for wrong in
                           zip(known["teacher"].argmax(1).tolist(), known["teacher1"].argmax(1).tolist(),
                               strict=True)])  # fmt: skip
    value, gradient = objective(data, known, labels, combine="oracle")
    student = known["student"].clone().requires_grad_(True)
    expected = F.cross_entropy(student, labels)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0], rtol=1e-12, atol=1e-15)


def test_where_all_are_right_the_oracle_is_the_mean_of_the_divergences_not_that_to_the_mean_logits(data: Data) -> None:
    known = logits()
    labels = known["teacher"].argmax(1)
    known["teacher1"][torch.arange(6), labels] += 20
    value, gradient = objective(data, known, labels, combine="oracle")
    ones = {name: Outputs(given) for name, given in known.items()}
    each = [kd(ones["student"], ones[name], labels) for name in ("teacher", "teacher1")]
    torch.testing.assert_close(value, sum(each) / 2, rtol=1e-12, atol=0)
    merged = Outputs((known["teacher"] + known["teacher1"]) / 2)
    assert abs(value - kd(ones["student"], merged, labels)) > 0.1
    probabilities = [F.softmax(known[name] / 4, 1) for name in ("student", "teacher", "teacher1")]
    expected = 4 / 6 * (probabilities[0] - (probabilities[1] + probabilities[2]) / 2)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_each_image_learns_from_those_who_are_right_about_it(data: Data) -> None:
    known = logits(3, 40)
    labels = torch.arange(40) % 10
    for number, name in enumerate(("teacher", "teacher1", "teacher2")):
        known[name][torch.arange(number, 40, 2 + number), labels[number :: 2 + number]] += 20
    expected, counts = 0.0, []
    for image in range(40):
        own = {name: Outputs(given[image : image + 1]) for name, given in known.items()}
        label = labels[image : image + 1]
        right = [name for name in known if name != "student" and own[name].logits.argmax() == label]
        counts.append(len(right))
        each = [kd(own["student"], own[name], label) for name in right]
        expected += float(sum(each) / len(each) if each else F.cross_entropy(own["student"].logits, label)) / 40
    assert set(counts) == {0, 1, 2, 3}
    assert objective(data, known, labels, combine="oracle")[0].item() == pytest.approx(
        expected, rel=1e-7
    )  # shares are float32


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(0, 1000))
def test_the_shares_of_an_image_sum_to_one(teachers: int, seed: int) -> None:
    known = logits(teachers, 12, seed)
    labels = torch.arange(12) % 10
    ones = [Outputs(given) for name, given in known.items() if name != "student"]
    shares = [among_the_right(labels, one, *(other for other in ones if other is not one)) for one in ones]
    nobody = where_nobody_is(labels, *ones).features["share"]
    total = sum((one.features["share"] for one in shares), nobody)
    torch.testing.assert_close(total, torch.ones(12))
    one_hot = F.one_hot(labels, 10).float()
    assert torch.equal(where_nobody_is(0.6 * one_hot + 0.4 * one_hot.roll(1, 0), *ones).features["share"], nobody)


def test_the_mean_of_losses_pulls_to_the_mean_of_the_tempered_probabilities(data: Data) -> None:
    known, labels = logits(), torch.arange(6)
    softened = [F.softmax(known[name] / 4, 1) for name in ("teacher", "teacher1")]
    gradients = {
        kind: objective(data, known, labels, mean_of=kind)[1] for kind in ("losses", "logits", "probabilities")
    }
    labelled = (F.softmax(known["student"], 1) - F.one_hot(labels, 10)) / 6
    own = F.softmax(known["student"] / 4, 1)
    targets = {
        "losses": sum(softened) / 2,
        "logits": F.softmax((known["teacher"] + known["teacher1"]) / 8, 1),
        "probabilities": F.normalize(sum(F.softmax(4 * part.log(), 1) for part in softened).pow(1 / 4), p=1, dim=1),
    }
    for kind, target in targets.items():
        torch.testing.assert_close(gradients[kind], labelled + 4 / 6 * (own - target), rtol=1e-8, atol=1e-10)
    assert (targets["losses"] - targets["logits"]).abs().max() > 0.01
    assert (targets["losses"] - targets["probabilities"]).abs().max() > 0.01


def test_the_means_by_hand() -> None:
    ones = [Outputs(torch.tensor([probabilities]).log()) for probabilities in ([0.9, 0.1], [0.5, 0.5])]
    labels = torch.tensor([0])
    mixed = mean_probabilities(labels, *ones, shares=(0.25, 0.75)).logits.softmax(1)
    torch.testing.assert_close(mixed, torch.tensor([[0.6, 0.4]]))
    geometric = mean_logits(labels, *ones, shares=(0.5, 0.5)).logits.softmax(1)
    torch.testing.assert_close(geometric, torch.tensor([[0.75, 0.25]]))  # sqrt(0.9 * 0.5) : sqrt(0.1 * 0.5) = 3 : 1


@pytest.mark.parametrize("mean_of", ["losses", "logits", "probabilities"])
def test_only_the_ratios_of_weights_count_and_a_weight_of_0_leaves_a_teacher_out(data: Data, mean_of: str) -> None:
    known, labels = logits(), torch.arange(6)

    def found(**setting: Any) -> Tensor:
        return objective(data, known, labels, mean_of=mean_of, **setting)[0]

    def weighted(*weights: float) -> Tensor:
        return found(combine="weighted", weights=list(weights))

    torch.testing.assert_close(weighted(2, 2), found())
    torch.testing.assert_close(weighted(1, 3), weighted(10, 30))
    assert abs(weighted(1, 3) - weighted(3, 1)) > 1e-3
    alone = F.cross_entropy(known["student"], labels) + kd(
        Outputs(known["student"]), Outputs(known["teacher1"]), labels
    )
    torch.testing.assert_close(weighted(0, 1), alone)


@pytest.mark.parametrize(
    ("setting", "losses", "teachers", "message"),
    [
        ({}, BOTH, 1, "needs 2 teachers, and the recipe has 1"),
        ({"combine": "median"}, BOTH, 2, "combine must be one of mean, weighted, oracle"),
        ({"combine": "weighted"}, BOTH, 2, "weights must be one for each of the 2 teachers, not all 0, not \\[\\]"),
        ({"combine": "weighted", "weights": [0, 0]}, BOTH, 2, "not all 0"),
        ({"combine": "weighted", "weights": [1, -1]}, BOTH, 2, "weights must be a list, each a number from 0"),
        ({"weights": [1, 1]}, BOTH, 2, "weights are for combine: weighted, not mean"),
        ({"combine": "oracle"}, MAPS, 2, "compares logits, and loss 'fitnets' does not"),
        ({"mean_of": "logits"}, MAPS, 2, "compares logits, and loss 'fitnets' does not"),
        ({"combine": "oracle"}, {"dist": 1.0}, 2, "'dist' compares the images of a batch"),
    ],
)
def test_what_does_not_fit_several_teachers_is_one_clear_line(
    data: Data, setting: dict[str, Any], losses: dict[str, Any], teachers: int, message: str
) -> None:
    kit = kit_of(data, losses, [teacher_of(data, number) for number in range(teachers)])
    with pytest.raises(BadInput, match=message) as error:
        regimes.declare({"name": "several_teachers", **setting}, kit)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", [{}, {"combine": "oracle"}, {"mean_of": "logits"}])
def test_a_teacher_of_other_classes_is_one_clear_line(data: Data, setting: dict[str, Any]) -> None:
    kit = kit_of(data, BOTH, [teacher_of(data), teacher_of(data, 1, classes=7)])
    with pytest.raises(BadInput, match="7"):
        regimes.declare({"name": "several_teachers", **setting}, kit)


# A noisy teacher


def test_a_teacher_without_noise_is_the_plain_one(data: Data) -> None:
    teacher = teacher_of(data)
    plain, other, noisy = (
        fit_of(data, regime, BOTH, [teacher])
        for regime in (
            {"name": "offline"},
            {"name": "noisy_teacher", "probability": 0.0, "sigma": 5.0},
            {"name": "noisy_teacher", "probability": 1.0, "sigma": 5.0},
        )
    )
    for fit in (plain, other, noisy):
        fit.run_epoch(1)
    assert_same(other.state_dict(), plain.state_dict())
    assert not torch.equal(*(fit.student.state_dict()["net.fc.weight"] for fit in (plain, noisy)))


@pytest.mark.parametrize("relative", [True, False])
def test_the_noise_is_drawn_for_whole_images_and_each_class(relative: bool) -> None:
    torch.manual_seed(0)
    given = 5 + torch.rand(4000, 10, dtype=torch.float64)
    found = disturbed(torch.zeros(4000), Outputs(given), probability=0.3, sigma=0.2, relative=relative).logits
    changed = found != given
    assert torch.equal(changed.all(1), changed.any(1))
    assert changed.any(1).double().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 4000))
    noise = ((found - given) / (given if relative else 1))[changed.any(1)]
    assert noise.std().item() == pytest.approx(0.2, rel=0.03)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    correlation = torch.corrcoef(noise.T) - torch.eye(10)
    assert correlation.abs().max() < 0.15


@pytest.mark.parametrize(
    ("setting", "losses", "message"),
    [
        ({"sigma": -1}, BOTH, "sigma must be a number from 0, not -1"),
        ({"probability": 2}, BOTH, "probability must be a number from 0 to 1, not 2"),
        ({"noise": "loud"}, BOTH, "noise must be one of relative, added"),
        ({}, MAPS, "compares logits, and loss 'fitnets' does not"),
    ],
)
def test_noise_that_cannot_be_is_refused(
    data: Data, setting: dict[str, Any], losses: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        regimes.declare({"name": "noisy_teacher", **setting}, kit_of(data, losses, [teacher_of(data)]))
