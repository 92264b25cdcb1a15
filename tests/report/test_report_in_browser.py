"""The pages in a real browser, when one is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from headless import Browser, find_browser, running
from made import evidence, methods_runs, record

from forgetkit.comparing import Comparison
from forgetkit.report import write_comparison, write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no chromium on the path"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    assert program is not None
    with running(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {
        "report": write_report(record(), folder / "one", evidence("vit")),
        "comparison": write_comparison([record("lau"), record("suli")], folder / "several"),
        "methods": Comparison(methods_runs()).save(folder / "methods")[3],
    }


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["report", "comparison", "methods"])
def test_the_page_fits_asks_for_nothing_and_has_no_errors(
    browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool, tmp_path: Path
) -> None:
    page = pages[name]
    browser.open(page, width, dark=dark)
    assert [r for r in browser.requests() if not r.startswith("data:")] == [page.as_uri()]
    assert browser.complaints() == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    shown = browser.value(
        "[...document.querySelectorAll('figure')].map(f => {"
        "const r = (f.querySelector('svg') ?? f.querySelector('img')).getBoundingClientRect();"
        "return [r.width, r.height]})"
    )
    assert len(shown) == browser.value("document.querySelectorAll('figure').length") > 0
    assert all(wide > 250 and 100 < high < 2000 for wide, high in shown), shown
    # Text in pictures keeps a readable size on a phone.
    sizes = browser.value(
        "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width"
        " / s.viewBox.baseVal.width)"
    )
    assert min(sizes) > 0.9
    paper = browser.value("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 24, 29)" if dark else "rgb(253, 253, 252)")
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
