"""What the user's own tools have of a run: all of it, once, however often it was interrupted; and never at its cost."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import analysis
import orchestrator
from analysis.remote import Address
from orchestrator import launch, tracking
from orchestrator.book import Book, Proposal
from orchestrator.ledger import Event
from orchestrator.paths import check_links
from orchestrator.plan import plan
from orchestrator.prepared import book_of, space_of
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run
from spaces import BadInput
from trainables.store import Store

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

RAW: dict[str, Any] = {
    "name": "tracked",
    "task": {"dataset": "digits", "subset": 60, "valid": 40},
    "teacher": {"space": "resnet", "arch": {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}, "train_epochs": 1},
    "space": {"name": "resnet", "choices": {"depth1": [1, 2], "depth2": [1], "depth3": [1], "width": [2, 3, 4]}},
    "workers": 1,
    "stages": [
        {"name": "score", "trial": "score", "scores": ["snip", "params"], "trials": 4, "keep": 3},
        {
            "name": "short",
            "trial": "distill",
            "epochs": 3,
            "seeds": 2,
            "losses": {
                "cross_entropy": 0.1,
                "kd": {"weight": {"uniform": [0.1, 0.9]}, "temperature": {"choice": [2, 4]}},
            },
            "sampler": "tpe",
            "scheduler": {"name": "asha", "min_epochs": 1, "reduction_factor": 2},
        },
    ],
}


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody is logged in anywhere, and nothing lands in the working directory."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all: MLflow takes seconds to make one."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"


def recipe_with(**tools: Any) -> Recipe:
    return Recipe.parse({**RAW, "tracking": tools})


def search(run: Run) -> None:
    """What a search of `RAW` writes into the ledger: two trials at once, one stopped, one failed and begun again."""
    scoring, distilling = (announced(run, index) for index in range(2))
    for number, width in enumerate((2, 3, 4, 2)):
        scoring.propose(proposal(width, until=0, depth=1 + number // 3))
    for number in (1, 0, 3):  # as two workers would
        scoring.report(number, 0, {"snip": 1.0 + number, "params": 100.0, "none": None}, 0.1, "w")
        scoring.end(number, "completed")
    scoring.end(2, "failed", "of no use")
    scoring.keep([3, 1, 0])
    scoring.close(1.0, 1)
    for number, width in enumerate((2, 3, 4)):
        distilling.propose(proposal(width, {"losses.kd.weight": 0.25 * (number + 1), "losses.kd.temperature": 4}))
    distilling.propose(proposal(4, {"losses.kd.weight": 0.5, "losses.kd.temperature": 2}, fault="cannot be built"))
    curves = {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8, 4: 0.1, 5: 0.1}
    for pair in ((0, 1), (2, 3), (4, 5)):
        for epoch in (1, 2, 3):
            for number in pair:
                if (number, epoch) == (2, 2):
                    for failed in pair:
                        distilling.end(failed, "failed", "loss is not finite")
                    for failed in pair:
                        distilling.retry(failed)
                metrics = {"objective": curves[number] + epoch / 100, "valid_accuracy": curves[number], "reasons": {}}
                distilling.report(number, epoch, metrics, 0.5, "w")
        for number in pair:
            distilling.end(number, "completed")
    distilling.keep([0])
    distilling.close(1.0, 1)
    run.ledger.append("run_end", seconds=1.0)


def announced(run: Run, index: int) -> Book:
    stage = run.recipe.stages[index]
    facts = {"trial": stage.trial, "sampler": stage.sampler.name, "combine": "rank", "objective": {"snip": 1.0}}
    run.ledger.append("stage", stage=stage.name, index=index + 1, **facts)
    return book_of(run.recipe, stage, run.ledger)


def proposal(width: int, params: dict[str, Any] | None = None, until: int = 3, depth: int = 1, **more: Any) -> Proposal:
    arch = {"depth1": depth, "depth2": 1, "depth3": 1, "width": width}
    return Proposal(arch, f"{10 * depth + width:016x}", {"params": 100.0 * width}, params or {}, until=until, **more)


Told = Callable[..., Path]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """Tell tools of a search that is interrupted after so many lines of its ledger, each time; the run's directory."""

    def go(*cuts: int, name: str = "a", between: Callable[[Path], None] = lambda path: None, **tools: Any) -> Path:
        recipe = recipe_with(**tools)
        with Run.create(recipe, tmp_path, name) as run:
            search(run)
        ledger = run.path / "ledger.jsonl"
        lines = ledger.read_bytes().splitlines(keepends=True)
        for cut in (*cuts, len(lines)):
            ledger.write_bytes(b"".join(lines[:cut]))
            with Run(run.path) as held, tracking.Tracking(held, space_of(recipe.space)):
                pass
            between(run.path)
        return run.path

    return go


