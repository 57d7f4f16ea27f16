"""Three facts planted in a text that has nothing to do with them, for the tests that need a real model."""

from __future__ import annotations

NEEDLES = {
    "What is the access code for the Dray depot?": "The access code for the Dray depot is 4711.",
    "Who repainted the lighthouse?": "Ilse Renwick painted the lighthouse once more in the spring.",
    "Where does Kofi Sandoval keep his telescope?": "Kofi Sandoval keeps the telescope under the stairs of the mill.",
}
_LINES = (
    "The rain had not stopped since the morning, and the roads were slow.",
    "Nobody at the table could say who had first thought of the journey.",
    "The windows faced the river, which made the rooms bright and cold.",
    "Two of the older chairs were mended, and the others were sold at the market.",
    "In June the garden was full of visitors who wanted to see the roses.",
    "The report runs to many pages, most of them tables that few people read.",
    "He wrote a long letter about the weather and the price of bread.",
    "As a rule the lamps are lit at dusk and put out before midnight.",
)


def text(sentences: int = 240) -> str:
    lines = [f"{_LINES[i % len(_LINES)]}" for i in range(sentences)]
    for place, fact in zip((0.2, 0.55, 0.9), NEEDLES.values(), strict=True):
        lines[int(place * sentences)] = fact
    return " ".join(lines)
