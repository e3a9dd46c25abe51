"""Files on the Hub: one file of a value, or the files of a folder, pushed and fetched by huggingface_hub.

A value that saves to one file and loads from it says under which name (`OnHub`); what is a folder of rows goes there as
a data set. Nothing here knows what they hold. Costs the files and their way over the network; what was fetched stays in
huggingface_hub's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar

from huggingface_hub import create_repo, hf_hub_download, snapshot_download, upload_file, upload_folder
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

Value = TypeVar("Value", bound="OnHub")

_DATASET = "dataset"


def fetched(repo: str, file: str, **download: Any) -> Path:
    """Download one file of a repository, or find it in the cache.

    Args:
        repo: `owner/name`.
        file: its path there.
        **download: as `hf_hub_download` takes them: `revision`, `token`, `cache_dir`, `local_files_only`, …

    Returns:
        Where it lies on this machine.

    Raises:
        FileNotFoundError: there is no such repository, or no such file in it.
    """
    with _asked(file, repo, repo):
        return Path(hf_hub_download(repo, file, **download))


def fetched_dataset(repo: str, patterns: Sequence[str], **download: Any) -> Path:
    """Download files of a data set, or find them in the cache.

    Args:
        repo: `owner/name`.
        patterns: of the names wanted.
        **download: as `snapshot_download` takes them: `revision`, `local_dir`, …

    Returns:
        The folder on this machine where they lie.

    Raises:
        FileNotFoundError: there is no such data set.
    """
    with _asked("data set", repo, f"datasets/{repo}"):
        return Path(snapshot_download(repo, repo_type=_DATASET, allow_patterns=list(patterns), **download))


def sent_dataset(folder: Path, names: Sequence[str], repo: str, *, private: bool | None, **upload: Any) -> str:
    """Send files of a folder to a data set, which is made where there is none; other files there stay.

    Args:
        folder: where they lie.
        names: of the files.
        repo: `owner/name`.
        private: whether a data set that is made is private; None is as the account has it.
        **upload: as `upload_folder` takes them: `commit_message`, `revision`, …

    Returns:
        The address of the commit.
    """
    create_repo(repo, repo_type=_DATASET, private=private, exist_ok=True)
    done = upload_folder(folder_path=folder, repo_id=repo, repo_type=_DATASET, allow_patterns=list(names), **upload)
    return str(done)


@contextmanager
def _asked(what: str, repo: str, address: str) -> Iterator[None]:
    """Say in a sentence that the Hub does not give what was asked for.

    Raises:
        FileNotFoundError: it does not.
    """
    try:
        yield
    except (HFValidationError, EntryNotFoundError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(
            f"The Hub gave no {what} under the name {repo!r}. Expected owner/name of a repository that holds it; look "
            f"at https://huggingface.co/{address}/tree/main, or log in by `hf auth login` where it is private."
        ) from error


class OnHub:
    """A value with `save` and `load` of one file, and a name for that file on the Hub."""

    hub_file: ClassVar[str]

    def push_to_hub(
        self,
        repo: str,
        file: str | None = None,
        *,
        private: bool | None = None,
        token: str | None = None,
        **upload: Any,
    ) -> str:
        """Write it to a repository on the Hub, which is made where there is none; other files there stay.

        Args:
            repo: `owner/name`.
            file: path in the repository; None is the usual name of such a file.
            private: whether a repository that is made is private; None is as the account has it.
            token: of the account; None is that of `hf auth login`.
            **upload: as `upload_file` takes them: `commit_message`, `revision`, `create_pr`, …

        Returns:
            The address of the commit.
        """
        file = file or self.hub_file
        create_repo(repo, private=private, token=token, exist_ok=True)
        with TemporaryDirectory() as folder:
            path = Path(folder) / Path(file).name
            self.save(path)  # type: ignore[attr-defined]  # every value that is on the Hub has it
            pushed = upload_file(path_or_fileobj=path, path_in_repo=file, repo_id=repo, token=token, **upload)
        return pushed.commit_url

    @classmethod
    def from_hub(cls: type[Value], repo: str, file: str | None = None, **download: Any) -> Value:
        """Load what `push_to_hub` wrote.

        Args:
            repo: `owner/name`.
            file: path in the repository; None is the usual name of such a file.
            **download: as `hf_hub_download` takes them: `revision`, `token`, `cache_dir`, …

        Returns:
            The value.

        Raises:
            FileNotFoundError: there is no such repository, or no such file in it.
            FileFormatError: the file is truncated or holds something else.
        """
        value: Value = cls.load(fetched(repo, file or cls.hub_file, **download))  # type: ignore[attr-defined]  # the same
        return value
