"""All classifiers of torchvision, in floating point and quantised."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from forgetkit.dryrun.sweep.building import LARGEST, cheap_initialisation, cheap_weights, count
from forgetkit.dryrun.sweep.checking import Outcome, check, pictures

_QUANTISABLE = "quantized_"
_INT8 = "int8:"
_LARGEST_HERE = 130_000_000
_SIDES = (96, 128, 224, 299)


def names() -> list[str]:
    """Return the image classifiers, the quantisable ones in floating point, and those in int8."""
    import torchvision

    plain = torchvision.models.list_models(module=torchvision.models)
    quantisable = torchvision.models.list_models(module=torchvision.models.quantization)
    return [*plain, *quantisable, *(f"{_INT8}{name}" for name in quantisable)]


def outcomes(wanted: list[str]) -> Iterator[Outcome]:
    """Build, split and check each model in turn."""
    for name in wanted:
        yield one(name)


def one(name: str) -> Outcome:
    """Build, split and check one model."""
    try:
        model, note = build(name)
    except Exception as error:
        return Outcome(name, "not-run", detail=f"{type(error).__name__}: {error}"[:300])
    device = "meta" if any(tensor.is_meta for tensor in model.parameters()) else "cpu"
    fixed = getattr(model, "image_size", None)
    sides = [fixed] if isinstance(fixed, int) else _SIDES
    outcome = Outcome(name, "not-run", detail="no picture size fits")
    for side in sides:
        if not _runs(model, side, device):
            continue
        pair = [pictures(rows, 3, (side, side), device) for rows in (1, 2)]
        outcome = check(name, model, pair[0], pair[1], note=f"{note}{side} px")
        break
    return outcome


def build(name: str) -> tuple[nn.Module, str]:
    """Build a model and a note on how it was built."""
    import torchvision

    options: dict[str, object] = {"weights": None, "num_classes": 10}
    bare = name.removeprefix(_INT8)
    if "googlenet" in bare or "inception" in bare:
        options["init_weights"] = False
    if bare.startswith(_QUANTISABLE):
        options["quantize"] = name.startswith(_INT8)
    if name.startswith(_INT8):
        # Packing runs kernels that the meta device and uninitialised weights do not have.
        return torchvision.models.get_model(bare, **options).eval(), "int8, "
    sketch = None
    # RegNets compute their widths with tensors, whose values the meta device does not have.
    if not bare.startswith("regnet"):
        with torch.device("meta"):
            sketch = torchvision.models.get_model(bare, **options)
    if (
        sketch is not None
        and count(sketch) > min(LARGEST, _LARGEST_HERE)
        and hasattr(sketch, "image_size")
    ):
        return sketch.eval(), f"meta, {count(sketch) / 1e9:.2f} billion parameters, "
    with cheap_initialisation():
        model = torchvision.models.get_model(bare, **options)
    cheap_weights(model)
    return model.eval(), ""


def _runs(model: nn.Module, side: int, device: str) -> bool:
    try:
        with torch.no_grad():
            model(pictures(1, 3, (side, side), device))
    except Exception:
        return False
    return True
