"""The play phase: the frozen opponent answers every training prompt, in shards that are never half done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparring.data.pairs import Played, Prompt, Rows, write_rows
from sparring.generation.base import Answer, Generator
from sparring.generation.local import LocalGenerator
from sparring.generation.sampling import stream_keys
from sparring.models.flops import Flops
from sparring.run import Event, Phase
from sparring.session import Session


def play(session: Session, folder: Path, data: Phase, opponent: Phase, *, iteration: int) -> Event:
    """y' ~ p_theta_t(.|x) for every prompt, K times; token ids and end reasons are kept as they came.

    A shard holds always the same prompts, and is played by one process, so that neither a kill nor the number of
    processes changes an answer. A killed shard is played again from its start, a finished one never.
    """
    config = session.config
    prompts = session.prompts(data, "train")
    limit = answer_limit(session, data)
    merged = config.generation.merge
    model = session.ring.seat(
        session.player(opponent), merged
    )  # even if nothing is left to play: the facts count its work
    generator = LocalGenerator(model, session.ring.base, config.generation)
    size, crew = config.generation.shard_size, session.crew
    starts = range(0, len(prompts), size)
    shards = {start: folder / f"shard-{number:05d}.arrow" for number, start in enumerate(starts)}
    left = crew.decide(lambda: [start for start in starts if not shards[start].exists()])
    if len(starts) < crew.size:
        session.run.warn(_idle(len(starts), crew.size, size))
    for turn in range(0, len(left), crew.size):
        begun = left[turn : turn + crew.size]  # a shard for each process
        mine = [prompts[start : start + size] for start in begun[crew.rank : crew.rank + 1]]
        given = [sample(generator, rows, config.seed, iteration, config.selfplay.samples, limit) for rows in mine]
        for start, answers in zip(begun, crew.gather(given), strict=True):
            if crew.writes:
                asked = zip(prompts[start : start + size], answers, strict=True)
                write_rows(shards[start], [_played(row, told) for row, told in asked], Played)
                session.run.tick()
        done = sum(path.exists() for path in shards.values())
        session.run.tell({"event": "progress", "done": min(done * size, len(prompts)), "total": len(prompts)})
    return _facts(session, played_rows(folder), session.player(opponent).fingerprint) if crew.writes else {}


def _idle(shards: int, processes: int, size: int) -> str:
    return (
        f"{processes} processes share {shards} of generation.shard_size ({size}) prompts to play, so some have nothing "
        "to do there; more and smaller shards would share the work out"
    )


def answer_limit(session: Session, data: Phase) -> int:
    """The most tokens an answer may have: `generation.max_new_tokens`, else the longest real training answer.

    Where nothing is trained, held-out answers count too: there may be one training prompt only.
    """
    sides = ("train",) if session.trains else ("train", "eval")
    longest = [max(session.prompts(data, side).lengths("real_ids")) for side in sides]
    return session.config.generation.max_new_tokens or max(longest)


def sample(
    generator: Generator, prompts: Sequence[Prompt], seed: int, stream: int, samples: int, limit: int
) -> list[list[Answer]]:
    """`samples` answers per prompt, keyed by (seed, stream, prompt, sample, position); [prompt][sample]."""
    numbers = list(range(samples)) * len(prompts)
    keys = stream_keys(seed, stream, [p.key for p in prompts for _ in range(samples)], numbers)
    answers = generator([p.prompt_ids for p in prompts for _ in range(samples)], keys, limit)
    return [answers[start : start + samples] for start in range(0, len(answers), samples)]


def played_rows(folder: Path) -> Rows[Played]:
    """What was played, all shards in order."""
    return Rows(sorted(folder.glob("shard-*.arrow")), Played)


def _played(row: Prompt, answers: list[Answer]) -> Played:
    return Played(
        row.key,
        row.prompt_ids,
        row.real_ids,
        [answer.ids for answer in answers],
        [answer.finish for answer in answers],
        [answer.logprob for answer in answers],
    )


def _facts(session: Session, played: Rows[Played], fingerprint: str) -> Event:
    prompts: list[int] = []
    lengths: list[int] = []
    cut = 0
    for rows in played.batches(1024):
        for row in rows:
            prompts += [len(row.prompt_ids)] * len(row.synthetic_ids)
            lengths += [len(ids) for ids in row.synthetic_ids]
            cut += row.finish.count("length")
    flops = Flops.of(session.ring.base.model)
    return {
        "opponent": fingerprint,
        "answers": len(lengths),
        "cut": cut,
        "tokens": sum(prompts) + sum(lengths) + flops.virtual * len(prompts),
        "sampled": sum(lengths),
        "flops": flops.decoding(prompts, lengths),
    }
