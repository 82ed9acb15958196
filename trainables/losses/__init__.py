"""What a student learns from: terms of the training objective, each a function of student, teacher and labels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any

from torch import Tensor

from spaces.errors import BadInput, unknown
from trainables.contracts import CAM, Loss
from trainables.losses import (
    ab,
    alpha_divergence,
    at,
    cc,
    cka,
    cross_entropy,
    dist,
    diswot,
    dkd,
    fitnets,
    fsp,
    ickd,
    kd,
    logit_std,
    nst,
    pkt,
    review,
    rkd,
    sp,
    topk_kd,
    vid,
)
from trainables.losses.settings import Entry, Number, Setting, read
from trainables.losses.shapes import Maps, Pairs, Shapes, deepest, from_the_deep_end, middle, shapes_of


def plain(function: Callable[..., Tensor]) -> Callable[..., Loss]:
    """The maker of a loss that is a function and needs no sizes: it fixes the settings."""

    @wraps(function)
    def make(student: Maps, teacher: Maps, **settings: Any) -> Loss:
        return partial(function, **settings)

    return make


_SMOOTHING = Number(0.0, "of at least 0 and below 1", lambda value: 0 <= value < 1)
_TEMPERATURE = Number(4.0, "above 0", lambda value: value > 0)
_BETA = Number(1.0, "of at least 0", lambda value: value >= 0)
_VARIANCE = Number(1.0, f"above {vid.FLOOR}", lambda value: value > vid.FLOOR)
_MARGIN = Number(1.0, "above 0", lambda value: value > 0)
_DKD = {"alpha": _BETA, "beta": replace(_BETA, default=8.0), "temperature": _TEMPERATURE}
_ALPHAS = {
    "alpha_min": Number(-1.0, "of at most 1", lambda value: value <= 1),
    "alpha_max": Number(1.0, "of at least 0", lambda value: value >= 0),
    "clip": Number(5.0, "of at least 1", lambda value: value >= 1),
    "temperature": replace(_TEMPERATURE, default=1.0),
}
_TOP = Number(8.0, "that is whole and at least 2", lambda value: value >= 2 and value == int(value))
_KERNEL = {
    "gamma": Number(0.4, "above 0", lambda value: value > 0),
    "order": Number(2.0, "that is whole and at least 1", lambda value: value >= 1 and value == int(value)),
}

LOSSES: dict[str, Entry] = {
    "cross_entropy": Entry(plain(cross_entropy.cross_entropy), "nothing", {"label_smoothing": _SMOOTHING}),
    "kd": Entry(plain(kd.kd), "logits", {"temperature": _TEMPERATURE}),
    "dist": Entry(plain(dist.dist), "logits", {"temperature": _TEMPERATURE, "beta": _BETA}),
    "dkd": Entry(plain(dkd.dkd), "logits", _DKD),
    "alpha_divergence": Entry(plain(alpha_divergence.alpha_divergence), "logits", _ALPHAS),
    "logit_std": Entry(plain(logit_std.logit_std), "logits", {"temperature": replace(_TEMPERATURE, default=2.0)}),
    "topk_kd": Entry(plain(topk_kd.topk_kd), "logits", {"k": _TOP, "temperature": _TEMPERATURE}),
    "pkt": Entry(plain(pkt.pkt), "pooled", pairing=deepest),
    "rkd": Entry(plain(rkd.rkd), "pooled", {"angle": replace(_BETA, default=2.0)}, pairing=deepest),
    "cc": Entry(plain(cc.cc), "pooled", _KERNEL, pairing=deepest),
    "cka": Entry(plain(cka.cka), "pooled", pairing=deepest),
    "at": Entry(plain(at.at), "attention", pairing=from_the_deep_end),
    "sp": Entry(plain(sp.sp), "gram", pairing=deepest),
    "fitnets": Entry(fitnets.FitNets, "map", pairing=middle),
    "nst": Entry(plain(nst.nst), "map", pairing=deepest),
    "fsp": Entry(fsp.FSP, "map", pairing=from_the_deep_end),
    "ickd": Entry(ickd.ICKD, "map", pairing=deepest),
    "vid": Entry(vid.VID, "map", {"variance": _VARIANCE}, pairing=from_the_deep_end),
    "ab": Entry(ab.AB, "map", {"margin": _MARGIN}, pairing=from_the_deep_end),
    "review": Entry(review.Review, "map", pairing=from_the_deep_end),
    "diswot_semantic": Entry(plain(diswot.semantic), "class_gram"),
    "diswot_relation": Entry(plain(diswot.relation), "unit_gram", pairing=deepest),
}


@dataclass(frozen=True)
class Term:
    """One summand of the objective, ready to be computed.

    Args:
        name: as in `LOSSES`.
        weight: above 0; what the loss is multiplied by.
        loss: from student's outputs, teacher's outputs and labels to a scalar; an `nn.Module` if it has weights of
            its own, which are then trained with the student.
        student_taps: the maps that it needs of the student: taps, or `CAM`.
        teacher_views: what it needs of the teacher: "logits", a tap, `tap:reduction`, or "cam:class_gram".
    """

    name: str
    weight: float
    loss: Loss
    student_taps: tuple[str, ...]
    teacher_views: tuple[str, ...]

    @property
    def needs_teacher(self) -> bool:
        """Whether it looks at the teacher at all."""
        return bool(self.teacher_views)


def check_settings(settings: Mapping[str, float | Mapping[str, Any]]) -> None:
    """Check names, keys, types and ranges of a recipe's `losses:` before anything runs.

    Raises:
        BadInput: what is wrong, in one line.
    """
    read(settings, LOSSES)


def make_terms(
    settings: Mapping[str, float | Mapping[str, Any]], student: Shapes, teacher: Shapes | None
) -> list[Term]:
    """The terms of a recipe's `losses:`, in its order, such as `{"cross_entropy": 0.1, "kd": {"temperature": 2}}`.

    A bare number is the weight; the default weight is 1. A term of weight 0 is left out, so that the others give bit
    for bit what they give without it, and no teacher is asked for its sake.

    Raises:
        BadInput: what `check_settings` refuses, a teacher that is needed and missing, taps or class activation maps
            that a network does not have, or sizes that cannot be compared.
    """
    wanted = {name: setting for name, setting in read(settings, LOSSES).items() if setting.weight}
    return [_make_term(name, setting, student, teacher) for name, setting in wanted.items()]


def _make_term(name: str, setting: Setting, student: Shapes, teacher: Shapes | None) -> Term:
    entry = LOSSES[name]
    if entry.compares == "nothing":
        return Term(name, setting.weight, entry.make({}, {}, **setting.numbers), (), ())
    if teacher is None:
        alone = ", ".join(other for other, row in LOSSES.items() if row.compares == "nothing")
        raise BadInput(f"loss {name!r} needs a teacher, and there is none; losses without a teacher: {alone}")
    if entry.pairing is None:
        if student.classes != teacher.classes:
            raise BadInput(
                f"loss {name!r} needs equal classes, but the student has {student.classes} and the teacher "
                f"{teacher.classes}; compare feature maps instead: {', '.join(_LOSSES_OF_MAPS)}"
            )
        loss = entry.make({}, {}, **setting.numbers)
        if entry.compares == "logits":
            return Term(name, setting.weight, loss, (), ("logits",))
        for role, shapes in (("student", student), ("teacher", teacher)):
            if shapes.no_cam:
                raise BadInput(f"loss {name!r} does not fit the {role}: {shapes.no_cam}")
        return Term(name, setting.weight, loss, (CAM,), (entry.view(CAM),))
    pairs = _pairs(name, entry, setting, student.maps, teacher.maps)
    loss = entry.make(student.maps, teacher.maps, pairs=pairs, **setting.numbers)
    taps = tuple(dict.fromkeys(own for own, _ in pairs))
    views = tuple(dict.fromkeys(entry.view(other) for _, other in pairs))
    return Term(name, setting.weight, loss, taps, views)


_LOSSES_OF_MAPS = [name for name, entry in LOSSES.items() if entry.pairing]


def _pairs(name: str, entry: Entry, setting: Setting, student: Maps, teacher: Maps) -> Pairs:
    """The pairs of taps that a loss compares, each of them known and, for attention maps, of equal size."""
    assert entry.pairing is not None
    for role, maps in (("student", student), ("teacher", teacher)):
        if not maps:
            raise BadInput(f"loss {name!r} compares feature maps, and the {role} has none")
    pairs = setting.pairs or entry.pairing(student, teacher)
    for own, other in pairs:
        for role, tap, maps in (("student", own, student), ("teacher", other, teacher)):
            if tap not in maps:
                raise unknown(f"tap of the {role} in {name}.pairs", tap, maps)
        if entry.compares == "attention" and student[own][1:] != teacher[other][1:]:
            raise _unequal(name, own, other, student, teacher)
    return pairs


def _unequal(name: str, own: str, other: str, student: Maps, teacher: Maps) -> BadInput:
    """The error for maps of different height or width, with the pairs that would do."""
    fitting = [[s, t] for s in student for t in teacher if student[s][1:] == teacher[t][1:]]
    advice = f"set {name}.pairs from {fitting}" if fitting else "no pair fits: use sp or fitnets"
    sizes = [f"{maps[tap][1]}x{maps[tap][2]}" for maps, tap in ((student, own), (teacher, other))]
    return BadInput(
        f"loss {name!r} needs maps of equal size, but the student's {own!r} is {sizes[0]} and the teacher's {other!r} "
        f"is {sizes[1]}; {advice}"
    )


__all__ = ["LOSSES", "Entry", "Number", "Shapes", "Term", "check_settings", "make_terms", "shapes_of"]
