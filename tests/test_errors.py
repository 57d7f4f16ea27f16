"""What errors say to do next: the command that installs an extra, and the file that a full disk was to hold."""

from __future__ import annotations

import errno
import json
from importlib import metadata
from pathlib import Path

import pytest

from longctx.errors import MissingExtra, installing, naming


class _Installed:
    """A distribution as pip leaves it; without ``origin`` it came from an index."""

    def __init__(self, origin: object) -> None:
        self._origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self._origin is None else json.dumps(self._origin)


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (None, 'pip install "longctx-hf[plots]"'),
        ({"url": "file:///a%20b", "dir_info": {}}, 'pip install "/a b[plots]"'),
        ({"url": "file:///src", "dir_info": {"editable": True}}, 'pip install -e "/src[plots]"'),
        (
            {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            'pip install "longctx-hf[plots] @ git+https://example.org/x.git@abc"',
        ),
        (
            {"url": "https://example.org/x", "vcs_info": {"vcs": "git", "commit_id": "abc"}, "subdirectory": "py"},
            'pip install "longctx-hf[plots] @ git+https://example.org/x@abc#subdirectory=py"',
        ),
        ({"url": "https://example.org/x.whl", "archive_info": {}}, 'pip install "longctx-hf[plots]"'),
    ],
)
def test_an_extra_is_installed_from_where_the_library_came(
    origin: object, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda name: _Installed(origin))
    assert installing("plots") == line
    assert str(MissingExtra("drawing", "matplotlib", "plots")).endswith(f"not installed.  {line}")
    assert (
        MissingExtra("text", "an encoder", "plots", "pip install wheels").install == f"{line}  and  pip install wheels"
    )


def test_without_an_installed_distribution_the_index_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert installing("code") == 'pip install "longctx-hf[code]"'


def test_an_error_without_a_file_gets_one_and_others_keep_theirs() -> None:
    with pytest.raises(OSError) as caught, naming(Path("book.lctx")):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == "book.lctx" and caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError) as caught, naming(Path("book.lctx")):
        raise OSError(errno.EACCES, "Permission denied", "other")
    assert caught.value.filename == "other"
    with pytest.raises(OSError, match="^no errno, a message$"), naming(Path("book.lctx")):
        raise OSError("no errno, a message")
