"""How often a network that never saw the class is called one that still knows it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from toy_evidence import GONE, original, sets, subject, trained_without, untrained

from forgetkit.auditing.evidence import Evidence, Subject
from forgetkit.metric import Finding, find_metric

NEVER_WRONG = (
    "accuracy", "streisand", "knowledge_retention", "adversarial_recovery", "prompt_resurrection",
    "quantisation",
)  # fmt: skip
"""The first row of the table in docs/audit.md, and the Streisand check: no false alarm at all."""

RARELY_WRONG = ("linear_probe", "prototype", "separability", "top_k_accuracy")
"""The second row."""


@functools.cache
def honest(seed: int) -> Subject:
    """Return a network that never saw the class, trained from a seed of its own."""
    return subject(trained_without(100 + seed))


def findings(slugs: Sequence[str], *, networks: int, references: int) -> list[Finding]:
    """Audit each of several retrained networks as if it had been made forget.

    ``python -m forgetkit.benchmark alarms`` does this for every metric with a verdict and more
    networks; its table is in docs/audit.md.
    """
    found = []
    for seed in range(networks):
        own = honest(seed)
        others = [honest((seed + 1 + at) % networks) for at in range(references)]
        evidence = Evidence(
            {"unlearned": own, "original": original(), "retrained": others[0],
             "untrained": untrained()},
            sets(), "classes", (GONE,), 4, references=tuple(others), device=torch.device("cpu"),
            seed=seed,
        )  # fmt: skip
        found += [find_metric(slug)().measure(evidence) for slug in slugs]
    return found


@pytest.mark.slow
def test_checks_of_the_first_row_raise_no_false_alarm() -> None:
    found = findings(NEVER_WRONG, networks=5, references=3)
    assert {one.verdict for one in found} == {"as retrain"}


@pytest.mark.slow
def test_checks_of_the_second_row_hardly_ever_do() -> None:
    found = findings(RARELY_WRONG, networks=5, references=3)
    verdicts = Counter(one.verdict for one in found)
    alarms = verdicts["residual"] + verdicts["over-forgotten"]
    assert verdicts["as retrain"] + alarms == len(found)
    assert alarms <= 1
