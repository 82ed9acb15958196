"""A run that starts from an earlier one ends as if it had been the one from the start, and computes nothing twice."""

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import analysis
from orchestrator import pipeline, reuse
from orchestrator.book import Book, Proposer
from orchestrator.launch import launch
from orchestrator.prepared import Search
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run
from orchestrator.stage import survivors
from spaces import BadInput
from spaces.seeding import generator
from trainables.checkpoints import checkpoint_name
from trainables.context import StageContext

EARLY: dict[str, Any] = {
    "random": {},
    "tpe": {"n_startup_trials": 4},
    "evolution": {"population": 4, "sample_size": 2},
}
ASHA = {"name": "asha", "min_epochs": 1, "reduction_factor": 2}
STAGE = {
    "name": "short",
    "trial": "distill",
    "epochs": 4,
    "trials": 10,
    "keep": 4,
    "losses": {"cross_entropy": 1.0},
    "optimizer": {"learning_rate": {"loguniform": [0.01, 0.5]}},
}
FINAL = {"name": "final", "trial": "distill", "epochs": 6, "optimizer": {"learning_rate": 0.1}}
CHOICES = {"depth1": [1, 2], "depth2": [1, 2], "depth3": [1, 2], "width": [2, 3, 4]}


def recipe(*stages: dict[str, Any], **changes: Any) -> Recipe:
    raw = {
        "name": "r",
        "task": {"dataset": "digits", "subset": 20},
        "space": {"name": "resnet", "choices": CHOICES},
        "limits": {"params": 9_000},
        "workers": 1,
        "stages": list(stages),
    }
    return Recipe.parse({**raw, **changes})


COSTS: dict[str, dict[str, Any]] = {}  # of all students, by space: what takes longest in these tests


def prepared(what: Recipe) -> Search:
    search = Search.prepare(what)
    search.feasible._costs = COSTS.setdefault(search.space.fingerprint(), search.feasible._costs)
    return search


class Killed(Exception):
    """The run was killed before it could write an event."""


def step(book: Book, proposer: Proposer, context: StageContext) -> bool:
    """What one worker does next, with an objective that is made up; False if nothing is left."""
    open_, scoring = book.unfinished(), book.stage.trial == "score"
    if not open_:
        proposal = proposer.propose(book)
        if proposal is None:
            return False
        book.propose(proposal)
        return True
    trial, proposal = open_[0], book.proposals[open_[0].proposal]
    epoch = 0 if scoring else (trial.epoch or proposal.start_epoch) + 1
    value = float(generator(proposal.key, trial.seed, trial.control, epoch).random())
    metrics = {"snip": value} if scoring else {"objective": value, "valid_accuracy": value}
    if epoch == 2 and value < 0.05:
        book.end(trial.number, "failed", "as a test wants it")
        return True
    context.store.write(checkpoint_name(trial.number), f"{proposal.key} {epoch}".encode())
    book.report(trial.number, epoch, metrics, seconds=1.0, worker="w:1")
    if not trial.done and (scoring or epoch == proposal.until):
        book.end(trial.number, "completed")
    if trial.done and not (trial.status == "completed" and context.test):
        context.store.remove(checkpoint_name(trial.number))
    return True


def carry_out(run: Run, search: Search) -> None:
    """What `pipeline.execute` does, without teachers and without Ray."""
    kept = None
    for index, stage in enumerate(run.recipe.stages):
        if not any(event.get("stage") == stage.name for event in run.events()):
            pipeline._announce(run.ledger, index, stage, search, {})
        book = search.book(stage, run.ledger)
        for event in run.events():
            if event.get("stage") == stage.name:
                book.apply(event)
        if not book.ended:
            proposer = search.proposer(stage, kept)
            context = pipeline._context(run, search, index, stage, {})
            reuse.begin(run, book, proposer, context)
            book.mend()
            while step(book, proposer, context):
                pass
            book.keep(survivors(book, stage is run.recipe.stages[-1]))
            book.close(seconds=0.0, slots=1)
        kept = [book.proposals[p] for p in book.kept or ()]
    reuse.finished(run)
    run.ledger.append("run_end", seconds=0.0)


