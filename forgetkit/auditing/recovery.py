"""Recovery of a forgotten class from cached features, for every model at hand alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from forgetkit.auditing.evidence import ROLES, Evidence, Missing, Role, Subject
from forgetkit.auditing.excess import excess, needs_classes, references, standard_error
from forgetkit.auditing.intervals import FEWEST, wilson
from forgetkit.auditing.probes import few_shot_rows, standardiser
from forgetkit.metric import Verdict


@dataclass(frozen=True)
class Bank:
    """Features of one model.

    Args:
        train: (samples, dim) float64 of the forget samples, then of the samples to keep.
        labels: (samples,) of these.
        forgotten: (others, dim) of test samples of the forgotten classes.
        forgotten_labels: (others,).
        kept: the same for test samples of the other classes, or ``None``.
        kept_labels: (others,), or ``None``.
        forget_size: how many rows of ``train`` are forget samples.
    """

    train: Tensor
    labels: Tensor
    forgotten: Tensor
    forgotten_labels: Tensor
    kept: Tensor | None
    kept_labels: Tensor | None
    forget_size: int

    def standardised(self) -> Bank:
        """Return the same with mean 0 and deviation 1 on the samples to keep."""
        mean, deviation = standardiser(self.train[self.forget_size :])

        def one(features: Tensor) -> Tensor:
            return (features - mean) / deviation

        kept = None if self.kept is None else one(self.kept)
        return Bank(
            one(self.train), self.labels, one(self.forgotten), self.forgotten_labels, kept,
            self.kept_labels, self.forget_size,
        )  # fmt: skip

    def among(self, classes: Tensor) -> Bank:
        """Return the samples of some classes, all forgotten ones among them."""
        rows = torch.isin(self.labels, classes)
        kept, labels = self.kept, self.kept_labels
        if kept is not None and labels is not None:
            asked = torch.isin(labels, classes)
            kept, labels = (kept[asked], labels[asked]) if bool(asked.any()) else (None, None)
        return Bank(
            self.train[rows], self.labels[rows], self.forgotten, self.forgotten_labels, kept,
            labels, self.forget_size,
        )  # fmt: skip


def drawn_classes(evidence: Evidence, most: int) -> Tensor | None:
    """Return the forgotten classes and ``most`` kept ones, drawn with the seed.

    ``None`` when the samples to keep hold no more kept classes than that.

    Raises:
        Missing: there are no samples to keep, or they came without labels.
    """
    kept = evidence.of("unlearned", "retain").labels.unique()
    if len(kept) <= most:
        return None
    generator = Generator().manual_seed(evidence.seed)
    order = torch.randperm(len(kept), generator=generator)
    return torch.cat([torch.tensor(evidence.forget_classes), kept[order[:most]]])


def bank_of(subject: Subject, role: str) -> Bank:
    """Return the features of a model.

    Raises:
        Missing: a set that is needed or the features are not at hand.
    """
    alone = Evidence({"unlearned": subject}, {}, "classes", (), 0)

    def features(split: str) -> Tensor:
        if subject.outputs.get(split) is not None and subject.outputs[split].features is None:
            raise Missing(f"needs features, but the {role} model cannot be split into parts")
        return alone.features("unlearned", split).double()

    train = torch.cat([features("forget"), features("retain")])
    labels = torch.cat([subject.outputs[split].labels for split in ("forget", "retain")])
    other = subject.outputs.get("test_retain")
    return Bank(
        train, labels, features("test_forget"), subject.outputs["test_forget"].labels,
        None if other is None else features("test_retain"),
        None if other is None else other.labels, len(subject.outputs["forget"]),
    )  # fmt: skip


Attack = Callable[[Bank, Tensor], tuple[Tensor, Tensor | None]]
"""(bank, rows of its training samples) -> predictions on forgotten and on kept test samples."""


@dataclass(frozen=True)
class Recovered:
    """What an attack on features recovered, for every model.

    Args:
        forgotten: mean accuracy on test samples of the forgotten classes, by role.
        kept: the same on the other classes; empty without such samples.
        references: accuracy on the forgotten classes of each retrained model.
        right: (draws, samples) whether each prediction was right, by role.
        value: excess over retraining, or ``None``.
        error: its standard error, or ``None``.
        verdict: by the rule of ``forgetkit.auditing.excess.excess``. Features that are bit for bit
            those of the original were not unlearned: then any excess is ``residual``, and without
            a retrained model any accuracy that is surely above chance. Fewer than ten samples
            decide nothing either way.
        samples: number of test samples.
        same: whether all features are those of the original.
        classes: how many classes took part, forgotten ones included; ``None`` for all.
    """

    forgotten: Mapping[str, float]
    kept: Mapping[str, float]
    references: Sequence[float]
    right: Mapping[str, Tensor]
    value: float | None
    error: float | None
    verdict: Verdict
    samples: int
    same: bool
    classes: int | None = None

    def interval(self) -> tuple[float, float]:
        """Return a 95 % interval of the unlearned model's accuracy, over draws and samples."""
        own = self.right["unlearned"]
        mean, error = float(own.mean()), 1.96 * standard_error(own)
        if not 0.0 < mean < 1.0:  # no spread was seen; samples that were not tried may differ
            return wilson(round(mean * own.shape[1]), own.shape[1])
        return max(0.0, mean - error), min(1.0, mean + error)

    def note(self) -> str:
        """Say what limits the verdict, or nothing."""
        drawn = self.classes is not None
        parts = {
            "no retrained model to compare with": not self.references,
            "the features are bit for bit those of the original": self.same,
            f"{self.samples} samples are too few to decide": self.samples < FEWEST,
            f"{self.classes} classes took part, the kept ones drawn at random": drawn,
        }
        return "; ".join(text for text, holds in parts.items() if holds)

    def details(self) -> dict[str, object]:
        """Return the numbers of a report."""
        return {
            "forgotten": dict(self.forgotten),
            "kept": dict(self.kept),
            "references": list(self.references),
            "classes": self.classes,
            "excess": self.value,
            "standard_error": self.error,
            "spread_over_draws": {
                role: float(right.mean(dim=1).std()) if len(right) > 1 else 0.0
                for role, right in self.right.items()
            },
        }


