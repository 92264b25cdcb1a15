"""New heads on frozen features: linear probes and nearest class means. Pure functions.

Everything is float64 on the CPU, and depends on features and labels only.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from forgetkit.errors import DataError


def few_shot_rows(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Return rows of up to ``shots`` samples of each class, drawn at random, (rows,) int64.

    The draw depends on labels and seed only, so every model gets the same samples.
    """
    generator = Generator().manual_seed(seed)
    drawn = []
    for label in labels.unique().tolist():
        own = torch.nonzero(labels == label)[:, 0]
        drawn.append(own[torch.randperm(len(own), generator=generator)[:shots]])
    return torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.int64)


def standardiser(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each column; a constant column gets deviation 1."""
    values = features.double()
    deviation = values.std(dim=0, unbiased=False)
    # a column that is constant up to rounding must not be blown up
    still = deviation <= 1e-9 * values.abs().amax(dim=0).clamp(min=1e-300)
    return values.mean(dim=0), torch.where(still, torch.ones_like(deviation), deviation)


def probe_predictions(features: Tensor, labels: Tensor, asked: Sequence[Tensor]) -> list[Tensor]:
    """Return what a new linear head answers: multinomial logistic regression, C = 1, balanced.

    The problem is convex, so there is nothing random. With more columns than samples it is solved
    in the span of the samples, where the solution of a ridge-penalised problem lies: same answer,
    smaller problem.

    Args:
        features: (samples, dim), standardised.
        labels: (samples,).
        asked: sets of features (others, dim) to answer.

    Returns:
        Predicted classes for each of them.

    Raises:
        DataError: there are fewer than two classes, or a feature is not finite.
    """
    from sklearn.linear_model import LogisticRegression

    if len(labels.unique()) < 2 or not bool(torch.isfinite(features).all()):
        found = "fewer" if len(labels.unique()) < 2 else "NaN or infinity among the features"
        raise DataError(
            f"probe: expected finite features of at least two classes, found {found}; give samples "
            "of kept and of forgotten classes"
        )
    values, others = features.double(), [one.double() for one in asked]
    if values.shape[1] > len(values):
        basis = torch.linalg.svd(values, full_matrices=False).Vh.T
        values, others = values @ basis, [one @ basis for one in others]
    head = LogisticRegression(max_iter=2000, C=1.0, class_weight="balanced")
    with warnings.catch_warnings():
        # one sample of each class is what few shots are; scikit-learn takes it for a regression
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        head.fit(values.numpy(), labels.numpy())
    return [torch.as_tensor(head.predict(one.numpy())) for one in others]


def sgd_probe_predictions(
    features: Tensor, labels: Tensor, asked: Sequence[Tensor], *, classes: int, seed: int
) -> list[Tensor]:
    """Return what a new head answers that was trained as in ESC's knowledge retention.

    Xavier weights, SGD with learning rate 1e-3 and momentum 0.9, batches of 64, 10 epochs.

    Args:
        features: (samples, dim) of all training samples, not standardised.
        labels: (samples,).
        asked: sets of features (others, dim) to answer.
        classes: width of the head.
        seed: of weights and order.

    Source: Lee et al., "ESC: Erasing Space Concept for Knowledge Deletion", CVPR 2025.
    """
    generator = Generator().manual_seed(seed)
    weight = torch.empty(classes, features.shape[1])
    torch.nn.init.xavier_uniform_(weight, generator=generator)
    weight.requires_grad_()
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=1e-3, momentum=0.9)
    with torch.enable_grad():
        for _ in range(10):
            for rows in torch.randperm(len(labels), generator=generator).split(64):
                logits = features[rows].float() @ weight.T + bias
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(logits, labels[rows]).backward()
                optimizer.step()
    return [(one.float() @ weight.detach().T + bias.detach()).argmax(dim=1) for one in asked]


def class_means(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return means (classes, dim) and which classes have samples, boolean (classes,)."""
    counts = torch.bincount(labels, minlength=classes)
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64)
    sums.index_add_(0, labels, features.double())
    return sums / counts.clamp(min=1)[:, None], counts > 0


def nearest_mean_head(means: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return (weight, bias) of the head that answers with the nearest class mean.

    w = 2 p, b = -|p|^2: the logits are |h|^2 minus the squared distance. Classes without a mean
    are never answered.

    Args:
        means: (classes, dim).
        known: (classes,) boolean.
    """
    bias = -means.square().sum(dim=1)
    return 2 * means, bias.masked_fill(~known, -torch.inf)


def prototype_row(
    weight: Tensor, bias: Tensor, label: int, mean: Tensor, kept: Sequence[int], beta: float
) -> tuple[Tensor, Tensor]:
    """Return a head whose row of one class is moved to the mean feature of a few samples.

    w_c <- beta p_hat + (1 - beta) w_c, p_hat = p / |p| times the mean norm of the kept rows; the
    bias of the class becomes the mean of the kept ones.

    Args:
        weight: (classes, dim), not changed.
        bias: (classes,), not changed.
        label: class c.
        mean: (dim,) mean feature p.
        kept: classes whose rows give length and bias.
        beta: how far the row moves, in [0, 1].

    Source: "Prototypical Relearning Attack", arXiv:2506.01318.
    """
    rows = list(kept)
    length = weight[rows].norm(dim=1).mean()
    wanted = mean / mean.norm().clamp(min=1e-12) * length
    weight, bias = weight.clone(), bias.clone()
    weight[label] = beta * wanted + (1 - beta) * weight[label]
    bias[label] = bias[rows].mean()
    return weight, bias


def harmonic_mean(left: float, right: float) -> float:
    """Return 2 a b / (a + b), 0 when both are 0."""
    return 2 * left * right / (left + right) if left + right > 0 else 0.0