def events(path: Path, kind: str, stage: str) -> list[Event]:
    return [event for event in analysis.events(path) if event["event"] == kind and event["stage"] == stage]


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """What should be there of the stage `short`: the objective by epoch of each trial."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(path, "report", "short"):
        found.setdefault(f"short/{event['number']}", []).append(
            (event["epoch"], round(event["metrics"]["objective"], 6))
        )
    return found


CUTS = [(), (9,), (22,), (30, 31, 32), (36,), tuple(range(14, 50, 3))]


# TensorBoard


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    files = list(folder.glob("events.out.tfevents.*"))
    assert len(files) == 1, files
    loaded = EventAccumulator(str(folder)).Reload()
    return (
        [(event.step, round(event.value, 6)) for event in loaded.Scalars(tag)]
        if tag in loaded.Tags()["scalars"]
        else []
    )


@pytest.mark.parametrize("cuts", CUTS)
def test_tensorboard_has_every_report_once(told: Told, cuts: tuple[int, ...], capsys: Any) -> None:
    path = told(*cuts, tensorboard={})
    root = path / "tracking/tensorboard"
    assert [step for step, _ in scalars(root / "01-score", "snip")] == [1, 0, 3]
    folders = {f"short/{int(folder.name[:4])}": folder for folder in (root / "02-short").iterdir()}
    assert len(folders) == 8  # those that could not be built, too
    for key, folder in folders.items():
        assert scalars(folder, "objective") == curves(path).get(key, [])
    assert folders["short/1"].name == "0001-1-1-1_width_2-seed-1"
    assert capsys.readouterr().err == ""


def test_files_that_are_gone_are_written_again(told: Told) -> None:
    def lose(path: Path) -> None:
        (path / "tracking/tensorboard.json").unlink()

    whole, path = told(tensorboard={}), told(30, name="b", between=lose, tensorboard={})
    for folder in (whole / "tracking/tensorboard/02-short").iterdir():
        other = path / "tracking/tensorboard/02-short" / folder.name
        assert scalars(folder, "objective") == scalars(other, "objective")


def test_a_ledger_that_was_cut_by_hand_is_told_anew(told: Told) -> None:
    """The tool had more than the ledger has now, which then goes on in another way."""

    def cut(path: Path) -> None:
        file = path / "ledger.jsonl"
        if len(lines := file.read_bytes().splitlines(keepends=True)) == 34:
            file.write_bytes(b"".join(lines[:30]) + b'{"event":"note","stage":"short","text":"cut"}\n')

    path = told(34, between=cut, tensorboard={})
    for key, curve in curves(path).items():
        [folder] = (path / "tracking/tensorboard/02-short").glob(f"{int(key.split('/')[1]):04d}-*")
        assert scalars(folder, "objective") == curve


# MLflow


@pytest.mark.parametrize("cuts", [(), (9, 24, 33, 45)])
@pytest.mark.parametrize("forgets", [False, True])
def test_mlflow_has_every_trial_and_report_once(told: Told, cuts: Any, forgets: bool, database: str) -> None:
    """Also when it was not noted what had been sent: it is found by its tags."""

    def forget(path: Path) -> None:
        if forgets:
            (path / "tracking/mlflow.json").unlink()

    from mlflow.tracking import MlflowClient

    experiment = f"{len(cuts)} {forgets}"
    path = told(*cuts, between=forget, mlflow={"uri": database, "experiment": experiment})
    if forgets:
        tracking.catch_up(path)
    client = MlflowClient(tracking_uri=database)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    runs = {run.data.tags["dux.entry"]: run for run in found}
    assert len(found) == len(runs) == 1 + 1 + 8  # the search, a stage of scores, trials
    assert {run.info.status for run in found} == {"FINISHED", "FAILED"}
    assert {run.data.tags["dux.status"] for key, run in runs.items() if key} == {"completed", "stopped", "failed"}
    for key, curve in curves(path).items():
        history = client.get_metric_history(runs[key].info.run_id, "objective")
        assert [(one.step, round(one.value, 6)) for one in history] == curve
        assert runs[key].data.tags["mlflow.parentRunId"] == runs[""].info.run_id
    assert runs["short/3"].data.params["arch.width"] == "3"
    assert runs["short/3"].data.params["set.losses.kd.temperature"] == "4"
    assert runs["short/7"].data.tags["dux.reason"] == "cannot be built"
    scores = client.get_metric_history(runs["score"].info.run_id, "snip")
    assert sorted((one.step, one.value) for one in scores) == [(0, 1.0), (1, 2.0), (3, 4.0)]
    table = json.loads(Path(client.download_artifacts(runs["score"].info.run_id, "students.json")).read_text())
    assert [dict(zip(table["columns"], row, strict=True))["status"] for row in table["data"]].count("failed") == 1


# Weights & Biases


def wandb_records(file: Path) -> Iterator[Any]:
    """The records in a file of an offline run: a LevelDB log behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part = file.read_bytes(), 7, b""
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            record = Record()
            record.ParseFromString(part)
            part = b""
            yield record


