"""``compare``: every method with every seed on every target, each on a copy of the model."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias, cast

import torch
from torch import nn

from forgetkit import __version__
from forgetkit.adapting import unwrap
from forgetkit.api import forget
from forgetkit.auditing.inputs import prints_of
from forgetkit.choosing import artefacts
from forgetkit.comparing.accuracies import Ground, ground_of, score_of, validation_digest
from forgetkit.comparing.sharing import Task, finish
from forgetkit.comparing.table import Comparison
from forgetkit.comparing.written import RunFolder, RunRecord
from forgetkit.copying import independent_copy
from forgetkit.data.loaders import Loader
from forgetkit.data.overlap import check_held_out
from forgetkit.data.sources import labels_kept
from forgetkit.engine.place import Place, alone, choose_place
from forgetkit.errors import BadHyperparameter, BadTarget, ForgetkitError, ModelError
from forgetkit.fingerprint import digest as model_digest
from forgetkit.goal import Classes, Goal
from forgetkit.listed import as_list
from forgetkit.method import Method, build
from forgetkit.model_errors import in_one_sentence
from forgetkit.whole_files import path_of

ORIGINAL = "original"
Target: TypeAlias = int | str | Sequence[int | str] | Goal
"""A class, classes that are forgotten together, or a goal."""


@labels_kept()
def compare(
    model: nn.Module,
    loader: Loader,
    targets: Sequence[Target],
    methods: Sequence[str | Method],
    seeds: int | Sequence[int] = 3,
    *,
    test: Loader | None = None,
    retain: Loader | None = None,
    validate: Loader | None = None,
    out: str | Path | None = None,
    device: torch.device | str | None = None,
    precision: str | None = None,
    head: str | Sequence[str] | None = None,
    setting: Mapping[str, str] | None = None,
    retry: bool = False,
    say: Callable[[str], None] | None = None,
) -> Comparison:
    """Run methods x seeds x targets on copies of a model and return one table.

    The runs have no guard: the table shows what a method does, not what a guard would put back.
    Labels that a data set does not list are found once, before the first run, by reading it whole.
    With ``out``, each finished run is a file there; the same call later reads it instead of
    running again, however the first call ended. A run is the same when the model's weights, the
    labels of the data (those of ``validate`` too), the method with all its settings, the target,
    the seed, the kind of device, ``setting`` and the version of forgetkit are; pixels are not
    compared. A file that a setting names is the same while its size and its time of change are.

    Under ``accelerate launch`` each process makes whole runs on its own device and takes the next
    one that nobody has begun, so every run is made once; the first process writes the tables. Calls
    that were started separately share a folder in the same way.

    Args:
        model: stays as it is.
        loader: the training data, read again in every run.
        targets: each a class, a list of classes that are forgotten together, or a ``Goal``.
        methods: registered names, or ``Method`` objects for settings other than the defaults.
        seeds: a number of seeds (0, 1, ...), or the seeds.
        test: data that nothing was trained on: for D_tr, D_tf and US; no method sees them.
        retain: data to keep, when ``loader`` does not hold it.
        validate: data that methods may stop on; must not be the test data.
        out: folder for runs and tables; without it nothing is written and nothing resumed.
        device: where to compute; the default is a CUDA device, else the CPU.
        precision: ``"no"``, ``"bf16"`` or ``"fp16"``.
        head: dotted path(s) of the head, when detection must be overruled.
        setting: words about the data or the machine that tell these runs from others.
        retry: whether runs that failed before are tried again.
        say: called with one line about each run.

    Returns:
        The table; the model as it is comes first. A method that refuses or breaks has a row that
        says why.

    Raises:
        UnknownMethod: no method has this name.
        BadHyperparameter: nothing to run, something is named twice, or several processes without
            ``out``.
        BadTarget: a target does not fit the data.
        DataError: the data cannot be used, ``test`` shares samples with other data, or ``out`` was
            made for another model.
    """
    entries = _entries(methods)
    numbers = _seeds(seeds)
    if test is not None:
        check_held_out("test", test, {"loader": loader, "retain": retain, "validate": validate})
    bare = unwrap(model)
    _copied(bare)
    asked = as_list("targets", targets, "what is forgotten in turn", "targets=[3, 5]")
    grounds = [
        ground_of(bare, _goal(target), loader, retain=retain, test=test)
        for target in cast("list[Target]", asked)
    ]
    _refuse_repeats("targets", [ground.target for ground in grounds])
    bench = _Bench(bare, loader, retain, validate, device, precision, head)
    place = bench.place  # asked for first: a wrong device or launcher must leave no folder
    if out is None and place.world > 1:
        raise BadHyperparameter(
            f"out=None: expected a folder, in which the {place.world} processes of this launch "
            "find each other's runs, found none; pass out="
        )
    print_of_model = model_digest(prints_of(bare))
    folder = RunFolder(None if out is None else path_of(out, "out"), print_of_model)
    shared: dict[str, object] = {
        "model": print_of_model,
        "setting": {
            "device": place.device.type,
            "precision": precision or "",
            "head": head or "",
            "validate": validate is not None,
            **(setting or {}),
        },
        "version": __version__,
    }
    if validate is not None:
        shared["validation"] = validation_digest(bare, validate)
    tasks = _tasks(grounds, entries, numbers, shared)
    if retry:
        _drop_failed(tasks, folder, place)
    done = finish(tasks, folder, bench.run, say or (lambda _: None), tell_read=place.rank == 0)
    order = [
        (ground.target, title, seed)
        for ground in grounds
        for title, given in ((ORIGINAL, [0]), *((title, numbers) for title in entries))
        for seed in given
    ]
    table = Comparison(tuple(done[key] for key in order))
    if out is not None and place.rank == 0:
        with folder.locked():
            table.save(out)
    return table


def _tasks(
    grounds: Sequence[Ground],
    entries: Mapping[str, Method],
    seeds: Sequence[int],
    shared: Mapping[str, object],
) -> list[Task]:
    """Return what is to be run: the models as they are, then every method with the first seed."""
    found = []
    records = [
        {"data": ground.digest(), "goal": ground.goal.to_json(), **shared} for ground in grounds
    ]
    for ground, record in zip(grounds, records, strict=True):
        identity = {**record, "method": {"method": ORIGINAL}, "seed": 0}
        found.append(Task(ground, ORIGINAL, None, 0, identity))
    for seed, (ground, record), (title, method) in itertools.product(
        seeds, zip(grounds, records, strict=True), entries.items()
    ):
        identity = {**record, "method": method.to_json(), "seed": seed, **_files_of(method)}
        found.append(Task(ground, title, method, seed, identity))
    return found


def _files_of(method: Method) -> dict[str, object]:
    """Return what tells whether the files that settings name have changed, if there are any."""
    named = {name: getattr(method, name) for name in artefacts(type(method))}
    found = {name: _stamps(Path(path)) for name, path in named.items() if path is not None}
    return {"files": found} if found else {}


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    """Return path, size and time of change of a file, or of every file in a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = {file.relative_to(path).as_posix(): file.stat() for file in files if file.is_file()}
    return [(name, found.st_size, found.st_mtime_ns) for name, found in stats.items()]


