"""A server that speaks the OpenAI chat protocol, as a system under test.

Owns the request, its limits of time and tries, and what a failure is called. The key is read from OPENAI_API_KEY where
that is set, and stands in no row and no message. Needs httpx, of the extra ``eval``.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import longctx
from longctx.errors import EndpointError, MissingExtra, UsageError

from .needle_systems import Said, turn

if TYPE_CHECKING:
    import httpx

_KEY = "OPENAI_API_KEY"
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # states of a server that may be over at the next try
_REFUSING = {400, 413}  # states that speak of the request: too long, most often
_UNKNOWN_KEY, _NOT_FOUND = {401, 403}, 404
_CLOSED = {*_UNKNOWN_KEY, _NOT_FOUND}  # states that every other request will meet too
_LONGEST_WAIT = 60.0  # seconds; also where the server asks for more
_SHORTEST_SHARE = 0.5  # of our count of tokens; a server that counts fewer has probably cut the prompt
_NAME = re.compile(r"[\w.-]{1,40}")  # of a kind of error; sentences may repeat the text that was asked about


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The chat completions of ``model`` at ``url``, greedy. ``tokens`` counts a prompt in the tokens of the lengths.

    A try ends after ``timeout_seconds``; timeouts, broken connections and passing states are tried again up to
    ``retries`` times, after 1, 2, 4 … seconds or as the server asks.
    """

    url: str
    model: str
    max_new_tokens: int
    tokens: Callable[[str], int]
    timeout_seconds: float = 600.0
    retries: int = 3
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if find_spec("httpx") is None:
            raise MissingExtra("asking a server", "httpx", "eval")
        if not _is_address(self.url):
            raise UsageError(f"--endpoint {self.url!r} is no address such as http://localhost:8000/v1.")
        if not self.model:
            raise UsageError("--endpoint needs --endpoint-model, the name that the server knows the model by.")

    @property
    def name(self) -> str:
        return f"endpoint:{self.model}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """What must be the same for rows to be compared; of the address only what holds no secret."""
        parts = urlsplit(self.url)
        host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
        return {"endpoint": f"{parts.scheme}://{host}{parts.path}", "max_new_tokens": self.max_new_tokens}

    def answer(self, document: longctx.Document, question: str) -> Said:
        """Raises EndpointError when the server refuses or the last try fails."""
        prompt = turn(document.text, question)
        started = time.perf_counter()
        reply, retries = self._asked(prompt)
        try:
            choice, usage = reply["choices"][0], reply.get("usage") or {}
            text = str(choice["message"]["content"] or "").strip()
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise EndpointError(f"the server's answer has no message in it ({error!r}).", retries) from error
        facts = {name: usage[name] for name in ("prompt_tokens", "completion_tokens") if name in usage}
        facts |= {"finish_reason": choice.get("finish_reason"), "retries": retries}
        warnings = _cut(facts.get("prompt_tokens"), self.tokens(prompt))
        return Said(text, None, facts, {"decode": time.perf_counter() - started}, warnings)

    def _asked(self, prompt: str) -> tuple[dict[str, Any], int]:
        """The server's JSON and how many tries failed before it came."""
        import httpx

        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_new_tokens,
            "temperature": 0.0,
        }
        key = os.environ.get(_KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        said = ""
        for tried in range(self.retries + 1):
            wait = float(2**tried)
            try:
                reply = asyncio.run(self._posted(body, headers))
            except TimeoutError:
                said = f"the server did not answer within {self.timeout_seconds:g} s"
            except httpx.RequestError as error:
                said = f"the connection to the server failed ({type(error).__name__})"
            else:
                if reply.is_success:
                    return _json(reply, tried), tried
                said = f"the server answered {reply.status_code}{_named(reply)}"
                if reply.status_code not in _PASSING:
                    state = reply.status_code
                    ended = f"{said}.{_remedy(state, bool(key))}"
                    raise EndpointError(ended, tried, refused=state in _REFUSING, closed=state in _CLOSED)
                wait = _asked_for(reply, wait)
            if tried < self.retries:
                self.sleep(min(wait, _LONGEST_WAIT))
        raise EndpointError(f"{said}, and {self.retries} more tries ended no better.", self.retries)

    async def _posted(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> httpx.Response:
        """The whole reply. Raises TimeoutError when it takes longer, however often a part of it comes."""
        import httpx

        async with httpx.AsyncClient(timeout=None) as client, asyncio.timeout(self.timeout_seconds):
            return await client.post(f"{self.url.rstrip('/')}/chat/completions", json=body, headers=headers)


def _is_address(url: str) -> bool:
    """Whether ``url`` names a host, and a port that there can be where it names one."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that enclose no address, or a port that is no number
        return False


def _named(reply: httpx.Response) -> str:
    """The names that the protocol has for an error, in brackets, and nothing else of what the server said."""
    try:
        error = reply.json()["error"]
        found = [str(error[name]) for name in ("type", "code") if error.get(name)]
    except (ValueError, KeyError, TypeError, AttributeError):  # not of the protocol
        return ""
    names = [name for name in found if _NAME.fullmatch(name)]
    return f" ({', '.join(names)})" if names else ""


def _remedy(state: int, keyed: bool) -> str:
    if state in _UNKNOWN_KEY:
        return f" It did not take the key of {_KEY}." if keyed else f" Set {_KEY} to its key, which is not set."
    return " Look at the path of --endpoint and at --endpoint-model." if state == _NOT_FOUND else ""


def _json(reply: httpx.Response, tried: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = reply.json()
    except ValueError as error:
        raise EndpointError("the server's answer is not JSON.", tried) from error
    return found


def _asked_for(reply: httpx.Response, otherwise: float) -> float:
    """The seconds that the server asks to wait, where it names a number."""
    try:
        return max(0.0, float(reply.headers.get("Retry-After", otherwise)))
    except ValueError:  # a date
        return otherwise


def _cut(counted: int | None, ours: int) -> tuple[str, ...]:
    if counted is None or counted >= _SHORTEST_SHARE * ours:
        return ()
    return (f"the server counted {counted:,} prompt tokens and we {ours:,}: it may have cut the prompt.",)
