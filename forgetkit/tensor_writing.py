"""Writing the tensors of a module as one safetensors file, whatever memory they share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from forgetkit.fingerprint import same_tensor_groups


def write_tensors(model: nn.Module, path: Path) -> list[str]:
    """Write every tensor of a module's state, tied ones once.

    Args:
        model: not changed.
        path: the file, with the other names of tied tensors in its metadata.

    Returns:
        Names of what is no tensor and could not be written: the extra state of some modules.
    """
    state = model.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    groups = same_tensor_groups(tensors)
    readers = Counter(tensors[names[0]].untyped_storage().data_ptr() for names in groups)
    kept: dict[str, Tensor] = {}
    for name, *_ in groups:
        tensor = tensors[name].detach().resolve_conj().resolve_neg().contiguous()
        memory = tensor.untyped_storage()
        # other views of one memory, and parts of a larger one, are cut out
        alone = readers[memory.data_ptr()] <= 1 and memory.nbytes() == tensor.nbytes
        kept[name] = tensor if alone else tensor.clone()
    tied = {other: name for name, *others in groups for other in others}
    save_file(kept, path, metadata=tied)
    return [name for name in state if name not in tensors]
