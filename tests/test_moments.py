from __future__ import annotations

import copy

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from forgetkit.convolution_cuts import Cut
from forgetkit.layer_survey import (
    FREE,
    LEAST_ROWS,
    SHARE_OF_FORWARD,
    Layer,
    survey,
    thinned,
    with_rows,
)
from forgetkit.moments import Accumulator, Moments, keys_of
from forgetkit.statistics import Statistics
from forgetkit.testing import toy


def literal_patches(images: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return all patches by plain loops: (groups, rows, width), padding included."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    high, wide = (p for p in conv.padding if isinstance(p, int))
    padded = functional.pad(images, (wide, wide, high, high), mode=mode)
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    each = images.shape[1] // conv.groups
    groups = []
    for group in range(conv.groups):
        rows = [
            [
                image[channel, top + dh * i, left + dw * j].item()
                for channel in range(each)
                for i in range(kh)
                for j in range(kw)
            ]
            for image in padded[:, group * each : (group + 1) * each]
            for top in range(0, padded.shape[2] - dh * (kh - 1), sh)
            for left in range(0, padded.shape[3] - dw * (kw - 1), sw)
        ]
        groups.append(torch.tensor(rows, dtype=torch.float64))
    return torch.stack(groups)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def measured(
    model: nn.Module, images: Tensor, layers: dict[str, Layer] | None = None, size: int = 4
) -> Moments:
    found = survey(weights_of(model), images, model) if layers is None else layers
    accumulator = Accumulator(weights_of(model), found)
    for part in images.split(size):
        accumulator.add(part, model)
    return accumulator.moments()


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3),
    "stride": nn.Conv2d(4, 6, 3, stride=2),
    "dilation": nn.Conv2d(4, 6, 3, dilation=2),
    "groups": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, groups=4, padding=1),
    "padding": nn.Conv2d(4, 6, 3, padding=1),
    "reflect": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "circular": nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="circular"),
    "pointwise": nn.Conv2d(4, 6, 1),
    "pointwise stride": nn.Conv2d(4, 6, 1, stride=2),
    "oblong": nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_moments_of_a_convolution_are_those_of_its_patches(name: str) -> None:
    conv = CONVOLUTIONS[name]
    images = torch.randn(5, 4, 7, 6)
    rows = literal_patches(images, conv)
    found = measured(conv, images)
    expected = rows.transpose(1, 2) @ rows
    assert torch.allclose(found.sums["weight"], expected, rtol=1e-10, atol=1e-10)
    assert found.rows["weight"] == rows.shape[1]
    assert found.samples == 5
    flat = conv.weight.detach().double().reshape(conv.groups, -1, rows.shape[2])
    bias = torch.zeros(()) if conv.bias is None else conv.bias.detach().double()
    made = (rows @ flat.transpose(1, 2)).transpose(0, 1).reshape(rows.shape[1], -1) + bias
    output = conv(images).detach().permute(0, 2, 3, 1).reshape(rows.shape[1], -1).double()
    assert torch.allclose(made, output, atol=1e-5)  # so the rows are what W is multiplied with


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_dense_patches_are_those_of_the_same_convolution_without_stride(name: str) -> None:
    conv = CONVOLUTIONS[name]
    images = torch.randn(5, 4, 7, 6)
    bare = copy.deepcopy(conv)
    bare.stride = bare.dilation = (1, 1)
    rows = literal_patches(images, bare)
    layers = survey(weights_of(conv), images, conv, dense=True)
    assert layers["weight"].places == rows.shape[1] // 5
    found = measured(conv, images, layers)
    assert torch.allclose(found.sums["weight"], rows.transpose(1, 2) @ rows, rtol=1e-10, atol=1e-10)
    assert found.rows["weight"] == rows.shape[1]
    some = measured(conv, images, with_rows(layers, 3.0)).rows["weight"]
    assert some == min(15, rows.shape[1])
    own = measured(conv, images).sums["weight"]
    same = torch.allclose(found.sums["weight"], own)
    assert same == (name not in ("stride", "dilation", "pointwise stride", "oblong"))


