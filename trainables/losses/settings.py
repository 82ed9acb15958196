"""Reading the `losses:` of a recipe: names, keys, types and ranges."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from spaces.errors import BadInput, unknown
from trainables.contracts import Loss
from trainables.losses.shapes import Maps, Pairs


@dataclass(frozen=True)
class Number:
    """A setting that is a number.

    Args:
        default: of a recipe that does not give it.
        rule: the range in words, as in 'must be a number {rule}'.
        holds: whether a finite number is in the range.
    """

    default: float
    rule: str
    holds: Callable[[float], bool]


WEIGHT = Number(1.0, "of at least 0", lambda value: value >= 0)


@dataclass(frozen=True)
class Entry:
    """A row of the table of losses.

    Args:
        make: gives the loss from the student's maps, the teacher's maps and the settings by name.
        compares: what of the teacher the loss sees: nothing, logits, whole maps, or a reduction of maps (of class
            activation maps: class_gram).
        numbers: its settings besides `weight` and, if it compares maps, `pairs`.
        pairing: which taps are compared unless `pairs` says so.
    """

    make: Callable[..., Loss]
    compares: Literal["nothing", "logits", "map", "attention", "gram", "unit_gram", "class_gram", "pooled"]
    numbers: Mapping[str, Number] = field(default_factory=dict)
    pairing: Callable[[Maps, Maps], Pairs] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The settings that a recipe may give."""
        return ("weight", *self.numbers, *(("pairs",) if self.pairing else ()))

    def view(self, tap: str) -> str:
        """The name of what the loss needs of a tap of the teacher."""
        return tap if self.compares == "map" else f"{tap}:{self.compares}"


@dataclass(frozen=True)
class Setting:
    """What a recipe says of one loss, defaults filled in; `pairs` is None where the default pairing holds."""

    weight: float
    numbers: Mapping[str, float]
    pairs: Pairs | None


def read(settings: object, table: Mapping[str, Entry]) -> dict[str, Setting]:
    """The settings of each loss that a recipe names, in its order.

    Raises:
        BadInput: an unknown loss or key, a value of the wrong type or out of range, or no weight above 0.
    """
    if not isinstance(settings, Mapping):
        raise BadInput(f"losses: must map names of losses to weights or settings, not {settings!r}")
    found = {}
    for name, given in settings.items():
        if name not in table:
            raise unknown("loss", name, table)
        found[name] = _read_one(name, table[name], given)
    if not any(setting.weight for setting in found.values()):
        raise BadInput(f"losses: at least one must have a weight above 0; known: {', '.join(sorted(table))}")
    return found


def _read_one(name: str, entry: Entry, given: object) -> Setting:
    values = given if isinstance(given, Mapping) else {"weight": given}
    for key in values:
        if key not in entry.keys:
            raise unknown(f"setting of loss {name!r}", key, entry.keys)
    numbers = {
        key: _number(f"{name}.{key}", values.get(key, number.default), number)
        for key, number in {"weight": WEIGHT, **entry.numbers}.items()
    }
    pairs = _pairs(name, values["pairs"]) if "pairs" in values else None
    return Setting(numbers.pop("weight"), numbers, pairs)


def _number(name: str, value: object, number: Number) -> float:
    read_value = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(read_value) or not number.holds(read_value):
        raise BadInput(f"losses: {name} must be a number {number.rule}, not {value!r}")
    return read_value


def _pairs(name: str, value: Any) -> Pairs:
    if not _is_list(value) or not value or not all(_is_list(pair) and _are_two_names(pair) for pair in value):
        raise BadInput(f"losses: {name}.pairs must be a list of [student tap, teacher tap], not {value!r}")
    return tuple((own, other) for own, other in value)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _are_two_names(pair: Sequence[object]) -> bool:
    return len(pair) == 2 and all(isinstance(tap, str) for tap in pair)
