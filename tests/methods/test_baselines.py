from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.draws import uniform
from forgetkit.errors import DataError, ModelError
from forgetkit.fresh import reset_weights
from forgetkit.losses import blocked_classes, bounded_ascent, capped_ascent, membership
from forgetkit.method import Facts, find
from forgetkit.methods.linear_filtration import filtration_matrix
from forgetkit.methods.retrain import Retrain
from forgetkit.relabelling import drawn_classes
from forgetkit.testing import TOYS, toy
from forgetkit.testing.trace import changed, weights


class Added(nn.Module):
    """A head and another on the same features without a bias."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.second = base, nn.Linear(16, 4, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.base(features) + self.second(features)
        return logits


class Linear(nn.Module):
    """Two inputs, three classes, nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(inputs)
        return logits


class BufferBias(nn.Module):
    """The same with a bias that is not learned."""

    bias: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
        self.register_buffer("bias", torch.ones(3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.weight, self.bias)


def two_samples() -> DataLoader[tuple[torch.Tensor, ...]]:
    inputs = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    return DataLoader(TensorDataset(inputs, torch.tensor([0, 0])), batch_size=2)


def test_neggrad_moves_a_linear_head_by_the_mean_gradient() -> None:
    model = Linear()
    start = model.fc.weight.detach().clone()
    inputs = next(iter(two_samples()))[0]
    errors = (inputs @ start.T).softmax(dim=1) - torch.eye(3)[[0, 0]]
    expected = start + 0.1 * (errors.T @ inputs) / 2
    forget(model).classes([0]).using(
        "neggrad", epochs=1, lr=0.1, momentum=0.0, weight_decay=0.0, batch_size=2, max_norm=None
    ).on("cpu").run(two_samples(), guard=None)
    assert torch.allclose(model.fc.weight, expected, atol=1e-6)


def test_neggrad_raises_the_loss_and_stays_finite() -> None:
    some = toy("vit")
    result = (
        forget(some.model)
        .instances(range(40))
        .using("neggrad", epochs=50, lr=0.05)
        .on("cpu")
        .run(some.loader(), guard=None)
    )
    assert result.after["forget"].loss > result.before["forget"].loss
    assert all(math.isfinite(row["loss"]) for row in result.history)


def test_neggrad_stops_at_the_first_check_that_reaches_the_target() -> None:
    some = toy("cnn")
    request = forget(some.model).classes([3]).using("neggrad", lr=0.05, check_every=1, epochs=50)
    result = request.on("cpu").run(some.forget_loader(), guard=None)
    assert result.after["forget"].accuracy == 0.0
    assert result.history[-1]["epoch"] < 50
    assert "reached its target" in result.stopped_because


def test_ascent_ignores_samples_beyond_the_cap() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [-30.0, 0.0, 0.0, 0.0]], requires_grad=True)
    bounded_ascent(logits, torch.tensor([0, 0])).backward()
    assert logits.grad is not None
    assert float(logits.grad[0].abs().max()) > 0.1
    assert float(logits.grad[1].abs().max()) == 0.0


def test_the_cap_of_ascent_is_twice_log_k_plus_five() -> None:
    cap = 2 * math.log(4) + 5  # 7.773 nats for four classes
    # with logits (a, 0, 0, 0) the loss of class 0 is log(1 + 3 exp(-a))
    losses = [cap - 0.01, cap + 0.01, 1.0]
    logits = torch.tensor([[-math.log((math.exp(loss) - 1) / 3), 0, 0, 0] for loss in losses])
    value, beyond = capped_ascent(logits, torch.zeros(3, dtype=torch.long))
    assert beyond == 1
    assert float(value) == pytest.approx(-(cap - 0.01 + 1.0) / 3, rel=1e-4)


def test_the_cap_of_ascent_on_several_labels_is_that_of_two_choices() -> None:
    cap = 2 * math.log(2) + 5  # 6.386 nats
    # a label that is present costs log(1 + exp(-z)); three of one size have it as their mean
    losses = [cap - 0.01, cap + 0.01]
    logits = torch.tensor([[-math.log(math.exp(loss) - 1)] * 3 for loss in losses])
    value, beyond = capped_ascent(logits, torch.ones(2, 3))
    assert beyond == 1
    assert float(value) == pytest.approx(-(cap - 0.01) / 2, rel=1e-4)


