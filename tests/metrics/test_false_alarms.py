"""How often a network that never saw the class is called one that still knows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from toy_evidence import GONE, original, sets, subject, trained_without, untrained

from forgetkit.auditing.evidence import Evidence
from forgetkit.metric import Finding, find_metric

RELIABLE = (
    "accuracy", "top_k_accuracy", "linear_probe", "knowledge_retention", "prototype",
    "separability", "adversarial_recovery", "quantisation", "mia_loss", "streisand",
)  # fmt: skip
"""The first row of the table in docs/audit.md."""


def findings(slugs: Sequence[str], *, networks: int, references: int) -> list[Finding]:
    """Audit each of several retrained networks as if it had been made forget.

    The table in docs/audit.md is this for every metric with a verdict, ten networks, and one, two
    and three references.
    """
    honest = [subject(trained_without(100 + seed)) for seed in range(networks)]
    found = []
    for seed, own in enumerate(honest):
        others = [honest[(seed + 1 + at) % networks] for at in range(references)]
        evidence = Evidence(
            {"unlearned": own, "original": original(), "retrained": others[0],
             "untrained": untrained()},
            sets(), "classes", (GONE,), 4, references=tuple(others), device=torch.device("cpu"),
            seed=seed,
        )  # fmt: skip
        found += [find_metric(slug)().measure(evidence) for slug in slugs]
    return found


@pytest.mark.slow
def test_the_checks_that_the_docs_call_reliable_hardly_ever_raise_a_false_alarm() -> None:
    found = findings(RELIABLE, networks=5, references=3)
    verdicts = Counter(one.verdict for one in found)
    alarms = verdicts["residual"] + verdicts["over-forgotten"]
    assert verdicts["as retrain"] + alarms == len(found)
    assert alarms <= 1
