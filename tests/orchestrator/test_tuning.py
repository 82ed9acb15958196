"""How a student is taught can be searched: where a domain may stand, what is checked of it, and what it does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis
from orchestrator.checks import corners
from orchestrator.ledger import Ledger
from orchestrator.pipeline import _announce
from orchestrator.prepared import Search
from orchestrator.recipe import Recipe, domains_in, resolved
from orchestrator.schedulers import Population
from spaces.domains import contains, from_config, to_config
from spaces.errors import BadInput
from spaces.space import sample
from trainables import teachers
from trainables.checkpoints import checkpoint_name
from trainables.context import StageContext, TeacherContext
from trainables.trial import DistillTrial

ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 2}
TEACHER = {"space": "resnet", "arch": {**ARCH, "width": 3}, "random": True}
RAW: dict[str, Any] = {
    "name": "tuned",
    "task": {"dataset": "digits", "subset": 40, "valid": 20, "test_subset": 20},
    "teacher": TEACHER,
    "space": {"name": "resnet", "choices": {"width": [2, 3, 4]}},
    "student": ARCH,
}
EPOCHS = 4


def tuned(recipe: dict[str, Any] | None = None, **stage: Any) -> Recipe:
    whole = {"name": "only", "trial": "distill", "epochs": EPOCHS, "trials": 3, "batch_size": 20, **stage}
    return Recipe.parse({**RAW, **(recipe or {}), "stages": [whole]})


def falling(**changed: Any) -> dict[str, Any]:
    return {"cross_entropy": 0.5, "kd": {"weight": {"from": 1.0, "to": 0.1, **changed}}}


SEVERAL = {"more_teachers": [{**TEACHER, "seed": 1}]}

# Where a domain may stand: its path, its spelling, and the stage around it.
PLACES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "losses.kd": (d := {"uniform": [0.1, 1]}, {"losses": {"cross_entropy": 0.1, "kd": d}}),
    "losses.cross_entropy": (d := {"uniform": [0, 1]}, {"losses": {"cross_entropy": d, "kd": 1}}),
    "losses.kd.weight": (d := {"quniform": [0.1, 1, 0.1]}, {"losses": {"kd": {"weight": d, "temperature": 2}}}),
    "losses.kd.weight.from": (d := {"uniform": [0, 2]}, {"losses": falling(**{"from": d})}),
    "losses.kd.weight.to": (d := {"choice": [0, 0.1, 1]}, {"losses": falling(to=d)}),
    "losses.kd.weight.begin": (d := {"uniform": [0, 2]}, {"losses": falling(begin=d)}),
    "losses.kd.weight.end": (d := {"randint": [1, 5]}, {"losses": falling(end=d)}),
    "losses.kd.weight.shape": (d := {"choice": ["linear", "cosine", "step"]}, {"losses": falling(shape=d, end=2)}),
    "losses.kd.temperature": (d := {"loguniform": [1, 8]}, {"losses": {"kd": {"temperature": d}}}),
    "losses.cross_entropy.label_smoothing": (
        d := {"uniform": [0, 0.2]}, {"losses": {"kd": 1, "cross_entropy": {"label_smoothing": d}}}
    ),
    "losses.fitnets.projector": (d := {"choice": ["linear", "mlp"]}, {"losses": {"fitnets": {"projector": d}}}),
    "losses.sp.pairs.0.1": (
        d := {"choice": ["layer2", "layer3"]}, {"losses": {"sp": {"pairs": [["layer3", d]]}, "kd": 1}}
    ),
    "losses.ft.rate": (d := {"uniform": [0.4, 1]}, {"losses": {"ft": {"rate": d, "prepare_epochs": 1}}}),
    "optimizer.learning_rate": (d := {"loguniform": [0.01, 0.1]}, {"optimizer": {"learning_rate": d}}),
    "optimizer.schedule": (d := {"choice": ["cosine", "linear", "constant"]}, {"optimizer": {"schedule": d}}),
    "optimizer.warmup_epochs": (d := {"uniform": [0, 2]}, {"optimizer": {"warmup_epochs": d}}),
    "optimizer.name": (
        d := {"choice": ["sgd", "adamw"]}, {"optimizer": {"name": d, "learning_rate": 0.01}}
    ),
    "batch_size": (d := {"choice": [10, 20]}, {"batch_size": d}),
    "regime.peers": (d := {"choice": [2, 3]}, {"regime": {"name": "dml", "peers": d}}),
    "regime.name": (
        d := {"choice": ["offline", "dml"]}, {"regime": d, "losses": {"cross_entropy": 1, "kd": 1}}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    search = Search.prepare(tuned())
    config = search.teachers["teacher"]
    member = teachers.build(config, search.data)
    weights = {name: tensor.numpy() for name, tensor in member.net.state_dict().items()}
    folder = tmp_path_factory.mktemp("trials")
    teacher = TeacherContext(config, lambda: weights, teachers.weights_hash(member), folder / "teacher-outputs")
    return StageContext(search.data, search.space, {"teacher": teacher}, 0, folder, gpu=False, epochs=EPOCHS)


def trained(context: StageContext, number: int, settings_: dict[str, Any], epochs: int, **more: Any) -> DistillTrial:
    """A trial after its last epoch, as in a worker."""
    trial = DistillTrial(context)
    spec = {"number": number, "seed": 0, "arch": ARCH, "control": False, "settings": settings_, "until": epochs}
    trial.begin({**spec, "reported": 0, "parent": None, **more})
    while not (step := trial.step())["done"]:
        pass
    assert "failed" not in step["reports"][0], step
    return trial


# A domain in every place


@pytest.mark.parametrize("path", PLACES)
def test_what_a_domain_gives_is_proposed_checked_and_run(path: str, context: StageContext, tmp_path: Path) -> None:
    """From the recipe through the proposals to an epoch of training, and on to the table's column."""
    spelling, stage = PLACES[path]
    recipe = tuned(**stage)
    search = Search.prepare(recipe)
    [only] = recipe.stages
    assert {found: to_config(domain) for found, domain in domains_in(only.settings()).items()} == {path: spelling}
    domain = from_config(spelling)
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        _announce(ledger, 0, only, search, {})
        book = search.book(only, ledger)
        proposer = search.proposer(only, None)
        while (proposal := proposer.propose(book)) is not None:
            book.propose(proposal)
    assert len({str(proposal.params[path]) for proposal in book.proposals}) >= 2
    seen = set()
    for number, proposal in enumerate(book.proposals[:2]):
        assert list(proposal.params) == [path]
        assert contains(domain, proposal.params[path])
        filled = resolved(only.settings(), proposal.params)
        assert domains_in(filled) == {}
        trial = trained(context, 100 * list(PLACES).index(path) + number, filled, 2)
        assert trial.fit is not None
        weights = torch.cat([tensor.flatten() for tensor in trial.fit.student.deployed().values()])
        seen.add(weights.numpy().tobytes())
    assert len(seen) == 2, "another value, and the same student"
    table, _ = analysis.frames(analysis.events(tmp_path / "ledger.jsonl"))
    assert table[f"set.{path}"].tolist() == [proposal.params[path] for proposal in book.proposals]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(list(PLACES)), st.integers(0, 2**31))
