"""The contract over every registered method, on a toy CNN and a toy ViT."""

from __future__ import annotations

import pytest

from forgetkit.method import Method, all_methods
from forgetkit.testing import CHECKS, TOYS

LONG = {"no_dead_hyperparameter", "all_or_nothing", "resumes"}
"""Checks of many runs each. They and the whole contract on the transformer are slow tests, but for
the method that the quick tests take nearly all the way."""

QUICK = {
    "lau",
    "pgu",
    "gli",
    "su",
    "suli",
    "neggrad",
    "correct",
    "adv",
    "adv_imp",
    "finetune",
    "scrub",
}
"""Methods whose other checks are quick tests: the papers' own, and two that read retained data."""

TAKEN_FAR, LONGEST = "lau", "no_dead_hyperparameter"


def cases() -> list[object]:
    """Return every method, kind of toy and check; the long ones marked."""
    found: list[object] = []
    for method in all_methods():
        slug = method.card.slug
        for kind in TOYS:
            for check in CHECKS:
                costs = kind == "vit" or check in LONG or slug not in QUICK
                slow = check == LONGEST or (slug != TAKEN_FAR and costs)
                marks = [pytest.mark.slow] if slow else []
                found.append(
                    pytest.param(method, kind, check, id=f"{slug}-{kind}-{check}", marks=marks)
                )
    return found


@pytest.mark.parametrize(("method", "kind", "check"), cases())
def test_contract(method: type[Method], kind: str, check: str) -> None:
    CHECKS[check](method, kind)
