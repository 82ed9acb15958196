"""A student of a run as files that others can use: weights or a whole network, what they are, and a card in words.

The run is only read: nobody needs to hold it, and of one in an object store nothing is written there.
"""

import json
import math
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

import analysis
from analysis import remote
from analysis.naming import student_name
from analysis.ranking import By
from analysis.remote import Address, place
from orchestrator import mending, model_card, paths
from orchestrator.addresses import address_of
from orchestrator.book import Book, Proposal, Trial
from orchestrator.errors import RunFailed
from orchestrator.existing import check_run
from orchestrator.outcome import best_trial, description, replayed
from orchestrator.plain_values import printable
from orchestrator.prepared import Search
from orchestrator.recipe import Recipe, resolved
from orchestrator.reuse import basis
from orchestrator.run_directory import own_recipe
from orchestrator.specs import StageSpec
from orchestrator.stage import stage_folder
from spaces import BadInput
from spaces.errors import unknown
from spaces.others import blaming
from trainables import regimes
from trainables.checkpoints import checkpoint_name, unpacked
from trainables.contracts import Data, Member
from trainables.export import FORMATS, Format, Student, deployed, difference
from trainables.store import Store

COMPARED = 256  # images of the test split, at most, on which what was written is compared with the student
OF_A_RUN = (".yaml", ".py", ".safetensors")  # what is read of a run's directory, besides its ledger and tables
NUMBERS = ("valid_accuracy", "test_accuracy", "teacher_similarity")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: the folder.
        told: its `student.json`.
        difference: the largest distance between logits of what was written and the student's, over `images` images.
    """

    path: Path
    told: Mapping[str, Any]
    difference: float
    images: int

    @property
    def lines(self) -> list[str]:
        """What it is and where, in words."""
        sizes = ", ".join(f"{file.name} {file.stat().st_size:,}" for file in sorted(self.path.iterdir()))
        ranking, metrics = self.told["ranking"], self.told["metrics"]
        shares = ((split, metrics.get(f"{split}_accuracy")) for split in ("valid", "test"))
        reached = ", ".join(f"{split} {100 * share:.2f} %" for split, share in shares if share is not None)
        return [
            f"rank {ranking['rank']}: {student_name(self.told['arch'])}, seed {self.told['seed']}: {reached}",
            f"on {self.images} test images its logits are those of the student, within {self.difference:.1e}",
            f"written to {self.path} (bytes: {sizes})",
        ]


@dataclass(frozen=True)
class Choice:
    """A ranked student, and which of its trials is the best.

    Args:
        words: what says which one it is, as the options of `dux rank` have it: `rank`, `by`, `where`.
    """

    words: Mapping[str, Any]
    index: int
    stage: StageSpec
    row: Mapping[str, Any]
    proposal: Proposal
    trial: Trial


def export(
    run: Path | Address,
    rank: int,
    format: str,
    output: Path | None,
    by: By = None,
    where: str | None = None,
) -> Exported:
    """See `orchestrator.export`."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    FORMATS[format].check_installed()
    if output is not None:
        _check_free(output)
    with _at_hand(run) as (folder, store):
        recipe = own_recipe(folder)
        if recipe.replay:
            raise BadInput(f"{run} is a replay of recorded results: it trained nothing that could be exported")
        mending.check_ledger(folder, recipe)
        results = analysis.load(folder)
        target = output or Path(f"{results.name}-rank{rank}-{format}")
        _check_free(target)
        chosen, state = _chosen(results, recipe, rank, store, by, where)
        search = Search.prepare(recipe, kept=folder)
        _check_data(search, chosen.stage, folder)
        member = _trained(search, chosen, state)
        told = {
            **description(search, chosen.stage, chosen.proposal, chosen.trial),
            **_told(search, results, chosen, format),
        }
        with _made_whole(target) as half:
            apart = _written(member, search, chosen, state, format, half)
            told["compared"] = {"images": min(COMPARED, len(search.data.test)), "largest_difference": apart}
            _describe(half, told, folder, recipe)
    return Exported(target, told, apart, told["compared"]["images"])


@contextmanager
def _at_hand(run: Path | Address) -> Iterator[tuple[Path, Store]]:
    """A folder with what is read of a run, and its store. Of a run in an object store it is a copy."""
    address = run if isinstance(run, Address) else address_of(run)
    if address is None:
        check_run(run)
        folder = Path(run)
        paths.check_links(folder)  # the file of its space is executed
        yield folder, Store(str(folder.resolve()))
        return
    check_run(address)
    with remote.fetched(address) as folder:
        for name in remote.names(address):
            if Path(name).suffix in OF_A_RUN and (data := remote.read(address / name)) is not None:
                (folder / name).write_bytes(data)
        yield folder, Store(str(address))