def kill_after(run: Run, events: int) -> None:
    """Let the run write so many events more."""
    append, left = run.ledger.append, [events]

    def limited(*args: Any, **values: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return append(*args, **values)

    run.ledger.append = limited  # type: ignore[method-assign]


def made(what: Recipe, storage: Path, name: str, start_from: Path | None = None, kill: int | None = None) -> Path:
    search = prepared(what)
    origin = None if start_from is None else reuse.Origin.of(start_from, search)
    add: Callable[[Path], None] | None = None if origin is None else lambda half: origin.copy_to(search, half)
    with Run.create(what, storage, name, add) as run:
        if kill is not None:
            kill_after(run, kill)
        with suppress(Killed):
            carry_out(run, search)
    return storage / name


def resumed(path: Path) -> Path:
    with Run.open(path) as run:
        carry_out(run, prepared(run.recipe))
    return path


def told(path: Path, *kinds: str) -> list[dict[str, Any]]:
    """What a ledger says of trials, but for when and how long, and where it comes from."""
    left_out = ("time", "seconds", "from", "basis")
    return [
        {name: value for name, value in event.items() if name not in left_out}
        for event in analysis.events(path)
        if event["event"] in (kinds or ("trial", "report", "end", "keep"))
    ]


def taken(path: Path) -> list[int]:
    return [event["trials"] for event in analysis.events(path) if event["event"] == "taken"]


def notes(path: Path) -> list[str]:
    return [event["text"] for event in analysis.events(path) if event["event"] == "note"]


def computed(path: Path, stage: str = "short") -> int:
    """Epochs that the run computed itself."""
    reports = (event for event in analysis.events(path) if event["event"] == "report" and event["stage"] == stage)
    return sum("from" not in event for event in reports)


# More trials


@pytest.mark.parametrize("scheduler", ["none", "asha"])
@pytest.mark.parametrize("sampler", EARLY)
def test_an_extended_run_ends_like_one_that_had_so_many_trials_from_the_start(tmp_path, sampler, scheduler):
    stage = {**STAGE, "sampler": {"name": sampler, **EARLY[sampler]}}
    stage["scheduler"] = ASHA if scheduler == "asha" else "none"
    short, long = recipe(stage, FINAL), recipe({**stage, "trials": 20}, FINAL)
    whole = made(long, tmp_path, "whole")
    extended = made(long, tmp_path, "extended", made(short, tmp_path, "before"))
    # Students of the last stage that are known come first.
    assert [e for e in told(extended) if e["stage"] == "short"] == [e for e in told(whole) if e["stage"] == "short"]
    found = (analysis.load(path).trials.query("stage == 'final'")[["hash", "objective"]] for path in (extended, whole))
    assert len({tuple(sorted(map(tuple, table.values.tolist()))) for table in found}) == 1
    assert taken(extended)[0] == 10
    assert notes(extended)[0] == "10 of 10 trials taken over from before"
    assert computed(extended) == computed(whole) - computed(tmp_path / "before") < computed(whole)
    assert analysis.load(extended).finished


@pytest.mark.parametrize("cut", [3, 12, 25, 40])
def test_what_was_cut_off_goes_on(tmp_path, cut):
    stage = {**STAGE, "sampler": {"name": "tpe", **EARLY["tpe"]}, "scheduler": ASHA, "seeds": 2}
    long = recipe({**stage, "trials": 20})
    before = made(recipe(stage), tmp_path, "before", kill=cut)
    extended = made(long, tmp_path, "extended", before)
    key = ("stage", "number", "epoch", "proposal", "seed", "arch", "metrics", "status")
    whole = told(made(long, tmp_path, "whole"), "trial", "report", "end")
    found = told(extended, "trial", "report", "end")

    def facts(events: list[dict[str, Any]]) -> list[str]:
        return [json.dumps({name: event.get(name) for name in (*key, "event")}, sort_keys=True) for event in events]

    # A kill between a report and the end that follows from it may change the order in which they stand.
    assert sorted(facts(found)) == sorted(facts(whole))


def test_a_checkpoint_comes_along_for_what_goes_on_and_for_what_is_kept(tmp_path):
    before = made(recipe({**STAGE, "trials": 2}), tmp_path, "before", kill=9)  # in the second trial
    [book] = reuse.Origin.read(before).books.values()
    cut = book.trials[1]
    assert cut.epoch
    assert not cut.done
    search = Search.prepare(recipe({**STAGE, "trials": 3}))
    origin = reuse.Origin.of(before, search)
    with Run.create(search.recipe, tmp_path, "after", lambda half: origin.copy_to(search, half)) as run:
        shutil.rmtree(before)
        kill_after(run, 20)
        with pytest.raises(Killed):
            carry_out(run, search)
        folder = run.path / "stages" / "01-short" / "checkpoints"
        assert {path.name for path in folder.iterdir()} >= {"00000.pt", "00001.pt"}
        key = book.proposals[1].key
        assert (run.path / "origin" / "stages" / "01-short" / checkpoint_name(1)).read_text().startswith(key)
    done = resumed(tmp_path / "after")
    assert not (done / "origin").exists()


def test_killed_anywhere_and_without_the_earlier_run_it_ends_alike(tmp_path):
    stage = {**STAGE, "sampler": {"name": "evolution", **EARLY["evolution"]}, "scheduler": ASHA, "trials": 6}
    long = recipe({**stage, "trials": 9})
    before = made(recipe(stage), tmp_path, "before")
    whole = made(long, tmp_path, "whole", before)
    events = len(list(analysis.events(whole)))
    for cut in (0, 1, 2, 3, 7, 12, 20, 30, events - 4):
        path = made(long, tmp_path, f"cut{cut}", before, kill=cut)
        moved = path.rename(tmp_path / f"moved{cut}")
        before.rename(tmp_path / "gone")
        resumed(moved)
        (tmp_path / "gone").rename(before)
        # A kill after the survivors were noted has them noted again.
        assert sorted({*map(str, told(moved))}) == sorted(map(str, told(whole))), cut
        assert computed(moved) == computed(whole), cut


def test_the_earlier_run_stays_as_it_is(tmp_path):
    before = made(recipe(STAGE, FINAL), tmp_path, "before", kill=30)

    def contents() -> dict[str, str]:
        files = (path for path in before.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    was = contents()
    made(recipe({**STAGE, "trials": 12}, FINAL), tmp_path, "after", before)
    assert contents() == was


def test_an_extension_can_be_extended(tmp_path):
    first = made(recipe(STAGE), tmp_path, "first")
    second = made(recipe({**STAGE, "trials": 12}), tmp_path, "second", first)
    shutil.rmtree(first)
    third = made(recipe({**STAGE, "trials": 14}), tmp_path, "third", second)
    assert taken(third) == [12]
    assert told(third) == told(made(recipe({**STAGE, "trials": 14}), tmp_path, "whole"))


# Another way to search


def test_what_was_stopped_goes_on_where_nothing_stops(tmp_path):
    before = made(recipe({**STAGE, "scheduler": ASHA}), tmp_path, "before")
    after = made(recipe(STAGE), tmp_path, "after", before)
    whole = made(recipe(STAGE), tmp_path, "whole")
    assert analysis.load(before).trials["status"].eq("stopped").any()
    assert not analysis.load(after).trials["status"].eq("stopped").any()
    there, here = (sorted(map(str, told(path, "trial", "end", "keep"))) for path in (whole, after))
    assert here == there
    assert computed(after) == computed(whole) - computed(before)


def test_a_scheduler_decides_on_what_is_known_as_it_would_have(tmp_path):
    before = made(recipe(STAGE), tmp_path, "before")
    asha = recipe({**STAGE, "scheduler": ASHA})
    after = made(asha, tmp_path, "after", before)
    assert told(after) == told(made(asha, tmp_path, "whole"))
    assert computed(after) == 0


def test_another_sampler_learns_from_what_is_known(tmp_path):
    before = made(recipe(STAGE), tmp_path, "before")
    tpe = {"name": "tpe", **EARLY["tpe"]}
    after = made(recipe({**STAGE, "sampler": tpe, "trials": 14}), tmp_path, "after", before)
    assert taken(after) == [10]
    assert len(told(after, "trial")) == 14
    assert [event for event in told(after) if event.get("number", 99) < 10] == told(before, "trial", "report", "end")


def test_more_seeds_and_a_control_join_those_that_are_known(tmp_path):
    more = recipe({**STAGE, "seeds": 3, "control": True})
    after = made(more, tmp_path, "after", made(recipe({**STAGE, "seeds": 2}), tmp_path, "before"))
    trials, whole = analysis.load(after).trials, analysis.load(made(more, tmp_path, "whole")).trials
    assert taken(after) == [20]
    assert len(trials) == 10 * 3 * 2
    columns = ["proposal", "number", "seed", "control", "hash", "status", "objective"]
    assert trials[columns].equals(whole[columns])


def test_what_is_over_a_new_limit_or_outside_of_a_domain_is_left_behind(tmp_path):
    before = made(recipe(STAGE), tmp_path, "before")
    found = analysis.load(before).trials
    limit = float(found["params"].median())
    rates = {"optimizer": {"learning_rate": {"loguniform": [0.01, 0.3]}}}
    after = made(recipe({**STAGE, **rates}, limits={"params": limit}), tmp_path, "after", before)
    fit = (found["params"] <= limit) & (found["set.optimizer.learning_rate"] <= 0.3)
    trials = analysis.load(after).trials
    assert 0 < fit.sum() < 10
    assert list(trials["hash"][: fit.sum()]) == list(found["hash"][fit])
    assert trials["params"].max() <= limit
    assert trials["set.optimizer.learning_rate"].max() <= 0.3
    assert notes(after) == [f"{fit.sum()} of 10 trials taken over from before"]
    assert list(trials["number"]) == list(range(10))


# Survivors


SCORE = {"name": "score", "trial": "score", "scores": ["snip"], "trials": 8, "keep": 4}
OF_SURVIVORS = {key: value for key, value in STAGE.items() if key not in ("trials", "optimizer")}


def test_a_survivor_that_was_trained_is_not_trained_again_and_a_new_one_is(tmp_path):
    before = made(recipe(SCORE, OF_SURVIVORS), tmp_path, "before")
    more = recipe({**SCORE, "trials": 20, "keep": 5}, OF_SURVIVORS)
    after, whole = made(more, tmp_path, "after", before), made(more, tmp_path, "whole")
    known = {name for name in trained(before) if name in trained(whole)}
    assert 0 < len(known) < 4
    assert sorted(trained(after)) == sorted(trained(whole))
    assert trained(after)[: len(known)] == [name for name in trained(before) if name in known]
    assert taken(after) == [8, len(known)]
    objective = ["hash", "status", "objective"]
    there, here = (analysis.load(path).trials.query("stage == 'short'")[objective] for path in (whole, after))
    assert there.sort_values("hash").values.tolist() == here.sort_values("hash").values.tolist()


def trained(path: Path) -> list[str]:
    return [event["hash"] for event in told(path, "trial") if event["stage"] == "short"]


def test_new_survivors_get_as_many_turns_as_those_that_are_known(tmp_path):
    tuned = {**OF_SURVIVORS, "optimizer": STAGE["optimizer"]}
    before = made(recipe(SCORE, {**tuned, "trials": 8}), tmp_path, "before")
    more = recipe({**SCORE, "trials": 16}, {**tuned, "trials": 12})
    after = made(more, tmp_path, "after", before)
    known = set(trained(before)) & set(trained(after))
    assert 0 < len(known) < 4
    assert {trained(after).count(name) for name in trained(after)} == {3}
    assert taken(after)[1] == 2 * len(known)


def test_a_stage_more_takes_over_all_stages_before(tmp_path):
    before = made(recipe(STAGE), tmp_path, "before")
    after = made(recipe(STAGE, FINAL), tmp_path, "after", before)
    assert taken(after) == [10, 0]
    assert computed(after) == 0
    assert notes(after)[1] == "before has not begun such a stage: begins anew"
    last = made(recipe({**STAGE, "keep": None}), tmp_path, "last", after)  # without its test figures it is of no use
    assert taken(last) == [0]
    assert "test not as in after" in notes(last)[0]


# Anew, from the best


def test_a_longer_training_begins_with_the_best_students(tmp_path):
    before = made(recipe(STAGE), tmp_path, "before")
    after = made(recipe({**STAGE, "epochs": 6}), tmp_path, "after", before)
    [book] = reuse.Origin.read(before).books.values()
    best = [book.proposals[p] for p in book.best()[:4]]
    began = told(after, "trial")
    assert [(event["hash"], event["params"]) for event in began[:4]] == [(p.hash, p.params) for p in best]
    assert notes(after) == ["epochs not as in before: begins with its 4 best students"]
    assert len({(event["hash"], json.dumps(event["params"])) for event in began}) == len(began) == 10
    # The rest is what the sampler says for these numbers, or says next where that is known by now.
    anew = [event["params"] for event in told(made(recipe({**STAGE, "epochs": 6}), tmp_path, "anew"), "trial")]
    known = [p.params for p in best]
    compared = [number for number in range(4, 10) if anew[number] not in known]
    assert compared
    assert all(began[number]["params"] == anew[number] for number in compared)


@pytest.mark.parametrize(("trials", "keep", "begun"), [(10, None, 5), (10, 2, 2), (3, 3, 1), (1, 1, 1)])
def test_it_begins_with_as_many_as_it_keeps_and_half_of_its_trials_at_most(tmp_path, trials, keep, begun):
    before = made(recipe({**STAGE, "trials": 8}), tmp_path, "before")
    after = made(recipe({**STAGE, "epochs": 6, "trials": trials, "keep": keep}), tmp_path, "after", before)
    assert f"its {begun} best" in notes(after)[0]
    assert len(told(after, "trial")) == trials


def test_hyperparameters_that_are_new_are_searched_for_the_best_students(tmp_path):
    before = made(recipe(STAGE), tmp_path, "before")
    stage = {**STAGE, "optimizer": {"learning_rate": {"choice": [0.1, 0.2]}, "momentum": {"choice": [0.5, 0.9]}}}
    after = made(recipe(stage, limits={"params": 6_000}), tmp_path, "after", before)
    [book] = reuse.Origin.read(before).books.values()
    best = [book.proposals[p] for p in book.best() if book.proposals[p].cost["params"] <= 6_000]
    began = told(after, "trial")
    distinct = list(dict.fromkeys(p.hash for p in best))[:4]
    assert [event["hash"] for event in began[: len(distinct)]] == distinct
    assert all(set(event["params"]) == {"optimizer.learning_rate", "optimizer.momentum"} for event in began)


def test_a_stage_that_is_new_begins_with_the_best_of_the_last_one(tmp_path):
    before = made(recipe(SCORE, OF_SURVIVORS), tmp_path, "before")
    best = reuse.Origin.read(before).best("other")
    assert [p.hash for p in best] == [p.hash for p in reuse.Origin.read(before).best("short")]
    after = made(recipe({**STAGE, "name": "other"}), tmp_path, "after", before)
    assert [event["hash"] for event in told(after, "trial")][:4] == [p.hash for p in best[:4]]


def test_a_population_is_taken_over_whole_or_not_at_all(tmp_path):
    stage = {key: value for key, value in STAGE.items() if key not in ("trials", "keep")}
    stage |= {"scheduler": {"name": "pbt", "population": 4, "interval": 2}}
    student = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 3}
    before = made(recipe(stage, student=student), tmp_path, "before")
    after = made(recipe({**stage, "keep": 1}, FINAL, student=student), tmp_path, "after", before)
    assert told(after)[: len(told(before)) - 1] == told(before)[:-1]
    assert computed(after) == 0
    other = made(recipe(stage, student={**student, "width": 4}), tmp_path, "other", before)
    assert taken(other) == [0]
    smaller = made(recipe({**stage, "scheduler": {**stage["scheduler"], "population": 3}}, student=student),
                   tmp_path, "smaller", before)  # fmt: skip
    assert "scheduler not as in before" in notes(smaller)[0]


def test_members_of_a_population_that_are_alike_are_not_taken_for_each_other(tmp_path):
    stage = {key: value for key, value in STAGE.items() if key not in ("trials", "keep")}
    stage |= {"scheduler": {"name": "pbt", "population": 4, "interval": 2}, "epochs": 6, "keep": 1}
    stage["optimizer"] = {"learning_rate": {"choice": [0.01, 0.1]}}
    student = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 3}
    before = made(recipe(stage, student=student), tmp_path, "before")
    members = [(event["params"], event["parent"], event["start_epoch"]) for event in told(before, "trial")]
    assert len(members) == 12 > len({str(member) for member in members})
    after = made(recipe(stage, FINAL, student=student), tmp_path, "after", before)
    assert told(after)[: len(told(before)) - 1] == told(before)[:-1]
    assert computed(after) == 0


