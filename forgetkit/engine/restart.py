"""Draw the weights of the live model anew, for a method that retrains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from forgetkit.engine.modes import frozen_tensors
from forgetkit.engine.remarks import remark_on_the_start
from forgetkit.engine.run import Run
from forgetkit.fresh import reset_weights


def restart(
    run: Run, slug: str, initial: Mapping[str, Tensor] | Callable[[], nn.Module] | None
) -> None:
    """Draw every weight anew; frozen layers stay, as the caller asked for by freezing them.

    Args:
        run: with the live model.
        slug: of the method.
        initial: untrained weights of the caller, or what makes a model that has them.
    """
    model = run.model
    live = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    names = frozen_tensors(model)
    frozen = {name: live[name].detach().clone() for name in names}
    moving = {n: p.detach().clone() for n, p in run.parameters.items()}
    try:
        reset_weights(model, initial)
        remark_on_the_start(slug, run, moving)
    finally:  # a reset that breaks leaves them, too: they are not among the edited tensors
        with torch.no_grad():
            for name, value in frozen.items():
                live[name].copy_(value)
    if frozen:
        run.log(
            f"{slug}: {len(frozen)} frozen tensors were not drawn anew: "
            f"{', '.join(names[:4])}; what they know of the forget set stays"
        )
