"""What every page is made with: templates that escape, the one script and its permit, files replaced whole.

A page is one file that loads nothing. Its Content-Security-Policy allows exactly one script, ours, by its hash:
a script that came in with the data would not run, even if the escaping failed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from sparring.report.svg import Plot

_HIDDEN = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def render(template: str, sheet: str = "", **values: Any) -> str:
    """A page from a template of this folder; everything but `Markup` is escaped.

    sheet  a style sheet of this folder that comes after the common one
    """
    environment = Environment(
        loader=FunctionLoader(_read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    script = _read("duels.js")
    style = _read("style.css") + (_read(sheet) if sheet else "")
    return environment.get_template(template).render(
        style=Markup(style), script=Markup(script), policy=_policy(script), **values
    )


def pictures(plots: Iterable[Plot]) -> list[dict[str, Any]]:
    """Plots as the pages' figures take them."""
    return [{"plot": plot, "svg": Markup(plot.svg)} for plot in plots]


def island(data: Any) -> Markup:
    """JSON that may stand in a script element: nothing in it can end the element."""
    return Markup(json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(_HIDDEN))


def replace(file: Path, content: str) -> Path:
    """Write beside the file, then rename over it: a reader sees the old file or the new one."""
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    beside.write_text(content, encoding="utf-8", newline="\n")
    os.replace(beside, file)
    return file


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _read(name: str) -> str:
    return resources.files("sparring.report").joinpath(name).read_text(encoding="utf-8")
