"""What is demanded of one split: equality, liveness, rows and no trace."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from forgetkit.adapting import adapt
from forgetkit.dryrun.examples import Example, call
from forgetkit.dryrun.outputs import OutputChoice
from forgetkit.dryrun.split import Split
from forgetkit.dryrun.sweep.building import recalibrate
from forgetkit.dryrun.verification import difference
from forgetkit.errors import CannotSplitModel

_TOLERANCE = 1e-4


@dataclass
class Outcome:
    """What happened with one model.

    Args:
        name: of the model.
        status: ``exact``, ``weak`` (exact, but the logits hardly vary), ``close`` (within 1e-5),
            ``shapes`` (meta device), ``refused``, ``wrong``, ``failed`` (an error of another kind)
            or ``not-run`` (the model itself cannot be built or run here).
        head: names of the head.
        shape: shape of one sample's features.
        tail: what follows the head.
        detail: the code of a refusal, or what went wrong.
        note: how the model was built.
        seconds: time spent on adapting alone.
    """

    name: str
    status: str
    head: str = ""
    shape: list[int] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)
    detail: str = ""
    note: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, object]:
        """Return a record for JSON."""
        return asdict(self)


def check(
    name: str,
    model: nn.Module,
    example: Example,
    fresh: Example,
    *,
    note: str = "",
    output: OutputChoice = None,
) -> Outcome:
    """Split ``model`` and check the result on ``fresh``, a batch of two or more samples."""
    model.eval()
    before = trace(model)
    started = time.perf_counter()
    try:
        split = adapt(model, example, output=output)
    except CannotSplitModel as reason:
        return Outcome(name, "refused", detail=f"{reason.code}: {reason}", note=note)
    except Exception as error:
        return Outcome(name, "failed", detail=f"{type(error).__name__}: {error}"[:300], note=note)
    seconds = time.perf_counter() - started
    outcome = Outcome(
        name,
        "shapes",
        head=split.head_name,
        shape=list(split.feature_shape),
        tail=split.tail,
        note=note,
        seconds=round(seconds, 3),
    )
    if any(tensor.is_meta for tensor in model.parameters()):
        return outcome
    try:
        with torch.no_grad():
            pair = split.features_and_logits(fresh)
        if trace(model) != before and _leaves_trace(model, example, output):
            outcome.status, outcome.detail = "wrong", "adapting left a trace on the model"
        else:
            outcome.status, outcome.detail = judge(model, split, fresh, pair)
    except Exception as error:
        outcome.status, outcome.detail = "failed", f"{type(error).__name__}: {error}"[:300]
    return outcome


def _leaves_trace(model: nn.Module, example: Example, output: OutputChoice) -> bool:
    """Adapt again: what a model sets up in its own first forward does not change any more."""
    before = trace(model)
    adapt(model, example, output=output)
    return trace(model) != before


def judge(
    model: nn.Module, split: Split, fresh: Example, pair: tuple[Tensor, Tensor]
) -> tuple[str, str]:
    """Return (status, detail) of one split from the (features, logits) of fresh inputs."""
    features, logits = pair
    with torch.no_grad():
        if not _varies(logits):
            recalibrate(model, lambda: call(model, fresh))
            features, logits = split.features_and_logits(fresh)
        error, scale = difference(split.head(features), logits)
        if error > 1e-5 * scale:
            return "wrong", f"error {error:.2g} at scale {scale:.2g}"
        batches = {
            "shuffle": (features.flip(0), logits.flip(0)),
            "subset": (features[1:], logits[1:]),
            "doubling": (torch.cat([features, features]), torch.cat([logits, logits])),
        }
        for what, (rows, expected) in batches.items():
            gap, _ = difference(split.head(rows), expected)
            if gap > _TOLERANCE * scale:
                return "wrong", f"{what}: error {gap:.2g} at scale {scale:.2g}"
        if not _varies(logits):
            return "weak", "the logits hardly vary over inputs"
    fault = _row_fault(split, features)
    if fault:
        return "wrong", fault
    return ("exact", "") if error == 0.0 else ("close", f"error {error:.2g}")


def trace(model: nn.Module) -> tuple[object, ...]:
    """Return what adapting must leave alone: hooks, flags, versions, names, random state."""
    modules = [
        (
            name,
            module.training,
            len(module._forward_hooks),  # noqa: SLF001 - there is no public count
            len(module._forward_pre_hooks),  # noqa: SLF001
            len(vars(module)),
        )
        for name, module in model.named_modules()
    ]
    tensors = [
        (name, id(tensor), tensor._version, tensor.requires_grad)  # noqa: SLF001
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    ]
    return tuple(modules), tuple(tensors), torch.get_rng_state().sum().item()


def _varies(logits: Tensor) -> bool:
    spread = float((logits[0] - logits[1]).abs().max())
    return spread > 1e-6 * float(logits.abs().max())


def _row_fault(split: Split, features: Tensor) -> str:
    """Perturb the rows of one class; its logit must move, and alone where classes are separable."""
    label = split.num_classes - 1
    rows = split.rows(label)
    if split.separable and not rows:
        return "separable, but no row was found"
    saved = [row.parameter.detach().clone() for row in rows]
    with torch.no_grad():
        before = split.head(features)
        try:
            for row in rows:
                index = torch.tensor(row.index, device=row.parameter.device)
                picked = row.parameter.index_select(row.axis, index)
                row.parameter.index_copy_(row.axis, index, picked + 0.5 + picked.abs())
            moved = ((split.head(features) - before).abs() > 0).any(0)
        finally:
            for row, value in zip(rows, saved, strict=True):
                row.parameter.copy_(value)
    others = [index for index, hit in enumerate(moved.tolist()) if hit and index != label]
    if rows and others and split.separable:
        return f"rows({label}) moved the logits {others}"
    if rows and not bool(moved[label]) and split.linear:
        return f"rows({label}) did not move logit {label}"
    return ""


def pictures(count: int, channels: int, size: tuple[int, int], device: str = "cpu") -> Tensor:
    """Return random pictures, the same at each call."""
    if device == "meta":
        return torch.empty(count, channels, *size, device="meta")
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, channels, *size, generator=generator)


def tally(outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    """Count the outcomes by status."""
    counts: dict[str, int] = {}
    for outcome in outcomes.values():
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    return dict(sorted(counts.items()))
