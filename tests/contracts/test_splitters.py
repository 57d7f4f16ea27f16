"""What every splitter promises, whatever the text: tiling, the cap, whole characters, determinism, linear time."""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
import unicodedata
from bisect import bisect_left
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longctx import plugins
from longctx.segmenters import splitters
from longctx.segmenters.splitters._boundaries import may_cut
from longctx.types import Document, EncodedDocument, Span

_IDLE = 0.09  # seconds of the piece of work in ``_slowness``
NAMES = plugins.names("splitters")
CAPS = (8, 13, 40)
FRAGMENTS = [
    *(
        "Hello there. ",
        "Mr. X said no! ",
        "a",
        " ",
        "\n",
        "\r\n",
        "\r",
        "\n\n",
        "\t",
        "你好。",
        "、",
        "「はい」",
        "สวัสดี ",
        "हिन्दी। ",
    ),
    *(
        "e\u0301",
        "\u0301\u0302",
        "👩\u200d👩\u200d👧\u200d👦",
        "👍🏽",
        "🇩🇪🇫🇷",
        "\ud83d\ude00",
        "\ud83d",
        "\udc00",
        "\u200d",
        "\ufe0f",
        "각",
    ),
    *(
        "1. ",
        "- ",
        "3.14",
        "https://a.b/c.d?e ",
        "# H\n",
        "A: ",
        "\x00",
        "\ufeff",
        "x" * 30,
        "....",
        '"""',
        "'",
        "(",
        "{",
        "}",
        ")",
    ),
    *("def f(a):\n    return 1\n", "class A:\n", "    x = [1, 2]\n", "# c\n", "if x: pass\n", "\u1112\u1161\u11ab"),
]
TEXTS = st.lists(
    st.sampled_from(FRAGMENTS) | st.text(st.characters(exclude_categories=()), max_size=6), max_size=40
).map("".join)
# Only what the oracle for visible characters and our rules both speak about.
SEEN_AS_ONE = [
    "a",
    " ",
    "\n",
    "\r\n",
    "e\u0301",
    "\u0302",
    "👩\u200d👩\u200d👧",
    "👍🏽",
    "🇩🇪",
    "🇫",
    "\u1112\u1161\u11ab",
    "กำ",
    "你",
    "❤\ufe0f",
]
HOSTILE = {
    "dots": ".",
    "dots and spaces": ". ",
    "quotes": '"',
    "single quotes": "'",
    "dots and quotes": '."',
    "brackets": "(",
    "closing brackets": ")",
    "footnotes": ".[1",
    "all footnotes": ".[1]",
    "digits": "1",
    "stops and digits": "1.",
    "tags": "<a>",
    "spaces": " ",
    "tabs and lines": "\n\t",
    "lines": "\r\n",
    "letters": "x",
    "initials": "A. ",
    "chinese": "你好。",
    "dashes": "- ",
    "colons": "A:",
    "speakers": "A A ",
    "marks": "\u0301",
    "joiners": "\u200d",
    "flags": "🇩",
    "guillemets": ".\xa0",
    "hashes": "#",
}


def encode(text: str, how: str, kind: str = "code") -> EncodedDocument:
    """``bytes``: one token per byte. ``words``: one per word with its space. ``bare``: none for white space."""
    if how == "bytes":
        widths = [len(character.encode("utf-8", "surrogatepass")) for character in text]
        starts = np.repeat(np.arange(len(text)), widths)
    else:
        pattern = {"words": r" ?\w++| ?[^\w\s]|\s+(?!\S)|\s+", "bare": r"\w{1,5}|[^\w\s]"}[how]
        starts = np.asarray([match.start() for match in re.finditer(pattern, text)], dtype=np.int64)
        starts[:1] = 0
    about = Document(id="test", text=text, kind=kind, language="python")
    return EncodedDocument(about, np.arange(len(starts), dtype=np.int32), starts.astype(np.int64))


def capped(name: str, cap: int) -> Any:
    option = "max_tokens" if "max_tokens" in plugins.options("splitters", name) else "tokens"
    return plugins.load("splitters", f"{name}:{option}={cap}")


def parts(text: str, at: int) -> bool:
    """Whether a cut before ``at`` parts CR LF or a surrogate pair."""
    pair = text[at - 1 : at + 1]
    return pair == "\r\n" or bool(re.fullmatch("[\ud800-\udbff][\udc00-\udfff]", pair))


def joined(text: str, at: int) -> bool:
    """Whether the character at ``at`` visibly belongs to the one before it."""
    return unicodedata.category(text[at]).startswith("M") or "\u200d" in text[at - 1 : at + 1] or parts(text, at)


