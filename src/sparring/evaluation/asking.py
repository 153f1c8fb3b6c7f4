"""What judge and examine share: a player is asked, all of it by all processes, and what it said is measured.

A player at temperature T is p ∝ exp(logits / T): it is sampled at T, top_p 1, and scored at T. What it is held
against (the base, θ_0) is taken as it is, at temperature 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparring.data.pairs import Prompt
from sparring.evaluation.extract import extractor
from sparring.evaluation.prompting.sheet import Sheet, make_sheet
from sparring.generation.base import Answer
from sparring.generation.local import LocalGenerator
from sparring.generation.play import answer_limit, sample
from sparring.generation.sampling import stream_keys
from sparring.laboratory import world
from sparring.laboratory.exact import valid_logprobs
from sparring.models.base import Base
from sparring.models.flops import Flops
from sparring.models.players import Player
from sparring.models.scoring import score
from sparring.run import Event, Phase
from sparring.session import Session

TURN = 2**40  # streams of random numbers of a later turn, away from all others


@dataclass(frozen=True, slots=True)
class Told:
    """What was said to one prompt.

    turns   (prompt ids, what was said) of each generation, more than one where an answer is criticised and revised
    text    the final answer
    tokens  in the final answer
    """

    turns: list[tuple[list[int], Answer]]
    text: str
    tokens: int

    @property
    def last(self) -> Answer:
        """The generation that holds the answer."""
        return self.turns[-1][1]

    @property
    def beyond(self) -> int:
        """Tokens read and written, but for those of the answer."""
        return sum(len(prompt) + len(said.ids) for prompt, said in self.turns) - self.tokens


Row = list[Told]  # the samples of one prompt


def sheet_of(session: Session, data: Phase, side: str) -> Sheet:
    """The prompts of a side, as they are asked."""
    return make_sheet(session, session.prompts(data, side)[:], side, answer_limit(session, data))


def ask(
    session: Session, player: Player, sheet: Sheet, limit: int, stream: int, temperature: float, samples: int
) -> list[Row]:
    """What a player says, [prompt][sample], for all processes; each asks its part. limit: tokens of an answer."""
    config, crew = session.config, session.crew
    settings = config.generation.model_copy(update={"temperature": temperature, "top_p": 1.0})
    generator = LocalGenerator(session.ring.seat(player, settings.merge), session.ring.base, settings)
    mine = list(range(crew.rank, len(sheet.prompts), crew.size))
    given = _told(session, generator, sheet, mine, limit, stream, samples) if mine else []
    told = dict(crew.gather(list(zip(mine, given, strict=True))))
    missing = sum(len(answer.turns) <= len(sheet.style.then) for row in told.values() for answer in row)
    if missing:
        session.run.warn(
            f"{missing} answers were not criticised and revised to the end: that would not fit the model's context"
        )
    return [told[i] for i in range(len(sheet.prompts))]


def ask_seated(session: Session, sheet: Sheet, limit: int, stream: int) -> list[Row]:
    """What the model in memory says to prompts as they are judged, by this process alone; it may be in training."""
    config = session.config
    changes = {"temperature": config.evaluation.temperature, "top_p": 1.0}
    generator = LocalGenerator(session.ring.model, session.ring.base, config.generation.model_copy(update=changes))
    every = list(range(len(sheet.prompts)))
    return _told(session, generator, sheet, every, limit, stream, config.evaluation.samples)


def _told(
    session: Session, generator: LocalGenerator, sheet: Sheet, mine: list[int], limit: int, stream: int, samples: int
) -> list[Row]:
    """What is said to some prompts, turn after turn."""
    style, renderer, seed = sheet.style, session.renderer, session.config.seed
    prompts = [sheet.prompts[i] for i in mine]
    first = sample(generator, prompts, seed, stream, samples, limit + style.extra[0])
    turns = [[[(p.prompt_ids, answer)] for answer in row] for p, row in zip(prompts, first, strict=True)]
    flat = [(row, number) for row in range(len(mine)) for number in range(samples)]
    questions = {place: sheet.questions[mine[place[0]]] for place in flat} if style.then else {}
    for turn, (then, extra) in enumerate(zip(style.then, style.extra[1:], strict=True), start=1):
        asked = {}
        for place, question in list(questions.items()):
            said = turns[place[0]][place[1]][-1][1]
            questions[place] = then(question, renderer.decode(said.ids))
            ids = renderer.prompt(questions[place].messages, questions[place].chat)
            if len(ids) + limit <= session.ring.context:
                asked[place] = ids
            else:
                del questions[place]
        keys = stream_keys(
            seed, stream + turn * TURN, [prompts[row].key for row, _ in asked], [number for _, number in asked]
        )
        for place, answer in zip(asked, generator(list(asked.values()), keys, limit + extra), strict=True):
            turns[place[0]][place[1]].append((asked[place], answer))
    return [[_final(session, sheet, told) for told in row] for row in turns]


def _final(session: Session, sheet: Sheet, turns: list[tuple[list[int], Answer]]) -> Told:
    # an answer that was not revised to the end is the first one, not the criticism of it
    turns = turns if len(turns) == 1 + len(sheet.style.then) else turns[:1]
    said = turns[-1][1]
    text = session.renderer.decode(said.ids)
    final = sheet.style.final(text)
    tokens = len(said.ids)
    if len(final) < len(text.strip()):  # thinking stands before it: its tokens are counted by encoding it alone
        alone = session.renderer.tokenizer(final, add_special_tokens=False).input_ids
        tokens = min(tokens, len(alone) + (said.finish == "end"))
    return Told(turns, final, tokens)


# ---------------------------------------------------------------- measuring


def own_logprobs(session: Session, model: Any, base: Base, told: Sequence[Row]) -> list[list[float]]:
    """log p of what was said, [prompt][sample] in nats, all turns together, under the seated player."""
    rows = [(prompt, said.ids) for row in told for one in row for prompt, said in one.turns]
    values = iter(score(model, base, rows, session.config.optimiser.micro_batch_tokens))
    return [[sum(next(values) for _ in one.turns) for one in row] for row in told]


def gaps(own: list[list[float]], other: list[list[float]]) -> list[float]:
    """Per prompt, the mean of log p - log q over p's own samples: in the mean over prompts, KL(p || q) in nats."""
    pairs = zip(own, other, strict=True)
    return [sum(a - b for a, b in zip(mine, theirs, strict=True)) / len(mine) for mine, theirs in pairs]