def test_random_labels_avoid_what_is_blocked_and_are_uniform() -> None:
    labels = torch.full((10000,), 2)
    blocked = blocked_classes(labels, (2, 5), 7)
    drawn = drawn_classes(uniform(0, "random_label", torch.arange(10000))[:, None], blocked)[:, 0]
    counts = torch.bincount(drawn, minlength=7)
    assert counts[2] == 0
    assert counts[5] == 0
    assert chisquare(counts[counts > 0].numpy()).pvalue > 0.01


def test_wrong_labels_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, draws = torch.arange(50) % 7, torch.rand(50, 3, dtype=torch.float64)
    blocked = membership(labels, 7)
    assert blocked.dtype == torch.bool
    assert torch.equal(blocked, torch.nn.functional.one_hot(labels, 7).bool())
    whole = drawn_classes(draws, blocked)
    assert not bool((whole == labels[:, None]).any())
    counted: list[int] = []
    plain = torch.Tensor.cumsum

    def watched(self: torch.Tensor, dim: int) -> torch.Tensor:
        counted.append(self.numel())
        return plain(self, dim)

    monkeypatch.setattr(torch.Tensor, "cumsum", watched)
    monkeypatch.setattr("forgetkit.relabelling._AT_ONCE", 21)
    assert torch.equal(drawn_classes(draws, blocked), whole)
    assert max(counted) == 21


def test_random_labels_belong_to_the_sample() -> None:
    positions = torch.tensor([5, 900, 17, 3])
    order = torch.tensor([2, 0, 3, 1])
    drawn = uniform(7, "random_label", positions)
    assert torch.equal(drawn[order], uniform(7, "random_label", positions[order]))
    assert not torch.equal(drawn, uniform(8, "random_label", positions))
    assert not torch.equal(drawn, uniform(7, "other", positions))


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOYS)
def test_random_label_mix_keeps_more(kind: str) -> None:
    lost = {"none": 0.0, "mix": 0.0}
    for retain in lost:
        for seed in range(3):  # a single run can end almost anywhere
            some = toy(kind)
            kept = some.accuracy(some.test, [0, 1, 2, 3])
            asked = {"retain": retain, "lr": 0.02, "epochs": 15, "batch_size": 16}
            request = forget(some.model).seed(seed).instances(range(0, 240, 6))
            request = request.using("random_label", **asked).on("cpu")
            request.run(some.loader(), guard=None)
            lost[retain] += (kept - some.accuracy(some.test, [0, 1, 2, 3])) / 3
    assert lost["mix"] < lost["none"] - 0.3


def test_random_label_mix_reads_each_sample_once_an_epoch() -> None:
    some = toy("cnn")
    asked = {"preset": "mix", "lr": 0.0, "epochs": 2, "batch_size": 60}
    request = forget(some.model).instances([0, 1, 2]).using("random_label", **asked)
    result = request.on("cpu").run(some.loader(), guard=None)
    assert [row["steps"] for row in result.history] == [4.0, 8.0]  # 240 samples, 60 a step
    images, labels = some.train.tensors
    model = toy("cnn").model.eval()
    with torch.no_grad():
        each = nn.functional.cross_entropy(model(images), labels, reduction="none")
    # three wrong labels of 240 cannot weigh half of the loss
    assert result.history[0]["loss"] < float(each.mean()) + 0.5


@pytest.mark.parametrize("slug", ["random_label", "initial_label"])
def test_single_samples_are_relabelled_for_all_epochs(slug: str) -> None:
    some = toy("cnn")
    asked = {"lr": 0.05, "epochs": 8, "batch_size": 4, "check_every": 1}
    some_of_a_class = (some.train.tensors[1] == 3).nonzero()[:4, 0].tolist()
    request = forget(some.model).instances(some_of_a_class).using(slug, **asked)
    result = request.on("cpu").run(some.loader(), guard=None)
    assert any(row["forget_accuracy"] == 0.0 for row in result.history[:-1])
    assert len(result.history) == 8
    assert "all 8 epochs" in result.stopped_because


