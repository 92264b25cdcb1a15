from __future__ import annotations

import copy

import pytest
import torch
from head_zoo import CLASSES, WIDTH, Cast, heads, picture
from torch import Tensor, nn

from forgetkit.adapting import adapt, logits_of
from forgetkit.dryrun.sweep.checking import trace
from forgetkit.dryrun.verification import exactness
from forgetkit.fingerprint import overlap
from forgetkit.view import ModelView

KINDS = sorted(heads())
EXPECTED = {
    "linear": ("last", (WIDTH,)),
    "mlp": ("last.4", (7,)),
    "conv": ("score", (WIDTH, 1, 1)),
    "squeeze": ("score", (WIDTH, 3, 3)),
    "two_heads": ("head+head_dist", (2, WIDTH)),
    "unequal_heads": ("head+head_dist", (WIDTH + 4,)),
    "first_token": ("head", (WIDTH,)),
    "mean_token": ("head", (WIDTH,)),
    "max_token": ("head", (8, WIDTH)),
    "bare_cosine": ("prototypes", (WIDTH,)),
    "bare_linear": ("weight", (WIDTH,)),
    "zero_shot": ("text", (WIDTH,)),
    "lora": ("base+up", (WIDTH,)),
    "concatenated": ("old+new", (WIDTH,)),
    "mixed": ("head", (WIDTH,)),
    "gathered": ("head", (WIDTH,)),
    "flipped": ("net.last", (2, WIDTH)),
}
DENSE = {"spectral_norm": ["last.bias"], "log_softmax": []}
NOT_SEPARABLE = {"log_softmax"}
LINEAR = {
    "linear", "no_bias", "mlp", "conv", "two_heads", "unequal_heads", "first_token", "mean_token",
    "bare_linear", "bare_cosine", "zero_shot", "lora", "concatenated", "transposed",
    "square", "flipped",
    "batch_integer", "mixed", "gathered", "weight_norm", "spectral_norm", "one_class", "dict",
}  # fmt: skip


def expected(model: nn.Module, x: Tensor) -> Tensor:
    return logits_of(model(x))


@pytest.mark.parametrize("kind", KINDS)
def test_head_of_features_is_the_models_logits(kind: str) -> None:
    model = heads()[kind]
    view = adapt(model, picture())
    assert isinstance(view, ModelView)
    with torch.no_grad():
        for rows in (1, 3):
            x = picture(rows, seed=rows)
            features, logits = view.features_and_logits(x)
            torch.testing.assert_close(logits, expected(model, x), rtol=0, atol=0)
            torch.testing.assert_close(view.head(features), logits, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(view.features(x), features, rtol=0, atol=0)
            assert features.shape == (rows, *view.feature_shape)
            assert logits.shape == (rows, view.num_classes)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_rows_may_be_shuffled_taken_and_doubled(kind: str) -> None:
    model = heads()[kind]
    view = adapt(model, picture(1))
    x = picture(4, seed=7)
    with torch.no_grad():
        features, logits = view.features(x), expected(model, x)
        order = torch.tensor([2, 0, 3, 1])
        for index in (order, order[:1], torch.cat([order, order])):
            rtol, atol = (1e-2, 1e-2) if kind == "autocast" else (1e-4, 1e-5)
            found = view.head(features[index])
            torch.testing.assert_close(found, logits[index], rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_the_model_changes(kind: str) -> None:
    model = heads()[kind].train()
    model.body = getattr(model, "body", nn.Identity())
    keys, before = list(model.state_dict()), trace(model)
    view = adapt(model, picture())
    assert trace(model) == before
    model.eval()
    before = trace(model)
    with torch.no_grad():
        view.head(view.features(picture()))
    assert trace(model) == before
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("kind", sorted(EXPECTED))
def test_names_and_shapes(kind: str) -> None:
    view = adapt(heads()[kind], picture())
    assert (view.head_name, view.feature_shape) == EXPECTED[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_traits(kind: str) -> None:
    view = adapt(heads()[kind], picture())
    assert view.separable == (kind not in NOT_SEPARABLE)
    assert view.linear == (kind in LINEAR)
    assert view.tied == []


@pytest.mark.parametrize("kind", KINDS)
def test_rows_move_their_own_logit_only(kind: str) -> None:
    model = heads()[kind]
    view = adapt(model, picture())
    x = picture(16, seed=3)
    label = view.num_classes - 1
    rows = view.rows(label)
    if kind in DENSE:
        assert [row.name for row in rows] == DENSE[kind]
        return
    with torch.no_grad():
        before = expected(model, x)
        for row in rows:
            index = torch.tensor(row.index)
            row.parameter.index_add_(
                row.axis, index, torch.rand_like(row.parameter.index_select(row.axis, index)) + 0.5
            )
        moved = (expected(model, x) != before).any(0).nonzero().flatten().tolist()
    assert moved == [label]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_all_classes_cover_every_logit(kind: str) -> None:
    model = heads()[kind]
    view = adapt(model, picture())
    if kind in DENSE:
        return
    taken: set[tuple[str, int]] = set()
    for label in range(view.num_classes):
        mine = {(row.name, index) for row in view.rows(label) for index in row.index}
        assert mine
        assert not mine & taken
        taken |= mine


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"zero_shot", "autocast"}))
def test_gradients_through_head_equal_those_through_the_model(kind: str) -> None:
    model = heads()[kind]
    view = adapt(model, picture())
    x, label = picture(4, seed=5), 0
    parameters = list(view.head_parameters().values())
    assert parameters
    direct = torch.autograd.grad(expected(model, x)[:, label].square().sum(), parameters)
    features = view.features(x).detach().requires_grad_()
    loss = view.head(features)[:, label].square().sum()
    replayed = torch.autograd.grad(loss, [features, *parameters])
    assert bool((replayed[0] != 0).any())
    for ours, theirs in zip(replayed[1:], direct, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"zero_shot"}))
