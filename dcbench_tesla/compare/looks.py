"""How plots look: the colour and the marker of every method, ticks where something was measured, names at line ends."""

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis


class Look(NamedTuple):
    """The colour and the marker of a method, in all plots. No two methods of this repository share both."""

    colour: str
    marker: str


# a palette that suits colour-blind readers (Okabe and Ito, with a grey in place of the yellow, which is too pale)
_ORANGE, _SKY, _GREEN, _BLUE, _RED, _PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
BLACK, _GREY = "#000000", "#7F7F7F"
PALETTE = (_BLUE, _RED, _GREEN, _PURPLE, _ORANGE, _SKY)
"""The colours of what is no method, in order."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
LOOKS = {
    "mtt": Look(_RED, "o"),
    "tesla": Look(_BLUE, "s"),
    "tesla-exact": Look(_GREEN, "^"),
    "ftd": Look(BLACK, "v"),
    "datm": Look(_SKY, "D"),
    "dc": Look(_SKY, "P"),
    "dsa": Look(_ORANGE, "v"),
    "dm": Look(_PURPLE, "D"),
    "idc": Look(_GREEN, "X"),
    "cafe": Look(BLACK, "<"),
    "dd": Look(_BLUE, "h"),
    "rat-bptt": Look(_RED, "p"),
    "ld": Look(_ORANGE, "o"),
    "kip": Look(_PURPLE, "s"),
    "frepo": Look(_BLUE, ">"),
    "random": Look(_GREY, "o"),
    "herding": Look(_GREY, "D"),
    "k-center": Look(_GREY, "v"),
    "rded": Look(_GREY, "P"),
    "class-means": Look(BLACK, "o"),
    "whole": Look(BLACK, "*"),
}


def look(method: str) -> Look:
    """Return the look of a method; that of a method not in :data:`LOOKS` follows from its name."""
    return LOOKS.get(method) or _OTHERS[zlib.crc32(method.encode()) % len(_OTHERS)]


_OTHERS = [taken for colour in PALETTE for marker in _MARKERS if (taken := Look(colour, marker)) not in LOOKS.values()]


def ticks_at(axes: "Axes", values: Iterable[float], *, log: bool = False) -> None:
    """Put the ticks of the x axis at ``values``, which were measured; on a logarithmic axis with ``log``."""
    found = sorted(set(values))
    if not found:
        return
    if log and found[0] > 0:
        axes.set_xscale("log")
    axes.set_xticks(found, [f"{value:g}" for value in found], minor=False)
    axes.xaxis.minorticks_off()


def plain_log(axis: "Axis") -> None:
    """Give a logarithmic axis ticks at 1, 2 and 5 times powers of ten, written as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


class End(NamedTuple):
    """The last point of a line, and what stands beside it."""

    x: float
    y: float
    name: str
    colour: str


_LINE_HEIGHT = 0.055  # of an axis of three inches, for letters of eight points


def names_at_ends(axes: "Axes", ends: Sequence[End]) -> None:
    """Write the names of lines right of the axes, each at the height of its end; names that would overlap move apart.

    The limits of the y axis must be final.
    """
    ordered = sorted(ends, key=lambda end: end.y)
    heights = apart([_share(axes, end.y) for end in ordered], _LINE_HEIGHT)
    for end, height in zip(ordered, heights, strict=True):
        axes.annotate(
            end.name,
            (end.x, end.y),
            (1.04, height),
            textcoords="axes fraction",
            color=end.colour,
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.6, "shrinkB": 4, "relpos": (0, 0.5)},
        )


def _share(axes: "Axes", y: float) -> float:
    """Return where ``y`` lies between the limits of the axis, from 0 to 1."""
    scale = math.log if axes.get_yscale() == "log" else float
    low, high, here = (scale(value) for value in (*axes.get_ylim(), y))
    return (here - low) / (high - low)


def apart(heights: Sequence[float], least: float) -> list[float]:
    """Return ascending ``heights`` in [0, 1] moved as little as need be, so that neighbours are ``least`` apart.

    Heights that are too close become a block around their mean, which stays within [0, 1] if it fits there; blocks that
    then touch become one.
    """
    blocks: list[list[float]] = []  # of the heights wanted
    for height in heights:
        blocks.append([height])
        while len(blocks) > 1 and _lowest(blocks[-1], least) < _lowest(blocks[-2], least) + least * len(blocks[-2]):
            last = blocks.pop()
            blocks[-1] += last
    return [_lowest(block, least) + i * least for block in blocks for i in range(len(block))]


def _lowest(block: Sequence[float], least: float) -> float:
    """Return the height of the lowest name of a block."""
    length = least * (len(block) - 1)
    return max(0.0, min(sum(block) / len(block) - length / 2, 1.0 - length))
