"""The shape of a method, and the registry that finds one by name."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar

from torch import Generator, Tensor, nn
from typing_extensions import Self

from forgetkit import fields
from forgetkit.errors import BadHyperparameter, UnknownMethod
from forgetkit.types import Batch, SampleSet, Terms

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from forgetkit.engine.run import Run

GoalKind: TypeAlias = Literal["classes", "instances", "relabel", "depoison"]
Need: TypeAlias = Literal["forget", "retain"]
Scope: TypeAlias = Literal["head", "all"]
Steps: TypeAlias = Literal["forget", "retain", "both", "none"]
State: TypeAlias = Mapping[str, Tensor]
Settings: TypeAlias = Mapping[str, object]


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
        leaves: the largest accuracy on unseen samples of a forgotten class there that still counts
            as forgotten; more than 0.15 is for what cannot be told to forget a class for good.
        toy: hyper-parameters with which the method works on a toy problem of 240 images;
            ``validate=True`` among them gives every run validation samples.
        toy_vit: what differs from ``toy`` on the toy transformer.
        probe: settings under which a hyper-parameter makes a difference there, by its name (or by
            ``"name/vit"`` on the toy transformer); those under ``""`` hold for all not named.
            ``validate=True`` among them gives the run validation samples, ``classes=(2, 3)`` lets
            it forget several classes.
        aliases: further names under which ``using`` finds the method.
        presets: sets of hyper-parameters by name, for ``using(slug, preset=...)``: ``"paper"`` is
            what was published, ``"code"`` what the authors' code does.
        features: whether a method that edits the whole network reads features or the head.
        multilabel: whether 0/1 target vectors are accepted.
        rank: place in the order in which ``"auto"`` considers methods, by kind of goal, from 1; a
            goal that is not named is never chosen for.
        rehearse: makes what the method needs besides data (a training log, say) from a toy model,
            a loader and a folder, and returns the settings that name it; contract tests only.
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
    leaves: float = 0.15
    toy: Settings = dataclasses.field(default_factory=dict)
    toy_vit: Settings = dataclasses.field(default_factory=dict)
    probe: Mapping[str, Settings] = dataclasses.field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    presets: Mapping[str, Settings] = dataclasses.field(default_factory=dict)
    features: bool = False
    multilabel: bool = False
    rank: Mapping[GoalKind, int] = dataclasses.field(default_factory=dict)
    rehearse: Callable[[nn.Module, DataLoader[Any], str], Settings] | None = None


@dataclass(frozen=True)
class Pair:
    """What one step sees: a batch of D_f, a batch of D_r, or both, as the Card's ``steps`` says."""

    forget: Batch | None
    retain: Batch | None


@dataclass(frozen=True)
class Pass:
    """One pass of an epoch: which samples, in which order, with which step size.

    Args:
        steps: the set whose batches drive the pass; ``"both"`` pairs the two, reads one of them
            once and restarts the other.
        name: what ``run.phase`` says meanwhile.
        forget: read instead of D_f.
        retain: read instead of D_r.
        batch_size: samples a step of the driving set; default the method's.
        other_batch_size: samples a step of the set that is restarted; default ``batch_size``.
        once: which of two paired sets drives the pass; default the larger one.
        lr: step size; default ``method.lr``.
        fresh_optimizer: whether momentum and the like start anew.
        whole: one step for the whole pass, on the mean gradient over the driving set.
        shuffle: whether the samples come in random order.
        eps: epsilon of Adam during the pass.
        limit: largest number of steps.
    """

    steps: Steps
    name: str = ""
    forget: SampleSet | None = None
    retain: SampleSet | None = None
    batch_size: int | None = None
    other_batch_size: int | None = None
    once: Literal["forget", "retain"] | None = None
    lr: float | None = None
    fresh_optimizer: bool = False
    whole: bool = False
    shuffle: bool = True
    eps: float | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Seen:
    """What was measured at a check.

    Args:
        forget_accuracy: on D_f; for a relabel goal one minus the accuracy at the new labels. NaN
            between two epochs of a method that does not heed it.
        retain_accuracy: on the validation samples of retained classes, else on the watched ones;
            ``None`` when there are neither, or between two epochs.
        epoch_ended: whether an epoch has just ended.
    """

    forget_accuracy: float
    retain_accuracy: float | None
    epoch_ended: bool


