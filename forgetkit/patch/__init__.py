"""A model edit as a file: exact, checked before anything is written, and reversible."""

from __future__ import annotations

from forgetkit.patch.core import Patch
from forgetkit.patch.header import Entry

__all__ = ["Entry", "Patch"]