def test_padding_given_as_a_word_counts() -> None:
    same, plain = nn.Conv2d(2, 3, 3, padding="same"), nn.Conv2d(2, 3, 3, padding=1)
    valid, bare = nn.Conv2d(2, 3, 3, padding="valid"), nn.Conv2d(2, 3, 3)
    images = torch.randn(3, 2, 5, 5)
    for word, number in ((same, plain), (valid, bare)):
        expected = measured(number, images).sums["weight"]
        assert torch.equal(measured(word, images).sums["weight"], expected)


class OwnPadding(nn.Conv2d):
    """Pads by itself and calls the function, as some libraries do for padding 'same'."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(
            functional.pad(input, (0, 1, 0, 1)), self.weight, self.bias, stride=self.stride
        )


class Standardised(nn.Conv2d):
    """Multiplies with a weight derived from its parameter."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(input, self.weight - self.weight.mean(), self.bias)


def test_subclasses_are_seen_through_and_derived_weights_left_out() -> None:
    images = torch.randn(2, 2, 5, 5)
    padded = functional.pad(images, (0, 1, 0, 1))
    own, plain = OwnPadding(2, 3, 3, stride=2), nn.Conv2d(2, 3, 3, stride=2)
    assert torch.equal(measured(own, images).sums["weight"], measured(plain, padded).sums["weight"])
    model = Standardised(2, 3, 3)
    assert survey(weights_of(model), images, model) == {}


@pytest.mark.parametrize("shape", [(6, 8), (6, 5, 8), (6, 3, 2, 8)])
def test_moments_of_a_linear_layer_count_every_token(shape: tuple[int, ...]) -> None:
    layer, inputs = nn.Linear(8, 3), torch.randn(shape)
    expected = torch.zeros(8, 8, dtype=torch.float64)
    for row in inputs.reshape(-1, 8).double():
        expected += torch.outer(row, row)
    found = measured(layer, inputs)
    assert torch.allclose(found.sums["weight"][0], expected, rtol=1e-12)
    assert found.rows["weight"] == len(inputs.reshape(-1, 8))


class Attention(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, tokens: Tensor) -> Tensor:
        given = tokens if self.batch_first else tokens.transpose(0, 1)
        found: Tensor = self.inner(given, given, given, need_weights=False)[0]
        return found if self.batch_first else found.transpose(0, 1)


@pytest.mark.parametrize("batch_first", [True, False])
def test_both_projections_of_torch_attention_are_measured(batch_first: bool) -> None:
    model, tokens = Attention(batch_first).eval(), torch.randn(5, 3, 8)
    found = measured(model, tokens, size=2)
    rows = tokens.reshape(-1, 8).double()
    assert torch.allclose(found.sums["inner.in_proj_weight"][0], rows.T @ rows, rtol=1e-10)
    joined = []
    weight = model.inner.in_proj_weight.detach()
    for sample in tokens:  # attention by hand, head by head
        query, key, value = ((sample @ w.T) for w in weight.chunk(3))
        heads = []
        for head in range(2):
            own = slice(4 * head, 4 * head + 4)
            scores = (query[:, own] @ key[:, own].T / 4**0.5).softmax(dim=1)
            heads.append(scores @ value[:, own])
        joined.append(torch.cat(heads, dim=1))
    inputs = torch.cat(joined).double()
    expected = inputs.T @ inputs
    assert torch.allclose(found.sums["inner.out_proj.weight"][0], expected, rtol=1e-4, atol=1e-5)
    assert {layer.axis for layer in found.layers.values()} == {1}


