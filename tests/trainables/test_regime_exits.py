"""Exits at several depths, the shallow ones taught by the deepest."""

import io
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gradients import reached
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import spaces
from spaces import BadInput
from trainables.contracts import Data, Member, Outputs
from trainables.curriculum import Augment, Curriculum
from trainables.data import DataConfig, load
from trainables.declare import Program
from trainables.fit import Fit, OptimizerConfig
from trainables.losses.kd import kd
from trainables.regimes import REGIMES, Kit, declare
from trainables.regimes.exits import Exit, Warmed, distance

ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}
RESNET = spaces.get("resnet")
BOTH = ("be_your_own_teacher", "multi_exit")
LABELS = torch.zeros(6, dtype=torch.int64)


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig(subset=100, valid=20, test_subset=20))


def declared(data: Data, name: str, losses: dict[str, Any] | None = None, **given: Any) -> Program:
    chosen = dict(REGIMES[name].losses) if losses is None else losses
    return declare({"name": name, **given}, Kit(data, RESNET, ARCH, chosen, 4))


def fit_of(data: Data, name: str, **given: Any) -> Fit:
    curriculum = Curriculum(data.train, 10, 0, 32, Augment(crop=1), torch.device("cpu"))
    return Fit(declared(data, name, **given), curriculum, {}, OptimizerConfig(), 7)


# Who learns from whom


def part_of(name: str) -> str:
    member, _, rest = name.partition(".")
    return rest.split(".")[1] if member == "student" else member


@pytest.mark.parametrize("name", BOTH)
def test_the_deepest_exit_learns_from_labels_alone(data: Data, name: str) -> None:
    """What an exit is taught reaches the layers before it, and never the deepest exit's own."""
    first, second = {"conv1", "bn1", "layer1", "exit1"}, {"conv1", "bn1", "layer1", "layer2", "exit2"}
    taught = ("kd", "hint") if name == "be_your_own_teacher" else ("kd",)
    wanted = {"cross_entropy": {"conv1", "bn1", "layer1", "layer2", "layer3", "fc"}}
    wanted |= {f"exit1.{loss}": first for loss in ("cross_entropy", *taught)}
    wanted |= {f"exit2.{loss}": second for loss in ("cross_entropy", *taught)}
    found = reached(fit_of(data, name), part_of)
    for exit_ in ("exit1", "exit2"):  # a hint compares maps: the classifier after them has no part in it
        assert found.get(f"{exit_}.hint", wanted[f"{exit_}.kd"]) == wanted[f"{exit_}.kd"]
    assert found == wanted


@pytest.mark.parametrize("name", BOTH)
def test_exits_have_the_deepest_map_and_are_dropped_in_the_end(data: Data, name: str) -> None:
    fit = fit_of(data, name)
    exits = {key: member for key, member in fit.members.items() if isinstance(member, Exit)}
    assert [exit_.tap for exit_ in exits.values()] == ["layer1", "layer2"]
    outputs = fit.student.outputs(torch.rand(3, 1, 8, 8), ("layer1", "layer2", "layer3"))
    for exit_ in exits.values():
        own = exit_(LABELS[:3], outputs)
        assert own.features["layer3"].shape == outputs.features["layer3"].shape == (3, 16, 2, 2)
        assert own.logits.shape == (3, 10)
    assert fit.program.deploys == "student"
    assert fit.student.deployed().keys() == RESNET.build(ARCH, data.task).state_dict().keys()
    assert fit.program.views_of("teacher") == []


def test_a_deeper_network_has_more_exits(data: Data) -> None:
    """Taps that were found, not named: three resolutions, so two shallow ones."""
    space = spaces.get("nasbench201")
    arch = space.sample(np.random.default_rng(0))
    kit = Kit(data, space, arch, {"cross_entropy": 0.7, "kd": 0.3}, 1)
    program = declare({"name": "be_your_own_teacher"}, kit)
    taps = [member.tap for member in program.members.values() if isinstance(member, Exit)]
    assert taps == list(kit.members["student"].taps[:-1])