@dataclass(frozen=True)
class Facts:
    """What a method may adapt its defaults to before a run.

    Args:
        goal: kind of the request.
        forget_size: samples in D_f.
        retain_size: samples in D_r, 0 when there is none.
        num_classes: width of the logits.
        transformer: whether the model contains attention but few or no convolutions.
    """

    goal: GoalKind
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
        """Check every hyper-parameter against its declared range; NumPy scalars become numbers.

        Raises:
            BadHyperparameter: a value is outside its range.
        """
        for declared in dataclasses.fields(self):
            value = fields.plain(getattr(self, declared.name))
            object.__setattr__(self, declared.name, value)  # the dataclass is frozen
            fields.check(self.card.slug, declared, value)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Sets that this configuration reads; a variant may need less than its Card says."""
        return self.card.needs

    @property
    def steps(self) -> Steps:
        """The set whose batches drive an epoch of this configuration."""
        return self.card.steps

    @property
    def dropout(self) -> bool:
        """Whether dropout is active in update passes of this configuration."""
        return self.card.dropout

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

    def movable(self, run: Run) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Return a 0/1 tensor for each parameter that may change only where it is 1."""
        return {}

    def trained(self, run: Run) -> Collection[str] | None:  # noqa: ARG002
        """Return the names of the parameters that training may move, or ``None`` for all.

        Normalisation layers without any of them keep their running statistics.
        """
        return None

    def begin(self, run: Run) -> None:
        """Change the weights once before training: gradients off, eval mode."""

    def extra(self, run: Run) -> State:  # noqa: ARG002
        """Return tensors that are trained along but belong to the run, not to the model."""
        return {}

    @property
    def extra_rate(self) -> float:
        """Step size of the extra tensors as a multiple of that of the weights."""
        return 1.0

    def passes(self, run: Run) -> Sequence[Pass]:  # noqa: ARG002
        """Return what the coming epoch consists of."""
        return (Pass(self.steps),)

    def rate(self, run: Run) -> float | None:  # noqa: ARG002
        """Return the step size of the coming pass, or ``None`` for that of the pass."""
        return None

    def gradients(self, run: Run) -> None:
        """Change ``p.grad`` of ``run.parameters`` in place before each step."""

    def passed(self, run: Run) -> str | None:  # noqa: ARG002
        """Return why the run should end after this pass, or ``None`` to go on."""
        return None

    def check_interval(self, run: Run) -> int | None:  # noqa: ARG002
        """Return the steps between two checks, or ``None`` to check at the end of epochs only."""
        interval: int | None = getattr(self, "check_every", None)
        return interval

    def checked(self, seen: Seen, run: Run) -> str | None:
        """Return why the run should end at this check, or ``None`` to go on."""
        if run.target is None or seen.forget_accuracy > run.target:
            return None
        return (
            f"forget accuracy {100 * seen.forget_accuracy:.2f} % reached its target of "
            f"{100 * run.target:.2f} % after {run.step} steps"
        )

    def finish(self, run: Run) -> bool | None:  # noqa: ARG002
        """Change the weights once after training: gradients off, eval mode.

        Returns:
            Whether the weights are now those that the method chose among its epochs. The guard
            keeps no other epoch then, nor where the weights changed here.
        """
        return None

    @property
    def trains(self) -> bool:
        """Whether the engine trains on ``loss`` (else it calls ``edit`` once)."""
        return type(self).loss is not Method.loss

    def hyperparameters(self) -> dict[str, Any]:
        """Return the hyper-parameters by name, ready for JSON."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}

    def to_json(self) -> dict[str, Any]:
        """Return a record that ``from_json`` turns back into an equal method."""
        return {"method": self.card.slug, **self.hyperparameters()}


def _plain(value: object) -> object:
    """Return what JSON can hold."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, PurePath) else value


