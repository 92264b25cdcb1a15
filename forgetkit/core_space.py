"""What PGU protects: the part of each layer's input space that retained samples use.

Source: Hoang et al., "Learn to Unlearn for Deep Neural Networks", WACV 2024, arXiv:2312.04095,
    section 3 (core space) and section 4 (a share of their own for some layers).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from forgetkit.errors import BadHyperparameter
from forgetkit.projection import Eigen, Projection, core_rank, eigen, weakest

OTHERS = "default"
"""Stands, among names of layers, for all that are not named."""


def shares(
    gamma: float | Mapping[str, float], weights: Collection[str], added: float = 0.0
) -> dict[str, float]:
    """Return the share of the spectrum that is protected, by the name of the weight, at most 1.

    Args:
        gamma: one share for all, or shares by layer: the dotted path of a module, which counts for
            all inside it, or of a weight. The longest path that fits decides, ``"default"`` where
            none does.
        weights: dotted paths.
        added: to every share.

    Raises:
        BadHyperparameter: a path fits no weight, or no path fits some weight.
    """
    by_layer = gamma if isinstance(gamma, Mapping) else {OTHERS: gamma}
    fits = {path: {n for n in weights if f"{n}.".startswith(f"{path}.")} for path in by_layer}
    idle = [path for path, found in fits.items() if path != OTHERS and not found]
    found: dict[str, float] = {}
    for name in weights:
        near = max((path for path in fits if name in fits[path]), key=len, default=OTHERS)
        if near in by_layer:
            found[name] = min(by_layer[near] + added, 1.0)
    if idle or len(found) < len(weights):
        lacking = [name for name in weights if name not in found]
        what = f"{idle[0]!r}, which fits none" if idle else f"nothing for {lacking[0]!r}"
        raise BadHyperparameter(
            f"gamma: expected paths of layers whose inputs were measured, a share for each of "
            f"these, found {what}; they are {', '.join(weights)}; {OTHERS!r} stands for all that "
            "are not named"
        )
    return found


@dataclass(frozen=True)
class CoreSpace:
    """The directions that the retained inputs of one layer use most.

    Args:
        found: eigenvalues of their second moments.
        ranks: how many of the directions are protected, the strongest first, (groups,).
    """

    found: Eigen
    ranks: Tensor

    @classmethod
    def of(cls, moment: Tensor, share: float, spectrum: str, floor: float) -> CoreSpace:
        """Return the smallest space that holds a share of the spectrum.

        Args:
            moment: C, (groups, d, d).
            share: gamma; 1 protects even directions that no input uses.
            spectrum: ``"energy"`` or ``"sigma"``.
            floor: part of the largest eigenvalue below which one counts as 0.
        """
        found = eigen(moment, floor)
        if share >= 1:
            return cls(found, torch.full_like(found.values[:, 0], moment.shape[-1]).long())
        return cls(found, core_rank(found.values, share, spectrum))

    @property
    def away(self) -> Projection:
        """I - M M^T: what gradients keep."""
        return Projection.away_from(self.found, self.ranks)


def protections(
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    given: Mapping[str, float],
    *,
    spectrum: str,
    floor: float,
    regions: Mapping[str, int],
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return what a run's state keeps of every measured weight, and its moments' negative part.

    Of each weight: how its gradients are projected, and what it was; of some also the basis of a
    trust region, the weakest of the protected directions, unless its share freezes it.

    Args:
        weights: by dotted path.
        moments: C of each, (groups, d, d).
        given: share of the spectrum of each.
        spectrum: ``"energy"`` or ``"sigma"``.
        floor: part of the largest eigenvalue below which one counts as 0.
        regions: most directions of the trust region, of weights that have one.
    """
    state: dict[str, Tensor] = {}
    negative: dict[str, float] = {}
    for name, moment in moments.items():
        weight = weights[name]
        space = CoreSpace.of(moment, given[name], spectrum, floor)
        negative[name] = space.found.negative
        away = space.away
        state[f"{'keeps' if away.keeps else 'drops'}/{name}"] = away.basis.to(weight)
        state[f"start/{name}"] = weight.detach().clone()
        if name in regions and len(moment) == 1 and given[name] < 1:
            basis = weakest(space.found, int(space.ranks[0]), regions[name])
            state[f"region/{name}"] = basis.to(weight)
    return state, negative


def part(state: Mapping[str, Tensor], word: str) -> dict[str, Tensor]:
    """Return the tensors of a run's state under one word, by the name of their weight."""
    start = f"{word}/"
    return {
        name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)
    }


def projections(state: Mapping[str, Tensor]) -> dict[str, Projection]:
    """Return the projection of every weight that has one in a run's state."""
    kept = {name: Projection(basis, keeps=True) for name, basis in part(state, "keeps").items()}
    dropped = {name: Projection(basis, keeps=False) for name, basis in part(state, "drops").items()}
    return kept | dropped
