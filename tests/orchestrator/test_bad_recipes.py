"""Mistakes in how students are to be taught: each is one line, found before anything is created."""

import copy
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

import spaces
from orchestrator import cli
from orchestrator.prepared import Search
from orchestrator.recipe import Recipe
from spaces import Task
from spaces.errors import BadInput
from trainables.losses import LOSSES
from trainables.regimes import REGIMES

ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 2}
TEACHER = {"space": "resnet", "arch": {**ARCH, "width": 3}, "random": True}
RAW: dict[str, Any] = {
    "name": "bad",
    "task": {"dataset": "digits", "subset": 40, "valid": 20, "test_subset": 20},
    "teacher": TEACHER,
    "space": {"name": "resnet", "choices": {"width": [2, 3, 4]}},
    "student": ARCH,
}


def recipe(changes: dict[str, Any] | None = None, **stage: Any) -> dict[str, Any]:
    whole = {"name": "only", "trial": "distill", "epochs": 4, "trials": 1, "batch_size": 20, **stage}
    raw = {**copy.deepcopy(RAW), "stages": [whole], **(changes or {})}
    return {key: value for key, value in raw.items() if value is not None}


ALONE = {"teacher": None}
TWO = [["layer3", "layer3"]]
TRANSFER = {"name": "transfer", "source_classes": [0, 1]}
LIMITED = {"limits": {"params": 1e6}}
DOUBLE = {"name": "residual", "assistant": [ARCH]}

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    # Taps
    "student's tap": (recipe(losses={"sp": {"pairs": [["layer4", "layer3"]]}}),
                      "unknown tap of the student in sp.pairs 'layer4'; did you mean"),
    "teacher's tap": (recipe(losses={"fitnets": {"pairs": [["layer3", "last"]]}}),
                      "unknown tap of the teacher in fitnets.pairs 'last'; known: layer1, layer2, layer3"),
    "pairs of a loss of logits": (recipe(losses={"kd": {"pairs": TWO}}), "unknown setting of loss 'kd' 'pairs'"),
    "pairs that are none": (recipe(losses={"sp": {"pairs": ["layer3"]}}), "pairs must be a list of [student tap, "),
    "unequal maps": (recipe(losses={"at": {"pairs": [["layer1", "layer3"]]}}), "needs maps of equal size"),
    # Weights
    "no weight": (recipe(losses={"cross_entropy": 0, "kd": 0.0}), "at least one must have a weight above 0"),
    "no loss": (recipe(losses={}), "at least one must have a weight above 0"),
    "no weight at any time": (recipe(losses={"kd": {"weight": {"from": 0, "to": 0}}}), "at least one must have a wei"),
    "negative weight": (recipe(losses={"cross_entropy": 1, "kd": -1}), "weight must be a number from 0"),
    # Schedules
    "schedule too long": (recipe(losses={"kd": {"weight": {"from": 1, "to": 0, "end": 5}}}),
                          "must change within 0 <= begin < end <= 4 epochs, not from 0 to 5"),
    "schedule too early": (recipe(losses={"kd": {"weight": {"from": 1, "to": 0, "begin": -1}}}), "not from -1 to 4"),
    "schedule backwards": (recipe(losses={"kd": {"weight": {"from": 1, "to": 0, "begin": 3, "end": 2}}}), "3 to 2"),
    "schedule without an end": (recipe(losses={"kd": {"weight": {"from": 1}}}), "must say `from` and `to`"),
    "schedule's key": (recipe(losses={"kd": {"weight": {"form": 1, "to": 0}}}), "did you mean 'from'?"),
    "schedule's shape": (recipe(losses={"kd": {"weight": {"from": 1, "to": 0, "shape": "cosin"}}}), "must be one of"),
    "schedule longer than its phase": (
        recipe(losses={"ft": {"prepare_epochs": 4}}), "prepare_epochs must be below the epochs of its phase, 4, not 4"),
    # Regimes
    "regime": (recipe(regime="of-line"), "unknown regime 'of-line'; did you mean 'offline'? known:"),
    "regime without a name": (recipe(regime={"peers": 2}), "unknown regime None"),
    "regime that is a list": (recipe(regime={"name": ["dml"]}), "unknown regime ['dml']; did you mean 'dml'? known:"),
    "regime that may be a list": (recipe(regime={"choice": ["dml", ["kdcl"]]}), "a choice must be a number, a string"),
    "regime that may be a number": (recipe(regime={"name": {"choice": [3, 4]}}), "unknown regime 3; known:"),
    "loss without a use": (recipe(regime="plain", losses={"cross_entropy": 1, "kd": 1}),
                           "regime 'plain' has no use for loss 'kd'"),
    "loss that a setting leaves out": (recipe(regime=TRANSFER, losses={"cross_entropy": 1, "kd": 1}),
                                       "regime 'transfer' has no use for loss 'kd'"),
    "loss without a use at a corner": (
        recipe(regime={"choice": ["offline", "plain"]}, losses={"cross_entropy": 1, "kd": 1}),
        "regime 'plain' has no use for loss 'kd' (regime.name may be 'plain')"),
    "mixed images with a table": (recipe(regime="clustered_labels", augment={"mixup": 0.2}),
                                  "regime 'clustered_labels' knows something of each image, and mixup: 0.2 mixes them"),
    "mixed images with partners": (recipe(regime="cs_kd", augment={"mixup": 0.2}), "mixup: 0.2 mixes them; it must"),
    # Limits and objectives
    "limit of a part": (recipe(LIMITED, regime=DOUBLE),
                        "limits count the architecture's own network, and regime 'residual' deploys another one: "),
    "limit of one of several": (
        recipe({"limits": {"flops": 1e9}}, regime={"name": "born_again", "ensemble": True}), "'born_again' deploys"),
    "limit of what is packed": (recipe({"limits": {"bytes": 1e6}}, regime="quantised"), " bytes instead of "),
    "pareto of a part": (recipe(regime="cheap_convolutions", sampler="nsga2", pareto=["valid_accuracy", "flops"]),
                         "pareto counts the architecture's own network, and regime 'cheap_convolutions' deploys"),
    # Optimisers and augmentation
    "optimizer's setting": (recipe(optimizer={"learnig_rate": 1}), "unknown setting of optimizer 'learnig_rate'"),
    "optimizer's kind": (recipe(optimizer={"momentum": True}), "optimizer: momentum must be a number from 0 to 0.999"),
    "negative momentum": (recipe(optimizer={"momentum": -0.5}), "from 0 to 0.999, not -0.5"),
    "momentum without end": (recipe(optimizer={"momentum": 1.5}), "from 0 to 0.999, not 1.5"),
    "negative decay": (recipe(optimizer={"weight_decay": -1}), "weight_decay must be a number from 0, not -1"),
    "negative warm-up": (recipe(optimizer={"warmup_epochs": -3}), "warmup_epochs must be a number from 0, not -3"),
    "infinite rate": (
        recipe(optimizer={"learning_rate": float("inf")}),
        "learning_rate: a number must be finite, not inf",
    ),
    "schedule of the rate": (recipe(optimizer={"schedule": "cosin"}), "schedule must be one of cosine, linear, "),
    "augment's setting": (recipe(augment={"corp": 1}), "unknown setting of augment 'corp'; did you mean 'crop'?"),
    "negative crop": (recipe(augment={"crop": -1}), "augment: crop must be an integer from 0, not -1"),
    "half a pixel": (recipe(augment={"crop": 0.5}), "augment: crop must be an integer from 0, not 0.5"),
    "negative cutout": (recipe(augment={"cutout": -3}), "augment: cutout must be an integer from 0, not -3"),
    "negative mixup": (recipe(augment={"mixup": -1}), "augment: mixup must be a number from 0, not -1"),
    "flip by a number": (recipe(augment={"flip": 1}), "augment: flip must be true or false, not 1"),
    "regime's setting": (recipe(regime={"name": "dml", "pears": 2}), "unknown setting of regime 'dml' 'pears'; did"),
    "regime's setting's value": (recipe(regime={"name": "dml", "peers": 1}),
                                 "regime 'dml': peers must be an integer from 2 to 16, not 1"),
    "regime's setting's kind": (recipe(regime={"name": "dml", "peers": "two"}), "peers must be an integer"),
    "regime of a score": (recipe({"stages": [{"name": "s", "trial": "score", "scores": ["snip"], "regime": "dml"}]}),
                          "a score stage takes no regime"),
    # Teachers
    "more teachers than one, without one": (recipe({**ALONE, "more_teachers": [TEACHER]}), "which is missing"),
    "two teachers wanted": (recipe(regime="several_teachers"), "needs 2 teachers, and the recipe has 1"),
    "loss that needs a teacher": (recipe(ALONE, losses={"cross_entropy": 0.1, "kd": 0.9}),
                                  "loss 'kd' needs a teacher; the recipe has none; losses without a teacher: cross"),
    "losses that all need a teacher": (recipe(ALONE, losses={"sp": 1}), "'offline' learns nothing from sp in phase"),
    "likeness to nobody": (recipe(ALONE, objective={"teacher_similarity": 1}), "unknown metric of the objective"),
    "teacher for other images": (recipe({"teacher": {"timm": "vit_tiny_patch16_224", "random": True}}), "224"),
    "a later teacher": (recipe({"more_teachers": [{**TEACHER, "space": "resnett"}]}), "did you mean 'resnet'?"),
}  # fmt: skip


