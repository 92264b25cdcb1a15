"""The reasons for which a model cannot be split, one short code each."""

from __future__ import annotations

from forgetkit.errors import CannotSplitModel

CODES: dict[str, str] = {
    "headless": "the model has no classifier",
    "not-logits": "the output is not one row of class scores a sample",
    "ambiguous-output": "several tensors of the output could be the logits",
    "no-affine": "nothing learned multiplies the features on the way to the output",
    "skip-input": "the logits also depend directly on the input",
    "features-not-logits": "the output looks like features, not like class scores",
    "classes": "the number of classes is not the expected one",
    "batch-first": "the features are not one row a sample",
    "batch-baked": "the code after the head depends on the batch size in an unknown way",
    "opaque": "a compiled or scripted region hides how the logits are made",
    "random": "two forward passes in eval mode differ",
    "lazy": "the model has parameters without a shape",
    "verify": "the head replayed on the features does not give the model's logits",
    "not-reached": "the head was not called",
    "read-only": "the head's weights cannot be edited in place",
    "tied": "a row of the head is shared with another part of the model",
}


def refusal(code: str, message: str) -> CannotSplitModel:
    """Build the error of ``code``, one of `CODES`."""
    if code not in CODES:
        raise KeyError(code)
    return CannotSplitModel(f"{message} [{code}]", code)
