from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from torch.utils.data import DataLoader

from forgetkit import PatchMismatch, Request, Result, forget, load_model
from forgetkit.comparing import Comparison, RunRecord
from forgetkit.demo.contenders import build_vit
from forgetkit.goal import Classes
from forgetkit.losses import unlearning_score
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, weights


def lau() -> tuple[Result, dict[str, object]]:
    some = toy("cnn")
    before = weights(some.model)
    request = forget(some.model).classes([3]).using("lau").on("cpu")
    validated = request.validate(DataLoader(some.test, batch_size=64))
    return validated.run(some.loader()), dict(before)


def test_a_request_is_frozen_and_reusable() -> None:
    some = toy("cnn")
    half = forget(some.model).classes([3])
    whole = half.using("lau")
    assert half.method is None
    assert isinstance(whole, Request)
    with pytest.raises(AttributeError):
        half.random_seed = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("retain", "forgotten", "score"),
    [(1, 0, 1), (0, 1, 0), (1, 1, 0.5), (0.5, 0.5, 0.377541), (0.9, 0.1, 0.849455),
     (0.9207, 0.9670, 0.449460), (0.9198, 0, 0.939040), (0.4461, 0.5230, 0.341458)],
)  # fmt: skip
def test_unlearning_score(retain: float, forgotten: float, score: float) -> None:
    assert unlearning_score(retain, forgotten) == pytest.approx(score, abs=1e-6)


def test_what_a_result_holds() -> None:
    result, _ = lau()
    assert result.us is not None
    assert result.us_before is not None
    assert result.us > result.us_before
    assert result.before["validation_forget"].by_class.keys() == {3}
    assert sum(n for _, n in result.after["validation_retain"].by_class.values()) == 180
    assert {"prepare", "measure", "setup", "train", "patch"} <= result.seconds.keys()
    assert result.history[-1]["forget_accuracy"] == 0.0
    record = json.loads(json.dumps(result.to_json()))
    assert record["method"]["method"] == "lau"


def test_validation_on_training_samples_is_noted() -> None:
    some = toy("cnn")
    request = forget(some.model).classes([3]).using("lau").on("cpu")
    loader = some.loader()
    for given, words in (
        (loader, "the same loader as .run(...)"),
        (DataLoader(some.train, batch_size=50), "240 of the same samples as .run(...)"),
    ):
        notes = " ".join(request.validate(given).run(loader, guard=None).notes)
        assert f"validate: it is given {words}, so the figures on it are no figures" in notes
    assert "validate" not in " ".join(lau()[0].notes)


def test_display() -> None:
    result, _ = lau()
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(result)
    text = console.export_text()
    for word in ("Layer Attack Unlearning", "forget set", "unlearning score", "0.00 %"):
        assert word in text
        assert word in result._repr_html_()
    assert "forget set" in repr(result)


def test_notes_are_shown_wherever_a_result_is() -> None:
    some = toy("cnn")
    result = forget(some.model).classes([3]).using("lau").on("cpu").run(some.forget_loader())
    result.notes.append("layers [1] and [2]")
    console = Console(width=300, file=io.StringIO(), record=True)
    console.print(result)
    shown = (repr(result), result._repr_html_(), result.card(), console.export_text())
    for text in shown:
        assert "was not watched" in text
        assert "layers [1] and [2]" in text
    assert result.to_json()["notes"] == result.notes


def test_a_masked_head_is_marked_in_the_table_and_in_the_card() -> None:
    some = toy("cnn")
    request = forget(some.model).classes([3]).using("linear_filtration", form="naive").on("cpu")
    result = request.run(some.loader(), guard=None)
    assert "forget set (head masked)" in repr(result)
    assert "0.0000 (head masked) |" in result.card()


def test_brackets_in_names_are_printed_as_they_are() -> None:
    result, _ = lau()
    odd = "[small]dog[/b]"
    audit = result.audit(test=toy("cnn").loader(), metrics=["accuracy"], device="cpu")
    record = replace(audit, target=odd, verdict=(odd,))
    result = replace(result, goal=Classes((odd,)), notes=[odd])
    failed = RunRecord(odd, {}, {}, odd, 0, error=f"pip install forgetkit[audit] {odd}")
    patch = result.patch
    patch.request["goal"] = odd
    for thing, count in ((result, 2), (record, 2), (Comparison((failed,)), 3), (patch, 1)):
        console = Console(width=300, file=io.StringIO(), record=True)
        console.print(thing)
        assert console.export_text().count(odd) == count, type(thing)


def test_undo_once() -> None:
    result, before = lau()
    result.undo()
    restored = weights(result.model)
    assert changed({k: v for k, v in before.items() if hasattr(v, "shape")}, restored) == []  # type: ignore[misc]
    with pytest.raises(PatchMismatch):
        result.undo()


def test_save_in_the_models_own_format(tmp_path: Path) -> None:
    from forgetkit.benchmark.datasets import digits

    data = digits().test
    model = build_vit(digits())
    request = forget(model).classes([3]).using("linear_filtration", form="naive").on("cpu")
    result = request.run(data, guard=None)
    result.save(tmp_path / "edited")
    again = load_model(tmp_path / "edited")
    assert changed(weights(model), weights(again)) == []
    assert "3" in (tmp_path / "edited" / "README.md").read_text()
