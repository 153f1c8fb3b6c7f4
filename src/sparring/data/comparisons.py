"""Formats of preference pairs: one row in, a Conversation that ends in the chosen answer and knows the rejected one.

A format is a line in PREFERENCES: the columns it needs, and a function from a row to both sides. What holds for
every pair (nothing empty, nothing equal, one prompt) is checked once, in `PreferenceFormat.parse`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from sparring.config import DataConfig
from sparring.data.formats import Format, asked_text, marked_turns
from sparring.data.messages import Conversation, Message, Other
from sparring.data.values import BadRow, Row, column_text, messages_of, needed, shown
from sparring.errors import DataError

ANNOTATORS = ("annotator1", "annotator2", "annotator3")
VOTES = "votes"  # of several people, beside chosen and rejected: 1, 0, or 1/2 for neither
SAID = (1.0, 0.0, 0.5)


@dataclass(frozen=True, slots=True)
class Sides:
    """What a row compares. votes: 1 for `chosen`, 0 for `rejected`, 1/2 for neither; tie: most chose neither."""

    prompt: list[Message]
    chosen: str
    rejected: str
    chat: bool
    votes: tuple[float, ...] = ()
    tie: bool = False


@dataclass(frozen=True, slots=True)
class PreferenceFormat:
    """A format of preference pairs: the columns it needs, those it may use, and how its sides are read."""

    name: str
    required: tuple[str, ...]
    sides: Callable[[Row, str], Sides]
    optional: tuple[str, ...] = ("system",)
    names: tuple[str, str] = ("chosen", "rejected")

    @property
    def columns(self) -> set[str]:
        """Every column the format reads."""
        return {*self.required, *self.optional, VOTES}

    def parse(self, row: Row, source: str, config: DataConfig) -> Conversation:
        """The conversation of one row, which ends in the chosen answer. Raises BadRow, naming source and fault."""
        found = _voted(self.sides(row, source), row, source)
        for name, answer in zip(self.names, (found.chosen, found.rejected), strict=True):
            _not_empty(answer, name, source)
        if found.chosen.strip() == found.rejected.strip():
            raise BadRow(source, "equal answers", f"{' and '.join(self.names)} are both {shown(found.chosen)}")
        turns = [*found.prompt, Message("assistant", found.chosen)]
        whole = Format(self.name, self.required, lambda *_: (turns, found.chat), self.optional)
        return replace(whole.parse(row, source, config), other=Other(found.rejected, found.votes, found.tie))


def majority(votes: Sequence[float]) -> float | None:
    """What more than half of the people said; else 1/2 where nobody is ahead, None with no vote."""
    if not votes:
        return None
    return next((said for said in SAID if 2 * sum(vote == said for vote in votes) > len(votes)), 0.5)


def _voted(sides: Sides, row: Row, source: str) -> Sides:
    """The sides with what people said in the column `votes`; no list there is something else's name."""
    votes = row.get(VOTES)
    if not isinstance(votes, list) or sides.votes:
        return sides
    for vote in votes:
        if isinstance(vote, bool) or vote not in SAID:
            raise BadRow(source, "unknown vote", f"votes hold {shown(vote)}, and each must be 1, 0, or 0.5 for neither")
    most = majority(votes)
    if most == 0:
        raise BadRow(source, "votes against chosen", f"votes are {shown(votes)}: most people chose the rejected answer")
    return replace(sides, votes=tuple(map(float, votes)), tie=most == 0.5)


def _not_empty(answer: str, name: str, source: str) -> None:
    if not answer.strip():
        raise BadRow(source, "empty answer", f"{name} is {shown(answer)}, and both sides need a text")


# ---------------------------------------------------------------- chosen and rejected


