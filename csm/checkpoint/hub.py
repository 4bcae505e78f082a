"""The Hugging Face hub: which files of which repository a model needs, and how they get here.

The only file that talks to `huggingface_hub`. What it returns are paths in the hub's own cache, so that what was
downloaded once, by this program or another, is not downloaded again and works offline.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from csm.config import RELEASES, Environment
from csm.errors import InputError

HUB_MODEL = RELEASES[0].repository
HUB_MIMI = ("kyutai/moshiko-pytorch-bf16", "tokenizer-e351c8d8-checkpoint125.safetensors")
HUB_TOKENIZER = ("unsloth/Llama-3.2-1B", "tokenizer.json")

# What holds the weights, best first: the transformers layout brings Mimi along, the pickle comes last.
WEIGHTS = ("transformers.safetensors.index.json", "model.safetensors.index.json", "model.safetensors", "ckpt.pt")
ADAPTER = ("adapter_model.safetensors",)
BESIDE = (
    "config.json",
    "tokenizer.json",
    "adapter_config.json",
)  # what else a loader reads, where the repository has it
INDEX_SUFFIX = ".index.json"

ATTEMPTS = 5  # a download that breaks off goes on where it stopped, this often
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
TIMEOUT = 10.0  # seconds until a hub that doesn't answer counts as out of reach

Result = TypeVar("Result")
Kind = Literal["model", "space"]
Token = str | Literal[False] | None  # False: send none; None: the one that `hf auth login` stored, if any


class NoAccess(InputError):
    """The hub answers, and doesn't give this repository to this user."""


class OutOfReach(InputError):
    """The hub can't be asked, and the cache lacks something."""


@dataclass(frozen=True)
class Snapshot:
    """The files of a model on this machine.

    `repository` is whose they are: another one than was asked for when an ungated copy stands in. `weights` is the
    index of the shards or the one file with all tensors; `folder`, where it lies, also has `config.json` and
    `tokenizer.json` if the repository does.
    """

    repository: str
    weights: Path

    @property
    def folder(self) -> Path:
        return self.weights.parent


def fetch_model(repository: str, token: Token = None) -> Snapshot:
    """The files of a hub id in one layout, downloaded unless they are in the cache.

    The published model is gated: where the hub refuses it (or is out of reach and the cache lacks it), one of the
    ungated copies that CSM_FALLBACK names stands in, with a warning that says so. Raises `InputError`.
    """
    try:
        return _fetch_model(repository, token)
    except (NoAccess, OutOfReach) as error:
        copies = Environment.read().fallback if repository == HUB_MODEL else ()
        for copy in copies:
            try:
                snapshot = _fetch_model(copy, False)
            except InputError:
                continue
            warnings.warn(
                f"{error} Until then {copy}, an ungated copy of the same weights, speaks; "
                "CSM_FALLBACK=none forbids that.",
                stacklevel=2,
            )
            return snapshot
        raise


def cached_model(repository: str) -> Snapshot | None:
    """The files of a hub id if all that a load needs is on this machine; the hub isn't asked."""
    weights = _cached(repository, WEIGHTS)
    return Snapshot(repository, weights) if weights else None


def fetch_adapter(repository: str, token: Token = None) -> Snapshot:
    """A PEFT adapter's weights, with `adapter_config.json` beside them. Raises `InputError`."""
    return _fetch(repository, token, ADAPTER, "of a PEFT adapter")


