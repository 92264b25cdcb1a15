"""Tables and pages that are made from the registry: the README's table, one page a method.

``python docs/tables.py`` rewrites the table in README.md; a test fails when it is out of date.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from forgetkit.choosing import wants
from forgetkit.fields import bounds_of
from forgetkit.method import Method, all_methods

if TYPE_CHECKING:
    from forgetkit.metric import Metric

ROOT = Path(__file__).parent.parent
GENERATED = Path(__file__).parent / "_generated"
START, END = "<!-- methods: made by docs/tables.py -->", "<!-- end of methods -->"
EDITS = {"head": "the head", "all": "all weights"}


def methods_table(*, pages: bool) -> str:
    """Return the Markdown table of all methods, with links to their pages or their papers."""
    lines = [
        "| name | method | goals | needs | edits | cost |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method in all_methods():
        card = method.card
        name = f"[`{card.slug}`](methods/{card.slug}.md)" if pages else f"`{card.slug}`"
        cells = (
            name,
            f"[{card.title}]({card.link})",
            ", ".join(card.goals),
            needs_of(method),
            EDITS[card.edits],
            card.cost,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def needs_of(method: type[Method]) -> str:
    """Return the sets and files that a method needs, in words."""
    sets = method.card.needs
    named = [f"{want} set" if want in sets else want for want in wants(method)]
    return ", ".join(named) or "nothing"


def method_page(method: type[Method]) -> str:
    """Return the page of one method: card, docstring, settings."""
    card = method.card
    facts = [
        ("goals", ", ".join(card.goals)),
        ("needs", needs_of(method)),
        ("edits", EDITS[card.edits]),
        ("cost", card.cost),
        ("source", f"[{card.source}]({card.link})"),
    ]
    if card.aliases:
        facts.append(("also called", ", ".join(f"`{alias}`" for alias in card.aliases)))
    for name, values in card.presets.items():
        text = ", ".join(f"{key}={value!r}" for key, value in values.items())
        facts.append((f'preset "{name}"', f"`{text}`"))
    example = f'forget(model).{_goal_call(card.goals[0])}.using("{card.slug}").run(loader)'
    return "\n".join(
        [
            f"# {card.title} (`{card.slug}`)",
            "",
            card.about,
            "",
            "```{code-block} python",
            example,
            "```",
            "",
            *facts_table(facts),
            "",
            "## What it does",
            "",
            "```{code-block} text",
            inspect.cleandoc(method.__doc__ or ""),
            "```",
            "",
            *settings_section(method),
            "",
        ]
    )


def facts_table(facts: Iterable[tuple[str, str]]) -> list[str]:
    """Return the lines of a table of names and texts without a head."""
    return ["| | |", "| --- | --- |", *(f"| {name} | {cell(text)} |" for name, text in facts)]


def settings_section(kind: type[Method | Metric]) -> list[str]:
    """Return the lines of the section on a method's or a metric's hyper-parameters."""
    lines = ["## Settings", "", "| setting | default | accepted | meaning |", "| --- " * 4 + "|"]
    for entry in dataclasses.fields(kind):
        accepted, about = bounds_of(entry).describe(), bounds_of(entry).about
        lines.append(f"| `{entry.name}` | `{entry.default}` | {cell(accepted)} | {cell(about)} |")
    return lines


def write_pages() -> None:
    """Write the pages of all methods and their list."""
    write_folder(
        "methods",
        {method.card.slug: method_page(method) for method in all_methods()},
        "# Methods\n\nF is a forward pass over one sample, FB a forward and backward pass; D_f is "
        "the forget set, D_r the retain set.\n\n" + methods_table(pages=True),
    )


def write_folder(name: str, pages: Mapping[str, str], index: str) -> None:
    """Write a folder of generated pages and the page that lists them.

    Args:
        name: of the folder; the list is the page of the same name beside it.
        pages: texts by file name without suffix; files of other names are removed.
        index: text of the list, to which the table of contents is added.
    """
    folder = GENERATED / name
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.md"):
        if stale.stem not in pages:
            stale.unlink()
    for stem, text in pages.items():
        _write_if_new(folder / f"{stem}.md", text)
    contents = f"```{{toctree}}\n:hidden:\n:glob:\n\n{name}/*\n```"
    _write_if_new(GENERATED / f"{name}.md", f"{index}\n\n{contents}\n")


def readme_with_table(text: str) -> str:
    """Return the README's text with its table of methods made anew."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{methods_table(pages=False)}\n{END}{after}"


def _goal_call(goal: str) -> str:
    return {
        "classes": "classes([3])",
        "instances": "instances([17, 42])",
        "relabel": "relabel({17: 4})",
        "depoison": "depoison([17, 42])",
    }[goal]


def cell(text: str) -> str:
    """Return a text that fits into one cell of a Markdown table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _write_if_new(path: Path, text: str) -> None:
    """Leave a file alone that is right already, so that Sphinx does not read it again."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(readme_with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
