from __future__ import annotations

import pytest
import torch
import toy_evidence as toys
from torch import nn

from forgetkit.auditing.evidence import Evidence, Missing, Subject
from forgetkit.metrics.layer_distance import LayerDistance, distances


def line(*weights: float) -> nn.Module:
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    return model


def test_pinned() -> None:
    found = distances(line(1, 2, 5), line(1, 2, 3))
    assert found["weight"] == pytest.approx((2.0, 0.534522), abs=1e-6)
    evidence = Evidence(
        {"unlearned": Subject(line(1, 2, 5), {}, None),
         "original": Subject(line(1, 2, 3), {}, None)},
        {}, "classes", (0,), 1,
    )  # fmt: skip
    assert LayerDistance().measure(evidence).value == pytest.approx(0.534522, abs=1e-6)


def test_a_head_edit_is_named() -> None:
    found = LayerDistance().measure(toys.evidence(references=2))
    assert found.details["head_only"] is True
    assert found.verdict == "residual"
    assert "features still carry" in found.note
    assert set(found.details["moved"]) == {"fc.weight", "fc.bias"}  # type: ignore[call-overload]  # a list
    # two retrained models are as far apart as one is from the original
    assert found.details["between_retrained"] == pytest.approx(
        found.controls["retrained"], rel=0.25
    )


def test_whole_networks_have_no_verdict_and_unchanged_ones_are_residual() -> None:
    found = LayerDistance().measure(toys.evidence(toys.retrained()[0]))
    assert found.verdict == "no verdict"
    assert found.details["to_retrained_whole"] == 0.0
    same = LayerDistance().measure(toys.evidence(toys.original()))
    assert (same.value, same.details["moved"], same.verdict) == (0.0, [], "residual")
    assert same.note == "no tensor changed"


def test_other_architectures_are_refused() -> None:
    subjects = {"unlearned": Subject(line(1, 2, 3), {}, None), "original": toys.original()}
    with pytest.raises(Missing, match="tensors of the same names"):
        LayerDistance().measure(Evidence(subjects, {}, "classes", (0,), 1))  # type: ignore[arg-type]  # roles
