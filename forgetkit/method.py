"""The shape of a method, and the registry that finds one by name."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar

from torch import Generator, Tensor
from typing_extensions import Self

from forgetkit import fields
from forgetkit.errors import BadHyperparameter, UnknownMethod
from forgetkit.types import Batch, Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run

GoalKind: TypeAlias = Literal["classes", "instances", "relabel", "depoison"]
Need: TypeAlias = Literal["forget", "retain"]
Scope: TypeAlias = Literal["head", "all"]
Steps: TypeAlias = Literal["forget", "retain", "both", "none"]
State: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Card:
    """What a method is, for the engine, the tests, the command line and the docs alike.

    Args:
        slug: registered name, lower case with underscores.
        title: the method's name in the literature.
        goals: kinds of request that it serves.
        needs: sets that it reads.
        edits: ``"head"`` (all other tensors stay bit-identical) or ``"all"``.
        steps: the set whose batches drive an epoch; ``"both"`` pairs them and restarts the
            shorter one (rule R2); ``"none"`` for a closed-form edit.
        cost: in words; F is a forward, FB a forward and backward over one sample.
        source: authors, year, venue.
        link: where to read it.
        about: one sentence: the idea.
        fresh: whether the run starts from untrained weights.
        dropout: whether dropout and stochastic depth are active in update passes.
        masks_head: whether output rows are zeroed or biased away, so that the forget accuracy is 0
            by construction.
        keeps: the largest loss of retain accuracy on an easy problem that still counts as
            working, as a fraction; the contract tests check it.
        toy: hyper-parameters with which the method works on a toy problem of 240 images.
        probe: settings under which a hyper-parameter makes a difference there, by its name; those
            under ``""`` hold for all that are not named.
    """

    slug: str
    title: str
    goals: tuple[GoalKind, ...]
    needs: tuple[Need, ...]
    edits: Scope
    steps: Steps
    cost: str
    source: str
    link: str
    about: str
    fresh: bool = False
    dropout: bool = False
    masks_head: bool = False
    keeps: float = 0.10
    toy: Mapping[str, object] = dataclasses.field(default_factory=dict)
    probe: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """What one step sees: a batch of D_f, a batch of D_r, or both, as the Card's ``steps`` says."""

    forget: Batch | None
    retain: Batch | None


@dataclass(frozen=True)
class Facts:
    """What a method may adapt its defaults to before a run.

    Args:
        forget_size: samples in D_f.
        retain_size: samples in D_r, 0 when there is none.
        num_classes: width of the logits.
        transformer: whether the model contains attention but few or no convolutions.
    """

    forget_size: int
    retain_size: int
    num_classes: int
    transformer: bool


@dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters of one unlearning method, and its mathematics.

    A method overrides exactly one of ``loss`` (the engine trains) and ``edit`` (called once,
    gradients off). The dataclass is frozen; whatever is computed lives in ``run.state``.
    """

    card: ClassVar[Card]

    def __post_init__(self) -> None:
        """Check every hyper-parameter against its declared range.

        Raises:
            BadHyperparameter: a value is outside its range.
        """
        for declared in dataclasses.fields(self):
            fields.check(self.card.slug, declared, getattr(self, declared.name))

    @property
    def needs(self) -> tuple[Need, ...]:
        """Sets that this configuration reads; a variant may need less than its Card says."""
        return self.card.needs

    @property
    def steps(self) -> Steps:
        """The set whose batches drive an epoch of this configuration."""
        return self.card.steps

    def tuned(self, facts: Facts) -> Self:  # noqa: ARG002  most methods have nothing to adapt
        """Return the method with defaults that depend on the model or the data filled in."""
        return self

    def choose(self, labels: Tensor, generator: Generator) -> Tensor | None:  # noqa: ARG002
        """Return the rows of D_f to work on, or ``None`` for all of them."""
        return None

    def setup(self, run: Run) -> State:  # noqa: ARG002
        """Compute what stays fixed during the run."""
        return {}

    def start_epoch(self, run: Run) -> State | None:  # noqa: ARG002
        """Return what replaces ``run.state`` for this epoch, or ``None`` to keep it."""
        return None

    def loss(self, batch: Pair, run: Run) -> Terms:  # noqa: ARG002
        """Return the loss terms of one step; their sum is minimised."""
        raise TypeError(f"{self.card.slug} does not train; the engine calls its edit()")

    def edit(self, run: Run) -> None:  # noqa: ARG002
        """Change the weights once, in place, with gradients off."""
        raise TypeError(f"{self.card.slug} does not edit; the engine trains on its loss()")

    def mask(self, run: Run) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Return a 0/1 tensor for each parameter that may change only where the mask is 1."""
        return {}

    @property
    def trains(self) -> bool:
        """Whether the engine trains on ``loss`` (else it calls ``edit`` once)."""
        return type(self).loss is not Method.loss

    def hyperparameters(self) -> dict[str, Any]:
        """Return the hyper-parameters by name, ready for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return a record that ``from_json`` turns back into an equal method."""
        return {"method": self.card.slug, **self.hyperparameters()}


