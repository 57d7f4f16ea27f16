"""Questions that selection answers badly, recognised by their words."""

from __future__ import annotations

import re

# A question about the whole text: every part is evidence, so a selection leaves most of it out.
_WHOLE = re.compile(
    r"\b(?:summari[sz]e|summary|overview|outline|tl;?dr|gist|recap)\b"
    r"|\b(?:main|key|central|overall|major)\s+(?:\w+\s+)?(?:idea|point|theme|topic|argument|message|finding|takeaway)s?\b"
    r"|\bwhat\s+(?:is|are|was)\s+(?:the|this|that)\s+(?:whole\s+|entire\s+)?"
    r"(?:text|document|book|report|article|story|paper|meeting|file)\s+about\b"
    r"|\bhow\s+(?:many\s+times|often)\b|\bcount\s+(?:the|all|every|how)\b"
    r"|\b(?:list|name|enumerate|give|find|show)\s+(?:me\s+)?(?:all|every|each)\b"
    r"|\b(?:whole|entire)\s+(?:text|document|book|report|article|story|paper|meeting|file)\b",
    re.IGNORECASE,
)


def whole_document(question: str) -> tuple[str, ...]:
    """A warning when ``question`` asks about the text as a whole; otherwise nothing."""
    if _WHOLE.search(question) is None:
        return ()
    return (
        "the question seems to ask about the whole text (a summary, a count, a full list): a selection leaves "
        "parts out, so the answer may be incomplete.",
    )
