"""What a run did: accuracies before and after, history, the patch, undo and save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from forgetkit.engine.measuring import SetAccuracy
from forgetkit.engine.session import write_back
from forgetkit.errors import PatchMismatch
from forgetkit.goal import Goal
from forgetkit.losses import unlearning_score
from forgetkit.method import Method

if TYPE_CHECKING:
    import torch
    from rich.table import Table
    from torch import Tensor

    from forgetkit.auditing.record import Audit
    from forgetkit.data.loaders import Loader
    from forgetkit.dryrun.outputs import OutputChoice
    from forgetkit.metric import Metric
    from forgetkit.patch import Patch

LIMITS = (
    "A head-only edit hides a class: the features still hold it. No run is a proof of deletion; "
    "only what the tables show was measured."
)
SETS = {
    "forget": "forget set",
    "new_labels": "forget set, new labels",
    "retain": "retain set (watched slice)",
    "validation_retain": "validation, retained",
    "validation_forget": "validation, forgotten",
}


@dataclass
class Result:
    """The outcome of one run.

    Attributes:
        model: the user's model object, edited in place.
        method: the method as it ran, defaults filled in.
        goal: what was asked for.
        forget_classes: forgotten class indices, empty unless classes were asked for.
        before: accuracy by set name before the run; fractions.
        after: the same after it.
        history: one record an epoch: losses, seconds of training, ``bn_train`` (1 where running
            statistics moved), then the forget accuracy and the watched retain accuracy.
        seconds: wall time by phase; the looks at accuracies during training are ``check``, not
            ``train``.
        stopped_because: one sentence.
        rolled_back: whether the guard put the original weights back.
        seed: the request's seed.
        patch: the edit, to save, to apply to a copy or to revert.
        why: why ``"auto"`` chose this method, or ``None``.
        class_names: names by class index, or ``None``.
        samples: size of each set that the run worked on.
        notes: what the method had to say: choices it made, what it could not do.
        head: dotted path(s) of the head that the request named, or ``None``.
        output: where the request said that the logits are, or ``None``.
        unsaved: former values of the non-persistent buffers that the run changed; ``undo`` writes
            them back, and no patch holds them.
    """

    model: nn.Module
    method: Method
    goal: Goal
    forget_classes: tuple[int, ...]
    before: Mapping[str, SetAccuracy]
    after: Mapping[str, SetAccuracy]
    history: list[dict[str, float]]
    seconds: Mapping[str, float]
    stopped_because: str
    rolled_back: bool
    seed: int
    patch: Patch
    why: str | None = None
    class_names: list[str] | None = None
    samples: Mapping[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    head: str | Sequence[str] | None = None
    output: OutputChoice = None
    unsaved: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def us(self) -> float | None:
        """Unlearning score from validation data, else from the sets at hand, else ``None``.

        It is ``None`` for goals other than classes, where it means nothing.
        """
        return self._score(self.after)

    @property
    def head_masked(self) -> bool:
        """Whether the forget accuracy is 0 by construction, because output rows were masked."""
        return self.method.card.masks_head and not self.rolled_back

    @property
    def us_before(self) -> float | None:
        """The same score of the model as it came in."""
        return self._score(self.before)

    def _score(self, measured: Mapping[str, SetAccuracy]) -> float | None:
        if self.goal.kind != "classes":
            return None
        for retain, forget in (("validation_retain", "validation_forget"), ("retain", "forget")):
            if retain in measured and forget in measured:
                return unlearning_score(measured[retain].accuracy, measured[forget].accuracy)
        return None

    def undo(self) -> None:
        """Put back the weights from before the run, bit for bit.

        Raises:
            PatchMismatch: the model no longer holds what the run left, or was undone already.
        """
        self.patch.revert(self.model)
        self._write_unsaved(self.model)

    def _write_unsaved(self, model: nn.Module) -> None:
        """Write back the buffers that no patch holds; one of another shape is a later pass's."""
        from forgetkit.adapting import unwrap

        live = dict(unwrap(model).named_buffers())
        kept = {
            name: value
            for name, value in self.unsaved.items()
            if name in live and live[name].shape == value.shape
        }
        write_back(live, kept)

    def audit(
        self,
        loader: Loader | None = None,
        *,
        retain: Loader | None = None,
        test: Loader | None = None,
        reference: nn.Module | str | Path | Sequence[nn.Module | str | Path] | None = None,
        level: str = "quick",
        metrics: Sequence[str | Metric] | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
        head: str | Sequence[str] | None = None,
        output: OutputChoice = None,
        report: str | Path | None = None,
    ) -> Audit:
        """Find out what the model still knows of what it was to forget.

        The original model comes from the patch; goal, seed and whether the head was masked from
        the run. The result keeps no data, so that loaders have to be given again.

        Args:
            loader: what ``run`` was given; without it, only test samples of classes are examined.
            retain: data to keep, when ``loader`` does not hold it.
            test: data that nothing was trained on, of all classes.
            reference: one or several models trained without the samples to forget.
            level: ``"quick"``, ``"standard"`` or ``"full"``.
            metrics: names or objects to run instead of all of the level.
            device: where to compute; the default is a CUDA device, else the CPU.
            seed: of every random choice; the default is the run's.
            head: dotted path(s) of the head, when detection must be overruled; the default is the
                run's.
            output: key, index or function that leads to the logits; the default is the run's.
            report: an .html file to write the audit to, with pictures.

        Returns:
            The record of the audit.

        Raises:
            PatchMismatch: the model was changed since the run, or the run was undone.
            ForgetkitError: models or data cannot be used; see ``forgetkit.auditing.run.audit``.
        """
        from forgetkit.adapting import unwrap
        from forgetkit.auditing.run import audit
        from forgetkit.copying import independent_copy

        self._require_state("audit", exactly=True)
        original = independent_copy(unwrap(self.model))
        if self.patch.names:
            self.patch.revert(original)
        self._write_unsaved(original)
        return audit(
            self.model,
            forget=loader,
            retain=retain,
            test=test,
            goal=self.goal,
            original=original,
            reference=reference,
            level=level,
            metrics=metrics,
            device=device,
            seed=self.seed if seed is None else seed,
            head=self.head if head is None else head,
            output=self.output if output is None else output,
            head_masked=self.head_masked,
            report=report,
            history=self.history,
            times={**self.seconds, "unlearning": sum(self.seconds.values())},
        )

    def save(self, directory: str | Path) -> list[Path]:
        """Save the model in its own format (transformers, timm or safetensors) with a model card.

        Args:
            directory: created when it does not exist.

        Returns:
            The files that were written.

        Raises:
            PatchMismatch: the model does not hold what the run left: it was rolled back, undone or
                changed since.
            ModelError: the directory holds files of something else.
        """
        from forgetkit.saving import save_model

        self._require_edit("save")
        return save_model(self.model, directory, card=self.card(), changed=self.patch.names)

    def push_to_hub(self, name: str) -> str:
        """Upload the model with a card that says what was forgotten; return its address.

        Raises:
            PatchMismatch: as for ``save``.
            ModelError: a path instead of a name, not logged in, not allowed, or not reached.
        """
        from forgetkit.saving import push_to_hub

        self._require_edit("push_to_hub")
        return push_to_hub(self.model, name, card=self.card())

    def _require_edit(self, what: str) -> None:
        """Refuse to pass weights off as the outcome of this run that are not."""
        if self.rolled_back:
            raise PatchMismatch(
                f"{what}(): expected a run that stands, found one that was rolled back "
                f"({self.stopped_because}), so the model is the one that came in; run again with "
                "other settings, or save the model itself"
            )
        self._require_state(what, exactly=False)

    def _require_state(self, what: str, *, exactly: bool) -> None:
        """Refuse a model that is not as the run left it.

        Args:
            what: the call.
            exactly: whether buffers that the run did not change count, too. A forward pass of the
                user's own may move them.
        """
        from forgetkit.adapting import unwrap
        from forgetkit.fingerprint import model_tensors, plain_names

        bare = unwrap(self.model)
        plain = plain_names(model_tensors(bare))
        buffers = {plain[name] for name, _ in bare.named_buffers() if name in plain}
        buffers -= set(self.patch.names)
        state = self.patch.state_of(bare, leave=() if exactly else buffers)
        if state == ("after" if self.patch.names else "before"):
            return
        undone = state == "before"
        found = "one that was undone" if undone else "one that was changed since"
        raise PatchMismatch(
            f"{what}(): expected the model as the run left it, found {found}, so the figures of "
            "this run are not its own; run again, or use the result of the last run"
        )

    def card(self) -> str:
        """Return the Markdown model card of the model as the run left it."""
        from forgetkit.model_card import model_card

        undone = {"rolled back": self.stopped_because} if self.rolled_back else {}
        noted = {f"note {number}": note for number, note in enumerate(self.notes, 1)}
        return model_card(
            {**self.patch.request, **undone, **noted},
            {name: measured.to_json() for name, measured in self.before.items()},
            {name: measured.to_json() for name, measured in self.after.items()},
            LIMITS,
            masked=[name for name in self.after if self._masked(name)],
            rolled_back=self.rolled_back,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the goal, the method, the figures, the history and the notes as plain records."""
        return {
            "goal": self.goal.to_json(),
            "method": self.method.to_json(),
            "seed": self.seed,
            "forget_classes": list(self.forget_classes),
            "before": {name: measured.to_json() for name, measured in self.before.items()},
            "after": {name: measured.to_json() for name, measured in self.after.items()},
            "us_before": self.us_before,
            "us": self.us,
            "history": self.history,
            "seconds": dict(self.seconds),
            "stopped_because": self.stopped_because,
            "rolled_back": self.rolled_back,
            "why": self.why,
            "samples": dict(self.samples),
            "notes": list(self.notes),
        }

    def __rich__(self) -> Table:
        """Return one small table for a terminal."""
        from rich.table import Table
        from rich.text import Text

        state = "rolled back" if self.rolled_back else "done"
        table = Table(
            title=Text(
                f"{self.method.card.title}: {self.goal.describe()} ({state})", style="table.title"
            ),
            caption=Text("\n".join(self._ending())),  # brackets are no markup
        )
        for name in ("", "samples", "before", "after"):
            table.add_column(name, justify="left" if not name else "right")
        for row in self._rows():
            table.add_row(*map(Text, row))
        return table

    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = []
        for name, title in SETS.items():
            if name in self.before and name in self.after:
                old, new = self.before[name], self.after[name]
                if self._masked(name):
                    title += " (head masked)"
                rows.append(
                    (title, str(new.samples), f"{100 * old.accuracy:.2f} %",
                     f"{100 * new.accuracy:.2f} %")
                )  # fmt: skip
        old_us, new_us = self.us_before, self.us
        if old_us is not None and new_us is not None:
            rows.append(("unlearning score", "", f"{old_us:.3f}", f"{new_us:.3f}"))
        return rows

    def _masked(self, name: str) -> bool:
        """Return whether the accuracy on a set is 0 by construction."""
        return self.head_masked and name.endswith("forget")

    def __repr__(self) -> str:
        """Return the same table as plain text."""
        lines = [f"Result({self.method.card.slug}, {self.goal.describe()}, seed={self.seed})"]
        lines += [f"  {name:<30} {old:>9} -> {new:>9}" for name, _, old, new in self._rows()]
        return "\n".join([*lines, *(f"  {line}" for line in self._ending())])

    def _ending(self) -> list[str]:
        """Return why the run ended, and what else there is to say about it, a line each."""
        ended = f"{self.stopped_because}; {sum(self.seconds.values()):.2f} s"
        chosen = [] if self.why is None else [f"auto: {self.why}"]
        return [ended, *chosen, *(f"note: {note}" for note in self.notes)]

    def _repr_html_(self) -> str:
        """Return the same table for a notebook."""
        from html import escape

        head = "".join(f"<th>{name}</th>" for name in ("", "samples", "before", "after"))
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self._rows()
        )
        title = escape(f"{self.method.card.title}: {self.goal.describe()}")
        caption = "<br>".join(escape(line) for line in self._ending())
        return (
            f"<table><caption>{title}<br>{caption}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )
