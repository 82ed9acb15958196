"""What each regime is worth on digits: its recipe against plain training and plain distillation at equal cost.

    python benchmarks/regimes_on_digits.py [--only NAME ...] [--seeds 5] [--quick] [--write FILE]

Each recipe of `orchestrator/recipes/regimes` is trained as its trials are, by the same program, curriculum and seeds,
in two processes without Ray. Its cost is counted in operations of all forward and backward passes of its whole
program (without the frozen teachers, whose outputs are computed once for all students), over those of an epoch of plain
training of the same student. Plain training (cross-entropy) and plain distillation (the regime `offline` with its
default losses) are then given as many epochs as that cost pays for: the nearest of 8, 16, 24, 32, 48, 64, 96 and 128.
The difference is paired by the seed of the student's initialisation. `--write` puts the rows into a file of Markdown,
between its two marks. In the last line one JSON object.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.prepared import Search
from orchestrator.reading import RECIPES
from orchestrator.recipe import Recipe
from spaces.seeding import derive_seed, stable_hash
from trainables import regimes, teacher_training
from trainables.context import StageContext, TeacherContext
from trainables.curriculum import Augment, Curriculum
from trainables.evaluate import accuracy, predict
from trainables.fit import Fit, OptimizerConfig
from trainables.program_cost import operations
from trainables.regimes import REGIMES
from trainables.teacher_outputs import TeacherOutputs

PLAIN = ({"name": "plain"}, {"cross_entropy": 1.0})
KD = ({"name": "offline"}, REGIMES["offline"].losses)
PAID = (8, 16, 24, 32, 48, 64, 96, 128)  # epochs that baselines get: the nearest to a regime's cost
MARKS = ("<!-- table: begin -->", "<!-- table: end -->")


@dataclass(frozen=True)
class Row:
    """A regime's accuracy on test images by seed, and the baselines'."""

    name: str
    regime: str
    cost: float  # in epochs of plain training
    epochs: int
    found: np.ndarray  # percent
    plain: np.ndarray  # for as many epochs
    plain_at_cost: np.ndarray
    kd_at_cost: np.ndarray
    seconds: float


class Bench:
    """A recipe's student and teachers, the teachers trained once and their outputs kept in `folder`."""

    def __init__(self, name: str, changes: Mapping[str, Any], folder: Path) -> None:
        self.recipe, self.folder = Recipe.load(name, changes), folder
        self.search, self.stage = Search.prepare(self.recipe), self.recipe.stages[-1]
        augment = self.stage.augment or {}
        found = {
            n: teacher_training.obtain(c, self.search.data, augment, False) for n, c in self.search.teachers.items()
        }
        contexts = {
            name: TeacherContext(self.search.teachers[name], partial(dict, trained.weights), trained.hash, folder)
            for name, trained in found.items()
        }
        self.context = StageContext(self.search.data, self.search.space, contexts, self.recipe.seed, folder, gpu=False)
        self.teachers = {name: self.context.teacher_member(name) for name in contexts}

    def fit(self, init: int, epochs: int, regime: Mapping[str, Any], losses: Mapping[str, Any]) -> Fit:
        """What a trial of this initialisation runs, ready to begin."""
        context = replace(self.context, epochs=epochs)
        program = regimes.declare(
            regime, context.kit(self.search.recipe.given[0], losses, init, self.teachers.__getitem__)
        )
        split, classes = context.data.train, len(context.data.classes)
        settings = self.stage.settings()
        augment, batch_size = Augment(**settings["augment"]), settings["batch_size"]
        curriculum = Curriculum(split, classes, context.seed, batch_size, augment, context.device)
        kept = {
            name: TeacherOutputs(
                partial(self.teachers.__getitem__, name), teacher.hash, context.data.fingerprint, curriculum,
                partial(program.views_of, name), teacher.outputs,
            )
            for name, teacher in context.teachers.items()
        }  # fmt: skip
        return Fit(program, curriculum, kept, OptimizerConfig(**settings["optimizer"]), derive_seed(0, "fit", init))

    def accuracies(self, seeds: int, epochs: int, regime: Mapping[str, Any], losses: Mapping[str, Any]) -> np.ndarray:
        """Percent of the test images, by initialisation."""
        found = []
        for init in range(seeds):
            fit = self.fit(init, epochs, regime, losses)
            for epoch in range(1, epochs + 1):
                fit.run_epoch(epoch)
            test = self.context.data.test
            found.append(100 * accuracy(predict(fit.student, test, "cpu").logits, test.labels))
        return np.array(found)

    def operations(self, epochs: int, regime: Mapping[str, Any], losses: Mapping[str, Any]) -> float:
        """Of all epochs of a program; the frozen teachers' outputs are there already."""
        fit = self.fit(0, epochs, regime, losses)
        frozen = {name: partial(self.teachers.__getitem__, name) for name in self.teachers}
        return operations(fit.program, fit.curriculum, frozen, fit.config, seed=fit.seed)

    def baseline(self, seeds: int, epochs: int, regime: Mapping[str, Any], losses: Mapping[str, Any]) -> np.ndarray:
        """As `accuracies`, but computed once for all recipes with this student and teacher."""
        what = [dict(self.recipe.given[0]), self.context.teachers["teacher"].hash, seeds, epochs, dict(regime)]
        file = self.folder / f"baseline-{stable_hash(what)}.npy"
        if not file.exists():
            np.save(file, self.accuracies(seeds, epochs, regime, losses))
        found: np.ndarray = np.load(file)
        return found