def test_all_but_the_deepest_share_their_weight_between_labels_and_teacher(data: Data) -> None:
    terms = declared(data, "be_your_own_teacher", {"cross_entropy": 0.6, "kd": 0.4}, hint=0.5).phases[0].terms
    weights = {term.name: term.weight for term in terms}
    shallow = {"cross_entropy": 0.6, "kd": 0.4, "hint": 0.5}
    assert weights == {"cross_entropy": 1.0} | {f"exit{n}.{k}": w for n in (1, 2) for k, w in shallow.items()}


def test_other_losses_may_compare_the_last_maps(data: Data) -> None:
    fit = fit_of(data, "be_your_own_teacher", losses={"cross_entropy": 1.0, "sp": 1.0, "fitnets": {
        "weight": 1.0, "pairs": [["layer3", "layer3"]]}}, hint=0)  # fmt: skip
    assert {"exit1.sp", "exit1.fitnets", "exit2.sp", "exit2.fitnets"} < fit.run_epoch(1).losses.keys()
    assert not any("hint" in term.name for term in fit.terms)


def test_the_hint_is_a_squared_distance_of_pooled_maps() -> None:
    """By hand, for 2 images and 2 channels of 1 x 2 pixels: ((3 - 1)^2 + 0 + (0 - 1)^2 + (2 - 4)^2) / 2 images."""
    own = Outputs(torch.zeros(2, 1), {"t": torch.tensor([[[[2.0, 4.0]], [[5.0, 5.0]]], [[[0.0, 0.0]], [[1.0, 3.0]]]])})
    other = Outputs(torch.zeros(2, 1), {"t": torch.tensor([[[[1.0]], [[5.0]]], [[[1.0]], [[4.0]]]])})
    assert distance(own, other, LABELS, tap="t").item() == (4 + 0 + 1 + 4) / 2


# The temperature


def temperatures(fit: Fit) -> list[float]:
    """Of each term that has one."""
    return [term.loss.temperature.item() for term in fit.terms if isinstance(term.loss, Warmed)]


@given(
    st.lists(st.floats(0, 6), min_size=3, max_size=12),
    st.sampled_from([0.5, 1.0, 4.0]),
    st.floats(1, 1.5),
    st.floats(0.2, 0.9),
)
@settings(max_examples=20, deadline=None)
def test_the_temperature_grows_by_its_factor_after_a_sure_batch_and_never_falls(
    sizes: list[float], start: float, growth: float, confidence: float
) -> None:
    rng, temperature = np.random.default_rng(0), start
    warmed = Warmed(partial(kd, temperature=start), start, growth, confidence).double().train()
    for size in sizes:
        student, teacher = rng.standard_normal((2, 6, 4)) * size
        before = warmed.temperature.item()
        value = warmed(Outputs(torch.tensor(student)), Outputs(torch.tensor(teacher)), LABELS).item()
        p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum(1, keepdims=True) for z in (teacher, student))
        assert value == pytest.approx(temperature**2 * (p * np.log(p / q)).sum(1).mean(), rel=1e-6, abs=1e-12)
        sure = p.max(1).mean()
        if abs(sure - confidence) < 1e-6:  # too close to say
            return
        temperature *= growth if sure > confidence else 1.0
        assert warmed.temperature.item() == pytest.approx(temperature, rel=1e-6)
        assert warmed.temperature.item() >= before


def test_the_gradient_is_the_temperature_times_the_difference_of_probabilities() -> None:
    warmed = Warmed(partial(kd, temperature=2.0), 2.0, 1.05, 0.5)
    warmed.temperature.fill_(3.0)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 4, generator=generator) for _ in range(2))
    student.requires_grad_()
    warmed(Outputs(student), Outputs(teacher), LABELS).backward()
    torch.testing.assert_close(student.grad, 3 * ((student / 3).softmax(1) - (teacher / 3).softmax(1)).detach() / 6)