def _drop_failed(tasks: Sequence[Task], folder: RunFolder, place: Place) -> None:
    """Remove failed runs before any process begins: one that fails again must not look new."""
    if place.rank == 0:
        for task in tasks:
            run = folder.find(task.identity, task.name)
            if run is not None and run.error:
                folder.drop(task.identity, task.name)
    if place.world > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


@dataclass(frozen=True)
class _Bench:
    """What all runs share."""

    model: nn.Module
    loader: Loader
    retain: Loader | None
    validate: Loader | None
    device: torch.device | str | None
    precision: str | None
    head: str | Sequence[str] | None

    @cached_property
    def place(self) -> Place:
        """Where this process computes and measures, and how many there are."""
        return choose_place(self.device, self.precision, None)

    def run(self, task: Task) -> RunRecord:
        """Run once on a copy and measure it; a refusal becomes a record without figures."""
        ground, title, method, seed = task.ground, task.title, task.method, task.seed
        model, stopped, seconds = _copied(self.model), "", 0.0
        record: dict[str, object] = {"method": ORIGINAL}
        if method is not None:
            record = method.to_json()
        try:
            if method is not None:
                request = forget(model).using(method).seed(seed)
                request = dataclasses.replace(
                    request,
                    goal=ground.goal,
                    retain_loader=self.retain,
                    validation_loader=self.validate,
                    head_name=self.head,
                ).on(self.device, mixed_precision=self.precision)
                with alone():
                    result = request.run(self.loader, guard=None)
                record, stopped = result.method.to_json(), result.stopped_because
                seconds = sum(t for phase, t in result.seconds.items() if phase != "measure")
            with in_one_sentence("compare()"):
                found = ground.accuracies(model.to(self.place.device))
        except ForgetkitError as error:
            return RunRecord(
                title, record, ground.goal.to_json(), ground.target, seed, error=str(error)
            )
        scores = {**found, "seconds": seconds}
        score = score_of(found)
        if score is not None:
            scores["US"] = score
        return RunRecord(
            title, record, ground.goal.to_json(), ground.target, seed, scores, stopped
        )  # fmt: skip