def fetch_file(repository: str, file: str, token: Token = None, kind: Kind = "model") -> Path:
    """One file that never changes: from the cache without asking, else from the hub. Raises `InputError`."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    if repository in (HUB_MIMI[0], HUB_TOKENIZER[0]):
        token = False  # open to all, so a token that expired must not close them
    cached = try_to_load_from_cache(repository, file, repo_type=kind)
    if isinstance(cached, str):
        return Path(cached)

    def ask() -> Any:
        return HfApi(token=token).repo_info(repository, repo_type=kind, timeout=TIMEOUT)

    def download() -> Path:
        return Path(hf_hub_download(repository, file, repo_type=kind, token=token, etag_timeout=TIMEOUT))

    what = f"{file} of {repository}"
    _asking(ask, repository, what, 1)  # the download alone would try a dead line for half a minute
    return _asking(download, repository, what, ATTEMPTS)


def fetch_prompt(file: str) -> Path:
    """A recording that was published with the model, from its repository or from the publisher's Space, which holds
    the same ones and is open to all. Raises `InputError`."""
    try:
        return fetch_file(HUB_MODEL, file, Environment.read().token)
    except (NoAccess, OutOfReach) as refused:
        try:
            return fetch_file(HUB_MODEL, file, False, "space")
        except InputError:
            raise refused from None


def _fetch_model(repository: str, token: Token) -> Snapshot:
    return _fetch(repository, token, WEIGHTS, "of a CSM")


def _fetch(repository: str, token: Token, known: tuple[str, ...], what: str) -> Snapshot:
    kept = _cached(repository, known)
    try:
        return Snapshot(repository, _newest(repository, token, known, what, kept))
    except (NoAccess, OutOfReach):
        if kept:  # whatever is in the way: all that is needed was downloaded before
            return Snapshot(repository, kept)
        raise


def _newest(repository: str, token: Token, known: tuple[str, ...], what: str, kept: Path | None) -> Path:
    """Download what is missing of the newest version, in the layout of `kept` if it still has that."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    def ask() -> Any:
        return HfApi(token=token).model_info(repository, timeout=TIMEOUT)

    newest = _asking(ask, repository, repository, 1)
    listed = {sibling.rfilename for sibling in newest.siblings or ()}
    weights = next((name for name in ([kept.name] if kept else []) + list(known) if name in listed), None)
    if weights is None:
        raise InputError(f"The repository {repository} has no weights {what}: it needs {' or '.join(known)}.")
    needed = [weights, *(name for name in BESIDE if name in listed)]
    if weights.endswith(INDEX_SUFFIX):

        def read_index() -> Path:
            return Path(hf_hub_download(repository, weights, revision=newest.sha, token=token, etag_timeout=TIMEOUT))

        shards = set(weight_map(_asking(read_index, repository, f"{weights} of {repository}", ATTEMPTS)).values())
        if lost := sorted(shards - listed):
            raise InputError(f"The repository {repository} is incomplete: its index names {lost[0]}, which it lacks.")
        needed += sorted(shards)

    def download() -> Path:
        return Path(snapshot_download(repository, token=token, allow_patterns=needed, etag_timeout=TIMEOUT))

    folder = _asking(download, repository, repository, ATTEMPTS)
    if absent := [name for name in needed if not (folder / name).is_file()]:
        raise OutOfReach(_out_of_reach(f"{absent[0]} of {repository}"))
    return folder / weights


def weight_map(index: Path) -> dict[str, str]:
    """Which file beside an index holds which tensor. Raises `InputError` for an index that is none."""
    try:
        return {
            str(key): str(file) for key, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"The index {index.name} can't be read ({error}): fetch it again.") from error


def files_of(weights: Path) -> list[Path]:
    """The files with tensors behind an index, or the one file itself."""
    if not weights.name.endswith(INDEX_SUFFIX):
        return [weights]
    return [weights.parent / name for name in sorted(set(weight_map(weights).values()))]


def complete(weights: Path) -> bool:
    """Whether every file that an index names is there."""
    try:
        return all(file.is_file() for file in files_of(weights))
    except InputError:
        return False


def _cached(repository: str, known: tuple[str, ...]) -> Path | None:
    """The weights in the cache if nothing of them is missing: the hub's last word first, then older versions."""
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    try:
        folders = sorted((root / "snapshots").iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
    except OSError:
        return None
    main = root / "refs" / "main"
    last = main.read_text().strip() if main.is_file() else ""
    for folder in sorted(folders, key=lambda folder: folder.name != last):
        for weights in (folder / name for name in known):
            if weights.is_file() and complete(weights):
                return weights
    return None


def _asking(action: Callable[[], Result], repository: str, what: str, attempts: int) -> Result:
    """Do what asks the hub, up to `attempts` times where the line breaks.

    Raises `InputError` with what the user can do. None of the sentences quotes the hub's own message or an address
    of a download: those may carry what is nobody's business.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    broken: Exception | None = None
    for attempt in range(attempts):
        try:
            return action()
        except GatedRepoError as error:
            raise NoAccess(
                f"{repository} is gated: accept its terms on https://huggingface.co/{repository}, then set HF_TOKEN to "
                "a token of that account that may read gated repositories."
            ) from error
        except RepositoryNotFoundError as error:
            raise NoAccess(
                f"The hub shows no repository {repository}: check its name, or, if it is private, set HF_TOKEN to a "
                "token that may read it."
            ) from error
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            raise OutOfReach(_out_of_reach(what)) from error
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status == 401:
                raise NoAccess(
                    "The hub doesn't know the token in HF_TOKEN: set it to a valid one from "
                    "https://huggingface.co/settings/tokens, or unset it."
                ) from error
            if status == 404:
                raise InputError(f"There is no {what}: check the name.") from error
            raise OutOfReach(f"The hub answers {what} with status {status}: try again later.") from error
        except HFValidationError as error:
            raise InputError(f"{repository} is no name of a repository: write it as owner/name.") from error
        except OSError as error:  # the client's troubles with the line are OSErrors too, without a number
            if error.errno is not None:
                raise InputError(f"{what} can't be stored in the hub's cache: {error.strerror}.") from error
            broken = error
        except RuntimeError as error:  # hf_xet's troubles with the line
            broken = error
        if attempt < attempts - 1:
            time.sleep(PAUSE * 2**attempt)
    if attempts == 1:
        raise OutOfReach(_out_of_reach(what)) from broken
    raise OutOfReach(
        f"The download of {what} broke off {attempts} times: start again, and it goes on where it stopped."
    ) from broken


def _out_of_reach(what: str) -> str:
    return f"{what} is not on this machine and the hub can't be reached: go online once, or give a local folder."
