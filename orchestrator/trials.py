"""What a book is about: proposals, and their trials."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.ledger import Event
from spaces.seeding import stable_hash

Status = Literal["waiting", "running", "completed", "stopped", "failed"]
FINISHED: tuple[Status, ...] = ("completed", "stopped", "failed")


@dataclass(frozen=True)
class Proposal:
    """A student and how it is distilled; one trial for each seed, and for each control."""

    arch: Mapping[str, Any]
    hash: str  # of the architecture's canonical form
    cost: Mapping[str, float]
    params: Mapping[str, Any] = field(default_factory=dict)  # hyperparameters by dotted path
    parent: int | None = None  # the trial whose weights it starts from
    start_epoch: int = 0
    until: int = 0  # the epoch after which it is done
    origin: str = "search"  # or "rival"; see `recipe.Rivals`
    fault: str | None = None  # why it cannot be built

    @property
    def key(self) -> str:
        """Equal for proposals that would give the same result."""
        return stable_hash([self.hash, dict(self.params), self.parent, self.start_epoch])


@dataclass
class Trial:
    """One trial: a proposal with a seed, with or without the teacher."""

    number: int
    proposal: int
    seed: int
    control: bool
    status: Status = "waiting"
    reports: list[Event] = field(default_factory=list)
    reason: str | None = None
    ended: bool = False  # whether its end is in the ledger
    lost: list[Event] = field(default_factory=list)  # each time that its worker was lost

    @property
    def epoch(self) -> int | None:
        """The last epoch that was reported."""
        return self.reports[-1]["epoch"] if self.reports else None

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Of the last report."""
        return self.reports[-1]["metrics"] if self.reports else {}

    @property
    def done(self) -> bool:
        """Whether nothing more will be reported."""
        return self.status in FINISHED