def _before(turns: list[Message], name: str, source: str) -> tuple[list[Message], str]:
    """(what was said before, the answer) of a list of messages."""
    if not turns:
        raise BadRow(source, "empty answer", f"{name} holds no message")
    if turns[-1].role != "assistant":
        raise BadRow(source, "answer not the assistant's", f"the last turn of {name} is {turns[-1].role}'s")
    return turns[:-1], turns[-1].content


def _conversations(prompt: object, chosen: list[Message], rejected: list[Message], source: str) -> Sides:
    """Both sides as messages: answers alone behind a prompt, or whole conversations that agree but for their ends."""
    mine, answer = _before(chosen, "chosen", source)
    theirs, other = _before(rejected, "rejected", source)
    given = [] if prompt is None else _prompt(prompt, source)[0]
    if not mine and not theirs:
        if not given:
            raise BadRow(source, "no prompt", "chosen and rejected hold an answer each, and there is no prompt")
        return Sides(given, answer, other, True)
    if mine != theirs:
        place = next((i for i, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]), None)
        what = f"{len(mine)} turns against {len(theirs)}" if place is None else _differ(mine[place], theirs[place])
        raise BadRow(source, "prompts differ", f"before the answers, chosen and rejected differ: {what}")
    if given and given != mine[-len(given) :] and given != mine[: len(given)]:
        raise BadRow(source, "prompts differ", f"prompt and the turns in chosen differ: {_differ(given[0], mine[0])}")
    return Sides(mine, answer, other, True)


def _differ(mine: Message, theirs: Message) -> str:
    return f"{mine.role} {shown(mine.content)} against {theirs.role} {shown(theirs.content)}"


def _prompt(value: object, source: str) -> tuple[list[Message], bool]:
    """(turns, whether they are a chat) of a prompt given as text or as messages."""
    if isinstance(value, list):
        return messages_of(value, "prompt", source), True
    text = column_text({"prompt": value}, "prompt", source)
    turns = marked_turns(text)
    return turns or [Message("user", text)], bool(turns)


def _common(chosen: str, rejected: str, source: str) -> Sides:
    """Two texts with their prompt in them: marked turns, or the words with which both begin."""
    turns = marked_turns(chosen), marked_turns(rejected)
    if all(turns):
        return _conversations(None, *turns, source)
    pairs = zip(chosen, rejected, strict=False)
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    space = re.search(r"\s+(?=\S*$)", chosen[:alike].rstrip())
    if space is None or not chosen[: space.start()].strip():
        raise BadRow(source, "no prompt", "there is no prompt, and chosen and rejected do not begin alike")
    cut = space.start()
    return Sides([Message("user", chosen[:cut])], chosen[cut:], rejected[cut:], False)


def _chosen_rejected(row: Row, source: str) -> Sides:
    chosen, rejected, prompt = needed(row, "chosen", source), needed(row, "rejected", source), row.get("prompt")
    lists = [isinstance(side, list | dict) for side in (chosen, rejected)]
    if all(lists):
        sides = [side if isinstance(side, list) else [side] for side in (chosen, rejected)]
        return _conversations(
            prompt, messages_of(sides[0], "chosen", source), messages_of(sides[1], "rejected", source), source
        )
    if any(lists):
        found = f"chosen is {shown(chosen)} and rejected {shown(rejected)}"
        raise BadRow(source, "wrong type", f"{found}; both must be text, or both messages")
    answer, other = column_text(row, "chosen", source), column_text(row, "rejected", source)
    if prompt is None:
        return _common(answer, other, source)
    turns, chat = _prompt(prompt, source)
    return Sides(turns, answer, other, chat)


def _sharegpt(row: Row, source: str) -> Sides:
    before = messages_of(needed(row, "conversations", source), "conversations", source)
    answers = []
    for name in ("chosen", "rejected"):
        value = needed(row, name, source)
        if not isinstance(value, str):
            turns = messages_of(value if isinstance(value, list) else [value], name, source)
            said, value = _before(turns, name, source)
            if said:
                raise BadRow(source, "prompts differ", f"{name} holds {len(turns)} turns, and must be the answer alone")
        answers.append(value)
    return Sides(before, answers[0], answers[1], True)


