"""What all findings mean together, in plain words, from their verdicts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forgetkit.metric import Cause, Finding, MetricCard, Verdict

HEAD_ONLY = "Only the classification head changed; the features still carry whatever they carried."
OUTPUT_ONLY = "Output-level only: features not examined."
MASKED = (
    "The forget accuracy is 0 by construction, because the head hides the forgotten classes: it "
    "shows nothing."
)
UNCHANGED = "The model is the original, bit for bit: nothing was forgotten."
NOT_TESTED: dict[Cause, str] = {
    "missing": "Not tested, for want of data or models",
    "not applicable": "Not tested, because they do not apply to this request",
    "failed": "Not tested, because an error stopped them",
    "interrupted": "Not tested, because the audit was interrupted",
    "": "Not tested",
}
"""What is said of checks that were not run, by cause."""
LAST = "This is evidence from the checks listed here, not a proof of deletion."


@dataclass(frozen=True)
class Circumstances:
    """What the sentences need to know beside the findings.

    Args:
        target: what was to be forgotten, in words.
        head_only: whether only the head differs from the original; ``None`` when not known.
        unchanged: whether no tensor differs from the original.
        head_masked: whether the forget accuracy is 0 by construction.
        has_reference: whether a retrained model was at hand.
        partial: whether the audit was interrupted.
        level: of the audit.
        beyond: titles of the checks of higher levels, which were not asked for.
        blind: slugs of the checks that take the original, too, for a retrained model.
        untried: slugs of the checks that came out as after retraining and were not tried on the
            original.
    """

    target: str
    head_only: bool | None = None
    unchanged: bool = False
    head_masked: bool = False
    has_reference: bool = False
    partial: bool = False
    level: str = "quick"
    beyond: tuple[str, ...] = ()
    blind: tuple[str, ...] = ()
    untried: tuple[str, ...] = ()


def looks_behind(card: MetricCard) -> bool:
    """Return whether a metric looks for what plain answers do not show."""
    return card.looks_at in ("features", "disturbed")


def verdict(
    findings: Sequence[Finding], cards: Mapping[str, MetricCard], known: Circumstances
) -> list[str]:
    """Return the sentences of the verdict.

    Args:
        findings: of one audit.
        cards: of their metrics, by slug.
        known: what else decides on the words.

    Returns:
        One sentence or more; none says that anything was deleted for certain.
    """
    by: dict[Verdict, list[MetricCard]] = {}
    for finding in findings:
        by.setdefault(finding.verdict, []).append(cards[finding.slug])
    ran = [cards[f.slug] for f in findings if f.verdict != "not run"]
    lines = _judged(by, known, silent=known.head_masked or any(map(_silent, findings)))
    if not ran:
        wanting = all(finding.cause == "missing" for finding in findings)
        why = ": every check lacks something that was not given" if wanting else ""
        lines.append(f"Nothing was tested{why}.")
    elif not any(card.looks_at == "features" for card in ran):
        lines.append(OUTPUT_ONLY)
    if known.unchanged:
        lines.append(UNCHANGED)
    elif known.head_only:
        lines.append(HEAD_ONLY)
    if known.head_masked:
        lines.append(MASKED)
    lines += _undecided(by.get("not decidable", []), known)
    lines += _not_tested(findings, cards)
    if known.beyond:
        lines.append(f"Not tested at level {known.level}: {', '.join(known.beyond)}.")
    if known.partial:
        lines.append("The audit was interrupted; what it had not reached was not tested.")
    return [*lines, LAST]


def _not_tested(findings: Sequence[Finding], cards: Mapping[str, MetricCard]) -> list[str]:
    """Return a sentence for each reason why checks were not run."""
    by: dict[Cause, list[MetricCard]] = {}
    for finding in findings:
        if finding.verdict == "not run":
            by.setdefault(finding.cause, []).append(cards[finding.slug])
    return [f"{words}: {titles(by[cause])}." for cause, words in NOT_TESTED.items() if cause in by]


def _undecided(cards: Sequence[MetricCard], known: Circumstances) -> list[str]:
    """Return a sentence for checks that would pass the original, and one for the others."""
    blind = [card for card in cards if card.slug in known.blind]
    others = [card for card in cards if card.slug not in known.blind]
    parts = (("Not decidable, because the original passes too", blind), ("Not decidable", others))
    return [f"{words}: {titles(found)}." for words, found in parts if found]


def titles(cards: Sequence[MetricCard]) -> str:
    """Return the names of metrics in a row."""
    return ", ".join(card.title for card in cards)


def _silent(found: Finding) -> bool:
    """Return whether an accuracy shows that the model no longer answers what it was to forget.

    It does when it is as after retraining or below, or, where that cannot be told, surely below
    half of the original's, from which on the relearning attack takes a class to be back.
    """
    if found.slug != "accuracy":
        return False
    if found.verdict != "not decidable":
        return found.verdict in ("as retrain", "over-forgotten")
    before = found.controls.get("original")
    return before is not None and found.interval is not None and found.interval[1] < before / 2


def _judged(
    by: Mapping[Verdict, list[MetricCard]], known: Circumstances, *, silent: bool
) -> list[str]:
    left, over, alike = (
        by.get(name, [])
        for name in ("residual", "over-forgotten", "as retrain")  # type: tuple[Verdict, ...]
    )
    lines = []
    if left:
        lines += _traces(left, known, hidden=silent and not known.unchanged)
    if over:
        lines.append(
            f"Over-forgotten by {titles(over)}: the model treats {known.target} unlike a "
            "retrained model, which by itself can give the request away."
        )
    if alike and known.unchanged:
        lines.append(f"No difference from a retrained model is seen by {titles(alike)}.")
    elif alike and not left and not over:
        lines.append(
            f"As far as tested ({titles(alike)}), the model behaves as one that was not trained "
            f"on {known.target}.{_untried(alike, known)}"
        )
    elif alike:
        lines.append(f"As after retraining by {titles(alike)}.")
    if not (left or over or alike) and (by.get("no verdict") or by.get("not decidable")):
        why = "" if known.has_reference else "; most need a model retrained without the samples"
        lines.append(f"No check that ran could decide{why}.")
    return lines


def _untried(alike: Sequence[MetricCard], known: Circumstances) -> str:
    """Say of which checks nothing shows that they would find anything."""
    missed = [card for card in alike if card.slug in known.untried]
    if not missed:
        return ""
    if len(missed) < len(alike):
        return f" Not tried on the original: {titles(missed)}."
    return " No check was tried on the original: nothing shows that they would find anything there."


def _traces(left: list[MetricCard], known: Circumstances, *, hidden: bool) -> list[str]:
    """Tell a class that is hidden from one that plainly is still there.

    It is hidden when something behind the outputs finds it, though the model is known not to
    answer with it any more: by its accuracy, or because output rows were masked.
    """
    behind = [card for card in left if looks_behind(card)]
    before = [card for card in left if not looks_behind(card)]
    if behind and hidden:
        lines = [
            f"Hidden, not gone: the model no longer answers as if it knew {known.target}, but it "
            f"is still found by {titles(behind)}."
        ]
        if before:
            lines.append(f"Traces are left as well by {titles(before)}.")
    else:
        lines = [f"Traces of {known.target} are left, found by {titles(left)}."]
    worst = (behind or left)[0]
    return [*lines, f"What that means ({worst.title}): {worst.bad}"]
