"""The contract's own check of what is left of a class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch

from forgetkit.method import Card, Method
from forgetkit.testing import CHECKS

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


def leaving(share: float, slug: str) -> type[Method]:
    """Return a method that leaves a share of D_f as it is."""

    @dataclass(frozen=True, kw_only=True)
    class Half(Method):
        """Lowers the bias of the class until most of D_f is predicted as another."""

        card: ClassVar[Card] = Card(
            slug=slug,
            title="Half",
            goals=("classes",),
            needs=("forget",),
            edits="head",
            steps="none",
            cost="1 F over D_f",
            source="none",
            link="https://example.org",
            about="Forgets a class in part.",
        )

        def edit(self, run: Run) -> None:
            logits = run.predictions(run.forget)
            (gone,) = run.forget_classes
            others = logits.clone()
            others[:, gone] = -torch.inf
            lead = logits[:, gone] - others.amax(dim=1)
            bias = next(value for name, value in run.parameters.items() if name.endswith("bias"))
            bias[gone] -= lead.quantile(1 - share)

    return Half


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_a_third_of_a_class_is_too_much_to_leave(kind: str) -> None:
    CHECKS["forgets"](leaving(0.02, "nearly"), kind)
    with pytest.raises(AssertionError, match=r"half: forget .* 1.00 became 0\.\d+, more than 0.15"):
        CHECKS["forgets"](leaving(0.33, "half"), kind)


def test_a_card_may_name_more() -> None:
    half = leaving(0.33, "half")
    half.card = replace(half.card, leaves=0.5)
    CHECKS["forgets"](half, "vit")


def test_keeping_too_little_is_refused() -> None:
    nearly = leaving(0.0, "nearly")
    CHECKS["forgets"](nearly, "vit")
    nearly.card = replace(nearly.card, keeps=-0.05)
    with pytest.raises(AssertionError, match="nearly: retain accuracy"):
        CHECKS["forgets"](nearly, "vit")
