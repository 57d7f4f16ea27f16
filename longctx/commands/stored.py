"""What a text of so many tokens takes on the disk once it is compiled, told before it is.

Owns no sizes of its own: files are summed by ``store``, and what a usual text is taken for stands in ``sums``.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from longctx.commands import sums
from longctx.commands.screen import size
from longctx.store import manifest, sizes

if TYPE_CHECKING:
    from longctx.backend.report import Report

_DIMENSION = 384  # of an embedding by the embedded encoder


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes on the disk of the compiled form, by part; ``auto`` is where it would put keys and values here."""

    text_bytes: int
    copies_bytes: int
    embedding_bytes: int
    segment_exact_bytes: int
    segment_int8_bytes: int
    summary_bytes: int
    auto: str


def stored(model: Report, tokens: int) -> Stored:
    """The size of a text of ``tokens`` tokens once it is compiled; that of summaries where no two heads share keys."""
    from longctx.backend.summaries import CHUNK
    from longctx.calibration import GLANCING

    units = tokens // sums.UNIT + 1
    embeds = not model.abilities["embeds text (auto, dense)"]
    itemsize, heads = sums.NUMBER_BYTES.get(model.dtype, 4), model.kv_heads * sum(model.layers.values())
    exact, small = (sizes.segment_bytes(tokens, model.kv_bytes_per_token, itemsize, form) for form in manifest.FORMS)
    return Stored(
        sizes.document_bytes(tokens * sums.TEXT_BYTES, tokens, units),
        sizes.copy_bytes(tokens),
        sizes.vector_bytes(units, _DIMENSION) if embeds else 0,
        exact,
        small,
        sizes.summary_bytes(tokens, units, min(GLANCING, heads), model.head_dim, itemsize, CHUNK),
        "disk" if sizes.worth_storing(exact, shutil.disk_usage(Path.cwd()).free) else "none",
    )


def rows_of(kept: Stored, memory: int) -> list[tuple[str, str]]:
    """The compiled form on the disk, and what each place for keys and values adds to it and to memory."""
    exact, small = size(kept.segment_exact_bytes), size(kept.segment_int8_bytes)
    held = size(min(memory, kept.segment_exact_bytes))
    always = size(kept.text_bytes + kept.copies_bytes + kept.embedding_bytes)
    return [
        ("compiled", f"{always:>9}  on disk without keys and values (none)"),
        ("  --segment-kv summary", f"{size(kept.summary_bytes):>9}  more on disk, and with disk and ram too"),
        ("  --segment-kv disk", f"{exact:>9}  more on disk, {small} with --segment-form int8; mapped, not held"),
        ("  --segment-kv ram", f"{exact:>9}  more on disk, of which {held} are held in memory"),
        ("  --segment-kv auto", f"{kept.auto:>9}  here"),
    ]