def mistake(raw: dict[str, Any]) -> str:
    with pytest.raises(BadInput) as caught:
        Search.prepare(Recipe.parse(raw))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line(what: str) -> None:
    raw, says = MISTAKES[what]
    assert says in mistake(raw)


@pytest.mark.parametrize("name", [name for name, regime in REGIMES.items() if regime.teacher == "needed"])
def test_a_regime_that_needs_a_teacher_says_so_with_those_that_do_not(name: str) -> None:
    text = mistake(recipe(ALONE, regime=name))
    assert f"regime {name!r} needs " in text
    assert "; without one: plain" in text


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.compares != "nothing"])
def test_no_loss_that_needs_a_teacher_is_passed_over_in_silence(name: str) -> None:
    text = mistake(recipe(ALONE, losses={"cross_entropy": 1, name: 1}))
    assert f"loss {name!r} needs a teacher" in text


@pytest.mark.parametrize("name", [name for name, regime in REGIMES.items() if regime.teacher == "unused"])
def test_whom_no_teacher_teaches_needs_labels(name: str) -> None:
    assert f"regime {name!r} needs a loss of labels with a weight above 0" in mistake(
        recipe(regime=name, losses={"kd": 1})
    )


def test_a_limit_that_counts_a_part_says_what_both_have() -> None:
    text = mistake(recipe(LIMITED, regime=DOUBLE))
    deployed, own = (int(number.replace(",", "")) for number in re.findall("([0-9,]+)(?: params|$)", text))
    assert deployed == 2 * own > 0


