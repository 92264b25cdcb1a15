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
from forgetkit.audit.record import GROUPS, Audit, between, number
from forgetkit.audit.run import audit
from forgetkit.benchmark.datasets import Pair, TensorImages
from forgetkit.benchmark.train import RECIPES, TrainRecipe, cache_root, trained
from forgetkit.method import find
from forgetkit.metric import Finding, all_metrics

METHODS = ("lau", "suli", "scrub")
KEPT, TESTS = 1000, 2000
"""Samples of D_r and of the test set that an audit looks at."""

MEMBERS, OVERTRAINED = 300, 100
"""Training images and epochs of the model that memorises."""


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
        file = _file(f"{data_name}-{name}-e{recipe.epochs}-class{label}-{title}-{level}-{device}")
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
    its own images. The samples asked about are those of the first one: attacks should find them
    there, and nothing in the second, which never saw them. A third model, trained on other images
    again, is what attacks compare with.
    """
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    parts = [data.train.where(rows) for rows in order[: 3 * MEMBERS].split(MEMBERS)]
    recipe = replace(RECIPES[name], epochs=OVERTRAINED).plain()
    models = [
        trained(
            name, replace(data, train=part), f"{data_name}-{MEMBERS}-part{number}", seed=number,
            recipe=recipe, device=device,
        )[0]
        for number, part in enumerate(parts)
    ]  # fmt: skip
    found: dict[str, Audit] = {}
    attacks = [metric.card.slug for metric in all_metrics() if metric.card.group == "attack"]
    for title, model in (("over-trained", models[0]), ("never saw them", models[1])):
        file = _file(f"{data_name}-{name}-{MEMBERS}-{title.replace(' ', '_')}-{level}-{device}")
        if not file.exists():
            audit(
                model, forget=_loader(parts[0].where(torch.arange(MEMBERS // 2))),
                test=_loader(_some(data.test, TESTS)), reference=models[2], level=level,
                metrics=attacks, device=device,
            ).save(file)  # fmt: skip
        found[title] = Audit.load(file)
    return found


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


def _file(name: str) -> Path:
    folder = cache_root() / "benchmark" / "evidence"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.json"


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False)