def _chosen(
    results: analysis.Results, recipe: Recipe, rank: int, store: Store, by: By = None, where: str | None = None
) -> tuple[Choice, Mapping[str, Any]]:
    """The student of a rank, and where its best trial has ended.

    Raises:
        BadInput: there is no such student, or its weights are gone.
    """
    ranked = analysis.rank(results, by=by, where=where)
    stages = {stage.name: (index, stage) for index, stage in enumerate(recipe.stages)}
    if ranked.empty and where is not None and len(analysis.rank(results, by=by)):
        raise BadInput(f"no ranked student meets --where {where}")
    if ranked.empty or stages[ranked["stage"].iloc[0]][1].trial != "distill":
        raise BadInput(f"{results.name}: no student has been trained to the end of a stage, so none can be exported")
    if not 1 <= rank <= len(ranked):
        raise BadInput(f"rank must be 1 to {len(ranked)}, the number of ranked students, not {rank}")
    row = ranked.iloc[rank - 1]
    index, stage = stages[row["stage"]]
    book = replayed(recipe, stage, analysis.events(results.path))
    trial = best_trial(book, row["proposal"])
    files = store.within(stage_folder(index, stage))
    state = unpacked(files.read(checkpoint_name(trial.number)), None, "cpu")
    if state is None:
        left = ", ".join(map(str, _exportable(ranked, book, files))) or "none"
        rule = "a run keeps those of its last stage's survivors alone"
        raise BadInput(f"the weights of rank {rank} are gone or damaged ({rule}); ranks that can be exported: {left}")
    known = {str(name): value for name, value in row.items()}
    words: dict[str, Any] = {"rank": rank}
    words |= {"by": _as_typed(by)} if by is not None else {}
    words |= {"where": where} if where is not None else {}
    return Choice(words, index, stage, known, book.proposals[trial.proposal], trial), state


def _exportable(ranked: pd.DataFrame, book: Book, files: Store) -> list[int]:
    """The ranks whose weights are there."""
    names = {number: checkpoint_name(best_trial(book, p).number) for number, p in enumerate(ranked["proposal"], 1)}
    folder = place(files.root)
    if isinstance(folder, Address):
        there = {f"checkpoints/{name}" for name in remote.names(folder / "checkpoints")}
        return [number for number, name in names.items() if name in there]
    return [number for number, name in names.items() if unpacked(files.read(name), None, "cpu") is not None]


def _check_data(search: Search, stage: StageSpec, folder: Path) -> None:
    """Raises `BadInput` if the images, or what they are normalised by, are no longer those of the run."""
    told = (event for event in analysis.events(folder, header_only=True) if event["event"] == "stage")
    known = next((event.get("basis") for event in told if event["stage"] == stage.name), None)
    if known is not None and known.get("data") != basis(search, stage, {}, test=False)["data"]:
        name = search.data.name
        raise BadInput(f"data {name!r} is not what the student was trained on; put the run's images back to export it")


def _trained(search: Search, chosen: Choice, state: Mapping[str, Any]) -> Member:
    """The student as it was trained, whatever its regime has made of the space's network."""
    settings, stage = resolved(chosen.stage.settings(), chosen.proposal.params), chosen.stage
    taught_by = {name: partial(search.teacher_net, name) for name in search.teachers}
    init = (search.recipe.seed, chosen.trial.seed)
    arch = chosen.proposal.arch
    kit = regimes.Kit(search.data, search.space, arch, settings["losses"], stage.epochs or 0, *init, taught_by)
    with torch.random.fork_rng(devices=[]), blaming("the checkpoint does not fit the recipe"):
        program = regimes.declare(settings["regime"], kit)
        nn.ModuleDict(dict(program.members)).load_state_dict(state["fit"]["members"])
    member = program.members[program.deploys]
    assert isinstance(member, Member)
    return member.eval().requires_grad_(False)


def _written(
    member: Member, search: Search, chosen: Choice, state: Mapping[str, Any], format: str, folder: Path
) -> float:
    """Write the network, run what was written, and compare.

    Raises:
        BadInput: the format does not hold this student.
        RunFailed: the two do not say the same.
    """
    how = FORMATS[format]
    what = deployed(member, state["fit"]["deployed"])
    student = Student(what, search.space, chosen.proposal.arch, search.data.task)
    how.write(student, folder / how.file)
    images = search.data.test.images[:COMPARED]
    apart, most = difference(member, how.read(student, folder / how.file), images)
    if not apart <= most:
        raise RunFailed(
            f"what was written as {format} is not the student: on {len(images)} test images its logits differ by up to "
            f"{apart:.1e}, and may by {most:.0e}; nothing was kept of it"
        )
    return apart


