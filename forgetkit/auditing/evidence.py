"""What an audit looks at: the outputs of several models on several sets, collected once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from forgetkit.adapting import logits_of
from forgetkit.engine.modes import evaluating
from forgetkit.engine.place import moved_inputs
from forgetkit.errors import DataError
from forgetkit.losses import predictions
from forgetkit.types import Batch, SampleSet
from forgetkit.view import ModelView

Role: TypeAlias = Literal["unlearned", "original", "retrained", "untrained"]
ROLES: tuple[Role, ...] = ("unlearned", "original", "retrained", "untrained")
SPLITS = ("forget", "retain", "test_forget", "test_retain")
MEANING = {
    "forget": "the samples to forget",
    "retain": "training samples to keep",
    "test_forget": "test samples of the forgotten classes",
    "test_retain": "test samples of the other classes",
}

WRONG_LABELS = ("relabel", "depoison")
"""Goals about samples whose labels were wrong: these pairs are to be forgotten."""


class Missing(DataError):
    """A metric cannot be computed because a model or a set is not at hand."""


class NotApplicable(Missing):
    """A metric has no meaning for this kind of request or of labels, whatever is at hand."""


@dataclass(frozen=True)
class Outputs:
    """What one model says about one set, in the set's order.

    Args:
        logits: (samples, classes) float32 on the CPU.
        known_labels: (samples,) int64, or ``None`` when the samples came without.
        features: (samples, dim) float32, flattened, or ``None`` when the model has no split.
        index: (samples,) int64 positions in the user's data.
    """

    logits: Tensor
    known_labels: Tensor | None
    features: Tensor | None
    index: Tensor

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def labels(self) -> Tensor:
        """Labels, (samples,) int64.

        Raises:
            Missing: the samples came without.
        """
        if self.known_labels is None:
            raise Missing("needs labels, which some of the samples came without")
        return self.known_labels

    @property
    def log_probs(self) -> Tensor:
        """Log-probabilities in float64, (samples, classes)."""
        return self.logits.double().log_softmax(dim=1)

    @property
    def losses(self) -> Tensor:
        """Cross-entropy of each sample in nats, float64, (samples,)."""
        return -self.log_probs.gather(1, self.labels[:, None])[:, 0]

    @property
    def predicted(self) -> Tensor:
        """Predicted classes, (samples,); -1 for NaN."""
        return predictions(self.logits)

    @property
    def right(self) -> Tensor:
        """Whether each prediction is right, boolean, (samples,)."""
        return self.predicted == self.labels

    def take(self, rows: Tensor) -> Outputs:
        """Return some rows: positions or a boolean mask."""
        features = None if self.features is None else self.features[rows]
        labels = None if self.known_labels is None else self.known_labels[rows]
        return Outputs(self.logits[rows], labels, features, self.index[rows])


@dataclass(frozen=True)
class Subject:
    """One model under audit.

    Args:
        model: the module; audits that train work on copies of it.
        outputs: by split name; a split that was not given is absent.
        view: features and head, or ``None`` when the model cannot be split.
    """

    model: nn.Module
    outputs: Mapping[str, Outputs]
    view: ModelView | None


@dataclass(frozen=True)
class Evidence:
    """Everything that metrics, attacks and audits may look at.

    Args:
        subjects: the models by role; ``"unlearned"`` is always there.
        references: further retrained models, the first one being ``subjects["retrained"]``.
        sets: the samples by split name, for audits that need images.
        goal: kind of the request: ``"classes"``, ``"instances"``, ``"relabel"``, ``"depoison"``.
        forget_classes: forgotten class indices; for other goals those of the forget samples.
        num_classes: width of the logits.
        head_masked: whether the forget accuracy is 0 by construction.
        head_only: whether only the head differs from the original; ``None`` when not known.
        device: where models compute.
        seed: of every random choice.
        class_names: by index, or ``None``.
        unlabelled: splits whose samples came without labels; theirs are placeholders.
        head: dotted path(s) that the caller named as the head, or ``None``.
        control: whether the original stands in for the model under audit, to see whether a rule
            tells it from a retrained model. What is known without any rule of a model that is the
            original bit for bit does not count then.
    """

    subjects: Mapping[Role, Subject]
    sets: Mapping[str, SampleSet]
    goal: str
    forget_classes: tuple[int, ...]
    num_classes: int
    references: Sequence[Subject] = ()
    head_masked: bool = False
    head_only: bool | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    class_names: Sequence[str] | None = None
    unlabelled: frozenset[str] = frozenset()
    head: str | Sequence[str] | None = None
    control: bool = False

    @property
    def kept_classes(self) -> tuple[int, ...]:
        """Class indices that are not forgotten."""
        gone = set(self.forget_classes)
        return tuple(c for c in range(self.num_classes) if c not in gone)

    def has(self, role: Role, split: str) -> bool:
        """Return whether a model's outputs on a split are at hand."""
        return role in self.subjects and split in self.subjects[role].outputs

    def subject(self, role: Role) -> Subject:
        """Return a model.

        Raises:
            Missing: it is not at hand.
        """
        if role not in self.subjects:
            raise Missing(f"needs the {role} model, which was not given")
        return self.subjects[role]

    def of(self, role: Role, split: str) -> Outputs:
        """Return a model's outputs on a split.

        Raises:
            Missing: the model or the set is not at hand.
        """
        outputs = self.subject(role).outputs
        if split not in outputs:
            raise Missing(f"needs {MEANING.get(split, split)}, which were not given")
        return outputs[split]

    def features(self, role: Role, split: str) -> Tensor:
        """Return features (samples, dim).

        Raises:
            Missing: the set is not at hand, or the model cannot be split.
        """
        found = self.of(role, split).features
        if found is None:
            raise Missing(f"needs features, but the {role} model cannot be split into parts")
        return found

    def of_original(self) -> Evidence:
        """Return the same evidence with the original in the place of the model under audit.

        Raises:
            Missing: the original is not at hand.
        """
        subjects: dict[Role, Subject] = {**self.subjects, "unlearned": self.subject("original")}
        return replace(self, subjects=subjects, control=True)

    def samples(self, split: str, *, labelled: bool = True) -> SampleSet:
        """Return the samples of a split.

        Args:
            split: its name.
            labelled: whether samples without labels are of no use.

        Raises:
            Missing: they are not at hand, or came without labels.
        """
        if split not in self.sets:
            raise Missing(f"needs {MEANING.get(split, split)}, which were not given")
        if labelled and split in self.unlabelled:
            raise Missing(f"needs labels of {MEANING.get(split, split)}, which came without")
        return self.sets[split]


