"""Write a method: forget samples get uniform outputs, retained samples keep their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch.nn import functional

from forgetkit import Card, Trained, forget, register
from forgetkit.fields import bounded
from forgetkit.testing.toys import toy

if TYPE_CHECKING:
    from forgetkit.engine.run import Run
    from forgetkit.method import Pair
    from forgetkit.types import Terms


@register
@dataclass(frozen=True, kw_only=True)
class Uniform(Trained):
    """L = CE(z, uniform) over D_f + w CE(z, y) over D_r, w being ``retain_weight``."""

    card: ClassVar[Card] = Card(
        slug="uniform",
        title="Uniform outputs",
        goals=("classes", "instances"),
        needs=("forget", "retain"),
        edits="all",
        steps="both",
        cost="epochs x FB over D_f and D_r",
        source="this example",
        link="https://example.org",
        about="Teaches the network to shrug.",
    )

    retain_weight: float = bounded(1.0, 0.0, 100.0, "weight of the retain term; w")

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return both terms, weighted."""
        if batch.forget is None or batch.retain is None:
            raise TypeError("uniform steps over both sets")
        shrug = -run.logits(batch.forget).log_softmax(dim=1).mean()
        keep = functional.cross_entropy(run.logits(batch.retain), batch.retain.labels)
        return {"forget": shrug, "retain": self.retain_weight * keep}


def main() -> None:
    problem = toy("cnn")  # a toy network for 8 x 8 images of four classes
    request = forget(problem.model).classes([3]).using("uniform", retain_weight=2.0, lr=0.01)
    print(request.seed(0).run(problem.loader()))


if __name__ == "__main__":
    main()