def test_every_draw_lies_between_the_corners(path: str, seed: int) -> None:
    domain = from_config(PLACES[path][0])
    ends = corners(domain)
    assert all(contains(domain, end) for end in ends)
    value = sample({path: domain}, np.random.default_rng(seed))[path]
    assert value in ends if isinstance(value, str) else ends[0] <= value <= ends[-1]


@pytest.mark.parametrize(("spelling", "ends"), [
    ({"choice": [3, 1, 2]}, [1, 2, 3]),
    ({"choice": ["b", "a"]}, ["b", "a"]),
    ({"uniform": [0, 1]}, [0.0, 1.0]),
    ({"randint": [2, 6]}, [2, 5]),  # Tune leaves out the upper bound
    ({"quniform": [0.1, 0.3, 0.1]}, [0.1, 0.3]),
    ({"loguniform": [0.001, 0.1]}, [0.001, 0.1]),
])  # fmt: skip
def test_corners_are_what_a_domain_can_reach(spelling: dict[str, Any], ends: list[Any]) -> None:
    assert corners(from_config(spelling)) == pytest.approx(ends) if ends[0] != "b" else ends


# Domains that reach what cannot be

ASHA = {"name": "asha", "min_epochs": 1}
PBT = {"name": "pbt", "population": 2, "interval": 1}
RATE = {"learning_rate": {"loguniform": [0.01, 0.1]}}
ASSISTED = {"regime": "teacher_assistants"}