class Recording:
    """Keeps what a model said."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.said: Tensor | None = None

    def __call__(self, inputs: object) -> object:
        self.said = self.model(inputs)
        return self.said


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_watching_does_not_change_what_the_model_says(kind: str) -> None:
    some = toy(kind)
    model, images = some.model.eval(), some.train.tensors[0][:9]
    accumulator = Accumulator(weights_of(model), survey(weights_of(model), images, model))
    recording = Recording(model)
    accumulator.add(images, recording)
    assert recording.said is not None
    assert torch.allclose(recording.said, model(images), atol=1e-5)


@pytest.mark.parametrize("kind", ["cnn", "vit"])
@pytest.mark.parametrize("rows", [None, 0.4, 1.7])
def test_any_batch_size_and_order_gives_the_same(kind: str, rows: float | None) -> None:
    some = toy(kind)
    model, images = some.model.eval(), some.train.tensors[0]
    layers = survey(weights_of(model), images, model)
    if rows is not None:
        layers = with_rows(layers, rows)
    whole = measured(model, images, layers, size=240)
    for size, order in ((7, torch.arange(240)), (64, torch.randperm(240))):
        found = measured(model, images[order], layers, size=size)
        assert found.rows == whole.rows
        for name, total in whole.sums.items():
            assert torch.allclose(found.sums[name], total, rtol=1e-4, atol=1e-3), name
    conv = {"cnn": "body.0.weight", "vit": "patches.weight"}[kind]  # its inputs are the images
    assert torch.allclose(found.sums[conv], whole.sums[conv], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", [None, 0.7])
def test_a_part_can_be_subtracted(rows: float | None) -> None:
    some = toy("cnn")
    model, (images, labels) = some.model.eval().double(), some.train.tensors
    images, gone = images.double(), labels == 3
    layers = survey(weights_of(model), images, model)
    if rows is not None:
        layers = with_rows(layers, rows)
    rest = measured(model, images, layers).minus(measured(model, images[gone], layers))
    direct = measured(model, images[~gone], layers)
    assert (rest.rows, rest.samples) == (direct.rows, direct.samples)
    for name, total in direct.sums.items():
        assert float((rest.sums[name] - total).norm()) <= 1e-9 * float(total.norm())
    one, other = gone & (torch.arange(240) < 200), gone & (torch.arange(240) >= 200)
    twice = measured(model, images, layers).minus(measured(model, images[one], layers))
    twice = twice.minus(measured(model, images[other], layers))
    for name, total in rest.sums.items():
        assert float((twice.sums[name] - total).norm()) <= 1e-9 * float(total.norm())


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.table = nn.Linear(2, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        once: Tensor = self.layer(inputs)
        inputs.mul_(0.0)  # in place: what was measured must not follow
        constant: Tensor = self.table(torch.ones(3, 2)).sum(dim=0)
        twice: Tensor = self.layer(once)
        return twice + constant


def test_shared_layers_add_up_and_constant_inputs_are_left_out() -> None:
    model, inputs = Shared(), torch.randn(6, 4)
    first = inputs.clone().double()
    second = model.layer(inputs).detach().double()
    layers = survey(weights_of(model), inputs.clone(), model)
    assert set(layers) == {"layer.weight"}
    assert layers["layer.weight"].places == 2
    found = measured(model, inputs.clone(), layers, size=6)
    expected = first.T @ first + second.T @ second
    assert torch.allclose(found.sums["layer.weight"][0], expected, rtol=1e-6)


def test_wide_layers_are_summed_by_blocks_of_columns() -> None:
    layer, inputs = nn.Linear(2500, 1), torch.randn(30, 2500)
    found = measured(layer, inputs, size=7).sums["weight"][0]
    expected = inputs.double().T @ inputs.double()
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("double", [True, False])
def test_columns_of_zeros_are_left_out_of_products(double: bool) -> None:
    images = torch.randn(40, 8)
    images[:20, 3:] = 0.0
    expected = images.double().T @ images.double()
    layer = nn.Linear(8, 1)
    layers = survey(weights_of(layer), images, layer)
    for order in (images, images.flip(0)):
        found = Accumulator(weights_of(layer), layers, double=double)
        for part in order.repeat_interleave(60, dim=0).split(1200):  # a product each
            found.add(part, layer)
        sums = found.moments().sums["weight"][0] / 60
        error = float((sums - expected).norm() / expected.norm())
        assert error < (1e-12 if double else 1e-5)


def test_what_is_always_padding_is_known_before() -> None:
    found = {}
    for name, size, conv in (
        ("one pixel", 1, nn.Conv2d(4, 6, 3, padding=1, groups=2)),
        ("four pixels", 2, nn.Conv2d(4, 6, 3, padding=1)),
        ("stride", 2, nn.Conv2d(4, 6, 3, padding=1, stride=2)),
        ("pointwise", 1, nn.Conv2d(4, 6, 1)),
    ):
        images = torch.randn(5, 4, size, size).abs() + 1
        found[name] = survey(weights_of(conv), images, conv)["weight"].padded
        diagonal = measured(conv, images).sums["weight"].diagonal(dim1=1, dim2=2)
        assert found[name] == int((diagonal[0] == 0).sum())
    assert found == {"one pixel": 16, "four pixels": 0, "stride": 20, "pointwise": 0}


@pytest.mark.parametrize("kernel", [(3, 3), (7, 2)])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 3)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
def test_pixels_of_a_kernel_that_ever_lie_on_the_input(
    kernel: tuple[int, int], size: tuple[int, int], stride: tuple[int, int],
    dilation: tuple[int, int],
) -> None:  # fmt: skip
    cut = Cut(kernel, stride, dilation, (6, 5, 12, 13), groups=1)
    ones = torch.ones(1, 1, *size)
    assert cut.inside(ones) == int(cut.views(ones).flatten(0, 3).any(dim=0).sum())


def test_products_stay_double_under_autocast_and_single_ones_are_close() -> None:
    layer, inputs = nn.Linear(16, 3), torch.randn(64, 16)
    expected = inputs.double().T @ inputs.double()

    def half(batch: object) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(batch)

    layers = survey(weights_of(layer), inputs, layer)
    for double, error in ((True, 1e-12), (False, 1e-5)):
        accumulator = Accumulator(weights_of(layer), layers, double=double)
        accumulator.add(inputs, half)
        found = accumulator.moments().sums["weight"][0]
        assert found.dtype == torch.float64
        assert float((found - expected).norm()) <= error * float(expected.norm())


@pytest.mark.parametrize("rows", [64, 3000])
@pytest.mark.parametrize("double", [True, False])
def test_products_keep_their_precision_within_a_callers_autocast(double: bool, rows: int) -> None:
    layer, inputs = nn.Linear(16, 3), torch.randn(rows, 16)
    layers = survey(weights_of(layer), inputs, layer)
    accumulator = Accumulator(weights_of(layer), layers, double=double)
    with torch.autocast("cpu", torch.bfloat16):
        accumulator.add(inputs, layer)
        found = accumulator.moments().sums["weight"][0]
    expected = inputs.double().T @ inputs.double()
    assert float((found - expected).norm()) <= (1e-12 if double else 1e-5) * float(expected.norm())


class Geometries(nn.Module):
    """Two strides on one map, windows of an image, and one weight on two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(2, 3, 3, padding=1)
        self.coarse = nn.Conv2d(2, 3, 3, padding=1, stride=2)
        self.windows = nn.Conv2d(2, 3, 3)
        self.shared = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        halves = rearrange(images, "b c (n h) w -> (b n) c h w", n=2)
        small = self.shared(functional.avg_pool2d(images, 8))
        parts = [self.fine(images), self.coarse(images), self.shared(images), small]
        windows: Tensor = self.windows(halves)
        each = [part.flatten(1).sum(dim=1) for part in parts]
        return torch.stack([*each, windows.flatten(1).sum(dim=1).unflatten(0, (-1, 2)).sum(dim=1)])


