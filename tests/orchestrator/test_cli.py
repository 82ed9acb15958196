"""The command: what it prints, its exit codes, and that a mistake is one line that leaves nothing behind."""

import importlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import spaces
from analysis.schema import ENSEMBLES
from orchestrator import cli
from orchestrator.catalogue import CATALOGUE
from orchestrator.errors import RunFailed
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run
from spaces import Task

TINY = "teacher.arch={depth1: 1, depth2: 1, depth3: 1, width: 2}"


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    def complaint(self) -> str:
        """The one line on what was wrong."""
        assert self.code == 2, self
        assert self.out == ""
        assert self.err.startswith("dux: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err


@pytest.fixture
def dux(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["dux", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return Said(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def written(tmp_path) -> Path:
    """Weights of teachers, and what looks like them."""
    arch = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 2}
    folder = tmp_path.parent / f"{tmp_path.name}-files"
    folder.mkdir()
    for name, task in (("classes7", Task(1, 8, 7)), ("colour", Task(3, 8, 10)), ("fits", Task(1, 8, 10))):
        net = spaces.get("resnet").build(arch, task)
        save_file(net.state_dict(), folder / f"{name}.safetensors")
    whole = (folder / "fits.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "noise.pt").write_bytes(bytes(range(256)))
    torch.save({"state_dict": 3}, folder / "number.pt")
    return folder


# Mistakes in what a search is given: the last of --set's values, and what is said


MISTAKES = [
    ("space.name=resnett", "unknown space 'resnett'; did you mean 'resnet'?"),
    ("space.choices={widht: [4]}", "unknown choice of space 'resnet' 'widht'; did you mean 'width'?"),
    ("task.dataset=digit", "unknown data set 'digit'; did you mean 'digits'?"),
    ("teacher.space=resnett", "unknown space 'resnett'"),
    ("stages.short.losses={kdd: 1}", "unknown loss 'kdd'; did you mean 'kd'?"),
    ("stages.short.losses.kd.temprature=2", "did you mean 'temperature'?"),
    ("stages.short.optimizer.learning_rat=2", "did you mean 'learning_rate'?"),
    ("stages.short.optimizer.learning_rate=1e-3", "learning_rate must be a number above 0, not '1e-3'"),
    ("stages.short.augment.crop=much", "crop must be an integer from 0, not 'much'"),
    ("stages.short.augment={crop: {choice: [1, 2]}}", "crop must be an integer from 0"),
    ("stages.short.objective={accuracy: 1}", "unknown metric of the objective 'accuracy'"),
    ("stages.short.pareto=[valid_accuracy, parms]", "unknown column of pareto 'parms'; did you mean 'params'?"),
    ("stages.short.batch_size=1", "batch_size must be a whole number from 2, not 1"),
    ("stages.score.scores=[snp]", "unknown score 'snp'; did you mean 'snip'?"),
    ("stages.score.sampler=evolutoin", "unknown sampler 'evolutoin'; did you mean 'evolution'?"),
    ("stages.score.sampler={name: evolution, popullation: 3}", "did you mean 'population'?"),
    ("stages.short.scheduler=ashaa", "unknown scheduler 'ashaa'; did you mean 'asha'?"),
    ("stages.short.scheduler={name: asha, min_epochs: 99}", "min_epochs 99 exceeds the stage's 9 epochs"),
    ("stages.shrt.epochs=3", "unknown stage 'shrt'; did you mean 'short'?"),
    ("stages.short.epocs=3", "unknown key 'epocs'; did you mean 'epochs'?"),
    ("limits.params=10", "no candidate of space 'resnet' is within params <= 10; the smallest found has params"),
    ("limits.parms=10", "unknown key 'parms'; did you mean 'params'?"),
    ("student={depth1: 1, depth2: 1, depth3: 1, width: 3000}", "width=3000 is not in"),
    ("student={depth1: 1}", "the architecture lacks 'depth2'"),
    ("teacher=null", "stage 'score': score 'diswot' needs a teacher; the recipe has none"),
    ("stages.short.scheduler={name: pbt, population: 4}\nstages.short.losses={kd: 1}", "no value in losses"),
    ("task.subset=9999", "subset"),
    ("stages=", "recipe: stages"),
    ("no-value", "--set takes PATH=VALUE, not 'no-value'"),
    ("seed=[", "'[' is no YAML value"),
    ("seed=!!python/object/apply:os.getpid []", "is no YAML value"),
]


@pytest.mark.parametrize(("assignments", "says"), MISTAKES, ids=[text.partition("=")[0] + f"-{i}" for i, (text, _) in
                                                               enumerate(MISTAKES)])  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(dux, tmp_path, assignments, says):
    sets = [part for text in assignments.split("\n") for part in ("--set", text)]
    said = dux("run", "quickstart", "--storage", tmp_path / "runs", "--name", "a", "--set", TINY, *sets)
    assert says in said.complaint()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("file", "says"), [
    ("missing.safetensors", "missing.safetensors"),
    ("cut.safetensors", "cut.safetensors"),
    ("noise.pt", "noise.pt"),
    ("number.pt", "number.pt"),
    ("classes7.safetensors", "fc.weight"),
    ("colour.safetensors", "conv1.weight"),
])  # fmt: skip
def test_a_teacher_that_cannot_teach_is_refused(dux, tmp_path, written, file, says):
    weights = [f"teacher.weights={written / file}", "teacher.train_epochs=0"]
    sets = [part for text in (TINY, *weights) for part in ("--set", text)]
    said = dux("run", "quickstart", "--storage", tmp_path / "runs", *sets)
    assert says in said.complaint()
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_for_other_images_is_refused(dux, tmp_path):
    net = "teacher={timm: vit_tiny_patch16_224, random: true}"
    said = dux("run", "quickstart", "--storage", tmp_path / "runs", "--set", net)
    assert "[1, 8, 8]" in said.complaint() or "224" in said.complaint()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_exists_is_not_touched(dux, tmp_path):
    mine = tmp_path / "runs" / "a"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    said = dux("run", "quickstart", "--storage", tmp_path / "runs", "--name", "a")
    assert f"{mine} exists" in said.complaint()
    assert [path.name for path in (tmp_path / "runs").rglob("*")] == ["a", "notes.txt"]


@pytest.mark.parametrize("name", ["../a", "a/b", "-", " "])
def test_a_name_is_checked_before_anything_is_loaded(dux, tmp_path, name):
    assert "a run's name" in dux("run", "quickstart", f"--name={name}").complaint()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_recipe_is_refused_with_the_nearest(dux):
    assert "did you mean 'quickstart'?" in dux("run", "quickstat").complaint()


@pytest.mark.parametrize("command", ["rank", "status", "resume", "report"])
@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_what_is_no_run_is_refused(dux, tmp_path, command, what):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no ledger\n")
    before = sorted(tmp_path.rglob("*"))
    assert str(tmp_path / what) in dux(command, tmp_path / what).complaint()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_another_holds_is_refused(dux, tmp_path):
    with Run.create(Recipe.load("quickstart"), tmp_path, "a") as run:
        before = (run.path / "ledger.jsonl").read_bytes()
        assert "is held by another process" in dux("resume", run.path).complaint()
        assert (run.path / "ledger.jsonl").read_bytes() == before
        said = dux("status", run.path)
        assert (said.code, "running (process" in said.out) == (0, True)
    said = dux("status", run.path)
    assert said.code == 0
    assert "interrupted" in said.out
    assert f"dux resume {run.path}" in said.out


def test_a_run_without_students_has_no_ranking(dux, tmp_path):
    Run.create(Recipe.load("quickstart"), tmp_path, "a").close()
    said = dux("rank", tmp_path / "a")
    assert (said.code, said.out) == (0, "no student has finished, or none is within --where\n")
    assert "unknown format 'xml'; known: csv, json, table" in dux("rank", tmp_path / "a", "--format", "xml").complaint()
    assert "--by takes" in dux("rank", tmp_path / "a", "--by", "params=few").complaint()


def distilled(folder: Path, name: str) -> Path:
    """A run of six students of one stage, who get better as they get wider."""
    about = {"objective": {"valid_accuracy": 1.0}, "combine": "sum", "sampler": "grid", "scheduler": "none"}
    with Run.create(Recipe.load("quickstart"), folder, name) as run:
        run.ledger.append("stage", stage="short", index=1, trial="distill", epochs=1, seeds=1, control=False, **about)
        for number in range(6):
            of = {"stage": "short", "number": number}
            arch, cost = {"width": 2 + number}, {"params": 100 * (2 + number), "flops": 1, "bytes": 1}
            known = {"proposal": number, "seed": 0, "control": False, "params": {}, "parent": None, "start_epoch": 0}
            run.ledger.append("trial", **of, **known, arch=arch, hash=f"{number:016x}", cost=cost, until=1)
            metrics = {"objective": 0.5 + number / 20, "valid_accuracy": 0.5 + number / 20}
            run.ledger.append("report", **of, epoch=1, seconds=1.0, worker="w:1", metrics=metrics)
            run.ledger.append("end", **of, status="completed", reason=None)
    return run.path


def test_a_report_is_written_where_it_says(dux, tmp_path):
    path = distilled(tmp_path, "a")
    said = dux("report", path)
    assert (said.code, said.out, said.err) == (0, f"{path / 'report.html'}\n", "")
    assert "width=7" in (path / "report.html").read_text()
    assert dux("report", path, "--output", tmp_path / "b.html").out == f"{tmp_path / 'b.html'}\n"
    assert "cannot be written" in dux("report", path, "--output", tmp_path / "nowhere" / "b.html").complaint()


def test_status_tells_where_the_time_went_if_asked(dux, tmp_path):
    path = distilled(tmp_path, "a")
    said = dux("status", path)
    assert (said.code, "where the device-time went" in said.out) == (0, False)
    said = dux("status", path, "--profile")
    assert (said.code, said.err) == (0, "")
    assert "interrupted; 6.0 device-seconds" in said.out
    assert {"short", "between stages", "the whole run"} <= {word.strip() for word in said.out.split("┃")}


def test_two_runs_are_compared(dux, tmp_path):
    one, other = distilled(tmp_path, "a"), distilled(tmp_path, "b")
    said = dux("compare", one, other)
    assert (said.code, said.err) == (0, "")
    assert "6 students in common: Kendall's tau 1.00" in said.out
    Run.create(Recipe.load("quickstart"), tmp_path, "empty").close()
    assert "empty" in dux("compare", one, tmp_path / "empty").complaint()


def test_a_table_of_scores_by_itself_is_of_no_run(dux, tmp_path):
    table = pd.DataFrame({"hash": ["a", "b"], "nwot": [1.0, None], "arch": ['{"width": 2}', '{"width": 4}']})
    table.assign(reasons=[None, '{"nwot": "no ReLU"}']).to_parquet(tmp_path / "table.parquet")
    said = dux("rank", tmp_path / "table.parquet")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[0].strip() == "students"
    assert said.out.splitlines()[-1] == "nwot: no value for 1 of 2: no ReLU"


def test_a_teacher_without_metrics_is_shown_without_them(dux, tmp_path):
    with Run.create(Recipe.load("quickstart"), tmp_path, "a") as run:
        run.ledger.append(
            "teacher", name="resnet", source="random", seconds=0.0, sha256="", params=10, flops=20, metrics={}
        )
    assert "teacher resnet: 10 params, 20 FLOPs\n" in dux("status", tmp_path / "a").out


# What it says where all is well


def test_help_names_every_command(dux):
    said = dux("--help")
    assert said.code == 0
    for command in cli.app.registered_commands:
        assert (command.name or command.callback.__name__) in said.out
    assert dux().code in (0, 2)  # as click has it: no command is no mistake of before 8.2, and one since


@pytest.mark.parametrize("line", ["nosuch", "run", "rank", "rank a --top 0", "run quickstart --nosuch"])
def test_usage_that_cannot_be_parsed_ends_with_2(dux, line):
    assert dux(*shlex.split(line)).code == 2


def test_the_kinds_are_those_of_the_catalogue():
    assert set(cli.KINDS) == set(CATALOGUE)


TABLES = {
    "spaces": ("spaces", "SPACES"),
    "scores": ("trainables.scores", "SCORES"),
    "losses": ("trainables.losses", "LOSSES"),
    "samplers": ("orchestrator.samplers", "SAMPLERS"),
    "schedulers": ("orchestrator.schedulers", "SCHEDULERS"),
    "data": ("trainables.data", "SOURCES"),
}


@pytest.mark.parametrize("kind", CATALOGUE)
def test_a_list_names_every_entry_and_says_what_it_is(dux, kind):
    said = dux("list", kind)
    assert said.code == 0
    rows = CATALOGUE[kind]()
    if kind in TABLES:
        module, table = TABLES[kind]
        more = set(ENSEMBLES) if kind == "scores" else set()
        assert set(rows) == set(getattr(importlib.import_module(module), table)) | more
    for name, text in rows.items():
        assert name in said.out
        assert text, f"nothing is said of {name}"
    if kind != "data":  # torchvision's sets are all of one kind
        assert len(set(rows.values())) == len(rows)


def test_an_unknown_kind_is_refused_with_the_nearest(dux):
    assert "unknown kind 'losess'; did you mean 'losses'?" in dux("list", "losess").complaint()


def test_a_dry_run_says_what_would_be_run_and_runs_nothing(dux, tmp_path):
    said = dux("run", "quickstart", "--dry-run", "--storage", tmp_path / "runs")
    assert (said.code, said.err) == (0, "")
    assert "space resnet: 448 candidates; within params <= 12,000: about" in said.out  # 4 * 4 * 4 * 7
    assert "400 training, 300 validation, 1,097 test images" in said.out
    assert "device-seconds" in said.out
    for stage in ("score", "short", "final"):
        assert stage in said.out
    assert list(tmp_path.iterdir()) == []


# Exit codes


def test_a_run_that_failed_ends_with_1_and_one_line(capsys):
    def fail() -> None:
        raise RunFailed("interrupted; go on with it: dux resume runs/a")

    assert cli._guarded(fail) == 1
    assert capsys.readouterr().err == "dux: interrupted; go on with it: dux resume runs/a\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), RuntimeError("a bug")])
def test_a_bug_keeps_its_traceback(error):
    def fail() -> None:
        raise error

    with pytest.raises(type(error), match="a bug"):
        cli._guarded(fail)


@pytest.mark.parametrize(
    ("text", "overrides", "is_replay"),
    [
        ("name: a\nreplay: {table: t.parquet}\n", {}, True),
        ("name: a\n", {"replay.table": "t.parquet"}, True),
        ("name: a  # replay: no\n", {"stages.short.epochs": 3}, False),
    ],
)
def test_a_replay_is_known_before_anything_is_imported(tmp_path, text, overrides, is_replay):
    """So that no Ray is started for it."""
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    assert cli._is_replay(str(file), overrides) == is_replay
    assert cli._is_replay(str(tmp_path), overrides) == is_replay
    assert not cli._is_replay("quickstart", {})