OUT_OF_RANGE: list[tuple[dict[str, Any], str]] = [
    ({"losses": {"kd": {"temperature": {"uniform": [0, 4]}}}},
     "temperature must be a number above 0, not 0.0 (losses.kd.temperature may be 0.0)"),
    ({"losses": {"kd": {"temperature": {"choice": [4, 2, -1]}}}}, "not -1 (losses.kd.temperature may be -1)"),
    ({"losses": {"kd": {"temperature": {"choice": ["warm", 2]}}}}, "not 'warm' (losses.kd.temperature may be 'warm')"),
    ({"losses": {"kd": {"uniform": [-0.1, 1]}, "cross_entropy": 1}}, "not -0.1 (losses.kd may be -0.1)"),
    ({"losses": {"kd": {"uniform": [0, 1]}, "cross_entropy": {"weight": {"uniform": [0, 1]}}}},
     "(losses.kd may be 0.0 and losses.cross_entropy.weight may be 0.0)"),
    ({"losses": {"kd": {"weight": {"from": {"uniform": [0, 1]}, "to": {"choice": [1, 0]}}}}},
     "(losses.kd.weight.from may be 0.0 and losses.kd.weight.to may be 0)"),
    ({"losses": falling(end={"choice": [2, 4, 6]})}, "epochs, not from 0 to 6 (losses.kd.weight.end may be 6)"),
    ({"losses": falling(begin={"uniform": [0, 3]}, end={"uniform": [2, 4]})},
     "not from 3.0 to 2.0 (losses.kd.weight.begin may be 3.0 and losses.kd.weight.end may be 2.0)"),
    ({"losses": falling(begin={"uniform": [-1, 2]})}, "(losses.kd.weight.begin may be -1.0)"),
    ({"losses": falling(shape={"choice": ["linear", "sine"]})}, "not 'sine' (losses.kd.weight.shape may be 'sine')"),
    ({"losses": falling(end={"randint": [2, 5]}, shape={"choice": ["linear", "step"]})},
     "(losses.kd.weight.end may be 4 and losses.kd.weight.shape may be 'step')"),
    ({"losses": {"fitnets": {"projector": {"choice": ["linear", "linaer"]}}}}, "(losses.fitnets.projector may be 'lin"),
    ({"losses": {"topk_kd": {"k": {"uniform": [2, 8]}}}}, "k must be an integer from 2, not 2.0 (losses.topk_kd.k may"),
    ({"losses": {"sp": {"pairs": [["layer3", {"choice": ["layer3", "layer9"]}]]}}},
     "known: layer1, layer2, layer3 (losses.sp.pairs.0.1 may be 'layer9')"),
    ({"losses": {"at": {"pairs": [["layer3", {"choice": ["layer3", "layer1"]}]]}}},
     "(losses.at.pairs.0.1 may be 'layer1')"),
    ({"losses": {"ft": {"prepare_epochs": {"randint": [1, 5]}}}}, "not 4 (losses.ft.prepare_epochs may be 4)"),
    ({"optimizer": {"learning_rate": {"uniform": [0, 0.1]}}}, "(optimizer.learning_rate may be 0.0)"),
    ({"optimizer": {"schedule": {"choice": ["cosine", "cosin"]}}}, "(optimizer.schedule may be 'cosin')"),
    ({"optimizer": {"name": {"choice": ["sgd", "adam"]}}}, "(optimizer.name may be 'adam')"),
    ({"batch_size": {"randint": [1, 9]}}, "batch_size must be a whole number from 2, not 1 (batch_size may be 1)"),
    ({"batch_size": {"quniform": [8, 32, 8]}}, "not 8.0 (batch_size may be 8.0)"),
    ({"regime": {"name": "dml", "peers": {"choice": [1, 2]}}}, "not 1 (regime.peers may be 1)"),
    ({"regime": {"choice": ["offline", "dmll"]}}, "did you mean 'dml'? known:"),
    ({"regime": {"name": "quantised", "bits": {"choice": [4, 33]}}}, "(regime.bits may be 33)"),
    ({"losses": {"kd": {"temperature": {"choice": []}}}}, "losses.kd.temperature: choice takes a list"),
    ({"losses": {"kd": {"temperature": {"uniform": [4, 2]}}}}, "losses.kd.temperature: uniform: bounds"),
    # Schedulers
    ({"losses": {"ft": {"prepare_epochs": 1}}, "scheduler": ASHA}, "min_epochs must be above 1, not 1"),
    ({"losses": {"ft": {"prepare_epochs": {"choice": [1, 2]}}}, "scheduler": {**ASHA, "min_epochs": 2}},
     "min_epochs must be above 2, not 2: before that, the student's head is not trained"),
    ({"regime": "blockwise", "epochs": 6, "scheduler": {**ASHA, "min_epochs": 3}},
     "min_epochs must be above 3, not 3: before that, the student's head is not trained"),
    ({"regime": "triage", "scheduler": ASHA}, "min_epochs must be above 3, not 1: before that, the student's head"),
    ({**ASSISTED, "scheduler": "asha"}, "scheduler 'asha': min_epochs must be above"),
    ({**ASSISTED, "scheduler": "hyperband"}, "scheduler 'hyperband': min_epochs must be above"),
    ({**ASSISTED, "scheduler": {"name": "median", "grace_epochs": 2}}, "'median': grace_epochs must be above"),
    ({"scheduler": PBT}, "pbt tunes hyperparameters"),
    ({"scheduler": PBT, "regime": {"name": "dml", "peers": {"choice": [2, 3]}}}, "where regime.peers is settled"),
    ({"scheduler": PBT, "optimizer": {"name": {"choice": ["sgd", "adamw"]}}}, "where optimizer.name is settled"),
    ({"scheduler": PBT, "losses": {"fitnets": {"projector": {"choice": ["linear", "mlp"]}}}},
     "with losses.fitnets.projector = 'linear' there are others to train than with 'mlp'"),
    ({"scheduler": PBT, "losses": {"kd": 1, "fitnets": {"uniform": [0, 1]}}}, "with losses.fitnets = 0.0 there are"),
    ({"scheduler": PBT, "losses": {"ft": {"prepare_epochs": {"choice": [1, 2]}}}}, "with losses.ft.prepare_epochs = 1"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "says"), OUT_OF_RANGE)
