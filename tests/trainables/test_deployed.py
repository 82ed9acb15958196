"""What a trial of the last stage leaves behind for the tables and plots: figures, curves, latency, compression."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import spaces
from trainables import teachers
from trainables.context import StageContext, TeacherContext
from trainables.contracts import Data
from trainables.cost import measure
from trainables.curves import TOLERANCE, curves_name
from trainables.data import DataConfig, load
from trainables.figures import FIGURES
from trainables.trial import DistillTrial

EPOCHS = 2
ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig(subset=64, valid=40, test_subset=40))


@pytest.fixture
def context(data: Data, tmp_path: Path) -> StageContext:
    config = teachers.TeacherConfig(space="resnet", arch={**ARCH, "width": 12}, random=True)
    member = teachers.build(config, data)
    weights = {name: tensor.numpy() for name, tensor in member.net.state_dict().items()}
    known = {"teacher": TeacherContext(config, lambda: weights, teachers.weights_hash(member), None)}
    return StageContext(data, spaces.get("resnet"), known, 0, tmp_path, gpu=False, epochs=EPOCHS, test=True)


def last_metrics(context: StageContext, **changed: Any) -> dict[str, float]:
    """The metrics of the last report, of which those before lack what is measured at the end."""
    settings = {"regime": {"name": "offline"}, "losses": {"cross_entropy": 0.1, "kd": 0.9},
                "optimizer": {"learning_rate": 0.05}, "batch_size": 32, "augment": {},
                "precision": "float32"}  # fmt: skip
    config = {"number": 12, "seed": 0, "arch": ARCH, "control": False, "settings": settings, "until": EPOCHS,
              "reported": 0, "parent": None, **changed}  # fmt: skip
    trial = DistillTrial(context)
    trial.begin(config)
    [[first], [last]] = [trial.step()["reports"] for _ in range(EPOCHS)]
    assert not {"latency_ms", "compression", "test_accuracy"} & first["metrics"].keys()
    assert {f"valid_{name}" for name in FIGURES} <= first["metrics"].keys()
    return last["metrics"]


def test_the_last_epoch_measures_the_deployed_student(context: StageContext) -> None:
    metrics = last_metrics(context)
    assert {f"{split}_{name}" for name in FIGURES for split in ("valid", "test")} <= metrics.keys()
    assert 0.01 < metrics["latency_ms"] < 10_000
    teacher = sum(array.nbytes for array in context.teachers["teacher"].weights().values())
    student = sum(tensor.nbytes for tensor in context.student(ARCH, 0).net.state_dict().values())
    assert metrics["compression"] == teacher / student
    assert metrics["compression"] > 5  # about the square of the ratio of their widths
    cost = measure(context.space, ARCH, context.data.task)
    assert {name: metrics[f"deployed_{name}"] for name in cost} == cost


def of_regime(context: StageContext, name: str, **settings: Any) -> dict[str, float]:
    return last_metrics(context, settings={
        "regime": {"name": name, **settings}, "losses": {"cross_entropy": 0.1, "kd": 0.9},
        "optimizer": {"learning_rate": 0.05}, "batch_size": 32, "augment": {}, "precision": "float32",
    })  # fmt: skip


def test_what_is_deployed_is_counted_with_all_of_its_parts(context: StageContext) -> None:
    """The student and its assistant, also where only one of them was trained at the end."""
    other = {**ARCH, "width": 2}
    costs = [measure(context.space, arch, context.data.task) for arch in (ARCH, other)]
    metrics = of_regime(context, "residual", assistant=[other])
    for name in costs[0]:
        assert metrics[f"deployed_{name}"] == sum(cost[name] for cost in costs)


def test_quantised_weights_are_deployed_as_they_are_stored(context: StageContext) -> None:
    cost = measure(context.space, ARCH, context.data.task)
    metrics = of_regime(context, "quantised", bits=2)
    assert (metrics["deployed_params"], metrics["deployed_flops"]) == (cost["params"], cost["flops"])
    assert metrics["deployed_bytes"] < cost["bytes"] / 2
    teacher = sum(array.nbytes for array in context.teachers["teacher"].weights().values())
    assert metrics["compression"] == teacher / metrics["deployed_bytes"]


def test_cheap_convolutions_are_counted_as_they_are(context: StageContext) -> None:
    metrics = of_regime(context, "cheap_convolutions", kind="depthwise")
    cost = measure(context.space, ARCH, context.data.task)
    assert 0 < metrics["deployed_params"] < cost["params"]
    assert 0 < metrics["deployed_flops"] < cost["flops"]


def test_the_curves_are_those_of_the_figures(context: StageContext) -> None:
    metrics = last_metrics(context)
    table = pq.ParquetFile(context.folder / curves_name(12)).read().to_pandas()
    assert context.folder / curves_name(12) == context.folder / "curves" / "00012.parquet"
    areas = [np.trapezoid(part["y"], part["x"]) for _, part in table[table["curve"] == "roc"].groupby("class")]
    assert np.mean(areas) == pytest.approx(metrics["test_roc_auc"], abs=TOLERANCE)
    cells = table[table["curve"] == "confusion"]
    assert cells["n"].sum() == len(context.data.test)
    right = cells.loc[cells["class"] == cells["x"], "n"].sum()
    assert right / len(context.data.test) == pytest.approx(metrics["test_accuracy"])
    assert cells["label"].unique().tolist() == list(context.data.classes)


def test_no_curves_without_test_images_and_no_compression_without_a_teacher(context: StageContext) -> None:
    assert "compression" not in last_metrics(replace(context, teachers={}), control=True)
    unseen = replace(context, test=False, folder=context.folder / "other")
    assert "latency_ms" not in last_metrics(unseen)
    assert not (unseen.folder / "curves").exists()
