"""Methods x seeds x forget targets on one model and its data, resumable, as tables."""

from __future__ import annotations

from forgetkit.comparing.grid import compare
from forgetkit.comparing.table import COLUMNS, Comparison, Row
from forgetkit.comparing.written import RunRecord

__all__ = ["COLUMNS", "Comparison", "Row", "RunRecord", "compare"]
