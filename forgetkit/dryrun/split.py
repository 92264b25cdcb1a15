"""The result of a dry run: a model seen as features and head."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn

from forgetkit.dryrun import rows as row_finding
from forgetkit.dryrun.capture import Catcher, Source
from forgetkit.dryrun.compaction import Compaction
from forgetkit.dryrun.examples import Example, call
from forgetkit.dryrun.outputs import Pick
from forgetkit.dryrun.packing import Packing
from forgetkit.dryrun.program import Program
from forgetkit.dryrun.quiet import eager
from forgetkit.dryrun.records import (
    affine_record,
    channel_axis,
    head_weights,
    tied_names,
    trainable,
)
from forgetkit.dryrun.refusals import refusal
from forgetkit.dryrun.traits import probe
from forgetkit.errors import BadTarget
from forgetkit.view import Affine, RowRef


@dataclass
class Split:
    """A model seen as ``head(features(x))``, which equals its logits in eval mode.

    It refers to the model's modules and copies nothing; train or eval mode, and whether gradients
    are taken, are the caller's.

    Args:
        model: the model without compile and data-parallel wrappers; names refer to it.
        pick: takes the logits out of the model's output.
        program: the calls between features and logits.
        sources: where the features are caught.
        packing: how several cuts make one tensor.
        compaction: a step moved from behind the head to before it, or ``None``.
        named: the head's name where the caller gave it.
    """

    model: nn.Module
    pick: Pick
    program: Program
    sources: list[Source]
    packing: Packing
    compaction: Compaction | None = None
    named: tuple[str, ...] = ()
    _rows: dict[int, list[tuple[str, int, tuple[int, ...]]]] = field(
        default_factory=dict, repr=False
    )

    @property
    def head_name(self) -> str:
        """Dotted path of the head; several are joined with ``+`` in call order."""
        return "+".join(self.head_names)

    @cached_property
    def head_names(self) -> list[str]:
        """Dotted path of every final affine module, or of its weight for a bare function call."""
        return list(self.named) or [affine.name for affine in self.affines]

    @property
    def affines(self) -> list[Affine]:
        """The final affine operations, each module once, with their live tensors."""
        found = self.program.slice
        records = [affine_record(found.graph.nodes[number], found) for number in found.affines]
        return list({record.name: record for record in records}.values())

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return self.program.slice.width

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one sample's features."""
        return self.packing.shape

    @property
    def feature_dim(self) -> int:
        """Width of what the head reads: last axis, channels for a convolution, all when packed."""
        shape = self.feature_shape
        if not shape:
            return 1
        found = self.program.slice
        if self.named or not found.affines:
            return shape[-1]
        node = found.graph.nodes[found.affines[0]]
        return shape[channel_axis(node, shape)] if len(self.packing.shapes) == 1 else shape[-1]

    @cached_property
    def tail(self) -> list[str]:
        """What lies between the affine calls and the logits, for people."""
        return [node.label() for node in self.program.slice.tail()]

    @property
    def separable(self) -> bool:
        """Whether every logit depends on its own rows of the head only."""
        return self._traits[0]

    @property
    def linear(self) -> bool:
        """Whether the logits are an affine function of the features."""
        return self._traits[1]

    @cached_property
    def tied(self) -> list[str]:
        """Names of head parameters that other parts of the model use as well."""
        return tied_names(self.program.slice, self.model)

    @cached_property
    def _traits(self) -> tuple[bool, bool]:
        return probe(self.program, self.packing)

    def features(self, inputs: Example) -> Tensor:
        """Return the input of the head, (batch, *feature_shape), by one forward of the model.

        Raises:
            CannotSplitModel: ``not-reached`` when the head is not called for these inputs.
        """
        with eager(), Catcher(self.sources, self.model) as catcher:
            call(self.model, inputs)
        return self._packed(catcher)

    def features_and_logits(self, inputs: Example) -> tuple[Tensor, Tensor]:
        """Return features and logits of one forward, the only exact pair in train mode.

        Raises:
            CannotSplitModel: ``not-reached`` when the head is not called for these inputs.
        """
        with eager(), Catcher(self.sources, self.model) as catcher:
            # A function that picks the logits may be part of the head itself.
            logits = self.pick(call(self.model, inputs))
        return self._packed(catcher), logits

    def logits(self, output: object) -> Tensor:
        """Take the logits, (batch, classes), out of what the model returned."""
        return self.pick(output)

    def head(self, features: Tensor) -> Tensor:
        """Return logits (batch, classes) from features, with the model's live weights."""
        with eager():
            return self.program.run(self.packing.unpack(features))

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable tensors of the final affine operations by dotted path."""
        return trainable(head_weights(self.program.slice))

    def rows(self, label: int) -> list[RowRef]:
        """Return the parameter slices that make the logit of class ``label`` and no other.

        Raises:
            BadTarget: when there is no such class.
            CannotSplitModel: ``read-only`` for packed, sharded or offloaded weights.
        """
        if not 0 <= label < self.num_classes:
            raise BadTarget(
                f"label should lie in 0..{self.num_classes - 1}, found {label}; pass the index of "
                "a class that the model has."
            )
        if label not in self._rows:
            with eager():
                found = row_finding.find_rows(self.program, self.packing, label)
            self._rows[label] = [(ref.name, ref.axis, ref.index) for ref in found]
        weights = self.program.weights()
        return [RowRef(name, weights[name], axis, index) for name, axis, index in self._rows[label]]

    def require_untied(self) -> None:
        """Refuse to edit rows that other parts of the model read as well.

        Raises:
            CannotSplitModel: ``tied``.
        """
        if self.tied:
            raise refusal(
                "tied",
                f"the head {self.head_name} should have weights of its own to edit a class, but "
                f"they are shared with {', '.join(self.tied)}; untie them first (give the head a "
                "clone of its weight), or use a method that trains the whole network.",
            )

    def _packed(self, catcher: Catcher) -> Tensor:
        cuts = catcher.caught()
        if self.compaction is not None:
            cuts = [self.compaction.apply(cut) for cut in cuts]
        return self.packing.pack(cuts)
