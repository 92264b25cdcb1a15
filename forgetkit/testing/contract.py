"""The checks of the contract. Each takes a method class and a kind of toy model."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit.api import Request, forget
from forgetkit.errors import BadHyperparameter, DataError, ForgetkitError, ModelError
from forgetkit.fields import Bounds, bounds_of
from forgetkit.method import Method, build, from_json
from forgetkit.patch import Patch
from forgetkit.recipe import Trained
from forgetkit.testing.interrupting import watched_saves
from forgetkit.testing.toys import TOYS, Exploding, Toy, blobs, toy
from forgetkit.testing.trace import changed, photograph, weights

FORGOTTEN = 3
KEPT = [0, 1, 2]
DEVICE = os.environ.get("FORGETKIT_TEST_DEVICE", "cpu")
"""Where the checks compute; the toy models lie on the CPU and move there for each run."""
MethodType = type[Method]
Check = Callable[[MethodType, str], None]


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


_rehearsals: dict[tuple[str, str], tuple[dict[str, Any], tempfile.TemporaryDirectory[str]]] = {}


def toy_settings(method: MethodType, kind: str) -> dict[str, Any]:
    """Return the hyper-parameters that a Card names for toy problems, artefacts included."""
    merged = {**method.card.toy, **(method.card.toy_vit if kind == "vit" else {})}
    settings = {name: value for name, value in merged.items() if name != "validate"}
    if method.card.rehearse is None:
        return settings
    key = (method.card.slug, kind)
    if key not in _rehearsals:
        folder = tempfile.TemporaryDirectory(prefix="forgetkit-rehearsal-")
        some = toy(kind)
        made = dict(method.card.rehearse(some.model, some.loader(), folder.name))
        _rehearsals[key] = (made, folder)  # the folder lives as long as the process
    return {**settings, **_rehearsals[key][0]}


def quick(method: MethodType, kind: str, **overrides: Any) -> Method:  # noqa: ANN401
    """Return the method with its settings for toy problems."""
    return method(**{**toy_settings(method, kind), **overrides})


def short(method: MethodType, kind: str, **overrides: Any) -> Method:  # noqa: ANN401
    """Return the method for a single epoch, where it has epochs."""
    names = {declared.name for declared in dataclasses.fields(method)}
    one = {"epochs": 1} if "epochs" in names else {}
    return quick(method, kind, **{**one, **overrides})


def request(method: Method, model: nn.Module, goal: str | None = None) -> Request:
    """Return a request for a kind of goal, by default the one that the method serves first."""
    start = forget(model).seed(0)
    if method.card.toy.get("validate"):
        start = start.validate(DataLoader(blobs(seed=1), batch_size=64))
    kind = goal or method.card.goals[0]
    if kind == "classes":
        start = start.classes([FORGOTTEN])
    elif kind == "instances":
        start = start.instances(range(40))
    elif kind == "relabel":
        start = start.relabel({position: (position + 1) % 4 for position in range(40)})
    else:
        start = start.depoison(range(40))
    return start.using(method).on(DEVICE)


def check_runs_in_two_types(method: MethodType, kind: str) -> None:
    """1. A short run on float32 and on bfloat16 weights ends with finite weights."""
    for dtype in (torch.float32, torch.bfloat16):
        some = toy(kind)
        model = some.model.to(dtype)
        result = request(short(method, kind), model).run(some.loader(), guard=None)
        _require(
            all(bool(torch.isfinite(value).all()) for value in weights(model).values()),
            f"{method.card.slug} left weights that are not finite in {dtype}",
        )
        _require(all(p.dtype == dtype for p in model.parameters()), "the weights changed type")
        _require(len(result.seconds) > 0, "no seconds were recorded")


def check_same_seed(method: MethodType, kind: str) -> None:
    """2. The same seed gives the same bits, whatever random state the caller is in."""
    outcomes = []
    for noise in (1, 2):
        some = toy(kind)
        torch.manual_seed(noise)
        request(short(method, kind), some.model).run(some.loader(), guard=None)
        outcomes.append(weights(some.model))
    _require(not changed(*outcomes), f"{method.card.slug} gave other bits with the same seed")


def check_forgets(method: MethodType, kind: str) -> None:
    """3. Of the class no more is left, and of the others no more is lost, than the Card names.

    A method for single samples lets the accuracy on them fall.
    """
    some = toy(kind)
    before_forget = some.accuracy(some.test, [FORGOTTEN])
    before_kept = some.accuracy(some.test, KEPT)
    result = request(quick(method, kind), some.model).run(some.loader(), guard=None)
    if method.card.goals[0] != "classes":
        _require(
            result.after["forget"].accuracy < result.before["forget"].accuracy,
            f"{method.card.slug} forgot nothing: {result!r}",
        )
        return
    forgot = some.accuracy(some.test, [FORGOTTEN])
    kept = some.accuracy(some.test, KEPT)
    most = method.card.leaves
    _require(
        forgot <= most,
        f"{method.card.slug}: forget accuracy {before_forget:.2f} became {forgot:.2f}, more than "
        f"{most:.2f}",
    )
    _require(
        kept >= before_kept - method.card.keeps,
        f"{method.card.slug}: retain accuracy {before_kept:.2f} became {kept:.2f}",
    )


class _CrashError(Exception):
    """The error of a crash test."""


def check_no_trace(method: MethodType, kind: str) -> None:
    """4. Success leaves no hook, flag, attribute, gradient or random state behind."""
    some = toy(kind)
    _sprinkle(some.model)
    seen = photograph(some.model)
    request(short(method, kind), some.model).run(some.loader(), guard=None)
    _require(photograph(some.model) == seen, f"{method.card.slug} left a trace")


def check_all_or_nothing(method: MethodType, kind: str) -> None:
    """4. and 5. A crash in the model or in the method, or Ctrl-C, restores everything."""
    verb = "loss" if method.loss is not Method.loss else "edit"
    inside = next(iter(toy(kind).model.children())).__class__
    for error in (_CrashError("crash"), KeyboardInterrupt()):
        for where in ("method", "model"):
            some = toy(kind)
            _sprinkle(some.model)
            configured = short(method, kind)
            asked = request(configured, some.model)
            seen, before = photograph(some.model), weights(some.model)
            if where == "method":
                broken = _broken_method(configured, verb, error)
                asked = dataclasses.replace(asked, method=broken)
                fails: Any = _nothing()
            else:
                owner = next(m for m in some.model.children() if isinstance(m, inside))
                fails = _failing_module(owner, error)
            raised = False
            with fails:
                try:
                    asked.run(some.loader(), guard=None)
                except (ForgetkitError, KeyboardInterrupt):
                    raised = True
            _require(raised, f"{method.card.slug} swallowed {error!r} in the {where}")
            _require(not changed(before, weights(some.model)), f"weights moved after {error!r}")
            _require(photograph(some.model) == seen, f"a trace was left after {error!r}")


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _broken_method(method: Method, verb: str, error: BaseException) -> Method:
    """Return the method, whose verb does its work and then raises."""
    own = getattr(type(method), verb)

    def broken(self: Method, *args: object) -> object:
        own(self, *args)
        raise error

    kind = type("Broken", (type(method),), {verb: broken})
    made = kind(**{f.name: getattr(method, f.name) for f in dataclasses.fields(method)})
    if not isinstance(made, Method):
        raise TypeError("a subclass of a method is a method")
    return made


@contextmanager
def _failing_module(module: nn.Module, error: BaseException) -> Iterator[None]:
    """Make a module's forward raise from its third call on, by swapping its class's forward."""
    kind = type(module)
    original = kind.forward
    calls = 0

    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise error
        return original(self, *args, **kwargs)

    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = original


def _sprinkle(model: nn.Module) -> None:
    """Put a model into a state that only exact restoring gives back."""
    model.train()
    modules = list(model.modules())
    for module in modules[1::2]:
        module.training = False
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


def check_needs_are_true(method: MethodType, kind: str) -> None:
    """6. A set that the method does not need is never read."""
    some = toy(kind)
    configured = short(method, kind)
    if "retain" in configured.needs:
        return
    exploding = DataLoader(Exploding(), batch_size=4)
    asked = request(configured, some.model)
    asked.retain(exploding).run(some.forget_loader(FORGOTTEN), guard=None)


def check_scope_is_true(method: MethodType, kind: str) -> None:
    """7. Tensors outside the declared scope keep their bits, buffers included."""
    some = toy(kind)
    before = weights(some.model)
    request(short(method, kind), some.model).run(some.loader(), guard=None)
    moved = changed(before, weights(some.model))
    _require(bool(moved), f"{method.card.slug} changed nothing")
    if method.card.edits == "head":
        head = {"cnn": "fc.", "vit": "head."}[kind]
        outside = [name for name in moved if not name.startswith(head)]
        _require(not outside, f"{method.card.slug} declares the head but changed {outside}")


def check_frozen_stays(method: MethodType, kind: str) -> None:
    """16. What the caller froze keeps its bits, in the head, too; or the method refuses to run."""
    some = toy(kind)
    frozen = [{"cnn": "fc.weight", "vit": "head.weight"}[kind], next(iter(weights(some.model)))]
    for name in frozen:
        some.model.get_parameter(name).requires_grad = False
    before = weights(some.model)
    held: list[str] = frozen
    try:
        result = request(short(method, kind), some.model).run(some.loader(), guard=None)
    except (DataError, ModelError):
        held = list(before)
    else:
        result.undo()
        _require(not changed(before, weights(some.model)), "undo does not give the original")
        result.patch.apply(some.model)
    moved = set(held) & set(changed(before, weights(some.model)))
    _require(not moved, f"{method.card.slug} changed the frozen {sorted(moved)}")


def _takes_no(method: MethodType, name: str) -> bool:
    """Return whether a method refuses a setting that its recipe brings along."""
    return name == "mask" and getattr(method, "replaces", False)


def check_bounds(method: MethodType, kind: str) -> None:  # noqa: ARG001
    """8. Both bounds of a field build; a step outside raises and names the field."""
    for declared in dataclasses.fields(method):
        bounds = bounds_of(declared)
        inside: list[object] = []
        outside: list[object] = ["no such word", object()]
        if bounds.kind in ("number", "integer"):
            step = 1 if bounds.kind == "integer" else max(abs(bounds.high), 1.0) * 1e-3
            inside = [_typed(bounds, bounds.low), _typed(bounds, bounds.high)]
            outside += [bounds.low - step, bounds.high + step, True, "1"]
        elif bounds.kind == "choice":
            inside = list(bounds.options)
        elif bounds.kind == "flag":
            inside = [True, False]
        elif bounds.kind == "artefact":
            inside, outside = ["a-file"], [object(), 1.5, ""]
        elif bounds.kind == "positions":
            inside, outside = [(), (0, 3), [5]], [*outside, (-1,), (1.5,), (True,), 3]
        else:
            inside = [(0.0, 1.0)]
            outside += [(1.0, 0.0), (1.0,)]
        if not bounds.optional:
            outside.append(None)
        if _takes_no(method, declared.name):
            inside, outside = [None], [*outside, *inside]
        for value in inside:
            build(method.card.slug, {declared.name: value})
        for value in outside:
            try:
                method(**{declared.name: value})
            except BadHyperparameter as error:
                _require(declared.name in str(error), f"the message does not name {declared.name}")
            else:
                raise AssertionError(f"{method.card.slug}({declared.name}={value!r}) was accepted")


def _typed(bounds: Bounds, value: float) -> float:
    return int(value) if bounds.kind == "integer" else float(value)


def check_no_dead_hyperparameter(method: MethodType, kind: str) -> None:
    """9. Every hyper-parameter makes a difference to the weights."""
    for declared in dataclasses.fields(method):
        bounds = bounds_of(declared)
        if kind == "vit" and declared.name not in inspect.get_annotations(method):
            continue  # what a recipe brings along is seen on the CNN
        if kind == "vit" and declared.name == "bn":
            continue  # nothing there has running statistics
        if kind == "cnn" and declared.name == "dense_patches":
            continue  # no convolution there has a stride
        if bounds.kind == "artefact":
            continue  # a file is made by the tests of the method
        if _takes_no(method, declared.name):
            continue
        outcomes: list[dict[str, Tensor]] = []
        base = _probe_settings(method, kind, declared.name)
        validate = bool(base.pop("validate", False))
        several = base.pop("classes", None)
        for value in _probes(bounds, base.get(declared.name, declared.default)):
            some = toy(kind)
            configured = method(**{**base, declared.name: value})
            asked = request(configured, some.model)
            if several is not None:
                asked = forget(some.model).classes(several).using(configured).on(DEVICE)
            if validate:
                asked = asked.validate(DataLoader(some.test, batch_size=64))
            asked.run(some.loader(), guard=None)
            outcomes.append(weights(some.model))
        first = outcomes[0]
        for other in outcomes[1:]:
            _require(
                bool(changed(first, other)),
                f"{method.card.slug}: {declared.name} makes no difference",
            )


def _probe_settings(method: MethodType, kind: str, name: str) -> dict[str, Any]:
    """Return settings of a quick run in which the hyper-parameter should matter."""
    two = {"epochs": 2} if "epochs" in _names(method) else {}
    probe = method.card.probe
    found = probe.get(f"{name}/{kind}", probe.get(name, probe.get("", {})))
    return {**toy_settings(method, kind), **two, **dict(found)}


def _names(method: MethodType) -> set[str]:
    return {declared.name for declared in dataclasses.fields(method)}


def _probes(bounds: Bounds, default: object) -> list[object]:
    """Return values of a field that should all give different weights."""
    if bounds.kind == "choice":
        # "auto" and None stand for one of the others, so they may equal one of them
        others: list[object] = [o for o in bounds.options if o not in (default, "auto")]
        return others if default is None and len(others) > 1 else [default, *others]
    if bounds.kind == "flag":
        return [True, False]
    if bounds.kind == "interval":
        return [None, (-0.01, 0.01)]
    if bounds.kind == "positions":
        return [(), (0,)]
    if bounds.kind == "integer":
        low = max(int(bounds.low), 1)
        if default is None:
            return [low, low + 2]
        count = int(default) if isinstance(default, (int, float)) else low
        return [count, count + 2 if count + 2 <= bounds.high else count - 1]
    small = max(bounds.low, 1e-3)
    if default is None:
        return [None, small]
    start = float(default) if isinstance(default, (int, float)) else small
    other = start / 2 if start > 0 and start / 2 >= bounds.low else min(0.1, bounds.high)
    return [start, other]


def check_patch_round_trip(method: MethodType, kind: str) -> None:
    """10. The patch gives the same bits on a fresh original; undo gives the original back."""
    some, fresh = toy(kind), toy(kind)
    before = weights(some.model)
    result = request(short(method, kind), some.model).run(some.loader(), guard=None)
    after = weights(some.model)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "patch.safetensors"
        result.patch.save(file)
        Patch.load(file).apply(fresh.model)
    _require(not changed(after, weights(fresh.model)), "the patch gives other bits")
    result.undo()
    _require(not changed(before, weights(some.model)), "undo does not give the original")


def check_json_round_trip(method: MethodType, kind: str) -> None:
    """11. Method to JSON and back is the same method."""
    configured = quick(method, kind)
    again = from_json(json.loads(json.dumps(configured.to_json())))
    _require(again == configured, f"{again} is not {configured}")


def check_documented(method: MethodType, kind: str) -> None:  # noqa: ARG001
    """12. The docstring has formula, source and differences; every field says what it is."""
    text = method.__doc__ or ""
    for word in ("=", "Source:", "Differences:"):
        _require(word in text, f"the docstring of {method.card.slug} lacks {word!r}")
    _require(method.card.link.startswith("https://"), "the Card's link is not an address")
    for declared in dataclasses.fields(method):
        _require(len(bounds_of(declared).about) > 5, f"{declared.name} does not say what it is")


def check_order_does_not_matter(method: MethodType, kind: str) -> None:
    """14. Permuting D_f does not change what a closed-form edit of a class does."""
    if method.edit is Method.edit or "classes" not in method.card.goals:
        return
    outcomes = []
    for flipped in (False, True):
        some = toy(kind)
        data = _reordered(some) if flipped else some.train
        loader = DataLoader(data, batch_size=32)
        request(quick(method, kind, **_reproducible(method)), some.model, "classes").run(
            loader, guard=None
        )
        outcomes.append(weights(some.model))
    for name, value in outcomes[0].items():
        close = torch.allclose(value, outcomes[1][name], rtol=1e-4, atol=1e-5)
        _require(close, f"{method.card.slug}: {name} depends on the order of D_f")


def _reproducible(method: MethodType) -> dict[str, int | None]:
    """Return settings that draw nothing from the sets and amplify no rounding by iterating."""
    wanted: dict[str, int | None] = {
        "samples_per_class": 100000,
        "retain_samples": None,
        "iterations": 3,
    }
    return {name: value for name, value in wanted.items() if name in _names(method)}


def _reordered(some: Toy) -> TensorDataset:
    images, labels = some.train.tensors
    order = torch.arange(len(labels)).flip(0)
    return TensorDataset(images[order], labels[order])


def check_every_goal_and_preset(method: MethodType, kind: str) -> None:
    """15. Each goal that the Card names can be asked for, and each preset builds."""
    for name in method.card.presets:
        build(method.card.slug, {"preset": name})
    for goal in method.card.goals[1:]:
        some = toy(kind)
        request(short(method, kind), some.model, goal).run(some.loader(), guard=None)
        _require(
            all(bool(torch.isfinite(value).all()) for value in weights(some.model).values()),
            f"{method.card.slug} left weights that are not finite for the goal {goal}",
        )


def check_resumes(method: MethodType, kind: str) -> None:
    """16. A run that is interrupted between epochs goes on to the bits of one in one piece."""
    if not issubclass(method, Trained):
        return
    # small steps, so that no stop rule ends the run in its first epoch
    wanted = {"epochs": 3, "max_epochs": 3, "lr": 1e-4, "last_lr": 1e-4}
    chosen = quick(method, kind, **{n: v for n, v in wanted.items() if n in _names(method)})
    with tempfile.TemporaryDirectory() as folder:
        whole = toy(kind)
        with watched_saves() as moments:
            one = request(chosen, whole.model).resumable(folder).run(whole.loader())
        _require(len(moments) > 0, "no progress was written")
        middle = moments[len(moments) // 2]
        some = toy(kind)
        before = weights(some.model)
        asked = request(chosen, some.model).resumable(folder)
        try:
            with watched_saves(until=middle):
                asked.run(some.loader())
        except KeyboardInterrupt:
            _require(not changed(before, weights(some.model)), "an interrupted run left a trace")
        result = asked.run(some.loader())
        said = [note for note in result.notes if "went on after epoch" not in note]
        _require(len(said) < len(result.notes), "a run that was interrupted began anew")
        _require(
            said == one.notes, f"{method.card.slug} says other things in two parts than in one"
        )
        _require(not list(Path(folder).iterdir()), "a run that ended left its progress behind")
    slug = method.card.slug
    parted = changed(weights(whole.model), weights(some.model))
    _require(not parted, f"{slug} gave other bits in two parts than in one: {parted[:3]}")
    rows = [[{**row, "seconds": 0.0} for row in found.history] for found in (one, result)]
    _require(rows[0] == rows[1], f"{slug} has another history in two parts than in one")


CHECKS: dict[str, Check] = {
    "runs_in_two_types": check_runs_in_two_types,
    "same_seed": check_same_seed,
    "forgets": check_forgets,
    "no_trace": check_no_trace,
    "all_or_nothing": check_all_or_nothing,
    "needs_are_true": check_needs_are_true,
    "scope_is_true": check_scope_is_true,
    "frozen_stays": check_frozen_stays,
    "bounds": check_bounds,
    "no_dead_hyperparameter": check_no_dead_hyperparameter,
    "patch_round_trip": check_patch_round_trip,
    "json_round_trip": check_json_round_trip,
    "documented": check_documented,
    "order_does_not_matter": check_order_does_not_matter,
    "every_goal_and_preset": check_every_goal_and_preset,
    "resumes": check_resumes,
}


def check_method(method: MethodType) -> None:
    """Run the whole contract on a toy CNN and a toy ViT.

    Raises:
        AssertionError: a check failed; the message says which.
    """
    for kind in TOYS:
        for check in CHECKS.values():
            check(method, kind)
