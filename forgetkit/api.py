"""The sentence: ``forget(model).classes([3]).using("lau").run(loader)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from forgetkit.errors import BadHyperparameter, BadTarget, ModelError
from forgetkit.fields import plain
from forgetkit.goal import Classes, Depoison, Goal, Instances, Relabel
from forgetkit.method import Method, build

if TYPE_CHECKING:
    from accelerate import Accelerator

    from forgetkit.data.loaders import Loader
    from forgetkit.engine.guard import Guard
    from forgetkit.result import Result


@dataclass(frozen=True)
class Request:
    """A frozen description of what to forget, how, and with what data.

    Every step returns a new request, so a half-built one can be kept and reused. Nothing is read
    and nothing changes before ``run``.
    """

    model: nn.Module
    goal: Goal | None = None
    method: Method | str | None = None
    retain_loader: Loader | None = None
    validation_loader: Loader | None = None
    device: torch.device | str | None = None
    mixed_precision: str | None = None
    accelerator: Accelerator | None = None
    accumulate: int = 1
    head_name: str | Sequence[str] | None = None
    output: str | int | Callable[[object], Tensor] | None = None
    initial: Mapping[str, Tensor] | Callable[[], nn.Module] | None = None
    random_seed: int = 0
    seconds_allowed: float | None = None
    at_hand: Mapping[str, str] = field(default_factory=dict)
    progress_folder: Path | None = None
    progress_every: int = 1

    def classes(self, classes: Sequence[int | str]) -> Request:
        """Forget every sample of these classes, given as indices or names.

        Raises:
            BadTarget: empty, duplicate, negative, or a single string instead of a list.
        """
        return self._aimed(Classes(_as_tuple(classes, "classes")))

    def instances(self, positions: Sequence[int] | None = None) -> Request:
        """Forget these positions in ``loader.dataset``, or everything in the loader.

        Raises:
            BadTarget: empty, duplicate or negative.
        """
        return self._aimed(
            Instances(None if positions is None else _as_tuple(positions, "instances"))
        )

    def relabel(self, labels: Mapping[int, int] | Sequence[int]) -> Request:
        """Correct these samples instead of losing them.

        Args:
            labels: new label by position in ``loader.dataset``, or one for each sample in it.

        Raises:
            BadTarget: empty, or a label or position is not a non-negative integer.
        """
        return self._aimed(Relabel(labels))

    def depoison(self, positions: Sequence[int] | None = None) -> Request:
        """Undo the effect of samples that carried wrong labels, the right ones being unknown.

        Without positions, everything in the loader is meant.

        Raises:
            BadTarget: empty, duplicate or negative.
        """
        return self._aimed(
            Depoison(None if positions is None else _as_tuple(positions, "depoison"))
        )

    def using(self, method: str | Method, **hyperparameters: Any) -> Request:  # noqa: ANN401
        """Choose a method by name with hyper-parameters, or pass a ``Method`` object.

        Args:
            method: a registered name, ``"auto"``, or an object.
            **hyperparameters: fields of that method; for ``"auto"`` the ``seconds`` allowed and
                files made earlier, such as ``statistics`` or the training ``log``.

        Raises:
            UnknownMethod: no method has this name.
            BadHyperparameter: a name is unknown or a value is out of range.
        """
        if isinstance(method, Method):
            if hyperparameters:
                raise BadHyperparameter(
                    f"using({method!r}, {', '.join(hyperparameters)}): expected no "
                    "hyper-parameters beside a Method object, found some; set them on the object"
                )
            return replace(self, method=method)
        if method == "auto":
            from forgetkit.choosing import check_at_hand

            allowed = hyperparameters.pop("seconds", None)
            if allowed is not None and not _positive(allowed):
                raise BadHyperparameter(
                    f"using('auto', seconds={allowed!r}): expected a positive number, found "
                    f"{allowed!r}; leave it out for no limit"
                )
            at_hand = check_at_hand(hyperparameters)
            return replace(self, method="auto", seconds_allowed=allowed, at_hand=at_hand)
        return replace(self, method=build(method, hyperparameters))

    def retain(self, loader: Loader) -> Request:
        """Name the data to keep, when the main loader does not hold it."""
        return replace(self, retain_loader=loader)

    def validate(self, loader: Loader) -> Request:
        """Name data to measure and stop on; nothing trains on it."""
        return replace(self, validation_loader=loader)

    def on(
        self,
        device: torch.device | str | None = None,
        *,
        mixed_precision: str | None = None,
        accelerator: Accelerator | None = None,
        accumulate: int | None = None,
    ) -> Request:
        """Say where and how to compute; the default is a CUDA device, else the CPU.

        What is left out stays as an earlier call has set it.

        Args:
            device: where the run computes; the model returns to its own device afterwards.
            mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``.
            accelerator: an existing ``accelerate.Accelerator`` to take all of it from.
            accumulate: parts that each batch is cut into; the gradient is that of the whole, but
                for what is computed across samples (batch statistics, comparisons), of which a note
                of the result tells. 1 by default.

        Raises:
            BadHyperparameter: ``accumulate`` is not a positive integer, or ``accelerator`` is none.
        """
        parts = self.accumulate if accumulate is None else plain(accumulate)
        if not isinstance(parts, int) or isinstance(parts, bool) or parts < 1:
            raise BadHyperparameter(
                f"on(accumulate={accumulate!r}): expected a positive integer, found "
                f"{accumulate!r}; 1 computes each batch whole"
            )
        if accelerator is not None and not hasattr(accelerator, "mixed_precision"):
            raise BadHyperparameter(
                f"on(accelerator={accelerator!r}): expected an accelerate.Accelerator, found "
                f"{type(accelerator).__name__}; leave it out to compute as Accelerate launched"
            )
        return replace(
            self,
            device=self.device if device is None else device,
            mixed_precision=self.mixed_precision if mixed_precision is None else mixed_precision,
            accelerator=self.accelerator if accelerator is None else accelerator,
            accumulate=parts,
        )

    def head(
        self,
        name: str | Sequence[str] | None = None,
        *,
        output: str | int | Callable[[object], Tensor] | None = None,
    ) -> Request:
        """Name the head when detection must be overruled, and where the logits are.

        What is left out stays as an earlier call has set it.

        Args:
            name: dotted path of the head, or several; by default detection finds it.
            output: key, index or function that leads to the logits, where the model returns
                several tensors that could be.

        Raises:
            BadHyperparameter: ``name`` is no path of a module, nor several of them, or neither is
                given.
        """
        if name is None and output is None:
            raise BadHyperparameter(
                "head(): expected the dotted path of the head, output=, or both, found neither; "
                'for instance .head("fc") or .head(output="logits")'
            )
        listed: object = [] if name is None else [name] if isinstance(name, str) else name
        if not isinstance(listed, Sequence) or not all(isinstance(one, str) for one in listed):
            raise BadHyperparameter(
                f"head({type(name).__name__}): expected the dotted path of a module, or several, "
                f"as model.named_modules() gives them, found {type(name).__name__}; for instance "
                '"fc"'
            )
        return replace(
            self,
            head_name=self.head_name if name is None else name,
            output=self.output if output is None else output,
        )

    def fresh(self, initial: Mapping[str, Tensor] | nn.Module | Callable[[], nn.Module]) -> Request:
        """Give the untrained weights to methods that start from them or compare with them.

        Without this step each layer's own initialiser draws them, as far as it has one.

        Args:
            initial: a state dict, an untrained model, or a function that builds one.
        """
        if isinstance(initial, nn.Module):
            initial = {name: t.detach().clone() for name, t in initial.state_dict().items()}
        return replace(self, initial=initial)

    def seed(self, seed: int) -> Request:
        """Fix every random choice; the caller's random state is put back after the run.

        Raises:
            BadHyperparameter: not an integer from 0 to 2^32 - 1.
        """
        number = plain(seed)
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**32:
            raise BadHyperparameter(
                f"seed({seed!r}): expected an integer from 0 to 2^32 - 1, found {seed!r}; "
                "any such number will do"
            )
        return replace(self, random_seed=number)

    def resumable(self, folder: str | Path, *, every: int = 1) -> Request:
        """Keep the run's progress in a folder, so that a run that was interrupted can go on.

        Run the same request again, on the same model and data: it goes on after the last epoch that
        was written, and ends with the weights of a run in one piece (where workers augment at
        random, or a data set draws from a generator of its own, of a run with other draws). Another
        request, model or loader begins anew. The files hold the weights and what the method keeps
        of the forget set, for some its images; they are removed when the run has ended. A write
        that fails is a note of the result. Closed-form edits have no progress to keep.

        Args:
            folder: made where there is none.
            every: epochs between two writes; what precedes the first epoch is always written.

        Raises:
            BadHyperparameter: ``folder`` is no path, or ``every`` not a positive integer.
        """
        number = plain(every)
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise BadHyperparameter(
                f"resumable(every={every!r}): expected a positive integer, found {every!r}; 1 "
                "writes after each epoch"
            )
        if not isinstance(folder, (str, Path)):
            raise BadHyperparameter(
                f"resumable({folder!r}): expected the path of a folder, found "
                f'{type(folder).__name__}; for instance .resumable("progress")'
            )
        return replace(self, progress_folder=Path(folder), progress_every=number)

    def run(self, loader: Loader, *, guard: Guard | str | None = "default") -> Result:
        """Do it, in place.

        Args:
            loader: any iterable of batches; with ``classes`` it may hold the whole training set.
            guard: what the run may cost; ``None`` turns the guard off.

        Returns:
            The result; its ``model`` is the object that came in.

        Raises:
            BadHyperparameter: the guard is something else.
            ForgetkitError: bad input, or a run that broke; the model is as it was, unless the
                message says that weights outside of the head were written to.
        """
        from forgetkit.engine.execution import execute
        from forgetkit.engine.guard import Guard

        if self.goal is None:
            raise BadTarget(
                "run(): expected what to forget, found no goal; call .classes(), .instances(), "
                ".relabel() or .depoison() first"
            )
        if self.method is None:
            raise BadHyperparameter(
                'run(): expected a method, found none; call .using("auto") or name one first'
            )
        if isinstance(guard, str):
            if guard != "default":
                raise BadHyperparameter(
                    f"run(guard={guard!r}): expected a Guard or None, found {guard!r}; leave it "
                    "out for the default guard"
                )
            guard = Guard()
        if guard is not None and not isinstance(guard, Guard):
            raise BadHyperparameter(
                f"run(guard={guard!r}): expected a Guard or None, found {type(guard).__name__}; "
                "write guard=Guard(budget=0.02) for a loss of two points, guard=None for no guard"
            )
        return execute(self, loader, guard)

    def _aimed(self, goal: Goal) -> Request:
        if self.goal is not None:
            raise BadTarget(
                f"{goal.kind}: expected one goal for a request, found {self.goal.kind} already "
                "there; start a second request with forget(model)"
            )
        return replace(self, goal=goal)


def forget(model: nn.Module | str | Path) -> Request:
    """Start a request to make a model forget something.

    Args:
        model: a module, or where to load one from: a local transformers or timm folder,
            ``torchvision/<name>``, or ``package.module:factory``.

    Raises:
        ModelError: not a module and nothing that can be loaded.
    """
    if isinstance(model, (str, Path)):
        from forgetkit.loading import load_model

        model = load_model(model)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"forget({type(model).__name__}): expected a torch.nn.Module or a string that names "
            f"one, found {type(model).__name__}; pass the model itself"
        )
    return Request(model)


def _as_tuple(values: object, step: str) -> tuple[Any, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise BadTarget(
            f"{step}({values!r}): expected a list, found {type(values).__name__}; "
            f"write {step}([{values!r}])"
        )
    if isinstance(values, Tensor):
        return tuple(values.flatten().tolist())
    return tuple(value.item() if hasattr(value, "item") else value for value in values)


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
