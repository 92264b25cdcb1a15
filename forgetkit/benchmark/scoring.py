"""Accuracies, distances and passes over the data, for the benchmark's tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from forgetkit.adapting import adapt
from forgetkit.auditing.intervals import percentile_interval, resampled_means
from forgetkit.benchmark.datasets import Pair, TensorImages
from forgetkit.losses import kl_divergence, unlearning_score
from forgetkit.view import ModelView


@torch.no_grad()
def logits_on(model: nn.Module, images: Tensor, device: str = "cpu") -> Tensor:
    """Return logits (samples, classes) on the CPU, float32."""
    model.eval()
    rows = []
    for some in images.split(512):
        output = model(some.to(device))
        rows.append(getattr(output, "logits", output).float().cpu())
    return torch.cat(rows)


def js_divergence(logits: Tensor, reference: Tensor) -> float:
    """Return the mean Jensen-Shannon divergence of two sets of predictions, in nats."""
    first, second = logits.double().softmax(dim=1), reference.double().softmax(dim=1)
    middle = ((first + second) / 2).log()
    return float((kl_divergence(first, middle) + kl_divergence(second, middle)) / 2)


def us_gap(right: Tensor, reference: Tensor, own: Tensor) -> dict[str, float]:
    """Return the unlearning score less that of the retrained model, and its 95 % interval.

    The interval is a bootstrap over the test images; both models are scored on the same draws, so
    that what they get right or wrong together does not widen it.

    Args:
        right: (samples,) 1.0 where the model is right on the test set.
        reference: the same of the retrained model.
        own: (samples,) true for images of the forgotten class.
    """

    def score(kept: Tensor, gone: Tensor) -> Tensor:
        pairs = zip(kept.tolist(), gone.tolist(), strict=True)
        return torch.tensor([unlearning_score(a, b) for a, b in pairs], dtype=torch.float64)

    def drawn(hits: Tensor) -> Tensor:
        return score(resampled_means(hits[~own], seed=0), resampled_means(hits[own], seed=1))

    def whole(hits: Tensor) -> float:
        return float(score(hits[~own].mean()[None], hits[own].mean()[None]))

    low, high = percentile_interval(drawn(right) - drawn(reference)) or (torch.nan, torch.nan)
    return {"US_gap": whole(right) - whole(reference), "US_gap_low": low, "US_gap_high": high}


def scores(
    model: nn.Module, data: Pair, label: int, device: str = "cpu", reference: Tensor | None = None
) -> dict[str, float]:
    """Return D_r, D_f, D_tr, D_tf in percent, US, and what lies between it and a reference.

    Args:
        model: returns logits or an object that has them.
        data: both halves are measured.
        label: the forgotten class.
        device: where the model is.
        reference: logits of the retrained model on ``data.test``; without them JS is NaN
            and ``US_gap`` missing.
    """
    parts: dict[str, float] = {}
    for names, source in ((("D_r", "D_f"), data.train), (("D_tr", "D_tf"), data.test)):
        logits = logits_on(model, source.images, device)
        own = source.targets == label
        right = (logits.argmax(dim=1) == source.targets).double()
        for name, rows in zip(names, (~own, own), strict=True):
            parts[name] = 100.0 * float(right[rows].mean())
            if source is data.test:
                far = torch.nan
                if reference is not None:
                    far = js_divergence(logits[rows], reference[rows])
                parts[f"JS_{name[2:]}"] = far
        if source is data.test and reference is not None:
            hits = (reference.argmax(dim=1) == source.targets).double()
            parts |= us_gap(right, hits, own)
    parts["US"] = unlearning_score(parts["D_tr"] / 100, parts["D_tf"] / 100)
    return parts


class CountedReads(Dataset[tuple[Tensor, int]]):
    """A data set that counts how often samples of the forgotten class and others are read."""

    def __init__(self, data: TensorImages, label: int) -> None:
        self.data = data
        self.targets = data.targets
        self.classes = data.classes
        self.sizes = (int((data.targets == label).sum()), int((data.targets != label).sum()))
        self.reads = [0, 0]
        self._label = label

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index]
        self.reads[int(label != self._label)] += 1
        return image, label

    def passes(self) -> dict[str, float]:
        """Return the passes over D_f and D_r so far."""
        counted = zip(("reads_f", "reads_r"), self.reads, self.sizes, strict=True)
        return {name: reads / size if size else 0.0 for name, reads, size in counted}


class FeatureData:
    """A data set as the head of one original model sees it, for edits of the head alone."""

    def __init__(self, model: nn.Module, data: Pair) -> None:
        view = adapt(model.eval(), data.train.images[:2])
        with torch.no_grad():
            self.pair = Pair(_features(view, data.train), _features(view, data.test))


def _features(view: ModelView, data: TensorImages) -> TensorImages:
    rows = [view.features(images) for images in data.images.split(512)]
    return TensorImages(torch.cat(rows), data.targets, tuple(data.classes))


class Head(nn.Module):
    """The head of a split model as a module of its own."""

    def __init__(self, view: ModelView) -> None:
        super().__init__()
        self._view = view

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (batch, classes)."""
        return self._view.head(features)
