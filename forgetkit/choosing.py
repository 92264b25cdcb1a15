"""``using("auto")``: which registered method fits the request, and why."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from forgetkit.errors import BadHyperparameter, BadTarget
from forgetkit.fields import bounds_of
from forgetkit.method import Facts, GoalKind, Method, all_methods
from forgetkit.recipe import Trained

USUAL_EPOCHS = 10
"""Epochs that a method counts for when it names none."""
UNKNOWN_TRAINING_SET = 50_000
"""Training samples that are assumed when only the samples to forget are at hand."""


@dataclass(frozen=True)
class Situation:
    """What ``"auto"`` chooses by.

    Args:
        facts: goal, sizes of the sets, number of classes.
        multilabel: whether labels are 0/1 vectors.
        at_hand: files made earlier, by the name of the setting that takes them.
        seconds: how long the run may take, or ``None`` for no limit.
        sample_seconds: a forward and backward pass of the model over one sample, or ``None`` when
            no limit is set.
        head_fixed: why the head of this model cannot be edited, or ``None``.
    """

    facts: Facts
    multilabel: bool = False
    at_hand: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    sample_seconds: float | None = None
    head_fixed: str | None = None

    @property
    def has_retain(self) -> bool:
        """Whether samples to keep are at hand."""
        return self.facts.retain_size > 0


def artefacts(method: type[Method]) -> list[str]:
    """Return the settings of a method that take a file made before the request."""
    return [f.name for f in dataclasses.fields(method) if bounds_of(f).kind == "artefact"]


def known_artefacts() -> set[str]:
    """Return every setting of a registered method that takes a file made earlier."""
    return {name for method in all_methods() for name in artefacts(method)}


def stands_in(method: type[Method], name: str) -> bool:
    """Return whether a file replaces samples that the method needs without it."""
    return set(method(**{name: name}).needs) < set(method().needs)


def wants(method: type[Method]) -> list[str]:
    """Return in words what a method needs: sets, files, and files that stand in for a set."""
    files = []
    for name in artefacts(method):
        file = f"{name.removesuffix('_file')} file"
        files.append(f"{file} instead of retain" if stands_in(method, name) else file)
    return [*method.card.needs, *files]


def fits(
    method: type[Method], kind: GoalKind, *, has_retain: bool, at_hand: Iterable[str] = ()
) -> bool:
    """Return whether a method serves a goal with the data at hand.

    A file at hand may stand in for the retained samples, as saved statistics do; other files that
    a method takes have to be there.
    """
    names, there = artefacts(method), set(at_hand)
    given = {name: name for name in names if name in there}
    if any(name not in there and not stands_in(method, name) for name in names):
        return False
    return kind in method.card.goals and (has_retain or "retain" not in method(**given).needs)


def choose(situation: Situation) -> tuple[Method, str]:
    """Return the method for a situation and one sentence that says why.

    Of the methods that fit goal and data, the Card's rank decides. One that takes a file made
    earlier is considered only with that file, an attack only while it costs less than an epoch of
    training, an edit of the head only where that can be edited, and with a time limit only what is
    estimated to keep it, else the fastest.

    Raises:
        BadTarget: no registered method fits.
        BadHyperparameter: a file at hand is for methods that are never chosen for this goal.
    """
    kind = situation.facts.goal
    _refuse_idle(situation)
    candidates = [
        _configured(method, situation) for method in _ranked(kind) if _possible(method, situation)
    ]
    if not candidates:
        have = "samples to keep" if situation.has_retain else "the samples to forget alone"
        have += " and several labels a sample" if situation.multilabel else ""
        able = ", ".join(method.card.slug for method in all_methods() if _serves(method, situation))
        advice = f"name one of {able or f'the methods of `forgetkit methods --for {kind}`'}"
        more = "" if situation.has_retain else "pass samples to keep with .retain(loader), or "
        raise BadTarget(
            f'using("auto"): expected a goal that a ranked method serves, found {kind} with '
            f"{have}; {more}{advice}"
        )
    chosen, limit = candidates[0], ""
    if situation.seconds is not None and situation.sample_seconds is not None:
        chosen, limit = _in_time(candidates, situation, situation.seconds, situation.sample_seconds)
    return chosen, _why(chosen, situation) + limit


def _refuse_idle(situation: Situation) -> None:
    """Raise when a file is for none of the methods that may be chosen."""
    kind = situation.facts.goal
    taken = sorted({name for method in _ranked(kind) for name in artefacts(method)})
    for name in situation.at_hand:
        if name not in taken:
            able = [method.card for method in all_methods() if name in artefacts(method)]
            serving = [card.slug for card in able if kind in card.goals]
            advice = f"name {' or '.join(serving)} to use it" if serving else "leave it out"
            raise BadHyperparameter(
                f"using('auto', {name}=...): expected a file for a method that auto may choose for "
                f"{kind} ({', '.join(f'{other}=' for other in taken) or 'none takes one'}), found "
                f"{name}=, which is for {', '.join(card.slug for card in able)}; {advice}"
            )


def _in_time(
    candidates: list[Method], situation: Situation, allowed: float, each: float
) -> tuple[Method, str]:
    """Return the first candidate that is estimated to keep the limit, else the fastest."""
    needed = [effort(method, situation.facts) * each for method in candidates]
    kept = [number for number, seconds in enumerate(needed) if seconds <= allowed]
    best = kept[0] if kept else needed.index(min(needed))
    found = f"at most about {needed[best]:.2g} s"
    said = (
        f"; {found} here, within the {allowed:g} s allowed"
        if kept
        else f"; nothing that fits keeps the {allowed:g} s allowed, this one is fastest ({found})"
    )
    return candidates[best], said


def effort(method: Method, facts: Facts) -> float:
    """Return about how many forward and backward passes over one sample a run makes at most.

    A run that may end by a rule counts for all its epochs, each with a look at D_f, an edit of the
    head or a closed form for one pass over the sets that it reads (a forward pass is a third).
    """
    method = method.tuned(facts)
    sizes = {"forget": facts.forget_size, "retain": facts.retain_size}
    read = float(sum(sizes[need] for need in method.needs))
    if method.card.edits == "head":
        return read / 3
    if not isinstance(method, Trained):
        return read
    driving = {
        "forget": facts.forget_size,
        "retain": facts.retain_size,
        "both": 2 * max(facts.forget_size, facts.retain_size),
        "none": 0,
    }[method.steps]
    look = facts.forget_size / 3
    epoch = driving * (1 + method.further_forwards / 3) + look
    further = method.further_passes(facts) + _attack(method, facts)
    return (method.epochs or USUAL_EPOCHS) * epoch + further


def _attack(method: Method, facts: Facts) -> float:
    """Return the passes that making adversarial images takes: N_f N_adv n, or 0."""
    if not _attacks(type(method)):
        return 0.0
    settings = method.tuned(facts).hyperparameters()
    return float(facts.forget_size * settings["adversaries"] * settings["attack_steps"])


def _attacks(method: type[Method]) -> bool:
    names = {declared.name for declared in dataclasses.fields(method)}
    return {"adversaries", "attack_steps"} <= names


def _ranked(kind: GoalKind) -> list[type[Method]]:
    ranked = [method for method in all_methods() if kind in method.card.rank]
    return sorted(ranked, key=lambda method: method.card.rank[kind])


def _serves(method: type[Method], situation: Situation) -> bool:
    """Return whether a method fits goal, labels and data, ranked or not."""
    if situation.multilabel and not method.card.multilabel:
        return False
    kind, files = situation.facts.goal, situation.at_hand
    return fits(method, kind, has_retain=situation.has_retain, at_hand=files)


def _possible(method: type[Method], situation: Situation) -> bool:
    facts = situation.facts
    if any(name not in situation.at_hand for name in artefacts(method)):
        return False
    if not _serves(method, situation):
        return False
    if method.card.edits == "head" and situation.head_fixed is not None:
        return False
    return not _attacks(method) or _attack(method(), facts) <= _training_set(situation)


def _training_set(situation: Situation) -> int:
    """Return the number of training samples, assumed when only D_f is at hand."""
    if not situation.has_retain:
        return UNKNOWN_TRAINING_SET
    return situation.facts.forget_size + situation.facts.retain_size


def _configured(method: type[Method], situation: Situation) -> Method:
    return method(**{name: situation.at_hand[name] for name in artefacts(method)})


def _why(method: Method, situation: Situation) -> str:
    card = method.card
    wanted = [*method.needs, *(f"the file for {name}=" for name in artefacts(type(method)))]
    attack = _attack(method, situation.facts)
    extra = ""
    if attack > 0:
        assumed = "" if situation.has_retain else " (assumed)"
        extra = (
            f"; its attack takes {attack:.0f} passes, at most one over each of the "
            f"{_training_set(situation)} training samples{assumed}"
        )
    idle = [name for name in situation.at_hand if name not in artefacts(type(method))]
    if idle:
        extra += f"; it does not use {', '.join(f'{name}=' for name in idle)}"
    if situation.head_fixed is not None:
        extra += f"; methods that edit the head were passed over: {situation.head_fixed}"
    return (
        f"auto chose {card.slug}: the goal is {situation.facts.goal}, what it needs is at hand "
        f"({', '.join(wanted)}), and it costs {card.cost}{extra}"
    )


def check_at_hand(given: Mapping[str, object]) -> dict[str, str]:
    """Return the files that ``using("auto", ...)`` was given.

    Raises:
        BadHyperparameter: no method takes a file under this name, or it is no path.
    """
    known = sorted(known_artefacts())
    for name, path in given.items():
        if name not in known or not isinstance(path, (str, os.PathLike)) or not str(path):
            raise BadHyperparameter(
                f"using('auto', {name}={path!r}): expected seconds= or the path of a file made "
                f"earlier ({', '.join(f'{other}=' for other in known)}), found {name}={path!r}; "
                "name a method to set its hyper-parameters"
            )
    return {name: str(path) for name, path in given.items()}
