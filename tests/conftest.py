"""For every test: no network, few threads, quiet libraries."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Runs whose figures nobody looks at: drawing them takes a third of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparring.report.page.draw", lambda run: [])
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """A run sets torch's threads for its whole process; a test starts with one."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Ctrl-C reaches the processes that are started here, even if these tests run in a shell's background,
    where SIGINT is ignored and the ignoring is inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