def _copied(model: nn.Module) -> nn.Module:
    try:
        return independent_copy(model)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"model: expected one that copy.deepcopy can copy, found {type(model).__name__}: "
            f"{error}; detach tensors that hang on a graph, or load the model from its file"
        ) from error


def _goal(target: Target) -> Goal:
    if isinstance(target, Goal):
        if target.kind not in ("classes", "instances"):
            raise BadTarget(
                f"targets: expected classes or instances, found the goal {target.kind}; its "
                "success is not what these columns measure, use Request.run for it"
            )
        return target
    return Classes((target,) if isinstance(target, (int, str)) else target)


def _entries(methods: Sequence[str | Method]) -> dict[str, Method]:
    if isinstance(methods, (str, Method)) or not methods:
        raise BadHyperparameter(
            f"methods={methods!r}: expected a list of names or Method objects, found "
            f"{'an empty one' if not methods else type(methods).__name__}; write for instance "
            'methods=["lau", "suli"]'
        )
    built = [entry if isinstance(entry, Method) else build(entry, {}) for entry in methods]
    _refuse_repeats("methods", [title_of(method) for method in built])
    return {title_of(method): method for method in built}


def title_of(method: Method) -> str:
    """Return a method's name, with the settings that differ from its defaults."""
    changed = [f"{name}={value}" for name, value in changed_settings(method).items()]
    return method.card.slug + (f" ({', '.join(changed)})" if changed else "")


def changed_settings(method: Method) -> dict[str, object]:
    """Return the hyper-parameters that differ from the method's defaults."""
    return {
        declared.name: getattr(method, declared.name)
        for declared in dataclasses.fields(method)
        if getattr(method, declared.name) != declared.default
    }


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds > 0:
        return list(range(seeds))
    listed = list(seeds) if isinstance(seeds, Iterable) and not isinstance(seeds, str) else []
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) for seed in listed)
    if not listed or not whole or not all(0 <= seed < 2**32 for seed in listed):
        raise BadHyperparameter(
            f"seeds={seeds!r}: expected a positive number of seeds, or a list of integers from 0 "
            f"to 2^32 - 1, found {seeds!r}; 3 means 0, 1 and 2"
        )
    _refuse_repeats("seeds", listed)
    return listed


def _refuse_repeats(name: str, values: Sequence[object]) -> None:
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if twice or not values:
        raise BadHyperparameter(
            f"{name}: expected entries that differ, at least one, found "
            f"{f'{twice[0]} twice' if twice else 'none'}; name each once"
        )
