"""Scores without training: what a student at initialisation, one batch and maybe a teacher say of it. Higher is better.

A new score is a file with a function of a `Probe` and a line in `SCORES`. No score is a verdict: `params` and `flops`
are in the table because a score that does not rank better than size has found nothing.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spaces.errors import BadInput, unknown
from trainables.contracts import NotComputable, Probe
from trainables.scores import (
    diswot,
    epe_nas,
    fisher,
    grad_norm,
    grasp,
    jacob_cov,
    l2_norm,
    nwot,
    plain,
    rdm,
    size,
    snip,
    synflow,
    zen,
)
from trainables.scores.passes import Need, one_pass


@dataclass(frozen=True)
class ScoreEntry:
    """A score as the table knows it.

    Args:
        function: a `contracts.Score`; settings are keyword arguments.
        terms: names of the values that it gives; a score of one term gives a float.
        needs_teacher: whether it compares with a teacher.
        settings: by name, the values that a setting takes; the first is the default.
        needs: the part of the student's pass that it looks at, which is then computed once for all scores.
    """

    function: Callable[..., float | dict[str, float]]
    terms: tuple[str, ...]
    needs_teacher: bool = False
    settings: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    needs: Need | None = None


SCORES: dict[str, ScoreEntry] = {
    "params": ScoreEntry(size.params, ("params",)),
    "flops": ScoreEntry(size.flops, ("flops",)),
    "grad_norm": ScoreEntry(grad_norm.score, ("grad_norm",), needs="gradients"),
    "snip": ScoreEntry(snip.score, ("snip",), needs="gradients"),
    "plain": ScoreEntry(plain.score, ("plain",), needs="gradients"),
    "grasp": ScoreEntry(grasp.score, ("grasp",), needs="curvature"),
    "fisher": ScoreEntry(fisher.score, ("fisher",), needs="saliency"),
    "synflow": ScoreEntry(synflow.score, ("synflow",)),
    "jacob_cov": ScoreEntry(jacob_cov.score, ("jacob_cov",), needs="jacobian"),
    "epe_nas": ScoreEntry(epe_nas.score, ("epe_nas",), needs="jacobian"),
    "nwot": ScoreEntry(nwot.score, ("nwot",), needs="relus"),
    "zen": ScoreEntry(zen.score, ("zen",)),
    "l2_norm": ScoreEntry(l2_norm.score, ("l2_norm",)),
    "diswot": ScoreEntry(
        diswot.score,
        ("diswot.semantic", "diswot.relation"),
        needs_teacher=True,
        settings={"variant": tuple(diswot.VARIANTS)},
    ),
    "rdm": ScoreEntry(rdm.score, ("rdm.pearson", "rdm.spearman"), needs_teacher=True),
}


Scores = Iterable[str] | Mapping[str, Mapping[str, Any] | None]
"""How a recipe names scores: a list of names, or a mapping from names to settings (null for none)."""


def check_settings(scores: Scores) -> dict[str, dict[str, Any]]:
    """Settings by score.

    Raises:
        BadInput: no score, a score named twice or that there is not, a setting or a value that it does not take.
    """
    if isinstance(scores, str) or not isinstance(scores, Iterable) or not (names := list(scores)):
        raise BadInput(f"scores are a list of names or {{name: settings}}, at least one, not {scores!r}")
    for name in names:
        if not isinstance(name, str) or name not in SCORES:
            raise unknown("score", name, SCORES)
    if len(set(names)) < len(names):
        raise BadInput(f"a score stands twice in {names}")
    given = scores if isinstance(scores, Mapping) else {}
    return {name: _check(name, given.get(name)) for name in names}


def terms_of(scores: Scores) -> tuple[str, ...]:
    """Names of the values that these scores give, in their order; raises `BadInput` as `check_settings` does."""
    return tuple(term for name in check_settings(scores) for term in SCORES[name].terms)


def compute(scores: Scores, probe: Probe) -> tuple[dict[str, float], dict[str, str]]:
    """Values of all terms of these scores, NaN where there is none, and for each NaN its reason by term.

    A reason is the error's type and message. Only what a candidate can cause becomes a NaN: no value, numbers out of
    range, shapes or memory that do not do. Anything else is a bug and is raised.

    Raises:
        BadInput: as `check_settings`.
    """
    checked = check_settings(scores)
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    needs = frozenset(need for name in checked if (need := SCORES[name].needs) is not None)
    with one_pass(needs):
        for name, options in checked.items():
            found, why = _terms(SCORES[name], probe, options)
            values |= found
            reasons |= why
    return values, reasons


def _terms(entry: ScoreEntry, probe: Probe, options: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    try:
        result = entry.function(probe, **options)
    # RuntimeError: torch's for shapes, memory and linear algebra.
    except (NotComputable, FloatingPointError, np.linalg.LinAlgError, RuntimeError) as error:
        # Its first line: a reason is a cell of a table.
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return dict.fromkeys(entry.terms, math.nan), dict.fromkeys(entry.terms, reason)
    values = result if isinstance(result, dict) else {entry.terms[0]: result}
    assert tuple(values) == entry.terms, f"{tuple(values)} are not the terms {entry.terms}"
    reasons = {
        term: f"NotComputable: the value is {value}" for term, value in values.items() if not math.isfinite(value)
    }
    return {term: math.nan if term in reasons else value for term, value in values.items()}, reasons


def _check(name: str, settings: object) -> dict[str, Any]:
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise BadInput(f"score {name!r}: settings are a mapping, not {settings!r}")
    takes = SCORES[name].settings
    for setting, value in settings.items():
        if setting not in takes:
            raise unknown(f"setting of score {name!r}", setting, takes)
        if value not in takes[setting]:
            raise BadInput(f"score {name!r}: {setting} is one of {', '.join(map(str, takes[setting]))}, not {value!r}")
    return dict(settings)


__all__ = ["SCORES", "ScoreEntry", "check_settings", "compute", "terms_of"]
