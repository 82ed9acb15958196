"""What can be wrong with a recipe's stages, found before anything runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations, product
from typing import Any

from ray.tune.search.sample import Categorical
from torch import nn

from analysis.schema import ENSEMBLES, SIZES, direction
from orchestrator import samplers, schedulers
from orchestrator.recipe import Recipe, domains_in, resolved
from orchestrator.specs import StageSpec
from spaces import BadInput, Space, unknown
from spaces.domains import Domain, ParamSpace, from_unit
from spaces.seeding import stable_hash
from spaces.settings import resolve
from trainables import losses, regimes, scores
from trainables.contracts import Member
from trainables.cost import params
from trainables.curriculum import Augment
from trainables.declare import Program
from trainables.figures import FIGURES
from trainables.fit import OptimizerConfig
from trainables.losses.settings import read
from trainables.regimes.kit import OF_LABELS

COSTS = (*SIZES, "bytes")
VALID = tuple(f"valid_{name}" for name in FIGURES)
METRICS = (*VALID, "teacher_similarity", "agreement", "kl", "cka", "rdm", "teacher_guidance")


def check_stage(stage: StageSpec, space: Space, recipe: Recipe) -> None:
    """Raises `BadInput` for a mistake in one stage that shows without data."""
    try:
        settings = stage.settings() if stage.trial == "distill" else {}
        hyper: ParamSpace = domains_in(settings) if settings else {}
        param_space = {**space.param_space, **hyper}
        samplers.check_settings(stage.sampler.name, stage.sampler.settings, param_space, max(1, len(stage.pareto)))
        schedulers.check_settings(stage.scheduler.name, stage.scheduler.settings, stage.epochs or 0)
        searches = stage.scheduler.name != "pbt" and stage.sampler.name != "grid" and not recipe.given
        if stage is recipe.stages[0] and stage.trials is None and searches:
            raise BadInput("trials says how many candidates the first stage proposes; it is missing")
        if stage.trial == "score":
            _check_scores(stage, recipe)
        else:
            lowest = {path: corners(domain)[0] for path, domain in hyper.items()}
            _everywhere(
                settings, _around(hyper, lowest, together=2), lambda found: _check_settings(found, stage, recipe)
            )
            _check_goal(stage, recipe)
        if stage.scheduler.name == "pbt":
            _check_population(stage, recipe, hyper)
    except BadInput as error:
        raise BadInput(f"stage {stage.name!r}: {error}") from error


def _check_scores(stage: StageSpec, recipe: Recipe) -> None:
    named = scores.check_settings(stage.scores or ())
    for name in stage.ensemble or ():
        if name not in named:
            raise unknown("score of the ensemble", name, named)
    if recipe.teacher is None:
        if taught := [name for name in named if scores.SCORES[name].needs_teacher]:
            raise BadInput(f"score {taught[0]!r} needs a teacher; the recipe has none")
        if stage.teacher == "random":
            raise BadInput("teacher: random needs a teacher; the recipe has none")
    _check_objective(stage, (*scores.terms_of(named), *ENSEMBLES))
    if set(stage.objective or ()) & set(ENSEMBLES) and not (stage.ensemble or set(named) - set(SIZES)):
        raise BadInput("an ensemble takes scores other than params and flops, unless the stage's `ensemble` names them")


def _check_settings(settings: Mapping[str, Any], stage: StageSpec, recipe: Recipe) -> None:
    """Of a distillation, without domains."""
    regimes.check_settings(settings["regime"], len(recipe.teachers))
    losses.check_settings(settings["losses"], stage.epochs)
    resolve("optimizer", settings["optimizer"], OptimizerConfig.SETTINGS)
    resolve("augment", settings["augment"], Augment.SETTINGS)
    if not isinstance(settings["batch_size"], int) or settings["batch_size"] < 2:
        raise BadInput(f"batch_size must be a whole number from 2, not {settings['batch_size']!r}")


def _check_goal(stage: StageSpec, recipe: Recipe) -> None:
    """What a distillation's students are compared by."""
    _check_objective(stage, METRICS if recipe.teacher else VALID)
    for name, weight in (stage.objective or {}).items():
        if weight > 0 and direction(name) == "lower":
            raise BadInput(f"the objective is maximised and less {name!r} is better; weigh it negatively, not {weight}")


