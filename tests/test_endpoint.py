"""A server under test, played by one of our own: answers, delays, refusals and failures, each ending as it should."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from longctx import Document
from longctx.errors import EndpointError, UsageError
from longctx.pipelines.endpoint import Endpoint
from longctx.pipelines.needle_systems import turn

DOCUMENT = Document.from_text("The lamp stands in room 4711.", "lamp")
GOOD = {
    "choices": [{"message": {"content": " Room 4711. "}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 40, "completion_tokens": 4},
}
Reply = tuple[int, Any, dict[str, str]]


class Server:
    """Gives its replies one after the other, the last for ever, and keeps what it was asked."""

    def __init__(self) -> None:
        self.replies: list[Reply] = [(200, GOOD, {})]
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.hold = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.path, dict(self.headers), body))
                status, said, headers = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                if status == 0:  # never answers while the test runs
                    outer.hold.wait(5)
                    return
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                if "Trickle" in headers:  # a byte now and then, of the head or behind it
                    head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data)
                    fast = head if headers["Trickle"] == "body" else b""
                    self.wfile.write(fast)
                    with contextlib.suppress(OSError):  # the other end has gone
                        for byte in (head + data)[len(fast) :]:
                            self.wfile.write(bytes([byte]))
                            outer.hold.wait(0.1)
                    return
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.hold.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def endpoint(server: Server, sleep: Callable[[float], None] = lambda seconds: None, **options: Any) -> Endpoint:
    return Endpoint(server.url, "m", 16, lambda text: len(text.split()), sleep=sleep, **options)


def test_the_whole_text_and_the_question_are_sent_and_the_answer_comes_back(server: Server) -> None:
    said = endpoint(server).answer(DOCUMENT, "Where is the lamp?")
    assert (said.text, said.read, said.warnings) == ("Room 4711.", None, ())
    assert said.facts == {"prompt_tokens": 40, "completion_tokens": 4, "finish_reason": "stop", "retries": 0}
    path, _, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": turn(DOCUMENT.text, "Where is the lamp?")}]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 16, 0.0)


def test_a_key_is_sent_and_written_nowhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    asked = endpoint(server)
    asked.answer(DOCUMENT, "?")
    assert server.asked[0][1]["Authorization"] == "Bearer sesame"
    assert "sesame" not in repr(asked)
    secret = Endpoint("http://user:word@host:1/v1?key=sesame", "m", 16, len)
    assert secret.settings["endpoint"] == "http://host:1/v1"


def test_busy_and_failing_servers_are_asked_again_after_growing_pauses(server: Server) -> None:
    waits: list[float] = []
    busy: list[Reply] = [(429, {}, {"Retry-After": "7"}), (500, {}, {}), (503, {}, {"Retry-After": "never"})]
    server.replies = [*busy, (200, GOOD, {})]
    said = endpoint(server, waits.append).answer(DOCUMENT, "?")
    assert said.text == "Room 4711." and said.facts["retries"] == 3
    assert waits == [7.0, 2.0, 4.0]


def test_tries_end_and_the_error_says_how_many_there_were(server: Server) -> None:
    server.replies = [(500, b"out of order", {})]
    with pytest.raises(EndpointError, match="answered 500, and 2 more tries") as failed:
        endpoint(server, retries=2).answer(DOCUMENT, "?")
    assert (failed.value.retries, failed.value.closed, len(server.asked)) == (2, False, 3)


def test_a_server_that_does_not_answer_in_time_is_asked_again(server: Server) -> None:
    server.replies = [(0, None, {}), (200, GOOD, {})]
    said = endpoint(server, timeout_seconds=2.0).answer(DOCUMENT, "?")
    assert said.facts["retries"] == 1


def test_a_server_that_is_gone_is_an_error(server: Server) -> None:
    asked = endpoint(server, retries=1)
    server.close()
    with pytest.raises(EndpointError, match="connection to the server failed") as failed:
        asked.answer(DOCUMENT, "?")
    assert not failed.value.refused


@pytest.mark.parametrize(
    ("status", "refused", "closed"),
    [
        (400, True, False), (413, True, False), (401, False, True), (403, False, True), (404, False, True),
        (422, False, False),
    ],
)  # fmt: skip
def test_a_refusal_is_not_tried_again_and_says_whether_it_is_of_this_prompt_or_of_all(
    server: Server, status: int, refused: bool, closed: bool
) -> None:
    server.replies = [(status, {"error": {"message": "context length exceeded"}}, {})]
    with pytest.raises(EndpointError, match=f"answered {status}") as failed:
        endpoint(server).answer(DOCUMENT, "?")
    assert (failed.value.refused, failed.value.closed, len(server.asked)) == (refused, closed, 1)


@pytest.mark.parametrize("reply", [b"<html>", {"choices": []}, {"choices": [{"message": None}]}, []])
def test_an_answer_without_a_message_is_an_error(server: Server, reply: Any) -> None:
    server.replies = [(200, reply, {})]
    with pytest.raises(EndpointError, match="not JSON|no message") as failed:
        endpoint(server).answer(DOCUMENT, "?")
    assert not failed.value.refused and not failed.value.closed


def test_of_a_refusal_only_the_state_and_names_of_errors_are_told(server: Server) -> None:
    for error in (
        {"message": f"too long: {DOCUMENT.text}", "type": "invalid_request_error", "code": "context_length_exceeded"},
        {"message": "?", "type": DOCUMENT.text, "code": 4711},
        DOCUMENT.text,
    ):
        server.replies = [(400, {"error": error}, {})]
        with pytest.raises(EndpointError) as failed:
            endpoint(server).answer(DOCUMENT, "?")
        assert "lamp" not in str(failed.value) and "400" in str(failed.value)
        if "code" in error and error["code"] != 4711:
            assert "invalid_request_error, context_length_exceeded" in str(failed.value)


def test_a_try_ends_in_time_however_slowly_the_server_speaks(server: Server) -> None:
    slow: list[Reply] = [(200, GOOD, {"Trickle": "head"}), (200, GOOD, {"Trickle": "body"})]
    for reply in slow:
        server.replies = [reply]
        with pytest.raises(EndpointError, match="within 0.3 s"):
            endpoint(server, timeout_seconds=0.3, retries=0).answer(DOCUMENT, "?")
    assert server.hold.wait(0) is False


def test_an_answer_that_cannot_be_decoded_is_asked_for_again(server: Server) -> None:
    server.replies = [(200, b"no gzip", {"Content-Encoding": "gzip"}), (200, GOOD, {})]
    assert endpoint(server).answer(DOCUMENT, "?").facts["retries"] == 1


def test_a_prompt_that_the_server_cut_is_told(server: Server) -> None:
    server.replies = [(200, {**GOOD, "usage": {"prompt_tokens": 3}}, {})]
    assert "may have cut the prompt" in endpoint(server).answer(DOCUMENT, "?").warnings[0]


@pytest.mark.parametrize("status", [401, 403, 404, 422])
def test_a_refusal_says_what_to_look_at(server: Server, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for key in ("", "sesame"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        server.replies = [(status, {}, {})]
        with pytest.raises(EndpointError, match=f"answered {status}\\.") as failed:
            endpoint(server).answer(DOCUMENT, "?")
        said.append(str(failed.value))
    assert "sesame" not in "".join(said)
    if status in (401, 403):
        assert "Set OPENAI_API_KEY" in said[0] and "did not take the key of OPENAI_API_KEY" in said[1]
    else:
        assert said[0] == said[1] and ("--endpoint-model" in said[0]) == (status == 404)


@pytest.mark.parametrize(
    ("url", "model"),
    [
        *((url, "m") for url in ("localhost:8000", "ftp://host", "http://", "http://:80/v1", "http://host:0/v1")),
        *((url, "m") for url in ("http://host:abc/v1", "http://host:70000/v1", "http://[::1/v1", "http://host:-1/v1")),
        ("http://host/v1", ""),
    ],
)
def test_addresses_and_names_are_checked_before_anything_is_sent(url: str, model: str) -> None:
    with pytest.raises(UsageError, match="--endpoint"):
        Endpoint(url, model, 16, len)


@pytest.mark.parametrize("url", ["http://host/v1", "https://host:8000", "http://[::1]:8000/v1", "http://10.0.0.1:1/v1"])
def test_an_address_may_be_a_name_or_a_number_with_a_port_or_without(url: str) -> None:
    assert Endpoint(url, "m", 16, len).settings["endpoint"].startswith(url.partition("/v1")[0].replace("[::1]", "::1"))
