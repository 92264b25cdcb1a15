"""Run one metric on the evidence; what stops it becomes the reason why it was not run."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from forgetkit.auditing.evidence import Evidence, Missing, NotApplicable
from forgetkit.engine.session import borrowed_randomness
from forgetkit.metric import Cause, Finding, Metric

logger = logging.getLogger("forgetkit")


def attempt(metric: Metric, evidence: Evidence, broken: str = "") -> Finding:
    """Return what a metric found, or why it could not be run.

    Args:
        metric: to run.
        evidence: to run it on.
        broken: which models do not answer with numbers, if any.
    """
    if broken:
        return not_run(metric, "failed", f"needs finite predictions, but {broken}")
    try:
        with borrowed_randomness(evidence.seed):
            found = metric.measure(evidence)
    except Missing as reason:
        cause: Cause = "not applicable" if isinstance(reason, NotApplicable) else "missing"
        return not_run(metric, cause, str(reason))
    except Exception as error:  # one broken check must not cost the others
        logger.debug("the check %s failed", metric.card.slug, exc_info=True)
        text = (str(error).strip().splitlines() or ["no message"])[0]
        return not_run(metric, "failed", f"an error stopped it: {type(error).__name__}: {text}")
    if found.value is not None and math.isnan(found.value):
        note = f"its value is not a number; {found.note}".removesuffix("; ")
        return replace(found, value=None, verdict="not run", note=note)
    return found


def not_run(metric: Metric, cause: Cause, note: str) -> Finding:
    """Return the finding of a metric that was not run."""
    return replace(metric.finding(None, verdict="not run", note=note), cause=cause)
