"""A function of the user's own, by its import path: only where the user wrote that path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparring.errors import InputError


def imported(name: str, what: str, takes: str, error: type[InputError] = InputError) -> Callable[..., Any]:
    """The function `module:function`; modules in the working folder are found too.

    what   what it is called in messages; takes: its arguments, for the message
    Raises `error` where there is none.
    """
    path, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(path)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as fault:  # a module of someone else's may raise anything
        said = " ".join(str(fault).split())
        usual = isinstance(fault, ImportError | AttributeError | ValueError)
        why = said if usual else f"{type(fault).__name__}: {said}"
        raise error(f"{what} cannot be imported ({why}); give module:function") from fault
    if not callable(found):
        raise error(f"{what} is a {type(found).__name__}; give a function {takes}")
    function: Callable[..., Any] = found
    return function
