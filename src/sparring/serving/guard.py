"""What stands before a server of others: what is asked is looked at first.

For a model that is not served, transformers would take any folder of this machine and llama.cpp its first model;
neither says that a prompt is too long in a way that a client can read, and transformers' server knows no keys. Whatever
is wrong is answered with a sentence of JSON, and the server lives on.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, final

from jinja2 import TemplateError

from sparring.errors import nearest

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Event, Receive, Send], Awaitable[None]]

KEY = "SPARRING_API_KEY"
MOST_BYTES = 2**24  # of a question
ASKS = ("/v1/completions", "/v1/chat/completions")
TELLS = ("/v1/models", "/health")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


@final
class Wrong(Exception):
    """What is answered in place of the server."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@final
class Guard:
    """An ASGI application before another.

    models    what may be asked for
    defaults  of a question that does not say
    key       that every question must bring; None: none
    chats     whether the models have chats; else they continue plain text
    """

    def __init__(
        self, app: App, models: list[str], defaults: dict[str, Any], key: str | None, chats: bool = True
    ) -> None:
        self.app = app
        self.chats = chats
        self.models = models
        self.defaults = defaults
        self.key = key

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answer what is wrong, and hand on what is right."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = [pair for pair in scope["headers"] if pair[0] != b"origin"]  # pages of others read no answers
        scope = {**scope, "headers": headers}
        try:
            self._enters(scope)
            if scope["method"] == "POST":
                body = self._question(await _whole(receive))
                scope, receive = _again(scope, receive, body)
            await self._hand_on(scope, receive, send)
        except Wrong as wrong:
            await _answer(send, wrong)

    def _enters(self, scope: Event) -> None:
        headers = dict(scope["headers"])
        if self.key is None:
            _local(headers.get(b"host", b"").decode(errors="replace"))
        elif not hmac.compare_digest(headers.get(b"authorization", b""), f"Bearer {self.key}".encode()):
            raise Wrong(401, "the API key is missing or wrong", "invalid_api_key")
        known = {"GET": TELLS, "HEAD": TELLS, "POST": ASKS}.get(scope["method"], ())
        if scope["path"] not in known:
            there = ", ".join([*(f"GET {path}" for path in TELLS), *(f"POST {path}" for path in ASKS)])
            raise Wrong(404, f"{scope['method']} {scope['path']} is not served; there are {there}", "not_found")
        if not self.chats and scope["path"] == ASKS[1]:
            raise Wrong(400, "these models continue plain text and have no chats; ask /v1/completions", "no_chats")
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":  # what a page of others may send unasked is not
            raise Wrong(415, "a question needs the header Content-Type: application/json", "bad_json")

    def _question(self, body: bytes) -> bytes:
        """The question with what it does not say; Wrong if it is none, or asks for a model that is not served."""
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Wrong(400, f"the question is not JSON ({error})", "bad_json") from None
        if not isinstance(asked, dict):
            raise Wrong(400, "the question is not a JSON object", "bad_json")
        name = asked.get("model")
        if not isinstance(name, str) or name not in self.models:
            raise Wrong(404, f"there is no model {json.dumps(name)}; {nearest(str(name), self.models)}", "no_model")
        if asked.get("n") not in (None, 1):
            raise Wrong(400, f"n is {json.dumps(asked['n'])}, but a question gets one answer; ask again", "bad_request")
        return json.dumps({**self.defaults, **asked}).encode()

    async def _hand_on(self, scope: Event, receive: Receive, send: Send) -> None:
        """Ask the server; an error inside it, of which it says only that there was one, is told."""
        status, parts = 0, list[bytes]()

        async def hear(event: Event) -> None:
            nonlocal status
            if event["type"] == "http.response.start" and event["status"] >= 400:
                status = event["status"]
            elif status:
                parts.append(event.get("body", b""))
            else:
                await send(event)

        try:
            await self.app(scope, receive, hear)
        except Wrong:  # of what stands inside the server
            raise
        except Exception as error:  # the server lives on, and who asked is told
            if not status:
                raise
            raise _told(scope["path"], error) from None
        if status:
            raise Wrong(status, _detail(b"".join(parts)), "refused" if status < 500 else "server_error")


def _told(path: str, error: Exception) -> Wrong:
    """What a question's failure is, as an answer; the terminal gets it in a line."""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    print(f"{path}: {said}", file=sys.stderr, flush=True)
    if isinstance(error, (ValueError, TypeError, LookupError, TemplateError)):
        return Wrong(400, f"this cannot be answered ({said})", "bad_request")
    return Wrong(500, f"the server failed ({said})", "server_error")


def _detail(body: bytes) -> str:
    """A server's own words for an error."""
    try:
        told = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")[:500]
    said = told.get("detail", told.get("error", told)) if isinstance(told, dict) else told
    if isinstance(said, dict):
        said = said.get("message", said)
    return said if isinstance(said, str) else json.dumps(said)


def _local(host: str) -> None:
    """Refuse a name that is not this machine's own: a web page may give its name this machine's address."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    if not is_loopback(name.strip("[]").lower()):
        said = f"without a key this is served to this machine only, as localhost or 127.0.0.1, not as {name!r}"
        raise Wrong(403, said, "bad_host")


async def _whole(receive: Receive) -> bytes:
    parts, size, more = list[bytes](), 0, True
    while more:
        event = await receive()
        if event["type"] != "http.request":
            raise Wrong(400, "the question was cut off", "bad_json")
        parts.append(event.get("body", b""))
        size, more = size + len(parts[-1]), event.get("more_body", False)
        if size > MOST_BYTES:
            raise Wrong(413, f"the question has more than {MOST_BYTES >> 20} MiB", "too_large")
    return b"".join(parts)


def _again(scope: Event, receive: Receive, body: bytes) -> tuple[Event, Receive]:
    """The same request with another body; after it, what the client does next is heard as before."""
    headers = [pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"transfer-encoding")]
    headers.append((b"content-length", str(len(body)).encode()))
    first: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Event:
        return first.pop() if first else await receive()

    return {**scope, "headers": headers}, replay


async def _answer(send: Send, wrong: Wrong) -> None:
    """The error as OpenAI's clients read it."""
    kind = "server_error" if wrong.status >= 500 else "invalid_request_error"
    told = {"error": {"message": wrong.message, "type": kind, "param": None, "code": wrong.code}}
    body = json.dumps(told).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": wrong.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