def test_the_cap_can_be_turned_off_and_is_counted() -> None:
    losses, capped = {}, {}
    for cap in (True, False):
        some = toy("cnn")
        asked = {"cap": cap, "lr": 0.05, "epochs": 1, "batch_size": 5}
        request = forget(some.model).instances(range(180, 240)).using("neggrad", **asked)
        result = request.on("cpu").run(some.loader(), guard=None)
        losses[cap] = result.after["forget"].loss
        capped[cap] = sum(row.get("capped", 0.0) for row in result.history)
    assert losses[False] > losses[True]
    assert capped[True] > 0
    assert capped[False] == 0


@pytest.mark.parametrize("kind", TOYS)
def test_finetune_does_not_raise_the_retain_loss(kind: str) -> None:
    some = toy(kind)
    images, labels = (tensor[some.train.tensors[1] != 3] for tensor in some.train.tensors)

    def loss() -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(some.model.eval()(images), labels))

    before = loss()
    request = forget(some.model).classes([3]).using("finetune", epochs=3, lr=0.01)
    request.on("cpu").run(some.loader(), guard=None)
    assert loss() <= before


@pytest.mark.parametrize("kind", TOYS)
def test_retrain_never_learns_the_class_and_learns_the_others(kind: str) -> None:
    some = toy(kind)
    kept = some.accuracy(some.test, [0, 1, 2])
    card = find("retrain").card
    settings = {**card.toy, **(card.toy_vit if kind == "vit" else {})}
    request = forget(some.model).classes([3]).using("retrain", **settings)
    result = request.on("cpu").run(some.loader(), guard=None)
    assert result.after["forget"].accuracy == 0.0
    assert some.accuracy(some.test, [3]) == 0.0
    assert some.accuracy(some.test, [0, 1, 2]) > 0.9 * kept


def test_finetune_with_lr_zero_changes_nothing() -> None:
    some = toy("cnn")
    before = weights(some.model)
    request = forget(some.model).classes([3]).using("finetune", lr=0.0, bn="frozen", epochs=1)
    request.on("cpu").run(some.loader(), guard=None)
    assert changed(before, weights(some.model)) == []


def test_finetune_step_equals_a_hand_written_step() -> None:
    some, other = toy("vit"), toy("vit")
    images, labels = some.train.tensors
    kept = labels != 3
    for module in [*some.model.modules(), *other.model.modules()]:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    forget(some.model).classes([3]).using(
        "finetune", epochs=1, batch_size=65536, momentum=0.0, lr=0.1
    ).on("cpu").run(some.loader(), guard=None)
    loss = nn.functional.cross_entropy(other.model.train()(images[kept]), labels[kept])
    loss.backward()
    for (name, ours), theirs in zip(
        some.model.named_parameters(), other.model.parameters(), strict=True
    ):
        assert theirs.grad is not None
        assert torch.allclose(ours, theirs - 0.1 * theirs.grad, atol=1e-5), name


def test_finetune_anchor_is_half_of_the_squared_way() -> None:
    way, term = [], []
    for epochs in (1, 2):
        some = toy("vit")
        for module in some.model.modules():  # dropout draws from the global state
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        before = weights(some.model)
        request = forget(some.model).classes([3]).on("cpu")
        request = request.using("finetune", anchor=3.0, epochs=epochs, batch_size=240, lr=0.05)
        result = request.run(some.loader(), guard=None)
        after = weights(some.model)
        way.append(sum(float((after[n] - before[n]).square().sum()) for n in before))
        term.append(result.history[-1]["loss_retain_anchor"])
    assert term[0] == 0.0
    assert term[1] == pytest.approx(1.5 * way[0], rel=1e-4)


