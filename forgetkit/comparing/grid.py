"""``compare``: every method with every seed on every target, each on a copy of the model."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from forgetkit import __version__
from forgetkit.adapting import unwrap
from forgetkit.api import forget
from forgetkit.audit.inputs import digest as model_digest
from forgetkit.audit.inputs import prints_of
from forgetkit.comparing.accuracies import Ground, ground_of, score_of
from forgetkit.comparing.table import Comparison
from forgetkit.comparing.written import RunFolder, RunRecord
from forgetkit.data.loaders import Loader
from forgetkit.engine.place import choose_place
from forgetkit.errors import BadHyperparameter, BadTarget, ForgetkitError, ModelError
from forgetkit.goal import Classes, Goal
from forgetkit.method import Method, build

ORIGINAL = "original"


def compare(
    model: nn.Module,
    loader: Loader,
    targets: Sequence[int | str | Sequence[int | str] | Goal],
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
    With ``out``, each finished run is a file there; the same call later reads it instead of
    running again, however the first call ended. A run is the same when the model's weights, the
    labels of the data, the method with all its settings, the target, the seed, the kind of
    device, ``setting`` and the version of forgetkit are; pixels are not compared. One process at
    a time may use a folder.

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
        device: where to compute; the default is Accelerate's own choice.
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
        BadHyperparameter: nothing to run, something is named twice, or several processes.
        BadTarget: a target does not fit the data.
        DataError: the data cannot be used, or ``out`` was made for another model.
    """
    entries = _entries(methods)
    numbers = _seeds(seeds)
    bare = unwrap(model)
    _copied(bare)
    grounds = [
        ground_of(bare, goal, loader, retain=retain, test=test) for goal in map(_goal, targets)
    ]
    _refuse_repeats("targets", [ground.target for ground in grounds])
    print_of_model = model_digest(prints_of(bare))
    bench = _Bench(bare, loader, retain, validate, device, precision, head)
    on = bench.place.type  # asked for first: a wrong device or launcher must leave no folder
    folder = RunFolder(None if out is None else Path(out), print_of_model)
    plan: list[tuple[Ground, str, Method | None, int]] = [
        (ground, ORIGINAL, None, 0) for ground in grounds
    ] + [
        (ground, title, method, seed)
        for seed, ground, (title, method) in itertools.product(numbers, grounds, entries.items())
    ]
    done: dict[tuple[str, str, int], RunRecord] = {}
    for number, (ground, title, method, seed) in enumerate(plan, 1):
        identity = {
            "model": print_of_model,
            "data": ground.digest(),
            "method": {"method": ORIGINAL} if method is None else method.to_json(),
            "goal": ground.goal.to_json(),
            "seed": seed,
            "setting": {
                "device": on,
                "precision": precision or "", "head": head or "", "validate": validate is not None,
                **(setting or {}),
            },
            "version": __version__,
        }  # fmt: skip
        name = f"{title}-{ground.target}-seed{seed}"
        run = folder.find(identity, name)
        read = run is not None and not (retry and run.error)
        if run is None or not read:
            run = dataclasses.replace(bench.run(ground, title, method, seed), identity=identity)
            folder.keep(run, name)
        done[ground.target, title, seed] = run
        if say is not None:
            how = "read" if read else run.error or f"{run.scores.get('seconds', 0.0):.1f} s"
            say(f"{number}/{len(plan)} {title}, {ground.target}, seed {seed}: {how}")
    order = [
        (ground.target, title, seed)
        for ground in grounds
        for title, given in ((ORIGINAL, [0]), *((title, numbers) for title in entries))
        for seed in given
    ]
    table = Comparison(tuple(done[key] for key in order))
    if out is not None:
        table.save(out)
    return table


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
    def place(self) -> torch.device:
        """Where the runs are computed and measured."""
        found = choose_place(self.device, self.precision, None)
        if found.world > 1:
            raise BadHyperparameter(
                f"compare(): expected one process, found {found.world}; start it without a "
                "launcher, and give each process a folder and targets of its own"
            )
        return found.device

    def run(self, ground: Ground, title: str, method: Method | None, seed: int) -> RunRecord:
        """Run once on a copy and measure it; a refusal becomes a record without figures."""
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
                result = request.run(self.loader, guard=None)
                record, stopped = result.method.to_json(), result.stopped_because
                seconds = sum(t for phase, t in result.seconds.items() if phase != "measure")
            found = ground.accuracies(model.to(self.place))
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
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"model: expected one that copy.deepcopy can copy, found {type(model).__name__}: "
            f"{error}; detach tensors that hang on a graph, or load the model from its file"
        ) from error


def _goal(target: int | str | Sequence[int | str] | Goal) -> Goal:
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
    listed = [] if isinstance(seeds, (int, str)) else list(seeds)
    if not listed or not all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in listed):
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
