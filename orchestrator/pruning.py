"""Which checkpoints of a stage something may still start from; the others go, so that a search's disk use is bounded.

What is removed follows from the book, that is from what the ledger has on disk: a kill at any instant leaves files too
many, never too few, and the next session removes them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from orchestrator.book import Book, Trial
from trainables.checkpoints import checkpoint_name
from trainables.store import Store


def is_needed(book: Book, trial: Trial, last: bool) -> bool:
    """Whether something may start from a trial's checkpoint, or be made of it.

    Of stages before the last one, that is what trials go on from that have not ended, or failed and may be begun again.
    Population based training starts each generation from the one before. The last stage's survivors stay for good.
    """
    if trial.status not in ("completed", "stopped"):
        return not book.ended
    population = book.stage.scheduler.name == "pbt"
    if trial.status == "stopped" or not (last or population):
        return False
    newest = max(proposal.start_epoch for proposal in book.proposals)
    until = book.proposals[trial.proposal].until
    if population and (until < newest or (book.ended and until == newest)):
        return False
    return not book.ended or (last and trial.proposal in (book.kept or ()))


@dataclass
class Pruner:
    """Removes a stage's checkpoints that are not needed, each once.

    Args:
        later: takes what is to be removed of an object store, whose ledger may be behind the book.
    """

    book: Book
    store: Store
    last: bool
    later: Callable[[str], None] | None = None
    _gone: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.store.remote:  # what an earlier session has removed is not asked for again: each is a request
            self._gone |= {trial.number for trial in self._spent(self.book.trials)}

    def __call__(self, numbers: Iterable[int] | None = None) -> None:
        """Look at these trials, or at all.

        Raises:
            OSError: they cannot be removed.
        """
        everyone = numbers is None or self.book.stage.scheduler.name == "pbt"  # of which a trial frees its ancestors
        for trial in self._spent(self.book.trials if everyone or numbers is None else numbers):
            (self.later or self.store.remove)(checkpoint_name(trial.number))
            self._gone.add(trial.number)

    def _spent(self, numbers: Iterable[int]) -> list[Trial]:
        trials = (self.book.trials[number] for number in numbers if number not in self._gone)
        return [trial for trial in trials if not is_needed(self.book, trial, self.last)]