def test_finetune_anchor_holds_the_weights() -> None:
    moved = {}
    for anchor in (0.0, 100.0):
        some = toy("vit")
        before = weights(some.model)
        request = forget(some.model).classes([3]).using("finetune", anchor=anchor, epochs=2)
        request.on("cpu").run(some.loader(), guard=None)
        after = weights(some.model)
        moved[anchor] = sum(float((after[n] - before[n]).square().sum()) for n in before)
    assert moved[100.0] < moved[0.0]


def test_retrain_does_not_depend_on_the_forgotten_images() -> None:
    outcomes = []
    for wiped in (False, True):
        some = toy("cnn")
        images, labels = some.train.tensors
        data = images.clone()
        if wiped:
            data[labels == 3] = 0.0
        loader = DataLoader(TensorDataset(data, labels), batch_size=32)
        request = forget(some.model).classes([3]).using("retrain", epochs=2, lr=0.01)
        request.on("cpu").run(loader, guard=None)
        outcomes.append(weights(some.model))
    assert changed(*outcomes) == []


@pytest.mark.parametrize("kind", TOYS)
def test_retrain_draws_every_tensor_anew(kind: str) -> None:
    some = toy(kind)
    before = weights(some.model)
    request = forget(some.model).classes([3]).using("retrain", epochs=1, lr=0.0, weight_decay=0.0)
    request.on("cpu").run(some.loader(), guard=None)
    same = [name for name in before if name not in changed(before, weights(some.model))]
    assert same == []


MEANS = torch.tensor([[4.0, 1, 0], [1, 3, 1], [0, 1, 5]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("normalization", [[0.549020, 0.803922, 0.039216], [0.549020, -0.196078, 1.039216]]),
        ("naive", [[0.0, 1, 0], [0, 0, 1]]),
    ],
)
def test_filtration_matrix_pinned(form: str, expected: list[list[float]]) -> None:
    found = filtration_matrix(MEANS, (0,), form, torch.zeros(2, 1))
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(found @ MEANS[:, 1:], MEANS[1:, 1:])


def test_filtration_matrix_forms() -> None:
    normal = filtration_matrix(MEANS, (0,), "normalization", torch.zeros(2, 1))
    assert torch.allclose(normal @ MEANS[:, 0], torch.tensor([3.0, 2.0], dtype=torch.float64))
    zero = filtration_matrix(MEANS, (0,), "zeroing", torch.zeros(2, 1))
    assert torch.allclose(zero @ MEANS[:, 0], torch.zeros(2, dtype=torch.float64), atol=1e-9)
    expected = torch.tensor([-0.274510, 1.098039, -0.019608], dtype=torch.float64)
    assert torch.allclose(zero[0], expected, atol=1e-6)
    noise = torch.tensor([[0.3], [-1.2]])
    drawn = filtration_matrix(MEANS, (0,), "randomization", noise)
    assert torch.allclose(drawn @ MEANS[:, 0], noise[:, 0].double(), atol=1e-6)


