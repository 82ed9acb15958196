"""Stop rules decide as Tune's schedulers do, from replayed reports alone; populations copy and explore as in PBT."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from orchestrator.schedulers import SCHEDULERS, Population, check_settings, make, rungs, scaled
from spaces import BadInput, domains
from spaces.space import sample

EPOCHS = 9


def reports(seed, trials=40, epochs=EPOCHS, parallel=5, skipping=False):
    """Reports in order of arrival: (number, epoch, objective); `send` it whether the trial stops.

    Objectives are multiples of 1/64: ties occur, and sums are exact in any order.
    """
    rng = np.random.default_rng(seed)
    waiting, running = list(range(trials)), {}
    while waiting or running:
        while waiting and len(running) < parallel:
            running[waiting.pop(0)] = 0
        number = list(running)[int(rng.integers(len(running)))]
        running[number] = min(epochs, running[number] + (int(rng.integers(1, 4)) if skipping else 1))
        objective = (number % 7 + running[number] + int(rng.integers(-8, 9))) / 64
        stopped = yield number, running[number], objective
        if stopped or running[number] == epochs:
            del running[number]


def play(stream, decide):
    """What was reported, and what was decided, while the decisions took effect."""
    log, stopped = [], None
    while True:
        try:
            report = stream.send(stopped)
        except StopIteration:
            return log
        stopped = decide(*report)
        log.append((*report, stopped))


def tunes_decisions(scheduler, epochs, bracket=None):
    """The same question to one of Tune's schedulers."""
    trials = {}
    controller = SimpleNamespace(get_live_trials=list)

    def decide(number, epoch, objective):
        if number not in trials:
            trials[number] = _Stub(str(number))
            scheduler.on_trial_add(controller, trials[number])
            if bracket is not None:
                scheduler._trial_info[str(number)] = scheduler._brackets[bracket(number)]
        result = {"training_iteration": epoch, "objective": objective}
        if epoch == epochs:
            scheduler.on_trial_complete(controller, trials[number], result)
            return False
        return scheduler.on_trial_result(controller, trials[number], result) == TrialScheduler.STOP

    return decide


class _Stub:
    """A Tune trial, as far as schedulers look at it."""

    def __init__(self, trial_id):
        self.trial_id = trial_id


COMMON = {"time_attr": "training_iteration", "metric": "objective", "mode": "max"}


# As Tune decides


@pytest.mark.parametrize("skipping", [False, True])
@pytest.mark.parametrize(
    ("first", "factor", "epochs"),
    [(1, 3, 9), (1, 3, 10), (2, 2, 20), (1, 4, 3), (3, 2.5, 27), (1, 10, 1000), (4, 3, 4)],
)
def test_asha_decides_as_tunes(first, factor, epochs, skipping):
    for seed in range(3):
        theirs = AsyncHyperBandScheduler(max_t=epochs, grace_period=first, reduction_factor=factor, **COMMON)
        ours = make("asha", {"min_epochs": first, "reduction_factor": factor}, epochs, seed)
        trials = 12 if epochs == 1000 else 40
        log = play(reports(seed, trials, epochs, skipping=skipping), ours.stops)
        decide = tunes_decisions(theirs, epochs)
        assert [decide(*report) for *report, _ in log] == [stopped for *_, stopped in log]
        assert any(stopped for *_, stopped in log) == (first < epochs)


@pytest.mark.parametrize(("epochs", "brackets"), [(9, 3), (27, 3), (20, 2), (9, 1)])
def test_hyperband_decides_as_tunes_in_the_same_bracket(epochs, brackets):
    for seed in range(3):
        theirs = AsyncHyperBandScheduler(max_t=epochs, reduction_factor=3, brackets=brackets, **COMMON)
        ours = make("hyperband", {"brackets": brackets}, epochs, seed)
        log = play(reports(seed, 60, epochs), ours.stops)
        decide = tunes_decisions(theirs, epochs, ours.bracket)
        assert [decide(*report) for *report, _ in log] == [stopped for *_, stopped in log]
        assert len({ours.bracket(number) for number in range(60)}) == brackets


