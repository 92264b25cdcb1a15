"""One small model of each family; the sweeps run all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from forgetkit.adapting import adapt, class_count_hint, example_inputs, find_adapter
from forgetkit.dryrun.examples import call
from forgetkit.dryrun.outputs import logits_of
from forgetkit.dryrun.sweep import timm_zoo, torchvision_zoo, transformers_zoo
from forgetkit.dryrun.sweep.building import cheap_weights
from forgetkit.dryrun.sweep.checking import check, pictures, trace
from forgetkit.errors import CannotSplitModel

TIMM = {
    "resnet10t": "fc",
    "vit_tiny_patch16_224": "head",
    "deit_tiny_distilled_patch16_224": "head+head_dist",
    "convnext_atto": "head.fc",
    "dla46_c": "fc",
    "crossvit_tiny_240": "head.0+head.1",
    "levit_128s": "head.linear+head_dist.linear",
    "efficientvim_m1": "heads.0+heads.1+heads.2+heads.3",
}
TRANSFORMERS = {
    "vit:ViTForImageClassification": "classifier",
    "resnet:ResNetForImageClassification": "classifier.1",
    "deit:DeiTForImageClassificationWithTeacher": "cls_classifier+distillation_classifier",
    "swiftformer:SwiftFormerForImageClassification": "head+dist_head",
    "siglip2:Siglip2ForImageClassification": "classifier",
}
TORCHVISION = {
    "resnet18": "fc",
    "squeezenet1_1": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "googlenet": "fc",
}


@pytest.mark.parametrize("name", sorted(TIMM))
def test_timm(name: str) -> None:
    outcome = timm_zoo.one(name)
    assert (outcome.status, outcome.head, outcome.detail) == ("exact", TIMM[name], "")


@pytest.mark.parametrize("name", sorted(TRANSFORMERS))
def test_transformers(name: str) -> None:
    outcome = transformers_zoo.one(name)
    assert (outcome.status, outcome.head, outcome.detail) == ("exact", TRANSFORMERS[name], "")


@pytest.mark.parametrize("name", sorted(TORCHVISION))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torchvision(name: str) -> None:
    outcome = torchvision_zoo.one(name)
    assert (outcome.status, outcome.head, outcome.detail) == ("exact", TORCHVISION[name], "")


def test_headless_timm_model_is_refused() -> None:
    import timm

    model = timm.create_model("resnet10t", num_classes=0)
    assert class_count_hint(model) == 0
    with pytest.raises(CannotSplitModel) as caught:
        adapt(model, pictures(1, 3, (64, 64)))
    assert caught.value.code == "headless"


@pytest.mark.parametrize("name", ["fc", "head.fc", "head"])
def test_a_classifier_put_on_an_encoder_is_believed(name: str) -> None:
    import timm

    model = timm.create_model("resnet10t" if name == "fc" else "test_convnext", num_classes=0)
    width = model.num_features
    assert isinstance(width, int)
    own: nn.Module = nn.Linear(width, 5)
    if name == "head":  # takes the pooling with it
        own = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), own)
    model.set_submodule(name, own)
    assert class_count_hint(model) == 0
    view = adapt(model, pictures(2, 3, (64, 64)))
    assert view.num_classes == 5
    assert view.head_name.startswith(name)


def test_replaced_classifier_does_not_clash_with_the_stale_hint() -> None:
    import timm

    model = timm.create_model("resnet10t", num_classes=10)
    model.fc = nn.Linear(512, 3)
    assert adapt(model, pictures(1, 3, (64, 64))).num_classes == 3


@pytest.mark.parametrize(
    ("name", "ecosystem"),
    [("resnet10t", "timm"), ("vit:ViTForImageClassification", "transformers")],
)
def test_examples_fit_their_model(name: str, ecosystem: str) -> None:
    if ecosystem == "timm":
        import timm

        model = timm.create_model(name, num_classes=10).eval()
    else:
        model = transformers_zoo.build(*name.split(":")).eval()
    assert find_adapter(model).name == ecosystem
    assert class_count_hint(model) == 10
    example = example_inputs(model, 2)
    assert example is not None
    with torch.no_grad():
        assert logits_of(call(model, example)).shape == (2, 10)


class HintOnly:
    """A straw man: the hinted module is the head, and its input the features."""

    def __init__(self, model: nn.Module, name: str, x: torch.Tensor) -> None:
        kept: list[torch.Tensor] = []
        module = model.get_submodule(name)
        # The hook is left behind on purpose.
        module.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        with torch.no_grad():
            self.logits = model(x)
            self.replayed = module(kept[0])


def test_the_sweep_fails_straw_men(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    from forgetkit.dryrun.split import Split
    from forgetkit.dryrun.sweep import checking

    def build() -> nn.Module:
        model = timm.create_model("deit_tiny_distilled_patch16_224", depth=1, img_size=32)
        cheap_weights(model)
        return model.eval()

    x, fresh = pictures(1, 3, (32, 32)), pictures(2, 3, (32, 32))
    assert check("right", build(), x, fresh).status == "exact"

    model = build()
    before = trace(model)
    hint = HintOnly(model, "head", fresh)
    assert not torch.allclose(hint.replayed, hint.logits)
    assert trace(model) != before

    def halves(self: Split, features: torch.Tensor) -> torch.Tensor:
        return self.program.run(self.packing.unpack(features)) / 2

    def copied(self: Split, features: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "kept"):
            swap = {id(t): t.detach().clone() for t in self.program.weights().values()}
            object.__setattr__(self, "kept", swap)
        return self.program.run(self.packing.unpack(features), getattr(self, "kept"))  # noqa: B009

    def hooked(*args: object, **kwargs: object) -> Split:
        model.get_submodule("head").register_forward_hook(lambda *_: None)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    for wrong in (halves, copied):
        with monkeypatch.context() as patch:
            patch.setattr(Split, "head", wrong)
            assert check("wrong", build(), x, fresh).status in ("wrong", "refused")
    real, model = adapt, build()
    monkeypatch.setattr(checking, "adapt", hooked)
    assert check("hooked", model, x, fresh).status == "wrong"