class Flipped(nn.Module):
    """Sees every image a second time, mirrored, behind all the others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.conv(torch.cat([images, images.flip(3)])).relu().mean(dim=(2, 3))
        return maps


class TokensFirst(nn.Module):
    """A linear map of rows in which a place of all images comes before the next place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 4, stride=4)
        self.mixed = nn.Linear(3, 3)
        self.apart = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.conv(images).flatten(2).permute(2, 0, 1)
        mixed = self.mixed(tokens.reshape(-1, 3)).tanh().reshape(tokens.shape)
        logits: Tensor = self.apart(mixed).mean(dim=0)
        return logits


@pytest.mark.parametrize("kind", [Flipped, TokensFirst, Geometries])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", ["random", "constant"])
def test_thinned_rows_do_not_depend_on_the_other_images(
    kind: type[nn.Module], dtype: torch.dtype, first: str
) -> None:
    torch.manual_seed(0)
    model, images = kind().to(dtype), torch.randn(12, 2, 8, 8).to(dtype)
    if first == "constant":
        images[0] = 0.5
    layers = with_rows(survey(weights_of(model), images, model), 1.5)
    whole, part, rest = (
        measured(model, some, layers, size=size)
        for some, size in (
            (images, 12),
            (images[[3, 8]], 1),
            (images[[*range(3), 4, 5, 6, 7, 9, 10, 11]], 5),
        )
    )
    within = 1e-9 if dtype == torch.float32 else 2e-2
    for name, total in whole.minus(part).sums.items():
        assert float((total - rest.sums[name]).norm()) <= within * float(total.norm()), name
    known: dict[type[nn.Module], set[str]] = {
        Flipped: {"conv.weight"},
        TokensFirst: {"mixed.weight"},
        Geometries: set(),
    }
    assert {name for name, layer in layers.items() if layer.axis is None} == known[kind]