def _check_population(stage: StageSpec, recipe: Recipe, hyper: ParamSpace) -> None:
    if not hyper:
        raise BadInput("pbt tunes hyperparameters, and no value in losses or optimizer is a domain")
    for path in hyper:
        if path.startswith("regime.") or path == "optimizer.name":
            raise BadInput(
                f"pbt changes values in the middle of a training, where {path} is settled; search it otherwise"
            )
    if stage is recipe.stages[0] and len(recipe.given) != 1:
        raise BadInput("pbt works on one student: give `student`, or a stage before it")


def _check_objective(stage: StageSpec, known: tuple[str, ...]) -> None:
    for name in stage.pareto:
        if name in ENSEMBLES:
            raise BadInput(f"pareto takes scores and costs; {name!r} may stand in the objective alone")
        if name not in (*known, *COSTS):
            raise unknown("column of pareto", name, (*known, *COSTS))
    for name in stage.objective or {}:
        if name not in known and not (stage.scores and name in stage.scores):
            raise unknown("metric of the objective", name, known)


# Where domains can go


def corners(domain: Domain) -> list[Any]:
    """The values of a domain at which a rule breaks first: every choice, or both ends of a range; the lowest first."""
    if not isinstance(domain, Categorical):
        return [from_unit(domain, 0.0), from_unit(domain, 1.0)]
    listed = list(domain.categories)
    return sorted(listed) if all(isinstance(value, int | float) for value in listed) else listed


def check_programs(stage: StageSpec, recipe: Recipe, declare: Callable[[Mapping[str, Any]], Program]) -> None:
    """Raises `BadInput` unless all that a distillation's domains can give fits the networks and the scheduler.

    Each domain of the losses and the regime goes to each of its corners, while the others stand at their last ones:
    there, no weight is 0. What only two of them together do to shapes is not seen.

    Args:
        declare: gives the program of settings without domains, for some student.
    """
    try:
        settings = stage.settings()
        hyper = domains_in(settings)
        usual = {path: corners(domain)[-1] for path, domain in hyper.items()}
        shaping = {path: domain for path, domain in hyper.items() if path.startswith(("losses.", "regime."))}
        points = [*_around(shaping, usual, together=1)]

        def check(found: Mapping[str, Any]) -> None:
            program = declare(found)
            _check_used(found, program, recipe)
            _check_counted(found, program, stage, recipe, declare)
            _check_mixed(found, program)
            _check_patience(stage, program)

        _everywhere(settings, points, check)
        if stage.scheduler.name == "pbt":
            _check_carried(settings, usual, points, declare)
    except BadInput as error:
        raise BadInput(f"stage {stage.name!r}: {error}") from error


def _around(hyper: ParamSpace, base: Mapping[str, Any], together: int) -> Iterator[dict[str, Any]]:
    """The base, and points at which so many domains at most are elsewhere, at their corners."""
    seen = set()
    for paths in combinations(hyper, min(together, len(hyper))):
        for values in product(*(corners(hyper[path]) for path in paths)):
            point = {**base, **dict(zip(paths, values, strict=True))}
            if (name := stable_hash(point)) not in seen:
                seen.add(name)
                yield point


def _everywhere(
    settings: Mapping[str, Any], points: Iterable[Mapping[str, Any]], check: Callable[[Mapping[str, Any]], None]
) -> None:
    """Check settings with the domains' values at each point; a mistake says which of them it comes from."""
    hyper = domains_in(settings)
    for point in points:
        mistake = _mistake(settings, point, check)
        if mistake is None:
            continue
        # Those without whose value it would not be, or be another one.
        blamed = [
            f"{path} may be {point[path]!r}"
            for path, domain in hyper.items()
            if any(_mistake(settings, {**point, path: other}, check) != mistake for other in corners(domain))
        ]
        raise BadInput(mistake + (f" ({' and '.join(blamed)})" if blamed else ""))


def _mistake(
    settings: Mapping[str, Any], point: Mapping[str, Any], check: Callable[[Mapping[str, Any]], None]
) -> str | None:
    try:
        check(resolved(settings, point))
    except BadInput as error:
        return str(error)
    return None


def _check_used(settings: Mapping[str, Any], program: Program, recipe: Recipe) -> None:
    """No loss that the recipe gives goes unused, because there is no teacher or the regime has no place for it."""
    name, wanted = settings["regime"]["name"], settings["losses"]
    row = regimes.REGIMES[name]
    if recipe.teachers and wanted == row.losses:
        return  # nobody asked for them: they are the regime's own, of which a setting may leave out some
    used = {part for phase in program.phases for term in phase.terms for part in term.name.split(".")}
    for loss, given in read(wanted, losses.LOSSES).items():
        if given.counts and loss not in used:
            if recipe.teachers or row.teacher == "unused":
                raise BadInput(f"regime {name!r} has no use for loss {loss!r}")
            alone = ", ".join(OF_LABELS)
            raise BadInput(f"loss {loss!r} needs a teacher; the recipe has none; losses without a teacher: {alone}")


