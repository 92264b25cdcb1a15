"""How far a row of figures is from that of a retrained model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from forgetkit.auditing.evidence import Evidence, Missing, Subject
from forgetkit.auditing.loss_attack import loss_auc, member_losses
from forgetkit.auditing.readings import hits, outputs, retrained, tests_given, together

Row = Mapping[str, float]


def mean_gap(found: Sequence[float], reference: Sequence[float]) -> float:
    """Return the mean absolute difference of two rows of figures; 0 is best."""
    pairs = list(zip(found, reference, strict=True))
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def tug_of_war(differences: Sequence[float]) -> float:
    """Return the product of 1 - |difference| over sets, accuracies as fractions; 1 is best."""
    return math.prod(1.0 - abs(difference) for difference in differences)


def row_of(evidence: Evidence, subject: Subject, *, membership: bool) -> Row:
    """Return one model's figures: accuracies on D_f, D_r and test samples, AUC of the loss.

    Test samples are those of other classes where classes were forgotten, else all. A figure whose
    set is not at hand is left out.
    """
    alone = replace(evidence, subjects={"unlearned": subject}, references=())
    figures: dict[str, float] = {}
    for split in ("forget", "retain"):
        if alone.has("unlearned", split):
            figures[split] = float(hits(outputs(alone, "unlearned", split)).mean())
    kept = ("test_retain",) if evidence.goal == "classes" else ("test_forget", "test_retain")
    if any(alone.has("unlearned", split) for split in kept):
        splits = [split for split in tests_given(alone) if split in kept]
        figures["test"] = float(hits(together(alone, "unlearned", splits)).mean())
    if membership:
        try:
            figures["membership"] = loss_auc(*member_losses(alone, "unlearned"))
        except Missing:
            return figures
    return figures


def rows_against(evidence: Evidence, *, membership: bool) -> tuple[dict[str, Row], Row]:
    """Return the rows of all other models by role, and that of the first retrained model.

    A second retrained model stands for the role ``"retrained"``: what two of them differ by is the
    yardstick. Every row has the columns that all of them have.

    Raises:
        Missing: no retrained model, or no common column, is at hand.
    """
    first, *others = retrained(evidence) or [evidence.subject("retrained")]
    named: dict[str, Subject] = {
        role: one for role, one in evidence.subjects.items() if role != "retrained"
    }
    if others:
        named["retrained"] = others[0]
    rows = {
        role: row_of(evidence, subject, membership=membership) for role, subject in named.items()
    }
    reference = row_of(evidence, first, membership=membership)
    columns = [name for name in reference if all(name in row for row in rows.values())]
    if not columns:
        raise Missing("needs a set that both models have answered")
    return (
        {role: {name: row[name] for name in columns} for role, row in rows.items()},
        {name: reference[name] for name in columns},
    )
