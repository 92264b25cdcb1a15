"""How far each tensor moved from the original and from a retrained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from forgetkit.adapting import unwrap
from forgetkit.auditing.evidence import Evidence, Missing
from forgetkit.auditing.readings import retrained
from forgetkit.metric import Finding, Metric, MetricCard, register_metric

HEAD_ONLY = "only the classification head changed; the features still carry whatever they carried"
UNCHANGED = "no tensor changed"


@register_metric
@dataclass(frozen=True, kw_only=True)
class LayerDistance(Metric):
    """Relative distance of the weights from the original's, by tensor and over the whole model.

        d = |w - w_0| / |w_0|

    Two models trained from other seeds are far apart too: their distance is the control.

    Verdict: ``residual`` when nothing outside the head moved: the features are then the original's.
        None otherwise, as no distance is the right one.

    Source: Golatkar, Achille, Soatto, "Eternal Sunshine of the Spotless Net", CVPR 2020,
        arXiv:1911.04933.

    Differences: relative to the original's norm, so that tensors of unlike size compare.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="layer_distance",
        title="Layer-wise distance",
        group="representation",
        level="quick",
        range="[0, infinity), relative to the original's norm",
        good="above 0 beyond the head; there is no best value",
        bad="Nothing beyond the head moved, so the features hold what they held before.",
        needs="the original model",
        cost="one pass over the weights",
        source="Golatkar et al. 2020, CVPR",
        link="https://arxiv.org/abs/1911.04933",
        about="Which tensors changed and by how much.",
        reads="weights",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Compare tensors by name with the original, and in the details with retrained models."""
        own, before = (evidence.subject(role).model for role in ("unlearned", "original"))
        tensors = distances(own, before)
        moved = [name for name, (absolute, _) in tensors.items() if absolute > 0]
        view = evidence.subject("unlearned").view
        head = set(view.head_parameters()) if view is not None else set()
        only_head = bool(moved) and bool(head) and set(moved) <= head
        controls: dict[str, float] = {}
        details: dict[str, object] = {
            "tensors": list(tensors),
            "absolute": [absolute for absolute, _ in tensors.values()],
            "relative": [relative for _, relative in tensors.values()],
            "moved": moved,
            "head_only": only_head,
        }
        references = [subject.model for subject in retrained(evidence)]
        if references:
            to_retrained = distances(own, references[0])
            details["to_retrained"] = [relative for _, relative in to_retrained.values()]
            details["to_retrained_whole"] = whole_distance(own, references[0])
            controls["retrained"] = whole_distance(references[0], before)
        if len(references) > 1:
            details["between_retrained"] = whole_distance(references[1], references[0])
        if "untrained" in evidence.subjects:
            controls["untrained"] = whole_distance(evidence.subject("untrained").model, before)
        return self.finding(
            whole_distance(own, before),
            samples=len(tensors),
            controls=controls,
            details=details,
            verdict="residual" if only_head or not moved else "no verdict",
            note=HEAD_ONLY if only_head else "samples are tensors" if moved else UNCHANGED,
        )


def _pairs(model: nn.Module, other: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the floating tensors of two models by name, float64 on the CPU.

    Raises:
        Missing: the two have tensors of other names or shapes.
    """
    left, right = unwrap(model).state_dict(), unwrap(other).state_dict()
    if {n: t.shape for n, t in left.items()} != {n: t.shape for n, t in right.items()}:
        raise Missing("needs two models with tensors of the same names and shapes")
    return {
        name: (tensor.cpu().double(), right[name].cpu().double())
        for name, tensor in left.items()
        if tensor.is_floating_point()
    }


@torch.no_grad()
def distances(model: nn.Module, other: nn.Module) -> dict[str, tuple[float, float]]:
    """Return, by name, |w - w0| and |w - w0| / |w0|; the latter is 0 when nothing moved.

    Raises:
        Missing: the two have tensors of other names or shapes.
    """
    found: dict[str, tuple[float, float]] = {}
    for name, (tensor, start) in _pairs(model, other).items():
        moved, size = float((tensor - start).norm()), float(start.norm())
        found[name] = (moved, moved / size if size > 0 else (0.0 if moved == 0 else float("inf")))
    return found


@torch.no_grad()
def whole_distance(model: nn.Module, other: nn.Module) -> float:
    """Return the relative distance of all parameters together; running statistics do not count."""
    names = {name for name, _ in unwrap(other).named_parameters()}
    pairs = [pair for name, pair in _pairs(model, other).items() if name in names]
    moved = sum(float((tensor - start).square().sum()) for tensor, start in pairs)
    size = sum(float(start.square().sum()) for _, start in pairs)
    return float((moved / size) ** 0.5) if size > 0 else 0.0
