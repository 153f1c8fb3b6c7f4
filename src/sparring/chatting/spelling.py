"""The text of an answer while its tokens come."""

from __future__ import annotations

from collections.abc import Callable
from typing import final


@final
class Spelling:
    """The text of an answer as its tokens come: never half a character, and in the end what `decode` gives."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self.ids: list[int] = []
        self.shown = ""

    def add(self, token: int) -> str:
        """What there is to show more after one more token."""
        self.ids.append(token)
        whole = self._decode(self.ids).rstrip("\N{REPLACEMENT CHARACTER}")  # bytes of a character that is not whole yet
        return self._more(whole) if whole.startswith(self.shown) else ""

    def rest(self) -> str:
        """What is still to be shown when no token follows."""
        whole = self._decode(self.ids)
        if not whole.startswith(self.shown):  # a tokenizer that takes back what it wrote: go on where that began
            same = zip(whole, self.shown, strict=False)
            self.shown = whole[: next((i for i, (a, b) in enumerate(same) if a != b), min(len(whole), len(self.shown)))]
        return self._more(whole)

    def _more(self, whole: str) -> str:
        more = whole[len(self.shown) :]
        self.shown = whole
        return more