def mean_logits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean logits of each class, (classes, logits), in double precision."""
    with torch.no_grad():
        logits = model.eval()(images).double()
    return torch.stack([logits[labels == label].mean(dim=0) for label in range(4)])


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("form", ["normalization", "zeroing", "randomization"])
def test_linear_filtration_leaves_the_means_of_kept_classes(kind: str, form: str) -> None:
    some = toy(kind)
    images, labels = some.train.tensors
    before = mean_logits(some.model, images, labels)
    request = forget(some.model).classes([1]).using("linear_filtration", form=form)
    request.on("cpu").run(some.loader(), guard=None)
    after = mean_logits(some.model, images, labels)
    kept = torch.tensor([0, 2, 3])
    assert torch.allclose(after[kept][:, kept], before[kept][:, kept], rtol=1e-3, atol=1e-3)
    gone, was = after[1, kept], before[1, kept]
    if form == "zeroing":
        assert torch.allclose(gone, torch.zeros(3).double(), atol=1e-3)
    if form == "normalization":
        wanted = was - was.mean() + before[kept][:, kept].mean()
        assert torch.allclose(gone, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("form", ["normalization", "zeroing", "randomization", "naive"])
def test_linear_filtration_never_predicts_the_class(kind: str, form: str) -> None:
    some = toy(kind)
    kept = some.accuracy(some.test, [0, 1, 2])
    request = forget(some.model).classes([3]).using("linear_filtration", form=form)
    result = request.on("cpu").run(some.loader(), guard=None)
    probabilities = some.model.eval()(some.test.tensors[0]).detach().softmax(dim=1)
    assert float(probabilities[:, 3].max()) == 0.0
    assert some.accuracy(some.test, [0, 1, 2]) >= kept - 0.05
    assert result.head_masked


@pytest.mark.parametrize(("lowest", "masked"), [(-3.0, -10_003.0), (-55_000.0, -60_000.0)])
def test_linear_filtration_masks_with_a_bias_far_below_the_others_and_within_float16(
    lowest: float, masked: float
) -> None:
    fc = nn.Linear(2, 3)
    model = nn.Sequential(fc)
    with torch.no_grad():
        fc.bias.copy_(torch.tensor([1.0, 0.5, lowest]))
    before = weights(model)
    request = forget(model).classes([0]).using("linear_filtration", form="naive")
    request.on("cpu").run(two_samples(), guard=None)
    after = weights(model)
    assert after["0.bias"].tolist() == [masked, 0.5, lowest]
    assert torch.equal(after["0.weight"][1:], before["0.weight"][1:])
    assert float(after["0.weight"][0].abs().max()) == 0.0


def test_linear_filtration_inverts_dependent_means_as_far_as_they_reach(
    caplog: pytest.LogCaptureFixture,
) -> None:
    means = torch.tensor([[1.0, 2, 0], [1, 2, 0], [0, 0, 2]], dtype=torch.float64)
    found = filtration_matrix(means, (0,), "zeroing", torch.empty(2, 1))
    # the pseudo-inverse of the upper left block is [[0.1, 0.1], [0.2, 0.2]]
    expected = torch.tensor([[-0.1, 0.9, 0], [0, 0, 1]], dtype=torch.float64)
    assert torch.allclose(found, expected, atol=1e-12)
    literal = torch.tensor([[0.0, 2, 0], [0, 0, 2]], dtype=torch.float64) @ torch.linalg.pinv(means)
    assert torch.allclose(found @ means, literal @ means, atol=1e-12)
    assert "the mean logits are nearly dependent" in caplog.text
    assert "using the pseudo-inverse, so retained means are kept only approx" in caplog.text


def test_linear_filtration_of_mean_logits_that_are_all_zero_moves_nothing() -> None:
    found = filtration_matrix(torch.zeros(3, 3).double(), (0,), "zeroing", torch.empty(2, 1))
    assert torch.equal(found, torch.eye(3, dtype=torch.float64)[1:])


@pytest.mark.parametrize(("condition", "warned"), [(0.9e6, 0), (1.1e6, 1)])
def test_linear_filtration_warns_of_means_with_a_condition_above_a_million(
    condition: float, warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    means = torch.diag(torch.tensor([1.0, 0.5, 1 / condition], dtype=torch.float64))
    found = filtration_matrix(means, (0,), "zeroing", torch.empty(2, 1))
    assert torch.allclose(found, torch.eye(3, dtype=torch.float64)[1:], atol=1e-6)
    assert len(caplog.records) == warned


def test_linear_filtration_refuses_a_head_without_a_bias() -> None:
    model = Linear()
    before = weights(model)
    request = forget(model).classes([0]).using("linear_filtration", form="naive").on("cpu")
    with pytest.raises(ModelError, match=r"a head with a bias .* found none at fc; use"):
        request.run(two_samples(), guard=None)
    assert changed(before, weights(model)) == []


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_linear_filtration_refuses_a_head_that_is_frozen_in_part(name: str) -> None:
    some = toy("cnn")
    some.model.get_parameter(f"fc.{name}").requires_grad = False
    before = weights(some.model)
    request = forget(some.model).classes([3]).using("linear_filtration", form="naive").on("cpu")
    with pytest.raises(ModelError, match=rf"found the {name} of fc frozen; .* requires_grad_"):
        request.run(some.loader(), guard=None)
    assert changed(before, weights(some.model)) == []


@pytest.mark.parametrize("kind", ["weight norm", "old weight norm", "pruned", "added"])
def test_linear_filtration_says_how_to_fold_in_what_a_weight_is_made_of(kind: str) -> None:
    some = toy("cnn")
    head = some.model.get_submodule("fc")
    says = r"fc to make its own from fc\.[^b].*; fold that in first .*remove_parametrizations"
    if kind == "weight norm":
        nn.utils.parametrizations.weight_norm(head)
    elif kind == "pruned":
        prune.l1_unstructured(head, "weight", amount=0.3)
    elif kind == "old weight norm":
        with pytest.warns(FutureWarning, match="deprecated"):
            nn.utils.weight_norm(head)
    else:
        some.model.fc = Added(head)
        says = r"found none at fc\.second; use lau, or merge the layers .* \(merge_and_unload"
    before = weights(some.model)
    request = forget(some.model).classes([3]).using("linear_filtration").on("cpu")
    with pytest.raises(ModelError, match=says):
        request.run(some.loader(), guard=None)
    assert changed(before, weights(some.model)) == []


def test_linear_filtration_refuses_a_bias_that_is_a_buffer() -> None:
    model = BufferBias()
    before = weights(model)
    request = forget(model).classes([0]).using("linear_filtration", form="naive").on("cpu")
    with pytest.raises(ModelError, match="no parameter"):
        request.run(two_samples(), guard=None)
    assert changed(before, weights(model)) == []


def test_linear_filtration_refuses_a_class_without_samples() -> None:
    model = nn.Sequential(nn.Linear(2, 4))
    before = weights(model)
    loader = DataLoader(TensorDataset(torch.randn(6, 2), torch.tensor([0, 2] * 3)), batch_size=4)
    request = forget(model).classes([0]).using("linear_filtration").on("cpu")
    with pytest.raises(DataError, match=r"samples of every class, found none of \[1, 3\]; pass"):
        request.run(loader, guard=None)
    assert changed(before, weights(model)) == []


class Scaled(nn.Module):
    """A scalar that no initialiser of a library knows, before a layer that has one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.scale = nn.Parameter(torch.tensor([7.3]))
        self.fc = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.scale * self.norm(images).flatten(1))
        return logits


