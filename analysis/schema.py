"""The columns of a run's tables: a row a trial, a report, a stage, an event; and those of a ranking."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import pandas as pd
from pandas.api import types

if TYPE_CHECKING:
    from analysis.results import Results

Direction = Literal["higher", "lower", "none"]
Role = Literal["identity", "cost", "result"]

SIZES = ("params", "flops")
"""The controls: a score that does not foretell more than they do has found nothing."""

ENSEMBLES = {
    "ensemble.rank": "The mean normalised rank among the stage's candidates, over the scores of the stage's `ensemble`",
    "ensemble.vote": "The share of the other candidates that it beats by a majority of those scores (arXiv:2101.08134)",
}

LAYOUT = 7
"""Version of these columns; tables that were written with another one are computed anew from the ledger."""


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        dtype: of pandas; the nullable ones where a value can be missing.
        direction: which values are better; `none` where the question makes no sense.
        role: `identity` names a trial, `cost` belongs to the student, `result` was measured and varies with the seed.
    """

    name: str
    dtype: str
    unit: str
    direction: Direction
    role: Role
    meaning: str


KEYS = (
    Column("run", "string", "", "none", "identity", "name of the run"),
    Column("stage", "string", "", "none", "identity", "name of the stage"),
    Column("stage_index", "int64", "", "none", "identity", "position of the stage in the recipe"),
    Column("number", "int64", "", "none", "identity", "number of the trial within its stage"),
    Column(
        "proposal", "int64", "", "none", "identity", "what was proposed; its trials differ in seed and control only"
    ),
    Column("seed", "int64", "", "none", "identity", "seed of the initial weights"),
    Column("control", "bool", "", "none", "identity", "whether trained without the teacher"),
    Column("hash", "string", "", "none", "identity", "canonical name of the architecture"),
)
# Of each split's predictions; the last words of their meaning name the images.
_FIGURES: tuple[tuple[str, str, Direction, str], ...] = (
    ("accuracy", "share", "higher", "share classified correctly"),
    ("precision", "share", "higher", "macro mean of right predictions among a class's"),
    ("recall", "share", "higher", "macro mean of a class's images that are predicted so"),
    ("f1", "share", "higher", "macro mean of the harmonic means of precision and recall"),
    ("roc_auc", "share", "higher", "macro mean of areas under ROC curves, each class against the rest"),
    ("pr_auc", "share", "higher", "macro mean of average precisions, each class against the rest"),
    ("ece", "share", "lower", "expected calibration error: mean distance of accuracy from confidence, 15 bins"),
)
# To the teacher, on each split's images.
_LIKENESS: tuple[tuple[str, str, Direction, str], ...] = (
    ("teacher_similarity", "share", "higher", "likeness to the teacher: mean of agreement, cka and rdm"),
    ("kl", "nats", "lower", "divergence of the student's classes from the teacher's"),
    ("cka", "share", "higher", "likeness of embeddings (centred kernel alignment)"),
    ("rdm", "correlation", "higher", "likeness of the images' dissimilarity matrices"),
)
METRICS = (
    Column("objective", "float64", "", "higher", "result", "what the stage maximises"),
    Column("train_loss", "float64", "", "lower", "result", "mean training objective of the epoch"),
    *(
        Column(f"{split}_{name}", "float64", unit, better, "result", f"{meaning}; {images} images")
        for split, images in (("valid", "validation"), ("test", "test"))
        for name, unit, better, meaning in _FIGURES
    ),
    Column("agreement", "float64", "share", "higher", "result", "share of validation images given the teacher's class"),
    Column("test_agreement", "float64", "share", "higher", "result", "share of test images given the teacher's class"),
    *(
        Column(f"{split}{name}", "float64", unit, better, "result", f"{meaning}; {images} images")
        for split, images in (("", "validation"), ("test_", "test"))
        for name, unit, better, meaning in _LIKENESS
    ),
    Column(
        "teacher_guidance",
        "float64",
        "correlation",
        "higher",
        "result",
        "TGSA: likeness of the layers' dissimilarity matrices to the teacher's",
    ),
    Column("student_seconds", "float64", "s", "lower", "result", "spent on the student's steps"),
    Column("teacher_seconds", "float64", "s", "lower", "result", "spent on the teacher's outputs"),
    Column("evaluate_seconds", "float64", "s", "lower", "result", "spent on evaluation"),
    Column("checkpoint_seconds", "float64", "s", "lower", "result", "spent on writing the trial's checkpoint"),
    Column("setup_seconds", "float64", "s", "lower", "result", "spent on building the student, or loading it"),
    Column("teacher_passes", "Int64", "", "lower", "result", "epochs of the curriculum that the teacher was run over"),
)
TRIALS = (
    *KEYS,
    Column("parent", "Int64", "", "none", "identity", "number of the trial whose weights it started from"),
    Column("origin", "string", "", "none", "identity", "search, or rival: a random student of the best one's size"),
    Column("start_epoch", "int64", "epochs", "none", "identity", "epochs that its parent had behind it"),
    Column("status", "string", "", "none", "identity", "waiting, running, completed, stopped (early) or failed"),
    Column("reason", "string", "", "none", "identity", "why it was stopped or failed"),
    Column("lost", "int64", "", "lower", "identity", "how often its worker was lost, or ran out of memory"),
    Column("arch", "string", "JSON", "none", "identity", "the architecture"),
    Column("params", "Int64", "", "lower", "cost", "trainable parameters"),
    Column("flops", "Int64", "", "lower", "cost", "operations of one image"),
    Column("bytes", "Int64", "bytes", "lower", "cost", "size of the serialised weights"),
    Column("latency_ms", "float64", "ms", "lower", "cost", "measured time of one image's forward pass"),
    Column("compression", "float64", "ratio", "higher", "cost", "exported bytes of the teacher over the student's"),
    Column("deployed_params", "Int64", "", "lower", "result", "parameters of what the regime deploys"),
    Column("deployed_flops", "Int64", "", "lower", "result", "operations of one image through it"),
    Column("deployed_bytes", "Int64", "bytes", "lower", "result", "size of its weights as they are stored"),
    Column("epochs", "int64", "epochs", "none", "result", "last epoch reported, parents' epochs included"),
    Column("seconds", "float64", "device-s", "lower", "result", "device time of the trial's own reports"),
    Column("worker", "string", "", "none", "identity", "worker of the last report"),
    Column("reasons", "string", "JSON", "none", "identity", "why scores are missing, by score"),
    *METRICS,
)
EPOCHS = (
    *KEYS,
    Column("epoch", "int64", "epochs", "none", "identity", "epoch reported, from 1; 0 for scores"),
    Column("time", "float64", "unix s", "none", "identity", "when it was reported"),
    Column("seconds", "float64", "device-s", "lower", "result", "device time of this step"),
    Column("worker", "string", "", "none", "identity", "worker that reported"),
    *METRICS,
)
STAGES = (
    Column("run", "string", "", "none", "identity", "name of the run"),
    Column("stage", "string", "", "none", "identity", "name of the stage"),
    Column("stage_index", "int64", "", "none", "identity", "position of the stage in the recipe"),
    Column("trial", "string", "", "none", "identity", "what a trial does: score or distill"),
    Column("objective", "string", "JSON", "none", "identity", "weights of the metrics that it maximises"),
    Column(
        "combine",
        "string",
        "",
        "none",
        "identity",
        "how weighted metrics are added: sum, or rank (the mean of normalised ranks)",
    ),
    Column("ensemble", "string", "JSON", "none", "identity", "scores that its ensembles are made of"),
    Column("sampler", "string", "", "none", "identity", "who proposed its candidates"),
    Column("scheduler", "string", "", "none", "identity", "who stopped trials early"),
    Column("epochs", "Int64", "epochs", "none", "identity", "of a trial that is not stopped early"),
    Column("seeds", "Int64", "", "none", "identity", "trials of each candidate, by the seeds of their weights"),
    Column("control", "boolean", "", "none", "identity", "whether each is also trained without the teacher"),
    Column("kept", "string", "JSON", "none", "identity", "proposals that the next stage got, best first"),
    Column("seconds", "float64", "s", "lower", "result", "wall time of the stage, once it has ended"),
    Column("slots", "Int64", "", "none", "identity", "trials that ran at a time"),
    Column("began", "float64", "unix s", "none", "identity", "when the stage began"),
    Column("ended", "float64", "unix s", "none", "identity", "when it ended"),
)
LEDGER = (
    Column("run", "string", "", "none", "identity", "name of the run"),
    Column("time", "float64", "unix s", "none", "identity", "when it was written"),
    Column("event", "string", "", "none", "identity", "what happened: run, teacher, stage, trial, report, end, ..."),
    Column("stage", "string", "", "none", "identity", "name of the stage, where it belongs to one"),
    Column("number", "Int64", "", "none", "identity", "number of the trial within its stage, where it belongs to one"),
    Column("epoch", "Int64", "epochs", "none", "identity", "epoch of a report, from 1; 0 for scores"),
    Column("worker", "string", "", "none", "identity", "worker that reported"),
    Column("device_seconds", "float64", "device-s", "lower", "result", "device time that it accounts for"),
    Column("wall_seconds", "float64", "s", "lower", "result", "wall time of the stage or session that it ends"),
    Column("repeated", "bool", "", "none", "identity", "whether it says again, after a resumption, what was there"),
    Column("text", "string", "", "none", "identity", "its status, reason or note in words"),
)
PREFIXES = (
    Column("arch.<name>", "inferred", "", "none", "identity", "one choice of the architecture"),
    Column("set.<name>", "inferred", "", "none", "identity", "one proposed hyperparameter of the training"),
)
TABLES = {"trials": (*TRIALS, *PREFIXES), "epochs": EPOCHS, "stages": STAGES, "ledger": LEDGER}
RANKING = (
    Column("rank", "int64", "", "lower", "identity", "place, 1 is best; equal ones share the smaller"),
    Column("score", "float64", "", "higher", "result", "what the ranking is by"),
    Column("seeds", "int64", "", "none", "identity", "seeds that its figures are the means of"),
)