def test_every_thinned_row_is_a_patch_of_its_own_layer_and_image() -> None:
    model, images = Geometries(), torch.randn(12, 2, 8, 8)
    layers = survey(weights_of(model), images, model)
    names = {"fine.weight", "coarse.weight", "windows.weight", "shared.weight"}
    assert set(layers) == names
    assert layers["shared.weight"].places == 65
    assert layers["shared.weight"].padded == 0  # on the larger of its maps nothing always is
    for image in images.split(1):
        halves = rearrange(image, "b c (n h) w -> (b n) c h w", n=2)
        patches = {
            "fine.weight": functional.unfold(image, 3, padding=1),
            "coarse.weight": functional.unfold(image, 3, padding=1, stride=2),
            "windows.weight": functional.unfold(halves, 3),
        }
        found = measured(model, image, with_rows(layers, 1.0), size=1)
        for name, columns in patches.items():
            assert found.rows[name] == 1
            rows = rearrange(columns, "b d p -> (b p) d").double()
            away = (rows[:, :, None] * rows[:, None] - found.sums[name]).abs().amax(dim=(1, 2))
            assert float(away.min()) < 1e-9
    whole = measured(model, images, with_rows(layers, 2.5), size=12)
    single = measured(model, images, with_rows(layers, 2.5), size=1)
    assert whole.rows == single.rows
    for name in names:
        assert 2 * 12 <= whole.rows[name] <= 3 * 12
        assert torch.allclose(whole.sums[name], single.sums[name], atol=1e-9)


def test_thinned_rows_of_an_image_lie_evenly_apart() -> None:
    conv = nn.Conv2d(64, 1, 1)  # a row of each place is that place's unit vector
    image = torch.eye(64).reshape(1, 64, 8, 8)
    layers = survey(weights_of(conv), image, conv)
    for scale in (1.0, 2.0, 3.0):
        found = measured(conv, scale * image, with_rows(layers, 4.0), size=1).sums["weight"][0]
        places = (found.diagonal() > 0).nonzero()[:, 0]
        assert places.diff().tolist() == [16, 16, 16]
        assert torch.equal(found[places, places], torch.full((4,), scale**2, dtype=torch.float64))


