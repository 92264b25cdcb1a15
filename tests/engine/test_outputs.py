from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from forgetkit import CannotSplitModel, forget
from forgetkit.testing import toy


class TwoOutputs(nn.Module):
    """A model that returns two tensors of one shape."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.other = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"main": self.inner(images), "aux": self.other(images.flatten(1))}


@pytest.mark.parametrize("name", ["inner.fc", None])
@pytest.mark.parametrize("method", ["lau", "neggrad"])
def test_output_names_the_logits(method: str, name: str | None) -> None:
    some = toy("cnn")
    model = TwoOutputs(some.model)
    request = forget(model).classes([3]).using(method, lr=0.01).head(name, output="main")
    result = request.on("cpu").run(some.loader(), guard=None)
    assert result.after["forget"].accuracy == 0.0


def test_two_candidates_are_refused_without_it() -> None:
    some = toy("cnn")
    before = {name: t.clone() for name, t in some.model.state_dict().items()}
    with pytest.raises(CannotSplitModel, match="output="):
        forget(TwoOutputs(some.model)).classes([3]).using("neggrad").on("cpu").run(some.loader())
    assert all(torch.equal(before[n], t) for n, t in some.model.state_dict().items())


def test_lau_says_that_it_forgets_classes(caplog: pytest.LogCaptureFixture) -> None:
    some = toy("cnn")
    forget(some.model).instances([1, 2]).using("lau", epochs=1).on("cpu").run(
        some.loader(), guard=None
    )
    assert "lau forgets classes" in caplog.text
