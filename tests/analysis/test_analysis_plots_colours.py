"""Colours and words of pictures: seen on their paper, told apart by everyone, and nothing but text."""

import io
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

import analysis
from analysis.plots import PLOTS
from analysis.plots.theme import MARKERS, THEMES, contrast


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_colours_can_be_seen_on_the_paper(theme: Any) -> None:
    assert contrast(theme.ink, theme.paper) >= 7
    assert contrast(theme.muted, theme.paper) >= 4.5
    for colour in (*theme.colours, *theme.ordered(6)):
        assert contrast(colour, theme.paper) >= 3
    for colour in theme.colours:
        assert contrast(theme.on(colour), colour) >= 4.5
        assert contrast(theme.on(theme.faded(colour, 0.35)), theme.faded(colour, 0.35)) >= 4.5


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


# What a colour looks like without one of the three kinds of cones, in linear RGB
# (Machado et al. 2009, IEEE Trans. Vis. Comput. Graph. 15, table 1, severity 1.0).
VISION = {
    "all": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def seen(colour: str, vision: str) -> np.ndarray:
    """The colour in CIELAB, as someone with this vision sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.clip(
        np.array(VISION[vision]) @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1
    )
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in to_xyz @ linear / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_colours_are_told_apart_by_everyone(theme: Any, vision: str) -> None:
    for one, other in combinations(theme.colours, 2):
        assert np.linalg.norm(seen(one, vision) - seen(other, vision)) > 14, (one, other)  # 2 to 3 are just noticeable
    assert len(MARKERS) >= len(theme.colours)


def test_what_a_run_says_is_no_formula_and_a_teachers_odd_figure_is_left_out(new_run: Callable[..., Any]) -> None:
    run = new_run(name="$\\frac$ \x1b[31m")
    text = run.file.read_text().replace('"valid_accuracy": 0.97', '"valid_accuracy": [1]')
    run.file.write_text(text)
    run.stage("$\\foo$", 1)
    for number in range(12):
        arch = {"kind": f"$\\bar{number}$"}
        run.distil("$\\foo$", number, [0.5 + 0.01 * number, 0.6 + 0.01 * number], arch=arch, hash=f"{number:016x}",
                   last={"teacher_similarity": 0.1 + 0.02 * number})  # fmt: skip
    results = analysis.load(run.path)
    for name in ("cost", "learning", "similarity", "timeline", "progress", "epoch_agreement"):
        PLOTS[name].draw(results).savefig(io.BytesIO())
    table = pd.DataFrame({"choice": ["arch.$x^$"], "importance": [0.5], "low": [0.4], "high": [0.6]})
    PLOTS["importance"].draw(table).savefig(io.BytesIO())
