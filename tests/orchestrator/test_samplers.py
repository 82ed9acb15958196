"""Every sampler is a function of (seed, number, history)."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial
from ray import tune

from orchestrator.samplers import SAMPLERS, Exhausted, check_settings, decode, distributions, encode, make
from spaces import BadInput, domains
from spaces.seeding import derive_seed, generator
from spaces.space import sample

optuna.logging.set_verbosity(optuna.logging.ERROR)

MIXED = {
    "depth": tune.choice([1, 3, 5, 7]),
    "op": tune.choice(["conv", "skip", None, True]),
    "width": tune.randint(2, 30),
    "rate": tune.qlograndint(2, 64, 2),
    "drop": tune.quniform(0.1, 0.5, 0.1),
}
CONTINUOUS = {"lr": tune.loguniform(1e-4, 1.0), "alpha": tune.uniform(-1, 1)}
ANY = {**MIXED, **CONTINUOUS}
# As short as they come, so that each method's own phase begins within a few trials.
QUICK = {
    "grid": {},
    "random": {},
    "tpe": {"n_startup_trials": 4},
    "nsga2": {"population_size": 4},
    "gp": {"n_startup_trials": 6},
    "evolution": {"population": 4, "sample_size": 2},
}
ONE, TWO = ("maximize",), ("maximize", "minimize")
CASES = [(name, d) for name, method in SAMPLERS.items() for d in ((ONE, TWO) if method.several else (ONE,))]


SMALL = {name: ANY[name] for name in ("op", "alpha")}  # a Gaussian process takes its time over more


def space_for(name):
    return {"grid": MIXED, "gp": SMALL}.get(name, ANY)


def ask(name, space, study, number, settings=None, seed=0):
    """One ask by a fresh sampler: the Optuna trial and its point."""
    study.sampler = make(name, space, derive_seed(seed, number), QUICK[name] if settings is None else settings, number)
    trial = study.ask(distributions(space))
    return trial, decode(space, trial.params)


def objective(point, directions):
    """Finite values that differ between points."""
    unit = [domains.to_unit(domain, point[name]) for name, domain in ANY.items() if name in point]
    return [sum(unit), float(np.prod(np.add(unit, 1)))][: len(directions)]


def history(space, directions, trials=9, states=True):
    """A study rebuilt from scratch: finished trials, and one failed, one pruned and one running."""
    study = optuna.create_study(directions=directions)
    found = {3: TrialState.FAIL, 5: TrialState.PRUNED, 8: TrialState.RUNNING} if states else {}
    for number in range(trials):
        point = sample(space, generator("history", number))
        state = found.get(number, TrialState.COMPLETE)
        values = objective(point, directions) if state == TrialState.COMPLETE else None
        curve = {1: 0.5} if state == TrialState.PRUNED and len(directions) == 1 else {}
        study.add_trial(
            create_trial(
                state=state,
                values=values,
                params=encode(space, point),
                distributions=distributions(space),
                intermediate_values=curve,
            )
        )
    return study


def search(name, space, value, trials, seed, settings, directions=ONE):
    """A whole search, the sampler made anew for every ask; `value` of a point gives the objectives."""
    study = optuna.create_study(directions=directions)
    for number in range(trials):
        trial, point = ask(name, space, study, number, settings, seed)
        study.tell(trial, value(point))
    return study


# Every sampler


@pytest.mark.parametrize(("name", "directions"), CASES)
def test_a_suggestion_is_a_function_of_seed_number_and_history(name, directions):
    space = space_for(name)
    points = [ask(name, space, history(space, directions), number=11)[1] for _ in range(2)]
    assert points[0] == points[1]
    first = [ask(name, space, optuna.create_study(directions=directions), number, seed=1)[1] for number in range(3)]
    assert any(point != first[0] for point in first)


@pytest.mark.parametrize(("name", "directions"), CASES)
def test_values_are_of_the_domains_from_the_first_trial_on(name, directions):
    space = space_for(name)
    for study in (optuna.create_study(directions=directions), history(space, directions)):
        for number in range(2):
            point = ask(name, space, study, number)[1]
            assert list(point) == list(space)
            for key, domain in space.items():
                assert domains.contains(domain, point[key])


@pytest.mark.parametrize(("name", "directions"), CASES)
def test_a_study_rebuilt_from_its_trials_goes_on_as_the_one_that_was_never_stopped(name, directions):
    space = space_for(name)
    study = optuna.create_study(directions=directions)
    for number in range(9):
        trial, point = ask(name, space, study, number)
        if number == 4:
            study.tell(trial, state=TrialState.FAIL)
        elif number != 7:  # that one runs on
            study.tell(trial, objective(point, directions))
    rebuilt = optuna.create_study(directions=directions)
    for old in study.get_trials():
        rebuilt.add_trial(
            create_trial(
                state=old.state,
                values=old.values,
                params=encode(space, decode(space, old.params)),
                distributions=distributions(space),
            )
        )
    assert ask(name, space, rebuilt, 9)[1] == ask(name, space, study, 9)[1]


def test_a_fresh_process_suggests_the_same():
    script = (
        "import json, test_samplers as t\n"
        "print(json.dumps([t.ask(n, t.space_for(n), t.history(t.space_for(n), d), 11)[1] for n, d in t.CASES]))"
    )
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "123"}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    here_and_now = [ask(name, space_for(name), history(space_for(name), d), 11)[1] for name, d in CASES]
    assert json.loads(ran.stdout.splitlines()[-1]) == here_and_now


@pytest.mark.parametrize("name", SAMPLERS)
def test_some_names_can_be_held_fixed(name):
    """A stage that tunes hyperparameters of given architectures fixes the architecture's names."""
    space = space_for(name)
    study = history(space, ONE)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.sampler = optuna.samplers.PartialFixedSampler(
            encode({"op": space["op"]}, {"op": "skip"}), make(name, space, 0, QUICK[name], 2)
        )
    point = decode(space, study.ask(distributions(space)).params)
    assert point["op"] == "skip"


