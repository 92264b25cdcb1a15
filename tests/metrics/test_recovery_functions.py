"""Pure functions of the audits: check values, literal twins, and that no model is changed."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from torch import Tensor, nn

from forgetkit.auditing.excess import excess, standard_error, unlike_retrain
from forgetkit.auditing.intervals import wilson
from forgetkit.auditing.neighbourhood import jensen_shannon
from forgetkit.auditing.probes import (
    class_means,
    few_shot_rows,
    harmonic_mean,
    nearest_mean_head,
    probe_predictions,
    prototype_row,
    standardiser,
)
from forgetkit.auditing.quantising import SETTINGS, compressed, quantised, weights_of
from forgetkit.auditing.relearning import Curve, arrivals_verdict
from forgetkit.auditing.resurrection import border_mask, border_size, prompted
from forgetkit.errors import DataError
from forgetkit.metric import Verdict
from forgetkit.pixels import pixel_range
from forgetkit.testing import toy


def test_probe_pinned() -> None:
    columns = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    features = torch.cat([columns.repeat(5, 1), (columns + torch.tensor([1.0, 0.0])).repeat(5, 1)])
    labels = torch.tensor([0, 1]).repeat_interleave(15)
    (found,) = probe_predictions(features, labels, [features])
    assert float((found == labels).double().mean()) == 1.0
    (found,) = probe_predictions(torch.zeros(30, 2), labels, [torch.zeros(30, 2)])
    assert float((found == labels).double().mean()) == 0.5


def test_a_wide_probe_solved_in_the_span_equals_the_plain_one() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(4)
    features = torch.randn(12, 50, generator=draws, dtype=torch.float64) + labels[:, None]
    asked = torch.randn(200, 50, generator=draws, dtype=torch.float64) + 1
    plain = LogisticRegression(max_iter=2000, C=1.0, class_weight="balanced", tol=1e-8)
    wanted = torch.as_tensor(plain.fit(features.numpy(), labels.numpy()).predict(asked.numpy()))
    (found,) = probe_predictions(features, labels, [asked])
    assert float((found == wanted).double().mean()) > 0.99


def test_a_probe_of_one_class_gets_a_sentence() -> None:
    with pytest.raises(DataError, match="at least two classes, found fewer"):
        probe_predictions(torch.zeros(3, 2), torch.zeros(3).long(), [])
    with pytest.raises(DataError, match="NaN or infinity"):
        probe_predictions(torch.full((2, 2), math.nan), torch.tensor([0, 1]), [])


@pytest.mark.filterwarnings("error")
def test_one_sample_of_each_of_many_classes_is_no_warning() -> None:
    labels = torch.arange(25)
    (found,) = probe_predictions(torch.eye(25), labels, [torch.eye(25)])
    assert torch.equal(found, labels)


def test_few_shots_are_the_same_for_every_model() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    rows = few_shot_rows(labels, 2, seed=4)
    assert torch.bincount(labels[rows]).tolist() == [2, 2, 1]
    assert torch.equal(rows, few_shot_rows(labels, 2, seed=4))


def test_a_constant_column_is_not_blown_up() -> None:
    features = torch.tensor([[1e6, 0.0], [1e6, 2.0]])
    mean, deviation = standardiser(features)
    assert mean.tolist() == [1e6, 1.0]
    assert deviation.tolist() == [1.0, 1.0]


def test_nearest_mean_head_is_the_nearest_centroid() -> None:
    draws = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (60,), generator=draws)
    features = torch.randn(60, 4, generator=draws, dtype=torch.float64)
    weight, bias = nearest_mean_head(*class_means(features, labels, 5))
    found = (features @ weight.T + bias).argmax(dim=1)
    wanted = NearestCentroid().fit(features.numpy(), labels.numpy()).predict(features.numpy())
    assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize(("beta", "wanted"), [(0, -2.0), (0.25, -1.0), (0.5, 0.0), (1, 2.0)])
def test_prototype_pinned(beta: float, wanted: float) -> None:
    weight = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    own = torch.tensor([2.0, 0.0])
    found, bias = prototype_row(weight, torch.zeros(2), 0, own, [1], beta)
    assert (found @ own + bias).tolist() == pytest.approx([wanted, 0.0])
    assert weight[0].tolist() == [-1.0, 0.0]


def test_harmonic_mean() -> None:
    assert harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_quantisation_pinned() -> None:
    weight = torch.tensor([[0.7, -0.33, 0.1], [1.4, 0.0, 0.31]])
    four = torch.tensor([[0.7, -0.3, 0.1], [1.4, 0.0, 0.4]])
    eight = torch.tensor([[0.7, -0.330709, 0.099213], [1.4, 0.0, 0.308661]])
    assert torch.allclose(quantised(weight, 4), four, atol=1e-6)
    assert torch.allclose(quantised(weight, 8), eight, atol=1e-6)
    assert torch.allclose(quantised(weight.T, 4, axis=1), four.T, atol=1e-6)
    assert torch.equal(quantised(torch.zeros(2, 2), 4), torch.zeros(2, 2))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_quantisation_equals_the_fake_quantisation_of_torch(bits: int) -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(bits))
    top = 2 ** (bits - 1)
    scale = weight.abs().amax(dim=1) / (top - 1)
    wanted = torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros(5, dtype=torch.int32), 0, -top, top - 1
    )
    assert torch.allclose(quantised(weight, bits), wanted, atol=1e-6)


def test_casting_pinned() -> None:
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.001], [0.501]]))
    half = compressed(layer, "bfloat16").state_dict()["weight"]
    assert half.dtype == torch.float32
    assert half[:, 0].tolist() == [1.0, 0.5]
    other = compressed(layer, "float16").state_dict()["weight"]
    assert other[:, 0].tolist() == pytest.approx([1.001, 0.501], abs=5e-4)
    assert layer.weight[:, 0].tolist() == pytest.approx([1.001, 0.501])


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_compressed_copies_differ_and_prune_what_is_asked(kind: str) -> None:
    model = toy(kind).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for setting in SETTINGS:
        twin = compressed(model, setting)
        assert any(not torch.equal(before[n], t) for n, t in twin.state_dict().items())
    pruned = torch.cat([w.flatten() for w, _ in weights_of(compressed(model, "pruned 30 %"))])
    assert float((pruned == 0).double().mean()) == pytest.approx(0.3, abs=0.01)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_over_unlearning_pinned() -> None:
    left = torch.tensor([[0.0, 0.75, 0.25]], dtype=torch.float64)
    right = torch.tensor([[0.1, 0.6, 0.3]], dtype=torch.float64)
    found = float(jensen_shannon(left, right))
    assert found == pytest.approx(0.039971, abs=1e-6)
    assert found / math.log(2) == pytest.approx(0.057665, abs=1e-6)
    assert float(jensen_shannon(left, left)) == 0.0


def test_border_sizes_pinned() -> None:
    assert border_size(3, 32, 32, 4) == 1344
    assert border_size(3, 224, 224, 30) == 69840
    assert border_size(3, 8, 8, 4) == 3 * 64
    assert int(border_mask(8, 8, 1).sum()) == 28


def test_a_prompt_of_zeros_changes_nothing() -> None:
    images = torch.rand(3, 1, 8, 8)
    shown = prompted(images, torch.zeros(1, 8, 8), pixel_range(None, [images]))
    assert isinstance(shown, Tensor)
    assert torch.equal(shown, images)


def test_arrivals() -> None:
    curve = Curve([0, 5, 10], [0.0, 0.5, 0.9], [1.0, 1.0, 1.0])
    assert curve.arrival(0.5) == 5
    assert curve.arrival(0.95) == math.inf
    assert curve.area() == pytest.approx(1.4 / 3)


@pytest.mark.parametrize(
    ("own", "controls", "verdict"),
    [
        (5, [6, 9], "residual"),
        (6, [6, 9], "as retrain"),
        (18, [6, 9], "as retrain"),
        (19, [6, 9], "over-forgotten"),
        (6, [6, math.inf], "as retrain"),
        (6, [math.inf], "residual"),
        (math.inf, [6, 10], "over-forgotten"),  # more than 20 steps
        (math.inf, [6, 11], "not decidable"),  # perhaps 21 steps, perhaps 200
        (math.inf, [6, math.inf], "not decidable"),
        (math.inf, [math.inf], "not decidable"),  # nobody learns anything
        (6, [], "not decidable"),
    ],
)
def test_what_never_arrives_needs_more_than_the_cap(
    own: float, controls: list[float], verdict: Verdict
) -> None:
    assert arrivals_verdict(own, controls, 20) == verdict


def test_excess_needs_two_standard_errors() -> None:
    draws = torch.Generator().manual_seed(0)
    other = (torch.rand(10, 200, generator=draws) < 0.5).double()
    assert excess({"unlearned": other}, [other]) == (0.0, 0.0, "as retrain")
    assert excess({"unlearned": other}, []) == (None, None, "not decidable")
    better = (torch.rand(10, 200, generator=draws) < 0.8).double()
    value, error, verdict = excess({"unlearned": better}, [other])
    assert verdict == "residual"
    assert value == pytest.approx(0.3, abs=0.05)
    assert error is not None
    assert error < 0.05
    far = torch.zeros_like(other)
    assert excess({"unlearned": better}, [other, torch.ones_like(far)])[2] == "as retrain"


def test_the_standard_error_counts_draws_and_samples() -> None:
    assert standard_error(torch.ones(4, 5)) == 0.0
    rows = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert standard_error(rows) == pytest.approx(0.5)
    assert standard_error(rows.T) == pytest.approx(0.5)


def test_verdicts_of_attacks() -> None:
    high = torch.linspace(0.7, 0.8, 100, dtype=torch.float64)
    low = torch.linspace(0.45, 0.55, 100, dtype=torch.float64)
    assert unlike_retrain(high, [], True) == ("not decidable", None)
    assert unlike_retrain(high, [low], True)[0] == "residual"
    assert unlike_retrain(low, [high], True)[0] == "over-forgotten"
    assert unlike_retrain(low, [low], True)[0] == "as retrain"
    assert unlike_retrain(low, [low], False)[0] == "not decidable"


def test_wilson_pinned() -> None:
    assert wilson(0, 100) == pytest.approx((0.0, 0.036993), abs=1e-6)
    assert wilson(9, 10) == pytest.approx((0.595850, 0.982123), abs=1e-6)
