from __future__ import annotations

import pytest
import torch
import toy_evidence as toys

from forgetkit.auditing.cka import linear_cka
from forgetkit.auditing.evidence import Evidence, Missing, Subject
from forgetkit.metrics.cka import CKA


def test_a_head_edit_leaves_the_features() -> None:
    found = CKA().measure(toys.evidence())
    assert found.value == pytest.approx(1.0, abs=1e-9)
    first, last = (s.outputs["forget"].features for s in (toys.retrained()[0], toys.original()))
    assert first is not None
    assert last is not None
    assert found.controls["retrained"] == pytest.approx(linear_cka(first, last), abs=1e-9)


def test_kept_samples_stay_nearer_than_forgotten_ones() -> None:
    tables = CKA().measure(toys.evidence()).details["sets"]
    assert isinstance(tables, dict)
    pair = "unlearned-retrained"
    assert tables["test_retain"][pair] > tables["forget"][pair]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(Missing, match="needs the original or a retrained model"):
        CKA().measure(toys.evidence(roles=()))
    flat = toys.outputs(torch.zeros(9, 2), torch.zeros(9, dtype=torch.int64), torch.ones(9, 3))
    subject = Subject(toys.original().model, {"forget": flat}, None)
    with pytest.raises(Missing, match="all are equal"):
        CKA().measure(Evidence({"unlearned": subject, "original": subject}, {}, "classes", (0,), 2))
    blind = toys.outputs(torch.zeros(9, 2), torch.zeros(9, dtype=torch.int64))
    subject = Subject(toys.original().model, {"forget": blind}, None)
    with pytest.raises(Missing, match="cannot be split"):
        CKA().measure(Evidence({"unlearned": subject, "original": subject}, {}, "classes", (0,), 2))
