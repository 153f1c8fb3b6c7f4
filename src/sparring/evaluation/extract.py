"""The final answer in a text: what must be equal for two answers to match.

    whole          the text, white space at its ends stripped
    last_number    the last number, as GSM8K is scored: behind the last "####" if there is one
    anything else  a regular expression: its last match, of that the first group if it has one

Of a longer text only the last MOST characters are looked at.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

Extractor = Callable[[str], str | None]

MOST = 20_000

# A minus between two values is a subtraction ("5-3"); a point without digits behind it ends a sentence ("It is 12.").
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[-−][$€£]?)?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+)"
)


def extractor(spec: str) -> Extractor:
    """The function that `evaluation.match` names: a text → what counts in it, None if there is nothing.

    Raises ValueError, in one sentence, for an expression that cannot be read.
    """
    if spec in EXTRACTORS:
        return EXTRACTORS[spec]
    try:
        pattern = re.compile(spec)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f'evaluation.match "{spec}" is not a regular expression ({error}); give one, whole or last_number'
        ) from None
    return lambda text: _last_match(pattern, text[-MOST:])


def matches(spec: str, answer: str, real: str) -> bool:
    """Whether what counts in an answer equals what counts in the real one. Nothing matches nothing never."""
    extract = extractor(spec)
    wanted = extract(real)
    return wanted is not None and extract(answer) == wanted


def _whole(text: str) -> str | None:
    return text.strip()


def _last_number(text: str) -> str | None:
    """The last number, written plainly: "$1,234.50" → "1234.5"."""
    text = text[-MOST:]
    _, mark, tail = text.rpartition("####")
    found = _NUMBER.findall(tail) if mark else []
    found = found or _NUMBER.findall(text)
    if not found:
        return None
    whole, _, part = re.sub("[^0-9.]", "", found[-1]).partition(".")
    number = (whole.lstrip("0") or "0") + ("." + part).rstrip("0").rstrip(".")
    return f"-{number}" if found[-1][0] in "-−" and number != "0" else number


def _last_match(pattern: re.Pattern[str], text: str) -> str | None:
    found = deque(pattern.finditer(text), maxlen=1)
    if not found:
        return None
    said: str | None = found[0].group(1) if pattern.groups else found[0].group(0)
    return said


EXTRACTORS: dict[str, Extractor] = {"whole": _whole, "last_number": _last_number}