def test_a_domain_that_reaches_too_far_is_one_line_that_names_it(stage: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        Search.prepare(tuned(**stage))
    text = str(caught.value)
    assert says in text
    assert text.startswith("stage 'only': ")
    assert "\n" not in text


@pytest.mark.parametrize("stage", [
    {"losses": {"kd": {"uniform": [0, 1]}, "cross_entropy": {"weight": {"uniform": [0.1, 1]}}}},
    {"losses": falling(begin={"uniform": [0, 1.9]}, end={"uniform": [2, 4]})},
    {"losses": {"ft": {"prepare_epochs": 1}}, "scheduler": {**ASHA, "min_epochs": 2}},
    {"regime": {"name": "dml", "peers": {"choice": [2, 3]}}, "scheduler": ASHA},
    {"regime": "blockwise", "epochs": 6, "scheduler": {**ASHA, "min_epochs": 4}},
    {"losses": falling(begin={"uniform": [0, 1.9]}, end={"uniform": [2, 4]}), "optimizer": RATE, "scheduler": PBT},
    {"losses": {"fitnets": {"uniform": [0.1, 1]}, "vid": {"variance": {"uniform": [0.1, 1]}}}, "scheduler": PBT},
])  # fmt: skip
def test_domains_that_stay_within_what_can_be_are_taken(stage: dict[str, Any]) -> None:
    recipe = tuned(**stage)
    assert Search.prepare(recipe).recipe is recipe


# Population based training


def test_a_child_of_a_population_inherits_weights_and_goes_on_with_its_own_settings(context: StageContext) -> None:
    """Of two members the worse copies the better; its settings are steps from the other's, schedules included."""
    stage = {"losses": falling(**{"from": {"uniform": [0.5, 2]}}), "optimizer": {"learning_rate": {"choice": [1, 2]}}}
    [only] = tuned(**stage).stages
    population = Population(domains_in(only.settings()), 0, population=2, interval=1, quantile=0.5, resample=0.0)
    parent = {"losses.kd.weight.from": 1.0, "optimizer.learning_rate": 1}
    donor, params = population.next(1, 1, {0: (1, 0.9, parent), 1: (1, 0.1, population.first(1))})
    assert donor == 0
    assert params["losses.kd.weight.from"] in (0.8, 1.2)
    tiny = {1: 1e-9, 2: 2e-9}  # such rates that weights stay where they are
    filled = [resolved(only.settings(), found) for found in (parent, params)]
    for one in filled:
        one["optimizer"] = {"learning_rate": tiny[one["optimizer"]["learning_rate"]]}
    first = trained(context, 9000, {**filled[0], "optimizer": {"learning_rate": 0.05}}, 1)
    child = trained(context, 9001, filled[1], 2, reported=1, parent=first.spec)
    again = trained(context, 9002, filled[0], 2, reported=1, parent=first.spec)
    assert child.history[0] == first.history[0]
    states = [torch.load((context.folder / checkpoint_name(n)), weights_only=True)["fit"] for n in (9000, 9001)]
    before, after = (dict(state["members"]) for state in states)
    assert states[1]["epoch"] == 2
    for name in (name for name in before if name.endswith("weight")):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-5)
    assert child.fit is not None
    assert again.fit is not None
    rates = [group["lr"] for group in child.fit.optimizers["main"].param_groups]
    assert max(rates) <= tiny[params["optimizer.learning_rate"]]
    metrics = [trial.history[1]["metrics"] for trial in (child, again)]
    # The same images and weights: each loss is the same, and their weighted sum is not.
    assert metrics[0]["kd_loss"] == pytest.approx(metrics[1]["kd_loss"], rel=1e-4)
    more = metrics[0]["train_loss"] - metrics[1]["train_loss"]
    assert more * (params["losses.kd.weight.from"] - 1) > 0
