"""How alike two models are at every depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from forgetkit.auditing.cka import compressed, linear_cka
from forgetkit.auditing.evidence import Evidence, Missing, Role
from forgetkit.auditing.stages import stage_features
from forgetkit.draws import uniform
from forgetkit.fields import bounded
from forgetkit.metric import Finding, Metric, MetricCard, register_metric
from forgetkit.types import SampleSet

Table = list[list[float | None]]


@register_metric
@dataclass(frozen=True, kw_only=True)
class CKALayers(Metric):
    """Linear CKA of every block with every block; the headline is the least similar equal depth.

        min_i CKA(X_i, Y_i) on D_f,  X_i, Y_i = pooled outputs of block i under both models

    The other model is the original; ``cka`` has the formula. Maps are averaged over positions,
    tokens over the sequence.

    Verdict: none; it shows where a model changed, not whether enough.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
        arXiv:1905.00414.

    Differences: outputs are pooled before they are compared.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="cka_layers",
        title="Linear CKA by depth",
        group="representation",
        level="standard",
        range="[0, 1], no unit; the unbiased form may fall slightly below 0",
        good="early blocks as the original; late blocks on forgotten samples as the retrained",
        bad="1 at every depth: nothing before the head changed.",
        needs="the original model and the images of the forget set",
        cost="one F over some samples of each set for every model",
        source="Kornblith et al. 2019, ICML",
        link="https://arxiv.org/abs/1905.00414",
        about="At which depth the model differs from the original and the retrained one.",
    )

    samples: int = bounded(500, 8, 100_000, "largest number of samples of a set, drawn by the seed")

    def measure(self, evidence: Evidence) -> Finding:
        """Run every model over some samples of D_f and of kept test samples."""
        evidence.subject("original")
        evidence.samples("forget", labelled=False)
        tables: dict[str, dict[str, Table]] = {}
        names: list[str] = []
        sizes: dict[str, int] = {}
        for split in ("forget", "test_forget", "test_retain"):
            if split not in evidence.sets or len(evidence.sets[split]) == 0:
                continue
            some = self._some(evidence.sets[split], evidence.seed)
            depths: dict[Role, dict[str, Tensor]] = {
                role: {
                    block: compressed(features)
                    for block, features in stage_features(
                        subject.model, some, evidence.device
                    ).items()
                }
                for role, subject in evidence.subjects.items()
                if role != "untrained"
            }
            names, sizes[split] = list(depths["unlearned"]), len(some)
            tables[split] = _tables(depths)
        if "forget" not in tables:
            raise Missing("needs the samples to forget, and that set is empty")
        same = [row[depth] for depth, row in enumerate(tables["forget"]["unlearned-original"])]
        known = [value for value in same if value is not None]
        if not known:
            raise Missing("needs forget samples whose features differ; all are equal, or too few")
        return self.finding(
            min(known),
            samples=sizes["forget"],
            controls=_lowest(tables["forget"]),
            details={"blocks": names, "matrices": tables, "samples": sizes},
            note="rows are blocks of the first model named, columns of the second",
        )

    def _some(self, samples: SampleSet, seed: int) -> SampleSet:
        order = uniform(seed, "cka_layers", samples.positions).argsort()
        return samples.take(order[: self.samples].sort().values)


def _tables(depths: dict[Role, dict[str, Tensor]]) -> dict[str, Table]:
    own = depths["unlearned"]
    pairs: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {
        f"unlearned-{role}": (own, blocks) for role, blocks in depths.items() if role != "unlearned"
    }
    if "original" in depths and "retrained" in depths:
        pairs["retrained-original"] = (depths["retrained"], depths["original"])
    return {
        name: [[linear_cka(x, y) for y in two.values()] for x in one.values()]
        for name, (one, two) in pairs.items()
    }


def _lowest(tables: dict[str, Table]) -> dict[str, float]:
    """Return the smallest similarity at equal depth of the retrained model with the original."""
    table = tables.get("retrained-original", [])
    same = [row[depth] for depth, row in enumerate(table) if depth < len(row)]
    known = [value for value in same if value is not None]
    return {"retrained": min(known)} if known else {}
