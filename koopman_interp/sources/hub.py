"""Stores on the Hub: data sets there, of which the files of a store are sent and fetched, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

_KIND = "dataset"
_PATTERNS = ["*.safetensors", "*.json"]


def sent(folder: Path, names: Sequence[str], repo: str, *, private: bool | None, **upload: Any) -> str:
    """Send files of a folder to a data set on the Hub, made where it is not there yet.

    Returns:
        Where they are to be seen.
    """
    huggingface_hub.create_repo(repo, repo_type=_KIND, private=private, exist_ok=True)
    said = {"commit_message": "Upload a store of koopman-interp"} | upload
    done = huggingface_hub.upload_folder(
        folder_path=folder, repo_id=repo, repo_type=_KIND, allow_patterns=list(names), **said
    )
    return str(done)


def fetched(repo: str, **download: Any) -> Path:
    """Fetch the files of a store.

    Raises:
        FileNotFoundError: there is no such data set.
    """
    try:
        return Path(huggingface_hub.snapshot_download(repo, repo_type=_KIND, allow_patterns=_PATTERNS, **download))
    except (HFValidationError, EntryNotFoundError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(f"The Hub has no data set {repo!r} that you may read; expected owner/name.") from error
