"""Which parts of a sentence encoder hold pickled weights and no others: the library below would read those.

Owns the names of such files. Finds the parts by the encoder's own lists, and loads no weights.
"""

from __future__ import annotations

import json
import posixpath
from typing import Any

from transformers.utils.hub import cached_file

# pickled weights that would be read -> what is read instead where it stands beside them
_INSTEAD = {"pytorch_model.bin": "model.safetensors", "adapter_model.bin": "adapter_model.safetensors"}
_ROUTERS = ("router_config.json", "config.json")  # where a part that is made of parts lists them


def pickled_only(where: str, local: bool) -> list[str]:
    """The pickled files of the encoder in the folder or hub id ``where`` that no other file stands in for."""
    listed = _json(where, "modules.json", local)
    waiting = ["."] if listed is None else [str(module["path"]) for module in listed]
    seen: set[str] = set()
    found = []
    while waiting:
        part = posixpath.normpath(waiting.pop())
        if part in seen or part.startswith(("..", "/")):  # an encoder is not loaded from outside its folder
            continue
        seen.add(part)
        for pickled, safe in _INSTEAD.items():
            there = any(_file(where, f"{part}/{name}", local) for name in (safe, f"{safe}.index.json"))
            if not there and _file(where, f"{part}/{pickled}", local) is not None:
                found.append(posixpath.normpath(f"{part}/{pickled}"))
        for name in _ROUTERS:
            held = _json(where, f"{part}/{name}", local)
            inner = held.get("types") if isinstance(held, dict) else None
            waiting += [f"{part}/{own}" for own in inner] if isinstance(inner, dict) else []
    return sorted(found)


def _json(where: str, name: str, local: bool) -> Any:
    """What a file of the encoder holds; None where there is no such file."""
    found = _file(where, name, local)
    if found is None:
        return None
    with open(found, encoding="utf-8") as file:
        return json.load(file)


def _file(where: str, name: str, local: bool) -> str | None:
    """The place of a file of the encoder, which is fetched if need be; None where there is none."""
    found: str | None = cached_file(
        where,
        posixpath.normpath(name),
        local_files_only=local,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return found
