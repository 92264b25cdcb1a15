"""Every error that forgetkit raises on purpose.

A message has four parts: which argument, what was expected, what was found, what to do.
"""

from __future__ import annotations


class ForgetkitError(Exception):
    """Base of all errors raised by forgetkit."""


class UnknownMethod(ForgetkitError, LookupError):
    """A method name that is not registered."""


class BadHyperparameter(ForgetkitError, ValueError):
    """A hyper-parameter or option that is unknown, of the wrong type or out of range."""


class BadTarget(ForgetkitError, ValueError):
    """What to forget is empty, ambiguous, out of range or not served by the method."""


class CannotSplitModel(ForgetkitError, RuntimeError):
    """The model could not be split into features and head.

    Args:
        message: what was tried and what to pass.
        code: one short word per cause, listed in ``docs/adapters.md``.
    """

    def __init__(self, message: str, code: str = "unknown") -> None:
        super().__init__(message)
        self.code = code


class ModelError(ForgetkitError, TypeError):
    """The model as a whole cannot be loaded or edited (not a module, meta tensors, sharded)."""


class DataError(ForgetkitError, ValueError):
    """Batches, labels or data sets that cannot be used."""


class MissingFile(DataError, FileNotFoundError):
    """A file that was named is not there."""


class UnlearningFailed(ForgetkitError, RuntimeError):
    """The run broke; the model holds its former weights, unless the message names others."""


class PatchMismatch(ForgetkitError, ValueError):
    """A patch or an undo does not fit the model it is applied to."""
