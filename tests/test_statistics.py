from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import forgetkit
from forgetkit import Statistics, forget
from forgetkit.core_space import projections
from forgetkit.engine.run import Run
from forgetkit.errors import BadHyperparameter, DataError, ModelError, PatchMismatch
from forgetkit.method import State
from forgetkit.methods.pgu import PGU
from forgetkit.moment_measuring import FLOOR, WIDEST, Products
from forgetkit.testing import toy
from forgetkit.testing.toys import Toy
from forgetkit.testing.trace import changed, photograph, weights


def collected(some: Toy, **options: object) -> Statistics:
    return Statistics.collect(some.model, some.loader(), positions="all", **options)  # type: ignore[arg-type]


def close(one: Statistics, other: Statistics, error: float = 1e-9) -> bool:
    if one.samples != other.samples or one.moments.rows != other.moments.rows:
        return False
    return all(
        float((one.moments.sums[name] - total).norm()) <= error * float(total.norm())
        for name, total in other.moments.sums.items()
    )


def without_class(some: Toy, label: int = 3) -> DataLoader[tuple[Tensor, ...]]:
    images, labels = some.train.tensors
    kept = labels != label
    return DataLoader(TensorDataset(images[kept], labels[kept]), batch_size=50)


def test_collecting_sums_what_the_layers_see_and_leaves_no_trace() -> None:
    some = toy("cnn")
    seen, before = photograph(some.model), weights(some.model)
    state = torch.get_rng_state()
    found = collected(some)
    assert photograph(some.model) == seen
    assert not changed(before, weights(some.model))
    assert torch.equal(torch.get_rng_state(), state)
    assert found.samples == 240
    assert found.complete
    assert found.inputs == (1, 8, 8)
    assert set(found.moments.sums) == {"body.0.weight", "body.4.weight", "fc.weight"}
    images = some.train.tensors[0]
    patches = nn.functional.unfold(images, 3, padding=1).double()  # (images, 9, positions)
    expected = torch.einsum("nip,njp->ij", patches, patches)
    assert torch.allclose(found.moments.sums["body.0.weight"][0], expected, rtol=1e-10)
    some.model.eval()
    rows = some.model.get_submodule("body")(images).mean(dim=(2, 3)).detach().double()
    assert torch.allclose(found.moments.sums["fc.weight"][0], rows.T @ rows, rtol=1e-5)


def test_a_sampler_that_shuffles_or_drops_makes_no_difference() -> None:
    some = toy("cnn")
    loader = DataLoader(some.train, batch_size=100, shuffle=True, drop_last=True)
    found = Statistics.collect(some.model, loader, positions="all")
    assert close(found, collected(some), 1e-6)
    batches = [(x, y) for x, y in some.loader(60)]
    assert close(Statistics.collect(some.model, batches, positions="all"), collected(some), 1e-6)


@pytest.mark.parametrize("positions", ["all", "auto", 2.5])
def test_a_file_gives_the_same_back(positions: str | float, tmp_path: Path) -> None:
    some = toy("vit")
    found = Statistics.collect(some.model, some.loader(), positions=positions)
    assert found.complete == (positions != 2.5)  # so few images cost nothing
    file = found.save(tmp_path / "all.safetensors")
    again = Statistics.load(file)
    assert again.moments.layers == found.moments.layers
    assert again.moments.rows == found.moments.rows
    assert (again.architecture, again.inputs, again.products, again.samples, again.weights) == (
        found.architecture, found.inputs, found.products, found.samples, found.weights,
    )  # fmt: skip
    assert found.weights is not None
    for name, total in found.moments.sums.items():
        assert torch.equal(again.moments.sums[name], total)
    assert repr(again) == repr(found)
    assert list(tmp_path.iterdir()) == [file]
    rest = again.subtract(some.model, some.forget_loader())
    direct = Statistics.collect(some.model, without_class(some), positions="all")
    if positions == "all":
        assert close(rest, direct, 1e-5)
    assert rest.samples == 180
    assert (found.requests, rest.requests) == (0, 1)
    assert rest.weights is None
    assert Statistics.load(rest.save(tmp_path / "rest")).requests == 1
    (tmp_path / "rest").unlink()
    again.save(file)  # replaces
    assert Statistics.load(file).samples == 240


