"""Numbers behind the pictures, against plain twins."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import sys
import types

import numpy as np
import pytest
import torch
from made import GONE, evidence, record
from torch.nn import functional

from forgetkit.adapting import logits_of
from forgetkit.auditing.cells import Cells
from forgetkit.auditing.evidence import Missing
from forgetkit.report.drawing import Picture
from forgetkit.report.pictures import (
    cka,
    class_accuracy,
    confusion,
    embedding,
    entropy,
    radar,
    relearning,
    relevance,
    roc,
)
from forgetkit.report.record import read_record
from forgetkit.testing import toy
from forgetkit.testing.toys import ToyCNN


def test_densities_integrate_to_one() -> None:
    rows = entropy.picture(read_record(record()), None).rows
    areas: dict[object, float] = {}
    for _, role, low, high, density in rows:
        areas[role] = areas.get(role, 0.0) + (float(high) - float(low)) * float(density)
    assert areas == pytest.approx({"original": 1.0, "unlearned": 1.0})


def test_the_curve_ends_at_one_sample_of_a_group_and_keeps_its_points() -> None:
    found = roc.picture(read_record(record()), None)
    axes = found.figure.axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_xlim()[0] == pytest.approx(1 / 30)
    assert list(found.rows) == [("unlearned", 0, 0), ("unlearned", 0.1, 0.4), ("unlearned", 1, 1)]


def test_without_a_count_the_curve_ends_at_its_smallest_step() -> None:
    raw = record()
    for finding in raw["findings"]:
        finding["samples"] = 0
    axes = roc.picture(read_record(raw), None).figure.axes[0]
    assert axes.get_xlim()[0] == pytest.approx(0.1)


def test_a_missing_axis_is_a_gap() -> None:
    found = read_record(record())
    values = radar.scores(found)
    assert values == pytest.approx([0.75, 1.0, 0.8125, None, None, 0.7, None, None])
    drawn = radar.picture_of([found]).figure.axes[0].lines[0].get_ydata()
    assert np.isnan(np.asarray(drawn, dtype=float)).sum() == 4
    with pytest.raises(Missing, match="needs 3 of the axes"):
        radar.picture_of([read_record({"findings": []})])


def test_what_rests_on_a_masked_head_is_marked_in_the_radar() -> None:
    records = [read_record({**record("a"), "head_masked": True}), read_record(record("b"))]
    found = radar.picture_of(records)
    assert [row[0] for row in found.rows] == ["a (head masked)", "b"]
    assert found.caption.endswith("of 0 by construction (head masked): a.")
    (legend,) = found.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a (head masked)", "b"]
    assert "head masked" not in radar.picture_of(records[1:]).caption


def test_speed_is_half_for_the_median_time() -> None:
    records = [read_record({**record(str(t)), "times": {"unlearning": t}}) for t in (1.0, 3.0)]
    speeds = [values[-1] for values in radar.polygons(records).values()]
    assert speeds == pytest.approx([2 / 3, 0.4])


@pytest.mark.parametrize(
    ("own", "retrained", "wanted"),
    [(6.0, 12.0, 0.5), (24.0, 12.0, 1.0), ("inf", 12.0, 1.0), (6.0, "inf", None),
     ("inf", "inf", None), (6.0, None, None)],
)  # fmt: skip
def test_no_relearn_index_beside_a_model_that_never_relearns(
    own: float | str, retrained: float | str | None, wanted: float | None
) -> None:
    controls = {} if retrained is None else {"retrained": retrained}
    found = {"slug": "relearning", "value": own, "controls": controls, "details": {"cap": 100}}
    assert radar.scores(read_record({"findings": [found]}))[6] == wanted


def test_a_run_that_ended_early_holds_its_value() -> None:
    rows = relearning.picture(read_record(record()), None).rows
    found = [[float(number) for number in row[2:]] for row in rows]
    wanted = [[0, 0.05, 0.0, 0.1], [1, 0.15, 0.1, 0.2], [2, 0.35, 0.1, 0.6]]
    assert np.allclose(found, wanted)


def test_cka_is_turned_so_that_rows_are_before() -> None:
    rows = cka.maps(read_record(record()), None).rows
    table = {(row[1], row[2]): row[3] for row in rows}
    assert table["fc", "stem"] == 0.5  # row of the record: after; column: before
    assert np.isnan(float(table["stem", "fc"]))


def test_many_classes_are_cut_to_those_that_changed_most() -> None:
    raw = read_record(
        {"forget_classes": [5], "findings": [{"slug": "class_accuracy", "value": 0.1, "details": {
            "classes": list(range(40)), "names": [f"c{i}" for i in range(40)],
            "accuracy": {"original": [1.0] * 40,
                         "unlearned": [1.0] * 20 + [i / 20 for i in range(20)]}}}]}
    )  # fmt: skip
    found = class_accuracy.picture(raw, None)
    words = [label.get_text() for label in found.figure.axes[0].get_yticklabels()]
    assert words[:3] == ["c5", "c20", "c21"]
    assert len(words) == 16
    assert len(found.rows) == 40


def test_forgotten_classes_come_first_in_the_confusion() -> None:
    found = confusion.matrices(read_record(record()), None)
    words = [label.get_text() for label in found.figure.axes[0].get_yticklabels()]
    assert words == ["dog", "ant", "bee", "cat"]


def test_the_confusion_names_classes_without_test_samples() -> None:
    found = confusion.matrices(read_record(record()), None)
    assert "No test sample" not in found.caption
    matrix = torch.eye(4)
    matrix[1] = 0.0
    finding = {"slug": "confusion", "value": 0.1, "details": {
        "matrix": {"unlearned": matrix.tolist()}}}  # fmt: skip
    found = confusion.matrices(read_record({**record(), "findings": [finding]}), None)
    assert "No test sample is of bee: empty rows." in found.caption
    finding["details"] = {"matrix": {"unlearned": torch.eye(40).tolist()}}
    found = confusion.matrices(read_record({"findings": [finding]}), None)
    assert "what was taken for another class is not shown" in found.caption


def test_a_confusion_written_by_cells_is_drawn_as_one_written_whole() -> None:
    before = torch.eye(40, dtype=torch.float64)
    after = before.roll(1, dims=1)
    after[:12] = before[:12]
    whole = {"original": before, "unlearned": after}

    def drawn(details: dict[str, object]) -> Picture:
        finding = {"slug": "confusion", "value": 0.1, "details": details}
        raw = read_record({"forget_classes": [20], "findings": [finding]})
        return confusion.matrices(raw, None)

    one = drawn({"matrix": {role: matrix.tolist() for role, matrix in whole.items()}})
    other = drawn({"cells": {r: Cells.of_matrix(m).to_json() for r, m in whole.items()}})
    assert other.rows == one.rows
    assert len(one.rows) == 80
    for left, right in zip(one.figure.axes, other.figure.axes, strict=True):
        words = [label.get_text() for label in left.get_yticklabels()]
        assert [label.get_text() for label in right.get_yticklabels()] == words
        for own, same in zip(left.get_images(), right.get_images(), strict=True):
            assert np.array_equal(own.get_array(), same.get_array())  # type: ignore[arg-type]


@pytest.mark.slow
def test_both_panels_of_the_embedding_share_their_axes() -> None:
    given = evidence()
    found = embedding.picture(read_record(record()), given)
    before, after = found.figure.axes[:2]
    assert before.get_xlim() == after.get_xlim()
    assert before.get_ylim() == after.get_ylim()
    half = len(found.rows) // 2
    assert half == len(given.of("original", "forget")) + len(given.of("original", "test_retain"))
    assert sum(int(row[2]) for row in found.rows[:half]) == len(given.of("original", "forget"))
    # Only the head differs, so every point has a twin; one joint fit puts both near each other.
    places = np.array([[row[3], row[4]] for row in found.rows], dtype=float)
    moved = np.linalg.norm(places[:half] - places[half:], axis=1)
    assert np.median(moved) < 0.05 * np.ptp(places)


@pytest.mark.parametrize(("kept", "words"), [(7, " 10 nearest"), (30, " 20 nearest")])
def test_the_embedding_says_how_many_neighbours_it_looked_at(kept: int, words: str) -> None:
    given = evidence()
    sizes = {"forget": 4, "test_retain": kept}
    subjects = {
        role: dataclasses.replace(
            one, outputs={s: one.outputs[s].take(torch.arange(n)) for s, n in sizes.items()}
        )
        for role, one in given.subjects.items()
    }
    given = dataclasses.replace(given, subjects=subjects)
    assert f"Of the{words} neighbours" in embedding.picture(read_record(record()), given).caption


def test_umap_is_fitted_before_and_places_after(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, **options: object) -> None:
            self.options = options

        def fit(self, features: np.ndarray) -> Fake:
            self.embedding_ = features[:, :2]
            return self

        def transform(self, features: np.ndarray) -> np.ndarray:
            return -features[:, :2]

    module = types.ModuleType("umap")
    module.UMAP = Fake  # type: ignore[attr-defined]  # a module is empty to the type checker
    module.__spec__ = importlib.machinery.ModuleSpec("umap", None)
    monkeypatch.setitem(sys.modules, "umap", module)
    features = np.random.default_rng(0).normal(size=(12, 3))
    found = embedding.UMAP.planar(features, 0)
    assert np.allclose(found, np.concatenate([features[:6, :2], -features[6:, :2]]))
    drawn = embedding.picture(read_record(record()), evidence())
    assert drawn.caption.startswith("UMAP of")
    monkeypatch.delitem(sys.modules, "umap")


def test_umap_itself_lays_twins_on_each_other() -> None:
    pytest.importorskip("umap", reason="needs umap-learn, an optional extra")
    features = np.random.default_rng(0).normal(size=(30, 4)) + 8.0 * np.eye(4)[np.arange(30) % 3]
    found = embedding.UMAP.planar(np.concatenate([features, features]), 0)
    moved = np.linalg.norm(found[:30] - found[30:], axis=1)
    assert np.median(moved) < 0.1 * np.ptp(found)


def test_the_embedding_keeps_its_budget_and_balances_classes() -> None:
    labels = torch.cat([torch.full((2000,), 9), torch.arange(3).repeat_interleave(1000)])
    gone = torch.arange(5000) < 2000
    rows = embedding._balanced(labels, gone, 750, seed=0)
    assert len(rows) == 750
    assert int(gone[rows].sum()) == 250
    counts = torch.bincount(labels[rows][~gone[rows]])
    assert int(counts.max() - counts.min()) <= 1


def test_grad_cam_is_that_of_the_formula_and_leaves_no_trace() -> None:
    model = toy("cnn").model
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, labels = toy("cnn").test.tensors
    images, labels = images[-3:], labels[-3:]
    heat = relevance.relevance_maps(model, images, labels, lambda x: logits_of(model(x)))
    assert model.training
    assert not any(p.grad is not None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
    model.eval()
    with torch.no_grad():
        assert isinstance(model, ToyCNN)
        maps = model.body(images)
        # the logit is w . mean(map): its gradient by a map is w / positions everywhere
        weights = model.fc.weight[labels] / maps[0, 0].numel()
        coarse = torch.einsum("nc,nchw->nhw", weights, maps).clamp(min=0)
    wanted = functional.interpolate(coarse[:, None], (8, 8), mode="bilinear")[:, 0]
    assert torch.allclose(heat, wanted, atol=1e-6)


def test_token_relevance_has_one_value_a_patch() -> None:
    model = toy("vit").model
    images, labels = toy("vit").test.tensors
    heat = relevance.relevance_maps(model, images[:4], labels[:4], lambda x: logits_of(model(x)))
    assert heat.shape == (4, 8, 8)
    assert bool((heat >= 0).all())
    assert bool(heat.any())


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_a_masked_head_borrows_the_one_before(kind: str) -> None:
    found = relevance.picture(read_record(record()), evidence(kind, head_masked=True))
    assert all(row[1] == GONE for row in found.rows)
    assert [row[2] for row in found.rows] == [1.0] * 4  # the same features under the same head


def test_overlap_and_correlation() -> None:
    left = torch.tensor([[9.0, 8.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    right = torch.tensor([[9.0, 0.0, 8.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert relevance.overlap(left, right) == pytest.approx(1 / 3)
    assert relevance.overlap(left, left) == 1.0
    assert relevance.overlap(left, torch.zeros_like(left)) == 0.0
    assert relevance.correlation(left, 2 * left + 1) == pytest.approx(1.0)
    assert relevance.correlation(left, torch.zeros_like(left)) is None


def test_without_an_original_nothing_is_compared() -> None:
    given = evidence()
    alone = dataclasses.replace(given, subjects={"unlearned": given.subjects["unlearned"]})
    for draw in (embedding.picture, relevance.picture):
        with pytest.raises(Missing, match="needs the original model"):
            draw(read_record(record()), alone)
