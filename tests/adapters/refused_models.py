"""Models that cannot be split, one for every reason."""

from __future__ import annotations

import torch
from head_zoo import CLASSES, WIDTH, Body, Net, Outputs, sequential
from torch import Tensor, nn
from torch.nn import functional


class NoHead(nn.Module):
    """Returns its pooled features and says that it has no classes."""

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.body = Body()
        if num_classes is not None:
            self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


class IdentityHead(NoHead):
    """Its classifier was replaced by an Identity."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.body(x))
        return out


class Residual(nn.Module):
    """A headless residual stream: as many final layers as blocks, each reading the last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(192, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 9), nn.GELU(), nn.Linear(9, WIDTH))
            for _ in range(6)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1))
        for block in self.blocks:
            x = x + block(x)
        return x


class NothingLearned(nn.Module):
    """Pools its input."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.scale


class InputSkip(nn.Module):
    """Adds the input's brightness to the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x) + x.mean((1, 2, 3))[:, None]
        return out


class BroadcastDistances(nn.Module):
    """Distances written with broadcasting, which is no product with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.points = nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        gaps: Tensor = self.body(x)[:, None] - self.points
        squares: Tensor = (gaps**2).sum(-1)
        return -squares


class HiddenThenDistances(nn.Module):
    """The same after a hidden Linear, which looks like a head."""

    def __init__(self, width: int = 8, how: str = "broadcast") -> None:
        super().__init__()
        self.net = Net(nn.Linear(WIDTH, width))
        self.points = nn.Parameter(torch.randn(CLASSES, width))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        f = self.net(x)
        if self.how == "loop":
            one_by_one = [((f - self.points[label]) ** 2).sum(-1) for label in range(CLASSES)]
            return -torch.stack(one_by_one, dim=1)
        if self.how == "expanded":
            copies = f.unsqueeze(1).expand(-1, CLASSES, -1)
            angles: Tensor = (copies * functional.normalize(self.points)).sum(-1)
            return angles
        squares: Tensor = ((f[:, None] - self.points) ** 2).sum(-1)
        return -squares


class BatchNormAfter(nn.Module):
    """Normalises its logits over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc, self.bn = Body(), nn.Linear(WIDTH, CLASSES), nn.BatchNorm1d(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.fc(self.body(x)))
        return out


class Windows(nn.Module):
    """Its head reads four crops a sample folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        crops = x.unflatten(-1, (4, 2)).movedim(3, 0).flatten(0, 1)
        out: Tensor = self.net(crops).view(4, x.shape[0], -1).mean(0)
        return out


class BatchSquare(nn.Module):
    """Its tail repeats the logits by the square of the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits.unsqueeze(0).expand(x.shape[0] ** 2, -1, -1).mean(0)


class BatchCentred(nn.Module):
    """Subtracts the batch's mean from the logits: samples are not independent."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        centred: Tensor = logits - logits.mean(0)
        return centred


class Elsewhere(nn.Module):
    """Makes its logits outside of torch, where no call is seen."""

    def __init__(self, *, then_scale: bool = False) -> None:
        super().__init__()
        self.net, self.then_scale = Net(), then_scale

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.from_numpy(self.net(x).detach().numpy() * 2)
        return logits * 2 if self.then_scale else logits


class MonteCarlo(nn.Module):
    """Drops features at random in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = Body(), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(functional.dropout(self.body(x), 0.5, training=True))
        return out


class RandomTail(nn.Module):
    """Adds noise to its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits + torch.rand_like(logits)


class ChangesItsMind(nn.Module):
    """Takes another head when ``other`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = Body(), nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)
        self.other = False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.b if self.other else self.a)(self.body(x))
        return out


def refused() -> dict[str, tuple[str, nn.Module]]:
    """Return (code, model) by a name; the same weights at each call."""
    torch.manual_seed(0)
    models: dict[str, tuple[str, nn.Module]] = {
        "no_classes": ("headless", NoHead(num_classes=0)),
        "identity": ("headless", IdentityHead()),
        "dense": ("not-logits", Outputs("dense")),
        "one_number": ("not-logits", Outputs("one")),
        "text": ("not-logits", Outputs("text")),
        "two_outputs": ("ambiguous-output", Outputs("two")),
        "nothing_learned": ("no-affine", NothingLearned()),
        "input_skip": ("skip-input", InputSkip()),
        "features": ("features-not-logits", NoHead()),
        "residual": ("features-not-logits", Residual()),
        "norm_after": ("features-not-logits", BatchNormAfter()),
        "distances": ("features-not-logits", HiddenThenDistances()),
        "distances_as_wide": ("features-not-logits", HiddenThenDistances(CLASSES)),
        "distances_in_a_loop": ("features-not-logits", HiddenThenDistances(how="loop")),
        "cosines_of_copies": ("features-not-logits", HiddenThenDistances(how="expanded")),
        "windows": ("batch-first", Windows()),
        "batch_square": ("batch-baked", BatchSquare()),
        "batch_centred": ("batch-baked", BatchCentred()),
        "elsewhere": ("opaque", Elsewhere()),
        "elsewhere_scaled": ("opaque", Elsewhere(then_scale=True)),
        "monte_carlo": ("random", MonteCarlo()),
        "noise": ("verify", RandomTail()),
        "lazy": ("lazy", sequential(nn.LazyLinear(CLASSES))),
    }
    return models
