"""Calls of linear layers and convolutions, watched where they happen.

``functional.linear`` and ``functional.conv2d`` on a parameter are seen, so padding modes,
subclasses and functional use need no cases of their own. A derived weight (weight norm,
standardised weights) is not the parameter and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from forgetkit.convolution_cuts import Cut, cut_of


@dataclass(frozen=True)
class Call:
    """One product of an input with a watched weight."""

    name: str
    weight: Tensor
    inputs: Tensor
    cut: Cut | None


class Watch(TorchFunctionMode):
    """Reports every linear map and convolution whose weight is one of the parameters."""

    def __init__(self, names: Mapping[int, str], report: Callable[[Call], None]) -> None:
        super().__init__()
        self._names = names
        self._report = report

    def __torch_function__(
        self,
        func: object,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if not callable(func):
            raise TypeError("torch calls functions only")
        named = dict(kwargs or {})
        if func is functional.multi_head_attention_forward:
            return self._attention(func, args, named)
        if func is functional.linear or func is torch.conv2d:
            weight = args[1] if len(args) > 1 else named.get("weight")
            inputs = args[0] if args else named.get("input")
            name = self._names.get(id(weight))
            if name is not None and isinstance(weight, Tensor) and isinstance(inputs, Tensor):
                cut = None if func is functional.linear else cut_of(weight, args, named)
                self._report(Call(name, weight, inputs.detach(), cut))
        return func(*args, **named)

    def _attention(
        self, func: Callable[..., object], args: tuple[object, ...], named: dict[str, object]
    ) -> object:
        """Report both projections of ``nn.MultiheadAttention``, whose weights it never calls.

        With the identity as output projection the function returns what its own projection
        multiplies; that projection is then done here, where it is seen.
        """
        keys = ("query", "key", "value", "embed_dim", "heads", "in_weight", "in_bias", "bias_k",
                "bias_v", "add_zero", "dropout_p", "out_weight", "out_bias")  # fmt: skip
        if len(args) < len(keys):  # called in a way of its own: left alone
            return func(*args, **named)
        given = dict(zip(keys, args, strict=False))
        shared = {"in_weight": given["in_weight"]}
        own = {f"{part}_proj_weight": named.get(f"{part}_proj_weight") for part in "qkv"}
        for key, weight in (shared | own).items():
            name = self._names.get(id(weight))
            if name is None or not isinstance(weight, Tensor):
                continue
            parts = ("query", "key", "value")
            wanted = parts if key == "in_weight" else [p for p in parts if p[0] == key[0]]
            seen: set[int] = set()
            for part in wanted:  # rows of W act on one of the three: all of them are protected
                inputs = given[part]
                if isinstance(inputs, Tensor) and id(inputs) not in seen:
                    seen.add(id(inputs))
                    self._report(Call(name, weight, inputs.detach(), None))
        out_weight, out_bias = given["out_weight"], given["out_bias"]
        name = self._names.get(id(out_weight))
        if name is None or not isinstance(out_weight, Tensor):
            return func(*args, **named)
        unit = torch.eye(out_weight.shape[1], dtype=out_weight.dtype, device=out_weight.device)
        found = func(*args[:11], unit, None, *args[13:], **named)
        if not isinstance(found, tuple) or not isinstance(found[0], Tensor):
            raise TypeError("attention returns its output and its weights")
        self._report(Call(name, out_weight, found[0].detach(), None))
        bias = out_bias if isinstance(out_bias, Tensor) else None
        return (functional.linear(found[0], out_weight, bias), *found[1:])
