"""A model of the demo with its data, trained on the first call and kept for the next."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from filelock import FileLock
from torch import nn

from forgetkit.benchmark.datasets import Pair
from forgetkit.benchmark.store import Setting
from forgetkit.benchmark.train import cache_root
from forgetkit.demo.contenders import CONTENDERS
from forgetkit.demo.course import DataName, load_pair
from forgetkit.errors import BadHyperparameter

NETWORKS = tuple(contender.slug for contender in CONTENDERS)
DATA = ("digits", "fashion-mnist")


def kept_model(
    network: str, data: str, *, root: Path | None = None, limit: int | None = None
) -> tuple[nn.Module, Pair]:
    """Return a trained model on the CPU and its data, from the cache when it is there.

    Args:
        network: one of ``NETWORKS``.
        data: one of ``DATA``.
        root: folder of Fashion-MNIST.
        limit: number of training images; the model is trained on exactly these.

    Raises:
        BadHyperparameter: there is no such network or data set.
        DataError: Fashion-MNIST without a folder that holds it.
    """
    for name, given, known in (("MODEL", network, NETWORKS), ("--builtin", data, DATA)):
        if given not in known:
            raise BadHyperparameter(
                f"{name} {given}: expected one of {', '.join(known)}, found {given!r}; for a model "
                "of your own leave out --builtin and name --data"
            )
    contender = next(entry for entry in CONTENDERS if entry.slug == network)
    pair = load_pair(cast("DataName", data), root)
    whole = len(pair.train)
    pair = pair.limited(limit)
    setting = Setting(
        f"demo-{network}",
        lambda _: contender.build(pair),
        contender.recipes[data],
        pair,
        data if len(pair.train) == whole else f"{data}-{len(pair.train)}",
        "cuda" if torch.cuda.is_available() else "cpu",
    )
    folder = cache_root() / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    # Of the processes of one launch the first to come trains, the others wait for its file.
    with FileLock(folder / f"{setting.key}.lock"):
        model, _ = setting.model("all", pair.train)
    return model.cpu(), pair