def test_brackets_are_drawn_with_tunes_chances():
    """Rungs 1, 3, 9: brackets of 3, 2 and 1 rungs, by chances e^0 : e^-1 : e^-2."""
    rule = make("hyperband", {}, 9, seed=5)
    drawn = [rule.bracket(number) for number in range(3000)]
    expected = np.exp([0, -1, -2]) / np.exp([0, -1, -2]).sum()
    assert np.bincount(drawn) / 3000 == pytest.approx(expected, abs=0.03)
    assert [make("hyperband", {}, 9, seed=5).bracket(number) for number in range(50)] == drawn[:50]
    assert [make("hyperband", {}, 9, seed=6).bracket(number) for number in range(50)] != drawn[:50]


@pytest.mark.parametrize("skipping", [False, True])
@pytest.mark.parametrize(("grace", "least"), [(1, 3), (3, 1), (4, 5)])
def test_median_decides_as_tunes(grace, least, skipping):
    stops = 0
    for seed in range(3):
        theirs = MedianStoppingRule(grace_period=grace, min_samples_required=least, **COMMON)
        ours = make("median", {"grace_epochs": grace, "min_samples": least}, EPOCHS, seed)
        log = play(reports(seed, skipping=skipping), ours.stops)
        decide = tunes_decisions(theirs, EPOCHS)
        assert [decide(*report) for *report, _ in log] == [stopped for *_, stopped in log]
        stops += sum(stopped for *_, stopped in log)
    assert stops > 10


# By hand


def test_rungs():
    assert rungs(1, 3, 9) == [1, 3, 9]
    assert rungs(1, 3, 8) == [1, 3]
    assert rungs(2, 4, 40) == [2, 8, 32]
    assert rungs(1, 3, 243) == [1, 3, 9, 27, 81, 243]  # int(log(243) / log(3)) is 4: logarithms would lose the last


def test_asha_by_hand():
    """At factor 2 a trial goes on if it is not below the median of those that reached its rung before."""
    rule = make("asha", {"reduction_factor": 2}, 4, seed=0)
    assert not rule.stops(0, 1, 0.5)  # the first has no one to be compared with
    assert rule.stops(1, 1, 0.4)  # median 0.5
    assert not rule.stops(2, 1, 0.45)  # median of 0.4 and 0.5
    assert rule.stops(3, 1, 0.44)  # median of 0.4, 0.45, 0.5
    assert not rule.stops(0, 2, 0.1)  # the first at the next rung
    assert not rule.stops(0, 3, 0.0)  # no rung
    assert rule.stops(2, 2, 0.05)


def test_median_by_hand():
    """Epoch 2: the others' means are 0.3, 0.5 and 0.7; a trial whose best is 0.5 or more goes on."""
    reached = [(0, 1, 0.2), (0, 2, 0.4), (1, 1, 0.4), (1, 2, 0.6), (2, 1, 0.6), (2, 2, 0.8)]
    for best, stops in ((0.49, True), (0.51, False)):
        rule = make("median", {}, 9, seed=0)
        for report in reached:
            rule.stops(*report)
        assert not rule.stops(3, 1, 0.5 if best > 0.5 else 0.45)
        assert rule.stops(3, 2, best) is stops


# Every rule

CASES = [(name, seed) for name in SCHEDULERS for seed in range(3)]


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_a_rule_rebuilt_by_replay_goes_on_as_the_one_that_was_never_stopped(name, seed):
    log = play(reports(seed), make(name, {}, EPOCHS, seed).stops)
    rebuilt = make(name, {}, EPOCHS, seed)
    assert [rebuilt.stops(*report) for *report, _ in log] == [stopped for *_, stopped in log]


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_the_best_at_every_epoch_is_never_stopped_and_nobody_at_the_end(name, seed):
    rule = make(name, {}, EPOCHS, seed)
    log = play(reports(seed), lambda n, e, v: rule.stops(n, e, 9.0 if n == 17 else v))
    assert [epoch for number, epoch, *_ in log if number == 17] == list(range(1, EPOCHS + 1))
    assert not any(stopped for _, epoch, _, stopped in log if epoch == EPOCHS)
    saves = name in ("asha", "hyperband", "median")
    assert (len(log) < 0.8 * 40 * EPOCHS) == saves
    assert saves or len(log) == 40 * EPOCHS


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_objective_that_is_not_finite_is_our_own_bug(name, bad):
    with pytest.raises(AssertionError):
        make(name, {}, EPOCHS, 0).stops(0, 1, bad)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_settings_are_checked(name):
    check_settings(name, {}, EPOCHS)
    with pytest.raises(BadInput, match="unknown setting of scheduler"):
        check_settings(name, {"warp": 9}, EPOCHS)
    for setting in SCHEDULERS[name].settings:
        for bad in ("many", -1, True):
            with pytest.raises(BadInput, match=setting):
                check_settings(name, {setting: bad}, EPOCHS)


