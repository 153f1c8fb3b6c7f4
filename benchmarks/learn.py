"""Learning from pairs: Sparring's PairTask and fit against TRL's DPOTrainer, on the same pairs from the same adapter.

    python -m benchmarks.learn --lengths 121,288,288 --pairs 16
    python -m benchmarks.learn --lengths 64,8,8 --pairs 64 --json

What is timed: one epoch of optimiser steps, and all that the loss needs to know about the reference. A computes the
reference in every step, B in one pass before, ours in one pass before (the line "scoring the opponent": in fp32 of the
real answers only, since the synthetic ones' log-probs are caught while playing; what that costs is in benchmarks.play).
The line "learning" is ours with the opponent's log-probs given. Imports, loading, data preparation and a small warm-up
are not timed. Same token ids, order, steps, optimiser, learning rate; nothing is truncated (TRL's max_length is off).

--dtype fp32  all compute in fp32: A and B with bf16=False, everything else as TRL has it (A) or tuned (B).
              On a CPU without bf16 instructions TRL's own bf16 would be slow through no fault of its.
--dtype bf16  A as TRL comes (fp32 weights, bf16 autocast), B and ours with bf16 weights.
--dtype auto  bf16 where a run would take it: on CUDA, and on CPUs measured to be fast at it.

--malloc keep matters on a CPU: by default glibc takes buffers over 32 MiB from the kernel each time anew, page by page,
which is a third of TRL's CPU seconds (column "of it kernel") and less of ours. A tuned rival may well set it.

Useful tokens are those of prompt, real and synthetic answer, each counted once, and no padding.
"""

from __future__ import annotations

from benchmarks.common import compare

if __name__ == "__main__":
    compare("learn", __doc__)