def _check_counted(
    settings: Mapping[str, Any],
    program: Program,
    stage: StageSpec,
    recipe: Recipe,
    declare: Callable[[Mapping[str, Any]], Program],
) -> None:
    """What students are limited to or compared by, which is counted without a regime, is what is deployed costs."""
    counting = {"limits count": recipe.limits.given(), "pareto counts": stage.pareto}
    counting["the objective counts"] = stage.objective or {}
    if not any(name in (*COSTS, "latency_ms") for names in counting.values() for name in names):
        return
    plain = declare({**settings, "regime": {"name": "plain"}, "losses": {"cross_entropy": 1.0}})
    own, deployed = _size(plain), _size(program)
    for who, names in counting.items():
        for name in names:
            # A network of other parameters has another latency and other multiply-adds, too.
            unit = "bytes" if name == "bytes" else "params"
            if name in (*COSTS, "latency_ms") and own[unit] != deployed[unit]:
                raise BadInput(
                    f"{who} the architecture's own network, and regime {settings['regime']['name']!r} deploys another "
                    f"one: {deployed[unit]:,} {unit} instead of {own[unit]:,}"
                )


def _size(program: Program) -> dict[str, int]:
    member = _deployed(program)
    return {"params": params(member.net), "bytes": member.deployed_bytes()}


def _deployed(program: Program) -> Member:
    member = program.members[program.deploys]
    assert isinstance(member, Member)
    return member


def _check_mixed(settings: Mapping[str, Any], program: Program) -> None:
    """What is known of an image is not true of a mixture of two."""
    mixup, name = settings["augment"].get("mixup"), settings["regime"]["name"]
    if mixup and program.unmixed:
        raise BadInput(f"regime {name!r} knows something of each image, and mixup: {mixup} mixes them; it must be 0")


PATIENCE = {"asha": "min_epochs", "hyperband": "min_epochs", "median": "grace_epochs"}
"""Schedulers that stop trials, and the setting that says after which epoch at the earliest."""


def _check_patience(stage: StageSpec, program: Program) -> None:
    """Nobody is stopped before it has learnt anything."""
    scheduler = stage.scheduler
    if scheduler.name not in PATIENCE:
        return
    name, untaught = PATIENCE[scheduler.name], _untaught(program)
    patience = scheduler.settings.get(name, schedulers.SCHEDULERS[scheduler.name].settings[name].default)
    if patience <= untaught:
        raise BadInput(
            f"scheduler {scheduler.name!r}: {name} must be above {untaught}, not {patience}: before that, "
            "the student's head is not trained, and its accuracy says nothing"
        )


def _untaught(program: Program) -> int:
    """The epochs before the first phase that trains the head of what is deployed."""
    member = _deployed(program)
    head = set(member.net.get_submodule(member.head).parameters())
    epochs = 0
    for phase in program.phases:
        if any(not head.isdisjoint(program.members[name].parameters()) for name in phase.trains):
            break
        epochs += phase.epochs
    return epochs


def _check_carried(
    settings: Mapping[str, Any],
    usual: Mapping[str, Any],
    points: Iterable[Mapping[str, Any]],
    declare: Callable[[Mapping[str, Any]], Program],
) -> None:
    """A member of a population can go on from the checkpoint of any other."""
    carried = _carried(declare(resolved(settings, usual)))
    for point in points:
        if _carried(declare(resolved(settings, point))) != carried:
            [path] = (path for path in point if point[path] != usual[path])
            raise BadInput(
                f"pbt goes on from other members' weights, and with {path} = {point[path]!r} there are others to train "
                f"than with {usual[path]!r}; search it otherwise, or keep it from there"
            )


def _carried(program: Program) -> list[tuple[Any, ...]]:
    """Phases with their lengths, and the sizes of everything with weights."""
    modules = list(program.members.items())
    modules += [(t.name, t.loss) for phase in program.phases for t in phase.terms if isinstance(t.loss, nn.Module)]
    sizes = [(name, key, tuple(value.shape)) for name, net in modules for key, value in net.state_dict().items()]
    return [*((phase.name, phase.epochs) for phase in program.phases), *sizes]
