"""How many bytes the parts of an artifact take, and whether keys and values are worth storing by themselves.

Owns the sums, for saving and for planning alike. Knows counts only.
"""

from __future__ import annotations

from longctx.store.manifest import Form

AUTO_BYTES = 8 << 30  # what "auto" stores of keys and values at most
_TOKEN = 4 + 8  # its id, and where it begins
_UNIT = 6 * 8  # its ranges of characters, of tokens and of its heading
_EMBEDDED = 16  # the hash beside an embedding
_PLACE = 4  # of a suffix array
_ARRAYS = 2  # one of the tokens as they are, one of them folded
_SCALES = 1.07  # what eight bits take with their scales


def segment_bytes(tokens: int, bytes_per_token: int, itemsize: int, form: Form) -> int:
    """Keys and values of ``tokens`` tokens; ``itemsize`` is that of the model's dtype."""
    exact = tokens * bytes_per_token
    return exact if form == "exact" else round(exact / itemsize * _SCALES)


def document_bytes(text_bytes: int, tokens: int, units: int) -> int:
    """Text, tokens and units."""
    return text_bytes + tokens * _TOKEN + units * _UNIT


def copy_bytes(tokens: int) -> int:
    """Suffix arrays of ``tokens`` tokens."""
    return tokens * _PLACE * _ARRAYS


def vector_bytes(units: int, dimension: int) -> int:
    """Embeddings of ``units`` units."""
    return units * (4 * dimension + _EMBEDDED)


def summary_bytes(tokens: int, units: int, heads: int, dim: int, itemsize: int, chunk: int) -> int:
    """What stands for segments in ``heads`` KV heads: a representation for every chunk, two bounds for every unit."""
    return (-(-tokens // chunk) + units // 2 + 2 * units) * heads * dim * itemsize  # chunks end where units end


def worth_storing(needed: int, free: int) -> bool:
    """Whether ``auto`` stores ``needed`` bytes of keys and values on a disk with ``free`` bytes."""
    return needed <= min(AUTO_BYTES, free // 2)
