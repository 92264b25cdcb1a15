from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
from made import evidence, record
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer
from transformers import ViTConfig, ViTForImageClassification

from forgetkit.auditing.evidence import Missing, Subject
from forgetkit.report.attention import AttentionReader, over_image, rollout
from forgetkit.report.pictures import rollout as drawn
from forgetkit.report.record import read_record
from forgetkit.testing import toy

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def read(model: nn.Module, images: Tensor = IMAGES) -> list[Tensor]:
    with torch.no_grad(), AttentionReader(len(images)) as reader:
        model.eval()(images)
    assert reader.whole
    found: list[Tensor] = reader.found
    return found


def timm_vit(*, fused: bool) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=4
    )
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010  # as a tensor to the type checker
    return model


def hub_vit(kind: str) -> nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(  # type: ignore[call-arg]  # num_labels is an attribute of every config
        image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, num_labels=4, attn_implementation=kind,
    )  # fmt: skip
    return ViTForImageClassification(config)


def test_the_fused_kernel_and_the_written_out_one_show_the_same_attention() -> None:
    for fused, plain in (
        (timm_vit(fused=True), timm_vit(fused=False)),
        (hub_vit("sdpa"), hub_vit("eager")),
    ):
        left, right = read(fused), read(plain)
        assert len(left) == len(right) == 3
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(left, right, strict=True))
        assert all(torch.allclose(a.sum(dim=2), torch.ones(3, 17)) for a in left)


def test_attention_is_what_the_library_itself_returns() -> None:
    model = hub_vit("eager").eval()
    with torch.no_grad():
        told = model(IMAGES, output_attentions=True).attentions
    assert all(
        torch.allclose(found, heads.mean(dim=1), atol=1e-6)
        for found, heads in zip(read(model), told, strict=True)
    )


def test_multihead_attention_of_torch_is_read_and_the_output_stays() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 2, 2, 24, 32, num_classes=4).eval()
    with torch.no_grad():
        plain = model(IMAGES)
        with AttentionReader(len(IMAGES)) as reader:
            watched = model(IMAGES)
    assert torch.allclose(plain, watched, atol=1e-6)
    assert [tuple(one.shape) for one in reader.found] == [(3, 17, 17)] * 2
    assert len(read(toy("vit").model, toy("vit").test.tensors[0][:3])) == 1


def test_attention_within_windows_is_not_taken_for_the_whole() -> None:
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, num_classes=4)
    images = torch.rand(2, 3, 56, 56)
    with torch.no_grad(), AttentionReader(len(images)) as reader:
        model.eval()(images)
    assert reader.found  # the last stages have a single window
    assert not reader.whole
    with pytest.raises(Missing, match="attend over the same square"):
        drawn.rollout_maps(Subject(model, {}, None), images)


def test_rollout_is_the_product_of_attention_with_the_residual() -> None:
    blocks = [one.double() for one in read(hub_vit("eager"))]
    wanted = torch.eye(17, dtype=torch.float64).repeat(3, 1, 1)
    for block in blocks:
        for sample in range(3):
            with_residual = 0.5 * block[sample] + 0.5 * torch.eye(17, dtype=torch.float64)
            wanted[sample] = with_residual @ wanted[sample]
    found = rollout(blocks)
    assert torch.allclose(found, wanted, atol=1e-12)
    assert torch.allclose(found.sum(dim=2), torch.ones(3, 17, dtype=torch.float64))
    assert torch.equal(over_image(found, 1, 4), found[:, 0, 1:].reshape(3, 4, 4))
    whole = found[:, 1:, 1:]  # as if no class token stood before the patches
    assert torch.allclose(over_image(whole, 0, 4), whole.mean(dim=1).reshape(3, 4, 4))


def test_an_edit_of_the_head_leaves_attention_where_it_was() -> None:
    found = drawn.picture(read_record(record()), evidence("vit"))
    assert [row[2] for row in found.rows] == [1.0] * 4
    assert "nothing of classes" in found.caption


def test_another_body_attends_elsewhere() -> None:
    given = evidence("vit")
    torch.manual_seed(1)
    other = type(toy("vit").model)()
    before = given.subjects["original"]
    subjects = {**given.subjects, "unlearned": Subject(other, before.outputs, None)}
    found = drawn.picture(read_record(record()), dataclasses.replace(given, subjects=subjects))
    assert min(float(row[3]) for row in found.rows) < 0.999


def test_a_network_without_attention_says_so() -> None:
    with pytest.raises(Missing, match="needs a transformer"):
        drawn.picture(read_record(record()), evidence("cnn"))
