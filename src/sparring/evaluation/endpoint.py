"""A judge behind an OpenAI-compatible chat API: the one part of the evaluation that talks to a network, when named."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Literal, final

from sparring.errors import InputError

SECONDS = 120.0  # for one reply
TRIES = 5
WAIT = 1.0  # seconds before the second try, doubled each time
LATER = (408, 409, 429, 500, 502, 503, 504)  # what may be otherwise in a moment
ASKED = """Two assistants answered the same prompt. Say which answer is better: more correct, more helpful, closer to \
what was asked. Neither length nor order counts.

[Prompt]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

Explain in two sentences, then end with your verdict: [[A]], [[B]], or [[C]] for a tie."""
_VERDICT = re.compile(r"\[\[([ABC])\]\]")
_CHOICES: dict[str, Literal["first", "second", "tie"]] = {"A": "first", "B": "second", "C": "tie"}


@final
class _StaysThere(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: the key is for the address that was named, and for no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass
class Endpoint:
    """Asks at temperature 0. A reply without a verdict is a tie, and counted; if most are, that is an error."""

    url: str
    model: str
    key: str | None = None
    asked: int = 0
    unclear: int = 0

    @staticmethod
    def at(url: str, model: str | None, key_from: str | None) -> Endpoint:
        """The judge at a URL; its key, if it needs one, from an environment variable. InputError for what is amiss."""
        if not re.match(r"https?://[^/]+", url):
            raise InputError(f"judge endpoint:{url} is no web address; give one as in http://localhost:8000/v1")
        if not model:
            raise InputError("judge endpoint: which model? give its name with --model")
        if key_from and not os.environ.get(key_from):
            raise InputError(f"the environment variable {key_from}, which should hold the endpoint's key, is not set")
        path = url.rstrip("/")
        path += "" if path.endswith("/chat/completions") else "/chat/completions"
        return Endpoint(path, model, os.environ.get(key_from) if key_from else None)

    def __call__(self, prompt: str, first: str, second: str) -> Literal["first", "second", "tie"]:
        """The verdict; InputError, in one sentence, when the endpoint cannot be used."""
        reply = self._reply(ASKED.format(prompt=prompt, first=first, second=second))
        self.asked += 1
        found = _VERDICT.findall(reply)
        if found:
            return _CHOICES[found[-1]]
        self.unclear += 1
        if self.unclear > 2 and 2 * self.unclear > self.asked:
            raise InputError(
                f"{self.unclear} of {self.asked} replies of {self.model} at {self.url} hold no verdict ([[A]], [[B]] "
                f"or [[C]]), the last is {reply[:80]!r}; give a model that follows instructions"
            )
        return "tie"

    def _reply(self, text: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        answer = self._sent(json.dumps(body).encode())
        try:
            return str(json.loads(answer)["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError):
            raise InputError(
                f"{self.url} answered {answer[:80]!r}, which is not a chat completion; give the address of an "
                "OpenAI-compatible API, which mostly ends in /v1"
            ) from None

    def _sent(self, body: bytes) -> bytes:
        """The reply's bytes; failures that may pass are tried again after a while."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(self.url, body, headers)
        opener, why = urllib.request.build_opener(_StaysThere), ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(WAIT * 2 ** (attempt - 1))
            try:
                with opener.open(request, timeout=SECONDS) as reply:
                    content: bytes = reply.read()
                    return content
            except urllib.error.HTTPError as error:
                with error:  # it is a reply, too
                    if error.code not in LATER:
                        raise InputError(self._refusal(error)) from None
                    why = f"HTTP {error.code}"
            except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
                why = _plain(error)
        raise InputError(
            f"{self.url} cannot be used, {TRIES} times in turn ({why}); is the address right, and its server up?"
        )

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        hint = {
            401: "give the environment variable that holds its key with --key-from",
            403: "the key does not allow it",
            404: f"the address or the model's name ({self.model}) is wrong",
        }.get(error.code, f"it said {error.read(200).decode('utf-8', 'replace')!r}")
        return f"{self.url} refused with HTTP {error.code}: {hint}"


def _plain(error: Any) -> str:
    """What went wrong on the way, in a few words."""
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, TimeoutError):
        return f"no reply in {SECONDS:g} seconds"
    return str(reason) or type(reason).__name__
