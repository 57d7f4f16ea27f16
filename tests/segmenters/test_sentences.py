"""Sentences: gold cases in several languages, a slow oracle for the packing, and the cutting of what is too long."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitting import by_bytes, by_words, pieces

from longctx.errors import BadOption
from longctx.segmenters.splitters._packing import merge
from longctx.segmenters.splitters._prose import boundaries
from longctx.segmenters.splitters.sentences import Sentences
from longctx.types import EncodedDocument

GOLD = [
    ("english", ["Dr. Smith paid $3.50 to J. K. Rowling.", "She smiled!", "Why?", "Nobody knows."]),
    ("abbreviations", ["He lives in the U.S. Army base at approx. 5 p.m. Monday.", "See Fig. 3, e.g. at no. 7."]),
    ("abbreviation at the end", ["He moved to the U.S.", "The house was sold to Smith Inc.", "It was cheap."]),
    ("url", ["Visit https://example.com/a.b?c=d.e for v1.2.3 of it.", "Then mail a.b@example.org."]),
    ("quotes", ['"Stop!" he cried.', '"I will not," she said.', "“Fine.”", "He left (at last).", "End."]),
    ("dialogue", ['"What?" asked Holmes.', '"Who is it?" he said.']),
    ("footnotes", ["It was found in 1999.[12]", "Others disagree.[3][4]", "The end."]),
    ("ellipsis", ["He waited... and waited.", "Then… nothing.", "So it goes..."]),
    (
        "words that look like abbreviations",
        ["He told me.", "She sat.", "I said no.", "I left in the sun.", "So it was."],
    ),
    ("no capitals", ["ok so we start here.", "then we go on.", "does it work?", "yes it does."]),
    ("enumerators", ["1. First item is long.", "2. Second item."]),
    ("german", ["Am 3. Oktober kam z.B. Hr. Müller um ca. 5 Uhr.", "Er blieb bis 1990.", "Ändert sich das?"]),
    ("french", ["M. Dupont est arrivé.", "« Vraiment ? »", "Oui.", "Elle part."]),
    ("spanish", ["¿Qué hora es?", "¡Vamos!", "El Sr. Pérez llegó tarde."]),
    ("russian", ["Он родился в 1990 г. в Москве.", "Это А. С. Пушкин.", "Да!"]),
    ("arabic", ["كيف حالك؟", "أنا بخير."]),
    ("hindi", ["यह पहला वाक्य है।", "यह दूसरा है॥", "और तीसरा।"]),
]
GOLD_WITHOUT_SPACES = [
    ("chinese", ["他说：“你好！”", "今天天气很好。", "我们走吧？", "好……走。"]),
    ("japanese", ["「行きましょう。」", "彼は3．14と言った。", "本当ですか？", "はい！"]),
    ("full-width stops", ["値は３．１４である．", "次へ進む．", "終わり"]),
    ("chinese with ascii marks", ["你好!", "今天好吗?", "很好。"]),
]
GOLD_LINES = [
    ("wrapped prose", ["The quick brown fox jumped over a lazy dog and then it went on\nto the river."]),
    ("bullets", ["Buy:\n", "- milk\n", "- bread and\n  butter\n", "- eggs"]),
    ("transcript", ["Anna: yes I think\nso\n", "Bob Smith: no\n", "Anna: ok"]),
    ("time stamps", ["[00:01] hello there\n", "[00:05] and welcome\n", "00:09 to the show"]),
    ("markdown", ["# A heading\n", "some text in here\n", "## Next\n", "more"]),
    ("short lines", ["Introduction\n", "Alpha beta\n", "Gamma delta"]),
    ("blank lines", ["no stop here\n\n", "nor here\r\n\r\n", "nor\u2029", "there"]),
    ("table", ["| a | b |\n", "| 1 | 2 |\n", "| 3 | 4 |"]),
]


def sentences_of(text: str) -> list[str]:
    edges = [0, *boundaries(text)[0], len(text)]
    return [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]


@pytest.mark.parametrize(("name", "gold"), GOLD, ids=[name for name, _ in GOLD])
def test_sentences_end_where_a_reader_ends_them(name: str, gold: list[str]) -> None:
    assert [sentence.strip() for sentence in sentences_of(" ".join(gold))] == gold
    wrapped = [sentence.strip() for sentence in sentences_of("  \t".join(gold))]
    assert wrapped == gold


def test_the_splitter_says_where_sentences_begin() -> None:
    begins = Sentences.begins
    assert [begins(text) for text in ("Mr. Ray left. It rained.", "One\n\nTwo", "")] == [[14], [5], []]


@pytest.mark.parametrize(("name", "gold"), GOLD_WITHOUT_SPACES, ids=[name for name, _ in GOLD_WITHOUT_SPACES])
def test_scripts_without_spaces_have_sentences(name: str, gold: list[str]) -> None:
    assert sentences_of("".join(gold)) == gold


@pytest.mark.parametrize(("name", "gold"), GOLD_LINES, ids=[name for name, _ in GOLD_LINES])
def test_lines_that_stand_alone_are_boundaries(name: str, gold: list[str]) -> None:
    assert sentences_of("".join(gold)) == gold


WORD = st.text("abcdefgh", min_size=4, max_size=7)
SENTENCE = st.builds(
    lambda words, mark: " ".join(words).capitalize() + mark, st.lists(WORD, min_size=2), st.sampled_from(".!?")
)
GAP = st.sampled_from([" ", "\n", "  ", "\n\n", "\r\n\r\n", " \n \n\t"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SENTENCE, GAP), min_size=1, max_size=30))
def test_plain_sentences_are_found_as_they_were_made(made: list[tuple[str, str]]) -> None:
    text = "".join(sentence + gap for sentence, gap in made)
    positions, blank = boundaries(text)
    ends = [sum(len(s) + len(g) for s, g in made[: i + 1]) for i in range(len(made) - 1)]
    assert positions == ends
    assert blank == [gap.count("\n") > 1 for _, gap in made[:-1]]


def slow_units(encoded: EncodedDocument, max_tokens: int, min_tokens: int) -> list[str]:
    """Packing as the docstring says it, with every count taken by looking at all tokens."""
    text = encoded.document.text
    starts = encoded.token_starts.tolist()
    positions, blank = boundaries(text)
    snapped = {max(s for s in starts if s <= p): b for p, b in zip(positions, blank, strict=True)}

    def tokens(a: int, b: int) -> int:
        return sum(a <= s < b for s in starts)

    units: list[list[int]] = []
    edges = [*snapped, len(text)]
    unit = [0, edges[0]]
    for a, b in zip(edges, edges[1:], strict=False):
        if tokens(unit[0], b) > max_tokens or (snapped[a] and tokens(*unit) >= min_tokens):
            units.append(unit)
            unit = [a, b]
        else:
            unit[1] = b
    if units and tokens(*unit) < min_tokens and tokens(units[-1][0], unit[1]) <= max_tokens:
        unit = [units.pop()[0], unit[1]]
    return [text[a:b] for a, b in [*units, unit]]


@pytest.mark.parametrize("seed", range(12))
def test_packing_agrees_with_a_slow_oracle(seed: int) -> None:
    rng = random.Random(seed)
    made = []
    for _ in range(60):
        length = rng.choice([1, 2, 5, 9, 14])
        made.append(
            " ".join(rng.choice(["Alpha", "beta", "gamma"]) for _ in range(length)).capitalize() + rng.choice(".?!")
        )
        made.append(rng.choice([" ", " ", "\n", "\n\n"]))
    encoded = by_words("".join(made))
    for max_tokens, min_tokens in ((24, 6), (40, 0), (17, 17)):
        spans = Sentences(max_tokens=max_tokens, min_tokens=min_tokens).split(encoded)
        assert pieces(encoded, spans) == slow_units(encoded, max_tokens, min_tokens)


def test_a_unit_stops_at_a_blank_line_but_a_heading_joins_its_text() -> None:
    paragraph = "One two three four five six seven eight. " * 3
    encoded = by_words(f"A heading\n\n{paragraph}\n\nYes.\n\n{paragraph}")
    found = pieces(encoded, Sentences(max_tokens=90, min_tokens=10).split(encoded))
    assert [piece.split("\n")[0][:9] for piece in found] == ["A heading", "Yes."]


def test_a_tiny_beginning_is_not_left_alone_before_a_sentence_beyond_the_cap() -> None:
    encoded = by_words("A heading\n\n" + "word " * 100)
    found = pieces(encoded, Sentences(max_tokens=32, min_tokens=8).split(encoded))
    assert found[0].startswith("A heading\n\nword word word")


def test_a_sentence_beyond_the_cap_is_cut_at_lines_then_spaces_then_anywhere() -> None:
    lines = by_bytes("".join(f"row {i:02d},a b c d e f\n" for i in range(20)))
    assert all(piece.endswith("\n") for piece in pieces(lines, Sentences(max_tokens=64, min_tokens=0).split(lines)))
    words = by_bytes("lorem ipsum dolor sit amet " * 20)
    for piece in pieces(words, Sentences(max_tokens=40).split(words))[1:]:
        assert piece.startswith(" ") or piece.split()[0] in {"lorem", "ipsum", "dolor", "sit", "amet"}
    solid = by_bytes("x" * 100)
    assert [len(piece) for piece in pieces(solid, Sentences(max_tokens=32).split(solid))] == [25, 25, 25, 25]


@pytest.mark.parametrize(
    "cluster", ["e\u0301", "👩\u200d👩\u200d👧", "🇩🇪", "\r\n", "\ud83d\ude00", "👍🏽", "\u1112\u1161\u11ab", "กำ"]
)
def test_no_cut_falls_inside_what_a_reader_sees_as_one(cluster: str) -> None:
    encoded = by_bytes("x" + cluster * 60)
    for max_tokens in range(26, 32):
        for piece in pieces(encoded, Sentences(max_tokens=max_tokens, min_tokens=0).split(encoded)):
            assert piece.removeprefix("x").replace(cluster, "") == ""


def test_a_tiny_end_joins_what_precedes_it() -> None:
    encoded = by_words("One two three four five six seven eight.\n\nThe end.")
    assert len(Sentences(max_tokens=40, min_tokens=5).split(encoded)) == 1
    assert len(Sentences(max_tokens=40, min_tokens=0).split(encoded)) == 2
    assert len(Sentences(max_tokens=10, min_tokens=5).split(encoded)) == 2


def test_cuts_that_fall_on_one_token_keep_the_blank_line() -> None:
    assert merge(np.array([-1, 3, 3, 5, 5]), [True, False, True, True, False]) == ([3, 5], [True, True])


def test_a_cluster_beyond_the_cap_is_cut_between_its_characters() -> None:
    encoded = by_bytes("e" + "\u0301" * 50)
    sizes = [encoded.count(s.start, s.end) for s in Sentences(max_tokens=8).split(encoded)]
    assert max(sizes) <= 8


def test_a_cut_goes_before_the_space_that_a_token_begins_with() -> None:
    encoded = by_words("Alpha beta gamma delta one. Epsilon zeta eta theta two. Iota kappa lambda mu three.")
    assert pieces(encoded, Sentences(max_tokens=8, min_tokens=0).split(encoded))[1] == " Epsilon zeta eta theta two."


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(BadOption, match="max_tokens=7"):
        Sentences(max_tokens=7)
    with pytest.raises(BadOption, match="min_tokens=-1"):
        Sentences(min_tokens=-1)
