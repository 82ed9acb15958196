"""Scores without training: contracts over the whole table, and each score against its formula done another way."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import spaces
from spaces import BadInput, Task
from trainables.contracts import Member, NotComputable, Probe
from trainables.scores import SCORES, ScoreEntry, check_settings, compute
from trainables.scores.passes import agreement, untouched, weights

TASK = Task(3, 8, 5)
BLIND = ("params", "flops", "synflow", "zen", "l2_norm")  # scores that look at neither images nor labels
IDENTITY = ([0.0], [1.0])  # mean and deviation of a network that takes pixels as they are


def resnet(width: int = 4, seed: int = 0) -> Member:
    torch.manual_seed(seed)
    space = spaces.get("resnet")
    net = space.build({"depth1": 1, "depth2": 1, "depth3": 1, "width": width}, TASK)
    return Member(net, space.taps, space.head, [0.5] * 3, [0.25] * 3)


def plain(width: int = 6, seed: int = 0) -> Member:
    """No residuals, biases, a grouped convolution, dropout, and ReLUs that do not work in place."""
    torch.manual_seed(seed)
    stage1 = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
    stage2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, groups=2), nn.BatchNorm2d(2 * width), nn.ReLU())
    end = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "drop": nn.Dropout(0.2)}
    net = nn.Sequential(OrderedDict(stage1=stage1, stage2=stage2, **end, fc=nn.Linear(2 * width, TASK.classes)))
    return Member(net, ["stage1", "stage2"], "fc", [0.5] * 3, [0.25] * 3)


NETS: dict[str, Callable[..., Member]] = {"resnet": resnet, "plain": plain}
VARIANTS = [
    pytest.param(name, dict(zip(entry.settings, values, strict=True)), id="-".join([name, *map(str, values)]))
    for name, entry in SCORES.items()
    for values in itertools.product(*entry.settings.values())
]
"""Every score with every value of every setting."""


def batch(seed: int = 0, size: int = 6, task: Task = TASK) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, task.channels, task.image_size, task.image_size, generator=generator)
    return images, torch.randint(task.classes, (size,), generator=generator)


def a_probe(student: Member, teacher: Member | None = None, seed: int = 0) -> Probe:
    images, labels = batch(seed)
    return Probe(student.train(), teacher.eval() if teacher is not None else None, images, labels, TASK)


def of_linear(net: nn.Module, images: Tensor, labels: Tensor, head: str = "1") -> Probe:
    """A probe of a network on grey images without normalisation."""
    task = Task(1, images.shape[-1], int(labels.max()) + 1)
    return Probe(Member(net, [], head, *IDENTITY), None, images, labels, task)


def terms(name: str, probe: Probe, options: dict[str, Any]) -> dict[str, float]:
    values, reasons = compute({name: options}, probe)
    assert reasons == {}
    return values


def snapshot(member: Member) -> tuple[Any, ...]:
    tensors = [*member.named_parameters(), *member.named_buffers()]
    bits = [(name, tensor.detach().numpy().tobytes(), tensor.requires_grad, tensor.grad) for name, tensor in tensors]
    extras = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in member.modules()
    ]
    return bits, extras


# --- contracts over every score ---


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_score_leaves_everything_as_it_was(name: str, options: dict[str, Any], net: str) -> None:
    probe = a_probe(NETS[net](), NETS[net](seed=1))
    assert probe.teacher is not None
    probe.student.net.get_submodule("fc").eval()  # mixed modes come back mixed
    before = snapshot(probe.student), snapshot(probe.teacher), probe.images.clone(), torch.get_rng_state()
    SCORES[name].function(probe, **options)
    assert snapshot(probe.student) == before[0]
    assert snapshot(probe.teacher) == before[1]
    assert torch.equal(probe.images, before[2])
    assert torch.equal(torch.get_rng_state(), before[3])


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_score_gives_its_terms_finite_and_the_same_again(name: str, options: dict[str, Any], net: str) -> None:
    probe = a_probe(NETS[net](), NETS[net](seed=1))
    torch.manual_seed(1)
    values = terms(name, probe, options)
    assert tuple(values) == SCORES[name].terms
    assert all(type(value) is float and math.isfinite(value) for value in values.values())
    torch.manual_seed(2)
    assert terms(name, a_probe(NETS[net](), NETS[net](seed=1)), options) == values
    assert isinstance(SCORES[name].function(probe, **options), float if SCORES[name].terms == (name,) else dict)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_teacher_aware_score_reads_the_teacher_and_no_other_does(name: str, options: dict[str, Any]) -> None:
    student, aware = resnet(), SCORES[name].needs_teacher
    one, other = (terms(name, a_probe(student, resnet(seed=seed)), options) for seed in (1, 2))
    assert all((one[term] != other[term]) is aware for term in SCORES[name].terms)
    values, reasons = compute({name: options}, a_probe(student))
    assert set(reasons) == (set(SCORES[name].terms) if aware else set())
    assert all(math.isnan(value) is aware for value in values.values())


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_scores_change_with_the_batch_and_the_seed_unless_they_look_at_neither(
    name: str, options: dict[str, Any]
) -> None:
    teacher = resnet(seed=9)
    value, other_batch, other_seed = (
        terms(name, a_probe(resnet(seed=seed), teacher, data), options) for seed, data in [(0, 0), (0, 1), (1, 0)]
    )
    for term in SCORES[name].terms:
        assert (value[term] != other_batch[term]) is (name not in BLIND)
        assert (value[term] != other_seed[term]) is (name not in ("params", "flops"))


@pytest.mark.parametrize("name", SCORES)
def test_a_score_of_a_network_with_no_path_to_its_weights_is_a_number_or_a_reason(name: str) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, TASK.classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.last(x).mean((2, 3))).detach() * 0

    probe = a_probe(Member(Constant(), ["last"], "fc", [0.5] * 3, [0.25] * 3), resnet())
    values, reasons = compute([name], probe)
    assert all(math.isfinite(value) != (term in reasons) for term, value in values.items())
    assert bool(reasons) is (name not in ("params", "flops", "l2_norm", "diswot", "zen", "rdm"))
    assert all(reason.startswith("NotComputable: ") for reason in reasons.values())


def test_scores_together_are_the_scores_one_by_one_in_one_pass() -> None:
    probe = a_probe(resnet(), resnet(seed=1))
    passes: list[int] = []
    hook = probe.student.register_forward_hook(lambda *_: passes.append(1))
    together, _ = compute(["snip", "grad_norm"], probe)
    hook.remove()
    assert len(passes) == 1
    assert together == terms("snip", probe, {}) | terms("grad_norm", probe, {})
    assert compute(["snip"], replace(probe, images=probe.images / 2))[0]["snip"] != together["snip"]


# --- errors ---


def raising(error: Exception) -> ScoreEntry:
    def score(probe: Probe) -> float:
        raise error

    return ScoreEntry(score, ("broken",))


@pytest.mark.parametrize("error", [RuntimeError, FloatingPointError, NotComputable, torch.linalg.LinAlgError])
def test_what_a_candidate_can_cause_is_a_nan_with_its_reason(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCORES, "broken", raising(error("bad\nnumbers")))
    values, reasons = compute(["broken", "params"], a_probe(resnet()))
    assert math.isnan(values["broken"])
    assert values["params"] > 0
    assert reasons["broken"].endswith(f"{error.__name__.lstrip('_')}: bad")
    assert set(reasons) == {"broken"}


def test_a_bug_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORES, "broken", raising(TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        compute(["broken"], a_probe(resnet()))


def test_values_out_of_range_are_nan_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORES, "broken", ScoreEntry(lambda probe: -math.inf, ("broken",)))
    values, reasons = compute(["broken"], a_probe(resnet()))
    assert math.isnan(values["broken"])
    assert reasons == {"broken": "NotComputable: the value is -inf"}


def test_wrong_shapes_are_a_reason_and_leave_the_student_as_it_was() -> None:
    probe = a_probe(resnet(), resnet(seed=1))
    wrong = replace(probe, images=torch.rand(6, 4, 8, 8))
    before = snapshot(probe.student)
    values, reasons = compute(["snip", "nwot", "diswot"], wrong)
    assert set(reasons) == set(values)
    assert all(reason.startswith("RuntimeError: ") and "\n" not in reason for reason in reasons.values())
    assert snapshot(probe.student) == before


def test_settings_are_checked() -> None:
    assert check_settings(["snip", "diswot"]) == {"snip": {}, "diswot": {}}
    readme = {"variant": "readme"}
    assert check_settings({"diswot": readme, "snip": None}) == {"diswot": readme, "snip": {}}


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (["snap"], "unknown score 'snap'; did you mean 'snip'"),
        ([{"snip": {}}], "unknown score {'snip': {}}"),
        ("snip", "a list of names"),
        ([], "at least one"),
        (3, "a list of names"),
        (["snip", "snip"], "stands twice"),
        ({"snip": {"variant": "paper"}}, "unknown setting of score 'snip' 'variant'"),
        ({"diswot": {"variants": "paper"}}, "did you mean 'variant'"),
        ({"diswot": {"variant": "PAPER"}}, "variant is one of paper, readme, not 'PAPER'"),
        ({"diswot": "paper"}, "settings are a mapping, not 'paper'"),
    ],
)
def test_mistakes_in_a_recipe_are_named(scores: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_settings(scores)


def test_untouched_restores_after_an_error() -> None:
    member = resnet().train()
    before, rng = snapshot(member), torch.get_rng_state()

    def use() -> None:
        with untouched(member):
            member(batch()[0])
            member.eval()
            torch.rand(1)
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        use()
    assert snapshot(member) == before
    assert torch.equal(torch.get_rng_state(), rng)


# --- each score against its formula ---


def test_snip_is_what_finite_differences_of_the_loss_give() -> None:
    member = plain(width=2).double()
    probe = replace(a_probe(member), images=batch()[0].double())
    member.net.get_submodule("drop").eval()

    def loss() -> float:
        with torch.no_grad():
            return float(F.cross_entropy(member(probe.images), probe.labels))

    expected, step = 0.0, 1e-6
    for weight in weights(member):
        flat = weight.detach().view(-1)
        for i, value in enumerate(flat.tolist()):
            flat[i] = value + step
            above = loss()
            flat[i] = value - step
            expected += abs(value * (above - loss()) / (2 * step))
            flat[i] = value
    assert terms("snip", probe, {})["snip"] == pytest.approx(expected, rel=1e-6)


def test_snip_and_grad_norm_of_a_linear_network_by_hand() -> None:
    images, labels = torch.tensor([[[[1.0, 0], [2, 0]]], [[[0, 3.0], [0, 1]]]]), torch.tensor([0, 1])
    linear = nn.Linear(4, 2)
    weight = torch.tensor([[1.0, 0, -1, 2], [0, 1.0, 0, -1]])
    linear.weight.data.copy_(weight)
    linear.bias.data.zero_()
    # Logits (-1, 0) and (2, 2): the first image's p(0) is 1/(1+e), the second's 1/2.
    p = 1 / (1 + math.e)
    error = np.array([[p - 1, 1 - p], [0.5, -0.5]])
    gradient = error.T @ np.array([[1, 0, 2, 0], [0, 3, 0, 1]]) / 2
    probe = of_linear(nn.Sequential(nn.Flatten(), linear), images, labels)
    values, _ = compute(["grad_norm", "snip"], probe)
    assert values["grad_norm"] == pytest.approx(np.sqrt((gradient**2).sum()), rel=1e-6)
    assert values["snip"] == pytest.approx(np.abs(gradient * weight.numpy()).sum(), rel=1e-6)


def test_grad_norm_adds_the_norms_of_layers() -> None:
    probe = a_probe(resnet())
    F.cross_entropy(probe.student(probe.images), probe.labels).backward()
    norms = [m.weight.grad.norm() for m in probe.student.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(norms) == 1 + 2 * 3 + 2 + 1
    assert terms("grad_norm", probe, {})["grad_norm"] == pytest.approx(float(sum(norms)), rel=1e-5)


def test_synflow_of_a_linear_network_is_the_log_of_its_paths() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    images, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    first, second = (net[i].weight.detach().double().abs() for i in (1, 3))
    # Every path goes through one weight of each layer, so each layer's sum is the sum R over all paths.
    expected = math.log(2 * float((second @ first).sum()))
    assert terms("synflow", of_linear(net, images, labels), {})["synflow"] == pytest.approx(expected, rel=1e-12)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(sorted(NETS)))
def test_synflow_does_not_see_signs_or_batch_norms(seed: int, net: str) -> None:
    probe = a_probe(NETS[net]())
    before = terms("synflow", probe, {})["synflow"]
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in probe.student.parameters():
            parameter.mul_(torch.randint(2, parameter.shape) * 2 - 1)
        for module in probe.student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2)
                module.running_var.uniform_(0.5, 2)
    assert terms("synflow", probe, {})["synflow"] == pytest.approx(before, rel=1e-12)


def test_synflow_of_a_deep_network_stays_in_range() -> None:
    net = nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64, bias=False) for _ in range(100)))
    for module in net[1:]:
        nn.init.ones_(module.weight)
    # 64^100 * 64 paths through 100 layers: 10^182, far outside of float32.
    probe = of_linear(net, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), "100")
    assert terms("synflow", probe, {})["synflow"] == pytest.approx(math.log(100) + 101 * math.log(64), rel=1e-12)


def test_synflow_of_a_cut_network_says_that_there_is_no_path() -> None:
    probe = a_probe(resnet())
    nn.init.zeros_(probe.student.net.get_parameter("conv1.weight"))
    values, reasons = compute(["synflow"], probe)
    assert math.isnan(values["synflow"])
    assert "no path" in reasons["synflow"]


PATTERNS = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [-1, -1, -1, -1]]).view(3, 1, 2, 2)


@pytest.mark.parametrize("inplace", [False, True])
def test_nwot_of_three_images_by_hand(inplace: bool) -> None:
    # Four ReLUs on the pixels; each pair of images agrees on two: det [[4, 2, 2], [2, 4, 2], [2, 2, 4]] = 32.
    net = nn.Sequential(nn.ReLU(inplace), nn.Flatten(), nn.Linear(4, 2))
    probe = of_linear(net, PATTERNS, torch.tensor([0, 1, 1]), "2")
    assert terms("nwot", probe, {})["nwot"] == pytest.approx(math.log(32), rel=1e-12)
    # Two images: det [[4, 2], [2, 4]] = 12.
    two = replace(probe, images=PATTERNS[:2], labels=probe.labels[:2])
    assert terms("nwot", two, {})["nwot"] == pytest.approx(math.log(12), rel=1e-12)


def test_nwot_adds_the_kernels_of_all_relus() -> None:
    flip = nn.Linear(4, 4, bias=False)
    flip.weight.data.copy_(-torch.eye(4))
    # After the first ReLU and the sign flip no unit is positive: the second adds 4 to every entry.
    net = nn.Sequential(nn.ReLU(), nn.Flatten(), flip, nn.ReLU(), nn.Linear(4, 2))
    probe = of_linear(net, PATTERNS[:2], torch.tensor([0, 1]), "4")
    assert terms("nwot", probe, {})["nwot"] == pytest.approx(math.log(8 * 8 - 6 * 6), rel=1e-12)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 7), st.integers(1, 40))
def test_agreement_is_the_published_kernel(seed: int, images: int, units: int) -> None:
    inputs = torch.randn(images, units, generator=torch.Generator().manual_seed(seed))
    x = (inputs > 0).double()
    assert torch.equal(agreement(inputs), x @ x.T + (1 - x) @ (1 - x).T)


def test_nwot_of_duplicated_images_says_so() -> None:
    probe = a_probe(resnet())
    twice = replace(probe, images=probe.images[[0, 1, 2, 3, 1, 5]])
    values, reasons = compute(["nwot"], twice)
    assert math.isnan(values["nwot"])
    assert "-inf: images 1 and 4 switch the same ReLUs on (duplicated images" in reasons["nwot"]


def test_nwot_without_relus_says_so() -> None:
    probe = of_linear(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), PATTERNS[:2], torch.tensor([0, 1]))
    assert "no nn.ReLU" in compute(["nwot"], probe)[1]["nwot"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_scores_on_a_gpu_are_those_of_the_cpu(name: str, options: dict[str, Any]) -> None:
    probe = a_probe(resnet(), resnet(seed=1))
    assert probe.teacher is not None
    expected = terms(name, probe, options)
    there = Probe(probe.student.cuda(), probe.teacher.cuda(), probe.images.cuda(), probe.labels.cuda(), TASK)
    before = torch.cuda.get_rng_state()
    assert terms(name, there, options) == pytest.approx(expected, rel=1e-2, abs=1e-2)
    assert torch.equal(torch.cuda.get_rng_state(), before)
