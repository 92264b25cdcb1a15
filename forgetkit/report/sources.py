"""Where pictures take their numbers: from the record, else measured on the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forgetkit.auditing.evidence import Evidence, Missing
from forgetkit.metric import find_metric
from forgetkit.report.drawing import ORDER
from forgetkit.report.record import Record, mapping_in, numbers_in, sequence_in


def details_of(record: Record, evidence: Evidence | None, slug: str) -> Mapping[str, object]:
    """Return the details of a finding; those of the record before those of the evidence.

    Raises:
        Missing: the record lacks the finding and there is no evidence to measure it on.
    """
    entry = record.find(slug)
    if entry is not None and entry.details:
        return entry.details
    if evidence is None:
        told = next((e.note for e in record.findings if e.slug == slug and e.note), "")
        raise Missing(told or f"needs the finding {slug!r}, which the record does not hold")
    return find_metric(slug)().measure(evidence).details


def samples_of(record: Record, slug: str) -> str:
    """Return ``" n = 100."`` as far as the record tells."""
    entry = record.find(slug)
    return f" n = {entry.samples}." if entry is not None and entry.samples else ""


def lines_by_role(table: object) -> dict[str, list[float]]:
    """Return lists of numbers by role, in the order in which models are drawn."""
    found = {role: numbers_in(values) for role, values in mapping_in(table).items()}
    return {role: found[role] for role in ORDER if found.get(role)}


def forgotten_classes(record: Record, evidence: Evidence | None) -> tuple[int, ...]:
    """Return the forgotten class indices as far as they are known."""
    return evidence.forget_classes if evidence is not None else record.forget_classes


def class_name(record: Record, evidence: Evidence | None, label: int) -> str:
    """Return the name of a class, or its index in words."""
    given: Sequence[object] | None = evidence.class_names if evidence is not None else None
    given = given or sequence_in(record.facts.get("class_names"))
    if label < len(given):
        return str(given[label])
    by_class = record.find("class_accuracy")
    if by_class is not None:
        known = sequence_in(by_class.details.get("classes"))
        names = sequence_in(by_class.details.get("names"))
        if label in known and len(names) == len(known):
            return str(names[list(known).index(label)])
    return f"class {label}"


def is_masked(record: Record, evidence: Evidence | None) -> bool:
    """Return whether the head, or the measure of accuracy, hides the forgotten classes."""
    entry = record.find("accuracy")
    if entry is not None and entry.details.get("masked") is True:
        return True
    if evidence is not None:
        return evidence.head_masked
    return record.facts.get("head_masked") is True