class Recovery:
    """The features of all models, read once, for several attacks.

    Args:
        evidence: outputs with features.
        standardised: whether columns get mean 0 and deviation 1 on the samples to keep.
        most_kept: largest number of kept classes whose samples are used; ``None`` for all.

    Raises:
        Missing: a set that is needed, features, or a forgotten class are not at hand.
    """

    def __init__(
        self, evidence: Evidence, *, standardised: bool, most_kept: int | None = None
    ) -> None:
        needs_classes(evidence)
        self.classes = None if most_kept is None else drawn_classes(evidence, most_kept)

        def made(subject: Subject, role: str) -> Bank:
            bank = bank_of(subject, role)
            bank = bank.standardised() if standardised else bank
            return bank if self.classes is None else bank.among(self.classes)

        self.banks: dict[Role, Bank] = {
            role: made(evidence.subjects[role], role) for role in ROLES if role in evidence.subjects
        }
        self.retrained = [
            self.banks["retrained"]
            if subject is evidence.subjects.get("retrained")
            else made(subject, "retrained")
            for subject in references(evidence)
        ]
        own, first = self.banks["unlearned"], self.banks.get("original")
        self.same = (
            not evidence.control
            and first is not None
            and all(
                torch.equal(left, right)
                for left, right in ((own.train, first.train), (own.forgotten, first.forgotten))
            )
        )
        self.chance = 1.0 / (evidence.num_classes if self.classes is None else len(self.classes))
        self.seed = evidence.seed

    def run(
        self, attack: Attack, shots: int | None, draws: int, keep_all: bool = False
    ) -> Recovered:
        """Return what an attack recovers from ``shots`` samples of each class.

        Args:
            attack: see ``Attack``.
            shots: samples of each class; ``None`` for all, in one draw.
            draws: repetitions with other samples; the same for every model.
            keep_all: whether ``shots`` counts for forgotten classes only and all samples of kept
                classes are used.
        """
        first = self.banks["unlearned"]
        every = torch.arange(len(first.labels))
        if shots is None:
            chosen = [every]
        else:
            head = first.labels[: first.forget_size] if keep_all else first.labels
            chosen = [few_shot_rows(head, shots, self.seed + draw) for draw in range(draws)]
            if keep_all:
                chosen = [torch.cat([rows, every[first.forget_size :]]) for rows in chosen]
        right: dict[str, Tensor] = {}
        kept: dict[str, float] = {}
        for role, bank in self.banks.items():
            right[role], share = _right(attack, bank, chosen)
            if share is not None:
                kept[role] = share
        others = [
            right["retrained"]
            if bank is self.banks.get("retrained")
            else _right(attack, bank, chosen)[0]
            for bank in self.retrained
        ]
        value, error, verdict = excess(right, others)
        found = Recovered(
            {role: float(found.mean()) for role, found in right.items()}, kept,
            [float(other.mean()) for other in others], right, value, error, verdict,
            len(first.forgotten_labels), self.same,
            None if self.classes is None else len(self.classes),
        )  # fmt: skip
        # Whether features changed at all is known without any sampling error.
        above = found.interval()[0] > self.chance if value is None else value > 0
        left = self.same and above and found.samples >= FEWEST
        return replace(found, verdict="residual") if left else found


def _right(attack: Attack, bank: Bank, chosen: Sequence[Tensor]) -> tuple[Tensor, float | None]:
    answers = [attack(bank, rows) for rows in chosen]
    right = torch.stack([found == bank.forgotten_labels for found, _ in answers]).double()
    kept = [
        torch.eq(k, bank.kept_labels).double().mean()
        for _, k in answers
        if k is not None and bank.kept_labels is not None
    ]
    return right, float(torch.stack(kept).mean()) if kept else None
