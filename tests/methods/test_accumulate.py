"""``.on(accumulate=...)`` of every trained method: the update is that of the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from forgetkit.method import all_methods
from forgetkit.recipe import Trained
from forgetkit.testing import toy
from forgetkit.testing.contract import request, short

TRAINED = {m.card.slug: m for m in all_methods() if issubclass(m, Trained)}
COMPARING = {slug for slug, method in TRAINED.items() if method.compares}


def moved(slug: str, parts: int) -> tuple[Tensor, list[str]]:
    """Return how all weights of a small ViT moved, and the notes."""
    some = toy("vit")
    for module in some.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # parts draw other masks
    before = [p.detach().clone() for p in some.model.parameters()]
    method = short(TRAINED[slug], "vit", optimizer="sgd")  # Adam magnifies rounding
    asked = request(method, some.model).on("cpu", accumulate=parts)
    notes = asked.run(some.loader(), guard=None).notes
    change = [(p - b).flatten() for p, b in zip(some.model.parameters(), before, strict=True)]
    return torch.cat([piece.detach() for piece in change]), notes


@pytest.mark.slow
@pytest.mark.parametrize("slug", sorted(TRAINED.keys() - COMPARING))
def test_parts_of_a_batch_give_the_update_of_the_whole(slug: str) -> None:
    (whole, _), (parts, _) = moved(slug, 1), moved(slug, 3)
    assert float((whole - parts).norm()) <= 1e-4 * float(whole.norm())


@pytest.mark.slow
@pytest.mark.parametrize("slug", sorted(COMPARING))
def test_methods_that_compare_samples_say_so(slug: str) -> None:
    (_, notes), (_, others) = moved(slug, 3), moved(slug, 1)
    assert any("compares samples of a batch" in note for note in notes)
    assert not any("compares samples" in note for note in others)


def test_batch_statistics_of_parts_are_told() -> None:
    notes = {}
    for parts in (1, 2):
        some = toy("cnn")
        asked = request(short(TRAINED["finetune"], "cnn"), some.model)
        notes[parts] = asked.on("cpu", accumulate=parts).run(some.loader(), guard=None).notes
    assert any("normalises by batches" in note for note in notes[2])
    assert not any("batches" in note for note in notes[1])