def test_a_trained_scalar_does_not_stay(caplog: pytest.LogCaptureFixture) -> None:
    model = Scaled()
    assert reset_weights(model) == ["scale"]
    assert abs(model.scale.item()) < 0.2
    assert model.norm.weight.item() == 1.0  # its module knows how to reset it
    assert "no initialiser is known for scale" in caplog.text


def test_weights_of_the_very_seed_that_made_them_are_drawn_by_their_initialiser() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 3)
    start = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    assert reset_weights(model) == []
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def library_vit(library: str) -> nn.Module:
    """Return a small ViT whose free weights are initialised unlike those of other libraries."""
    if library == "timm":
        import timm

        return timm.models.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=4,
            init_values=0.3,
        )  # fmt: skip
    import transformers

    shape: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8, "initializer_range": 0.1,
    }  # fmt: skip
    if library == "transformers":
        config = transformers.ViTConfig(**shape, intermediate_size=32)
        return transformers.ViTForImageClassification(config)
    scaled = transformers.Dinov2Config(**shape, mlp_ratio=2, layerscale_value=0.3)
    return transformers.Dinov2ForImageClassification(scaled)


@pytest.mark.parametrize(
    ("library", "tokens", "positions", "scales"),
    [
        ("transformers", (0.05, 0.15), (0.08, 0.12), 0),
        ("transformers with LayerScale", (0.05, 0.15), (0.08, 0.12), 2),
        ("timm", (1e-8, 1e-5), (0.015, 0.025), 2),
    ],
)
def test_free_weights_are_drawn_by_the_initialiser_of_their_library(
    library: str, tokens: tuple[float, float], positions: tuple[float, float], scales: int
) -> None:
    model = library_vit(library)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1.0 + torch.rand_like(parameter))
            vars(parameter)["_is_hf_initialized"] = True  # as ``from_pretrained`` leaves it
    assert reset_weights(model) == []
    found = weights(model)
    lengths = {name: float(value.square().mean().sqrt()) for name, value in found.items()}
    (token,) = (length for name, length in lengths.items() if name.endswith("cls_token"))
    (position,) = (length for name, length in lengths.items() if "pos" in name)
    assert tokens[0] < token < tokens[1]
    assert positions[0] < position < positions[1]
    layer_scales = [value for name, value in found.items() if name.endswith(("gamma", "lambda1"))]
    assert len(layer_scales) == scales
    assert all(torch.equal(value, torch.full((16,), 0.3)) for value in layer_scales)


