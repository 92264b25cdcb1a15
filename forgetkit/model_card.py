"""A model card in Markdown: what was forgotten, how that was tested, and what was not."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from forgetkit.auditing.readings import HIDDEN, MARK
from forgetkit.listed import shortened

_TAGS = ("machine-unlearning", "image-classification")
_ONE = "accuracy"  # the single figure of a set that is given as a number
_EDITED = (
    "# Model after forgetting",
    "This model was edited with forgetkit so that it no longer does what it had learned from "
    "the data named below. Its architecture and labels are unchanged.",
)
_ROLLED_BACK = (
    "# Model after a run that was rolled back",
    "This model is the one that came in: forgetkit was asked to make it forget the data named "
    "below, and the run was rolled back. It still does what it had learned from them.",
)
LONGEST_LIST = 100
"""Entries of a list that are printed; of a longer one the first few, and how many more."""


def model_card(
    request: Mapping[str, object],
    before: Mapping[str, object],
    after: Mapping[str, object],
    limits: str,
    *,
    library: str | None = None,
    masked: Collection[str] = (),
    rolled_back: bool = False,
) -> str:
    """Return the text of a ``README.md``.

    Args:
        request: what was asked for: goal, method, hyper-parameters, seed, versions. Of lists with
            more than 100 entries the card has the first few and the number of the others.
        before: accuracies, fractions in [0, 1], by set; a set is a number, or a mapping that holds
            numbers by name, one level of mappings by class among them.
        after: the same after the edit.
        limits: what the figures do not show, in full sentences.
        library: the hub's ``library_name``, such as ``timm``.
        masked: the sets whose accuracy after the edit is 0 by construction, because output rows
            were masked; they are marked.
        rolled_back: whether the edit was taken back, so that the model is the one that came in.

    Raises:
        ValueError: ``limits`` is empty; a card must say what was not tested.
    """
    if not limits.strip():
        raise ValueError(
            "limits is expected to say what was not tested; found an empty text. Write a sentence."
        )
    parts = [
        _front_matter(library),
        *(_ROLLED_BACK if rolled_back else _EDITED),
        "## What was asked",
        _table(("item", "value"), [(str(k), f"`{_text(v)}`") for k, v in request.items()]),
        "## How it was tested",
        _accuracies(before, after, masked),
        *([f"{MARK}: accuracy is {HIDDEN}."] if masked else []),
        *_by_class(before, after),
        "## Limits",
        limits.strip(),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(library: str | None) -> str:
    lines = ["---", *([f"library_name: {json.dumps(library)}"] if library else []), "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in _TAGS), "---"])


def _accuracies(
    before: Mapping[str, object], after: Mapping[str, object], masked: Collection[str]
) -> str:
    rows = []
    for name in dict.fromkeys((*before, *after)):
        old, new = _figures(before.get(name)), _figures(after.get(name))
        mark = f" ({MARK})" if name in masked else ""
        rows += [
            (
                _cell(name),
                _cell(measure),
                _figure(old.get(measure)),
                _figure(new.get(measure)) + mark * (measure == _ONE and measure in new),
            )
            for measure in dict.fromkeys((*old, *new))
        ]
    if not rows:
        return "No accuracy was measured."
    return _table(("set", "measure", "before", "after"), rows)


def _by_class(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    parts = []
    for name in dict.fromkeys((*before, *after)):
        old, new = _groups(before.get(name)), _groups(after.get(name))
        for group in dict.fromkeys((*old, *new)):
            was, now = old.get(group, {}), new.get(group, {})
            rows = [
                (_cell(key), _figure(was.get(key)), _figure(now.get(key)))
                for key in dict.fromkeys((*was, *now))
            ]
            title = f"{name}, {group.replace('_', ' ')}"
            parts.append(f"### {title}\n\n" + _table(("class", "before", "after"), rows))
    return parts


def _figures(record: object) -> dict[str, float]:
    """Return the numbers of one set by name."""
    if _is_number(record):
        return {_ONE: float(record)}  # type: ignore[arg-type]
    if not isinstance(record, Mapping):
        return {}
    return {str(key): value for key, value in record.items() if _is_number(value)}


def _groups(record: object) -> dict[str, dict[str, float]]:
    """Return the mappings of numbers inside one set, such as accuracies by class."""
    if not isinstance(record, Mapping):
        return {}
    nested = {str(k): _figures(v) for k, v in record.items() if isinstance(v, Mapping)}
    return {key: figures for key, figures in nested.items() if figures}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _figure(value: float | None) -> str:
    if value is None:
        return "not measured"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(_brief(value), default=str)
    return text.replace("|", "\\|")


def _brief(value: object) -> object:
    """Return a value whose lists a person can read; the patch has a record of all of it."""
    if isinstance(value, Mapping):
        return {str(key): _brief(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and len(value) > LONGEST_LIST:
        return shortened(value)
    return value


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("_", " ")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines: list[tuple[str, ...]] = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