def test_bad_input_names_the_rule_the_value_and_the_choices():
    for name, wrong, message in [
        ("ashaa", {}, "unknown scheduler 'ashaa'; did you mean 'asha'"),
        ("asha", {"min_epochs": 10}, "min_epochs 10 exceeds the stage's 9 epochs"),
        ("asha", {"min_epochs": 1.5}, "min_epochs must be an integer from 1, not 1.5"),
        ("asha", {"reduction_factor": 1}, "reduction_factor must be a number above 1, not 1"),
        ("hyperband", {"brackets": 4}, r"4 brackets are more than the 3 rungs \(1, 3, 9\) of 9 epochs"),
        ("median", {"grace_epochs": 10}, "grace_epochs 10 exceeds"),
        ("pbt", {"interval": 10}, "interval 10 exceeds"),
        ("pbt", {"quantile": 0.6}, "quantile must be a number above 0 to 0.5, not 0.6"),
    ]:
        with pytest.raises(BadInput, match=message):
            check_settings(name, wrong, EPOCHS)


# Population based training

HYPER = {
    "lr": tune.loguniform(1e-4, 1.0),
    "alpha": tune.uniform(-1, 1),
    "temperature": tune.choice([1, 2, 4, 8]),
    "warmup": tune.randint(0, 50),
    "weight": tune.quniform(0.0, 1.0, 0.05),
    "loss": tune.choice(["kd", "dist", "at"]),
    "nesterov": tune.choice([True, False]),
}


def standing_of(objectives, space=HYPER):
    """Members by number with these objectives, each with hyperparameters of its own."""
    return {m: (4, value, sample(space, np.random.default_rng(m))) for m, value in enumerate(objectives)}


def test_defaults_are_those_of_the_table():
    plain = Population(HYPER, 0)
    table = {name: setting.default for name, setting in SCHEDULERS["pbt"].settings.items()}
    assert {name: getattr(plain, name) for name in table} == table


def test_the_worst_quarter_copies_the_best_quarter_and_the_others_go_on():
    standing = standing_of([0.1, 0.8, 0.5, 0.4, 0.9, 0.6, 0.2, 0.3])
    donors = {0: set(), 6: set()}
    for epoch in range(40):
        for member in standing:
            donor, params = Population(HYPER, 0).next(member, epoch, standing)
            if member in donors:
                donors[member].add(donor)
            else:
                assert (donor, params) == (member, standing[member][2])
    assert donors == {0: {1, 4}, 6: {1, 4}}


@pytest.mark.parametrize(("members", "quantile", "moved"), [(2, 0.25, 1), (3, 0.5, 1), (5, 0.25, 2), (1, 0.25, 0)])
def test_as_many_copy_as_in_tune(members, quantile, moved):
    """ceil(n q), but never more than half."""
    standing = standing_of(np.arange(members) / 10)
    pbt = Population(HYPER, 0, quantile=quantile)
    assert [pbt.next(m, 4, standing)[0] != m for m in standing] == [m < moved for m in standing]


def test_members_without_a_number_copy_and_are_not_copied():
    standing = standing_of([0.1, math.nan, 0.3, 0.2])
    assert Population(HYPER, 0).next(1, 4, standing)[0] == 2
    assert Population(HYPER, 0).next(0, 4, standing)[0] == 0
    lost = standing_of([math.nan] * 4)
    assert [Population(HYPER, 0).next(m, 4, lost)[0] for m in lost] == [0, 1, 2, 3]


def test_of_equal_members_the_same_ones_copy_in_every_order_of_arrival():
    standing = standing_of([0.5] * 8)
    backwards = dict(reversed(standing.items()))
    for member in standing:
        assert Population(HYPER, 3).next(member, 6, standing) == Population(HYPER, 3).next(member, 6, backwards)


