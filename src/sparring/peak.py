"""The most memory that a phase has held: of the GPU where one is in use, else of this process."""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes, and what they are of.

    of  "GPU": tensors, by the allocator; "process": resident memory in this phase; "process so far": resident memory
        since the process began, where the system keeps no other account
    """

    bytes: int
    of: str

    def kept(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def restart() -> str:
    """Begin to watch anew; returns what `reached` will be of, if no GPU comes into use."""
    if (cuda := _cuda()) is not None:
        cuda.reset_peak_memory_stats()
    try:
        RESET.write_text("5")  # sets the high-water mark back to what is resident now
    except OSError:  # not Linux, or not allowed in this container
        return "process so far"
    return "process"


def reached(of: str, earlier: dict[str, Any] | None = None) -> Peak:
    """The peak since `restart`. earlier: `kept` of the same phase before it was killed."""
    cuda = _cuda()
    now = Peak(_resident(of), of) if cuda is None else Peak(int(cuda.max_memory_allocated()), "GPU")
    if earlier and earlier["of"] == now.of:
        return Peak(max(now.bytes, earlier["bytes"]), now.of)
    return now


def _resident(of: str) -> int:
    if of == "process":
        line = next((one for one in STATUS.read_text().splitlines() if one.startswith("VmHWM:")), None)
        if line is not None:
            return 1024 * int(line.split()[1])
    return UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _cuda() -> Any:
    """torch.cuda if it is at work; nothing is imported or begun for this."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
