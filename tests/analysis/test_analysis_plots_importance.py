"""The picture of what mattered, and names beside points."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from analysis import BadInput
from analysis.plots import PLOTS, THEMES, words
from analysis.plots.theme import canvas

IMPORTANCE = pd.DataFrame(
    {"choice": ["arch.width", "arch.depth1", "set.lr"], "importance": [0.3, 0.9, -0.02],
     "low": [0.2, 0.7, -0.05], "high": [0.4, 1.2, 0.01]}
)  # fmt: skip


def test_importance_has_the_table_greatest_on_top() -> None:
    figure = PLOTS["importance"].draw(IMPORTANCE)
    ordered = IMPORTANCE.sort_values("importance")
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == ordered["importance"].tolist()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["lr", "width", "depth1"]
    (spread,) = (part for part in figure.findobj(LineCollection) if part.get_gid() == "interval")
    spans = [segment[:, 0].tolist() for segment in spread.get_segments()]
    assert spans == ordered[["low", "high"]].to_numpy().tolist()
    with pytest.raises(BadInput, match="lacking: low, high"):
        PLOTS["importance"].draw(IMPORTANCE[["choice", "importance"]])


def test_what_a_table_of_importances_says_of_itself_stands_above_it() -> None:
    table = IMPORTANCE.rename(columns={"choice": "setting"})
    table.attrs = {"stage": "short", "metric": "valid_accuracy", "r2": 0.625}
    figure = PLOTS["importance"].draw(table, stage="short")
    assert figure.axes[0].get_title(loc="left") == "stage short, of valid_accuracy, R² = 0.62"


@pytest.mark.parametrize(("r2", "believed"), [(-0.76, False), (0.0, False), (0.4, True)])
def test_importance_of_a_forest_that_foretells_nothing_is_grey_and_says_so(r2: float, believed: bool) -> None:
    table = IMPORTANCE.copy()
    table.attrs = {"stage": "short", "metric": "score", "r2": r2}
    figure = PLOTS["importance"].draw(table)
    axes = figure.axes[0]
    assert ("R² is not above 0: nothing here can be believed" in axes.get_title(loc="left")) is not believed
    grey = [red == green == blue for red, green, blue in (bar.get_facecolor()[:3] for bar in axes.patches)]
    assert grey == [not believed] * 3
    figure.draw_without_rendering()
    assert axes._left_title.get_window_extent().x1 <= figure.bbox.x1  # type: ignore[attr-defined]


def test_of_two_points_nearer_than_their_names_one_is_named() -> None:
    style = THEMES["light"]
    figure, (axes,) = canvas(style)
    figure.draw_without_rendering()
    near, apart = [(0.5, 0.5, "the best one"), (0.51, 0.505, "the second")], (0.2, 0.8, "far away")
    words.name_points(axes, style, [*near, apart], np.empty((0, 2)))
    assert [text.get_text() for text in axes.texts] == ["the best one", "far away"]