def test_head_reads_the_live_weights(kind: str) -> None:
    model = heads()[kind]
    view = adapt(model, picture())
    x = picture(3, seed=9)
    with torch.no_grad():
        features, before = view.features(x), view.head(view.features(x))
        state = copy.deepcopy(model.state_dict())
        for parameter in view.head_parameters().values():
            parameter.add_(torch.rand_like(parameter))
        assert not torch.equal(view.head(features), before)
        torch.testing.assert_close(view.head(features), expected(model, x), rtol=1e-5, atol=1e-5)
        model.load_state_dict(state)
        torch.testing.assert_close(view.head(features), before, rtol=1e-6, atol=1e-6)


def test_features_reach_the_backbone() -> None:
    model = heads()["linear"]
    adapt(model, picture()).features(picture()).sum().backward()
    grads = [parameter.grad for name, parameter in model.named_parameters() if "conv" in name]
    assert all(grad is not None and bool((grad != 0).any()) for grad in grads)


@pytest.mark.parametrize("kind", ["linear", "lora", "bare_cosine", "two_heads"])
def test_adapting_again_and_a_copy_gives_the_same(kind: str) -> None:
    model = heads()[kind]
    first = adapt(model, picture())
    for other in (adapt(model, picture(1)), adapt(copy.deepcopy(model), picture(3))):
        assert other.head_names == first.head_names
        assert other.feature_shape == first.feature_shape
        assert other.tail == first.tail


@pytest.mark.parametrize("kind", ["linear", "conv", "bare_linear", "weight_norm", "lora", "cosine"])
def test_half_precision_heads_run_in_float32(kind: str) -> None:
    model = heads()[kind].bfloat16()
    view = adapt(model, picture().bfloat16())
    with torch.no_grad():
        features, logits = view.features_and_logits(picture(3).bfloat16())
        assert features.dtype == torch.bfloat16
        torch.testing.assert_close(view.head(features), logits, rtol=0, atol=0)
    wide = view.head(features.float())
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide, logits.float(), rtol=5e-2, atol=5e-2)
    wide.sum().backward()
    assert all(p.grad is not None for p in view.head_parameters().values())


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("cast", [torch.float32, torch.float64])
def test_logits_may_be_of_another_type_than_the_features(
    own: torch.dtype, cast: torch.dtype
) -> None:
    model = Cast(cast).to(own).eval()
    view = adapt(model, picture().to(own))
    assert (view.linear, view.separable, view.program.dtype) == (True, True, own)
    assert [row.index for row in view.rows(2)] == [(2,), (2,)]
    with torch.no_grad():
        features, logits = view.features_and_logits(picture(3).to(own))
        assert torch.equal(view.head(features), logits)
        wide = view.head(features.double())
    torch.testing.assert_close(wide.double(), logits.double(), rtol=5e-2, atol=5e-2)


