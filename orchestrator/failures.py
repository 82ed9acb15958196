"""Why trials failed, in the words that a run's record keeps."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ray.tune.experiment import Trial as TuneTrial

from orchestrator.book import Book
from orchestrator.feasible import Feasible
from spaces.redact import redacted
from trainables.failures import WorkerSpoilt

# What Ray says of a dead worker, and what is said of it here; the first that fits.
_DEATHS = (
    (r"low on memory|memory usage threshold", "its worker was killed, since its machine ran out of memory"),
    (r"node.{0,20} (has )?died|node was (lost|terminated)", "its worker was lost with its machine"),
    (r"actor died|actor is dead|worker died|unavailable", "its worker was killed"),
)
_SPOILT = re.compile(rf"\b{WorkerSpoilt.__name__}: (.*)")
_ERROR = re.compile(r"\b[A-Z]\w*(Error|Exception|Exit): .*")


def why_lost(trial: TuneTrial) -> str:
    """Why Tune's trial came to an end that it did not report, from the text that Tune keeps of it."""
    file = trial.error_file
    return said_of(Path(file).read_text(errors="replace") if file and Path(file).is_file() else "")


def said_of(text: str) -> str:
    """One line of what Ray says in many."""
    last = text.rpartition("Failure #")[2]  # a file may tell of several
    if spoilt := _SPOILT.findall(last):
        return redacted(spoilt[-1])
    for pattern, words in _DEATHS:
        if re.search(pattern, last):
            return words
    lines = [line.strip() for line in last.splitlines()[1:] if line.strip()]
    return redacted(f"its worker failed: {lines[-1]}" if lines else "its worker was lost")


def commonest(reasons: Iterable[str]) -> str:
    """The first of the reasons that are given most often, whatever candidate and numbers they name."""
    given = list(filter(None, reasons)) or ["no reason was given"]
    kinds = [_kind(reason) for reason in given]
    [(kind, _)] = Counter(kinds).most_common(1)
    return given[kinds.index(kind)]


def _kind(reason: str) -> str:
    error = _ERROR.search(reason)
    return re.sub(r"\d[\d.,e+-]*", "0", error[0] if error else reason)


def begin_again(book: Book, feasible: Feasible) -> None:
    """Begin a stage's failed trials again; not those whose student still cannot be built, or is over a limit."""
    before = list(book.proposals)  # the first of a proposal's trials mends it, and each is to tell its cost
    for trial in book.trials.values():
        if trial.status == "failed":
            proposal = before[trial.proposal]
            if proposal.fault is None:
                book.retry(trial.number)
            elif feasible.allows(proposal.arch):
                book.retry(trial.number, cost=dict(feasible.cost(proposal.arch)))
