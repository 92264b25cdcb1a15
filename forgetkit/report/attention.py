"""Attention of a transformer, read while it runs, and what it adds up to over all blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)


class AttentionReader(TorchFunctionMode):
    """Keeps the attention of every block that runs inside it, whoever wrote the block.

    Three ways to attend are known: PyTorch's fused ``scaled_dot_product_attention`` (timm,
    transformers), ``nn.MultiheadAttention`` (torchvision), and a plain softmax over square scores
    (both libraries without fused kernels).

    Args:
        samples: in the batch.

    Attributes:
        found: (samples, tokens, tokens) a block, mean over heads, rows that add up to 1.
        whole: whether all attention was of that form: not within windows, nor to fewer keys.
    """

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        self.whole = True
        self._samples = samples

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        named = dict(kwargs or {})
        if func is functional.multi_head_attention_forward:
            named |= {"need_weights": True, "average_attn_weights": True}
            answer = func(*args, **named)
            if isinstance(answer, tuple) and isinstance(answer[1], Tensor):
                self._keep(answer[1])
            return answer
        if func is functional.scaled_dot_product_attention:
            self._keep(_weights(*args, **named))
            return func(*args, **named)
        answer = func(*args, **named)
        if func in _SOFTMAX and isinstance(answer, Tensor) and answer.ndim == 4:
            self._keep(answer)
        return answer

    def _keep(self, weights: Tensor) -> None:
        mean = weights.detach().float()
        mean = mean.mean(dim=1) if mean.ndim == 4 else mean
        if mean.ndim == 3 and len(mean) == self._samples and mean.shape[1] == mean.shape[2]:
            self.found.append(mean)
        else:
            self.whole = False


def _weights(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(q k^T scale + mask), which the fused kernel never shows."""
    del value, dropout_p
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = query @ key.transpose(-2, -1) * (scale or 1.0 / math.sqrt(query.shape[-1]))
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    if attn_mask is not None:
        hidden = attn_mask.dtype is torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if hidden else scores + attn_mask
    return scores.softmax(dim=-1)


def rollout(attention: Sequence[Tensor]) -> Tensor:
    """Return how much of each input token reaches each output token, (samples, tokens, tokens).

        R = A'_L ... A'_2 A'_1,   A'_l = (A_l + I) / 2

    A_l is the attention of block l averaged over heads; the unit matrix stands for the residual
    connection. Rows add up to 1.

    Args:
        attention: (samples, tokens, tokens) a block, from the first to the last.

    Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, section 3.
    """
    first = attention[0]
    unit = torch.eye(first.shape[-1], dtype=first.dtype, device=first.device)
    total = unit.expand_as(first)
    for weights in attention:
        total = (weights + unit) / 2 @ total
    return total


def over_image(flow: Tensor, prefix: int, side: int) -> Tensor:
    """Return the part of each patch in the prediction, (samples, side, side).

    The row of the class token is read where tokens stand before the patches, else the mean of all
    rows, as a head that averages the patches does.

    Args:
        flow: (samples, tokens, tokens) from ``rollout``.
        prefix: tokens before the patches.
        side: patches a row.
    """
    reader = flow[:, 0] if prefix else flow.mean(dim=1)
    return reader[:, prefix:].reshape(-1, side, side)
