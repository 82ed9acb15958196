"""Students drawn from their choices."""

import re
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import BadInput
from analysis.plots import draw

CELL = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|"


def drawn(figure: Figure, gid: str) -> list[Any]:
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def words(figure: Figure, gid: str) -> list[str]:
    return [text.get_text() for text in drawn(figure, gid) if isinstance(text, Text)]


def test_a_residual_network_has_its_blocks_and_channels() -> None:
    figure = draw({"depth1": 2, "depth2": 1, "depth3": 9, "width": 16})
    captions = words(figure, "stage")
    assert captions == ["2 blocks\n16 channels\nfull size", "1 block\n32 channels\n1/2 size",
                        "9 blocks\n64 channels\n1/4 size"]  # fmt: skip
    assert len(drawn(figure, "shortcut")) == 2 + 1 + 5  # of many blocks the first ones
    assert len(drawn(figure, "convolution")) == 2 * len(drawn(figure, "shortcut"))
    wide = draw({"depth": 16, "widen": 2})
    assert words(wide, "stage")[0] == "2 blocks\n32 channels\nfull size"


def test_a_cell_has_an_arrow_for_every_operation() -> None:
    figure = draw(CELL)
    edges = {artist.get_gid() for artist in figure.findobj() if str(artist.get_gid()).startswith("edge_")}
    assert edges == {"edge_0_1", "edge_1_2", "edge_0_3", "edge_1_3", "edge_2_3"}  # none is no arrow
    times = "\N{MULTIPLICATION SIGN}"
    assert sorted(words(figure, "operation")) == sorted(
        [f"conv 3{times}3", f"average pool 3{times}3", "skip", f"conv 1{times}1", f"conv 3{times}3"]
    )


@pytest.mark.parametrize(
    ("arch", "message"),
    [({"kernel": 3}, "can be drawn; this student's choices are kernel"), ("|skip~0|+|x", "a cell is written"),
     ({}, "choices are none"), ({"depth1": 0, "width": 8}, "can be drawn"),
     ("no json", "is a JSON object of its choices")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_told(arch: Any, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        draw(arch)
