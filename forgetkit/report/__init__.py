"""Reports of audits: one page to look at, and one that compares several."""

from forgetkit.report.compare import write_comparison
from forgetkit.report.page import write_report
from forgetkit.report.record import load_record

__all__ = ["load_record", "write_comparison", "write_report"]