M = TypeVar("M", bound=type[Method])
_registered: dict[str, type[Method]] = {}
_aliases: dict[str, str] = {}
_walked = False


def register(method: M) -> M:
    """Make a method available by its slug. Use it as the outermost class decorator.

    Raises:
        BadHyperparameter: the class overrides both or neither of ``loss`` and ``edit``, has no
            Card, a field without a range, or ``loss`` without being ``Trained``; or its slug is
            taken.
    """
    if not isinstance(method, type):
        raise BadHyperparameter(
            f"register({method!r}): expected a class derived from forgetkit.Method, found "
            f"{type(method).__name__}; use it as the outermost decorator of the class"
        )
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
    undeclared = [f.name for f in dataclasses.fields(method) if not fields.is_declared(f)]
    if undeclared:
        raise BadHyperparameter(
            f"register({method.__name__}): expected fields declared with a range, found "
            f"{undeclared[0]}; write `{undeclared[0]}: float = bounded(...)`, or choice, flag, "
            "interval or artefact of forgetkit.fields"
        )
    if trains and not hasattr(method, "epochs"):
        raise BadHyperparameter(
            f"register({method.__name__}): expected a method with loss() to be a Trained one, "
            f"found none; derive it from forgetkit.Trained, or forgetkit.recipe.FullNetwork"
        )
    known = _registered.get(card.slug)
    if known is not None and known.__qualname__ != method.__qualname__:
        raise BadHyperparameter(
            f"register({method.__name__}): the slug {card.slug!r} already names "
            f"{known.__module__}.{known.__qualname__}; choose another one"
        )
    _registered[card.slug] = method
    for alias in card.aliases:
        _aliases[alias] = card.slug
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
    slug = _aliases.get(slug, slug)
    if slug not in registry:
        near = difflib.get_close_matches(str(slug), [*registry, *_aliases], n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        if slug == "auto":
            hint = "'auto' chooses when one request is run, and cannot be compared or searched; "
        raise UnknownMethod(
            f"using({slug!r}): expected the name of a registered method, found none of that name; "
            f"{hint}choose one of {', '.join(sorted(registry))}"
        )
    return registry[slug]


def build(slug: str, hyperparameters: Mapping[str, Any]) -> Method:
    """Build a method by name with hyper-parameters checked.

    Args:
        slug: registered name or alias.
        hyperparameters: by name; ``preset`` names a set of the Card's presets, which the others
            override.

    Raises:
        UnknownMethod: no method has this name.
        BadHyperparameter: a name is unknown or a value is outside its range.
    """
    method = find(slug)
    hyperparameters = _with_preset(method.card, hyperparameters)
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


def _with_preset(card: Card, hyperparameters: Mapping[str, Any]) -> Mapping[str, Any]:
    if "preset" not in hyperparameters:
        return hyperparameters
    given = dict(hyperparameters)
    name = given.pop("preset")
    if not isinstance(name, str) or name not in card.presets:
        raise BadHyperparameter(
            f"{card.slug}: expected preset to be one of {', '.join(card.presets) or 'none'}, found "
            f"{name!r}; leave it out for the library's defaults"
        )
    return {**card.presets[name], **given}


def _frozen(value: object) -> object:
    """Return what JSON made a list as the tuple that it was."""
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


def from_json(record: Mapping[str, Any]) -> Method:
    """Build the method that ``Method.to_json`` described."""
    rest = {name: _frozen(value) for name, value in record.items() if name != "method"}
    return build(str(record["method"]), rest)