def cluster(text: str, at: int) -> tuple[int, int]:
    """The characters around a cut before ``at`` that stay together by our rules, which join more than ``joined``."""
    start, end = at - 1, at + 1
    while start > 0 and not may_cut(text, start):
        start -= 1
    while end < len(text) and not may_cut(text, end):
        end += 1
    return start, end


def check(encoded: EncodedDocument, spans: tuple[Span, ...], cap: int) -> None:
    text = encoded.document.text
    if not text:
        assert spans == ()
        return
    assert spans[0].start == 0 and spans[-1].end == len(text)
    assert all(a.end == b.start for a, b in zip(spans, spans[1:], strict=False))
    starts = set(encoded.token_starts.tolist())
    for span in spans:
        assert span.start < span.end
        assert encoded.count(span.start, span.end) <= cap
        assert encoded.count(span.start, span.end) >= 1 or not starts
        assert span.start in starts or span.start == 0
        if span.context is not None:
            assert 0 <= span.context[0] < span.context[1] <= span.start
    for span in spans[1:]:
        assert not parts(text, span.start)
        if joined(text, span.start):
            assert encoded.count(*cluster(text, span.start)) > cap


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, how=st.sampled_from(["bytes", "words", "bare"]), cap=st.sampled_from(CAPS))
def test_spans_tile_any_text_within_the_cap_and_part_no_character(name: str, text: str, how: str, cap: int) -> None:
    encoded = encode(text, how)
    spans = capped(name, cap).split(encoded)
    check(encoded, spans, cap)
    assert capped(name, cap).split(encoded) == spans


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(text=st.lists(st.sampled_from(SEEN_AS_ONE), max_size=60).map("".join), cap=st.sampled_from((32, 50)))
def test_cuts_stand_where_unicode_allows_them(name: str, text: str, cap: int) -> None:
    encoded = encode(text, "bytes")
    bounds = {0: 0}
    for match in regex.finditer(r"\X", text):
        bounds.update(dict.fromkeys(range(match.start() + 1, match.end()), encoded.count(*match.span())))
    for span in capped(name, cap).split(encoded):
        assert span.start not in bounds or bounds[span.start] > cap or span.start == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_text_without_tokens_is_one_span(name: str) -> None:
    assert list(plugins.load("splitters", name).split(encode(" \n\n ", "bare"))) == [Span(0, 4)]


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_text_draws_no_warning(name: str) -> None:
    assert plugins.load("splitters", name).warnings(encode("x = 1\n", "words")) == ()


def _slowness() -> float:
    """How many times as long as on the slowest processor seen idle a fixed piece of work takes now; at least 1."""
    begin = time.process_time()
    places = list(range(0, 600_000, 3))
    assert [bisect_left(places, place) for place in places][-1] == len(places) - 1
    return max(1.0, (time.process_time() - begin) / _IDLE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_takes_linear_time(name: str, text: str) -> None:
    """200,000 characters take no more than a few times what a quarter of them takes; a quadratic pass takes minutes.

    Three seconds are those of a processor that does nothing else: where it is shared, all work takes longer alike.
    """
    method, seconds = plugins.load("splitters", name), []
    for size in (50_000, 200_000):
        encoded = encode(text * (size // len(text)), "words" if len(text) > 1 else "bytes", kind="text")
        begin = time.process_time()
        spans = method.split(encoded)
        seconds.append(time.process_time() - begin)
        assert spans[-1].end == len(encoded.document.text)
    assert seconds[1] < 8 * seconds[0] + 0.5
    assert seconds[1] < 3.0 or seconds[1] < 3.0 * _slowness()


def test_no_pattern_is_slow_on_hostile_text() -> None:
    for module in pkgutil.iter_modules(splitters.__path__):
        loaded = importlib.import_module(f"{splitters.__name__}.{module.name}")
        for key, pattern in vars(loaded).items():
            if isinstance(pattern, re.Pattern):
                for name, text in HOSTILE.items():
                    long = text * (200_000 // len(text))
                    begin = time.process_time()
                    for _ in pattern.finditer(long):
                        pass
                    assert time.process_time() - begin < 1.0, f"{module.name}.{key} on {name}"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("code", "auto")])
def test_a_long_text_splits_in_linear_time(name: str) -> None:
    """One line of 4 million characters without spaces takes no more than a few times what a quarter of it takes."""
    method = plugins.load("splitters", name)
    seconds = []
    for size in (1_000_000, 4_000_000):
        encoded = EncodedDocument(Document("long", "x" * size), np.zeros(size // 4, np.int32), np.arange(0, size, 4))
        tries = []
        for _ in range(3):  # the collector may run in any of them
            begin = time.process_time()
            method.split(encoded)
            tries.append(time.process_time() - begin)
        seconds.append(min(tries))
    assert seconds[1] < 8 * seconds[0] + 0.2
