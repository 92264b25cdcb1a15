"""What the forgotten samples are taken for, and the confusion of the test samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forgetkit.auditing.cells import Cells
from forgetkit.auditing.evidence import Evidence, Missing
from forgetkit.listed import shortened
from forgetkit.report.drawing import NAMES, ORDER, Picture, ink_on, sheet, short, style
from forgetkit.report.record import Record, mapping_in, numbers_in, sequence_in
from forgetkit.report.sources import (
    class_name,
    details_of,
    forgotten_classes,
    lines_by_role,
    samples_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

MOST, SHOWN = 30, 15
"""More classes than ``MOST``, and only the ``SHOWN`` that changed most are drawn."""
WRITTEN = 10
"""Up to so many classes a matrix has its shares written into it."""


def inheritance_figure(shares: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Draw which classes inherit the forgotten samples, one row a model.

    Args:
        shares: by role, (classes,) shares of predictions.
        names: of the classes.
    """
    roles = [role for role in ORDER if role in shares]
    table = torch.stack([shares[role] for role in roles], dim=1)  # classes down: fits a phone
    with style():
        figure, (axes,) = sheet(height=0.9 + 0.26 * len(names))
        _heat(axes, table)
        axes.set_xticks(range(len(roles)), [NAMES[role] for role in roles])
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(names)), [short(name) for name in names])
        axes.set_ylabel("predicted class")
    return figure