def test_a_file_says_how_its_patches_were_cut(tmp_path: Path) -> None:
    some = toy("vit")  # its patches have a stride
    dense, own = collected(some, dense_patches=True), collected(some)
    assert (dense.dense_patches, own.dense_patches) == (True, False)
    assert dense.moments.rows["patches.weight"] == 240 * 25
    assert own.moments.rows["patches.weight"] == 240 * 4
    again = Statistics.load(dense.save(tmp_path / "dense"))
    assert again.dense_patches
    part = some.forget_loader()
    assert close(again.subtract(some.model, part), dense.subtract(some.model, part))
    patches = nn.functional.unfold(some.train.tensors[0], 4).double()  # (images, 16, positions)
    expected = torch.einsum("nip,njp->ij", patches, patches)
    assert torch.allclose(again.moments.sums["patches.weight"][0], expected, rtol=1e-10)


@pytest.mark.parametrize("positions", ["all", 2.5])
def test_subtracting_leaves_those_of_the_rest(positions: str | float) -> None:
    some = toy("cnn")
    some.model.double()
    whole = Statistics.collect(some.model, some.loader(), positions=positions)
    rest = whole.subtract(some.model, some.forget_loader())
    layers = whole.moments.layers
    direct = Statistics.collect(some.model, without_class(some), positions=positions)
    assert direct.moments.layers == layers
    assert close(rest, direct)
    assert whole.samples == 240  # a new object: the old one is as it was


def test_subtracting_measures_with_the_rates_of_the_file() -> None:
    some = toy("cnn")
    some.model.double()
    stream = iter(some.loader())  # how long it is is not known
    whole = Statistics.collect(some.model, stream)
    assert not whole.complete
    rest = whole.subtract(some.model, some.forget_loader())
    nothing = rest.subtract(some.model, without_class(some))
    assert nothing.samples == 0
    for name, total in whole.moments.sums.items():
        assert float(nothing.moments.sums[name].abs().max()) < 1e-9 * float(total.abs().max())


def test_without_takes_away_what_the_model_before_the_run_saw() -> None:
    some = toy("cnn")
    whole = collected(some)
    rest = whole.subtract(some.model, some.forget_loader())
    result = (
        forget(some.model)
        .classes([3])
        .using("neggrad", epochs=1, lr=0.05)
        .on("cpu")
        .run(some.loader(), guard=None)
    )
    edited = weights(some.model)
    served = whole.without(result, some.loader())
    assert close(served, rest, 1e-6)
    assert (whole.requests, served.requests, served.without(result, some.loader()).requests) == (
        0, 1, 2,
    )  # fmt: skip
    assert not changed(edited, weights(some.model))
    assert not close(whole.subtract(some.model, some.forget_loader()), rest, 1e-6)
    result.rolled_back = True
    assert whole.without(result, some.loader()) is whole  # no request was served
    result.rolled_back = False
    with torch.no_grad():
        next(some.model.parameters()).add_(1.0)
    with pytest.raises(PatchMismatch):
        whole.without(result, some.loader())


def test_samples_with_corrected_labels_stay_in_the_statistics() -> None:
    some = toy("cnn")
    whole = Statistics.collect(some.model, some.loader())
    request = forget(some.model).relabel({3: 1, 8: 2}).using("correct", epochs=1).on("cpu")
    result = request.run(some.loader(), guard=None)
    served = whole.without(result, some.loader())
    assert (served.samples, served.requests) == (whole.samples, 0)
    assert close(served, whole, 0.0)
    assert served.weights != whole.weights
    with torch.no_grad():
        next(some.model.parameters()).add_(1.0)
    with pytest.raises(PatchMismatch):
        whole.without(result, some.loader())


