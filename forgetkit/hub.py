"""Model folders of the Hugging Face hub: from the local cache, or fetched when that was allowed."""

from __future__ import annotations

from pathlib import Path

from forgetkit.errors import ModelError

_SAFE_FILES = ["*.json", "*.safetensors"]
_TORCH_FILES = ["pytorch_model*.bin", "pytorch_model*.bin.index.json"]  # read with weights_only


def hub_folder(repo: str, *, allow_download: bool) -> Path:
    """Return the local folder of a hub repository's configuration and weights.

    Args:
        repo: such as ``timm/resnet18.a1_in1k``.
        allow_download: fetch what the local cache does not hold.

    Raises:
        ModelError: not in the cache and not allowed, or not found.
    """
    from huggingface_hub import snapshot_download  # slow; only when asked for
    from huggingface_hub.errors import LocalEntryNotFoundError

    offline = not allow_download
    try:
        folder = Path(snapshot_download(repo, allow_patterns=_SAFE_FILES, local_files_only=offline))
        if not list(folder.glob("*.safetensors")):
            files = _SAFE_FILES + _TORCH_FILES
            snapshot_download(repo, allow_patterns=files, local_files_only=offline)
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"source {repo!r} is expected to be at hand (nothing is downloaded unasked); found no "
            "such folder and no copy in the hub cache. Pass allow_download=True to load_model, "
            "download it yourself, or check the path if a folder was meant."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"source {repo!r} is expected to be a repository that can be fetched; found "
            f"{type(error).__name__}: {error}. Check the name, the connection and your token."
        ) from error
    return folder
