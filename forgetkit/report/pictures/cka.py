"""How alike the layers of the models are, on forgotten and on kept samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forgetkit.auditing.evidence import MEANING, Evidence, Missing
from forgetkit.report.drawing import Picture, ink_on, sheet, short, soft_grid, style
from forgetkit.report.record import Record, mapping_in, number_in, sequence_in
from forgetkit.report.sources import details_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYERS = 10
"""More layers than this are thinned evenly."""


def cka_map_figure(tables: Mapping[str, Tensor], layers: Sequence[str]) -> Figure:
    """Draw CKA of every layer before with every layer after, one panel a set.

    Args:
        tables: by title, (layers before, layers after); NaN where it has no value.
        layers: names, input side first.
    """
    with style():
        side = 1.15 + 0.25 * len(layers)
        figure, panels = sheet(len(tables), 1, height=side * len(tables) + 0.9)
        for axes, (title, table) in zip(panels, tables.items(), strict=True):
            drawn = axes.imshow(table.numpy(), vmin=0, vmax=1, aspect="auto")
            axes.set_title(title)
            axes.set_yticks(range(len(layers)), layers)
            axes.set_xticks(range(len(layers)), [])
            axes.set_ylabel("before")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            for row, column in torch.nonzero(~table.isnan()).tolist():
                value = float(table[row, column])
                axes.text(
                    column, row, f"{value:.2f}".replace("0.", "."), ha="center", va="center",
                    fontsize=7, color=ink_on(value),
                )  # fmt: skip
        panels[-1].set_xticks(range(len(layers)), layers, rotation=90)
        panels[-1].set_xlabel("after")
        figure.colorbar(drawn, ax=panels, label="CKA", shrink=0.5)
    return figure


def cka_depth_figure(lines: Mapping[str, Sequence[float]], layers: Sequence[str]) -> Figure:
    """Draw CKA of the same layer of two models over depth.

    Args:
        lines: by words, one value a layer; NaN leaves a gap.
        layers: names, input side first.
    """
    looks = (("#D55E00", "-", "o"), ("#0072B2", "-", "s"), ("#009E73", "--", "^"),
             ("#8C8C8C", ":", "v"))  # fmt: skip
    with style():
        figure, (axes,) = sheet(height=3.3)
        for (words, values), (colour, dash, marker) in zip(lines.items(), looks, strict=False):
            axes.plot(
                range(len(layers)), values, color=colour, linestyle=dash, marker=marker,
                markersize=4, linewidth=1.5, label=words,
            )  # fmt: skip
        axes.set_xticks(range(len(layers)), layers, rotation=90)
        axes.set_ylim(0, 1.03)
        axes.set_ylabel("CKA")
        soft_grid(axes)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=1)
    return figure


def maps(record: Record, evidence: Evidence | None) -> Picture:
    """Draw each layer before against each layer after, on forgotten and on kept samples.

    Raises:
        Missing: neither the record nor the evidence has CKA by layer.
    """
    layers, found, sizes = _tables(record, evidence)
    both = ("forget", "test_retain")
    wanted: list[str] = [split for split in both if split in found] or list(found)
    tables = {split: found[split]["unlearned-original"].T for split in wanted}
    counts = ", ".join(f"{sizes[split]}" for split in wanted if split in sizes)
    return Picture(
        "cka-map", "Layers before against layers after",
        f"Linear CKA; samples a panel: {counts or 'not told'}. 1 is equal up to rotation and "
        "scale. The diagonal compares a layer with itself.",
        "Heat maps of CKA between the layers of the models before and after",
        cka_map_figure(
            {MEANING.get(split, split): table for split, table in tables.items()},
            [short(name, 12) for name in layers],
        ),
        ("set", "before", "after", "cka"),
        [(split, layers[i], layers[j], float(table[i, j]))
         for split, table in tables.items()
         for i in range(len(layers)) for j in range(len(layers))],
    )  # fmt: skip


def depth(record: Record, evidence: Evidence | None) -> Picture:
    """Draw the same layer of two models over depth.

    Raises:
        Missing: neither the record nor the evidence has CKA by layer.
    """
    layers, found, _ = _tables(record, evidence)
    asked = (
        ("unlearned-original", "forget", "before and after, forgotten samples"),
        ("unlearned-original", "test_retain", "before and after, kept samples"),
        ("unlearned-retrained", "forget", "retrained and after, forgotten samples"),
        ("retrained-original", "forget", "retrained and before, forgotten samples"),
    )
    lines = {
        words: found[split][pair].diagonal().tolist()
        for pair, split, words in asked
        if pair in found.get(split, {})
    }
    return Picture(
        "cka-depth", "Likeness of the layers by depth",
        "Linear CKA of the same layer of two models. A line at 1 means that this layer is as it "
        "was: what it held about the forgotten samples is still there.",
        "Lines of CKA over depth: " + "; ".join(
            f"{words}, last layer {values[-1]:.2f}" for words, values in lines.items()
        ),
        cka_depth_figure(lines, [short(name, 12) for name in layers]),
        ("layer", *lines),
        [(name, *(values[i] for values in lines.values())) for i, name in enumerate(layers)],
    )  # fmt: skip


def _tables(
    record: Record, evidence: Evidence | None
) -> tuple[list[str], dict[str, dict[str, Tensor]], Mapping[str, object]]:
    """Return layers, then matrices (layers, layers) by set and pair of models, and set sizes."""
    details = details_of(record, evidence, "cka_layers")
    layers = [str(name) for name in sequence_in(details.get("blocks"))]
    found = {
        split: {
            pair: table
            for pair, rows in mapping_in(pairs).items()
            if (table := _table(rows)).shape == (len(layers), len(layers))
        }
        for split, pairs in mapping_in(details.get("matrices")).items()
    }
    found = {split: pairs for split, pairs in found.items() if "unlearned-original" in pairs}
    if not layers or not found:
        raise Missing("needs CKA by layer, which the record does not hold")
    if len(layers) > LAYERS:
        last = len(layers) - 1
        keep = torch.tensor([round(i * last / (LAYERS - 1)) for i in range(LAYERS)])
        layers = [layers[i] for i in keep.tolist()]
        found = {
            split: {pair: table[keep][:, keep] for pair, table in pairs.items()}
            for split, pairs in found.items()
        }
    return layers, found, mapping_in(details.get("samples"))


def _table(rows: object) -> Tensor:
    """Return a matrix; NaN where the record has no number."""
    table = [
        [float("nan") if (value := number_in(cell)) is None else value for cell in sequence_in(row)]
        for row in sequence_in(rows)
    ]
    even = all(len(row) == len(table) for row in table)
    return torch.tensor(table) if table and even else torch.empty(0)
