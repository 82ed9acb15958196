"""Which choices mattered."""

import pandas as pd

from analysis.errors import BadInput, unknown
from analysis.plots import words
from analysis.plots.theme import Picture, canvas, look, name_axes, plain

_SHOWN = 15
_NAMES = ("choice", "setting")
_NUMBERS = ("importance", "low", "high")
_NOTHING = "R² is not above 0: nothing here can be believed"


def importance(table: pd.DataFrame, *, stage: str | None = None, theme: str = "light") -> Picture:
    """The importance of each choice with its 95 % interval, the greatest on top; at most 15.

    Args:
        table: a row per choice, as `analysis.importance` makes it: `choice` (or `setting`), `importance`, `low` and
            `high`; which stage, metric and R² it is of, in its `attrs`, is written above. Where R² is not above 0, the
            forest foretells nothing: this is said, and all is grey.
        stage: refuse a table of another one.

    Raises:
        BadInput: a column is missing, another stage, an unknown theme, or no choice with an importance.
    """
    style = look(theme)
    name = next((name for name in _NAMES if name in table.columns), None)
    lacking = [*(["choice"] if name is None else []), *(column for column in _NUMBERS if column not in table.columns)]
    if name is None or lacking:
        raise BadInput(f"a table of importances has the columns choice, {', '.join(_NUMBERS)}; lacking: "
                       f"{', '.join(lacking)}")  # fmt: skip
    if stage is not None and stage != table.attrs.get("stage"):
        raise unknown("stage", stage, [one for one in [table.attrs.get("stage")] if one])
    known = table[table["importance"].notna()].sort_values("importance", ascending=False, kind="stable")
    if known.empty:
        raise BadInput("the table of importances has no choice with an importance")
    best = known.head(_SHOWN).iloc[::-1].astype(dict.fromkeys(_NUMBERS, "float64"))
    figure, (axes,) = canvas(style, size=(5.0, 0.26 * len(best) + 1.1))
    places = range(len(best))
    believed = _is_believed(table)
    colour, ink = (style.colours[0], style.ink) if believed else (style.muted, style.muted)
    axes.barh(places, best["importance"], height=0.55, color=style.faded(colour, 0.45), gid="importance")
    axes.hlines(places, best["low"], best["high"], color=ink, linewidth=1.3, gid="interval")
    axes.plot(best["importance"], places, ls="none", marker="o", ms=4.5, color=colour, gid="estimate")
    names = [str(one).removeprefix("arch.").removeprefix("set.") for one in best[name]]
    axes.set_yticks(places, list(map(plain, names)), color=ink)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.axvline(0, color=style.muted, linewidth=0.8)
    title = _title(table, len(best), len(known))
    name_axes(axes, style, "importance (share of the variance; lines: 95 %)", "", title)
    if not believed:
        axes.set_title(f"{plain(title)}\n{_NOTHING}", color=style.ink, fontsize=9, loc="left")
    return figure


def _is_believed(table: pd.DataFrame) -> bool:
    """Whether the forest foretells anything, as far as the table says."""
    return not table.attrs.get("r2", 1.0) <= 0


def _title(table: pd.DataFrame, shown: int, known: int) -> str:
    """What the table says of itself, as far as it does."""
    said = table.attrs
    facts = {
        f"stage {said.get('stage')}": said.get("stage") is not None,
        f"of {said.get('metric')}": said.get("metric") is not None,
        f"R² = {words.signed(said.get('r2', 0.0))}": "r2" in said,
        f"{shown} of {known} choices": known > shown,
    }
    return ", ".join(fact for fact, is_known in facts.items() if is_known)
