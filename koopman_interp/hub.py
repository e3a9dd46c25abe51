"""Files on the Hub: one file of a value, pushed and fetched by huggingface_hub.

A value that saves to one file and loads from it says under which name (`OnHub`); nothing here knows what it holds.
Costs the file and its way over the network; what was fetched stays in huggingface_hub's cache.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar

from huggingface_hub import create_repo, hf_hub_download, upload_file
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

Value = TypeVar("Value", bound="OnHub")


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
    try:
        return Path(hf_hub_download(repo, file, **download))
    except (HFValidationError, EntryNotFoundError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(
            f"The Hub gave no {file} under the name {repo!r}. Expected owner/name of a repository that holds it; look "
            f"at https://huggingface.co/{repo}/tree/main, or log in by `hf auth login` where it is private."
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
