"""Layers in forward order, what belongs to them, and the last k of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from forgetkit.errors import BadHyperparameter, ModelError
from forgetkit.layers import Layer, last, layers, reaching
from forgetkit.testing.toys import toy
from forgetkit.testing.trace import photograph


def of_toy(kind: str, unit: str = "layer") -> list[Layer]:
    model = toy(kind).model.eval()
    return layers(model, lambda: model(torch.zeros(1, 1, 8, 8)), unit)


class Backwards(nn.Module):
    """Registered in another order than called; one layer is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.aside = nn.Linear(4, 3)
        self.first = nn.Linear(2, 4)
        self.norm = nn.BatchNorm1d(4)
        self.middle = nn.Linear(4, 4)
        self.input_norm = nn.BatchNorm1d(2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.first(self.input_norm(inputs)))
        logits: Tensor = self.head(self.middle(self.middle(hidden)))
        return logits


class Aside(nn.Module):
    """Calls a projection and an auxiliary classifier after its head; frozen but for the head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 4).requires_grad_(requires_grad=False)
        self.head = nn.Linear(4, 3)
        self.projection = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        self.auxiliary = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        hidden = self.first(inputs).relu()
        return {
            "logits": self.head(hidden),
            "embedding": self.projection(hidden),
            "aux_logits": self.auxiliary(hidden),
        }


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.one = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.two = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        inner: Tensor = self.two(functional.gelu(self.one(self.norm(inputs)))) * self.scale
        return inputs + inner


class Deep(nn.Module):
    """A stem, stages of blocks, a norm and a head inside a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 4)
        self.stages = nn.ModuleList([nn.Sequential(Block(), Block()), nn.Sequential(Block())])
        self.norm = nn.LayerNorm(4)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs)
        for stage in self.stages:
            hidden = stage(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


def test_layers_that_the_logits_do_not_depend_on_are_not_counted() -> None:
    model, inputs = Aside(), torch.ones(2, 2)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad():
        found = layers(model, lambda: model(inputs)["logits"])
        used = reaching(model, lambda: model(inputs)["logits"])
    assert [layer.name for layer in found] == ["first", "head"]
    assert used == {"first.weight", "first.bias", "head.weight", "head.bias"}
    assert found[0].parameters[2:] == tuple(n for n, _ in model.named_parameters())[4:]
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


class FrozenFeatures(nn.Module):
    """Its backbone runs without gradients, or is cut off from them."""

    def __init__(self, *, detached: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 3)
        self.aside = nn.Linear(4, 2)
        self.detached = detached

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.detached and torch.is_grad_enabled()):
            hidden = self.body(inputs)
        logits: Tensor = self.head(hidden.detach())
        self.aside(hidden)
        return logits


@pytest.mark.parametrize("detached", [True, False])
def test_a_backbone_that_gradients_do_not_reach_counts(detached: bool) -> None:
    model = FrozenFeatures(detached=detached)
    found = layers(model, lambda: model(torch.ones(2, 2)))
    assert [layer.name for layer in found] == ["body.0", "body.2", "head"]
    assert found[-1].parameters == ("head.weight", "head.bias")


def test_where_autograd_cannot_tell_every_layer_that_is_called_counts() -> None:
    model = Aside()

    def blind() -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(torch.ones(2, 2))["logits"]
        return logits

    assert [layer.name for layer in layers(model, blind)][-1] == "auxiliary"


def test_a_convolutional_network_is_pinned() -> None:
    body = ("running_mean", "running_var", "num_batches_tracked")
    assert of_toy("cnn") == [
        Layer(
            "body.0",
            ("body.0.weight", "body.1.weight", "body.1.bias"),
            tuple(f"body.1.{name}" for name in body),
        ),
        Layer(
            "body.4",
            ("body.4.weight", "body.5.weight", "body.5.bias"),
            tuple(f"body.5.{name}" for name in body),
        ),
        Layer("fc", ("fc.weight", "fc.bias"), ()),
    ]


def test_attention_counts_its_two_maps_and_norms_follow_the_layer_before() -> None:
    found = of_toy("vit")
    assert [layer.name for layer in found] == [
        "patches", "block.self_attn", "block.self_attn.out_proj", "block.linear1",
        "block.linear2", "head",
    ]  # fmt: skip
    assert {"token", "position", "block.norm1.weight"} <= set(found[0].parameters)
    assert set(found[1].parameters) == {
        "block.self_attn.in_proj_weight",
        "block.self_attn.in_proj_bias",
    }
    assert "block.norm2.weight" in found[2].parameters
    assert "norm.weight" in found[4].parameters
    assert found[5].parameters == ("head.weight", "head.bias")


