"""``using("auto")``: which registered method fits the request, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forgetkit.errors import BadTarget
from forgetkit.method import Method, find

if TYPE_CHECKING:
    from forgetkit.api import Request

PREFERENCE = {
    "classes": ("lau",),
    "instances": ("finetune", "neggrad"),
    "relabel": (),
    "depoison": (),
}


def choose(request: Request) -> tuple[Method, str]:
    """Return the method for the request's goal and one sentence that says why.

    Raises:
        BadTarget: no registered method serves the goal.
    """
    goal = request.goal
    kind = goal.kind if goal is not None else "none"
    for slug in PREFERENCE.get(kind, ()):
        method = find(slug)
        has_retain = request.retain_loader is not None
        if "retain" in method.card.needs and not has_retain:
            continue
        wanted = ", ".join(method.card.needs)
        return method(), (
            f"auto chose {slug}: the goal is {kind}, it needs only {wanted}, which is at hand, "
            f"and costs {method.card.cost}"
        )
    raise BadTarget(
        f'using("auto"): expected a goal that a registered method serves, found {kind}; name a '
        "method, see `forgetkit methods`"
    )
