from __future__ import annotations

import pytest
import torch
import toy_evidence as toys
from torch import nn

from forgetkit.auditing.stages import pooled, stage_features
from forgetkit.metrics.cka_layers import CKALayers


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_blocks_are_read_and_nothing_is_left(kind: str) -> None:
    model = toys.original(kind).model
    before = toys.state(model)
    samples = toys.sets()["forget"]
    found = stage_features(model, samples, torch.device("cpu"))
    assert len(found) >= 2
    assert all(each.shape[0] == len(samples) for each in found.values())
    head = next(reversed(found.values()))
    assert torch.allclose(head, toys.original(kind).outputs["forget"].logits, atol=1e-5)
    assert toys.state(model) == before
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_after_a_failure() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("broken")
            found: torch.Tensor = self.fc(x.flatten(1)[:, :4])
            return found

    model = Breaks()
    with pytest.raises(RuntimeError, match="broken"):
        stage_features(model, toys.sets()["forget"], torch.device("cpu"))
    assert not model.fc._forward_hooks


def test_pooled() -> None:
    assert pooled(torch.ones(2, 3, 4, 5)).shape == (2, 3)  # type: ignore[union-attr]  # a map
    assert pooled((torch.ones(2, 7, 3), None)).shape == (2, 3)  # type: ignore[union-attr]  # tokens
    maps = torch.randn(2, 8, 4, 4)
    assert torch.allclose(pooled(maps.permute(0, 2, 3, 1)), pooled(maps))  # type: ignore[arg-type]  # channels last
    assert pooled(torch.ones(2)) is None
    assert pooled("text") is None


def test_matrices_of_every_pair() -> None:
    found = CKALayers(samples=30).measure(toys.evidence())
    assert found.samples == 30
    matrices = found.details["matrices"]
    assert isinstance(matrices, dict)
    table = matrices["forget"]
    assert set(table) == {"unlearned-original", "unlearned-retrained", "retrained-original"}
    assert table["unlearned-original"][0][0] == pytest.approx(1.0, abs=1e-9)
    size = len(found.details["blocks"])  # type: ignore[arg-type]  # a list
    assert all(len(rows) == size and len(rows[0]) == size for rows in table.values())
    assert found.value == min(table["unlearned-original"][d][d] for d in range(size))


def test_the_same_model_is_alike_at_every_depth() -> None:
    found = CKALayers().measure(toys.evidence(toys.original()))
    assert found.value == pytest.approx(1.0, abs=1e-9)
