"""One whole iteration of self-play: play, score, learn, against `generate` and TRL's DPOTrainer, each in one process.

    python -m benchmarks.iteration --pairs 32 --spread 0.6

See `benchmarks.play` and `benchmarks.learn` for what the rivals are and what is timed. All answer every prompt,
with the same imposed lengths; all then learn from the same synthetic answers of those very lengths, so that the loss
curves can be compared. Left out on our side: the checks of the score phase, which look at no more than the first 256
prompts (are the answers samples of the opponent?), 32 (do caught log-probs agree with scored ones?) and 8 (how large is
rounding?), but at all of them in a benchmark of so few. Useful tokens are those of the pairs, each counted once.
"""

from __future__ import annotations

from benchmarks.common import compare

if __name__ == "__main__":
    compare("iteration", __doc__)
