"""The engine: one life of a request, whatever the method."""

from __future__ import annotations

from forgetkit.engine.execution import execute

__all__ = ["execute"]
