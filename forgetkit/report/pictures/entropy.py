"""How unsure each model is about forgotten and about unseen samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forgetkit.auditing.evidence import MEANING, Evidence, Missing
from forgetkit.report.drawing import (
    COLOURS,
    DASHES,
    NAMES,
    ORDER,
    Picture,
    legend_above,
    sheet,
    soft_grid,
    style,
)
from forgetkit.report.record import Record, mapping_in, number_in, numbers_in
from forgetkit.report.sources import details_of, is_masked, lines_by_role, samples_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def histogram_figure(
    densities: Mapping[str, Mapping[str, Tensor]], edges: Tensor, label: str
) -> Figure:
    """Draw step histograms with common bins, one panel a set.

    Args:
        densities: by title of the panel, then by role, (bins,).
        edges: (bins + 1,).
        label: of the horizontal axis.
    """
    with style():
        figure, panels = sheet(len(densities), 1, height=0.6 + 1.75 * len(densities))
        for axes, (title, by_role) in zip(panels, densities.items(), strict=True):
            for role in ORDER:
                if role in by_role:
                    axes.stairs(
                        by_role[role].numpy(), edges.numpy(), label=NAMES[role],
                        color=COLOURS[role], linestyle=DASHES[role], linewidth=1.6,
                        fill=False,
                    )  # fmt: skip
            axes.set_title(title)
            axes.set_ylabel("density")
            axes.set_xlim(float(edges[0]), float(edges[-1]))
            soft_grid(axes)
        panels[-1].set_xlabel(label)
        legend_above(figure, panels[0])
    return figure


def picture(record: Record, evidence: Evidence | None) -> Picture:
    """Draw entropy histograms of the forget samples and of unseen samples.

    Raises:
        Missing: neither the record nor the evidence has entropies.
    """
    details = details_of(record, evidence, "entropy")
    found = {
        split: lines_by_role(table)
        for split, table in mapping_in(details.get("histograms")).items()
    }
    found = {split: by_role for split, by_role in found.items() if "unlearned" in by_role}
    span = numbers_in(details.get("histogram_range"))
    sizes = {len(heights) for by_role in found.values() for heights in by_role.values()}
    if len(span) != 2 or len(sizes) != 1:
        raise Missing("needs histograms of the entropy, which the record does not hold")
    bins = sizes.pop()
    edges = torch.linspace(span[0], span[1], bins + 1).double()
    widths = edges.diff()
    densities = {
        split: {role: torch.tensor(h).double() / widths for role, h in by_role.items()}
        for split, by_role in found.items()
    }
    rows = [
        (split, role, float(edges[i]), float(edges[i + 1]), float(density[i]))
        for split, by_role in densities.items()
        for role, density in by_role.items()
        for i in range(bins)
    ]
    means = mapping_in(mapping_in(details.get("sets")).get("forget"))
    told = ", ".join(
        f"{NAMES[role]} {mean:.2f}"
        for role in ORDER
        if (mean := number_in(means.get(role))) is not None
    )
    masked = " Over the kept classes, because the head is masked."
    return Picture(
        "entropy", "How unsure the models are",
        f"Entropy of the predictions, the same {bins} bins for all; the right end is a uniform "
        f"guess. Mean on the forgotten samples in nats: {told}.{samples_of(record, 'entropy')}"
        + (masked if is_masked(record, evidence) else ""),
        f"Histograms of entropy; mean on the forgotten samples: {told}",
        histogram_figure(
            {MEANING.get(split, split): by_role for split, by_role in densities.items()},
            edges, "entropy, nats",
        ),
        ("set", "model", "from", "to", "density"), rows,
    )  # fmt: skip
