"""What a user's own tools are told of a run as it goes: TensorBoard, MLflow, Weights & Biases, Optuna's dashboard.

Truth is the ledger: each tool has a thread that reads it from where it stopped the last time. So a tool that is slow or
fails holds nobody up, and a resumed run sends what is missing, and nothing twice. Tune's logger callbacks are not used:
a trial of Tune's is not one of the search, theirs cannot take up a run again, Weights & Biases' starts two actors for
each trial, and MLflow's sends a request for each metric.
"""

import importlib.util
import os
import sys
import time
from pathlib import Path
from types import TracebackType

from orchestrator.addresses import to_resume
from orchestrator.prepared import space_of
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run, own_recipe
from orchestrator.specs import MLflowSpec, TrackingSpec, WandbSpec
from orchestrator.tracking.entries import Runs
from orchestrator.tracking.follower import FOLDER, Follower, Tracker, behind
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.to_mlflow import MLflow
from orchestrator.tracking.to_tensorboard import TensorBoard
from orchestrator.tracking.to_wandb import Wandb, check_credentials
from spaces import BadInput, Space
from trainables.store import Store

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb", "optuna": "optuna"}
PATIENCE, HASTE = 60.0, 10.0  # seconds that tools get for what they lack, when a run has ended and when it is cut off


def check(recipe: Recipe) -> None:
    """Raises `BadInput` unless every tool that the recipe names is installed, and has what it needs to log in."""
    for name in recipe.tracking.given():
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise BadInput(f"tracking: {name} is not installed: pip install 'dux-search[tracking]'")
    if recipe.tracking.wandb is not None:
        check_credentials(recipe.tracking.wandb)


def trackers(spec: TrackingSpec, recipe: Recipe, space: Space, run: Path, store: Store) -> dict[str, Tracker]:
    """A tracker for each tool that is given; nothing is imported or written yet."""
    made: dict[str, Tracker] = {}
    for name in spec.given():
        match name:
            case "tensorboard":
                made[name] = Runs(TensorBoard(run / FOLDER / "tensorboard"))
            case "mlflow":
                made[name] = Runs(MLflow(spec.mlflow or MLflowSpec()))
            case "wandb":
                made[name] = Runs(Wandb(spec.wandb or WandbSpec()))
            case "optuna":
                made[name] = Journal(recipe, space, run, store)
    return made


class Tracking:
    """While this lasts, the recipe's tools are told what the run's ledger says.

    Args:
        run: whose ledger it is.
        space: the students' space.
    """

    def __init__(self, run: Run, space: Space) -> None:
        how = to_resume(run.path)
        made = trackers(run.recipe.tracking, run.recipe, space, run.path, run.store)
        self._followers = [Follower(name, tracker, run.path, how) for name, tracker in made.items()]
        self._how = how

    def __enter__(self) -> "Tracking":
        for follower in self._followers:
            follower.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until all is sent, but not for ever."""
        for follower in self._followers:
            follower.ask_to_end()
        until = time.monotonic() + (PATIENCE if kind is None else HASTE)
        for follower in self._followers:
            follower.join(max(0.0, until - time.monotonic()))
        for follower in self._followers:
            if follower.is_alive():
                follower.cut_off()
                said = f"{follower.name} has not taken everything in time; it gets the rest by {self._how}"
                print(f"dux: tracking: {said}", file=sys.stderr)


def catch_up(path: Path) -> None:
    """Send what the tools lack of a run that has ended; what cannot be read or written is left as it is."""
    recipe = own_recipe(path)
    if not any(behind(path, name) for name in recipe.tracking.given()) or not os.access(path, os.W_OK):
        return
    check(recipe)
    with Run(path) as run, Tracking(run, space_of(recipe.space)):
        pass
