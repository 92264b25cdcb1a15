"""Bounds that do not hold the images, in every method that takes bounds."""

from __future__ import annotations

from typing import Any

import pytest

from forgetkit import forget
from forgetkit.method import build
from forgetkit.testing import toy

SETTINGS: dict[str, dict[str, Any]] = {
    "adv": {"adversaries": 1, "attack_steps": 1, "epochs": 1},
    "amun": {"attack_steps": 1, "epochs": 1},
    "boundary_shrink": {"epochs": 1},
    "gli": {"max_batches": 1},
    "spotter": {"epochs": 1, "forget_weight": 0.5},
}


@pytest.mark.parametrize("slug", SETTINGS)
@pytest.mark.parametrize("bounds", [None, (-8.0, 8.0), (0.0, 1.0)])
def test_bounds_that_do_not_hold_the_images_are_noted(
    slug: str, bounds: tuple[float, float] | None
) -> None:
    """Images of the toys run from about -5 to 6."""
    some = toy("cnn")
    method = build(slug, {**SETTINGS[slug], "bounds": bounds})
    request = forget(some.model)
    asked = request.instances(range(8)) if slug in ("adv", "amun", "gli") else request.classes([3])
    notes = asked.using(method).on("cpu").run(some.loader(), guard=None).notes
    told = [note for note in notes if note.startswith("bounds: ")]
    assert len(told) == (bounds == (0.0, 1.0))
    assert all("lie outside [0, 1] (as given by bounds) and are cut to it" in one for one in told)