@given(seed=st.integers(0, 10**6), epoch=st.integers(1, 100))
@settings(max_examples=40, deadline=None)
def test_explored_values_stay_within_their_domains(seed, epoch):
    pbt, standing = Population(HYPER, seed), standing_of([0.1, 0.2, 0.3, 0.4])
    for _ in range(30):  # again and again: nothing drifts out
        donor, params = pbt.next(0, epoch, standing)
        assert donor == 3
        for name, domain in HYPER.items():
            assert domains.contains(domain, params[name]), name
        standing = {**standing, 3: (epoch, 0.4, params)}
        epoch += 1


@pytest.mark.parametrize(
    ("name", "value", "lower", "higher"),
    [
        ("lr", 0.1, 0.08, 0.12),
        ("lr", 0.9, 0.72, 1.0),
        ("alpha", -0.5, -0.4, -0.6),
        ("alpha", 0.0, 0.0, 0.0),
        ("temperature", 2, 1, 4),
        ("temperature", 8, 4, 8),
        ("warmup", 20, 16, 24),
        ("warmup", 49, 39, 49),
        ("warmup", 1, 0, 2),
        ("warmup", 0, 0, 1),
        ("weight", 0.5, 0.4, 0.6),
        ("weight", 0.05, 0.0, 0.1),
        ("loss", "dist", "dist", "dist"),
        ("nesterov", True, True, True),
    ],
)
def test_a_step_is_a_fifth_down_or_up(name, value, lower, higher):
    for factor, expected in ((0.8, lower), (1.2, higher)):
        moved = scaled(HYPER[name], value, factor)
        assert moved == pytest.approx(expected)
        assert type(moved) is type(value)


def test_explored_values_are_steps_from_the_donors_or_drawn_anew():
    standing = standing_of([0.1, 0.4])
    donor = standing[1][2]
    steps = {name: {scaled(domain, donor[name], f) for f in (0.8, 1.2)} for name, domain in HYPER.items()}

    def explored(resample):
        return [Population(HYPER, seed, resample=resample).next(0, 4, standing)[1] for seed in range(30)]

    for name in HYPER:
        assert {params[name] for params in explored(0.0)} == steps[name]
    assert len({params["lr"] for params in explored(1.0)}) == 30
    kept = np.mean([params["lr"] in steps["lr"] for seed in range(8) for params in explored(0.25)])
    assert 0.5 < kept < 0.95


def test_first_members_differ_and_are_reproducible():
    firsts = [Population(HYPER, 1).first(member) for member in range(4)]
    assert firsts == [Population(HYPER, 1).first(member) for member in range(4)]
    assert len({params["lr"] for params in firsts}) == 4


def test_a_population_finds_what_no_fixed_setting_of_its_members_can():
    """The paper's example (section 4.4, figure 2): maximise 1.2 - |theta|^2 by gradients of 1.2 - h1 t1^2 - h2 t2^2.

    With h = (1, 0) and (0, 1) for all time, one coordinate never moves from 0.9: 1.2 - 0.81 = 0.39 at best.
    """
    space = {"h1": tune.uniform(0, 1), "h2": tune.uniform(0, 1)}
    starts = [{"h1": 1.0, "h2": 0.0}, {"h1": 0.0, "h2": 1.0}]

    def best(seed, copies):
        pbt = Population(space, seed, population=2, interval=4)
        theta, hyper = [np.array([0.9, 0.9])] * 2, list(starts)
        for epoch in range(4, 120, 4):
            for m in range(2):
                theta[m] = theta[m] * (1 - 2 * 0.02 * np.array(list(hyper[m].values()))) ** 4
            value = [float(1.2 - t @ t) for t in theta]
            moves = [pbt.next(m, epoch, {i: (epoch, value[i], hyper[i]) for i in range(2)}) for m in range(2)]
            if copies:
                theta, hyper = [theta[donor] for donor, _ in moves], [params for _, params in moves]
        return max(value)

    assert best(0, copies=False) < 0.39
    assert min(best(seed, copies=True) for seed in range(5)) > 1.0
