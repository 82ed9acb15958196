"""The colours of pictures on light and on dark paper; of matplotlib's pictures and of the report's page.

Colours are those of Okabe and Ito (2008, "Color universal design"), told apart by people with any kind of colour
vision, except where they are too faint on white or too dark on black; whatever a colour says, a marker or a dash says
too.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """The colours of one look.

    Args:
        paper: behind everything.
        ink: texts. At least 7:1 against the paper.
        muted: ticks and what stands behind. At least 4.5:1.
        grid: faint lines and idle time; carries nothing that has to be read.
        colours: of what is told apart, at least 3:1 against the paper each.
    """

    paper: str
    ink: str
    muted: str
    grid: str
    colours: tuple[str, ...]


PALETTES = {
    "light": Palette(
        paper="#ffffff",
        ink="#1a1a1a",
        muted="#6b6b6b",
        grid="#e3e3e3",
        colours=("#0072b2", "#d55e00", "#009e73", "#b8578a", "#5c4a00", "#2b2b2b"),
    ),
    "dark": Palette(
        paper="#14171c",
        ink="#f2f2f2",
        muted="#a3a8b0",
        grid="#31363e",
        colours=("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#f2f2f2"),
    ),
}