def test_statistics_of_another_model_or_transform_are_refused() -> None:
    some, other = toy("cnn"), toy("vit")
    found = collected(some)
    with pytest.raises(ModelError, match=r"expected the architecture .* found ToyViT"):
        found.subtract(other.model, some.forget_loader())
    images, labels = some.train.tensors
    larger = [(nn.functional.interpolate(images, scale_factor=2.0), labels)]
    with pytest.raises(DataError, match=r"\(1, 8, 8\).* found \(1, 16, 16\)"):
        found.subtract(some.model, larger)
    twice = [(images, labels), (images, labels)]
    with pytest.raises(DataError, match="at most the 240 samples"):
        found.subtract(some.model, twice)


def test_the_architecture_does_not_depend_on_weights_or_type() -> None:
    some = toy("cnn")
    found = collected(some)
    with torch.no_grad():
        for parameter in some.model.parameters():
            parameter.add_(0.5)
    found.check(some.model.to(torch.bfloat16))
    found.check(torch.nn.Sequential(some.model)[0])


def test_images_that_the_model_does_not_take_are_one_sentence() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    for images in (torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 2, 2, dtype=torch.uint8)):
        with pytest.raises(DataError, match="a model and images that go together"):
            Statistics.collect(model, [(images, torch.zeros(2, dtype=torch.long))])


def test_bad_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="expected a file of statistics, found none"):
        Statistics.load(tmp_path / "nothing")
    text = tmp_path / "text"
    text.write_text("not a safetensors file")
    plain = tmp_path / "plain"
    save_file({"a": torch.zeros(2)}, plain)
    cut = collected(toy("cnn")).save(tmp_path / "cut")
    cut.write_bytes(cut.read_bytes()[:-8])
    for file in (text, plain, cut):
        with pytest.raises(DataError, match=r"expected a file written by Statistics\.save"):
            Statistics.load(file)


def test_bad_options_are_refused() -> None:
    some = toy("cnn")
    for options in (
        {"positions": "some"}, {"positions": 0}, {"positions": True}, {"max_dim": 0},
        {"products": "half"},
    ):  # fmt: skip
        with pytest.raises(BadHyperparameter, match=next(iter(options))):
            Statistics.collect(some.model, some.loader(), **options)
    with pytest.raises(ModelError, match="all wider"):
        Statistics.collect(some.model, some.loader(), max_dim=4)
    with pytest.raises(DataError):
        Statistics.collect(some.model, [])


def test_layers_with_long_rows_are_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = collected(toy("cnn"), max_dim=20)
    assert set(found.moments.sums) == {"body.0.weight", "fc.weight"}
    assert "longer than max_dim=20" in caplog.text
    assert "body.4.weight" in caplog.text


