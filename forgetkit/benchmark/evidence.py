"""Every metric, attack and audit on models that forgot by various methods, side by side."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from forgetkit.api import forget
from forgetkit.auditing.record import GROUPS, Audit, between, number
from forgetkit.auditing.run import audit
from forgetkit.auditing.shadows import Shadows, save_shadows
from forgetkit.benchmark.datasets import Pair, TensorImages
from forgetkit.benchmark.scoring import logits_on
from forgetkit.benchmark.train import RECIPES, TrainRecipe, finding_file, trained
from forgetkit.method import find
from forgetkit.metric import Finding, Metric, all_metrics
from forgetkit.metrics.population_attack import PopulationAttack

METHODS = ("lau", "suli", "scrub")
KEPT, TESTS = 1000, 2000
"""Samples of D_r and of the test set that an audit looks at."""

MEMBERS, OVERTRAINED = 300, 100
"""Training images and epochs of the model that memorises."""

OTHERS = {"full": 6}
"""Models that never saw the samples, by level, to compare with; one where none is named. With
several of them as many more are trained on the samples, for attacks that learn from both kinds."""


def class_evidence(
    name: str,
    data: Pair,
    data_name: str,
    *,
    label: int = 3,
    methods: Sequence[str] = METHODS,
    level: str = "full",
    device: str = "cpu",
    recipe: TrainRecipe | None = None,
) -> dict[str, Audit]:
    """Return one audit of the original model, one a method, and one of a retrained model.

    The reference is a model retrained without the class; the retrained one that is audited was
    trained from other random weights. Audits are kept in the cache.

    Args:
        name: key of ``zoo.BUILDERS``.
        data: what the models were trained and are tested on.
        data_name: goes into the cache's file names.
        label: the class to forget.
        methods: slugs, each at its defaults.
        level: of the audits.
        device: where to compute.
        recipe: how models are trained; default ``RECIPES[name]``.
    """
    recipe = recipe or RECIPES[name]
    train = partial(trained, name, data, data_name, recipe=recipe, device=device)
    original, reference = train()[0], train(without=(label,))[0]
    kept = data.train.where(data.train.targets != label)
    found: dict[str, Audit] = {}
    for title in ("original", *methods, "retrained"):
        file = finding_file(
            "evidence", f"{data_name}-{name}-e{recipe.epochs}-class{label}-{title}-{level}-{device}"
        )
        if not file.exists():
            start = time.perf_counter()
            model: nn.Module
            if title == "retrained":
                model = train(seed=1, without=(label,))[0]
            else:
                model = copy.deepcopy(original)
            if title in methods:
                _forget(model, title, data, label, device)
            audit(
                model, forget=_loader(data.train.where(data.train.targets == label)),
                retain=_loader(_some(kept, KEPT)), test=_loader(_some(data.test, TESTS)),
                classes=[label], original=original, reference=reference, level=level,
                device=device,
            ).save(file)  # fmt: skip
            _say(f"{title}: {time.perf_counter() - start:.0f} s")
        found[title] = Audit.load(file)
    return found


def member_evidence(
    name: str, data: Pair, data_name: str, *, level: str = "full", device: str = "cpu"
) -> dict[str, Audit]:
    """Return audits for memory of training images: a model that has it, and one that cannot.

    Two models are trained without augmentation until they know their images by heart, each on
    its own images. The samples asked about are one half of the first one's: attacks should find
    them there, and nothing in the second, which never saw them. Models trained on other images
    again are what attacks compare with; the other half of a model's own images is what it keeps.
    """
    others = OTHERS.get(level, 1)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    pieces = order[: (2 + others) * MEMBERS].split(MEMBERS)
    parts = [data.train.where(rows) for rows in pieces]
    recipe = replace(RECIPES[name], epochs=OVERTRAINED).plain()

    def model_of(part: int, seed: int) -> nn.Module:
        return trained(
            name, replace(data, train=parts[part]), f"{data_name}-{MEMBERS}-part{part}",
            seed=seed, recipe=recipe, device=device,
        )[0]  # fmt: skip

    asked, kept = torch.arange(MEMBERS).split(MEMBERS // 2)[:2]
    samples = parts[0].where(asked)
    unseen = [model_of(part, part) for part in range(2, 2 + others)]
    stem = f"{data_name}-{name}-{MEMBERS}"
    shadows: Path | None = None
    if others > 1:
        shadows = finding_file("evidence", f"{stem}-shadows-{device}").with_suffix(".safetensors")
        seen = [model_of(0, seed) for seed in range(2 + others, 2 + 2 * others)]
        logits = [
            torch.stack([logits_on(model, samples.images, device) for model in models])
            for models in (seen, unseen)
        ]
        save_shadows(Shadows(logits[0], logits[1], logits[0][:0], samples.targets), shadows)
    found: dict[str, Audit] = {}
    for part, title in enumerate(("over-trained", "never saw them")):
        file = finding_file("evidence", f"{stem}-{title.replace(' ', '_')}-{level}-{device}")
        if not file.exists():
            audit(
                model_of(part, part), forget=_loader(samples),
                retain=_loader(parts[part].where(kept)), test=_loader(_some(data.test, TESTS)),
                reference=unseen, level=level, metrics=_attacks(shadows), device=device,
            ).save(file)  # fmt: skip
        found[title] = Audit.load(file)
    return found


def _attacks(shadows: Path | None) -> list[Metric]:
    """Return every membership attack; the one on a population reads its models' outputs."""
    file = None if shadows is None else str(shadows)
    return [
        PopulationAttack(shadows=file) if metric is PopulationAttack else metric()
        for metric in all_metrics()
        if metric.card.group == "attack"
    ]


def evidence_markdown(audits: Mapping[str, Audit]) -> str:
    """Return one table: a row a check in the order of the report, a column a model.

    A cell holds the value, its 95 % interval where there is one, and the verdict in brackets.
    """
    titles = list(audits)
    first = next(iter(audits.values()))
    lines = [f"| check | {' | '.join(titles)} |", f"| --- |{' ---: |' * len(titles)}"]
    for group in GROUPS:
        for finding in first.findings:
            card = first.cards[finding.slug]
            if card.group == group:
                cells = [_cell(audits[title][finding.slug]) for title in titles]
                lines.append(f"| {card.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(audits: Mapping[str, Audit]) -> str:
    """Return the sentences of every verdict, as a Markdown list."""
    return "\n".join(f"- **{title}**: {' '.join(found.verdict)}" for title, found in audits.items())


def _cell(finding: Finding) -> str:
    if finding.value is None:
        return "-"
    interval = f" {between(finding.interval)}" if finding.interval is not None else ""
    verdict = "" if finding.verdict == "no verdict" else f" ({finding.verdict})"
    return f"{number(finding.value)}{interval}{verdict}"


def _forget(model: nn.Module, slug: str, data: Pair, label: int, device: str) -> None:
    source = data.train
    if "retain" not in find(slug).card.needs:
        source = source.where(source.targets == label)
    request = forget(model).classes([label]).using(slug).on(device)
    request.run(_loader(source), guard=None)


def _some(data: TensorImages, count: int) -> TensorImages:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return data.where(order[:count].sort().values)


def _loader(data: TensorImages) -> DataLoader[Any]:
    return DataLoader(data, batch_size=128)


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False)