def _told(search: Search, results: analysis.Results, chosen: Choice, format: str) -> dict[str, Any]:
    """What `student.json` says besides what `best/` does."""
    teachers = [{key: one.get(key) for key in ("name", "source", "sha256", "metrics")} for one in results.teachers]
    recipe = search.recipe
    return {
        "format": format,
        "file": FORMATS[format].file,
        "input": _input(search.data, FORMATS[format], recipe.task.image_size),
        "epochs": chosen.trial.epoch,
        "ranking": _ranking(chosen.row, chosen.words, len(results.trials)),
        "provenance": {
            "run": results.name,
            "command": _command(results.name, chosen.words, format),
            "recipe": {"name": recipe.name, "file": "recipe.yaml"},
            "stage": chosen.stage.name,
            "hash": chosen.proposal.hash,
            "teachers": teachers,
            "data": _data(search.data),
            "dux": {"searched": results.version, "exported": version("dux-search")},
            "torch": torch.__version__,
            "finished": results.finished,
        },
        **({"space_file": Path(recipe.space.file).name} if recipe.space.file else {}),
    }


def _command(run: str, words: Mapping[str, Any], format: str) -> str:
    """What to type for the same student again."""
    options = {name: printable(str(value)) for name, value in {**words, "format": format}.items()}
    return " ".join([f"dux export {run}", *(f"--{name} {shlex.quote(value)}" for name, value in options.items())])


def _as_typed(by: str | Mapping[str, float]) -> str:
    """Weights as the command line takes them: `valid_accuracy=1.0,params=1e-06`."""
    return by if isinstance(by, str) else ",".join(f"{name}={float(weight)}" for name, weight in by.items())


def _input(data: Data, how: Format, resized: int | None) -> dict[str, Any]:
    """What the network takes."""
    task = data.task
    side = f"the short side resized to {resized} pixels (by area where it shrinks), the centre cropped"
    return {
        "name": "images",
        "shape": ["B", task.channels, task.image_size, task.image_size],
        "dtype": "float32",
        "range": [0.0, 1.0],
        "mean": list(data.mean),
        "std": list(data.std),
        "normalised_by_the_network": how.normalises,
        "resized": side if resized else None,
    }


def _ranking(row: Mapping[str, Any], words: Mapping[str, Any], trials: int) -> dict[str, Any]:
    """What the student's architecture has reached: means over its seeds, alone as well where that was tried."""
    names = [f"{name}{kind}{end}" for name in NUMBERS for kind in ("", "_alone", "_delta") for end in ("", "_std")]
    found = {name: float(row[name]) for name in names if name in row and not pd.isna(row[name])}
    return {**words, "trials": trials, "seeds": int(row["seeds"]), "score": _number(row["score"]), **found}


def _number(value: Any) -> float | None:
    return None if pd.isna(value) or not math.isfinite(value) else float(value)


def _data(data: Data) -> dict[str, Any]:
    sizes = {name: len(getattr(data, name)) for name in ("train", "valid", "test")}
    return {"name": data.name, "fingerprint": data.fingerprint, **sizes}


def _describe(folder: Path, told: Mapping[str, Any], run: Path, recipe: Recipe) -> None:
    """Write what the network is, and what it came from: the recipe, and the file of its space."""
    (folder / "student.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (folder / "MODEL_CARD.md").write_text(model_card.text(told), encoding="utf-8")
    (folder / "recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    if recipe.space.file:
        source = Path(recipe.space.file)
        (folder / source.name).write_bytes(source.read_bytes())


def _check_free(output: Path) -> None:
    """Raises `BadInput` if something is there already."""
    try:
        if output.is_symlink() or output.exists():
            raise BadInput(f"{output} exists; choose another --output")
    except OSError as error:
        raise BadInput(f"--output {output} can be no folder: {error.strerror}") from error


@contextmanager
def _made_whole(output: Path) -> Iterator[Path]:
    """A folder that becomes `output` when the block ends, and vanishes if it raises."""
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=f".{output.name}.") as made:
            half = Path(made) / "export"
            half.mkdir()
            yield half
            half.rename(output)
    except OSError as error:
        raise BadInput(f"{output}: cannot be written: {error.strerror}") from error