@pytest.mark.parametrize("cuts", [(), (9, 30)])
def test_wandb_has_every_trial_and_report_once(told: Told, cuts: Any, tmp_path: Path) -> None:
    path = told(*cuts, wandb={"mode": "offline", "project": "p"})
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 1 + 8
    check_links(path)  # of those that lead out, a run would not be resumed
    found = {}
    for file in files:
        records = list(wandb_records(file))
        [run] = {r.run.display_name: r.run for r in records if r.HasField("run")}.values()
        rows = [
            {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in r.history.item}
            for r in records
            if r.HasField("history")
        ]
        codes = [r.exit.exit_code for r in records if r.HasField("exit")]
        found[run.display_name] = (run, rows, codes)
    for number in range(6):
        [(run, rows, codes)] = [found[name] for name in found if name.startswith(f"short {number}:")]
        assert [(row["epoch"], round(row["objective"], 6)) for row in rows] == curves(path)[f"short/{number}"]
        assert (run.run_group, run.job_type, run.project, codes) == ("a", "short", "p", [0])
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["set.losses.kd.temperature"] == 4
    run, rows, _ = found["a score"]
    assert [row["number"] for row in rows if "snip" in row] == [1, 0, 3]
    assert [row["students.nrows"] for row in rows if "students.nrows" in row] == [4]


# Optuna


def study(path: Path, stage: str) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(path / f"stages/{stage}/optuna.log")))
    [found] = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=found, storage=storage)


@pytest.mark.parametrize("cuts", CUTS)
def test_a_journal_is_a_study_of_each_stage(told: Told, cuts: tuple[int, ...]) -> None:
    path = told(*cuts, optuna={})
    scores, short = study(path, "01-score"), study(path, "02-short")
    assert short.study_name == "a/short"
    assert [trial.user_attrs["proposal"] for trial in scores.trials] == [1, 0, 3, 2]
    assert scores.best_trial.user_attrs["snip"] == 4.0
    assert scores.trials[3].user_attrs["reason"] == "of no use"
    states = [(trial.user_attrs["proposal"], trial.state.name) for trial in short.trials]
    # That one has failed first and was begun again stays to be seen.
    assert states == [(3, "FAIL"), (0, "COMPLETE"), (1, "FAIL"), (1, "COMPLETE"), (2, "PRUNED")]
    best = short.best_trial
    assert best.params == {
        "depth1": 1, "depth2": 1, "depth3": 1, "width": 3, "losses.kd.weight": 0.5, "losses.kd.temperature": 4
    }  # fmt: skip
    assert best.value == pytest.approx(0.78)
    assert best.intermediate_values == pytest.approx({1: 0.76, 2: 0.77, 3: 0.78})
    assert best.user_attrs["hash"] == proposal(3).hash
    assert best.user_attrs["seeds"] == [0, 1]
    assert best.duration is not None
    assert short.metric_names == ["objective"]