def test_no_more_trials_are_taken_over_than_the_stage_has(tmp_path):
    before = made(recipe(STAGE), tmp_path, "before", kill=3 + 10)  # some have been proposed, not all have run
    after = made(recipe({**STAGE, "trials": 2, "keep": 1}), tmp_path, "after", before)
    assert len(told(after, "trial")) == 2


# What determines a result


def basis(what: Recipe, index: int = 0) -> dict[str, Any]:
    stage = what.stages[index]
    return reuse.basis(Search.prepare(what), stage, {}, pipeline.sees_test_images(what, stage))


@pytest.mark.parametrize(
    ("part", "changes", "top"),
    [
        ("seed", {}, {"seed": 1}),
        ("data", {}, {"task": {"dataset": "digits", "subset": 30}}),
        ("data", {}, {"task": {"dataset": "digits", "subset": 20, "mean": [0.1], "std": [0.2]}}),
        ("epochs", {"epochs": 5}, {}),
        ("losses", {"losses": {"cross_entropy": 0.5}}, {}),
        ("regime", {"regime": "plain"}, {}),
        ("optimizer", {"optimizer": {"learning_rate": 0.1}}, {}),
        ("batch_size", {"batch_size": 8}, {}),
        ("augment", {"augment": {"crop": 1}}, {}),
        ("objective", {"objective": {"valid_f1": 1.0}}, {}),
    ],
)
def test_what_determines_a_result_is_told_apart(part, changes, top):
    usual, other = basis(recipe(STAGE)), basis(recipe({**STAGE, **changes}, **top))
    assert part in {name for name in usual if usual[name] != other[name]}