def test_order_is_that_of_the_forward_pass_and_of_the_first_call() -> None:
    model = Backwards().eval()
    found = layers(model, lambda: model(torch.zeros(1, 2)))
    assert [layer.name for layer in found] == ["first", "middle", "head"]
    assert set(found[0].parameters) == {
        f"{module}.{tensor}"
        for module in ("first", "norm", "input_norm", "aside")
        for tensor in ("weight", "bias")
    }
    assert [len(layer.buffers) for layer in found] == [6, 0, 0]


@pytest.mark.parametrize("unit", ["layer", "block"])
@pytest.mark.parametrize("make", [Backwards, Deep, lambda: toy("cnn").model])
def test_every_tensor_belongs_to_exactly_one_layer(make: type[nn.Module], unit: str) -> None:
    model = make().eval()
    some = torch.zeros(1, 2) if not hasattr(model, "fc") else torch.zeros(1, 1, 8, 8)
    found = layers(model, lambda: model(some), unit)
    parameters = sorted(name for layer in found for name in layer.parameters)
    buffers = sorted(name for layer in found for name in layer.buffers)
    assert parameters == sorted(name for name, _ in model.named_parameters())
    assert buffers == sorted(name for name, _ in model.named_buffers())


def test_blocks_are_the_elements_of_stacks_and_what_lies_beside_them() -> None:
    model = Deep().eval()
    found = layers(model, lambda: model(torch.zeros(1, 2)), "block")
    assert [layer.name for layer in found] == [
        "stem", "stages.0.0", "stages.0.1", "stages.1.0", "head",
    ]  # fmt: skip
    for layer in found[1:4]:
        own = {name.removeprefix(f"{layer.name}.") for name in layer.parameters}
        assert {"norm.weight", "one.weight", "scale", "two.bias"} <= own
    assert "norm.weight" in found[3].parameters
    assert found[4].parameters == ("head.1.weight", "head.1.bias")


def test_a_tensor_beside_submodules_belongs_to_the_first_layer_inside() -> None:
    model = Deep().eval()
    found = {layer.name: layer for layer in layers(model, lambda: model(torch.zeros(1, 2)))}
    assert "stages.0.0.scale" in found["stages.0.0.one"].parameters
    assert "stages.0.0.norm.weight" in found["stem"].parameters


def test_a_plain_sequence_is_one_block() -> None:
    assert [layer.name for layer in of_toy("cnn", "block")] == ["body", "fc"]
    assert [layer.name for layer in of_toy("vit", "block")] == ["patches", "block", "head"]


def test_a_shared_tensor_belongs_to_the_earlier_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    found = layers(model, lambda: model(torch.zeros(1, 3)))
    assert found[0].parameters == ("0.weight", "0.bias")
    assert found[1].parameters == ("2.bias",)


def test_a_parametrised_weight_belongs_to_its_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    nn.utils.parametrizations.weight_norm(model[1])
    found = layers(model, lambda: model(torch.zeros(1, 3)))
    assert [layer.name for layer in found] == ["0", "1"]
    assert set(found[1].parameters) == {
        "1.bias",
        "1.parametrizations.weight.original0",
        "1.parametrizations.weight.original1",
    }


def test_a_model_that_is_one_layer_has_one_layer() -> None:
    model = nn.Linear(2, 3)
    for unit in ("layer", "block"):
        found = layers(model, lambda: model(torch.zeros(1, 2)), unit)
        assert found == [Layer("", ("weight", "bias"), ())]


def test_leaves_no_trace_even_when_the_forward_fails() -> None:
    model = toy("vit").model.eval()
    seen = photograph(model)
    layers(model, lambda: model(torch.zeros(1, 1, 8, 8)))
    assert photograph(model) == seen
    with pytest.raises(RuntimeError, match="size"):
        layers(model, lambda: model(torch.zeros(1, 3, 8, 8)))
    assert photograph(model) == seen


def test_refuses_a_model_without_layers() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(4))
    with pytest.raises(ModelError, match="expected a convolution or a linear layer"):
        layers(model, lambda: model(torch.zeros(1, 4)))


def test_the_last_k_end_with_the_head() -> None:
    found = of_toy("vit")
    assert [layer.name for layer in last(found, 1)] == ["head"]
    assert [layer.name for layer in last(found, 3)] == ["block.linear1", "block.linear2", "head"]
    assert last(found, 6) == found
    with pytest.raises(BadHyperparameter, match=r"at most 6.*found 7"):
        last(found, 7)