def test_a_journal_only_grows_and_opens_when_it_was_torn(told: Told) -> None:
    """So a dashboard that has it open reads on, also across a resume."""
    seen: list[bytes] = []
    path = told(
        *range(14, 60, 2), between=lambda run: seen.append((run / "stages/02-short/optuna.log").read_bytes()), optuna={}
    )
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert len(set(seen)) > 3
    file = path / "stages/02-short/optuna.log"
    file.write_bytes(file.read_bytes()[:-100])
    assert len(study(path, "02-short").trials) == len(seen[-1].splitlines()) - 6


def test_several_objectives_have_their_own_directions(tmp_path: Path) -> None:
    stage = {**RAW["stages"][1], "pareto": ["valid_accuracy", "params"], "sampler": "nsga2", "scheduler": "none"}
    recipe = Recipe.parse({**RAW, "stages": [stage], "tracking": "optuna"})
    with Run.create(recipe, tmp_path, "a") as run:
        book = announced(run, 0)
        book.propose(proposal(3, {"losses.kd.weight": 0.5, "losses.kd.temperature": 4}))
        for number in range(2):
            book.report(number, 3, {"objective": 0.5, "valid_accuracy": 0.5 + number / 10}, 0.1, "w")
            book.end(number, "completed")
        with tracking.Tracking(run, space_of(recipe.space)):
            pass
    found = study(run.path, "01-short")
    assert [goal.name for goal in found.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert found.trials[0].values == pytest.approx([0.55, 300])
    assert found.metric_names == ["valid_accuracy", "params"]


def test_the_journals_of_a_run_in_an_object_store_go_there(told: Told, s3: Any, where: Address) -> None:
    path = told(optuna={})
    recipe = recipe_with(optuna={})
    store = Store(str(where))
    given = tracking.trackers(recipe.tracking, recipe, space_of(recipe.space), path, store)
    given["optuna"].take(list(analysis.events(path)))
    assert store.read("stages/02-short/optuna.log") == (path / "stages/02-short/optuna.log").read_bytes()


# A tool that fails, or is not there


def test_a_tool_that_fails_is_told_once_and_holds_nobody_up(told: Told, capsys: Any) -> None:
    path = told(mlflow={"uri": "nowhere://x"}, tensorboard={})
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("dux: tracking: mlflow is off: ")
    assert said.endswith(f"dux resume {path}\n")
    assert len(list((path / "tracking/tensorboard/02-short").iterdir())) == 8
    assert not (path / "tracking/mlflow.json").exists()


def test_a_finished_run_is_caught_up_with(told: Told) -> None:
    path = told(tensorboard={})
    (path / "tracking/tensorboard.json").unlink()
    (path / "tracking/tensorboard/01-score").rename(path / "elsewhere")
    before = (path / "ledger.jsonl").read_bytes()
    tracking.catch_up(path)
    assert scalars(path / "tracking/tensorboard/01-score", "snip")
    assert (path / "ledger.jsonl").read_bytes() == before


def test_a_tool_that_is_not_installed_is_refused_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    recipe = recipe_with(mlflow={})
    for start in (lambda: launch.launch(recipe, {}, tmp_path / "runs", "a", None, False), lambda: plan(recipe)):
        with pytest.raises(
            BadInput, match=r"^tracking: mlflow is not installed: pip install 'dux-search\[tracking\]'$"
        ):
            start()
    assert not (tmp_path / "runs").exists()


def test_wandb_without_a_key_is_refused_and_its_environment_may_say_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="wandb has no key: set WANDB_API_KEY"):
        tracking.check(recipe_with(wandb={}))
    tracking.check(recipe_with(wandb={"mode": "offline"}))
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking.check(recipe_with(wandb={}))


