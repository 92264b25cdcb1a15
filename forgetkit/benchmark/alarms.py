"""How often an audit accuses a model that never saw what it is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit.auditing.record import GROUPS, Audit
from forgetkit.auditing.run import audit
from forgetkit.benchmark.datasets import TensorImages
from forgetkit.benchmark.train import TrainRecipe, finding_file, fit
from forgetkit.metric import Finding
from forgetkit.testing.toys import CLASSES, TOYS, blobs

RECIPE = TrainRecipe(epochs=8, lr=5e-3, optimizer="adamw", weight_decay=0.01, batch_size=32).plain()
GONE = CLASSES - 1
ALARMS = ("residual", "over-forgotten")
DECIDED = (*ALARMS, "as retrain")


@dataclass(frozen=True)
class AlarmCount:
    """Verdicts of one check on honest models.

    Args:
        alarms: how many spoke of traces or of damage.
        decided: how many said anything but that nothing can be said.
    """

    alarms: int
    decided: int


def honest_audits(
    models: int = 10, references: Sequence[int] = (1, 2, 3), level: str = "full"
) -> dict[int, list[Audit]]:
    """Return, by number of retrained models, one audit of each honest model.

    All were trained without the last class of a toy problem, from other random weights. Each is
    audited as if it had been made forget that class; the next ones in turn are its retrained
    models. Audits are kept in the cache.

    Args:
        models: how many are trained and audited.
        references: numbers of retrained models, each smaller than ``models``.
        level: of the audits.
    """
    honest = [_trained(seed, without_class=True) for seed in range(models)]
    original = _trained(models, without_class=False)
    train, test = blobs(), blobs(seed=1)
    gone = train.tensors[1] == GONE
    found: dict[int, list[Audit]] = {}
    for count in references:
        found[count] = []
        for number, model in enumerate(honest):
            file = finding_file("alarms", f"toy-{models}-m{number}-r{count}-{level}")
            if not file.exists():
                audit(
                    model, forget=_loader(train, gone), retain=_loader(train, ~gone),
                    test=DataLoader(test, batch_size=128), classes=[GONE], original=original,
                    reference=[honest[(number + step) % models] for step in range(1, count + 1)],
                    level=level, device="cpu",
                ).save(file)  # fmt: skip
                Console(stderr=True).print(f"{count} retrained, model {number + 1} of {models}")
            found[count].append(Audit.load(file))
    return found


def counted(findings: Sequence[Finding]) -> AlarmCount:
    """Return how many of the verdicts are alarms, and how many are decided."""
    verdicts = [finding.verdict for finding in findings]
    return AlarmCount(
        sum(verdict in ALARMS for verdict in verdicts),
        sum(verdict in DECIDED for verdict in verdicts),
    )


def alarm_markdown(audits: dict[int, list[Audit]]) -> str:
    """Return a row for each check that decided anything: alarms of decided verdicts."""
    first = next(iter(audits.values()))[0]
    heads = [f"{count} retrained" for count in audits]
    lines = [f"| check | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for group in GROUPS:
        for finding in first.findings:
            card = first.cards[finding.slug]
            counts = [
                counted([one[finding.slug] for one in several]) for several in audits.values()
            ]
            if card.group == group and any(count.decided for count in counts):
                cells = [f"{count.alarms} of {count.decided}" for count in counts]
                lines.append(f"| {card.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _trained(seed: int, *, without_class: bool) -> nn.Module:
    images, labels = blobs().tensors
    kept = labels != GONE if without_class else torch.ones_like(labels, dtype=torch.bool)
    data = TensorImages(images[kept], labels[kept], tuple(map(str, range(CLASSES))))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TOYS["cnn"]()
        fit(model, data, RECIPE, quiet=True)
    return model.eval()


def _loader(data: TensorDataset, keep: torch.Tensor) -> DataLoader[tuple[torch.Tensor, ...]]:
    images, labels = data.tensors
    return DataLoader(TensorDataset(images[keep], labels[keep]), batch_size=128)