@pytest.mark.parametrize("name", SAMPLERS)
def test_settings_are_checked(name):
    space = space_for(name)
    check_settings(name, QUICK[name], space, 1)
    with pytest.raises(BadInput, match="unknown setting of sampler"):
        check_settings(name, {"warp": 9}, space, 1)
    for setting in SAMPLERS[name].settings:
        for bad in ("many", -1, float("nan")):
            with pytest.raises(BadInput, match=setting):
                check_settings(name, {setting: bad}, space, 1)


def test_bad_input_names_the_rule_the_value_and_the_choices():
    with pytest.raises(BadInput, match="unknown sampler 'evolutoin'; did you mean 'evolution'"):
        make("evolutoin", MIXED, 0, {})
    with pytest.raises(BadInput, match="sample_size 5 exceeds population 3"):
        check_settings("evolution", {"population": 3}, MIXED, 1)
    with pytest.raises(BadInput, match="one objective, not 2; for several use grid, random, tpe, nsga2, gp"):
        check_settings("evolution", {}, MIXED, 2)
    with pytest.raises(BadInput, match=r"grid.*lr is \{'loguniform'"):
        check_settings("grid", {}, CONTINUOUS, 1)
    with pytest.raises(BadInput, match="at most 1,000,000 points"):
        check_settings("grid", {}, {"a": tune.randint(0, 2000), "b": tune.randint(0, 2000)}, 1)
    with pytest.raises(BadInput, match="unknown setting of sampler 'tpe'"):
        check_settings("tpe", {"order_seed": 3}, MIXED, 1)
    make("tpe", MIXED, 0, {"order_seed": 3})  # the search gives it to every sampler


# Better than chance

PLANTED = {f"x{i}": tune.choice([0, 1, 2, 3, 4, 5, 6]) for i in range(5)} | {"op": tune.choice(["a", "b", "c", "d"])}
BEST = {"x0": 1, "x1": 5, "x2": 3, "x3": 6, "x4": 2}


def planted(point):
    """0 at the best of 67,228 points; a sum over names."""
    return -sum((point[name] - best) ** 2 for name, best in BEST.items()) - 4.0 * (point["op"] != "c")


@pytest.mark.parametrize(
    ("name", "trials", "seeds", "given"),
    [
        ("tpe", 50, 4, {}),
        ("evolution", 80, 8, {"population": 10, "sample_size": 5}),
        ("nsga2", 160, 4, {"population_size": 10}),
        ("gp", 18, 2, {"n_startup_trials": 8}),
    ],
)
def test_a_planted_optimum_is_approached_faster_than_by_chance(name, trials, seeds, given):
    found = [search(name, PLANTED, planted, trials, seed, given).best_value for seed in range(seeds)]
    chance = [max(planted(sample(PLANTED, generator("chance", s, t))) for t in range(trials)) for s in range(20)]
    assert np.mean(found) > np.mean(chance) + np.std(chance) / 2