def _asked(column: str) -> Callable[[Row, str], Sides]:
    """A question in a column, and both answers as text."""

    def sides(row: Row, source: str) -> Sides:
        asked = asked_text(row, source) if column == "instruction" else column_text(row, column, source)
        before = marked_turns(asked) or [Message("user", asked)]
        return Sides(before, column_text(row, "chosen", source), column_text(row, "rejected", source), True)

    return sides


def _spin(row: Row, source: str) -> Sides:
    """Files as SPIN writes them: the real answer over the generated one."""
    return _chosen_rejected(
        {"chosen": needed(row, "real", source), "rejected": needed(row, "generated", source)}, source
    )


# ---------------------------------------------------------------- several people


def _comparison(row: Row, source: str) -> Sides:
    """Two responses, and what three people said: 1 or 2 is better, 0 neither (PandaLM's test set)."""
    first, second = column_text(row, "response1", source), column_text(row, "response2", source)
    _not_empty(first, "response1", source)
    _not_empty(second, "response2", source)
    said = [_vote(row, name, source) for name in ANNOTATORS]
    (most, count), *_ = Counter(said).most_common()
    tie = most == 0 or count == 1
    best = 2 if most == 2 and not tie else 1
    votes = tuple(0.5 if vote == 0 else float(vote == best) for vote in said)
    chosen, rejected = (first, second) if best == 1 else (second, first)
    return Sides([Message("user", asked_text(row, source))], chosen, rejected, True, votes, tie)


def _vote(row: Row, name: str, source: str) -> int:
    value = needed(row, name, source)
    if isinstance(value, bool) or str(value) not in ("0", "1", "2"):
        raise BadRow(source, "unknown vote", f"{name} is {shown(value)}, and must be 1, 2, or 0 for neither")
    return int(value)


PREFERENCES: dict[str, PreferenceFormat] = {
    "chosen_rejected": PreferenceFormat(
        "chosen_rejected", ("chosen", "rejected"), _chosen_rejected, ("prompt", "system")
    ),
    "sharegpt": PreferenceFormat("sharegpt", ("conversations", "chosen", "rejected"), _sharegpt),
    "question_answer": PreferenceFormat("question_answer", ("question", "chosen", "rejected"), _asked("question")),
    "alpaca": PreferenceFormat(
        "alpaca", ("instruction", "chosen", "rejected"), _asked("instruction"), ("input", "system")
    ),
    "comparison": PreferenceFormat(
        "comparison",
        ("instruction", "response1", "response2", *ANNOTATORS),
        _comparison,
        ("input", "system"),
        ("response1", "response2"),
    ),
    "spin": PreferenceFormat("spin", ("real", "generated"), _spin, ("system",), ("real", "generated")),
}


def without_ties(made: list[Conversation], config: DataConfig, counts: Counter[str], where: str) -> list[Conversation]:
    """The rows by the rule `data.ties`; what is dropped, or told as halves, is counted.

    Raises DataError where there are ties and no rule for them, or where dropping them leaves nothing.
    """
    tied = [one for one in made if one.other is not None and one.other.tie]
    if tied and config.ties == "error":
        votes = tied[0].other.votes if tied[0].other else ()
        raise DataError(
            f"{tied[0].source}: a tie: of {len(votes)} people, {votes.count(0.5)} chose neither answer, and "
            f"{len(tied)} of {len(made)} rows are like that; set data.ties to drop or half"
        )
    if tied:
        counts[f"ties: {config.ties}"] += len(tied)
    if not tied or config.ties == "half":
        return made
    rest = [one for one in made if one.other is None or not one.other.tie]
    if not rest:
        raise DataError(f"{where} holds nothing but ties; set data.ties to half, or give other data")
    return rest
