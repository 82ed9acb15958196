"""On-the-fly native ensemble: one trunk, branches of their own, and a gate that weighs them for each image."""

from typing import Any

import pytest
import torch
from gradients import reached
from torch import Tensor, nn

import spaces
from spaces import BadInput
from trainables.contracts import Data, Member, Outputs
from trainables.curriculum import Augment, Curriculum
from trainables.data import DataConfig, load
from trainables.declare import Program
from trainables.fit import Fit, OptimizerConfig
from trainables.regimes import REGIMES, Kit, declare
from trainables.regimes.branches import Branch, Gate

ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}
RESNET = spaces.get("resnet")


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig(subset=100, valid=20, test_subset=20))


def declared(data: Data, losses: dict[str, Any] | None = None, **settings: Any) -> Program:
    given = dict(REGIMES["one"].losses) if losses is None else losses
    return declare({"name": "one", **settings}, Kit(data, RESNET, ARCH, given, 4))


def fit_of(data: Data, **settings: Any) -> Fit:
    curriculum = Curriculum(data.train, 10, 0, 32, Augment(crop=1), torch.device("cpu"))
    return Fit(declared(data, **settings), curriculum, {}, OptimizerConfig(), 7)


def members_of(fit: Fit) -> tuple[Member, dict[str, Branch], Gate]:
    student, gate = fit.members["student"], fit.members["gate"]
    branches = {name: member for name, member in fit.members.items() if isinstance(member, Branch)}
    assert isinstance(student, Member)
    assert isinstance(gate, Gate)
    return student, branches, gate


@pytest.fixture(scope="module")
def trained(data: Data) -> Fit:
    fit = fit_of(data)
    fit.run_epoch(1)
    fit.run_epoch(2)
    return fit


@pytest.fixture(scope="module")
def images(data: Data) -> Tensor:
    return torch.tensor(data.test.images).float() / 255


def test_the_gate_sums_to_1_for_each_image_and_mixes_the_branches(trained: Fit, images: Tensor) -> None:
    student, branches, gate = members_of(trained)
    trained.members.eval()
    with torch.no_grad():
        own = student.outputs(images, ("layer2",))
        others = [branch(None, own) for branch in branches.values()]
        shares_BM, mixed = gate.shares(own.features["layer2"]), gate(None, own, *others).logits
    assert shares_BM.shape == (len(images), 3)
    torch.testing.assert_close(shares_BM.sum(1), torch.ones(len(images)))
    assert shares_BM.min() > 0
    assert not torch.allclose(shares_BM[0], shares_BM[1], atol=1e-4)  # it looks at the image
    by_hand = sum(shares_BM[:, [i]] * outputs.logits for i, outputs in enumerate([own, *others]))
    torch.testing.assert_close(mixed, by_hand)


def test_an_exported_branch_says_what_it_said_in_the_ensemble(trained: Fit, images: Tensor, data: Data) -> None:
    student, branches, _ = members_of(trained)
    trained.members.eval()
    with torch.no_grad():
        outputs = student.outputs(images, ("layer2",))
        said = {"student": outputs.logits} | {name: branch(None, outputs).logits for name, branch in branches.items()}
        for name, logits in said.items():
            weights = student.deployed()
            if name != "student":
                weights = weights | branches[name].tail.net.state_dict()
            net = RESNET.build(ARCH, data.task)
            net.load_state_dict(weights)
            exported = Member.of(RESNET, net.eval(), data)
            torch.testing.assert_close(exported(images), logits)
    assert len({logits.sum().item() for logits in said.values()}) == 3


