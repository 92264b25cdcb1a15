"""Which parts of an image a transformer's attention carries to its prediction, before and after."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from forgetkit.auditing.evidence import Evidence, Missing, Subject
from forgetkit.engine.modes import evaluating
from forgetkit.report.attention import AttentionReader, over_image, rollout
from forgetkit.report.drawing import Picture
from forgetkit.report.pictures.relevance import a_few, compared, patch_grid, pixels, placed
from forgetkit.report.record import Record
from forgetkit.types import Inputs


def rollout_maps(subject: Subject, inputs: Inputs) -> Tensor:
    """Return attention rollout over the image, (samples, height, width), adding up to at most 1.

    Args:
        subject: a model whose blocks attend over all tokens.
        inputs: images.

    Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020.

    Raises:
        Missing: no block attends over all tokens of an image.
    """
    images = pixels(inputs)
    with evaluating(subject.model), torch.no_grad(), AttentionReader(len(images)) as reader:
        subject.model(inputs) if isinstance(inputs, Tensor) else subject.model(**inputs)
    blocks = reader.found if reader.whole else []
    grid = patch_grid(blocks[0].shape[-1]) if blocks else None
    if grid is None or any(block.shape != blocks[0].shape for block in blocks):
        raise Missing("needs a transformer whose blocks all attend over the same square of patches")
    heat = over_image(rollout(blocks), *grid)[:, None]
    found = functional.interpolate(heat, images.shape[-2:], mode="bilinear", align_corners=False)
    return found[:, 0].cpu()


def picture(record: Record, evidence: Evidence | None) -> Picture:
    """Draw a few forget samples with the attention that reaches the prediction before and after.

    Raises:
        Missing: a model or the forget samples are not at hand, or the model is no transformer
            with attention over the whole image.
    """
    del record
    if evidence is None:
        raise Missing("needs the models and images, which are at hand only during an audit")
    batch = a_few(evidence)
    before, after = (
        rollout_maps(subject, placed(batch.inputs, subject, evidence))
        for subject in (evidence.subject("original"), evidence.subject("unlearned"))
    )
    return compared(
        "rollout", "Where attention goes", "Attention rollout over all blocks", batch,
        (before, after), "it knows nothing of classes: an edit of the head alone leaves it at 1.",
    )  # fmt: skip