# Last words of metric names of which less is better, for metrics that are not listed above.
_LOWER_WORDS = frozenset({"loss", "error", "seconds", "ms", "bytes", "kl", "ece", "nll", "brier", "std"})
# What tables of this package add to the columns of trials.
_DERIVED = frozenset({"rank", "score", "seeds", "combined", *ENSEMBLES})
_BY_NAME = {column.name: column for column in (*EPOCHS, *TRIALS)}
# By the end of a name; the longer ends first.
_SUFFIXED = {
    "_std": Column("<name>_std", "float64", "as <name>", "none", "result", "<name>; standard deviation over seeds"),
    "_alone": Column("<name>_alone", "float64", "as <name>", "none", "result", "<name>; trained without the teacher"),
    "_delta": Column(
        "<name>_delta", "float64", "as <name>", "higher", "result", "<name>; with the teacher minus without"
    ),
}


def direction(name: str) -> Direction:
    """Whether higher or lower values of a column are better. Unlisted metrics, such as scores: higher, unless they
    end in loss, error, seconds, ..."""
    if name in _BY_NAME:
        return _BY_NAME[name].direction
    if is_setting(name):
        return "none"
    return "lower" if name.rsplit("_", 1)[-1] in _LOWER_WORDS else "higher"


def is_setting(name: str) -> bool:
    """Whether a column holds a choice of the architecture or a proposed hyperparameter."""
    return name.startswith(("arch.", "set."))


