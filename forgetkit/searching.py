"""Search for a method's hyper-parameters on validation data, by Optuna.

``best = search(model, "lau", [3], loader, validate=validation)``, then
``forget(model).classes([3]).using("lau", **best).run(loader)``.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import nn

from forgetkit.adapting import unwrap
from forgetkit.api import forget
from forgetkit.comparing.accuracies import ground_of, score_of
from forgetkit.comparing.grid import changed_settings
from forgetkit.copying import independent_copy
from forgetkit.data.loaders import Loader
from forgetkit.data.overlap import check_held_out
from forgetkit.data.sources import labels_kept
from forgetkit.engine.place import choose_place
from forgetkit.errors import (
    BadHyperparameter,
    BadTarget,
    DataError,
    UnlearningFailed,
)
from forgetkit.fields import Bounds, bounds_of
from forgetkit.goal import Classes, Goal
from forgetkit.method import Method, build
from forgetkit.recipe import FullNetwork, StopsEarly, Trained

if TYPE_CHECKING:
    from optuna import Trial

DEFAULT_RUNS = 20
SHARED = {declared.name for kind in (Trained, FullNetwork, StopsEarly)
          for declared in dataclasses.fields(kind)}  # fmt: skip
LEARNING_RATE = (1e-5, 0.1)
SPAN, INTEGER_SPAN = 100.0, 4.0
Value: TypeAlias = "float | int | str | bool"


@dataclass(frozen=True)
class Domain:
    """Where one hyper-parameter is searched.

    Args:
        low: smallest value.
        high: largest value.
        log: whether equal ratios, not equal differences, are equally likely.
        integer: whether only integers are meant.
        options: the values of a choice or a switch, instead of the others.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    options: tuple[Value, ...] = ()

    def drawn(self, trial: Trial, name: str) -> Value:
        """Ask Optuna for a value."""
        if self.options:
            return cast("Value", trial.suggest_categorical(name, list(self.options)))
        if self.integer:
            return trial.suggest_int(name, math.ceil(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def holds(self, value: object) -> bool:
        """Return whether a value lies in the domain."""
        if self.options:
            return value in self.options
        return isinstance(value, (int, float)) and self.low <= value <= self.high


@dataclass(frozen=True)
class Tried:
    """One run of a search.

    Attributes:
        settings: the hyper-parameters that were searched.
        value: the objective, higher is better; ``None`` for a run that failed.
        scores: accuracies in percent by set.
        seconds: wall time.
        error: why it failed, or an empty text.
    """

    settings: Mapping[str, object]
    value: float | None
    scores: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        method: registered name.
        objective: what was maximised, in words.
        best: settings for ``using(method, **best)``.
        value: the objective of the best run.
        default: the objective of the method as it was given, or ``None`` when that run failed.
        runs: all of them, in order; the first is the method as it was given.
    """

    method: str
    objective: str
    best: dict[str, object]
    value: float
    default: float | None
    runs: tuple[Tried, ...]

    def to_json(self) -> dict[str, object]:
        """Return a record of plain values."""
        return dataclasses.asdict(self)


def search(
    model: nn.Module,
    method: str | Method,
    goal: Goal | Sequence[int | str],
    loader: Loader,
    *,
    validate: Loader,
    retain: Loader | None = None,
    reference: nn.Module | None = None,
    fields: Sequence[str] | Mapping[str, tuple[float, float]] | None = None,
    runs: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: str | None = None,
    head: str | Sequence[str] | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, object]:
    """Return the best hyper-parameters that were found; see ``explore``, which returns all runs.

    Use data for ``validate`` that no audit sees: figures on data that chose the settings are
    too good. There is no argument for test data, on purpose.
    """
    return explore(
        model, method, goal, loader, validate=validate, retain=retain, reference=reference,
        fields=fields, runs=runs, minutes=minutes, seed=seed, device=device, precision=precision,
        head=head, say=say,
    ).best  # fmt: skip


@labels_kept()
def explore(
    model: nn.Module,
    method: str | Method,
    goal: Goal | Sequence[int | str],
    loader: Loader,
    *,
    validate: Loader,
    retain: Loader | None = None,
    reference: nn.Module | None = None,
    fields: Sequence[str] | Mapping[str, tuple[float, float]] | None = None,
    runs: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: str | None = None,
    head: str | Sequence[str] | None = None,
    say: Callable[[str], None] | None = None,
) -> Search:
    """Run a method on copies of a model with settings that Optuna's TPE sampler proposes.

    The first run is the method as it was given, so that the best is never worse than that. All
    runs have the same seed and no guard; ``validate`` is theirs to stop on too. The objective:

    - with ``reference``: minus the mean distance, in percentage points, of the accuracies on D_r,
      D_f and validation data from those of the reference;
    - else US on validation data, for which whole classes must be forgotten.

    Nothing here may be data that an audit or a final table sees: the search fits the settings to
    the validation data. There is no argument for test data, on purpose.

    Args:
        model: stays as it is.
        method: a registered name, or a ``Method`` whose other settings are kept.
        goal: classes to forget, or a ``Goal`` (classes or instances).
        loader: as for ``Request.run``; read again in every run.
        validate: samples that the model was not trained on, of forgotten and other classes.
        retain: data to keep, when ``loader`` does not hold it.
        reference: a model retrained without what is to be forgotten.
        fields: hyper-parameters to search, or (low, high) by name to search in another range;
            default: ``lr``, ``epochs`` and the method's own numbers. A number whose declared range
            is wide is searched on a log scale around its default: within a factor of 100, an
            integer within a factor of 4.
        runs: budget; default 20 where ``minutes`` are not given either.
        minutes: no run is begun after so many.
        seed: of the sampler and of every run.
        device: where to compute; the default is a CUDA device, else the CPU.
        precision: ``"no"``, ``"bf16"`` or ``"fp16"``.
        head: dotted path(s) of the head, when detection must be overruled.
        say: called with one line about each run.

    Returns:
        Best settings, and all runs.

    Raises:
        BadHyperparameter: Optuna is not installed, a field cannot be searched, a budget is not
            positive, or single samples are to be forgotten and there is no reference.
        BadTarget: the goal does not fit method or data.
        DataError: the data cannot be used, or ``validate`` lacks what the objective needs or holds
            training samples.
        UnlearningFailed: every run failed.
    """
    _need_optuna()
    base = method if isinstance(method, Method) else build(method, {})
    domains = domains_of(base, fields)
    runs = _budget(runs, minutes)
    aim = goal if isinstance(goal, Goal) else Classes(goal)
    if aim.kind not in ("classes", "instances"):
        raise BadTarget(
            f"goal: expected classes or instances, found {aim.kind}; its success is not what the "
            "objective measures"
        )
    if aim.kind != "classes" and reference is None:
        raise BadHyperparameter(
            "reference: expected a retrained model, because the unlearning score is defined for "
            "whole classes only, found none; pass reference=... to search for single samples"
        )
    check_held_out("validate", validate, {"loader": loader, "retain": retain})
    bare = unwrap(model)
    ground = ground_of(bare, aim, loader, retain=retain, test=validate)
    missing = [name for name in ("D_tr", "D_tf") if name not in ground.sets]
    if missing and reference is None:
        raise DataError(
            "validate: expected samples of forgotten and of other classes, found none of "
            f"{'the forgotten' if 'D_tf' in missing else 'the other'} classes; add some"
        )
    place = choose_place(device, precision, None).device
    wanted = None
    if reference is not None:
        wanted = ground.accuracies(independent_copy(unwrap(reference)).to(place))

    def tried(settings: Mapping[str, object]) -> Tried:
        begun = time.perf_counter()
        twin = independent_copy(bare)
        try:
            chosen = dataclasses.replace(base, **settings)
            request = forget(twin).using(chosen).validate(validate).seed(seed)
            request = dataclasses.replace(
                request, goal=ground.goal, retain_loader=retain, head_name=head
            ).on(device, mixed_precision=precision)
            request.run(loader, guard=None)
            found = ground.accuracies(twin.to(place))
        except (BadHyperparameter, UnlearningFailed) as error:  # these settings do not work
            return Tried(settings, None, {}, time.perf_counter() - begun, str(error))
        return Tried(settings, _value(found, wanted), found, time.perf_counter() - begun)

    done = _course(base, domains, tried, runs, minutes, seed, say)
    worked = [run for run in done if run.value is not None]
    if not worked:
        raise UnlearningFailed(
            f"search({base.card.slug}): expected a run that works, found {len(done)} that failed, "
            f"the last one with: {done[-1].error}"
        )
    best = max(worked, key=lambda run: -math.inf if run.value is None else run.value)
    return Search(
        base.card.slug,
        "US on validation data" if wanted is None else "minus the distance to the reference",
        {**changed_settings(base), **best.settings},
        float(best.value or 0.0),
        done[0].value,
        tuple(done),
    )


def domains_of(
    method: Method, fields: Sequence[str] | Mapping[str, tuple[float, float]] | None = None
) -> dict[str, Domain]:
    """Return where each hyper-parameter is searched.

    Args:
        method: its values are the middle of wide ranges.
        fields: as for ``explore``.

    Raises:
        BadHyperparameter: a name is unknown, a kind or range cannot be searched, or the method
            has no numbers.
    """
    slug = method.card.slug
    declared = {entry.name: bounds_of(entry) for entry in dataclasses.fields(method)}
    if fields is None:
        named = ["lr", "epochs", *(name for name in declared if name not in SHARED)]
        found = {
            name: _domain(name, declared[name], getattr(method, name))
            for name in named
            if name in declared and declared[name].kind in ("number", "integer")
        }
        domains = {name: domain for name, domain in found.items() if domain is not None}
        if not domains:
            raise BadHyperparameter(
                f"search({slug}): expected a method with numbers to search, found none; name "
                f"other fields: {', '.join(declared) or 'it has no hyper-parameters'}"
            )
        return domains
    domains = {}
    for name in fields:
        if name not in declared:
            raise BadHyperparameter(
                f"fields: expected hyper-parameters of {slug}, found {name!r}; it has "
                f"{', '.join(sorted(declared)) or 'none'}"
            )
        bounds = declared[name]
        if isinstance(fields, Mapping):
            domains[name] = _given(slug, name, bounds, fields[name])
            continue
        domain = _domain(name, bounds, getattr(method, name))
        if domain is None:
            raise BadHyperparameter(
                f"fields: expected {name} of {slug} to have a range to search in, found "
                f"{bounds.describe()}; leave it out, or for a number write "
                f"fields={{{name!r}: (low, high)}}"
            )
        domains[name] = domain
    if not domains:
        raise BadHyperparameter(
            f"fields: expected at least one hyper-parameter of {slug}, found none; leave fields "
            "out for the default ones"
        )
    return domains


def _domain(name: str, bounds: Bounds, now: object) -> Domain | None:
    """Return where to search one field, or ``None`` where nothing sensible is known."""
    if bounds.kind == "flag":
        return Domain(options=(False, True))
    if bounds.kind == "choice":
        return Domain(options=bounds.options)
    if bounds.kind not in ("number", "integer"):
        return None
    integer = bounds.kind == "integer"
    rate = name == "lr" or name.endswith("_lr")
    if not isinstance(now, (int, float)) or now <= 0:
        if rate:
            return Domain(
                max(bounds.low, LEARNING_RATE[0]), min(bounds.high, LEARNING_RATE[1]), log=True
            )
        narrow = now is not None and bounds.high <= 1 and bounds.low >= -1
        return Domain(bounds.low, bounds.high, integer=integer) if narrow else None
    share = bounds.low >= 0 and bounds.high <= 1 and now >= 0.01  # else orders of magnitude matter
    if share and not rate and not integer:
        return Domain(bounds.low, bounds.high)
    span = INTEGER_SPAN if integer else SPAN
    low, high = max(bounds.low, now / span), min(bounds.high, now * span)
    if integer:
        low, high = max(bounds.low, math.floor(low), 1), math.ceil(high)
    return Domain(low, high, log=True, integer=integer) if low < high else None


def _given(slug: str, name: str, bounds: Bounds, ends: tuple[float, float]) -> Domain:
    """Return the caller's range, on a log scale where it spans a factor of 10 or more."""
    integer = bounds.kind == "integer"
    right = (
        bounds.kind in ("number", "integer")
        and isinstance(ends, (tuple, list))
        and len(ends) == 2
        and all(bounds.accepts(end) and end is not None for end in ends)
        and ends[0] < ends[1]
    )
    if not right:
        raise BadHyperparameter(
            f"fields[{name!r}]: expected (low, high), low < high, each {bounds.describe()}, found "
            f"{ends!r}; it is a setting of {slug}: {bounds.about}"
        )
    low, high = ends
    return Domain(low, high, log=low > 0 and high / low >= 10, integer=integer)


def _value(found: dict[str, float], wanted: dict[str, float] | None) -> float:
    if wanted is not None:
        return -sum(abs(found[name] - wanted[name]) for name in wanted) / len(wanted)
    score = score_of(found)
    if score is None:
        raise DataError("validate: expected samples of both kinds, found one; add the other")
    return score


def _course(
    base: Method,
    domains: Mapping[str, Domain],
    tried: Callable[[Mapping[str, object]], Tried],
    runs: int | None,
    minutes: float | None,
    seed: int,
    say: Callable[[str], None] | None,
) -> list[Tried]:
    """Run until the budget is spent: the method as given first, then what Optuna proposes."""
    import optuna

    begun, done = time.perf_counter(), list[Tried]()

    def note(run: Tried) -> Tried:
        done.append(run)
        if say is not None:
            shown = ", ".join(
                f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                for name, value in run.settings.items()
            )
            of = "" if runs is None else f"/{runs}"
            figure = run.error if run.value is None else f"{run.value:.4f}"
            say(f"{len(done)}{of} {shown}: {figure} ({run.seconds:.1f} s)")
        return run

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        sampler = optuna.samplers.TPESampler(seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        given = {name: getattr(base, name) for name in domains}
        first = note(tried(given))
        if first.value is not None and all(domains[name].holds(given[name]) for name in domains):
            # The sampler may learn from it only when it lies where the sampler looks.
            study.enqueue_trial(given)
            trial = study.ask()
            for name, domain in domains.items():
                domain.drawn(trial, name)
            study.tell(trial, first.value)
        while (runs is None or len(done) < runs) and (
            minutes is None or time.perf_counter() - begun < 60 * minutes
        ):
            trial = study.ask()
            run = note(tried({name: domain.drawn(trial, name) for name, domain in domains.items()}))
            if run.value is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, run.value)
    finally:
        optuna.logging.set_verbosity(level)
    return done


def _need_optuna() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise BadHyperparameter(
            "search: expected the package optuna, found none installed; pip install "
            "forgetkit[search]"
        )


def _budget(runs: int | None, minutes: float | None) -> int | None:
    for name, value, kinds in (("runs", runs, (int,)), ("minutes", minutes, (int, float))):
        wrong = not isinstance(value, kinds) or isinstance(value, bool) or not value > 0
        if value is not None and wrong:
            raise BadHyperparameter(
                f"{name}={value!r}: expected a positive number, found {value!r}; leave both runs "
                f"and minutes out for {DEFAULT_RUNS} runs"
            )
    return DEFAULT_RUNS if runs is None and minutes is None else runs