def confusion_figure(matrices: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Draw row-normalised confusion matrices, one below the other, in one order.

    Args:
        matrices: by role, (classes, classes) with true classes as rows.
        names: of the classes, the forgotten ones first.
    """
    roles = [role for role in ORDER if role in matrices]
    side = min(3.6, 1.2 + 0.22 * len(names))
    with style():
        figure, panels = sheet(len(roles), 1, height=(side + 0.25) * len(roles) + 0.6)
        for axes, role in zip(panels, roles, strict=True):
            drawn = _heat(axes, matrices[role], labelled=len(names) <= WRITTEN)
            axes.set_title(NAMES[role])
            axes.set_yticks(range(len(names)), [short(name, 12) for name in names])
            axes.set_xticks(range(len(names)), [])
            axes.set_ylabel("true class")
        panels[-1].set_xticks(range(len(names)), [short(name, 12) for name in names], rotation=90)
        panels[-1].set_xlabel("predicted class")
        if len(names) > WRITTEN:
            figure.colorbar(drawn, ax=panels, label="share of the row", shrink=0.5)
    return figure


def _heat(axes: Axes, table: Tensor, *, labelled: bool = True) -> AxesImage:
    drawn = axes.imshow(table.numpy(), vmin=0, vmax=1, aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for row, column in torch.nonzero(table >= 0.005).tolist() if labelled else ():
        share = float(table[row, column])
        text = f"{share:.0%}".rstrip("%")
        axes.text(column, row, text, ha="center", va="center", color=ink_on(share), fontsize=7.5)
    return drawn


def inheritance(record: Record, evidence: Evidence | None) -> Picture:
    """Draw what the forgotten samples are taken for.

    Raises:
        Missing: neither the record nor the evidence has predictions of the forget samples.
    """
    details = details_of(record, evidence, "confusion")
    shares = lines_by_role(details.get("predicted"))
    classes = [c for c in sequence_in(details.get("classes")) if isinstance(c, int)]
    shares = {role: each for role, each in shares.items() if len(each) == len(classes)}
    if "unlearned" not in shares:
        raise Missing("needs predictions of the forget samples, which the record does not hold")
    table = {role: torch.tensor(each, dtype=torch.float64) for role, each in shares.items()}
    names = [class_name(record, evidence, label) for label in classes]
    shown = list(range(len(classes)))
    cut = ""
    if len(classes) > MOST:
        most = torch.stack(list(table.values())).max(dim=0).values
        shown = most.topk(SHOWN).indices.sort().values.tolist()
        cut = f" The {SHOWN} most frequent of {len(classes)} classes."
    top = int(table["unlearned"].argmax())
    return Picture(
        "forgotten-samples", "What the forgotten samples are taken for",
        f"Figures in per cent.{samples_of(record, 'confusion')}{cut} When one class inherits all "
        "of them while the retrained model spreads them, the forgetting itself can be seen.",
        f"Shares of predicted classes; after: {shares['unlearned'][top]:.0%} {names[top]}",
        inheritance_figure(
            {role: each[shown] for role, each in table.items()}, [names[i] for i in shown]
        ),
        ("class", "name", *shares),
        [(label, names[i], *(each[i] for each in shares.values()))
         for i, label in enumerate(classes)],
    )  # fmt: skip


def matrices(record: Record, evidence: Evidence | None) -> Picture:
    """Draw the confusion of the test samples, the forgotten classes first.

    Raises:
        Missing: neither the record nor the evidence has predictions of test samples.
    """
    details = details_of(record, evidence, "confusion")
    whole = _cells_by_role(details)
    if "unlearned" not in whole:
        raise Missing("needs predictions of test samples, which were not given")
    after = whole["unlearned"]
    gone = [c for c in forgotten_classes(record, evidence) if c < after.size]
    order = list(dict.fromkeys([*gone, *range(after.size)]))
    note = ""
    if after.size > MOST:
        most = set(after.change(whole.get("original")).topk(SHOWN).indices.tolist())
        order = [c for c in order if c in most]
        note = (
            f" The {SHOWN} classes that changed most of {after.size}; what was taken for another "
            "class is not shown."
        )
    names = [class_name(record, evidence, label) for label in order]
    listed = [
        (role, true, predicted, share)
        for role, cells in whole.items()
        for true, predicted, share in zip(
            cells.true.tolist(), cells.predicted.tolist(), cells.share.tolist(), strict=True
        )
    ]
    return Picture(
        "confusion", "Confusion of the test samples",
        "Each row shows in per cent what the test samples of a class are taken for; forgotten "
        "classes come first." + _absent(after, order, names) + note,
        f"Confusion matrices of {len(order)} classes: {', '.join(NAMES[r] for r in whole)}",
        confusion_figure(
            {role: cells.matrix(order) for role, cells in whole.items()}, names
        ),
        ("model", "true", "predicted", "share"), listed,
    )  # fmt: skip


def _absent(cells: Cells, order: Sequence[int], names: Sequence[str]) -> str:
    """Return the sentence about rows that are empty because no test sample is of their class."""
    seen = set(cells.true.tolist())
    empty = [name for label, name in zip(order, names, strict=True) if label not in seen]
    return f" No test sample is of {shortened(empty)}: empty rows." if empty else ""


def _cells_by_role(details: Mapping[str, object]) -> dict[str, Cells]:
    """Return the matrices of a finding, written whole or cell by cell."""
    written, listed = mapping_in(details.get("matrix")), mapping_in(details.get("cells"))
    found: dict[str, Cells] = {}
    for role in ORDER:
        table = _square(written.get(role))
        cells = _listed(mapping_in(listed.get(role))) if table is None else Cells.of_matrix(table)
        if cells is not None and role != "untrained":
            found[role] = cells
    return found


def _listed(record: Mapping[str, object]) -> Cells | None:
    """Return a matrix that was written cell by cell, or ``None`` when this is none."""
    size = record.get("size")
    true, predicted, share = (
        numbers_in(record.get(name)) for name in ("true", "predicted", "share")
    )
    whole = len(true) == len(predicted) == len(share)
    if not isinstance(size, int) or not whole or not true:
        return None
    if min(*true, *predicted) < 0 or max(*true, *predicted) >= size:
        return None
    places = torch.tensor([true, predicted], dtype=torch.int64)
    return Cells(size, places[0], places[1], torch.tensor(share, dtype=torch.float64))


def _square(rows: object) -> Tensor | None:
    """Return a square matrix, or ``None`` when these rows are none."""
    table = [numbers_in(row) for row in sequence_in(rows)]
    if not table or any(len(row) != len(table) for row in table):
        return None
    return torch.tensor(table, dtype=torch.float64)
