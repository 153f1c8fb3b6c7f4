"""Everything Sparring raises on purpose.

    SparringError                    exit code 1
    ├── InputError                   exit code 2: something the user gave cannot be used
    │   ├── ConfigError              a key or value of the config
    │   ├── DataError                a file, a row, a column
    │   ├── ModelError               a base model, a tokenizer, an adapter
    │   ├── RunError                 a run folder: of another config, in use, damaged
    │   └── RewardError              a scorer: one that does not fit, or gives no number
    ├── LawBroken                    exit code 3: a law of the algorithm failed at run time; the run stops
    └── TrainingDiverged             exit code 4: NaN or Inf; the last good checkpoint is kept

A message says what was found, what is allowed, and what to do, in one sentence.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SparringError(Exception):
    """Base of every deliberate error; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(SparringError):
    """Something the user gave cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A key or value of the config."""


class DataError(InputError):
    """A file, a row or a column of the data."""


class ModelError(InputError):
    """A base model, tokenizer or adapter."""


class RunError(InputError):
    """A run folder that belongs to another config, is in use, or is damaged."""


class RewardError(InputError):
    """A scorer that does not fit the run, raises, or gives what is no number."""


class LawBroken(SparringError):
    """A law of the algorithm failed at run time."""

    exit_code = 3


class TrainingDiverged(SparringError):
    """The loss or a gradient is NaN or infinite."""

    exit_code = 4


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an "unknown name" message: the nearest known name, then all of them."""
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1)
    listed = f"known: {', '.join(names)}"
    return f'did you mean "{match[0]}"? ({listed})' if match else listed
