"""The Hugging Face hub: which repositories the published models come from, and how their files get here.

The only file that talks to `huggingface_hub`. What it returns are paths in the hub's own cache.
"""

from __future__ import annotations

from pathlib import Path

from csm.errors import InputError

HUB_MODEL = "sesame/csm-1b"
HUB_MIMI = ("kyutai/moshiko-pytorch-bf16", "tokenizer-e351c8d8-checkpoint125.safetensors")
HUB_TOKENIZER = ("unsloth/Llama-3.2-1B", "tokenizer.json")


def fetch_file(repository: str, file: str, token: str | None) -> Path:
    """One file of a repository, downloaded unless it is in the cache. Raises `InputError` in one sentence."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repository, file, token=token))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise InputError(
            f"The hub gives no access to {repository}: accept its terms on huggingface.co/{repository}, "
            "then set HF_TOKEN to a token of that account."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise InputError(
            f"{file} of {repository} is not on this machine and the hub can't be reached: go online once, or give "
            "a local folder."
        ) from error


def fetch_model(repository: str, token: str | None) -> Path:
    """A folder that holds the weights of a hub id, and what belongs to them, in either published layout."""
    return fetch_file(repository, "model.safetensors", token).parent
