"""The demo: train two small models, make them forget a class, compare with the alternatives."""

from __future__ import annotations

from forgetkit.demo.course import DemoReport, Row, load_pair, run_demo

__all__ = ["DemoReport", "Row", "load_pair", "run_demo"]