ACCEPTED: dict[str, dict[str, Any]] = {
    "bytes are not counted": recipe(LIMITED, regime="quantised"),
    "the student alone": recipe(LIMITED, regime="born_again"),
    "no limit": recipe(regime=DOUBLE),
    "mixed images are not looked up": recipe(regime="noisy_student", augment={"mixup": 0.2}),
    "a default that a setting leaves out": recipe(regime=TRANSFER),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_what_is_near_a_mistake_and_none_is_taken(what: str) -> None:
    Search.prepare(Recipe.parse(ACCEPTED[what]))


@pytest.mark.parametrize("name", [name for name, regime in REGIMES.items() if regime.teacher != "needed"])
def test_default_losses_do_without_a_teacher(name: str) -> None:
    """Of regimes that make their own teachers, they are the same."""
    regime = TRANSFER if name == "transfer" else name
    raw = recipe(ALONE, regime=regime)
    Search.prepare(Recipe.parse(raw))
    [stage] = Recipe.parse(raw).stages
    row = REGIMES[name]
    kept = row.teacher == "unused" or name in ("born_again", "noisy_student")
    assert stage.losses == (row.losses if kept else {"cross_entropy": 1.0})
    assert Recipe.parse(recipe(regime=regime)).stages[0].losses == row.losses


@pytest.mark.parametrize(("which", "task", "says"), [
    ("teacher", Task(1, 8, 7), "fc.weight"),
    ("teacher", Task(3, 8, 10), "conv1.weight"),
    ("more_teachers", Task(1, 8, 7), "fc.weight"),
])  # fmt: skip
def test_a_teacher_of_other_classes_or_colours_is_refused(which: str, task: Task, says: str, tmp_path: Path) -> None:
    """What a teacher is built for follows from the data; only its weights can be for something else."""
    net = spaces.get("resnet").build(TEACHER["arch"], task)
    save_file(net.state_dict(), tmp_path / "other.safetensors")
    other = {"space": "resnet", "arch": TEACHER["arch"], "weights": str(tmp_path / "other.safetensors")}
    text = mistake(recipe({which: other if which == "teacher" else [other]}))
    assert says in text
    assert "other.safetensors" in text


@pytest.mark.parametrize(
    "what", ["teacher's tap", "no weight", "schedule too long", "regime", "loss that needs a teacher"]
)
def test_the_command_ends_with_2_and_has_created_nothing(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, says = MISTAKES[what]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dux", "run", "bad.yaml", "--storage", "runs"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("dux: ")
    assert printed.err.count("\n") == 1
    assert says in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]