@pytest.mark.parametrize(
    "changes",
    [
        {"trials": 11},
        {"keep": 1},
        {"sampler": "tpe"},
        {"scheduler": ASHA},
        {"seeds": 2},
        {"control": True},
        {"objective": {"valid_accuracy": 1.0}},
        {"optimizer": {"learning_rate": {"loguniform": [0.001, 0.5]}}},
    ],
    ids=str,
)
def test_what_does_not_is_not(changes):
    assert basis(recipe({**STAGE, **changes})) == basis(recipe(STAGE))
    assert basis(recipe(STAGE, workers=2, resources={"cpu": 0.5})) == basis(recipe(STAGE))


TAUGHT = {"teacher": {"space": "resnet", "arch": {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}, "random": True}}


def test_scores_that_read_no_teacher_do_not_depend_on_it(monkeypatch):
    from trainables.context import TeacherContext

    def with_teacher(scores: list[str], name: str) -> dict[str, Any]:
        what = recipe({**SCORE, "scores": scores}, OF_SURVIVORS, **TAUGHT)
        search = Search.prepare(what)
        taught_by = {"teacher": TeacherContext(search.teachers["teacher"], dict, name, None)}
        return {stage.name: reuse.basis(search, stage, taught_by, False) for stage in what.stages}

    one, other = with_teacher(["snip"], "a"), with_teacher(["snip"], "b")
    assert one["score"] == other["score"]
    assert one["short"] != other["short"]
    assert with_teacher(["snip", "diswot"], "a")["score"] != with_teacher(["snip", "diswot"], "b")["score"]


