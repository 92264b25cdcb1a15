"""How every picture of a report looks: colours, sizes, and SVG that follows light and dark."""

from __future__ import annotations

import base64
import csv
import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from forgetkit.auditing.evidence import Missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger("forgetkit")

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#8C8C8C")
"""Okabe and Ito's colours, readable without colour vision; black is left to the text."""
COLOURS = {
    "original": "#0072B2", "unlearned": "#D55E00", "retrained": "#009E73", "untrained": "#CC79A7",
}  # fmt: skip
DASHES = {"original": "-", "unlearned": "-", "retrained": "--", "untrained": ":"}
HATCHES = {"original": "", "unlearned": "", "retrained": "////", "untrained": "...."}
NAMES = {
    "original": "before", "unlearned": "after", "retrained": "retrained", "untrained": "untrained",
}  # fmt: skip
ORDER = ("original", "unlearned", "retrained", "untrained")
INK, PAPER, GRID = "#2b2b2c", "#fdfdfc", "#9a9a9b"
"""Ink and paper become the page's own colours where a picture stands inside a page."""
WIDTH = 4.6
"""Inches: at 72 units an inch this is about the width of a phone, so text keeps its size there."""
LARGEST_SVG = 600_000
"""Bytes above which a picture goes into the page as pixels."""

Cell = str | float | int


@dataclass(frozen=True)
class Picture:
    """One picture with its words and the numbers behind it.

    Args:
        slug: file name.
        title: what it shows, in a few words.
        caption: how to read it, and its traps.
        alt: what it shows, for readers who do not see it.
        figure: the drawing.
        columns: names of the numbers.
        rows: the numbers that were drawn.
    """

    slug: str
    title: str
    caption: str
    alt: str
    figure: Figure
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]

    @cached_property
    def svg(self) -> str:
        """The drawing as an SVG document, drawn once."""
        return svg_of(self.figure)

    @property
    def numbers(self) -> str:
        """What was drawn, as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()

    def write(self, folder: Path) -> None:
        """Write ``slug.svg`` and ``slug.csv``."""
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in (("svg", self.svg), ("csv", self.numbers)):
            with (folder / f"{self.slug}.{suffix}").open("w", newline="", encoding="utf-8") as file:
                file.write(text)


@contextmanager
def style() -> Iterator[None]:
    """Draw in the report's style inside the block; settings of the caller come back after it."""
    import matplotlib as mpl

    with mpl.rc_context(
        {
            "font.family": "sans-serif", "font.size": 9, "axes.titlesize": 9.5,
            "axes.labelsize": 9, "legend.fontsize": 8.5, "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5, "text.color": INK, "axes.labelcolor": INK,
            "axes.edgecolor": GRID, "xtick.color": INK, "ytick.color": INK,
            "axes.facecolor": "none", "figure.facecolor": PAPER, "savefig.facecolor": PAPER,
            "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
            "hatch.color": PAPER, "hatch.linewidth": 0.7, "svg.fonttype": "none",
            "svg.hashsalt": "forgetkit", "image.cmap": "cividis", "savefig.dpi": 150,
        }
    ):  # fmt: skip
        yield


def sheet(
    rows: int = 1, columns: int = 1, *, height: float = 3.0, width: float = WIDTH,
    polar: bool = False, same_y: bool = False,
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """Return an empty figure and its axes, row by row; no window and no global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", h_pad=0.09)
    made = figure.subplots(
        rows, columns, squeeze=False, sharey=same_y, subplot_kw={"polar": True} if polar else {}
    )
    return figure, [axes for row in made for axes in row]


def legend_above(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """Put the legend of these axes above the figure, out of the way of the data."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(columns, len(labels)))


def soft_grid(axes: Axes, axis: str = "both") -> None:
    """Draw thin grid lines below the data."""
    axes.grid(visible=True, axis=axis, color=GRID, alpha=0.35, linewidth=0.6)  # type: ignore[arg-type]  # a literal
    axes.set_axisbelow(True)


def ink_on(share: float) -> str:
    """Return a text colour that can be read on a share of the map from dark (0) to light (1)."""
    return "#ffffff" if share < 0.55 else "#000000"


def short(name: str, length: int = 16) -> str:
    """Return a name that fits on an axis."""
    return plain(name if len(name) <= length else name[: length - 1] + "…")


def plain(text: str) -> str:
    """Return a text that is drawn letter by letter: between two dollars matplotlib reads TeX."""
    return text.replace("$", r"\$")


def attempt(make: Callable[[], Picture]) -> Picture | str:
    """Make a picture and draw it, or return in one sentence why that cannot be done.

    A picture that breaks must not cost the page: the numbers behind it took long to measure.
    """
    try:
        made = make()
        made.svg  # noqa: B018  # drawn here, since much fails no earlier
    except Missing as reason:
        return str(reason)
    except Exception as error:  # matplotlib and what it draws raise of many kinds
        logger.debug("a picture failed", exc_info=True)
        text = (str(error).strip().splitlines() or ["no message"])[0]
        return f"an error stopped it: {type(error).__name__}: {text}"
    return made


def svg_of(figure: Figure) -> str:
    """Return a figure as an SVG document, the same bytes for the same figure."""
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"<metadata>.*?</metadata>\s*", "", buffer.getvalue(), flags=re.DOTALL)


def inline(picture: Picture) -> str:
    """Return markup for a page: SVG in the page's own colours, or pixels when that is too long."""
    markup = picture.svg
    if len(markup) > LARGEST_SVG:
        return _pixels(picture)
    markup = markup[markup.index("<svg") :]
    # Two pictures in one page must not share names of clip paths, markers and hatches.
    # Names that nothing refers to are dropped: equal images in one picture would share theirs.
    used = set(re.findall(r'(?:url\(|xlink:href=")#([^)"]+)', markup))
    markup = re.sub(
        r'\bid="([^"]*)"', lambda m: f'id="{picture.slug}-{m[1]}"' if m[1] in used else "", markup
    )
    markup = markup.replace("url(#", f"url(#{picture.slug}-")
    markup = markup.replace('xlink:href="#', f'xlink:href="#{picture.slug}-')
    markup = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", markup, count=1)
    markup = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", markup, count=1)
    markup = markup.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    label = picture.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return markup.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _pixels(picture: Picture) -> str:
    buffer = io.BytesIO()
    with style():
        picture.figure.savefig(buffer, format="png", dpi=170)
    code = base64.b64encode(buffer.getvalue()).decode("ascii")
    label = picture.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<img alt="{label}" src="data:image/png;base64,{code}">'