def match_shares(session: Session, sheet: Sheet, told: Sequence[Row]) -> list[float] | None:
    """Per prompt, the share of samples that match the real answer by `evaluation.match`; None if it is not set."""
    found = matches(session, sheet, told)
    return None if found is None else [sum(row) / len(row) for row in found]


def matches(session: Session, sheet: Sheet, told: Sequence[Row]) -> list[list[float]] | None:
    """[prompt][sample]: 1 for an answer that matches the real one by `evaluation.match`, else 0; None if not set."""
    spec = session.config.evaluation.match
    if spec is None:
        return None
    extract = extractor(spec)
    wanted = [extract(session.renderer.decode(prompt.real_ids)) for prompt in sheet.plain]
    nothing = wanted.count(None)
    if nothing:
        session.run.warn(
            f"evaluation.match finds nothing in {nothing} of {len(wanted)} real answers, so no answer matches these"
        )
    return [
        [float(real is not None and extract(one.text) == real) for one in row]
        for real, row in zip(wanted, told, strict=True)
    ]


def validities(session: Session, sheet: Sheet, told: Sequence[Row]) -> list[list[float]] | None:
    """[prompt][sample]: 1 for an answer that ended and is one of the laboratory's valid ones; None elsewhere."""
    if not session.config.in_laboratory:
        return None
    valid = [world.answers(session.renderer.decode(prompt.prompt_ids)) for prompt in sheet.plain]
    return [
        [float(one.last.finish == "end" and one.text in right) for one in row]
        for right, row in zip(valid, told, strict=True)
    ]


def exact_of(session: Session, model: Any, base: Base, sheet: Sheet) -> list[dict[str, float]]:
    """Per prompt, distances of the seated player to the laboratory's known p_data, by enumeration."""
    tokens = session.config.optimiser.micro_batch_tokens
    asked = {tuple(p.prompt_ids): q.prompt_ids for p, q in zip(sheet.plain, sheet.prompts, strict=True)}
    texts = [session.renderer.decode(prompt.prompt_ids) for prompt in sheet.plain]
    found = valid_logprobs(
        lambda prompts, answers: score(
            model, base, [(asked[tuple(p)], a) for p, a in zip(prompts, answers, strict=True)], tokens
        ),
        session.renderer.tokenizer,
        texts,
    )
    return [world.exact([text], [logprobs]) for text, logprobs in zip(texts, found, strict=True)]


def cost(flops: Flops, told: Sequence[Row], passes: int) -> Event:
    """Tokens and FLOPs of decoding, and of `passes` forward passes over what was said."""
    turns = [turn for row in told for one in row for turn in one.turns]
    asked, said = [len(prompt) for prompt, _ in turns], [len(answer.ids) for _, answer in turns]
    lengths = [a + b for a, b in zip(asked, said, strict=True)]
    total = flops.decoding(asked, said) + passes * flops.forward(lengths, sum(said))
    return {"tokens": sum(lengths), "sampled": sum(said), "flops": total}


def real_rows(prompts: Sequence[Prompt]) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, real answer's ids) of each."""
    return [(prompt.prompt_ids, prompt.real_ids) for prompt in prompts]
