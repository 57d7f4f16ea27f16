"""The words that facts are made of, drawn by a seed and never twice in one text.

Owns the word lists. They share no name and no form of sentence with those that models are calibrated on.
"""

from __future__ import annotations

import random
import re
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from longctx.errors import UsageError

FIRST = (
    "Aldous Beatrix Cornelius Delphine Edmund Fenella Gideon Henrietta Isidore Jocasta Konrad Leonora Matthias Nerissa "
    "Oswald Philippa Quentin Rosalind Sebastian Theodora Ursula Valentine Winifred Xavier Yolanda Zachary"
).split()
LAST = (
    "Abernathy Blackwood Carmichael Delacroix Eastwick Fairbairn Grimaldi Hathersage Iverson Jarvis Kettering Lovelace "
    "Mirabeau Nethercott Ormsby Pemberton Quarles Rutherford Stavely Thistlewood Underhill Vandermeer Wolstenholme"
).split()
_TOWN_HEAD = (
    "Amber Bracken Castle Dun Elder Farrow Glen Hollin Iron Kestrel Lark Marl Nettle Otter Penn Quarry Raven Sorrel "
    "Thorn Willow"
).split()
_TOWN_TAIL = "brook dale field ford gate haven moor stead ton wick".split()
THINGS = (
    "astrolabe bassoon candelabra dulcimer easel figurine gramophone harpoon inkwell javelin kaleidoscope lute "
    "microscope nutcracker ocarina parasol quilt rosary samovar typewriter"
).split()
COLOURS = "scarlet turquoise lavender charcoal saffron emerald maroon cobalt".split()
ROOMS = "attic ballroom cellar conservatory gallery kitchen nursery pantry scullery study workshop veranda".split()
ANIMALS = (
    "badger bittern cormorant dormouse egret ferret gannet heron ibis jackdaw kestrel lapwing marten nightjar otter "
    "plover quail redstart stoat teal"
).split()
_TRIES = 1000
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


T = TypeVar("T")


def most_frequent(text: str, count: int) -> tuple[str, ...]:
    """The ``count`` words that occur most often; none when the last of them occurs no more often than the next."""
    found = Counter(re.findall(r"\w+", text)).most_common(count + 1)
    certain = len(found) > count and found[count - 1][1] > found[count][1]
    return tuple(word for word, _ in found[:count]) if certain else ()


class Draw:
    """Words drawn with ``rng``; no draw of one object gives the same words again."""

    def __init__(self, rng: random.Random, used: Sequence[str] = ()) -> None:
        self.rng = rng
        self._used = set(used)

    def name(self) -> str:
        """A first and a last name."""
        return self._new(lambda: f"{self._one(FIRST)} {self._one(LAST)}")

    def town(self) -> str:
        """The name of a town that there is not."""
        return self._new(lambda: self._one(_TOWN_HEAD) + self._one(_TOWN_TAIL))

    def number(self, digits: int) -> str:
        """A number of so many digits."""
        return self._new(lambda: str(self.rng.randrange(10 ** (digits - 1), 10**digits)))

    def uuid(self) -> str:
        """A version 4 UUID."""
        return self._new(lambda: str(uuid.UUID(int=self.rng.getrandbits(128), version=4)))

    def letters(self, count: int) -> str:
        """So many capital letters."""
        return self._new(lambda: "".join(self.rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=count)))

    def crate(self) -> str:
        """An animal and four digits, as in heron-4821."""
        return self._new(lambda: f"{self._one(ANIMALS)}-{self.rng.randrange(1000, 10000)}")

    def coined(self, syllables: int) -> str:
        """A word that means nothing."""
        return self._new(
            lambda: "".join(self.rng.choice(_CONSONANTS) + self.rng.choice(_VOWELS) for _ in range(syllables))
        )

    def some(self, words: Sequence[T], count: int) -> list[T]:
        """``count`` different ones of ``words``, which other draws may give again."""
        return self.rng.sample(list(words), count)

    def place(self, low: float = 0.0, high: float = 1.0) -> float:
        """A share of the text between the two."""
        return self.rng.uniform(low, high)

    def _one(self, words: Sequence[str]) -> str:
        return words[self.rng.randrange(len(words))]

    def _new(self, draw: Callable[[], str]) -> str:
        for _ in range(_TRIES):
            found = draw()
            if found not in self._used:
                self._used.add(found)
                return found
        raise UsageError(
            f"the word lists give no more than about {len(self._used)} different facts for one text. Ask for fewer "
            "depths or distractors."
        )
