"""The code blocks of README and docs run as they stand; the README's table is up to date."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from forgetkit.cli import app
from forgetkit.testing.toys import toy

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BY_MAKE = ("make ", "pip ")  # what installs: continuous integration runs these themselves


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Return line number and text of each fenced block of one language."""
    text = page.read_text(encoding="utf-8")
    return [
        (text[: found.start()].count("\n") + 2, found[2])
        for found in BLOCK.finditer(text)
        if found[1] == language
    ]


def commands(page: Path) -> list[str]:
    """Return the lines after ``$`` of a page's console blocks."""
    return [
        line.removeprefix("$ ").partition("  #")[0]
        for _, text in blocks(page, "console")
        for line in text.splitlines()
        if line.startswith("$ ") and not line.removeprefix("$ ").startswith(BY_MAKE)
    ]


def given() -> dict[str, object]:
    """Return what the pages take for granted: a model and loaders with a class 3."""
    problem = toy("cnn")
    images, labels = problem.train.tensors
    kept = labels != 3
    return {
        "__name__": "__main__",
        "model": problem.model,
        "loader": problem.loader(),
        "test_loader": DataLoader(problem.test, 64),
        "forget_loader": problem.forget_loader(),
        "retain_loader": DataLoader(TensorDataset(images[kept], labels[kept]), 32),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem
)
def test_python_blocks_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A block starts from the untouched model; names made by earlier blocks stay.
    names = given()
    for line, text in blocks(page, "python"):
        names |= {"model": toy("cnn").model} if "forget(model)" in text else {}
        code = compile("\n" * (line - 1) + text, str(page), "exec")
        exec(code, names)  # noqa: S102


@pytest.mark.slow
def test_console_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pages share one folder; the demo, which others build on, runs once and first.

    The commands run in this process: loading the libraries anew for each would take longer than
    the commands themselves.
    """
    unique = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
    unique.sort(key=lambda command: command != "forgetkit demo")
    assert unique[0] == "forgetkit demo"
    assert len(unique) >= 8
    monkeypatch.chdir(tmp_path)
    for command in unique:
        program, *words = shlex.split(command)
        assert program == "forgetkit"
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, f"{command}\n{done.output}"
        if command == "forgetkit demo":
            check_the_demo(done.stdout)


def check_the_demo(printed: str) -> None:
    """The class is gone from both models, and the others lost at most half a point."""
    rows = [re.findall(r"([\d.]+) % ", line) for line in printed.splitlines()]
    figures = [tuple(map(float, row)) for row in rows if len(row) == 2]
    assert len(figures) == 8
    for before, forgotten in ((figures[0], figures[1]), (figures[4], figures[5])):
        assert before[0] > 90
        assert forgotten[0] == 0
        assert forgotten[1] >= before[1] - 0.5


def load_pages(name: str) -> ModuleType:
    """Return one of the files that write pages, as Sphinx would import it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_lists_the_registered_methods() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert load_pages("tables").readme_with_table(text) == text, "run: python docs/tables.py"


def test_a_method_page_shows_card_docstring_and_settings() -> None:
    from forgetkit.method import find

    page = load_pages("tables").method_page(find("lau"))
    assert "# Layer Attack Unlearning (`lau`)" in page
    assert 'forget(model).classes([3]).using("lau").run(loader)' in page
    assert "c = argmax T(A) outside the forgotten classes" in page
    assert "| `alpha` | `0.5` | a number in [0, 1] |" in page
    assert "KL(target \\|\\| student)" in page


def test_a_metric_page_shows_card_definition_verdict_and_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from forgetkit.metric import find_metric

    monkeypatch.syspath_prepend(ROOT / "docs")
    page = load_pages("metric_pages").metric_page(find_metric("mia_loss"))
    assert page.startswith("# Membership inference from losses (`mia_loss`)\n")
    assert "| range and unit | [0, 1], area under the ROC curve |" in page
    assert "| source | [Lyu et al. 2025, IJCAI (SULI); " in page
    assert "```{code-block} text\nAUC = P(l < l') + P(l = l') / 2, " in page
    assert "forgetting score \\|accuracy - 0.5\\|" in page
    assert "**Verdict.** `residual` when the AUC is surely above" in page
    assert "from forgetkit.metrics.mia_loss import MiaLoss\n" in page
    assert '[MiaLoss(protocol="ten-fold")]' in page
    assert "| `resamples` | `1000` | an integer in [10, 100000] |" in page


def test_every_metric_has_a_page_whose_use_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """``result.audit`` is replaced by what it does first: it finds or takes each metric."""
    from forgetkit.metric import Metric, all_metrics, find_metric

    class Result:
        def audit(self, *_: object, metrics: list[str | Metric], **__: object) -> SimpleNamespace:
            (one,) = metrics
            found = one if isinstance(one, Metric) else find_metric(one)()
            return SimpleNamespace(findings=[found.finding(None, verdict="not run")])

    monkeypatch.syspath_prepend(ROOT / "docs")
    pages = load_pages("metric_pages")
    index = pages.index_page()
    names = {"result": Result(), "loader": None, "test_loader": None, "retrained": None}
    for metric in all_metrics():
        assert f"(metrics/{metric.card.slug}.md)" in index
        exec(pages.example(metric), dict(names))  # noqa: S102


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    for target in targets:
        if not target.startswith("_generated/"):
            assert (page.parent / target).exists(), target
