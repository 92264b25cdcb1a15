"""Collected outputs and the registry of metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from forgetkit.auditing.evidence import Evidence, Missing, Subject, collect
from forgetkit.auditing.inputs import view_of
from forgetkit.data.sets import StoredSet
from forgetkit.errors import BadHyperparameter, UnknownMethod
from forgetkit.fields import bounded
from forgetkit.metric import Finding, Metric, MetricCard, find_metric, register_metric
from forgetkit.testing import TOYS, toy


@pytest.mark.parametrize("kind", TOYS)
def test_outputs_do_not_depend_on_the_batch_size_and_leave_no_trace(kind: str) -> None:
    some = toy(kind)
    images, labels = some.train.tensors
    samples = StoredSet(images, labels)
    view = view_of(some.model, samples, torch.device("cpu"), None)
    some.model.train()
    whole = collect(some.model, {"forget": samples}, view=view)["forget"]
    assert some.model.training
    for size in (1, 7):
        parts = collect(some.model, {"forget": samples}, view=view, batch_size=size)["forget"]
        assert torch.allclose(parts.logits, whole.logits, atol=1e-5)
    assert view is not None
    assert whole.features is not None
    assert whole.features.shape == (len(samples), 16)
    assert torch.allclose(view.head(whole.features), whole.logits, atol=1e-5)
    assert whole.log_probs.dtype == torch.float64
    assert float(whole.log_probs.exp().sum(dim=1).sub(1).abs().max()) < 1e-12


def test_what_is_missing_is_named() -> None:
    some = toy("cnn")
    evidence = Evidence({"unlearned": Subject(some.model, {}, None)}, {}, "classes", (3,), 4)
    with pytest.raises(Missing, match="needs the retrained model"):
        evidence.of("retrained", "forget")
    with pytest.raises(Missing, match="needs test samples of the forgotten classes"):
        evidence.of("unlearned", "test_forget")
    with pytest.raises(Missing, match="needs training samples to keep"):
        evidence.samples("retain")
    assert evidence.kept_classes == (0, 1, 2)
    assert not evidence.has("unlearned", "forget")


CARD = MetricCard(
    slug="probe_metric", title="Probe", group="score", level="quick", range="[0, 1]", good="1",
    bad="Something is left.", needs="nothing", cost="none", source="tests",
    link="https://example.org", about="Measures nothing.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProbeMetric(Metric):
    """Returns its own setting."""

    card: ClassVar[MetricCard] = CARD
    share: float = bounded(0.5, 0.0, 1.0, "a share of something")

    def measure(self, evidence: Evidence) -> Finding:
        return self.finding(self.share, samples=evidence.num_classes)


def test_a_metric_checks_its_settings_and_records_them() -> None:
    with pytest.raises(BadHyperparameter, match="share must be a number"):
        ProbeMetric(share=2.0)
    evidence = Evidence({}, {}, "classes", (3,), 4)
    record = ProbeMetric(share=0.25).measure(evidence).to_json()
    assert json.loads(json.dumps(record, allow_nan=False))["settings"] == {"share": 0.25}
    infinite = Finding("probe_metric", float("inf"), details={"steps": [1.0, float("nan")]})
    assert infinite.to_json()["value"] == "inf"
    assert infinite.to_json()["details"] == {"steps": [1.0, "nan"]}


def test_a_metric_without_mathematics_is_refused() -> None:
    with pytest.raises(BadHyperparameter, match="an own measure"):

        @register_metric
        @dataclass(frozen=True, kw_only=True)
        class Empty(Metric):
            card: ClassVar[MetricCard] = CARD


def test_an_unknown_metric_is_answered_with_names() -> None:
    with pytest.raises(UnknownMethod, match="expected the name of a registered metric"):
        find_metric("no_such_metric")