M = TypeVar("M", bound=type[Method])
_registered: dict[str, type[Method]] = {}
_walked = False


def register(method: M) -> M:
    """Make a method available by its slug. Use it as the outermost class decorator.

    Raises:
        BadHyperparameter: the class overrides both or neither of ``loss`` and ``edit``, has no
            Card, or its slug is taken.
    """
    card = getattr(method, "card", None)
    if not isinstance(card, Card):
        raise BadHyperparameter(
            f"register({method.__name__}): expected a class attribute card of type Card, found "
            f"{card!r}; declare `card: ClassVar[Card] = Card(...)`"
        )
    trains, edits = method.loss is not Method.loss, method.edit is not Method.edit
    if trains == edits:
        raise BadHyperparameter(
            f"register({method.__name__}): expected exactly one of loss() and edit(), found "
            f"{'both' if trains else 'neither'}; override loss() to train, edit() to change once"
        )
    known = _registered.get(card.slug)
    if known is not None and known.__qualname__ != method.__qualname__:
        raise BadHyperparameter(
            f"register({method.__name__}): the slug {card.slug!r} already names "
            f"{known.__module__}.{known.__qualname__}; choose another one"
        )
    _registered[card.slug] = method
    return method


def _registry() -> dict[str, type[Method]]:
    global _walked
    if not _walked:
        package = importlib.import_module("forgetkit.methods")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        _walked = True
    return _registered


def all_methods() -> list[type[Method]]:
    """Return every registered method class, ordered by slug."""
    return [method for _, method in sorted(_registry().items())]


def all_cards() -> list[Card]:
    """Return the Card of every registered method, ordered by slug."""
    return [method.card for method in all_methods()]


def find(slug: str) -> type[Method]:
    """Return the method class with this name.

    Raises:
        UnknownMethod: there is none; the message has the nearest names and the full list.
    """
    registry = _registry()
    if slug not in registry:
        near = difflib.get_close_matches(str(slug), registry, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise UnknownMethod(
            f"using({slug!r}): expected the name of a registered method, found none of that name; "
            f"{hint}choose one of {', '.join(sorted(registry))}"
        )
    return registry[slug]


def build(slug: str, hyperparameters: Mapping[str, Any]) -> Method:
    """Build a method by name with hyper-parameters checked.

    Raises:
        UnknownMethod: no method has this name.
        BadHyperparameter: a name is unknown or a value is outside its range.
    """
    method = find(slug)
    known = {declared.name for declared in dataclasses.fields(method)}
    for name in hyperparameters:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise BadHyperparameter(
                f"{slug}: {name} is not one of its hyper-parameters; {hint}"
                f"it has {', '.join(sorted(known)) or 'none'}"
            )
    return method(**hyperparameters)


def from_json(record: Mapping[str, Any]) -> Method:
    """Build the method that ``Method.to_json`` described."""
    rest = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in record.items()
        if name != "method"
    }
    return build(str(record["method"]), rest)