def test_groups_and_double_products_cost_what_they_do() -> None:
    def taken(groups: int, *, double: bool) -> float:
        layers = {"one": Layer(300, groups, None, 50, 0)}
        found = thinned(layers, {"one": 30}, double=double)["one"].taken
        assert found is not None
        return found

    assert taken(4, double=False) == pytest.approx(taken(1, double=False) / 4)
    assert taken(1, double=True) == pytest.approx(taken(1, double=False) / 2.4)


def test_dense_patches_have_padding_of_their_own() -> None:
    conv, images = nn.Conv2d(2, 3, 3, padding=3, dilation=3), torch.randn(4, 2, 3, 3)
    for dense, padded in ((False, 16), (True, 0)):
        assert survey(weights_of(conv), images, conv, dense=dense)["weight"].padded == padded


def test_keys_belong_to_the_bits_of_an_image() -> None:
    images = torch.randn(50, 3, 4, 4)
    keys = keys_of(images)
    assert len(keys.unique()) == 50
    assert torch.equal(keys_of(images.flip(0)), keys.flip(0))
    other = images.clone()
    other[7, 2, 3, 3] += 1e-6
    assert (keys_of(other) != keys).nonzero().tolist() == [[7]]
    for dtype in (torch.bfloat16, torch.float64, torch.uint8):
        assert len(keys_of((images * 50).to(dtype)).unique()) == 50
    assert torch.equal(keys_of({"pixel_values": images}), keys)


def test_thinned_rows_are_a_fair_sample() -> None:
    conv = nn.Conv2d(2, 4, 3, padding=1)
    images = torch.randn(2000, 2, 6, 6)
    layers = survey(weights_of(conv), images, conv)
    every = measured(conv, images, layers, size=500)
    some = measured(conv, images, with_rows(layers, 2.5), size=500)
    assert abs(some.rows["weight"] / 2000 - 2.5) < 0.05
    mean_of_all = every.sums["weight"] / every.rows["weight"]
    mean_of_some = some.sums["weight"] / some.rows["weight"]
    assert float((mean_of_some - mean_of_all).norm()) < 0.1 * float(mean_of_all.norm())


@pytest.mark.parametrize("wide", [1, 5])
@pytest.mark.parametrize("images", [100, 2000, 10**6])
def test_few_images_give_a_layer_two_thousand_rows_or_what_costs_nothing(
    images: int, wide: int
) -> None:
    layers = {str(number): Layer(1000, 1, None, 4, 0) for number in range(wide)}
    outputs = dict.fromkeys(layers, 1)
    (usual,) = {layer.taken for layer in thinned(layers, outputs, double=False).values()}
    assert usual is not None
    free = FREE / (wide * 1000**2 * 3 / 4)
    assert (free > LEAST_ROWS) == (wide == 1)
    rows = max(usual, LEAST_ROWS / images, free / images)
    for layer in thinned(layers, outputs, double=False, images=images).values():
        assert layer.taken == (None if rows >= 4 else pytest.approx(rows, rel=1e-6))


