"""What a patch knows besides the changed bits, and how that is written as text.

A patch is one safetensors file. Its tensors are, by name, before XOR after as (bytes,) uint8. Its
metadata has three keys: ``format`` (``forgetkit.patch/1``), ``request`` (JSON object) and
``tensors`` (JSON object: name -> dtype, shape, digest before, digest after or null when the
tensor did not change, other names of the same tensor).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from forgetkit.errors import BadHyperparameter, ForgetkitError, PatchMismatch
from forgetkit.fingerprint import TensorPrint, byte_count

FORMAT = "forgetkit.patch/1"
_DIGEST_LENGTH = 64


@dataclass(frozen=True)
class Entry:
    """One tensor that the patch was made from.

    Args:
        before: print of the tensor before the edit.
        after: its SHA-256 after the edit; equal to ``before.sha256`` when it did not change.
        aliases: other names of the same tensor (tied weights).
    """

    before: TensorPrint
    after: str
    aliases: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the edit changed this tensor."""
        return self.after != self.before.sha256

    def expected(self, forward: bool) -> TensorPrint:
        """Return the print that must be there to apply (forward) or to revert."""
        return self.before if forward else self.before._replace(sha256=self.after)


def check_request(request: Mapping[str, object]) -> dict[str, object]:
    """Return the request as plain JSON values.

    Raises:
        BadHyperparameter: it is not a mapping, or holds what JSON cannot.
    """
    found = type(request).__name__
    if isinstance(request, Mapping):
        try:
            copied: dict[str, object] = json.loads(json.dumps(dict(request)))
        except (TypeError, ValueError) as error:
            found = str(error)
        else:
            return copied
    raise BadHyperparameter(
        "request is expected to be a mapping of JSON values (text, numbers, lists, mappings); "
        f"found {found}. Turn tensors into lists and objects into text first."
    )


def encode(entries: Mapping[str, Entry], request: Mapping[str, object]) -> dict[str, str]:
    """Return the metadata of the file."""
    tensors = {
        name: [
            entry.before.dtype,
            list(entry.before.shape),
            entry.before.sha256,
            entry.after if entry.changed else None,
            list(entry.aliases),
        ]
        for name, entry in entries.items()
    }
    return {"format": FORMAT, "request": json.dumps(request), "tensors": json.dumps(tensors)}


def decode(
    metadata: Mapping[str, str], sizes: Mapping[str, int], where: str
) -> tuple[dict[str, Entry], dict[str, object]]:
    """Read the metadata of a file and check it against what the file holds.

    Args:
        metadata: text by key.
        sizes: bytes of every stored tensor by name.
        where: the file, for messages.

    Raises:
        PatchMismatch: not a patch, a format this version does not know, or header and content
            disagree.
    """
    if metadata.get("format") != FORMAT:
        raise PatchMismatch(
            f"{where} is expected to be a forgetkit patch of format {FORMAT!r}; found "
            f"{metadata.get('format')!r}. Pass a file written by Patch.save; a newer format needs "
            "a newer forgetkit."
        )
    try:
        request = json.loads(metadata["request"])
        entries = {
            str(name): _entry(fields) for name, fields in json.loads(metadata["tensors"]).items()
        }
        if not isinstance(request, dict):
            raise TypeError("the request is no JSON object")
        needed = {
            name: byte_count(entry.before.dtype, entry.before.shape)
            for name, entry in entries.items()
            if entry.changed
        }
        if needed != dict(sizes):
            raise ValueError("header and stored tensors name different tensors or sizes")
    except (KeyError, TypeError, ValueError, AttributeError, ForgetkitError) as error:
        raise PatchMismatch(
            f"{where} is expected to be an intact patch; found a damaged one ({error}). "
            "Save the patch again or fetch another copy."
        ) from error
    return entries, request


def _entry(fields: list[object]) -> Entry:
    dtype, shape, before, after, aliases = fields
    digests = [before] if after is None else [before, after]
    if not all(isinstance(d, str) and len(d) == _DIGEST_LENGTH for d in digests):
        raise ValueError("a digest is not 64 characters long")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError("a shape is no list of sizes")
    if not isinstance(aliases, list) or not isinstance(dtype, str):
        raise TypeError("a tensor record has fields of the wrong type")
    print_before = TensorPrint(dtype, tuple(shape), str(before))
    return Entry(
        print_before, str(before if after is None else after), tuple(str(a) for a in aliases)
    )
