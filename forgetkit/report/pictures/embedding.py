"""Features before and after in one plane, with the forgotten samples marked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from forgetkit.auditing.evidence import MEANING, Evidence, Missing, Role
from forgetkit.auditing.readings import name_of, single_label
from forgetkit.report.drawing import PALETTE, Picture, sheet, short, style
from forgetkit.report.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 1500
"""In both panels together."""
COMPONENTS = 50
GONE = PALETTE[1]
KEPT = tuple(colour for colour in PALETTE if colour != GONE)
NEIGHBOURS = 20
FEWEST = 10


def embedding_figure(
    panels: Sequence[tuple[str, np.ndarray]],
    labels: Sequence[int],
    forgotten: Sequence[bool],
    names: Sequence[str],
) -> Figure:
    """Draw panels with common axes; colours are classes, the forget samples are ringed crosses.

    Args:
        panels: title and (points, 2) positions.
        labels: (points,) classes, positions in ``names``.
        forgotten: (points,) whether a point is a forget sample.
        names: of the classes.
    """
    gone, classes = np.asarray(forgotten), np.asarray(labels)
    with style():
        figure, drawn = sheet(len(panels), 1, height=0.75 + 3.1 * len(panels))
        both = np.concatenate([places for _, places in panels])
        low, high = both.min(axis=0), both.max(axis=0)
        margin = 0.04 * (high - low)
        for axes, (title, places) in zip(drawn, panels, strict=True):
            for label in np.unique(classes[~gone]):
                kept = ~gone & (classes == label)
                axes.scatter(
                    places[kept, 0], places[kept, 1], s=7, linewidths=0, alpha=0.75,
                    color=KEPT[label % len(KEPT)], label=short(names[label], 12),
                    rasterized=True,
                )  # fmt: skip
            axes.scatter(
                places[gone, 0], places[gone, 1], s=16, marker="x", linewidths=0.9,
                color=GONE, label="forgotten", rasterized=True,
            )  # fmt: skip
            axes.set_title(title)
            axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
            axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(True)
        handles, words = drawn[0].get_legend_handles_labels()
        if len(handles) > 9:  # colours repeat: a legend would say nothing
            handles, words = handles[-1:], words[-1:]
        figure.legend(handles, words, loc="outside lower center", ncols=4, markerscale=1.6)
    return figure


def picture(record: Record, evidence: Evidence | None) -> Picture:
    """Lay out the features of both models on common axes and draw them.

    Raises:
        Missing: a model, its features or the forget samples are not at hand, or too few.
    """
    del record
    if evidence is None:
        raise Missing("needs the collected features, which are at hand only during an audit")
    other = "test_retain" if evidence.has("unlearned", "test_retain") else "retain"
    roles: tuple[Role, ...] = ("original", "unlearned")
    features = {
        role: torch.cat([evidence.features(role, "forget"), evidence.features(role, other)])
        for role in roles
    }
    if features["original"].shape != features["unlearned"].shape:
        raise Missing("needs features of one width before and after, and these differ")
    parts = [single_label(evidence.of("unlearned", split)) for split in ("forget", other)]
    labels = torch.cat([part.labels for part in parts])
    gone = torch.arange(len(labels)) < len(parts[0])
    rows = _balanced(labels, gone, POINTS // 2, evidence.seed)
    if len(rows) < FEWEST or not bool(gone[rows].any()):
        raise Missing(f"needs at least {FEWEST} samples with features, and {len(rows)} were given")
    both = torch.cat([features[role][rows] for role in roles]).double().numpy()
    if not np.isfinite(both).all():
        raise Missing("needs finite features, and some are NaN or infinity")
    layout = UMAP if find_spec("umap") is not None else TSNE
    places = layout.planar(both, evidence.seed)
    labels, gone = labels[rows], gone[rows]
    purity = {role: _purity(features[role][rows], labels, gone) for role in roles}
    before, after = purity["original"], purity["unlearned"]
    half = len(rows)
    told = "" if before is None or after is None else (
        f" Of the {_neighbours(half)} nearest neighbours of a forgotten sample in feature space, "
        f"{before:.0%} were of its own class before and {after:.0%} are after."
    )  # fmt: skip
    panels = (("before", places[:half]), ("after", places[half:]))
    return Picture(
        "embedding", "Features before and after",
        f"{layout.name} of {half} samples, {layout.fitted}, so that both panels share their axes; "
        f"crosses: {MEANING['forget']}; dots: {MEANING[other]}. Distances between groups "
        f"mean nothing.{told} An unseen class forms a group too: compare with a retrained model.",
        f"Two scatter plots of features.{told}",
        embedding_figure(
            panels, labels.tolist(), gone.tolist(),
            [name_of(evidence, label) for label in range(evidence.num_classes)],
        ),
        ("panel", "label", "forgotten", "x", "y"),
        [(title, int(labels[row]), int(gone[row]), float(spots[row, 0]), float(spots[row, 1]))
         for title, spots in panels for row in range(half)],
    )  # fmt: skip


def tsne(features: np.ndarray, seed: int) -> np.ndarray:
    """Return t-SNE positions (samples, 2) of features (samples, width), all fitted at once."""
    from sklearn.manifold import TSNE

    count, width = features.shape
    fitted = TSNE(
        perplexity=min(30.0, (count - 1) / 3), init="pca" if width > 1 else "random",
        random_state=seed, n_jobs=1,
    ).fit_transform(features)  # fmt: skip
    return np.asarray(fitted, dtype=np.float64)


def umap(features: np.ndarray, seed: int) -> np.ndarray:
    """Return UMAP positions (samples, 2) of features (samples, width).

    The first half is fitted; the second is placed into that map, each sample by its neighbours.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # of its parametric form, not used here
        from umap import UMAP

    half = len(features) // 2
    fitted = UMAP(
        n_neighbors=min(15, half - 1), min_dist=0.1, random_state=seed, n_jobs=1
    ).fit(features[:half])  # fmt: skip
    placed = [fitted.embedding_, fitted.transform(features[half:])]
    return np.concatenate(placed).astype(np.float64)