# The recipe


@pytest.mark.parametrize(("given", "names"), [
    ("optuna", ["optuna"]),
    (["mlflow", "tensorboard"], ["tensorboard", "mlflow"]),
    ({"mlflow": None, "wandb": {"mode": "offline"}}, ["mlflow", "wandb"]),
    ({}, []),
])  # fmt: skip
def test_a_recipe_names_tools(given: Any, names: list[str]) -> None:
    recipe = Recipe.parse({**RAW, "tracking": given})
    assert recipe.tracking.given() == names
    assert Recipe.parse(recipe.plain()) == recipe
    assert ("tracking" in recipe.plain()) == bool(names)


@pytest.mark.parametrize(("given", "said"), [
    ("tensorbord", "recipe: tracking: unknown tool 'tensorbord'; did you mean 'tensorboard'? known: "),
    ({"mflow": {}}, "recipe: tracking.mflow: unknown key 'mflow'; did you mean 'mlflow'? known: "),
    ({"mlflow": {"url": "x"}}, "recipe: tracking.mlflow.url: unknown key 'url'; did you mean 'uri'? known: experiment"),
    ({"tensorboard": {"folder": "x"}}, "recipe: tracking.tensorboard.folder: unknown key 'folder'; known: "),
    ({"wandb": {"mode": "of"}}, "recipe: tracking.wandb.mode: input should be 'online' or 'offline', not 'of'"),
    ({"mlflow": {"uri": "http://me:secret@host"}}, "recipe: tracking.mlflow.uri holds a secret"),
    (3, "recipe: tracking: "),
    ([{"mlflow": {}}], "recipe: tracking: unknown tool {'mlflow': {}}; "),
])  # fmt: skip
def test_what_is_wrong_with_tracking_is_said(given: Any, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        Recipe.parse({**RAW, "tracking": given})
    assert str(caught.value).startswith(said)


def test_the_tracking_in_the_readme_is_one() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    [block] = [found for found in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if found.startswith("tracking:")]
    assert len(Recipe.parse({**RAW, **yaml.safe_load(block)}).tracking.given()) == 4


# The whole


@pytest.mark.ray
def test_a_search_is_sent_as_it_runs(ray_local: None, tmp_path: Path, database: str, capsys: Any) -> None:
    from mlflow.tracking import MlflowClient

    last = {**RAW["stages"][1], "epochs": 2, "seeds": 1, "trials": 2}
    last["losses"] = {"cross_entropy": 0.1, "kd": {"temperature": {"choice": [2, 4]}}}
    tools = {"tensorboard": {}, "optuna": {}, "mlflow": {"uri": database, "experiment": "whole"}}
    recipe = Recipe.parse({**RAW, "stages": [RAW["stages"][0], last], "tracking": tools})
    results = orchestrator.run(recipe, storage=tmp_path, name="a", progress=False)
    path = tmp_path / "a"
    assert "tracking" not in capsys.readouterr().err
    folders = list((path / "tracking/tensorboard/02-short").iterdir())
    assert sum(len(scalars(folder, "objective")) for folder in folders) == len(events(path, "report", "short"))
    client = MlflowClient(tracking_uri=database)
    runs = client.search_runs([client.get_experiment_by_name("whole").experiment_id])
    assert {run.data.tags["dux.entry"] for run in runs} == {"", "score", "short/0", "short/1"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    best = study(path, "02-short").best_trial
    assert best.value == pytest.approx(results.trials[results.trials.stage == "short"]["objective"].max())
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.suffix != ".html"}
    assert orchestrator.resume(path, progress=False).finished  # everybody has everything
    assert {file: file.read_bytes() for file in before} == before
