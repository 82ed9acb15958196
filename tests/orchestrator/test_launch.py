"""Taking up a run: what is noted before anything of it runs again."""

from pathlib import Path

from orchestrator import launch
from orchestrator.book import Proposal
from orchestrator.prepared import Search
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run

RECIPE = {
    "name": "r",
    "task": {"dataset": "digits", "subset": 20},
    "space": {"name": "resnet", "choices": {"width": [2, 3]}},
    "max_failures": 0,
    "stages": [{"name": "only", "trial": "distill", "epochs": 2, "trials": 1, "losses": {"cross_entropy": 1.0}}],
}


def test_a_trial_whose_failure_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    search = Search.prepare(Recipe.parse(RECIPE))
    with Run.create(search.recipe, tmp_path, "a") as run:
        [stage] = run.recipe.stages
        run.ledger.append("stage", stage="only", index=1, trial="distill")
        book = search.book(stage, run.ledger)
        book.propose(Proposal({"depth1": 1, "depth2": 1, "depth3": 1, "width": 2}, "a", {}, until=2))
        run.ledger.append("lost", stage="only", number=0, reason="its worker was killed", alone=True)
        # A kill has cut off the trial's end, which follows from that.
        launch._begin_again(run, search)
        assert [event["event"] for event in run.events()][-3:] == ["lost", "end", "retry"]