@pytest.mark.parametrize(("own", "trunk"), [(1, ("conv1", "bn1", "layer1", "layer2")), (2, ("conv1", "bn1", "layer1"))])
def test_there_is_one_trunk_and_a_tail_of_its_own_for_each_branch(data: Data, own: int, trunk: tuple[str, ...]) -> None:
    student, branches, _ = members_of(fit_of(data, branches=4, own=own))
    assert set(branches) == {"branch1", "branch2", "branch3"}
    tail = {name for name, _ in student.net.named_parameters() if name.partition(".")[0] not in trunk}
    for branch in branches.values():
        assert {name for name, _ in branch.tail.net.named_parameters()} == tail
    first = [member.tail.net.get_parameter("fc.weight") for member in branches.values()]
    first.append(student.net.get_parameter("fc.weight"))
    assert len({weight.sum().item() for weight in first}) == 4  # each from an initialisation of its own


def part_of(name: str) -> str:
    member, _, rest = name.partition(".")
    if member != "student":
        return member
    return "tail" if rest.startswith(("net.layer3", "net.fc")) else "trunk"


def test_the_ensemble_is_a_constant_for_the_branches_and_each_learns_alone(data: Data) -> None:
    assert reached(fit_of(data), part_of) == {
        "cross_entropy": {"trunk", "tail"},
        "kd": {"trunk", "tail"},
        "branch1.cross_entropy": {"trunk", "branch1"},
        "branch1.kd": {"trunk", "branch1"},
        "branch2.cross_entropy": {"trunk", "branch2"},
        "branch2.kd": {"trunk", "branch2"},
        "ensemble.cross_entropy": {"trunk", "tail", "branch1", "branch2", "gate"},
    }


def test_the_student_starts_as_in_any_regime_and_the_teacher_is_not_asked(data: Data) -> None:
    program = declared(data)
    plain = declare({"name": "plain"}, Kit(data, RESNET, ARCH, {"cross_entropy": 1.0}, 4))
    states = [one.members["student"].state_dict() for one in (program, plain)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    assert program.views_of("teacher") == []


def test_the_kd_is_that_of_the_paper(data: Data) -> None:
    """T^2 KL at T = 3, by hand, from the ensemble to the branch."""
    generator = torch.Generator().manual_seed(0)
    branch, ensemble = (torch.randn(5, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = ((logits / 3).softmax(1) for logits in (ensemble, branch))
    wanted = 9 * (p * (p.log() - q.log())).sum(1).mean()
    [term] = [term for term in declared(data).phases[0].terms if term.name == "branch1.kd"]
    torch.testing.assert_close(term.loss(Outputs(branch), Outputs(ensemble), torch.zeros(5)), wanted)
    assert term.weight == 1


@pytest.mark.parametrize(
    ("settings", "losses", "message"),
    [
        ({"branches": 1}, None, "branches must be an integer from 2 to 16, not 1"),
        ({"own": 0}, None, "own must be an integer from 1, not 0"),
        ({"own": 3}, None, "regime 'one' with own: 3 needs a student with feature maps at 4 taps or more, not at 3"),
        ({"peers": 2}, None, "unknown setting of regime 'one' 'peers'"),
        ({}, {"cross_entropy": 1.0, "sp": 1.0}, "regime 'one' compares logits, and loss 'sp' does not"),
        ({}, {"cross_entropy": 0.0, "kd": 1.0}, "regime 'one' needs a loss of labels with a weight above 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    data: Data, settings: dict[str, Any], losses: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        declared(data, losses, **settings)


class Skipping(nn.Module):
    """A network whose classifier looks at the first map beside the last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.third, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.fc(torch.cat([first, self.third(self.second(first).relu())], 1).mean((2, 3)))


def test_a_network_that_looks_past_the_trunk_is_refused(data: Data) -> None:
    space = spaces.Space("skipping", {}, lambda arch, task: Skipping(), taps=("first", "second", "third"), head="fc")
    kit = Kit(data, space, {}, {"cross_entropy": 1.0, "kd": 1.0}, 1)
    with pytest.raises(BadInput, match="the network cannot be cut at 'second'"):
        declare({"name": "one"}, kit)
    assert declare({"name": "one", "own": 2}, kit).epochs == 1  # after the first map it looks at nothing else
