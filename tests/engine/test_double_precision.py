"""Models whose weights are float64 forget like others and stay float64."""

from __future__ import annotations

import pytest
import torch

from forgetkit import forget
from forgetkit.testing import TOYS, toy


@pytest.mark.parametrize("kind", TOYS)
def test_models_in_double_precision_forget(kind: str) -> None:
    some = toy(kind)
    some.model.double()
    result = forget(some.model).classes([3]).using("lau").on("cpu").run(some.loader(), guard=None)
    assert result.after["forget"].accuracy == 0.0
    assert all(p.dtype is torch.float64 for p in some.model.parameters())
