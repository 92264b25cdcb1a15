from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toy_evidence as toys
from torchmetrics.regression import JensenShannonDivergence

from forgetkit.auditing.to_reference import _apart
from forgetkit.auditing.training_spread import beyond
from forgetkit.metrics.js import JSToRetrained, bits

P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64).log()
Q = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], dtype=torch.float64).log()


def test_pinned() -> None:
    assert float(bits(Q, P).mean()) == pytest.approx(0.042618, abs=1e-6)
    assert torch.equal(bits(P, Q), bits(Q, P))


def test_as_torchmetrics() -> None:
    found = JSToRetrained().measure(toys.evidence())
    own, reference = (
        subject.outputs["forget"].log_probs for subject in (toys.patched(), toys.retrained()[0])
    )
    nats = float(JensenShannonDivergence(log_prob=True)(own, reference))
    assert found.value == pytest.approx(nats / 0.6931471805599453, abs=1e-6)


def test_verdict() -> None:
    kept = JSToRetrained().measure(toys.evidence(toys.original(), references=3))
    assert kept.verdict == "residual"
    same = JSToRetrained().measure(toys.evidence(toys.retrained()[0], references=3))
    assert same.value == pytest.approx(0.0, abs=1e-12)
    assert same.verdict == "as retrain"


def test_the_direction_is_left_open_where_nothing_tells_it() -> None:
    kept = toys.evidence(toys.original(), references=3)
    assert JSToRetrained().measure(replace(kept, head_masked=True)).verdict == "not decidable"
    blind = [
        replace(
            one,
            outputs={n: replace(found, known_labels=None) for n, found in one.outputs.items()},
        )
        for one in kept.references
    ]
    subjects = {**kept.subjects, "retrained": blind[0]}
    found = JSToRetrained().measure(replace(kept, subjects=subjects, references=blind))
    assert found.value is not None
    assert found.verdict == "not decidable"


@pytest.mark.slow
@pytest.mark.parametrize("models", [3, 5])
def test_what_one_more_model_would_be_is_wide_enough(models: int) -> None:
    """Of models that lie a_i + a_j apart, one in forty is called farther than one more would be.

    Half of the one in twenty outside the interval lies above it.
    """

    def added(reference: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
        return reference[:, 0] + model[:, 0]

    drawn = torch.randn(3000, models + 1, generator=torch.Generator().manual_seed(0)).double() + 9
    above = 0
    for own, *others in drawn.view(3000, models + 1, 1, 1):
        value = sum(float(added(other, own)) for other in others) / models
        apart = _apart(added, others)
        above += bool(beyond(value, apart)) and value > sum(apart) / models
    assert 0.018 < above / 3000 < 0.032
