"""The contract that every method passes, as plain functions, also for other people's methods.

``check_method(MyMethod)`` runs all of it on a toy CNN and a toy ViT.
"""

from __future__ import annotations

from forgetkit.testing.contract import CHECKS, check_method
from forgetkit.testing.toys import TOYS, Toy, toy

__all__ = ["CHECKS", "TOYS", "Toy", "check_method", "toy"]