@torch.no_grad()
def collect(
    model: nn.Module,
    sets: Mapping[str, SampleSet],
    *,
    device: torch.device | str = "cpu",
    view: ModelView | None = None,
    batch_size: int | None = None,
    unlabelled: Collection[str] = (),
    tick: Callable[[int], None] = lambda _: None,
) -> dict[str, Outputs]:
    """Return the outputs of a model on several sets: one pass in eval mode, in order.

    Args:
        model: left as it was.
        sets: by split name; empty ones give no entry.
        device: where to compute; the model is there.
        view: for features; without one they are ``None``.
        batch_size: samples a batch; default that of each set.
        unlabelled: sets whose labels are placeholders.
        tick: called with the number of samples after each batch, for a progress bar.
    """
    device = torch.device(device)
    with evaluating(model):
        return {
            name: _collected(
                model,
                samples.batches(batch_size),
                device,
                view,
                tick,
                labelled=name not in unlabelled,
            )
            for name, samples in sets.items()
            if len(samples) > 0
        }


def _collected(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    view: ModelView | None,
    tick: Callable[[int], None],
    *,
    labelled: bool,
) -> Outputs:
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    features: list[Tensor] = []
    index: list[Tensor] = []
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    for batch in batches:
        inputs = moved_inputs(batch.inputs, device, dtype)
        if view is not None:
            found, scores = view.features_and_logits(inputs)
            features.append(found.flatten(1).float().cpu())
        else:
            output = model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
            scores = logits_of(output)
        logits.append(scores.float().cpu())
        labels.append(batch.labels.cpu())
        index.append(batch.index)
        tick(len(batch))
    return Outputs(
        torch.cat(logits), torch.cat(labels) if labelled else None,
        torch.cat(features) if features else None, torch.cat(index),
    )  # fmt: skip
