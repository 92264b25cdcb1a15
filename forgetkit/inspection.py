"""What ``forgetkit inspect MODEL`` prints: where a model's head and features are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from torch import nn

from forgetkit.adapting import adapt
from forgetkit.dryrun.examples import Example
from forgetkit.dryrun.hints import find_adapter, head_name_hints, unwrap
from forgetkit.dryrun.outputs import OutputChoice

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Inspection:
    """What was found out about a model.

    Args:
        model: its class.
        ecosystem: timm, transformers, torchvision or plain.
        parameters: how many numbers it holds.
        head_names: dotted paths of the final affine operations.
        head_parameters: how many numbers they hold.
        num_classes: width of the logits.
        feature_dim: width of what the head reads.
        feature_shape: shape of one sample's features.
        feature_bytes: size of one sample's features in the type they have.
        tail: what follows the head.
        separable: whether each class has its own rows.
        linear: whether logits are an affine function of the features.
        tied: head parameters that other parts of the model use.
        hinted: what the ecosystem calls the classifier.
        checked: whether the split was compared with the model on other inputs.
        seconds: time for finding and checking.
    """

    model: str
    ecosystem: str
    parameters: int
    head_names: tuple[str, ...]
    head_parameters: int
    num_classes: int
    feature_dim: int
    feature_shape: tuple[int, ...]
    feature_bytes: int
    tail: tuple[str, ...]
    separable: bool
    linear: bool
    tied: tuple[str, ...]
    hinted: tuple[str, ...]
    checked: bool
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """Return the record as plain values for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    def __rich__(self) -> Table:
        """Return one small table for a terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(  # brackets in names are no markup
            title=Text(f"{self.model} ({self.ecosystem})", style="bold"), show_header=False
        )
        table.add_column(style="dim")
        table.add_column()
        for label, text in self.lines():
            table.add_row(label, Text(text))
        return table

    def lines(self) -> list[tuple[str, str]]:
        """Return (label, text) pairs in reading order."""
        share = 100 * self.head_parameters / max(1, self.parameters)
        return [
            ("head", " + ".join(self.head_names)),
            ("classes", str(self.num_classes)),
            ("features", f"{_shape(self.feature_shape)} ({self.feature_bytes:,} bytes a sample)"),
            ("after the head", ", ".join(self.tail) or "nothing"),
            (
                "classes have own rows",
                "yes" if self.separable else "no: every row moves every logit",
            ),
            ("linear in the features", "yes" if self.linear else "no"),
            ("tied", ", ".join(self.tied) or "no"),
            (
                "parameters",
                f"{self.parameters:,}, of them {self.head_parameters:,} head ({share:.2g} %)",
            ),
            ("the model's own hint", ", ".join(self.hinted) or "none"),
            ("checked on other inputs", "yes" if self.checked else "no"),
            ("seconds", f"{self.seconds:.2f}"),
        ]


def inspect_model(
    model: nn.Module,
    example: Example,
    *,
    head: str | Sequence[str] | None = None,
    num_classes: int | None = None,
    output: OutputChoice = None,
) -> Inspection:
    """Find head and features of a model and describe them.

    Args:
        model: any classifier.
        example: one batch as the model gets it.
        head: dotted path(s) of the head, to overrule detection.
        num_classes: the number of classes that the output must have.
        output: key, index or function that leads to the logits.

    Raises:
        CannotSplitModel: when the model cannot be split; the message says what to do.
    """
    started = time.perf_counter()
    view = adapt(model, example, head=head, num_classes=num_classes, output=output)
    seconds = time.perf_counter() - started
    bare = unwrap(model)
    numbers = 1
    for size in view.feature_shape:
        numbers *= size
    return Inspection(
        model=type(bare).__name__,
        ecosystem=find_adapter(bare).name,
        parameters=sum(parameter.numel() for parameter in bare.parameters()),
        head_names=tuple(view.head_names),
        head_parameters=sum(item.numel() for item in view.head_parameters().values()),
        num_classes=view.num_classes,
        feature_dim=view.feature_dim,
        feature_shape=view.feature_shape,
        feature_bytes=numbers * view.program.dtype.itemsize,
        tail=tuple(view.tail),
        separable=view.separable,
        linear=view.linear,
        tied=tuple(view.tied),
        hinted=tuple(head_name_hints(bare)),
        checked=not any(parameter.is_meta for parameter in bare.parameters()),
        seconds=round(seconds, 3),
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape) or "one number"