class Flipping(Dataset[tuple[Tensor, int]]):
    """Flips images at random: one of two stays as it is."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.arange(64.0).reshape(1, 8, 8) + index
        return image.flip(2) if torch.rand(()) < 0.5 else image, index % 4


@pytest.mark.parametrize("workers", [0, 1])
def test_random_augmentation_is_told(caplog: pytest.LogCaptureFixture, workers: int) -> None:
    some = toy("cnn")
    Statistics.collect(some.model, some.loader())
    assert "augmentation" not in caplog.text
    Statistics.collect(some.model, DataLoader(Flipping(), batch_size=8, num_workers=workers))
    assert "random augmentation" in caplog.text


def test_images_of_several_sizes_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    data = [(torch.randn(1, size, size), 0) for size in (8, 9, 8)]
    with pytest.raises(DataError, match=r"expected images of shape \(1, 8, 8\).*\(1, 9, 9\)"):
        Statistics.collect(model, DataLoader(data, batch_size=1))  # type: ignore[arg-type]


def test_images_without_labels_are_measured() -> None:
    some = toy("cnn")
    images, _ = some.train.tensors
    known = Statistics.collect(some.model, some.loader())
    for loader in (
        DataLoader(TensorDataset(images), batch_size=32),
        [images[:100], images[100:]],
        [{"pixel_values": images}],
    ):
        assert close(Statistics.collect(some.model, loader), known)


def test_a_list_of_batches_gives_as_many_rows_as_a_loader() -> None:
    some = toy("cnn")
    listed = Statistics.collect(some.model, list(some.loader()))
    assert listed.complete
    assert close(listed, Statistics.collect(some.model, some.loader()))
    assert not Statistics.collect(some.model, iter(some.loader())).complete  # who knows how many


def test_files_of_before_padding_and_requests_were_noted_are_read(tmp_path: Path) -> None:
    some = toy("cnn")
    found = collected(some)
    file = found.save(tmp_path / "statistics")
    with safe_open(file, framework="pt") as stored:
        metadata = dict(stored.metadata())
        sums = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    header = json.loads(metadata["header"])
    del header["requests"], header["weights"]
    for layer in header["layers"].values():
        del layer["padded"]
    save_file(sums, file, metadata={**metadata, "header": json.dumps(header)})
    again = Statistics.load(file)
    assert (again.requests, again.weights) == (0, None)
    assert again.moments.layers == found.moments.layers
    assert close(again.subtract(some.model, some.forget_loader()),
                 found.subtract(some.model, some.forget_loader()))  # fmt: skip


def test_statistics_are_public() -> None:
    assert forgetkit.Statistics is Statistics
    assert "Statistics" in forgetkit.__all__


def test_what_counts_as_rounding_and_the_widest_layer() -> None:
    assert FLOOR == {"double": 1e-12, "single": 1e-6}
    assert WIDEST == 4608  # a 3 x 3 convolution of 512 channels
    wider = nn.Sequential(nn.Linear(4609, 2))
    with pytest.raises(ModelError, match="rows up to 4608, found 1 layers, all wider"):
        Statistics.collect(wider, [(torch.zeros(1, 4609), torch.zeros(1, dtype=torch.long))])


class Noted(PGU):
    """Keeps what setup returned."""

    seen: dict[str, Tensor] = {}  # noqa: RUF012  shared on purpose

    def setup(self, run: Run) -> State:
        state = super().setup(run)
        self.seen.clear()
        self.seen.update(state)
        return state


@pytest.mark.parametrize("spectrum", ["energy", "sigma"])
@pytest.mark.parametrize(("products", "rank"), [("double", 12), ("single", 10), (None, 12)])
def test_rounding_does_not_decide_how_many_directions_are_protected(
    products: Products | None, rank: int, spectrum: str, tmp_path: Path
) -> None:
    """Inputs of 96 numbers use 12 directions, two of them with 1e-7 of the strongest's energy."""
    draws = torch.Generator().manual_seed(0)
    heights = torch.cat([torch.linspace(1.0, 0.1, 10), torch.full((2,), 10**-3.5)]).double()
    rows = torch.linalg.qr(torch.randn(600, 12, generator=draws).double()).Q * heights
    basis = torch.linalg.qr(torch.randn(96, 12, generator=draws).double()).Q
    inputs, labels = (rows @ basis.T).float(), torch.arange(600) % 3
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=100)
    model, file = nn.Sequential(nn.Identity(), nn.Linear(96, 3)), tmp_path / "statistics"
    if products is not None:
        found = Statistics.collect(model, loader, positions="all", products=products)
        found.save(file)
    method = Noted(
        statistics=None if products is None else str(file), gamma=1 - 1e-9, spectrum=spectrum,
        positions="all", epochs=1,
    )  # fmt: skip
    forget(model).instances(range(5)).using(method).on("cpu").run(loader, guard=None)
    left = projections(Noted.seen)["1.weight"].of(torch.eye(96))
    assert float(left.trace()) == pytest.approx(96 - rank, abs=1e-3)
    used = basis[:, :rank].float()
    assert float((used.T @ left).norm()) < 1e-2  # the directions themselves


def test_a_wide_head_of_few_images_is_measured_on_all_of_them() -> None:
    head = nn.Linear(500, 4)
    data = TensorDataset(torch.randn(500, 500), torch.arange(500) % 4)
    found = Statistics.collect(head, DataLoader(data, batch_size=100))
    assert found.complete
    assert found.moments.rows["weight"] == 500
