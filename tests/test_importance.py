"""Importance by sample and by batch, unions, and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from forgetkit.errors import BadHyperparameter, CannotSplitModel, DataError, ModelError
from forgetkit.importance import Importance
from forgetkit.importance_reading import importance_of
from forgetkit.testing import toy
from forgetkit.testing.toys import Toy
from forgetkit.testing.trace import photograph


def literal(some: Toy, size: int, kind: str, chosen: Tensor | None = None) -> dict[str, Tensor]:
    """Average squares or absolute values of one gradient after the other."""
    images, labels = some.train.tensors
    model = some.model.eval()
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    parts = (torch.arange(len(images)) if chosen is None else chosen).split(size)
    for rows in parts:
        logits = model(images[rows])
        if kind == "cross_entropy":
            loss = nn.functional.cross_entropy(logits, labels[rows])
        else:
            loss = (logits**2).sum(dim=1).mean()
        found = torch.autograd.grad(loss, list(model.parameters()))
        for name, gradient in zip(sums, found, strict=True):
            sums[name] += gradient.square() if kind == "cross_entropy" else gradient.abs()
    return {name: total / len(parts) for name, total in sums.items()}


def close(one: Importance, other: dict[str, Tensor]) -> bool:
    return all(
        torch.allclose(value, other[name], rtol=1e-4, atol=1e-6 * float(other[name].max()))
        for name, value in one.values.items()
    )


@pytest.mark.parametrize("kind", ["cross_entropy", "squared_norm"])
@pytest.mark.parametrize(("form", "size"), [("sample", 1), ("batch", 32), ("batch", 50)])
def test_equals_one_gradient_after_the_other(kind: str, form: str, size: int) -> None:
    some = toy("cnn")
    found = importance_of(some.model, some.loader(), kind=kind, form=form, batch_size=size)
    assert (found.samples, found.batches) == (240, -(-240 // size))
    assert close(found, literal(some, size, kind))


@pytest.mark.slow
@pytest.mark.parametrize("size", [7, 64])
def test_by_sample_the_batch_size_does_not_matter(size: int) -> None:
    some = toy("vit")
    one = importance_of(some.model, some.loader(), batch_size=1)
    other = importance_of(some.model, some.loader(), batch_size=size)
    for name, value in one.values.items():
        assert torch.allclose(value, other.values[name], rtol=1e-4, atol=1e-6)


def test_by_batch_it_does() -> None:
    some = toy("vit")
    one = importance_of(some.model, some.loader(), form="batch", batch_size=8)
    other = importance_of(some.model, some.loader(), form="batch", batch_size=60)
    assert not torch.allclose(one.values["head.weight"], other.values["head.weight"], rtol=0.1)


def test_the_union_weighs_its_parts_by_their_counts() -> None:
    tensors = {"a": torch.tensor([1.0, 4.0])}, {"a": torch.tensor([4.0, 1.0])}
    by_sample = [
        Importance(t, n, 1, "cross_entropy", "sample") for t, n in zip(tensors, (1, 2), strict=True)
    ]
    assert by_sample[0].joined(by_sample[1]).values["a"].tolist() == [3.0, 2.0]
    by_batch = [
        Importance(t, 7, n, "cross_entropy", "batch") for t, n in zip(tensors, (2, 1), strict=True)
    ]
    union = by_batch[0].joined(by_batch[1])
    assert union.values["a"].tolist() == [2.0, 3.0]
    assert (union.samples, union.batches) == (14, 3)


def test_labels_are_not_read_by_the_loss_free_kind() -> None:
    some, other = toy("cnn"), toy("cnn")
    images, labels = other.train.tensors
    other.train.tensors = (images, labels.flip(0))
    one = importance_of(some.model, some.loader(), kind="squared_norm")
    flipped = importance_of(other.model, other.loader(), kind="squared_norm")
    for name, value in one.values.items():
        assert torch.equal(value, flipped.values[name])


def test_measuring_leaves_no_trace() -> None:
    some = toy("vit")
    seen = photograph(some.model)
    importance_of(some.model, some.loader())
    assert photograph(some.model) == seen


@pytest.mark.parametrize("form", ["sample", "batch"])
def test_lists_and_streams_of_batches_give_the_same(form: str) -> None:
    some = toy("cnn")
    found = importance_of(some.model, some.loader(), form=form)
    for loader in (list(some.loader()), iter(some.loader())):
        other = importance_of(some.model, loader, form=form)
        assert (other.samples, other.batches) == (found.samples, found.batches)
        assert close(other, dict(found.values))
    with pytest.raises(DataError, match=r"importance_of\(loader\): expected batches"):
        importance_of(some.model, iter([]), form=form)


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    some = toy("cnn")
    found = importance_of(some.model, some.loader(), form="batch")
    found.save(tmp_path / "importance.safetensors")
    parameters = dict(some.model.named_parameters())
    again = Importance.load(tmp_path / "importance.safetensors", parameters)
    assert (again.samples, again.batches, again.kind, again.form) == (
        240, 8, "cross_entropy", "batch",
    )  # fmt: skip
    for name, value in found.values.items():
        assert torch.equal(value, again.values[name])


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    parameters = dict(toy("cnn").model.named_parameters())
    file = tmp_path / "importance.safetensors"
    with pytest.raises(DataError, match=r"expected a file that Importance.save wrote"):
        Importance.load(file, parameters)
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(DataError, match="found another safetensors file"):
        Importance.load(file, parameters)
    Importance({"fc.weight": torch.ones(2, 2)}, 1, 1, "cross_entropy", "sample").save(file)
    with pytest.raises(DataError, match=r"expected body.0.weight of shape .* found none"):
        Importance.load(file, parameters)
    with pytest.raises(DataError, match=r"fc.weight of shape \(4, 16\), found shape \(2, 2\)"):
        Importance.load(file, {"fc.weight": parameters["fc.weight"]})
    importance_of(toy("cnn").model, toy("cnn").loader()).save(file)
    only = {"fc.weight": parameters["fc.weight"]}
    with pytest.raises(DataError, match=r"weights of this model alone, found \d+ others"):
        Importance.load(file, only)
    assert Importance.load(file, only, parameters).values.keys() == only.keys()


@pytest.mark.parametrize("name", ["kind", "form"])
def test_unknown_words_are_refused(name: str) -> None:
    some = toy("cnn")
    with pytest.raises(BadHyperparameter, match=f"importance_of\\({name}='nothing'\\)"):
        importance_of(some.model, some.loader(), **{name: "nothing"})  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("size", [0, -3, 2.5, "a", True])
def test_a_batch_size_that_is_none_is_refused(size: Any) -> None:  # noqa: ANN401
    some = toy("cnn")
    with pytest.raises(BadHyperparameter, match=r"importance_of\(batch_size=.*positive integer"):
        importance_of(some.model, some.loader(), form="batch", batch_size=size)


def test_what_is_no_module_is_refused() -> None:
    nothing: Any = "resnet18"
    with pytest.raises(ModelError, match=r"torch\.nn\.Module, found str"):
        importance_of(nothing, toy("cnn").loader())


def test_wrappers_are_seen_through() -> None:
    some = toy("cnn")
    expected = importance_of(some.model, some.loader())
    found = importance_of(nn.DataParallel(some.model), some.loader())
    assert found.values.keys() == expected.values.keys()
    assert all(torch.equal(value, expected.values[name]) for name, value in found.values.items())


class Several(nn.Module):
    """Returns two tensors that could be its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = toy("cnn").model
        self.other = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.body(images)
        return {"other": self.other(logits), "right": logits}


def test_of_several_outputs_the_one_that_is_named_counts() -> None:
    model, some = Several(), toy("cnn")
    with pytest.raises(CannotSplitModel):
        importance_of(model, some.loader())
    found = importance_of(model, some.loader(), output="right").values
    expected = importance_of(model.body, some.loader()).values
    assert torch.equal(found["body.fc.weight"], expected["fc.weight"])
    assert float(found["other.weight"].max()) == 0.0