@pytest.mark.parametrize("form", ["model", "state dict", "function"])
def test_untrained_weights_come_in_three_forms(form: str) -> None:
    some, untrained = toy("cnn"), copy.deepcopy(toy("cnn").model)
    reset_weights(untrained)
    given: dict[str, Any] = {
        "model": untrained,
        "state dict": untrained.state_dict(),
        "function": lambda: untrained,
    }
    request = forget(some.model).classes([3]).using("retrain", epochs=1, lr=0.0, bn="frozen")
    request.fresh(given[form]).on("cpu").run(some.loader(), guard=None)
    assert changed(weights(some.model), weights(untrained)) == []


def test_untrained_weights_that_no_one_reads_are_named() -> None:
    def told(
        method: str, initial: nn.Module | Callable[[], nn.Module] | None, **settings: object
    ) -> str:
        some = toy("cnn")
        request = forget(some.model).classes([3]).using(method, **settings).on("cpu")
        request = request if initial is None else request.fresh(initial)
        return " ".join(request.run(some.loader(), guard=None).notes)

    untrained = copy.deepcopy(toy("cnn").model)
    reset_weights(untrained)
    small: dict[str, object] = {"retain_samples": 20, "solver": "cg", "iterations": 1}
    assert "gives, weights, was not used" in told("neggrad", untrained)
    assert "gives, a function, was not used" in told("ntk", lambda: untrained, **small)
    assert "gives, weights, was not used" in told("ntk", untrained, scale=1.0, **small)
    assert "was not used" not in told("neggrad", None)
    assert "was not used" not in told("ntk", untrained, **small)
    assert "was not used" not in told("retrain", untrained, epochs=1)
    assert "was not used" not in told("bad_teaching", lambda: untrained)


