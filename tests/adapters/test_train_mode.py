"""Features and logits of one forward in train mode belong together, whatever else it computes."""

from __future__ import annotations

import pytest
import torch
from head_zoo import CLASSES, WIDTH, Body, picture
from torch import Tensor, nn
from torch.nn import functional

from forgetkit.adapting import adapt


class Auxiliary(nn.Module):
    """A head as a bare call, with calls of the same functions before it in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.between = nn.Linear(WIDTH, WIDTH)
        self.other = nn.Parameter(torch.randn(CLASSES, WIDTH))
        self.weight = nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        early = self.body(x)
        if self.training:
            self.classify(early, self.other)
            self.between(early)
        return self.classify(torch.tanh(self.between(early)), self.weight)

    def classify(self, features: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(features, weight)


class AuxiliaryCosine(Auxiliary):
    """The same with the product of two directions, whose weight is computed at each call."""

    def classify(self, features: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = functional.normalize(features) @ functional.normalize(weight).t()
        return out


@pytest.mark.parametrize("kind", [Auxiliary, AuxiliaryCosine])
def test_a_bare_call_is_known_by_its_weight(kind: type[Auxiliary]) -> None:
    torch.manual_seed(0)
    model = kind()
    view = adapt(model, picture())
    assert view.head_name == "weight"
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            features, logits = view.features_and_logits(picture(3, seed=1))
            assert torch.equal(view.head(features), logits)


def test_it_is_known_after_its_weight_was_replaced() -> None:
    torch.manual_seed(0)
    model = Auxiliary()
    view = adapt(model, picture())
    model.load_state_dict({n: t + 1 for n, t in model.state_dict().items()}, assign=True)
    with torch.no_grad():
        features, logits = view.features_and_logits(picture(3, seed=1))
        assert torch.equal(view.head(features), logits)
