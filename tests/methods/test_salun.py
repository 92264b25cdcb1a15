"""SalUn: what the mask lets move, its size and invariance, and the two passes of an epoch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.draws import uniform
from forgetkit.result import Result
from forgetkit.saliency import saliency_masks
from forgetkit.testing import toy
from forgetkit.testing.toys import Toy
from forgetkit.testing.trace import changed, weights


def run(some: Toy, batch_size: int = 32, **settings: object) -> Result:
    chosen = {"epochs": 1, "lr": 0.03, "batch_size": 32, **settings}
    request = forget(some.model).classes([3]).using("salun", **chosen).on("cpu").seed(0)
    return request.run(some.loader(batch_size), guard=None)


def forget_gradients(some: Toy, order: Tensor | None = None, size: int = 60) -> dict[str, Tensor]:
    """Return the gradient summed over the forget samples, batch by batch."""
    images, labels = some.train.tensors
    rows = (labels == 3).nonzero()[:, 0]
    rows = rows if order is None else rows[order]
    model = some.model.eval()
    model.zero_grad()
    for part in rows.split(size):
        nn.functional.cross_entropy(model(images[part]), labels[part], reduction="sum").backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("kind", ["cnn", "vit"])
@pytest.mark.parametrize("mask", [0.1, 0.5])
def test_masked_out_entries_keep_their_bits_with_momentum_and_decay(kind: str, mask: float) -> None:
    some, other = toy(kind), toy(kind)
    masks = saliency_masks(forget_gradients(other), mask)
    before = {n: p.detach().clone() for n, p in some.model.named_parameters()}
    run(some, mask=mask, weight_decay=0.1, epochs=2)
    total = moved = 0
    for name, parameter in some.model.named_parameters():
        same = parameter == before[name]
        assert bool(same[~masks[name]].all())
        moved += int((~same).sum())
        total += parameter.numel()
    # An exact zero gradient can leave a weight without decay effect only when it is zero itself.
    assert 0.95 * mask * total < moved <= math.ceil(mask * total)


def test_the_mask_has_its_exact_size() -> None:
    gradients = forget_gradients(toy("vit"))
    total = sum(g.numel() for g in gradients.values())
    for share in (0.01, 0.5, 0.9):
        chosen = sum(int(m.sum()) for m in saliency_masks(gradients, share).values())
        assert chosen == math.ceil(share * total)


def test_a_full_mask_is_no_mask() -> None:
    one, other = toy("cnn"), toy("cnn")
    run(one, mask=1.0)
    run(other, mask=None)
    assert changed(weights(one.model), weights(other.model)) == []


def test_an_empty_mask_lets_nothing_move() -> None:
    some = toy("vit")
    before = weights(some.model)
    run(some, mask=0.0, weight_decay=0.1)
    assert changed(before, weights(some.model)) == []


def test_the_mask_does_not_depend_on_order_or_batch_size() -> None:
    some = toy("cnn")
    one = saliency_masks(forget_gradients(some), 0.5)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    other = saliency_masks(forget_gradients(some, order, 7), 0.5)
    differing = sum(int((mask != other[name]).sum()) for name, mask in one.items())
    assert differing <= 2  # rounding can swap two entries of nearly equal size at the border


def test_the_mask_of_a_run_does_not_depend_on_the_loaders_batches() -> None:
    moved = []
    for size in (32, 7):
        some = toy("cnn")
        before = {n: p.detach().clone() for n, p in some.model.named_parameters()}
        run(some, batch_size=size, mask=0.5)
        moved.append({n: p.detach() != before[n] for n, p in some.model.named_parameters()})
    differing = sum(int((mask != moved[1][name]).sum()) for name, mask in moved[0].items())
    assert differing <= 2


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(inputs)
        return logits


def test_an_epoch_is_a_forget_step_then_a_retain_step() -> None:
    torch.manual_seed(0)
    model = Head()
    inputs, labels = torch.randn(8, 2), torch.tensor([0, 1, 2, 3, 3, 1, 3, 0])
    start = [p.detach().clone().requires_grad_() for p in (model.fc.weight, model.fc.bias)]
    own = (labels == 3).nonzero()[:, 0]
    # Class 3 is forgotten: the wrong label is uniform over 0, 1, 2 and belongs to the sample.
    wrong = (uniform(0, "random_label", own) * 3).long()
    entropy = nn.functional.cross_entropy
    loss = entropy(inputs[own] @ start[0].T + start[1], labels[own])
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, start)]).abs()
    keep = torch.zeros(12, dtype=torch.bool)
    keep[flat.argsort(descending=True, stable=True)[:6]] = True
    masks = [keep[:8].reshape(4, 2), keep[8:]]
    values, momenta = [p.detach() for p in start], [torch.zeros(4, 2), torch.zeros(4)]
    for _ in range(2):
        for rows, targets in ((own, wrong), (labels != 3, labels[labels != 3])):
            leaves = [v.clone().requires_grad_() for v in values]
            loss = entropy(inputs[rows] @ leaves[0].T + leaves[1], targets)
            for i, gradient in enumerate(torch.autograd.grad(loss, leaves)):
                momenta[i] = 0.9 * momenta[i] + gradient + 0.01 * values[i]
                values[i] = values[i] - 0.1 * momenta[i] * masks[i]
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=8)
    settings = {"epochs": 2, "lr": 0.1, "weight_decay": 0.01, "batch_size": 8}
    request = forget(model).classes([3]).using("salun", **settings).on("cpu").seed(0)
    result = request.run(loader, guard=None)
    assert torch.allclose(model.fc.weight, values[0], atol=1e-6)
    assert torch.allclose(model.fc.bias, values[1], atol=1e-6)
    assert result.history[-1]["steps"] == 4


def test_clipping_is_of_the_weights_that_may_move() -> None:
    some = toy("cnn")
    before = weights(some.model)
    asked = {"mask": 0.02, "max_norm": 0.1, "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    request = forget(some.model).instances(range(180, 240))
    request = request.using("neggrad", epochs=1, batch_size=60, cap=False, **asked)
    request.on("cpu").run(some.loader(), guard=None)
    after = weights(some.model)
    moved = sum(float((after[name] - before[name]).double().square().sum()) for name in before)
    assert moved**0.5 == pytest.approx(0.1, rel=1e-3)