def test_thinning_keeps_to_its_budget() -> None:
    layers = {
        "early": Layer(576, 1, None, 64, 0),
        "late": Layer(4608, 1, None, 1, 0),
        "mixed": Layer(100, 1, None, 10, None),
    }
    outputs = {"early": 64, "late": 512, "mixed": 50}
    found = thinned(layers, outputs, double=False)
    assert found["mixed"] == layers["mixed"]  # its images cannot be told apart
    rows = found["early"].taken
    assert rows is not None
    assert found["late"].taken == rows
    own = 64 * 64 * 576 + 512 * 4608 + 10 * 50 * 100
    blocks = (8 + 1) / (2 * 8)  # of a symmetric product of width 4608 only these are computed
    spent = rows * 576**2 + rows * 4608**2 * blocks + 10 * 100**2
    assert spent == pytest.approx(SHARE_OF_FORWARD * own, rel=1e-3)
    twice = thinned(layers, outputs, double=True)["late"].taken
    assert twice is not None
    assert twice < rows
    padding = {**layers, "late": Layer(4608, 1, None, 1, 0, padded=4096)}
    more = thinned(padding, outputs, double=False)["late"].taken
    assert more is not None
    assert more * 576**2 + more * 512**2 + 10 * 100**2 == pytest.approx(
        SHARE_OF_FORWARD * own, rel=1e-3
    )
    cheap = {"one": Layer(8, 1, None, 5, 0)}
    assert thinned(cheap, {"one": 1000}, double=True) == cheap  # all rows fit


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 2, 3, 0)])
def test_single_patches_are_those_that_padding_and_cutting_give(
    stride: tuple[int, int], dilation: tuple[int, int], padding: tuple[int, int, int, int]
) -> None:
    inputs = torch.randn(3, 2, 9, 8)
    cut = Cut((3, 2), stride, dilation, padding, groups=1)
    every = cut.views(inputs)
    down, across = cut.places(inputs)
    assert (down, across) == tuple(every.shape[2:4])
    image, place = torch.arange(3).repeat_interleave(down * across), torch.arange(down * across)
    found = cut.pixels(inputs).at(place.repeat(3)).of(inputs, image)
    assert torch.equal(found, every.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))


def test_a_pixel_that_is_not_a_number_stays_out_of_the_padding() -> None:
    inputs = torch.full((1, 1, 2, 2), torch.nan)
    cut = Cut((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), groups=1)
    first = torch.zeros(1, dtype=torch.int64)
    found = cut.pixels(inputs).at(first).of(inputs, first)
    assert torch.equal(found.isnan(), torch.tensor([[[[0, 0, 0], [0, 1, 1], [0, 1, 1]]]]).bool())


@pytest.mark.parametrize(("stride", "padding"), [([2, 1], (1, 0)), ((2, 1), [1, 0]), (2, 1)])
def test_strides_and_padding_of_any_form_are_read(stride: object, padding: object) -> None:
    images, weight = torch.randn(3, 2, 9, 8), nn.Parameter(torch.randn(4, 2, 3, 3))

    def forward(inputs: object) -> Tensor:
        return functional.conv2d(inputs, weight, None, stride, padding)  # type: ignore[call-overload,no-any-return]

    layers = survey({"weight": weight}, images, forward)
    accumulator = Accumulator({"weight": weight}, layers)
    accumulator.add(images, forward)
    rows = functional.unfold(images, 3, padding=padding, stride=stride)  # type: ignore[arg-type]
    expected = torch.einsum("bip,bjp->ij", rows.double(), rows.double())
    assert torch.allclose(accumulator.moments().sums["weight"][0], expected, atol=1e-9)


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch 2.9 has brought it"
)
def test_products_where_the_caller_lets_one_backend_round(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, seen = torch.backends.cuda.matmul, set()
    multiply = Accumulator._add_blocks

    def noting(self: Accumulator, total: Tensor, rows: Tensor, *, new: bool) -> None:
        seen.add(settings.fp32_precision)
        multiply(self, total, rows, new=new)

    monkeypatch.setattr(Accumulator, "_add_blocks", noting)
    before, some = settings.fp32_precision, toy("cnn")
    settings.fp32_precision = "tf32"
    try:
        Statistics.collect(some.model, some.loader())
        assert settings.fp32_precision == "tf32"
    finally:
        settings.fp32_precision = before
    assert seen == {"ieee"}
