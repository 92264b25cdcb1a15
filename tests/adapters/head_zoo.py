"""Small hand-made classifiers, one for every kind of head and every way to be refused."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

CLASSES = 5
WIDTH = 6


def picture(rows: int = 2, seed: int = 0) -> Tensor:
    """Return (rows, 3, 8, 8) random numbers."""
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Body(nn.Module):
    """Convolution, batch norm, ReLU and pooling: (batch, 3, 8, 8) to (batch, WIDTH)."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x)), inplace=True).mean((2, 3))


class Net(nn.Module):
    """A body and a head that is any module."""

    def __init__(self, head: nn.Module | None = None, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body if body is not None else Body()
        self.last = head if head is not None else nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.body(x))
        return out


class ConvHead(nn.Module):
    """A 1x1 convolution on a map, then flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, stride=2)
        self.score = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.score(functional.adaptive_avg_pool2d(self.stem(x), 1))
        return scores.flatten(1)


class SqueezeHead(nn.Module):
    """1x1 convolution, in-place ReLU, average: not linear in its features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, stride=2)
        self.score = nn.Conv2d(WIDTH, CLASSES, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.relu(self.score(self.stem(x)))
        return scores.mean((2, 3))


class TwoHeads(nn.Module):
    """Two heads on different features, averaged, as in distilled vision transformers."""

    def __init__(self, second: int = WIDTH) -> None:
        super().__init__()
        self.body, self.side = Body(), Body(second)
        self.head, self.head_dist = nn.Linear(WIDTH, CLASSES), nn.Linear(second, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.head(self.body(x)) + self.head_dist(self.side(x))) / 2
        return out


class TokenHead(nn.Module):
    """A Linear on all tokens and a choice of one afterwards."""

    def __init__(self, pick: str = "first") -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(24, WIDTH), nn.LayerNorm(WIDTH)
        self.head, self.pick = nn.Linear(WIDTH, CLASSES), pick

    def forward(self, x: Tensor) -> Tensor:
        scores = self.head(self.norm(self.embed(x.flatten(1).view(-1, 8, 24)).relu()))
        if self.pick == "first":
            chosen: Tensor = scores[:, 0]
        else:
            chosen = scores.mean(dim=1) if self.pick == "mean" else scores.max(dim=1)[0]
        return chosen


class CosineHead(nn.Module):
    """Scaled cosines between features and one direction a class; a leaf module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, f: Tensor) -> Tensor:
        return 10 * functional.linear(functional.normalize(f), functional.normalize(self.weight))


class BareCosine(nn.Module):
    """The same as bare calls in the model itself, with the transposed product."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.prototypes = nn.Parameter(torch.randn(CLASSES, WIDTH))
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = functional.normalize(self.body(x)) @ functional.normalize(self.prototypes).t()
        return out * self.scale


class BareLinear(nn.Module):
    """A call of the linear function with the model's own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.weight = nn.Parameter(torch.randn(CLASSES, WIDTH))
        self.bias = nn.Parameter(torch.randn(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.body(x), self.weight, self.bias)


class ZeroShot(nn.Module):
    """A fixed text matrix in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.register_buffer("text", torch.randn(CLASSES, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) @ self.get_buffer("text").T
        return out


class Distances(nn.Module):
    """Minus the distances to prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.prototypes = nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.body(x), self.prototypes)


class LoraHead(nn.Module):
    """A frozen Linear and a low-rank update of it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.base = Body(), nn.Linear(WIDTH, CLASSES)
        self.down = nn.Linear(WIDTH, 2, bias=False)
        self.up = nn.Linear(2, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        f = self.body(x)
        out: Tensor = self.base(f) + 0.5 * self.up(self.down(f))
        return out


class Concatenated(nn.Module):
    """Each head owns some of the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.old, self.new = Body(), nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        f = self.body(x)
        return torch.cat([self.old(f), self.new(f)], dim=1)


class Transposed(nn.Module):
    """A leaf module with its weight stored (features, classes)."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, classes))

    def forward(self, f: Tensor) -> Tensor:
        return f @ self.weight


class Flipped(nn.Module):
    """Averages over the picture and its mirror image: one head, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.net(x) + self.net(x.flip(-1))) / 2
        return out


class BatchInteger(nn.Module):
    """Bakes the batch size into calls after the head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Body(), nn.Linear(WIDTH, 2 * CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        return scores.view(x.shape[0] * 2, -1).view(x.shape[0], 2, -1).mean(1)


class Mixed(nn.Module):
    """Several scores a class, weighted by a matrix of their shape or gathered by a fixed one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.head = Body(), nn.Linear(WIDTH, 2 * CLASSES)
        self.mixing = nn.Parameter(torch.rand(2, CLASSES) + 0.5)
        belongs = torch.eye(CLASSES).repeat_interleave(2, dim=1)
        self.register_buffer("belongs", belongs)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        if self.how == "gathered":
            return (scores[:, None] * self.get_buffer("belongs")).sum(-1)
        mixed: Tensor = scores.unflatten(1, (2, CLASSES)) * self.mixing
        return mixed.sum(1)


class InnerAutocast(nn.Module):
    """Runs its head in bfloat16 whatever the caller does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Body(), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        f = self.body(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out: Tensor = self.head(f)
        return out.float()


class Cast(nn.Module):
    """Returns its logits in another type than it computes in."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = Net(), dtype

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits.to(self.dtype)


class Outputs(nn.Module):
    """Wraps the logits as asked."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.head, self.kind = Body(), nn.Linear(WIDTH, CLASSES), kind

    def forward(self, x: Tensor) -> object:
        f = self.body(x)
        logits = self.head(f)
        if self.kind == "two":
            return logits, self.head(f * 2)
        forms = {
            "dict": {"logits": logits, "f": f},
            "odd": {"scores": logits},
            "features_first": (f, logits),
            "one": logits[:, 0],
            "dense": x * logits.mean(),
            "text": "no tensor",
        }
        return forms[self.kind]


def sequential(*last: nn.Module) -> nn.Module:
    """Return a body followed by modules."""
    return Net(nn.Sequential(*last))


def heads() -> dict[str, nn.Module]:
    """Build one model of every kind of head that is split; the same weights at each call."""
    torch.manual_seed(0)
    line = nn.Linear(WIDTH, CLASSES)
    mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 7), nn.GELU(), nn.Dropout(0.5))
    models: dict[str, nn.Module] = {
        "linear": Net(),
        "no_bias": Net(nn.Linear(WIDTH, CLASSES, bias=False)),
        "mlp": sequential(*mlp, nn.Linear(7, CLASSES)),
        "conv": ConvHead(),
        "squeeze": SqueezeHead(),
        "two_heads": TwoHeads(),
        "unequal_heads": TwoHeads(4),
        "first_token": TokenHead("first"),
        "mean_token": TokenHead("mean"),
        "max_token": TokenHead("max"),
        "cosine": Net(CosineHead()),
        "bare_cosine": BareCosine(),
        "bare_linear": BareLinear(),
        "zero_shot": ZeroShot(),
        "distances": Distances(),
        "lora": LoraHead(),
        "concatenated": Concatenated(),
        "transposed": Net(Transposed()),
        "square": Net(Transposed(WIDTH)),
        "flipped": Flipped(),
        "batch_integer": BatchInteger(),
        "mixed": Mixed("mixed"),
        "gathered": Mixed("gathered"),
        "autocast": InnerAutocast(),
        "weight_norm": Net(parametrizations.weight_norm(nn.Linear(WIDTH, CLASSES))),
        "spectral_norm": Net(parametrizations.spectral_norm(nn.Linear(WIDTH, CLASSES))),
        "log_softmax": sequential(line, nn.LogSoftmax(dim=1)),
        "sigmoid": sequential(nn.Linear(WIDTH, CLASSES), nn.Sigmoid()),
        "one_class": Net(nn.Linear(WIDTH, 1)),
        "dict": Outputs("dict"),
    }
    for model in models.values():
        model.eval()
    return models
