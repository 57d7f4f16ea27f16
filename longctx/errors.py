"""Every error a user can meet. Each message says what happened, with the numbers, and what to do next.

LongctxError
├── UsageError            a wrong value from the caller (exit code 2)
│   ├── UnknownMethod     no plug-in of that name
│   ├── BadOption         a plug-in has no such option, or not of that type
│   └── EmptyInput        an empty document or question
├── DoesNotFit            more tokens or bytes than the limit (exit code 3)
├── DocumentError         a file that cannot be read as a document
│   └── ParseLimit        a file that would take more time, memory or output than allowed
├── ModelError            a model that cannot be loaded or used
├── CacheError            a KV cache in a state that the request cannot use
├── DraftError            a drafter that failed, or proposed what is no draft
├── MissingExtra          an optional package is not installed
├── EndpointError        a server that does not answer, or not as asked
├── ProgramError         a program under test that died, hung, could not be installed or broke its protocol
├── ArtifactError         a stored file that is damaged or does not belong (exit code 4)
├── ArtifactBusy          another process is writing the stored file
└── Interrupted           the caller stopped the work
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_DISTRIBUTION = "longctx-hf"


class LongctxError(Exception):
    """The root; ``exit_code`` is what the command line ends with.

    ``trace``: of a question that failed, the steps that were done, as an answer has them.
    """

    exit_code = 1
    trace: tuple[Any, ...] = ()


class UsageError(LongctxError):
    """A value from the caller that can never work."""

    exit_code = 2


class UnknownMethod(UsageError):
    def __init__(self, room: str, name: str, known: Sequence[str]) -> None:
        super().__init__(f"no {room} named {name!r}. Known: {', '.join(known)}.")


class BadOption(UsageError):
    """A plug-in was given an option it does not have, or a value it cannot take."""


class EmptyInput(UsageError):
    """A document or question without any text."""


class DoesNotFit(LongctxError):
    """The request needs more tokens or bytes than there are: of the window, the memory or the disk."""

    exit_code = 3


class DocumentError(LongctxError):
    """A file that cannot be read as a document."""


class ParseLimit(DocumentError):
    """A file whose parsing passed a limit of time, memory or output."""


class ModelError(LongctxError):
    """A model that cannot be loaded, or that lacks what the request needs."""


class CacheError(LongctxError):
    """A KV cache in a state that the request cannot use."""


class DraftError(LongctxError):
    """A drafter failed. What was committed before its round stands, and decoding can go on from there."""


class MissingExtra(LongctxError):
    """A package that is not part of the core install is needed: one of ``extra``, or what ``install`` installs."""

    def __init__(self, what: str, package: str, extra: str = "", install: str = "") -> None:
        self.install = "  and  ".join(line for line in (installing(extra) if extra else "", install) if line)
        super().__init__(f"{what} needs {package}, which is not installed.  {self.install}")


class EndpointError(LongctxError):
    """A server that does not answer, or not as asked.

    ``refused``: it will not answer this request. ``closed``: it will answer none: the key or the address is wrong.
    """

    def __init__(self, said: str, retries: int, refused: bool = False, closed: bool = False) -> None:
        super().__init__(said)
        self.retries, self.refused, self.closed = retries, refused, closed


class ProgramError(LongctxError):
    """A program under test that died, hung, could not be installed or broke its protocol.

    ``kind`` is one word for rows, which must not hold what a program of somebody else says.
    """

    def __init__(self, kind: str, said: str) -> None:
        super().__init__(said)
        self.kind = kind


class ArtifactError(LongctxError):
    """A stored file that is damaged, or was made for something else."""

    exit_code = 4


class ArtifactBusy(LongctxError):
    """Another process is writing the same stored file."""


class Interrupted(LongctxError):
    """The caller stopped the work before it was done."""

    exit_code = 130


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError from inside names a file: ``path`` where it named none, as those of a full disk do."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def installing(extra: str) -> str:
    """The command that installs ``extra`` from where this library itself was installed from."""
    # a tenth of the time that --help takes, for a message that few ever see
    import json
    from importlib import metadata
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        origin = json.loads(metadata.distribution(_DISTRIBUTION).read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        origin = {}
    url = str(origin.get("url", ""))
    if "dir_info" in origin:
        flag = "-e " if origin["dir_info"].get("editable") else ""
        return f'pip install {flag}"{url2pathname(urlsplit(url).path)}[{extra}]"'
    if "vcs_info" in origin:
        found = origin["vcs_info"]
        inside = f"#subdirectory={origin['subdirectory']}" if "subdirectory" in origin else ""
        return f'pip install "{_DISTRIBUTION}[{extra}] @ {found["vcs"]}+{url}@{found["commit_id"]}{inside}"'
    return f'pip install "{_DISTRIBUTION}[{extra}]"'
