"""As much of Go's text/template, and of Ollama's Modelfile, as the files that are written need."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_PIECE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_TERM = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')


def parse_modelfile(text: str) -> dict[str, Any]:
    """FROM, TEMPLATE, SYSTEM, and `parameters` as a list of (name, value)."""
    found: dict[str, Any] = {"parameters": []}
    pattern = re.compile(r'(?:#[^\n]*\n)*([A-Z]+) (?:"""(.*?)"""|([^\n]*))\n', re.DOTALL)
    place = 0
    while place < len(text):
        match = pattern.match(text, place)
        assert match, f"not a Modelfile at {text[place : place + 40]!r}"
        name, long, short = match.groups()
        if name == "PARAMETER":
            key, _, value = short.partition(" ")
            found["parameters"].append((key, json.loads(value)))
        else:
            assert name in ("FROM", "TEMPLATE", "SYSTEM"), name
            found[name] = short if long is None else long
        place = match.end()
    return found


def render(template: str, messages: Sequence[Any]) -> str:
    """What Ollama makes of a chat: `range`, `if`, `else if`, `end`, `eq`, `ne`, variables, texts."""
    pieces = _PIECE.split(template)  # text, action, text, action, …
    steps = [(index % 2 == 1, piece.strip() if index % 2 else piece) for index, piece in enumerate(pieces)]
    body, rest = _block(steps)
    assert not rest
    scope: dict[str, Any] = {"Messages": [{"Role": m.role, "Content": m.content} for m in messages]}
    return _run(body, scope, {})


def _block(steps: list[tuple[bool, str]]) -> tuple[list[Any], list[tuple[bool, str]]]:
    """(nodes until `else` or `end`, what follows, that one included)."""
    nodes: list[Any] = []
    while steps:
        action, text = steps[0]
        if action and (text == "end" or text.startswith("else")):
            return nodes, steps
        steps = steps[1:]
        if not action:
            nodes.append(("text", text))
        elif text.startswith("range "):
            inner, steps = _block(steps)
            assert steps[0][1] == "end"
            nodes.append(("range", text[6:], inner))
            steps = steps[1:]
        elif text.startswith("if "):
            branches, steps = _branches(text[3:], steps)
            nodes.append(("if", branches))
        else:
            nodes.append(("do", text))
    return nodes, []


def _branches(condition: str, steps: list[tuple[bool, str]]) -> tuple[list[Any], list[tuple[bool, str]]]:
    branches = []
    while True:
        inner, steps = _block(steps)
        branches.append((condition, inner))
        text, steps = steps[0][1], steps[1:]
        if text == "end":
            return branches, steps
        condition = text.removeprefix("else").strip().removeprefix("if ") or '"else"'


def _run(nodes: list[Any], scope: Any, variables: dict[str, Any]) -> str:
    out = ""
    for kind, *rest in nodes:
        if kind == "text":
            out += rest[0]
        elif kind == "range":
            out += "".join(_run(rest[1], item, variables) for item in _value(rest[0], scope, variables))
        elif kind == "if":
            taken = next((inner for condition, inner in rest[0] if _value(condition, scope, variables)), [])
            out += _run(taken, scope, variables)
        else:
            match = re.fullmatch(r"(\$\w+) :?= (.+)", rest[0])
            if match:
                variables[match[1]] = _value(match[2], scope, variables)
            else:
                out += str(_value(rest[0], scope, variables))
    return out


def _value(text: str, scope: Any, variables: dict[str, Any]) -> Any:
    terms = [_term(term, scope, variables) for term in _TERM.findall(text) if term not in ("eq", "ne")]
    if text.startswith(("eq ", "ne ")):
        return (terms[0] == terms[1]) == text.startswith("eq")
    assert len(terms) == 1, text
    return terms[0]


def _term(term: str, scope: Any, variables: dict[str, Any]) -> Any:
    if term.startswith('"'):
        return json.loads(term)
    return variables[term] if term.startswith("$") else scope[term.removeprefix(".")]
