"""What a scorer does in self-play: it judges players beside NLL, may choose the best, and may leave pairs out.

Without a section `scorer` nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sparring.data.pairs import Pair, Rows, write_stream
from sparring.evaluation.valued import value
from sparring.opponent import BATCH
from sparring.rewarding import examiner, scorer_of
from sparring.rewards.rank import filter_pairs
from sparring.rewards.scorer import Scorer
from sparring.run import Event, Phase
from sparring.session import Session

UNFILTERED = ("none", "shuffled")  # controls in which nobody plays, or labels are to be wrong


@dataclass
class Valuing:
    """The scorer's part in one run of self-play.

    fingerprint  the scorer's, "" without one
    examiner     that of the scorer of the test, which may be the default one; "" without one
    said         what it said of the players, by the name of their judgement
    """

    session: Session
    fingerprint: str
    examiner: str = ""
    said: dict[str, Phase] = field(default_factory=dict)

    @property
    def keeps(self) -> bool:
        """Whether it leaves out pairs."""
        play = self.session.config.selfplay
        return play.keep_pairs == "better" and play.negatives not in UNFILTERED

    def judge(self, data: Phase, scores: Phase) -> Phase:
        """Let the scorer judge a player too; returns the judgement that `evaluation.select` looks at."""
        if not self.fingerprint:
            return scores
        name, first = scores.name.replace("scores", "valued"), self.said.get("sft-scores")
        self.said[scores.name] = self.session.once(name, value, data, scores, first, scorer=self.fingerprint)
        return self.said[scores.name] if self.session.config.evaluation.select == "scorer" else scores

    def start_of(self, scores: Phase) -> list[Phase]:
        """What it said of the opponent, for learning, if it may end an iteration."""
        return [self.said[scores.name]] if self.session.config.selfplay.stop_score_drop else []

    def kept(self, pairs: Phase, iteration: int) -> Phase:
        """The pairs that are learnt from."""
        if not self.keeps:
            return pairs
        return self.session.once(f"{iteration}/kept", keep_better, pairs, scorer=self.fingerprint, iteration=iteration)


def valuing(session: Session) -> Valuing:
    """The scorer's part in a run, after all that can be found wrong with it before a model is loaded."""
    found = examiner(session)
    return Valuing(session, found if session.config.scorer else "", found)


def keep_better(session: Session, folder: Path, pairs: Phase, *, scorer: str, iteration: int) -> Event:
    """pairs.arrow without the synthetic answers that the scorer does not put below the real one. One process asks it.

    A pair that has none left is left out. Facts are those of `pairs`, with what is kept and `left_out`.
    """
    if not session.crew.writes:
        return {}
    counts = {"pairs": 0, "previous_pairs": 0, "answers": 0, "left_out": 0}
    given, rows = scorer_of(session), Rows([pairs.folder / "pairs.arrow"], Pair)
    write_stream(folder / "pairs.arrow", _better(given, rows, iteration, counts), Pair)
    left, answers = counts["left_out"], counts["answers"]
    said = f"{left} of {answers} synthetic answers were left out: {given.label} does not put them below the real one"
    if left == answers:
        said += "; nothing is left to learn from, so self-play ends here"
    session.run.warn(said)
    known: Event = {key: pairs.facts[key] for key in ("noise", "seated", "flipped") if key in pairs.facts}
    return {**known, **counts}


def _better(scorer: Scorer, rows: Rows[Pair], iteration: int, counts: dict[str, int]) -> Iterator[list[Pair]]:
    for batch in rows.batches(BATCH):
        found = filter_pairs(scorer, batch)
        counts["answers"] += found.answers
        counts["left_out"] += found.answers - found.kept
        for pair in found.pairs:
            counts["pairs" if pair.played_at == iteration else "previous_pairs"] += 1
        yield found.pairs
