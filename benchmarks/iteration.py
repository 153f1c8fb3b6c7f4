"""One whole iteration of self-play: play, score, learn, against `generate` and TRL's DPOTrainer, each in one process.

    python -m benchmarks.iteration --pairs 32 --spread 0.6

See `benchmarks.play` and `benchmarks.learn` for what the rivals are and what is timed. All answer every prompt,
with the same imposed lengths; all then learn from the same synthetic answers of those very lengths, so that the loss
curves can be compared. Left out on our side: the test that answers are samples of the opponent (law 5), whose cost
does not grow with the data. Useful tokens are those of the pairs, each counted once.
"""

from __future__ import annotations

from benchmarks.common import compare

if __name__ == "__main__":
    compare("iteration", __doc__)
