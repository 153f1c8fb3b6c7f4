"""From a matplotlib figure to SVG text that lives inside a page.

No pyplot and no display. Text stays text, so that it takes the page's font; colours become the page's
CSS variables, so that one drawing serves light, dark and paper; the same figure gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# What the drawing code uses, and the CSS variable that replaces it. The values are the light theme's;
# blue, vermilion, green and purple stay apart for the common kinds of colour blindness.
INK, MUTED, GRID, PAPER = "#1b1f24", "#5b6470", "#d9dee4", "#fefefe"
REAL, SYNTHETIC, GREEN, PURPLE = "#0068a8", "#bf4b00", "#007f5f", "#98467a"
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "line",
    PAPER: "paper",
    REAL: "real",
    SYNTHETIC: "synthetic",
    GREEN: "green",
    PURPLE: "purple",
}
WIDTH = 5.0  # inches: 480 CSS pixels, which a phone shows at about 70 %

_SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "sparring",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


@dataclass(frozen=True)
class Plot:
    """One drawing: `svg` is a whole `<svg>` element, safe to put in a page as it is."""

    name: str
    title: str
    svg: str
    caption: str


@contextmanager
def drawing() -> Iterator[None]:
    """Our settings on top of matplotlib's own defaults, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def figure(rows: int = 1, height: float = 2.9, **grid: Any) -> tuple[Any, list[Any]]:
    """A figure of the page's width and its axes as a flat list. `height` is in inches."""
    made = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(made)
    return made, list(made.subplots(rows, squeeze=False, **grid).flat)


def brief(label: str, most: int = 26) -> str:
    """A label short enough to leave room for the drawing."""
    return label if len(label) <= most else f"{label[: most - 1]}…"


def end_labels(axes: Any, labels: Sequence[tuple[float, str, str]], gap: float = 0.1) -> None:
    """Write (y in data units, text, colour) right of the axes, moved apart where they would touch.

    `gap` is the least distance in shares of the axes' height. Call it when the limits are final.
    """
    low, high = axes.get_ylim()
    placed = sorted(((y - low) / (high - low), said, colour) for y, said, colour in labels)
    heights = [min(max(place[0], 0.0), 1.0) for place in placed]
    for _ in range(len(heights)):
        for lower, upper in pairwise(range(len(heights))):
            overlap = gap - (heights[upper] - heights[lower])
            if overlap > 0:
                heights[lower] -= overlap / 2
                heights[upper] += overlap / 2
    for height, (_, said, colour) in zip(heights, placed, strict=True):
        axes.text(1.015, height, said, color=colour, va="center", transform=axes.transAxes)


def to_svg(made: Any, name: str, title: str, description: str) -> str:
    """The figure as one `<svg>` element with a title and a description for screen readers.

    `name` prefixes every id, so that several drawings can stand in one page.
    """
    buffer = io.StringIO()
    made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"\s*<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"\s*<style[^>]*>.*?</style>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'\bid="', f'id="{name}-', drawn)
    drawn = re.sub(r"url\(#", f"url(#{name}-", drawn)
    drawn = re.sub(r'href="#', f'href="#{name}-', drawn)
    for colour, variable in VARIABLES.items():
        drawn = drawn.replace(colour, f"var(--{variable})")
    size = re.search(r'viewBox="[^"]*"', drawn)
    opening = (
        f'<svg {size.group() if size else ""} class="plot" role="img" '
        f'aria-labelledby="{name}-title {name}-desc" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )
    return opening + drawn[drawn.index(">") + 1 :].strip()
