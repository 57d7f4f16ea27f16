"""What ``plan``, ``stored`` and ``forecast`` take a usual text, a question and one pass of a model for.

Owns these counts and sizes, each stated once. Loads no model: it is told about one by its report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longctx import plugins
from longctx.commands.settings import Settings

if TYPE_CHECKING:
    from longctx.backend.report import Report

QUESTION = 8  # tokens of a question
_STATES = ("linear_attention", "hybrid", "hybrid_sliding")  # kinds of layers that keep a state in place of keys
UNIT = 60  # tokens of a unit: sentences of prose
TEXT_BYTES = 4  # bytes of text a token stands for; twice or four times that outside Latin scripts
NUMBER_BYTES = {"bfloat16": 2, "float16": 2, "float64": 8}  # of a number; any other format counts as four

# What a selector uses; a method that is not named here is taken to use everything.
_ENCODES = dict.fromkeys(("bm25", "head", "random", "all", "infiniretri", "longheads", "xl3m"), False)
_READS = {"bm25": False, "head": False, "random": False, "all": False, "dense": False}


def kept(model: Report, tokens: int) -> int:
    """Bytes of the keys and values of ``tokens`` in one cache, where layers with a window keep the last of them."""
    from longctx.backend.slots import longest

    inside = model.sliding_bytes_per_token
    slots = min(tokens, longest(model.sliding_window, piece()))
    return tokens * (model.kv_bytes_per_token - inside) + slots * inside


def held(model: Report, tokens: int, policy: str) -> int:
    """Bytes that a text of ``tokens`` takes once ``policy`` has bounded it. Raises BadOption for its budget."""
    method = plugins.load("kv", policy)
    if method.slots(tokens) >= tokens:
        return kept(model, tokens)
    from longctx.backend.compressing import SEEN

    layers = len(model.cache_layers.get(SEEN["full_attention"], ()))
    itemsize = max(1, model.weight_bytes // max(1, model.parameters))
    own: int = method.index_bytes(tokens, model.heads, model.kv_heads, model.head_dim, itemsize)
    return kept(model, tokens) + layers * own


def segment(settings: Settings) -> int:
    """Tokens of a segment."""
    from longctx.reader import SEGMENT_TOKENS

    return settings.segment_tokens or SEGMENT_TOKENS


def segment_memory(settings: Settings) -> int:
    """Bytes of segments that the reader keeps at most."""
    from longctx.reader import MEMORY_BYTES

    return MEMORY_BYTES if settings.segment_memory_bytes is None else settings.segment_memory_bytes


def encodes(model: Report, settings: Settings) -> bool:
    """Whether the selector has the whole text embedded before it chooses."""
    name = settings.selector.partition(":")[0]
    return _ENCODES.get(name, True) and not model.abilities["embeds text (auto, dense)"]


def tokens_read(settings: Settings, tokens: int, budget: int) -> int:
    """Tokens of the text that the model reads to choose for one question."""
    name = settings.selector.partition(":")[0]
    if not _READS.get(name, True):
        return 0
    if name != "auto":
        return tokens
    method: Any = plugins.load("selectors", settings.selector)
    if not method.model:
        return 0
    return min(tokens, int(method.limit(budget)) + (int(method.sample) + 1) * segment(settings))


def activations(model: Report, tokens: int, reading: bool = False) -> int:
    """The tensors of one layer's pass over ``tokens``, several of each width alive at a time."""
    width = 4 * model.hidden + 3 * model.intermediate + 2 * model.heads * model.head_dim
    return tokens * width * NUMBER_BYTES.get(model.reading_dtype if reading else model.dtype, 4)


def piece() -> int:
    """Tokens of a prompt that one pass takes."""
    from longctx.decoding.loop import PIECE

    return PIECE


def at_once(model: Report, prompt: int) -> int:
    """Tokens of a ``prompt`` that one pass takes: all where layers keep one state, as another pass may begin anew."""
    keeps_states = any(words.endswith(_STATES) for words in model.cache_layers)
    return prompt if keeps_states else min(prompt, piece())