class Normed(nn.Module):
    """Dropout and normalisation without parameters between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(64, 8)
        self.norm = nn.BatchNorm1d(8, affine=False)
        self.drop = nn.Dropout(0.5)
        self.two = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.two(self.drop(self.norm(self.one(images.flatten(1)))))
        return logits


@pytest.mark.parametrize("frozen", [(), ("two.bias",)])
def test_retraining_learns_statistics_of_normalisation_without_parameters(
    frozen: tuple[str, ...],
) -> None:
    some, model = toy("cnn"), Normed()
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    request = forget(model).classes([3]).using("retrain", epochs=2, lr=0.01, batch_size=32)
    request.on("cpu").run(some.loader(), guard=None)
    assert model.norm.running_mean is not None
    assert int(model.norm.num_batches_tracked or 0) == 12
    assert float(model.norm.running_mean.abs().max()) > 0.01


@pytest.mark.parametrize(("k", "batches"), [(2, 6), (1, 0)])
def test_the_last_layers_alone_learn_statistics(k: int, batches: int) -> None:
    some, model = toy("cnn"), Normed()
    request = forget(model).classes([3]).using("eu_k", k=k, epochs=1, batch_size=32)
    request.on("cpu").run(some.loader(), guard=None)
    assert int(model.norm.num_batches_tracked or 0) == batches


@pytest.mark.parametrize(("k", "constant"), [(1, True), (2, False)])
def test_dropout_before_the_last_layers_is_off(k: int, constant: bool) -> None:
    some, model = toy("cnn"), Normed()
    modes: list[bool] = []

    def note(module: nn.Module, *_: object) -> None:
        if torch.is_grad_enabled():  # not where the run measures
            modes.append(module.training)

    hook = model.drop.register_forward_hook(note)
    request = forget(model).classes([3]).using("cf_k", k=k, epochs=1, batch_size=32)
    request.on("cpu").run(some.loader(), guard=None)
    hook.remove()
    assert len(modes) >= 6
    assert not any(modes) if constant else all(modes[-5:])


@pytest.mark.parametrize(
    ("optimizer", "transformer", "lr"),
    [("adamw", False, 1e-3), ("sgd", True, 0.01), ("auto", False, 0.1), ("auto", True, 5e-5)],
)
def test_retraining_takes_the_rate_of_its_optimiser(
    optimizer: str, transformer: bool, lr: float
) -> None:
    facts = Facts("classes", 10, 90, 10, transformer=transformer)
    assert Retrain(optimizer=optimizer).tuned(facts).lr == lr


def test_samples_stop_at_the_accuracy_of_unseen_ones_of_their_classes() -> None:
    some = toy("cnn")
    images, labels = some.test.tensors
    wrong = images.clone()
    wrong[(labels == 0).nonzero()[:24, 0]] = images[(labels == 1).nonzero()[:24, 0]]
    unseen = DataLoader(TensorDataset(wrong, labels), batch_size=32)
    own = (some.train.tensors[1] == 0).nonzero()[:40, 0].tolist()
    with torch.no_grad():
        right = some.model.eval()(wrong).argmax(dim=1) == labels
    wanted = 100 * float(right[labels == 0].float().mean())
    assert wanted < 70 < 100 * float(right.float().mean())
    request = forget(some.model).instances(own).using("neggrad", lr=0.01, check_every=1)
    result = request.validate(unseen).on("cpu").run(some.loader(), guard=None)
    assert f"target of {wanted:.2f} %" in result.stopped_because


def test_an_epochs_loss_is_the_mean_over_samples_not_over_batches() -> None:
    some = toy("cnn")
    images, labels = some.train.tensors
    with torch.no_grad():
        logits = some.model.eval()(images[labels == 3])
    wanted = float(functional.cross_entropy(logits, labels[labels == 3]))
    request = (
        forget(some.model)
        .classes([3])
        .using("neggrad", lr=1e-12, momentum=0.0, weight_decay=0.0, epochs=1, batch_size=50)
    )
    result = request.on("cpu").run(some.forget_loader(), guard=None)
    assert result.history[0]["loss"] == pytest.approx(-wanted, rel=1e-4)
    assert result.history[0]["bn_train"] == 0.0


def test_retraining_says_that_it_starts_from_given_weights() -> None:
    some = toy("cnn")
    deployed = {name: t.clone() for name, t in some.model.state_dict().items()}
    other = {name: t + 0.1 if t.is_floating_point() else t for name, t in deployed.items()}
    notes = []
    for start in (deployed, other, type(some.model)):
        request = forget(copy.deepcopy(some.model)).classes([3]).fresh(start).on("cpu")
        result = request.using("retrain", epochs=1).run(some.loader(), guard=None)
        notes.append(" ".join(result.notes))
    assert "are those of the model as it came in" in notes[0]
    assert "is a reference only if those never saw the forget set" in notes[1]
    assert "retrain" not in notes[2]


def test_linear_filtration_works_on_a_head_of_timms_own_linear_layer() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", num_classes=4)
    assert type(model.classifier).__module__ == "timm.layers.linear"
    data = TensorDataset(torch.randn(12, 3, 32, 32), torch.arange(12) % 4)
    request = forget(model).classes([3]).using("linear_filtration").on("cpu")
    result = request.run(DataLoader(data, batch_size=6), guard=None)
    assert result.after["forget"].accuracy == 0.0
    assert result.head_masked
