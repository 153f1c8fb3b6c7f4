"""Answering every prompt by plain sampling: Sparring's LocalGenerator against transformers' `generate`.

    python -m benchmarks.play --pairs 64 --lengths 64,1,128 --spread 0.6

A generates in batches of --batch in the order of the data, the adapter attached, padded on the left; B sorts the
prompts by length and merges the adapter first. A random model would not end its answers, so that their lengths are
imposed, alike on all: S tokens, or log-normal with --spread. R is not used. What is timed: all answers, merging
included; imports, loading and a small warm-up are not. Useful tokens are those of the answers up to their end.

--dtype fp32  all in fp32.  --dtype bf16  A all in fp32, as TRL keeps its weights, B and ours in bf16.
"""

from __future__ import annotations

from benchmarks.common import compare

if __name__ == "__main__":
    compare("play", __doc__)