def test_a_check_is_as_exact_as_the_least_precise_type() -> None:
    assert exactness({torch.float64}) < exactness({torch.float64, torch.float32})
    assert exactness({torch.float32, torch.bfloat16, torch.int64}) == exactness({torch.float16})
    view = adapt(heads()["autocast"], picture())
    assert view.program.precisions() == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("kind", ["linear", "two_heads", "bare_linear"])
def test_swapping_the_data_to_float32_works(kind: str) -> None:
    model = heads()[kind].bfloat16()
    view = adapt(model, picture().bfloat16())
    features = view.features(picture().bfloat16()).detach().float()
    for parameter in view.head_parameters().values():
        parameter.data = parameter.data.float()
    assert view.head(features).dtype == torch.float32


def test_channels_last_and_float64() -> None:
    model = heads()["conv"].double().to(memory_format=torch.channels_last)
    x = picture().double().to(memory_format=torch.channels_last)
    view = adapt(model, x)
    with torch.no_grad():
        features, logits = view.features_and_logits(x)
        assert torch.equal(view.head(features), logits)


def test_affine_has_live_weight_and_bias() -> None:
    model = heads()["linear"]
    view = adapt(model, picture())
    model.last = nn.Linear(WIDTH, CLASSES)
    view = adapt(model, picture())
    (affine,) = view.affines
    assert affine.weight is model.last.weight
    assert affine.bias is model.last.bias
    assert affine.class_axis == 0
    assert list(affine.parameters) == ["last.weight", "last.bias"]


def test_derived_weights_are_not_given_as_weights() -> None:
    for kind in ("cosine", "bare_cosine", "weight_norm", "spectral_norm", "transposed"):
        (affine,) = adapt(heads()[kind], picture()).affines
        assert affine.weight is None, kind
        assert affine.parameters, kind


def test_ties_are_named() -> None:
    model = heads()["linear"]
    model.register_module("twin", nn.Linear(WIDTH, CLASSES))
    twin = model.get_submodule("twin")
    twin.weight = model.get_submodule("last").weight
    view = adapt(model, picture())
    assert view.tied == ["twin.weight"]


@pytest.mark.parametrize(
    ("head", "other", "tied"),
    [
        (slice(CLASSES), slice(None), True),  # a view of the whole
        (slice(CLASSES), slice(CLASSES, None), False),  # side by side in one storage
        (slice(0, 2 * CLASSES, 2), slice(1, 2 * CLASSES, 2), False),  # row by row in turn
        (slice(0, 2 * CLASSES, 2), slice(0, 1), True),
    ],
)
@pytest.mark.parametrize("kind", ["parameter", "data", "buffer"])
def test_memory_in_common_is_a_tie(head: slice, other: slice, tied: bool, kind: str) -> None:
    model = heads()["linear"]
    whole = torch.randn(3 * CLASSES, WIDTH)
    twin = nn.Module()
    last = model.get_submodule("last")
    if kind == "data":
        last.get_parameter("weight").data = whole[head]
    else:
        last.register_parameter("weight", nn.Parameter(whole[head]))
    if kind == "buffer":
        twin.register_buffer("weight", whole[other])
    else:
        twin.register_parameter("weight", nn.Parameter(whole[other]))
    model.register_module("twin", twin)
    assert adapt(model, picture()).tied == (["twin.weight"] if tied else [])


def test_overlap_looks_at_the_elements() -> None:
    whole = torch.zeros(6, 4)
    assert overlap(whole, whole)
    assert overlap(whole[:1].expand(3, 4), whole[0, 3:])
    assert overlap(whole.view(torch.int16), whole[5])
    assert not overlap(whole[:, :2], whole[:, 2:])
    assert not overlap(whole[:, :2], whole[:0])
    assert not overlap(whole, whole.to("meta"))
    assert not overlap(whole.to_sparse(), whole)
