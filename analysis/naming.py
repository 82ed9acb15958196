"""Short names of students and of how they were trained, and numbers of others, for tables and pictures."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


def student_name(arch: str | Mapping[str, Any]) -> str:
    """An architecture in few characters: `kernel=3 width=8`; choices that are numbered together: `2-1-3 width 8`."""
    values = json.loads(arch) if isinstance(arch, str) else dict(arch)
    rows: dict[str, list[str]] = {}
    for name in values:
        numbered = re.fullmatch(r"([a-z]+?)_?\d+(_\d+)*", name)
        rows.setdefault(numbered[1] if numbered else name, []).append(name)
    if not any(len(names) > 2 for names in rows.values()):
        return " ".join(f"{name}={value}" for name, value in values.items())
    parts: list[str] = []
    for stem, names in rows.items():
        chosen = [str(values[name]) for name in names]
        if len(names) > 2:
            parts += [] if stem == "depth" and not parts else [stem]  # depths that come first speak for themselves
            are_bits = len(names) > 6 and set(chosen) <= {"0", "1"}  # a matrix of edges, and no depths
            parts.append(("" if are_bits else "-").join(chosen))
        else:
            parts += [f"{name} {value}" for name, value in zip(names, chosen, strict=True)]
    return " ".join(parts)


def setting_names(settings: Iterable[str]) -> dict[str, str]:
    """Hyperparameters by their last part (`set.losses.kd.temperature`: `temperature`), or by their last two where that
    alone would not tell one from another."""
    parts = {name: name.removeprefix("set.").split(".") for name in settings}
    ends = Counter(part[-1] for part in parts.values())
    return {name: part[-1] if ends[part[-1]] == 1 else ".".join(part[-2:]) for name, part in parts.items()}


def short_number(value: float) -> str:
    """Four digits, or with commas from a thousand on; `-` where it is not known."""
    return "-" if math.isnan(value) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def known_number(value: object) -> float | None:
    """A finite number, or None for anything else that a run may say."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]
