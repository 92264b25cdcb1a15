"""One point a method: how much is forgotten against how much is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from forgetkit.report.drawing import PALETTE, sheet, short, soft_grid, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vP"


def tradeoff_figure(
    points: Mapping[str, Sequence[tuple[float, float]]], across: str, upwards: str
) -> Figure:
    """Draw points with whiskers, each name with a colour and a marker of its own.

    Args:
        points: by name, mean and deviation across and upwards.
        across: label of the horizontal axis.
        upwards: label of the vertical axis.
    """
    with style():
        figure, (axes,) = sheet(height=3.2 + 0.16 * len(points) / 3)
        for place, (name, ((x, wide), (y, high))) in enumerate(points.items()):
            axes.errorbar(
                x, y, xerr=wide, yerr=high, label=short(name, 24), linestyle="none",
                color=PALETTE[place % len(PALETTE)],
                marker=MARKERS[place // len(PALETTE) % len(MARKERS)],
                markersize=5.5, elinewidth=0.8, capsize=1.5, clip_on=False,
            )  # fmt: skip
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(across)
        axes.set_ylabel(upwards)
        soft_grid(axes)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels)))
    return figure