def measure(name: str, seeds: int, changes: Mapping[str, Any], folder: Path) -> Row:
    """Train a recipe's student and its baselines."""
    started = time.perf_counter()
    bench = Bench(name, changes, folder)
    epochs, regime, losses = bench.stage.epochs or 0, bench.stage.regime or {}, bench.stage.losses or {}
    cost = epochs * bench.operations(epochs, regime, losses) / bench.operations(epochs, *PLAIN)
    paid_for = min(PAID, key=lambda known: abs(math.log(known / cost)))
    return Row(
        name,
        regime["name"],
        cost,
        epochs,
        bench.accuracies(seeds, epochs, regime, losses),
        bench.baseline(seeds, epochs, *PLAIN),
        bench.baseline(seeds, paid_for, *PLAIN),
        bench.baseline(seeds, paid_for, *KD),
        time.perf_counter() - started,
    )


def spread(values: np.ndarray) -> str:
    """Mean and standard deviation."""
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def gain(found: np.ndarray, other: np.ndarray) -> str:
    """Mean paired difference and its standard error."""
    differences = found - other
    return f"{differences.mean():+.1f} ± {differences.std(ddof=1) / len(differences) ** 0.5:.1f}"


def verdict(found: np.ndarray, other: np.ndarray) -> str:
    """Whether the paired difference is beyond two standard errors."""
    differences = found - other
    error = differences.std(ddof=1) / len(differences) ** 0.5
    return (
        "better" if differences.mean() > 2 * error else "worse" if differences.mean() < -2 * error else "no difference"
    )


def table(rows: list[Row]) -> str:
    """Markdown, a row a regime."""
    head = (
        "recipe", "what it is", "paper", "cost", "test %", "plain, equal epochs", "plain, equal cost", "KD, equal cost",
        "over plain", "over KD", "than KD",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        entry = REGIMES[row.regime]
        what = (entry.declare.__doc__ or "").partition("\n")[0].rstrip(".")
        cells = (
            f"`{row.name}`", what, entry.paper, f"{row.cost:.0f}", spread(row.found), spread(row.plain),
            spread(row.plain_at_cost), spread(row.kd_at_cost), gain(row.found, row.plain_at_cost),
            gain(row.found, row.kd_at_cost), verdict(row.found, row.kd_at_cost),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def written(text: str, made: str) -> str:
    """Markdown with the table between its marks; rows that were not measured anew stay."""
    before, _, rest = text.partition(MARKS[0])
    old, _, after = rest.partition(MARKS[1])
    head, rule, *new = made.splitlines()
    rows = {line.split("|")[1]: line for line in (*old.splitlines(), *new) if line.startswith("| `")}
    table_lines = [head, rule, *(rows[name] for name in sorted(rows))]
    return "\n".join([f"{before}{MARKS[0]}", "", *table_lines, "", f"{MARKS[1]}{after}"])


def one_thread() -> None:
    """For each of the two processes."""
    torch.set_num_threads(1)


def main() -> None:
    """Measure, print the table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="recipes")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two seeds, eight epochs, one regime: under a minute")
    parser.add_argument("--write", type=Path, help="a file of Markdown with the two marks")
    arguments = parser.parse_args()
    names = arguments.only or sorted(path.stem for path in (RECIPES / "regimes").glob("*.yaml"))
    changes = {"stages.final.epochs": 8} if arguments.quick else {}
    seeds = 2 if arguments.quick else arguments.seeds
    rows = []
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, get_context("spawn"), one_thread) as pool:
        measured = (
            pool.submit(measure, name, seeds, changes, Path(folder)) for name in names[: 1 if arguments.quick else None]
        )
        for future in as_completed(list(measured)):
            rows.append(future.result())
            print(table(rows[-1:]).splitlines()[-1], f"{rows[-1].seconds:.0f} s", flush=True)
            if arguments.write:  # at once: all of them take a while
                arguments.write.write_text(written(arguments.write.read_text(), table(rows[-1:])))
    print(table(rows))
    print(
        json.dumps(
            {row.name: {"test": row.found.mean(), "over_kd": (row.found - row.kd_at_cost).mean()} for row in rows}
        )
    )


if __name__ == "__main__":
    main()