# Refused


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"name": "wrn", "choices": {}}, "the space is 'resnet', not 'wrn'"),
        ({"name": "resnet", "choices": {**CHOICES, "width": [2]}}, r"choices of width is .*\[2, 3, 4\].*, not .*2\]"),
        ({"name": "resnet", "choices": CHOICES, "options": {"shortcut": "pad"}}, "option shortcut is"),
    ],
    ids=["name", "choices", "option"],
)
def test_other_students_are_refused_with_what_differs(tmp_path, space, said):
    before = made(recipe(STAGE), tmp_path, "before", kill=5)
    with pytest.raises(BadInput, match=said) as raised:
        launch(recipe(STAGE, space=space, limits={}), {}, tmp_path, "after", None, False, before)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "after").exists()


def test_another_text_of_a_space_is_refused_and_not_executed(tmp_path):
    text = Path("examples/own_space.py").read_text()
    own = tmp_path / "own_space.py"
    own.write_text(text)
    what = {"space": {"file": str(own)}, "limits": {}}
    before = made(recipe(STAGE, **what), tmp_path, "before", kill=5)
    made(recipe({**STAGE, "trials": 11}, **what), tmp_path, "same", before, kill=8)
    (before / "own_space.py").write_text(text + "\nraise SystemExit('executed')\n")
    with pytest.raises(BadInput, match=r"own_space\.py has another text"):
        launch(recipe(STAGE, **what), {}, tmp_path, "after", None, False, before)
    with pytest.raises(BadInput, match=r"the space is 'own_space\.py', not 'resnet'"):
        launch(recipe(STAGE), {}, tmp_path, "after", None, False, before)