def is_metric(name: str) -> bool:
    """Whether a column holds something that was measured: a listed result, or any column that is not listed."""
    return _BY_NAME[name].role == "result" if name in _BY_NAME else not is_setting(name)


def is_score(name: str) -> bool:
    """Whether a metric can only be a score without training: nothing that is listed, no time."""
    return name not in _BY_NAME and not is_setting(name) and not name.endswith("_seconds")


def score_columns(frame: pd.DataFrame, empty: bool = False) -> list[str]:
    """The columns of a table of scores that hold a score's values: no spread, no rank, no ensemble.

    Args:
        empty: those too that hold no value.
    """
    derived = ("_std", "_alone", "_delta")
    return [
        name
        for name in number_columns(frame)
        if is_score(name)
        and name not in _DERIVED
        and not name.endswith(derived)
        and (empty or frame[name].notna().any())
    ]


def only_scores(frame: pd.DataFrame) -> bool:
    """Whether no row of a table was distilled."""
    return "valid_accuracy" not in frame or bool(frame["valid_accuracy"].isna().all())


def number_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of a table that hold numbers."""
    return [str(name) for name in frame.columns if types.is_numeric_dtype(frame[name])]


def describe_columns(results: "Results | None" = None) -> pd.DataFrame:
    """What columns mean: a row a column, with table (trials, epochs, stages, ledger; ranking: what `rank` adds to the
    columns of trials), name, dtype, unit, direction, meaning.

    Args:
        results: describe every column that these tables have, scores, losses and choices too, each under its own name.
            Default: every column that all runs have.
    """
    rows = list(_listed() if results is None else _found({table: getattr(results, table) for table in TABLES}))
    columns = [
        (table, one.name, one.dtype, one.unit, one.direction, one.meaning)
        for table, one in (*rows, *(("ranking", column) for column in (*RANKING, *_SUFFIXED.values())))
    ]
    return pd.DataFrame(columns, columns=["table", "name", "dtype", "unit", "direction", "meaning"])


def _listed() -> Iterator[tuple[str, Column]]:
    yield from ((table, column) for table, columns in TABLES.items() for column in columns)


def _found(tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Column]]:
    """The columns that these tables have."""
    for table, frame in tables.items():
        listed = {column.name: column for column in TABLES[table]}
        for name in map(str, frame.columns):
            yield table, listed.get(name) or replace(column_of(name), dtype=str(frame[name].dtype))


def column_of(name: str) -> Column:
    """What a column of any table of this package is, by its name; where tables differ, as it is in that of trials."""
    known = _BY_NAME.get(name) or next((one for one in RANKING if one.name == name), None)
    end = next((end for end in _SUFFIXED if name.endswith(end)), None)
    if known is not None or end is None:
        return known or _unlisted(name)
    of, meaning = column_of(name.removesuffix(end)), _SUFFIXED[end].meaning
    better = of.direction if end == "_alone" else _SUFFIXED[end].direction
    return Column(name, "float64", of.unit, better, "result", meaning.replace("<name>", of.meaning))


def _unlisted(name: str) -> Column:
    """A choice, or a metric that some trials report: a score, a loss, a time."""
    for prefix in PREFIXES:
        if name.startswith(start := prefix.name.removesuffix("<name>")):
            return Column(name, "inferred", "", "none", "identity", f"{prefix.meaning}: {name.removeprefix(start)}")
    rest, _, last = name.rpartition("_")
    score, _, term = name.partition(".")
    meaning = f"score without training, or metric of a regime: {name}"
    if last == "loss":
        meaning = f"the loss {rest!r}, mean of the epoch"
    elif name in ENSEMBLES:
        meaning = ENSEMBLES[name]
    elif term:
        meaning = f"term {term!r} of the score {score!r}"
    unit = {"seconds": "s", "ms": "ms", "accuracy": "share"}.get(last, "")
    return Column(name, "float64", unit, direction(name), "result", meaning)
