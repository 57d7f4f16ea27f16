"""The cache of compiled documents: within its limit, the longest unused leave first, nobody loses what they write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import artifacts
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.store import manifest
from longctx.store.cache import Cache
from longctx.store.writer import Writer


def put(cache: Cache, key: str, at: int, lines: int = 1) -> Path:
    path = cache.place(key)
    artifacts.write(path, f"{key}\n" * lines)
    os.utime(path / manifest.FILE, (at, at))
    return path


def names(cache: Cache) -> list[str]:
    return [one.path.stem for one in cache.kept()]


def test_the_latest_used_come_first_and_say_what_they_hold(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "kept", 10**9)
    assert cache.kept() == [] == cache.trim() and not cache.folder.exists()
    one, _ = put(cache, "one", 1000), put(cache, "two", 2000)
    assert names(cache) == ["two", "one"]
    cache.used(one)
    assert names(cache) == ["one", "two"]
    (first, _) = cache.kept()
    assert first.documents == ("a",) and first.model == "tiny"
    assert first.bytes == sum(path.stat().st_size for path in one.iterdir())


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 40)), max_size=4), st.integers(0, 30_000))
def test_what_is_left_is_within_the_limit_and_is_the_latest_used(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[str, int]], limit: int
) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache"), limit)
    for at, (key, lines) in enumerate(puts):
        put(cache, key, 1000 + at, lines)
    before = cache.kept()
    removed = cache.trim()
    left = cache.kept()
    assert sum(one.bytes for one in left) <= limit
    assert [*left, *reversed(removed)] == before
    if removed:
        assert sum(one.bytes for one in left) + removed[-1].bytes > limit
    assert sorted(path.name for path in cache.folder.iterdir()) == sorted(one.path.name for one in left)


def test_what_another_process_writes_is_left_and_what_was_never_finished_is_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 0)
    put(cache, "written", 1000)
    half = cache.place("half")
    with pytest.raises(KeyboardInterrupt), Writer(half) as writer:
        artifacts.assemble(writer, "text\n")
        raise KeyboardInterrupt
    assert {(one.path.stem, one.documents) for one in cache.kept()} == {("written", ("a",)), ("half", ())}
    outcome: dict[str, Any] = {}
    with Writer(cache.place("busy")) as writer:
        writer.publish(artifacts.assemble(writer, "text\n"))
        outcome["removed"], outcome["busy"] = _from_another_thread(cache)
    assert [one.path.stem for one in outcome["busy"]] == ["busy"] == names(cache)
    assert {one.path.stem for one in outcome["removed"]} == {"written", "half"}
    assert cache.clear()[1] == [] == cache.kept()


def _from_another_thread(cache: Cache) -> Any:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(cache.clear).result()


def test_other_folders_are_not_touched(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 0)
    (tmp_path / "calibration").mkdir()
    (tmp_path / "note.lctx").write_text("mine")
    put(cache, "one", 1000)
    assert len(cache.trim()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration", "note.lctx"]


def test_what_a_killed_process_was_removing_is_gone_and_a_link_is_left(tmp_path: Path) -> None:
    cache, elsewhere = Cache(tmp_path / "cache", 10**9), Cache(tmp_path / "elsewhere", 10**9)
    one, other = put(cache, "one", 1000), put(elsewhere, "other", 1000)
    one.rename(one.with_suffix(".77.leaving"))
    cache.place("link").symlink_to(other)
    assert cache.trim() == [] == cache.kept() and cache.clear() == ([], [])
    assert [path.name for path in cache.folder.iterdir()] == ["link.lctx"] and names(elsewhere) == ["other"]


def test_using_what_another_process_has_removed_is_no_error(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 0)
    path = put(cache, "one", 1000)
    assert [one.path for one in cache.trim()] == [path]
    cache.used(path)
    assert cache.kept() == []
