"""One number for the samples of a set."""

from __future__ import annotations

import hashlib
import json

from torch import Tensor

from forgetkit.fingerprint import bits_of
from forgetkit.types import SampleSet


def set_digest(samples: SampleSet) -> str:
    """Return one SHA-256 for a set: every input's bits, then positions and labels, in order."""
    whole: dict[str, hashlib._Hash] = {}
    for batch in samples.batches():
        named = {"": batch.inputs} if isinstance(batch.inputs, Tensor) else batch.inputs
        for name, tensor in named.items():
            whole.setdefault(name, hashlib.sha256()).update(bits_of(tensor).numpy().data)
    parts = [(name, found.hexdigest()) for name, found in sorted(whole.items())]
    described = [parts, samples.positions.tolist(), samples.labels.tolist()]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()
