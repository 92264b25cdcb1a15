"""Records written by hand and evidence about toy models, shared by the tests of the report."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from forgetkit.auditing.evidence import Evidence, Role, Subject, collect
from forgetkit.auditing.inputs import view_of
from forgetkit.comparing import RunRecord
from forgetkit.data.sets import StoredSet
from forgetkit.testing import toy
from forgetkit.types import SampleSet

GONE = 3


def finding(slug: str, value: float | str | None, **more: object) -> dict[str, object]:
    return {"slug": slug, "value": value, "samples": 60, "verdict": "no verdict", **more}


def record(name: str = "lau") -> dict[str, object]:
    """A record with everything that pictures read, without a run."""
    bars = {"original": [0.9, 0.8, 0.7, 0.6], "unlearned": [0.9, 0.8, 0.5, 0.0]}
    heights = {"original": [0.5, 0.5, 0.0], "unlearned": [0.0, 0.25, 0.75]}
    shares = {"unlearned": [0.25, 0.75, 0.0, 0.0], "retrained": [0.5, 0.25, 0.25, 0.0]}
    points = {"false": [0.0, 0.1, 1.0], "true": [0.0, 0.4, 1.0]}
    probe = {"forgotten": {"unlearned": 0.9, "retrained": 0.7}, "excess": 0.3}
    runs = [{"steps": [0, 1, 2], "forgotten": [0.0, 0.2, 0.6]}, {"steps": [0], "forgotten": [0.1]}]
    block = [[1.0, 0.5], [None, 0.25]]
    return {
        "name": name, "verdict": "Hidden, not removed.", "lines": ["Only the head changed."],
        "seed": 7, "versions": {"forgetkit": "0.1.0"}, "forget_classes": [GONE],
        "class_names": ["ant", "bee", "cat", "dog"],
        "history": [{"epoch": 1, "loss": 2.0, "forget_accuracy": 0.5},
                    {"epoch": 2, "loss": 1.0, "forget_accuracy": 0.0}],
        "findings": [
            finding("accuracy", 0.0, interval=[0.0, 0.0602], controls={"original": 1.0}, details={
                "masked": False, "sets": {
                    "test_retain": {"samples": 180, "accuracy": {"unlearned": 0.75}},
                    "test_forget": {"samples": 60, "accuracy": {"unlearned": 0.0}}}}),
            finding("class_accuracy", 0.5, details={
                "classes": [0, 1, 2, 3], "names": ["ant", "bee", "cat", "dog"],
                "samples": [60] * 4, "accuracy": bars}),
            finding("us", 0.8125),
            finding("entropy", 1.2, verdict="over-forgotten", details={
                "sets": {"forget": {"original": 0.3, "unlearned": 1.2}},
                "histograms": {"forget": heights}, "histogram_range": [0.0, 1.5]}),
            finding("confusion", 0.4, details={
                "predicted": shares, "classes": [0, 1, 2, 3],
                "matrix": {"unlearned": torch.eye(4).tolist()}}),
            finding("mia_loss", 0.7123, interval=[0.6, 0.8], controls={"retrained": 0.5},
                    verdict="residual", details={
                        "auc": {"unlearned": 0.7123}, "roc": {"unlearned": points}}),
            finding("linear_probe", 0.9, controls={"retrained": 0.7}, verdict="residual",
                    settings={"shots": 5},
                    details={"curve": {"1": {**probe, "excess": 0.1}, "5": probe}}),
            finding("relearning", 4.0, controls={"retrained": "inf"}, details={
                "cap": 20, "target": 0.5, "curves": {"reset": {"unlearned": runs}}}),
            finding("cka_layers", 0.25, details={
                "blocks": ["stem", "fc"], "samples": {"forget": 60},
                "matrices": {"forget": {"unlearned-original": block}}}),
            finding("rmia", None, verdict="not run", note="needs four reference models"),
        ],
    }  # fmt: skip


def sets() -> dict[str, SampleSet]:
    some = toy("cnn")
    parts: dict[str, tuple[Tensor, Tensor]] = {"": some.train.tensors, "test_": some.test.tensors}  # type: ignore[dict-item]  # two tensors each
    found: dict[str, SampleSet] = {}
    for prefix, (images, labels) in parts.items():
        for name, rows in (("forget", labels == GONE), ("retain", labels != GONE)):
            found[prefix + name] = StoredSet(images[rows], labels[rows], rows.nonzero()[:, 0])
    return found


def masked(model: nn.Module) -> nn.Module:
    """A copy whose head never answers the forgotten class."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        list(twin.parameters())[-1][GONE] = -50.0
    return twin


def evidence(kind: str = "cnn", *, head_masked: bool = False) -> Evidence:
    original = toy(kind).model
    models: dict[Role, nn.Module] = {"unlearned": masked(original), "original": original}
    given = sets()
    cpu = torch.device("cpu")
    subjects: dict[Role, Subject] = {}
    for role, model in models.items():
        view = view_of(model, given["retain"], cpu, None)
        subjects[role] = Subject(model, collect(model, given, view=view), view)
    return Evidence(
        subjects, given, "classes", (GONE,), 4, head_masked=head_masked, device=cpu, seed=0
    )


def methods_runs() -> tuple[RunRecord, ...]:
    """Return runs of a comparison: two targets, three rows, one of which failed once."""
    identity = {"model": "0" * 64, "version": "1", "setting": {"device": "cpu"}}
    first = {"D_r": 99.0, "D_f": 98.0, "D_tr": 92.0, "D_tf": 94.0, "US": 0.46, "seconds": 0.0}
    runs = []
    for target in ("classes 3 (Dress)", "classes 5, 8"):
        runs.append(RunRecord("original", {}, {}, target, 0, first, identity=identity))
        for seed in range(2):
            scores = {
                "D_r": 95.0, "D_f": 2.0 * seed, "D_tr": 90.0, "D_tf": 4.0 * seed,
                "US": 0.93 - 0.02 * seed, "seconds": 2.0 + seed,
            }  # fmt: skip
            runs.append(RunRecord("lau", {"method": "lau", "alpha": 0.5}, {}, target, seed, scores))
            failed = RunRecord("a <b> | c", {}, {}, target, seed, error="it broke at <step> 3")
            runs.append(RunRecord("a <b> | c", {}, {}, target, 0, scores) if not seed else failed)
    return tuple(runs)
