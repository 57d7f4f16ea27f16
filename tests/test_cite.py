"""Citations: verbatim, from the spans that were read, and none where nothing supports the answer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.cite import cite, nearest
from longctx.lexical import Lexical
from longctx.types import Document, Page, SelectedSpan

TEXT = (
    "Mara Tobin lives in Dray. The access code for the Dray depot is 4711.  \r\nNobody spoke. "
    "The code of the other depot is 9035. 暗証番号は4711です。\n\nThe end"
)
DOCUMENT = Document("memo", TEXT, pages=(Page(1, 0, 60), Page(2, 60, len(TEXT))))
WHOLE = (SelectedSpan("memo", 0, len(TEXT), 1, 0.0),)
WEIGHT = Lexical(TEXT.split(".")).weight


def test_the_sentence_that_holds_the_answer_is_quoted_with_its_place_and_page() -> None:
    citations = cite("4711", "What is the access code for the Dray depot?", [DOCUMENT], WHOLE, WEIGHT)
    best = citations[0]
    assert best.quote == "The access code for the Dray depot is 4711."
    assert TEXT[best.start : best.end] == best.quote and best.page == 1 and best.score == 1.0
    assert all("4711" in citation.quote for citation in citations)


def test_of_equal_quotes_the_first_in_the_documents_is_cited_whatever_was_read_first() -> None:
    twice = Document("twice", "The code is 4711. Nobody spoke. The code is 4711.")
    spans = (SelectedSpan("twice", 32, 49, None, 1.0), SelectedSpan("twice", 0, 17, None, 0.5))
    for order in (spans, spans[::-1]):
        (citation,) = cite("4711", "What is the code?", [twice], order, WEIGHT)
        assert citation.start == 0


@pytest.mark.parametrize("answer", ["8888", "", "the of and", "It is in Paris, under the bridge.", "The access code"])
def test_an_answer_that_no_sentence_supports_has_no_citation(answer: str) -> None:
    """Words that the question already said support nothing as long as the answer has others of its own."""
    question = "What is the access code for the Dray depot?"
    found = cite(answer, question, [DOCUMENT], WHOLE, WEIGHT)
    if answer == "The access code":
        assert all("access code" in c.quote for c in found)
    else:
        assert found == ()


def test_every_sentence_of_an_answer_is_cited_in_its_order() -> None:
    """The fourth and later ones used to be left out without a word."""
    facts = ["Orlova keeps the key", "the rent is 900", "Dray burned in 1911", "Tobin paid 40 ducats"]
    facts.append("the mill is red")
    document = Document.from_text(" ".join(f"They say that {fact}." for fact in facts), id="facts")
    spans = (SelectedSpan("facts", 0, len(document.text), None, 0.0),)
    answer = " ".join(f"{fact[0].upper()}{fact[1:]}." for fact in reversed(facts))
    found = cite(answer, "What is said?", [document], spans, Lexical([document.text]).weight)
    assert [citation.quote for citation in found] == [f"They say that {fact}." for fact in reversed(facts)]


def test_what_was_not_read_is_never_cited() -> None:
    at = TEXT.index("Nobody")
    spans = (SelectedSpan("memo", at, len(TEXT), 2, 0.0),)
    assert cite("depot 4711", "Which code?", [DOCUMENT], spans, WEIGHT)[0].start >= at
    assert cite("Mara Tobin", "Who?", [DOCUMENT], spans, WEIGHT) == ()
    assert cite("Mara Tobin", "Who?", [DOCUMENT], (), WEIGHT) == ()


def test_documents_are_told_apart_by_their_ids() -> None:
    other = Document.from_text("The key hangs in the hall.", id="other")
    spans = (*WHOLE, SelectedSpan("other", 0, len(other.text), None, 0.0))
    (found,) = cite("in the hall", "Where is the key?", [DOCUMENT, other], spans, WEIGHT)
    assert (found.document_id, found.quote, found.page) == ("other", other.text, None)


PIECES = st.sampled_from(
    (
        "Mara lives in Dray. ",
        "code 4711",
        "\r\n",
        "\n\n",
        "  ",
        "暗証番号は4711です。",
        "👍",
        "\ud83d",
        ". ",
        "e\u0301",
        '"',
    )
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=20).map("".join), st.data())
def test_every_quote_is_the_text_at_its_place(text: str, data: st.DataObject) -> None:
    document = Document.from_text(text)
    edges = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=6, unique=True)))
    spans = [SelectedSpan("text", a, b, None, 0.0) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    answer = data.draw(st.sampled_from(["4711", "Mara lives in Dray", "暗証番号", "code 4711 Dray", "nothing"]))
    found = cite(answer, "Who?", [document], spans, Lexical([text]).weight)
    assert len(found) <= 1, "every one of these answers is one sentence"
    for citation in found:
        assert citation.quote == text[citation.start : citation.end] == citation.quote.strip() != ""
        assert any(span.start <= citation.start and citation.end <= span.end for span in spans)
        assert 0.5 <= citation.score <= 1.0
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)


def test_the_sentence_nearest_to_a_question_holds_most_of_its_words() -> None:
    text = "  Rain fell. The kettle was old.  Tobin keeps the kettle there. A kettle of Tobin! "
    start, end = nearest("Where is the kettle of Tobin?", text)
    assert text[start:end] == "Tobin keeps the kettle there."
    assert nearest("Who was Mara?", text) == (0, len(text))
    assert nearest("Where is it?", "") == (0, 0)


@given(st.text(max_size=60), st.text(max_size=200))
def test_the_nearest_sentence_is_a_piece_of_the_text(question: str, text: str) -> None:
    start, end = nearest(question, text)
    assert 0 <= start <= end <= len(text) and (end > start or not text)
