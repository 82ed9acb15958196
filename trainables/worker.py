"""The Tune Trainable: thin and reusable. An actor imports torch once and does all kinds of work that a run has."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from ray import tune

from trainables import heartbeat
from trainables.contracts import Data

Json = dict[str, Any]


class Work(Protocol):
    """What a worker does, one trial after the other."""

    def begin(self, config: Json) -> None:
        """Begin a trial, wherever the last one is."""

    def step(self) -> Json:
        """Work for a while. `reports`, a list since Tune takes nested mappings apart, and `done`.

        Raises:
            WorkerSpoilt: out of memory, or a broken device: the worker is given up.
        """

    def cleanup(self) -> None:
        """Let go of the trial."""


class Worker(tune.Trainable):
    """A worker of a run, from its teachers through all of its stages.

    Its config: `shared`, a reference to what makes a kind of work from the run's images, and what that work is told.
    """

    def setup(self, config: Json, data: Data, alive: Path) -> None:  # type: ignore[override]
        """Begin the first trial.

        Args:
            data: of the run.
            alive: where workers show that they live.
        """
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        heartbeat.start(alive)
        self._data = data
        self._begin_kind(config["shared"])
        self._work.begin(config)

    def reset_config(self, new_config: Json) -> bool:
        """Begin another trial, of the same kind or another; nothing of one kind is kept for the next."""
        if new_config["shared"] != self._shared:
            self._begin_kind(new_config["shared"])
        self._work.begin(new_config)
        return True

    def _begin_kind(self, shared: ray.ObjectRef) -> None:
        make: Callable[[Data], Work] = ray.get(shared)
        self._work, self._shared = make(self._data), shared

    def step(self) -> Json:
        """What the work has to report, with the worker's name; see `Work.step`."""
        found = self._work.step()
        worker = f"{os.uname().nodename}:{os.getpid()}"
        return {**found, "reports": [{"worker": worker, **report} for report in found["reports"]]}

    def cleanup(self) -> None:
        self._work.cleanup()


class Idle:
    """Nothing to do, in a worker that has started and is held ready; it is stopped by whoever has something to do."""

    def __init__(self, data: Data) -> None:
        """Needs none of the images."""

    def begin(self, config: Json) -> None:
        """Import what takes long, and the first student's training will need."""

    def step(self) -> Json:
        """Look up now and then."""
        time.sleep(0.1)
        return {"reports": [], "done": False}

    def cleanup(self) -> None:
        """Nothing to let go of."""