def test_what_is_no_run_or_not_free_is_refused(tmp_path):
    before = made(recipe(STAGE), tmp_path, "before", kill=5)

    def refused(path: Path, said: str) -> None:
        with pytest.raises(ValueError, match=said) as raised:
            launch(recipe(STAGE), {}, tmp_path, "after", None, False, path)
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "after").exists()

    refused(tmp_path / "nowhere", "is no run's directory: it has no recipe.yaml")
    with Run.open(before):
        refused(before, "is held by another process")
    ledger = before / "ledger.jsonl"
    whole = ledger.read_text()
    ledger.write_text(whole.replace('"schema":1', '"schema":99'))
    refused(before, "was written by a newer dux")
    ledger.write_text(whole.replace("{", "[", 1))
    refused(before, "line 1: not a JSON object")


def test_a_copy_that_is_gone_is_named(tmp_path):
    before = made(recipe(STAGE), tmp_path, "before")
    after = made(recipe({**STAGE, "trials": 11}), tmp_path, "after", before, kill=1)
    shutil.rmtree(after / "origin")
    with pytest.raises(BadInput, match="after/origin is no run's directory"):
        resumed(after)


def test_a_run_can_be_named_as_a_recipe(tmp_path):
    before = made(recipe(STAGE), tmp_path, "before", kill=3)
    assert Recipe.load(before, {"stages.short.trials": 12}).stages[0].trials == 12