@dataclass(frozen=True)
class Layout:
    """One way to bring features into a plane.

    Args:
        name: in captions.
        fitted: to what it is fitted, in captions.
        place: maps features (samples, width) and a seed to positions (samples, 2).
    """

    name: str
    fitted: str
    place: Callable[[np.ndarray, int], np.ndarray]

    def planar(self, features: np.ndarray, seed: int) -> np.ndarray:
        """Return positions (samples, 2) by way of PCA to 50.

        Args:
            features: (samples, width), those of the original model before those of the other.
            seed: of every random choice.
        """
        from sklearn.decomposition import PCA

        count, width = features.shape
        if width > COMPONENTS and count > COMPONENTS:
            features = PCA(COMPONENTS, random_state=seed).fit_transform(features)
        if not features.std(axis=0).any():  # every model answers the same: one point
            return np.zeros((count, 2))
        return self.place(features, seed)


TSNE = Layout("t-SNE", "fitted to both models at once", tsne)
UMAP = Layout("UMAP", "fitted to the original model, into which the other was placed", umap)


def _balanced(labels: Tensor, gone: Tensor, budget: int, seed: int) -> Tensor:
    """Return at most ``budget`` rows: a third forgotten ones, the rest even over the classes."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    mine, others = shuffled[gone[shuffled]], shuffled[~gone[shuffled]]
    mine = mine[: max(budget // 3, budget - len(others))]
    turn = torch.zeros(len(others), dtype=torch.long)
    for label in labels[others].unique():
        own = labels[others] == label
        turn[own] = torch.arange(int(own.sum()))
    others = others[turn.argsort(stable=True)][: budget - len(mine)]
    return torch.cat([mine, others]).sort().values


def _neighbours(samples: int) -> int:
    """Return how many neighbours are looked at; a sample is none of its own."""
    return min(NEIGHBOURS, samples - 1)


def _purity(features: Tensor, labels: Tensor, gone: Tensor) -> float | None:
    """Return the share of own class among the neighbours of forgotten samples."""
    count = _neighbours(len(labels))
    if count < 1:
        return None
    distances = torch.cdist(features[gone].double(), features.double())
    distances[torch.arange(int(gone.sum())), torch.nonzero(gone)[:, 0]] = torch.inf
    nearest = distances.topk(count, largest=False).indices
    return float((labels[nearest] == labels[gone][:, None]).double().mean())
