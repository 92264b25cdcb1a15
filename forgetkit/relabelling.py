"""Wanted labels: drawn ones, and contradictions among given ones. Pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from forgetkit.errors import BadTarget
from forgetkit.types import Inputs, SampleSet

_AT_ONCE = 1 << 22  # pairs of sample and class whose counts are in memory at a time


def drawn_classes(draws: Tensor, blocked: Tensor) -> Tensor:
    """Return uniformly drawn classes that are not blocked, (samples, draws).

    Args:
        draws: (samples, draws) uniform numbers in [0, 1).
        blocked: (samples, classes) boolean; at least one class of each row is not blocked.
    """
    rows = max(1, _AT_ONCE // blocked.shape[1])
    parts = zip(draws.split(rows), blocked.split(rows), strict=True)
    return torch.cat([_drawn(some, closed) for some, closed in parts])


def _drawn(draws: Tensor, blocked: Tensor) -> Tensor:
    allowed = (~blocked).cumsum(dim=1)
    rank = (draws * allowed[:, -1:]).long()
    return torch.searchsorted(allowed, rank, right=True)


def reject_contradictions(samples: SampleSet, wanted: Tensor) -> None:
    """Refuse equal inputs with different wanted labels: no model can satisfy both.

    Args:
        samples: read once.
        wanted: (samples,) int64 wanted labels.

    Raises:
        BadTarget: the message names the two positions.
    """
    firsts = _first_equals(samples)
    for row in (wanted != wanted[firsts]).nonzero()[:, 0].tolist():
        first = int(firsts[row])
        raise BadTarget(
            "relabel: expected one new label for equal images, found positions "
            f"{int(samples.positions[first])} and {int(samples.positions[row])}, which "
            f"hold the same image, with the new labels {int(wanted[first])} and "
            f"{int(wanted[row])}; leave one of them out or correct its label"
        )


def drawn_labels(samples: SampleSet, draw: Callable[[Tensor], Tensor], blocked: Tensor) -> Tensor:
    """Return one drawn class a sample that is not blocked, (samples,), equal inputs the same one.

    Equal inputs share the draw of the first position of theirs, and what is blocked for one of
    them is blocked for all.

    Args:
        samples: read once.
        draw: from positions (n,) to uniform numbers in [0, 1), (n,).
        blocked: (samples, classes) boolean; at least one class of each row is not blocked.

    Raises:
        BadTarget: no class is left for equal inputs of several classes.
    """
    firsts = _first_equals(samples)
    counts = torch.zeros(blocked.shape, dtype=torch.int64).index_add_(0, firsts, blocked.long())
    closed = (counts > 0)[firsts]
    for row in closed.all(dim=1).nonzero()[:, 0].tolist():
        same = samples.positions[firsts == firsts[row]].tolist()
        raise BadTarget(
            f"instances: expected a class other than those of equal images, found positions {same} "
            f"with the same image, whose labels leave none of {blocked.shape[1]} classes to draw; "
            "leave all but one of them out"
        )
    lowest = samples.positions.scatter_reduce(0, firsts, samples.positions, "amin")[firsts]
    return drawn_classes(draw(lowest)[:, None], closed)[:, 0]


def _first_equals(samples: SampleSet) -> Tensor:
    """Return for each row of a set the first row with the same input, (samples,)."""
    known: dict[bytes, int] = {}
    firsts = torch.empty(len(samples), dtype=torch.int64)
    for batch in samples.batches():
        for row, digest in zip(batch.index.tolist(), _digests(batch.inputs), strict=True):
            firsts[row] = known.setdefault(digest, row)
    return firsts


def _digests(inputs: Inputs) -> list[bytes]:
    """Return a fingerprint of the bytes of each row."""
    tensors = [inputs] if isinstance(inputs, Tensor) else [inputs[name] for name in sorted(inputs)]
    rows = [
        tensor.detach().cpu().contiguous().view(len(tensor), -1).view(torch.uint8).numpy()
        for tensor in tensors
    ]
    return [
        hashlib.blake2b(b"".join(row.tobytes() for row in parts), digest_size=16).digest()
        for parts in zip(*rows, strict=True)
    ]
