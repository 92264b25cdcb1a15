"""The contract over every registered method, on a toy CNN and a toy ViT."""

from __future__ import annotations

import pytest

from forgetkit.method import Method, all_methods
from forgetkit.testing import CHECKS, TOYS


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("method", all_methods(), ids=lambda method: method.card.slug)
def test_contract(method: type[Method], kind: str, check: str) -> None:
    CHECKS[check](method, kind)
