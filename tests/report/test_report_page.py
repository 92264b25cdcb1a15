"""The page of one record: complete, self-contained, the same each time."""

from __future__ import annotations

import csv
import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made import evidence, record

from forgetkit.auditing.evidence import Missing
from forgetkit.errors import DataError
from forgetkit.report import load_record, write_report
from forgetkit.report.page import facts_of, number_words
from forgetkit.report.pictures import PICTURES
from forgetkit.report.record import read_record

pytestmark = pytest.mark.slow

LARGEST = 5_000_000


class Reader(HTMLParser):
    """What a browser would fetch, run or name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: Counter[str] = Counter()
        self.names: Counter[str] = Counter()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.addresses.append(value or "")
            if name == "id":
                self.names[value or ""] += 1
            assert not name.startswith("on"), f"{tag} has a script in {name}"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(record(), tmp_path_factory.mktemp("report"), evidence("vit"))


def test_the_page_asks_for_nothing_and_runs_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = Reader(text)
    assert all(address.startswith(("data:", "#")) for address in found.addresses)
    assert found.tags["script"] == found.tags["iframe"] == 0
    assert "@import" not in text
    assert max(found.names.values()) == 1, found.names.most_common(3)
    assert page.stat().st_size < LARGEST


def test_every_picture_is_there_with_its_numbers_beside_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert Reader(text).tags["figure"] == len(PICTURES)
    assert "Pictures that are not here" not in text
    drawings = sorted(path.stem for path in (page.parent / "pictures").glob("*.svg"))
    numbers = sorted(path.stem for path in (page.parent / "pictures").glob("*.csv"))
    assert drawings == numbers
    assert len(drawings) == len(PICTURES)
    for path in (page.parent / "pictures").glob("*.csv"):
        header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
        assert rows, path
        assert all(len(row) == len(header) for row in rows), path


def test_every_finding_is_on_the_page_and_in_the_markdown(page: Path) -> None:
    for text in (page.read_text("utf-8"), page.with_suffix(".md").read_text("utf-8")):
        for words in ("Hidden, not removed.", "Only the head changed.", "0.7123", "[0.6, 0.8]",
                      "0.8125", "over-forgotten", "needs four reference models", "versions",
                      "What this does not prove", "∞"):  # fmt: skip
            assert words in text, words


def test_a_bare_record_says_what_is_left_out(tmp_path: Path) -> None:
    page = write_report({"findings": []}, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert Reader(text).tags["figure"] == 0
    assert all(title in text for title in PICTURES)
    assert "needs the history of a run" in text
    assert "No verdict" in text


@pytest.mark.parametrize("title", PICTURES)
def test_a_picture_without_its_data_is_missing(title: str) -> None:
    with pytest.raises(Missing, match="needs"):
        PICTURES[title](read_record({"findings": []}), None)


def test_words_of_a_record_cannot_become_markup(tmp_path: Path) -> None:
    raw = record("<script>alert(1)</script>")
    raw["verdict"] = "<img src=http://example.org/a.png>"
    raw["class_names"] = ["<b>", '"quoted"', "a&b", "dog"]
    for entry in raw["findings"]:
        if entry["slug"] == "class_accuracy":
            entry["details"]["names"] = raw["class_names"]
    found = Reader(write_report(raw, tmp_path).read_text(encoding="utf-8"))
    assert found.tags["script"] == found.tags["img"] == found.tags["b"] == 0


def test_the_same_record_gives_the_same_page(tmp_path: Path) -> None:
    first = write_report(record(), tmp_path / "a").read_bytes()
    assert write_report(record(), tmp_path / "b").read_bytes() == first


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "run 1.json"
    raw = record()
    del raw["name"]
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert read_record(load_record(path)).name == "run 1"
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(DataError, match="expected a JSON object, found a list"):
        load_record(path)
    path.write_text("no", encoding="utf-8")
    with pytest.raises(DataError, match="expected the JSON that an audit wrote"):
        load_record(path)


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a list of findings under 'findings'"):
        write_report({}, tmp_path)
    with pytest.raises(DataError, match="expected a finding with a 'slug'"):
        write_report({"findings": [{"value": 1}]}, tmp_path)
    with pytest.raises(DataError, match=r"ends in \.html"):
        write_report(record(), tmp_path, name="report.md")


def test_the_audits_own_form_is_read() -> None:
    raw = record()
    raw |= {"verdict": ["First.", "Second."], "missing": ["No test set."], "notes": ["Third."],
            "beyond": ["rmia", "unheard_of"], "cards": {}, "schema": 1}  # fmt: skip
    found = read_record(raw)
    assert found.verdict == "First."
    assert found.lines == ("Second.", "Only the head changed.", "Third.")
    assert found.missing == ("No test set.",)
    assert found.beyond[1] == "unheard of"
    assert "cards" not in found.facts


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "\N{EN DASH}"), ("inf", "∞"), (0.5, "0.5"), (12.0, "12"), (0.123456, "0.1235"),
     (1.5e-7, "1.5e-07"), (1234.567, "1235"), (-0.25, "-0.25"), (0.99997, "1"), (9.99999, "10"),
     (-0.99996, "-1"), (0.0010004, "0.001")],
)  # fmt: skip
def test_numbers_as_people_write_them(value: object, words: str) -> None:
    assert number_words(value) == words


def test_facts_are_flattened_and_cut() -> None:
    rows = dict(facts_of({"versions": {"torch": "2"}, "long": "x" * 999, "seed": 0}))
    assert rows["versions: torch"] == "2"
    assert len(rows["long"]) == 400
    assert rows["seed"] == "0"