def test_it_stays_while_nobody_trains() -> None:
    warmed = Warmed(partial(kd, temperature=2.0), 2.0, 1.05, 0.0).eval()
    warmed(Outputs(torch.randn(6, 4)), Outputs(torch.randn(6, 4)), LABELS)
    assert warmed.temperature == 2


def test_the_temperature_of_the_recipe_is_where_it_starts(data: Data) -> None:
    losses = {"cross_entropy": 1.0, "kd": {"temperature": 3.0}, "dist": 1.0, "alpha_divergence": 1.0, "topk_kd": 1.0}
    terms = declared(data, "multi_exit", losses).phases[0].terms
    starts = {term.name: term.loss.temperature.item() for term in terms if isinstance(term.loss, Warmed)}
    own = {"kd": 3.0, "dist": 4.0, "alpha_divergence": 1.0, "topk_kd": 4.0}  # the others' defaults
    assert starts == {f"exit{n}.{name}": start for n in (1, 2) for name, start in own.items()}


def test_all_exits_have_one_temperature_and_it_survives_a_checkpoint(data: Data) -> None:
    fit = fit_of(data, "multi_exit", confidence=0.0)  # always sure: three steps an epoch
    fit.run_epoch(1)
    fit.run_epoch(2)
    assert temperatures(fit) == pytest.approx([1.05**6] * 2, rel=1e-5)
    file = io.BytesIO()
    torch.save(fit.state_dict(), file)
    file.seek(0)
    after = fit_of(data, "multi_exit", confidence=0.0)
    assert temperatures(after) == [1.0, 1.0]
    after.load_state_dict(torch.load(file, weights_only=True))
    assert temperatures(after) == temperatures(fit)
    assert after.run_epoch(3).losses == fit.run_epoch(3).losses
    assert temperatures(after) == pytest.approx([1.05**9] * 2, rel=1e-5)
    never = fit_of(data, "multi_exit", confidence=1.0)
    never.run_epoch(1)
    assert temperatures(never) == [1.0, 1.0]


# What holds for both


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any] | None, str]] = [
    ("be_your_own_teacher", {"hint": -1}, None, "hint must be a number from 0, not -1"),
    (
        "be_your_own_teacher",
        {},
        {"cross_entropy": 1.0, "fitnets": 1.0},
        "an exit has a map at 'layer3' alone",
    ),
    ("be_your_own_teacher", {}, {"kd": 1.0}, "needs a loss of labels with a weight above 0: cross_entropy"),
    (
        "be_your_own_teacher",
        {},
        {"cross_entropy": 1.0, "diswot_semantic": 1.0},
        "loss 'diswot_semantic' looks at cam; compare logits$",
    ),
    ("multi_exit", {}, {"cross_entropy": 1.0, "logit_std": 1.0}, "the size of logits is nothing to loss 'logit_std'"),
    ("multi_exit", {"growth": 0.9}, None, "growth must be a number from 1, not 0.9"),
    ("multi_exit", {"confidence": 2}, None, "confidence must be a number from 0 to 1, not 2"),
    ("multi_exit", {}, {"cross_entropy": 1.0, "sp": 1.0}, "'multi_exit' compares logits, and loss 'sp' does not"),
    ("multi_exit", {}, {"kd": 1.0}, "needs a loss of labels with a weight above 0: cross_entropy"),
]


@pytest.mark.parametrize(("name", "given", "losses", "message"), REFUSED)
def test_what_cannot_be_is_refused_before_anything_runs(
    data: Data, name: str, given: dict[str, Any], losses: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        declared(data, name, losses, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BOTH)
def test_a_network_of_one_stage_has_no_exits(data: Data, name: str) -> None:
    def shallow(arch: Any, task: Any) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

    space = spaces.Space("shallow", {}, shallow, taps=("0",), head="3")
    assert isinstance(Kit(data, space, {}, {"cross_entropy": 1.0}, 1).network(), Member)
    with pytest.raises(BadInput, match="needs a student with feature maps at 2 taps or more, not at 1"):
        declare({"name": name}, Kit(data, space, {}, {"cross_entropy": 1.0, "kd": 1.0}, 1))
