"""What a run tells its user beside numbers: sentences for the notes of the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forgetkit.engine.modes import has_running_statistics
from forgetkit.method import Method
from forgetkit.recipe import FullNetwork, StopsEarly, Trained

if TYPE_CHECKING:
    from forgetkit.engine.resuming import Progress
    from forgetkit.engine.run import Run

ONE_LABEL_EACH = (
    "labels: every sample to forget carries exactly one of the 0/1 labels, and they are taken as "
    "several labels a sample; if the model chooses one class, pass its index (labels.argmax(dim=1))"
)
NOTHING_KNOWN = (
    "before the run the model predicted none of the samples to forget as they are labelled; check "
    "that labels and preprocessing are those of its training, unless it had forgotten them already"
)


def remark_on_parts(method: Method, run: Run, parts: int) -> None:
    """Say when cutting batches into parts gives another update than the whole batch."""
    if parts == 1 or not isinstance(method, Trained):
        return
    slug = method.card.slug
    if method.compares:
        run.log(
            f"{slug} compares samples of a batch with one another; with accumulate={parts} it "
            "does so within each part, so the update is not quite that of the whole batch"
        )
    batch_norm = any(map(has_running_statistics, run.model.modules()))
    if isinstance(method, FullNetwork) and method.bn == "train" and batch_norm:
        run.log(
            f"{slug} normalises by batches; with accumulate={parts} by each part, so the "
            "update is not quite that of the whole batch"
        )


def remark_on_labels(run: Run, labels: Tensor) -> None:
    """Say when 0/1 labels look like those of single classes."""
    if labels.ndim == 2 and len(labels) > 1 and bool((labels.sum(dim=1) == 1).all()):
        run.log(ONE_LABEL_EACH)


def remark_on_progress(method: Method, run: Run, *, asked: bool) -> None:
    """Say when there is no progress to keep."""
    if asked and not isinstance(method, Trained):
        run.log(
            f"{method.card.slug} edits the weights once, so there was no progress to keep in the "
            "folder of .resumable(...)"
        )


def remark_on_other_progress(run: Run, progress: Progress | None) -> None:
    """Say when a folder holds progress, but none of this request."""
    others = 0 if progress is None else progress.of_others()
    if progress is not None and others:
        run.log(
            f"resumable: {progress.folder} holds the progress of {others} other request(s), model, "
            "settings or data being different, so this run begins anew"
        )


def remark_on_zero(method: Method, run: Run, *, validated: bool) -> None:
    """Say when single samples are pushed below what a model that never saw them would reach."""
    if run.goal.kind != "instances" or run.target != 0.0 or validated:
        return
    settings = method.hyperparameters()
    if settings.get("reference") is not None:
        return
    if "reference" in settings:
        how = "pass .validate(loader), or reference=<accuracy on unseen samples>, to stop there"
    elif isinstance(method, StopsEarly) and method.to_zero:
        how = "pass .validate(loader) to see how well it reads unseen samples"
    else:
        how = "pass .validate(loader) to stop there"
    run.log(
        f"{method.card.slug} trains until no forget sample is predicted right, which is "
        f"more than a model that never saw them would do; {how}"
    )


def remark_on_the_start(slug: str, run: Run, before: Mapping[str, Tensor]) -> None:
    """Say when training begins at weights that may know the forget set already.

    Args:
        slug: of the method.
        run: with the weights that it begins at.
        before: the weights of the model as it came in.
    """
    if all(torch.equal(p, before[name]) for name, p in run.parameters.items()):
        run.log(
            f"{slug}: the weights of .fresh(...) are those of the model as it came in, so it "
            "is trained on and not retrained; pass weights that never saw the forget set"
        )
    elif run.starts_known:
        run.log(
            f"{slug}: it starts from the weights given to .fresh(...), and is a reference only "
            "if those never saw the forget set"
        )


def remark_on_unused_weights(method: Method, run: Run, initial: object) -> None:
    """Say when untrained weights were given and nothing of them was taken."""
    used = method.card.fresh or run.twin_was_made
    if initial is not None and not used:
        form = "a function" if callable(initial) else "weights"
        run.log(
            f"{method.card.slug}: what .fresh(...) gives, {form}, was not used: the "
            "method takes nothing from it with these settings"
        )


def remark_on_idle_steps(slug: str, run: Run, made: int) -> None:
    """Say how many of the steps moved nothing in fp16."""
    if made < run.step:
        run.log(
            f"{slug}: {run.step - made} of {run.step} steps moved nothing, "
            "because a gradient overflowed in fp16; train longer, or take "
            '.on(mixed_precision="bf16") or "no"'
        )


def remark_if_unfulfilled(slug: str, run: Run, before: float, after: float) -> None:
    """Say when a class is predicted as well as before, or samples not as their new label.

    The guard lets both stand.

    Args:
        slug: of the method.
        run: that has ended.
        before: share of D_f that was read as what is to go.
        after: the same now.
    """
    labels = run.images.forget.labels
    if labels.ndim > 1:
        return
    if run.goal.kind == "classes" and after >= before > 0.0:
        run.log(
            f"{slug}: the accuracy on the forget set did not fall "
            f"({100 * before:.1f} % to {100 * after:.1f} %), so the request is not fulfilled; "
            "train longer or with a larger lr, or choose another method"
        )
    if run.goal.kind == "relabel" and after > 0.0:
        run.log(
            f"{slug}: {round(after * len(labels))} of {len(labels)} samples are not read as their "
            "new label, so the request is not fulfilled; raise what drives the edit (epochs, lr), "
            "or choose another method"
        )
