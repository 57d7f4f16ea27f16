"""Questions about the whole text are recognised, and questions about one fact are left alone."""

from __future__ import annotations

import pytest

from longctx.questions import whole_document

WHOLE = [
    "Summarise the report.",
    "Give me a summary",
    "What is the document about?",
    "What are the main findings?",
    "What is the key takeaway?",
    "List all people who are mentioned.",
    "How many times is the bridge named?",
    "How often does she speak?",
    "Count every chapter.",
    "tl;dr",
    "Find each date in the text.",
    "Does the whole book mention Dray?",
]
ONE = [
    "What is the access code for the Dray depot?",
    "Who painted the bridge?",
    "When did the council meet?",
    "How many crowns did the choir pay?",
    "What is the name of the main street?",
    "Which county is the depot in?",
    "Who was listed as the owner of the ledger?",
    "",
]


@pytest.mark.parametrize("question", WHOLE)
def test_a_question_about_the_whole_text_carries_a_warning(question: str) -> None:
    (warning,) = whole_document(question)
    assert "whole text" in warning
    assert whole_document(question.upper()) == (warning,)


@pytest.mark.parametrize("question", ONE)
def test_a_question_about_one_fact_carries_none(question: str) -> None:
    assert whole_document(question) == ()
