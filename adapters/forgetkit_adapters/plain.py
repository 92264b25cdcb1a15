"""Hints for modules of no known ecosystem, and for those wrapped by PEFT."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from forgetkit.types import Inputs

_NAMES = ("fc", "classifier", "head", "heads", "score", "linear")


@dataclass(frozen=True)
class PlainAdapter:
    """Knows common attribute names only."""

    name: str = "plain"

    def matches(self, model: nn.Module) -> bool:
        """Accept every module."""
        return isinstance(model, nn.Module)

    def class_count(self, model: nn.Module) -> int | None:
        """Read ``num_classes`` or ``config.num_labels`` where the module has them."""
        for holder, name in (
            (model, "num_classes"),
            (getattr(model, "config", None), "num_labels"),
        ):
            count = getattr(holder, name, None)
            if isinstance(count, int) and not isinstance(count, bool):
                return count
        return None

    def head_names(self, model: nn.Module) -> list[str]:
        """Return the usual names that exist in the module."""
        return [name for name in _NAMES if isinstance(getattr(model, name, None), nn.Module)]

    def example(self, model: nn.Module, batch: int) -> Inputs | tuple[Tensor, ...] | None:
        """Return nothing: a plain module does not say what it takes."""
        del model, batch
        return None


ADAPTER = PlainAdapter()