def front_size(points):
    """Area that a set of (maximised, maximised) points in [0, 1]^2 dominates."""
    area, top = 0.0, 0.0
    for x, y in sorted(points, reverse=True):
        area += x * max(0.0, y - top)
        top = max(top, y)
    return area


def test_fronts_evolve_with_a_fresh_nsga2_for_every_ask():
    space = {f"x{i}": tune.uniform(0, 1) for i in range(6)}

    def value(point):
        x, *rest = point.values()
        good = float(np.prod([1 - abs(r - 0.5) for r in rest]))
        return [x * good, (1 - x) * good]

    def area(name, seed, given):
        study = search(name, space, value, 120, seed, given, ("maximize", "maximize"))
        return front_size([trial.values for trial in study.get_trials()])

    evolved, drawn = (
        [area(name, s, g) for s in range(3)] for name, g in (("nsga2", {"population_size": 10}), ("random", {}))
    )
    assert np.mean(evolved) > 1.2 * np.mean(drawn)


# Each one's own


def test_nsga2_suggests_what_optunas_does_without_the_notes_that_it_leaves_in_the_study():
    size = QUICK["nsga2"]["population_size"]
    study = optuna.create_study(directions=TWO)
    agreed = 0
    for number in range(25):
        seed = derive_seed("oracle", number)
        bare = optuna.create_study(directions=TWO)
        bare.add_trials(
            create_trial(values=t.values, params=t.params, distributions=t.distributions) for t in study.get_trials()
        )
        bare.sampler = make("nsga2", ANY, seed, QUICK["nsga2"])
        ours = bare.ask(distributions(ANY))
        study.sampler = NSGAIISampler(population_size=size, crossover_prob=0.9, seed=seed)
        study.sampler._random_sampler = RandomSampler(seed=derive_seed(seed, "mutants"))
        theirs = study.ask(distributions(ANY))
        # Optuna lists the parents in another order in the first ask of a generation than in the others.
        if number % size:
            assert ours.params == theirs.params
            agreed += 1
        study.tell(theirs, objective(decode(ANY, theirs.params), TWO))
    assert agreed == 18


@pytest.mark.parametrize("multivariate", [None, True, False])
@pytest.mark.parametrize("directions", [ONE, TWO], ids=["one", "two"])
def test_tpe_suggests_what_optunas_does_which_finds_the_shared_space_by_itself(multivariate, directions):
    """Also where nothing has ended, trials run, were pruned or have failed, and a name has one value alone."""
    space = {**ANY, "only": tune.choice([7])}
    settings = {"n_startup_trials": 3, "multivariate": multivariate, "constant_liar": True}
    ours, theirs = (optuna.create_study(directions=directions) for _ in range(2))
    for number in range(24):
        seed = derive_seed(1, number)
        ours.sampler = make("tpe", space, seed, settings, number)
        theirs.sampler = TPESampler(seed=seed, **settings)
        both = [study.ask(distributions(space)) for study in (ours, theirs)]
        assert both[0].params == both[1].params
        if number % 5 == 1:
            continue  # goes on running
        state = {2: TrialState.FAIL, 3: TrialState.PRUNED if directions == ONE else TrialState.FAIL}.get(number % 5)
        for study, trial in zip((ours, theirs), both, strict=True):
            if state is None:
                study.tell(trial, objective(decode(space, trial.params), directions))
            else:
                if state == TrialState.PRUNED:
                    trial.report(0.1 * number, 1)
                study.tell(trial, state=state)


def test_grid_visits_each_point_once_in_a_shuffled_order_that_its_seed_alone_decides():
    space = {"a": tune.choice([1, 2, 3]), "b": tune.choice(["x", None]), "c": tune.quniform(0, 1, 0.25)}
    every = [
        dict(zip("abc", point, strict=True))
        for point in itertools.product([1, 2, 3], ["x", None], [0.0, 0.25, 0.5, 0.75, 1.0])
    ]

    def order(given, seed):
        study = optuna.create_study()
        return [ask("grid", space, study, number, given, seed)[1] for number in range(30)]

    first = order({"order_seed": 1}, seed=0)
    assert sorted(first, key=str) == sorted(every, key=str)
    assert first != every
    assert order({"order_seed": 1}, seed=99) == first
    assert order({"order_seed": 2}, seed=0) != first
    with pytest.raises(Exhausted, match="all 30 points"):
        ask("grid", space, optuna.create_study(), 30, {})


