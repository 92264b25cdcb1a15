"""What must hold before a run may begin. Nothing here changes anything."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from forgetkit.errors import BadTarget, DataError, ModelError
from forgetkit.goal import Goal
from forgetkit.method import Method, all_cards
from forgetkit.types import Sets


def check_goal(method: Method, goal: Goal) -> None:
    """Refuse a goal that the method does not serve.

    Raises:
        BadTarget: the message names methods that do.
    """
    if goal.kind in method.card.goals:
        return
    others = [card.slug for card in all_cards() if goal.kind in card.goals]
    advice = f"use {' or '.join(others[:5])}" if others else "no registered method serves it yet"
    raise BadTarget(
        f"using({method.card.slug!r}): expected a goal of {', '.join(method.card.goals)}, found "
        f"{goal.kind}; {advice}"
    )


def check_sets(method: Method, sets: Sets) -> None:
    """Refuse to start without the sets that the method reads, or with labels it cannot use.

    Raises:
        DataError: a set is missing, or the labels are 0/1 vectors that the method cannot read.
    """
    labels = sets.forget.labels
    if labels.ndim == 2 and not method.card.multilabel:
        others = " or ".join(card.slug for card in all_cards() if card.multilabel)
        advice = f"use {others}"
        if bool((labels.sum(dim=1) == 1).all()):
            advice = f"pass labels.argmax(dim=1) if each has one class, or {advice}"
        raise DataError(
            f"{method.card.slug}: expected one class index per sample, found multi-label targets "
            f"(a 0/1 vector of {labels.shape[1]} labels each); {advice}"
        )
    if "retain" in method.needs and (sets.retain is None or len(sets.retain) == 0):
        raise DataError(
            f"{method.card.slug} needs samples to keep: expected a retain set, found none; pass "
            "`.retain(loader)` or run on a loader that holds the whole training set"
        )


SHARDING = ("FullyShardedDataParallel", "DeepSpeedEngine")
"""Wrappers that spread weights over processes, even over one."""
SHARDED = ("placements", "ds_id", "_is_flat_param")
"""What parameters of DTensor, of DeepSpeed's ZeRO-3 and flat ones of FSDP have."""


def check_model(model: nn.Module) -> None:
    """Refuse models whose weights cannot be edited in place.

    Raises:
        ModelError: no parameters, lazy, meta or sharded ones.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if not any(True for _ in model.parameters()):
        raise ModelError(
            f"model {type(model).__name__}: expected trainable weights, found no parameters; "
            "pass a trained classifier"
        )
    for name, module in model.named_modules():
        if type(module).__name__ in SHARDING:
            raise ModelError(_sharded(model, name or "the model itself"))
    for name, tensor in tensors:
        if is_lazy(tensor):
            raise ModelError(
                f"model {type(model).__name__}: expected initialised weights, found the lazy "
                f"parameter {name}; run the model once on a batch first"
            )
        if tensor.is_meta:
            raise ModelError(
                f"model {type(model).__name__}: expected weights in memory, found {name} on the "
                "meta device; load the weights (remove offloading) before unlearning"
            )
        if any(hasattr(tensor, mark) for mark in SHARDED):
            raise ModelError(_sharded(model, name))


def check_hooks(model: nn.Module, device: torch.device) -> None:
    """Refuse a model whose layers send their inputs elsewhere than where the run computes.

    The weights are gathered on one device for a run; hooks of Accelerate know nothing of it.

    Raises:
        ModelError: a hook of ``dispatch_model`` or ``device_map`` is bound to another device.
    """
    for name, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            bound = getattr(one, "execution_device", None)
            if bound is None or _same_device(torch.device(bound), device):
                continue
            raise ModelError(
                f"model {type(model).__name__}: expected layers that compute on {device}, as the "
                f"run does, found {name or 'the model itself'} bound to {torch.device(bound)} by a "
                "hook of Accelerate (device_map); load the model without device_map, or take the "
                "hooks off with accelerate.hooks.remove_hook_from_submodules, so that it lies on "
                "one device, and name that device with .on(...)"
            )


def _same_device(one: torch.device, other: torch.device) -> bool:
    """Return whether two devices are one; without an index it is the current one of its kind."""
    return one.type == other.type and (one.index == other.index or None in (one.index, other.index))


def check_not_quantised(model: nn.Module) -> None:
    """Refuse integer weights, which no edit and no patch can be exact on.

    Raises:
        ModelError: a layer keeps its weights packed, or in a tensor type of its own.
    """
    found = [name for name, module in model.named_modules() if hasattr(module, "_packed_params")]
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        # a class that wraps tensors, integers and scales in practice, behind one name
        if tensor.is_quantized or hasattr(tensor, "__tensor_flatten__"):
            found.append(name)
    if found:
        raise ModelError(
            f"model {type(model).__name__}: expected weights in floating point, found {found[0]} "
            "quantised; unlearn in the model that it was made from, and quantise that again"
        )


def check_takes_gradients(model: nn.Module) -> None:
    """Refuse weights that torch lets nobody train; audits, which change none, can do with them.

    Raises:
        ModelError: a parameter that is not frozen was made in inference mode.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.is_inference():
            raise ModelError(
                f"model {type(model).__name__}: expected weights that can be trained, found {name} "
                "made inside torch.inference_mode, which allows no gradients; build or load the "
                "model outside of it, or under torch.no_grad"
            )


def _sharded(model: nn.Module, name: str) -> str:
    return (
        f"model {type(model).__name__}: expected whole tensors, found {name} sharded (FSDP, ZeRO "
        "or DTensor); unlearn before sharding, or gather the weights into an unwrapped model first"
    )


def editable_parameters(
    candidates: dict[str, nn.Parameter], method: Method
) -> dict[str, nn.Parameter]:
    """Return the parameters that may change: those that are not frozen.

    Raises:
        ModelError: there are none, or all of them are frozen.
    """
    if not candidates:
        raise ModelError(
            f"{method.card.slug} edits the head: expected parameters that make the class scores, "
            "found fixed numbers (a buffer or a plain tensor, such as text features); register "
            "them as nn.Parameter, or use a method that edits all weights"
        )
    free = {name: p for name, p in candidates.items() if p.requires_grad}
    if free:
        return free
    names = ", ".join(list(candidates)[:3])
    raise ModelError(
        f"{method.card.slug} edits {'the head' if method.card.edits == 'head' else 'all weights'}: "
        f"expected parameters with requires_grad=True, found all {len(candidates)} frozen "
        f"({names}); call requires_grad_(True) on what may change"
    )


def check_untied(parameters: dict[str, nn.Parameter], tied: list[str]) -> None:
    """Refuse a head whose weights are also used elsewhere in the model.

    Raises:
        ModelError: an edited tensor is shared with a part that must not change.
    """
    if tied:
        raise ModelError(
            f"head parameters {', '.join(parameters)}: expected tensors of their own, found them "
            f"shared with {', '.join(tied)}; untie the weights first or use a full-network method"
        )
