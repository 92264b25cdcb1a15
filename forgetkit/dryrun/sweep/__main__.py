"""``python -m forgetkit.dryrun.sweep ZOO --out FILE``: one JSON line a model, then a tally."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from forgetkit.dryrun.sweep import timm_zoo, torchvision_zoo, transformers_zoo
from forgetkit.dryrun.sweep.checking import Outcome, tally

ZOOS = {"timm": timm_zoo, "transformers": transformers_zoo, "torchvision": torchvision_zoo}


def main(arguments: list[str] | None = None) -> int:
    """Run a sweep; lines already in the file are kept and not run again."""
    parser = argparse.ArgumentParser(prog="forgetkit.dryrun.sweep", description=__doc__)
    parser.add_argument("zoo", choices=sorted(ZOOS))
    parser.add_argument("--out", type=Path, required=True, help="JSON-lines file, appended to")
    parser.add_argument("--only", nargs="*", help="names of models; default: all")
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th model from the I-th on")
    chosen = parser.parse_args(arguments)
    zoo = ZOOS[chosen.zoo]
    first, of = (int(part) for part in chosen.shard.split("/"))
    done = read(chosen.out)
    wanted = [
        name for name in (chosen.only or zoo.names())[first::of] if chosen.only or name not in done
    ]
    with chosen.out.open("a", encoding="utf-8") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for outcome in zoo.outcomes(wanted):
            done[outcome.name] = outcome
            file.write(json.dumps(outcome.to_dict()) + "\n")
            file.flush()
    sys.stdout.write(json.dumps(tally(done)) + "\n")
    return int(any(outcome.status in ("wrong", "failed") for outcome in done.values()))


def read(path: Path) -> dict[str, Outcome]:
    """Read the outcomes that a file holds; the last line of a model counts."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [Outcome(**json.loads(line)) for line in lines]
    return {outcome.name: outcome for outcome in found}


if __name__ == "__main__":
    raise SystemExit(main())