def test_grid_without_a_number_takes_the_trials_own():
    space = {"a": tune.choice([1, 2, 3, 4])}
    study = optuna.create_study()
    for _ in range(4):
        study.sampler = make("grid", space, 0, {})
        study.ask(distributions(space))
    assert sorted(decode(space, trial.params)["a"] for trial in study.get_trials()) == [1, 2, 3, 4]


LINE = {"x": tune.randint(0, 1000), "op": tune.choice(["a", "b"])}


def line_study(values, direction="maximize", states=None):
    """Trials whose x is 10 times their number."""
    study = optuna.create_study(direction=direction)
    for number, value in enumerate(values):
        state = (states or {}).get(number, TrialState.COMPLETE)
        study.add_trial(
            create_trial(
                state=state,
                value=value if state == TrialState.COMPLETE else None,
                params=encode(LINE, {"x": 10 * number, "op": "a"}),
                distributions=distributions(LINE),
            )
        )
    return study


def parents(study, given, asks=30):
    """The trials whose mutants are suggested: a mutant keeps its parent's x, or its op (then nothing is learned)."""
    points = [ask("evolution", LINE, study, 100 + i, given, seed=i)[1] for i in range(asks)]
    return {point["x"] // 10 for point in points if point["op"] == "b"}


def test_evolution_mutates_the_winner_of_the_living():
    whole = {"population": 4, "sample_size": 4}
    # The best of all, trial 1, has died of age; of the last four, trial 6 is the best.
    assert parents(line_study([0, 9, 1, 2, 3, 1, 7, 4]), whole) == {6}
    assert parents(line_study([0, 9, 1, 2, 3, 1, 7, 4], "minimize"), whole) == {5}
    # Those that failed, run or were stopped neither live nor push others out.
    states = {5: TrialState.FAIL, 6: TrialState.RUNNING, 7: TrialState.PRUNED}
    assert parents(line_study([0, 9, 1, 2, 3, 1, 7, 4], states=states), whole) == {1}


def test_evolution_draws_its_tournament_without_replacement():
    # Two of three distinct trials: the worst never wins; the best wins more often, the middle one sometimes.
    assert parents(line_study([1, 2, 3]), {"population": 3, "sample_size": 2}) == {1, 2}


def test_evolution_changes_exactly_one_value_and_is_random_before_that():
    given = {"population": 4, "sample_size": 4}
    study = line_study([0, 1, 2, 3])
    for i in range(20):
        point = ask("evolution", LINE, study, 50 + i, given)[1]
        assert (point["x"] == 30) != (point["op"] == "a")
    young = [ask("evolution", LINE, line_study([0, 1, 2]), i, given)[1]["x"] for i in range(8)]
    assert not {0, 10, 20} & set(young)


def test_evolution_with_crossover_takes_values_of_two_parents():
    study = optuna.create_study(direction="maximize")
    space = {f"x{i}": tune.choice([0, 1]) for i in range(12)}
    for bit in (0, 1):
        study.add_trial(
            create_trial(value=1.0, params=encode(space, dict.fromkeys(space, bit)), distributions=distributions(space))
        )
    ones = {
        share: {
            sum(ask("evolution", space, study, i, {"population": 2, "sample_size": 1, "crossover": share})[1].values())
            for i in range(20)
        }
        for share in (0.0, 1.0)
    }
    assert ones[0.0] == {1, 11}
    assert ones[1.0] - {0, 1, 11, 12}


def test_evolution_steps_where_the_space_has_moves():
    study = line_study([0, 1, 2, 3])
    moves = {"x": lambda value: [value - 10, value + 10]}
    points = []
    for i in range(40):
        study.sampler = make("evolution", LINE, i, {"population": 4, "sample_size": 4}, moves=moves)
        points.append(decode(LINE, study.ask(distributions(LINE)).params))
    parents_x = 30
    assert {point["x"] for point in points} - {parents_x} == {20, 40}
    assert {point["op"] for point in points if point["x"] == parents_x} == {"b"}
    for name in SAMPLERS:  # the others have no use for them
        if name not in ("grid", "evolution"):
            make(name, LINE, 0, QUICK[name], moves=moves)
