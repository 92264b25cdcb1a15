"""The small architectures of the built-in benchmark, for 32-pixel images of one channel."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

MODEL_NAMES = ("resnet18", "vit")


def build_resnet18(num_classes: int) -> nn.Module:
    """Build timm's ``resnet18`` for one-channel images, with random weights (11 M parameters)."""
    import timm

    return timm.create_model("resnet18", in_chans=1, num_classes=num_classes)


def build_vit(num_classes: int) -> nn.Module:
    """Build a transformers ViT of 1.1 M parameters for 32-pixel images, with random weights.

    Sixteen patches of 8 pixels, embedded by three strided convolutions instead of one: trained
    from scratch on 60 000 small images a single one stays below 89 %.
    """
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(  # type: ignore[call-arg]  # num_labels is an attribute of every config
        image_size=32,
        patch_size=8,
        num_channels=1,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=384,
        num_labels=num_classes,
    )
    model = ViTForImageClassification(config)
    model.vit.embeddings.patch_embeddings.projection = StemmedProjection(1, 128)
    return model


class StemmedProjection(nn.Conv2d):
    """Embeds patches of 8 pixels: three strided convolutions, then a pointwise one.

    Args:
        channels: of the images.
        width: of the tokens.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(width, width, kernel_size=1)
        sizes = (channels, width // 4, width // 2, width)
        self.stem = nn.Sequential(*(_halving(before, after) for before, after in pairwise(sizes)))

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, width, height / 8, width / 8)."""
        return super().forward(self.stem(images))


def _halving(channels: int, width: int) -> nn.Sequential:
    """Halve the image; group normalisation has no running statistics to move."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.GroupNorm(8, width), nn.GELU())


def build_small_vgg(num_classes: int, width: int = 32) -> nn.Module:
    """Build six 3 x 3 convolutions with pooling and two linear layers, for one-channel 32 pixels.

    No layer input is wider than 2 048 at the default width, so that all statistics fit.
    """
    layers: list[nn.Module] = []
    before = 1
    for channels in (width, 2 * width, 4 * width):
        for _ in range(2):
            layers += _normalised(before, channels, kernel=3)
            before = channels
        layers.append(nn.MaxPool2d(2))
    hidden = 8 * width
    head = [nn.Flatten(), nn.Linear(before * 16, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)]
    return nn.Sequential(*layers, *head)


def build_all_convolutional(num_classes: int, width: int = 48) -> nn.Module:
    """Build eight convolutions without any pooling but the last mean, a quarter as many weights.

    Springenberg et al. 2015, "Striving for Simplicity", model All-CNN-C with half its channels and
    batch normalisation; the last 1 x 1 convolution is a linear layer behind the mean, which is the
    same function.
    """
    plan = ((width, 1), (width, 1), (width, 2), (2 * width, 1), (2 * width, 1), (2 * width, 2))
    layers: list[nn.Module] = []
    before = 1
    for channels, stride in plan:
        layers += _normalised(before, channels, kernel=3, stride=stride)
        before = channels
    layers += _normalised(before, before, kernel=3) + _normalised(before, before, kernel=1)
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes)]
    return nn.Sequential(*layers, *pooled)


def _normalised(before: int, after: int, *, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the size but for its stride, normalisation and ReLU."""
    convolution = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU()]


BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": build_resnet18,
    "vit": build_vit,
    "vgg": build_small_vgg,
    "allcnn": build_all_convolutional,
}
