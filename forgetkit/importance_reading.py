"""Measure a model's importance while its training data are at hand, for later requests."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from forgetkit.adapting import logits_of, unwrap, width_of
from forgetkit.data.labels import check_range
from forgetkit.data.loaders import Loader
from forgetkit.data.sources import read_all
from forgetkit.dryrun.outputs import OutputChoice
from forgetkit.engine.checks import check_model
from forgetkit.engine.modes import evaluating
from forgetkit.engine.peeking import peeked
from forgetkit.engine.place import moved_inputs
from forgetkit.engine.surroundings import own_surroundings
from forgetkit.errors import BadHyperparameter
from forgetkit.fields import plain
from forgetkit.importance import FORMS, KINDS, Importance, measured
from forgetkit.model_errors import in_one_sentence
from forgetkit.substitution import output_with
from forgetkit.types import Inputs


@own_surroundings()
def importance_of(
    model: nn.Module,
    loader: Loader,
    *,
    kind: str = "cross_entropy",
    form: str = "sample",
    batch_size: int | None = None,
    output: OutputChoice = None,
) -> Importance:
    """Return how much each weight matters to all samples of a loader: for ``ssd`` and the like.

    ``importance_of(model, train_loader).save("importance.safetensors")``, then later
    ``forget(model).classes([3]).using("ssd", importance_file="importance.safetensors")`` needs the
    samples to forget only. Measure anew after each request: what was forgotten counts no more.

    Args:
        model: left as it is; read in eval mode, on the device where it is, without autocast.
        loader: all training samples with their labels; what has no positions (a list of batches,
            a stream) is kept in memory.
        kind: ``"cross_entropy"`` for ssd and assd, ``"squared_norm"`` for lfssd.
        form: ``"sample"`` or ``"batch"``, as the method's ``importance``.
        batch_size: samples of a batch, by default the loader's.
        output: key, index or function that leads to the logits, where the model returns several
            tensors that could be.

    Raises:
        BadHyperparameter: ``kind`` or ``form`` is none of the words above, or ``batch_size`` no
            positive integer.
        CannotSplitModel: the output holds no logits, or several tensors that could be.
        DataError: the loader holds nothing, or its batches cannot be used.
        ModelError: not a module, or one whose weights cannot be read.
    """
    for name, value, options in (("kind", kind, KINDS), ("form", form, FORMS)):
        if value not in options:
            raise BadHyperparameter(
                f"importance_of({name}={value!r}): expected one of {', '.join(options)}, found "
                f"{value!r}; leave it out for {options[0]}"
            )
    size = plain(batch_size)
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise BadHyperparameter(
            f"importance_of(batch_size={batch_size!r}): expected a positive integer, found "
            f"{batch_size!r}; leave it out for the loader's"
        )
    bare = unwrap(model)
    check_model(bare)
    parameters = {n: p for n, p in bare.named_parameters() if p.is_floating_point()}
    first = next(iter(parameters.values()))

    def placed(inputs: Inputs) -> Inputs:
        return moved_inputs(inputs, first.device, first.dtype)

    def logits(given: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        found = output_with(bare, given, placed(inputs))
        return logits_of(found, output, num_classes=classes)

    with evaluating(bare), in_one_sentence("importance_of()"):
        loader, example = peeked(loader, "importance_of(loader)")
        classes = width_of(bare, placed(example), output)
        samples = read_all(loader, classes, "importance_of(loader)")
        if samples.labels.ndim == 1:
            check_range(samples.labels, samples.positions, classes, "importance_of(loader)")
        return measured(logits, parameters, samples, kind=kind, form=form, batch_size=size)
