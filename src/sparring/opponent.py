"""The score phase: log p_theta_t of every answer, once, after checking that the opponent really gave them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from sparring.config_selfplay import at
from sparring.data.collate import Row
from sparring.data.pairs import Pair, Played, Prompt, Rows, write_stream
from sparring.errors import LawBroken
from sparring.generation.play import played_rows
from sparring.models.flops import Flops
from sparring.models.players import Player
from sparring.models.scoring import computed_tokens, sampling_gap, score
from sparring.run import Event, Phase
from sparring.session import Session

BATCH = 256  # prompts that are scored together
CHECKED = 256  # prompts whose answers are tested for being samples
CHANCE = 1e-9  # how often a right run may be stopped by that test, at most
REPEATED = 8  # prompts whose answers are scored twice, to know the rounding noise
SPOT = 32  # prompts whose answers' log-probs, caught when they were sampled, are compared with scored ones
NEAR = 1e-4  # nats per square root of a token by which these may differ
FAR = 0.1  # and by which they do not in fp32, unless the answers are others than were sampled


def score_pairs(
    session: Session,
    folder: Path,
    data: Phase,
    opponent: Phase,
    played: Phase,
    before: Phase | None,
    *,
    iteration: int,
) -> Event:
    """log p_theta_t of every real and synthetic answer, under the current opponent, once.

    before  the previous iteration's play: a share `selfplay.previous` of it is trained on too, with its
            log-probs under the opponent of now. Pairs whose answers are identical teach nothing (law 2):
            they are dropped and counted.
    Raises LawBroken unless the answers are those that this opponent gave to these prompts.
    """
    player = session.player(opponent)
    fresh = played_rows(played.folder)
    _check_played(session, data, played, fresh, player)
    model = session.ring.seat(player)
    z = check_samples(session, model, fresh)
    caught = session.crew.decide(lambda: _caught(session, model, fresh))
    facts = write_pairs(session, folder, fresh, before, iteration, caught)
    return {**facts, "sampling_z": z, "opponent": player.fingerprint, "seated": session.ring.seated}


def write_pairs(
    session: Session, folder: Path, fresh: Rows[Played], before: Phase | None, iteration: int, caught: float | None
) -> Event:
    """Score the answers under the player that is seated, and write pairs.arrow.

    caught  how far the fresh answers' log-probs, caught when they were sampled, are from scored ones; None: not known
    """
    model = session.ring.model
    share = at(session.config.selfplay.previous, iteration)
    sources = [(fresh, iteration, 1.0)]
    if before is not None and share > 0:
        sources.append((played_rows(before.folder), iteration - 1, share))
    counts = {"identical": 0, "pairs": 0, "previous_pairs": 0, "tokens": 0, "flops": 0}
    batches = _scored(session, model, sources, iteration, counts, caught is not None)
    if session.crew.writes:
        write_stream(folder / "pairs.arrow", batches, Pair)
    else:
        deque(batches, maxlen=0)  # takes its part
    if counts["pairs"] + counts["previous_pairs"] == 0:
        session.run.warn("the opponent gave exactly the real answer to every prompt: nothing is left to tell apart")
    noise = max(rounding_noise(session, model, fresh), caught or 0.0)
    return {**counts, "noise": noise, "caught": caught is not None}


def converged(pairs: Phase) -> bool:
    """Whether the opponent gave every real answer: a fixed point, with nothing left to tell apart (law 2)."""
    return not pairs.facts["pairs"] + pairs.facts["previous_pairs"]


def rounding_noise(session: Session, model: Any, fresh: Rows[Played]) -> float:
    """Rounding noise of a log-prob per square root of a token: some answers scored alone and together (law 1)."""
    rows = [(row.prompt_ids, ids) for row in fresh[:REPEATED] for ids in (row.real_ids, *row.synthetic_ids)]
    return noise_of(session, model, rows)


def noise_of(session: Session, model: Any, rows: list[Row]) -> float:
    """The same, of rows with the answers to a prompt side by side."""
    together = score(model, session.ring.base, rows, session.config.optimiser.micro_batch_tokens)
    alone = score(model, session.ring.base, rows, 1)
    squares = [(a - b) ** 2 / len(ids) for a, b, (_, ids) in zip(together, alone, rows, strict=True)]
    return math.sqrt(sum(squares) / len(squares))


def _caught(session: Session, model: Any, fresh: Rows[Played]) -> float | None:
    """How far log-probs caught while sampling are from scored ones, per square root of a token; None: do not use them.

    Only in fp32: in bf16 decoding and scoring differ by tenths of a nat per answer, and margins would not begin at 0.
    """
    if session.ring.base.dtype != torch.float32:
        return None
    rows = [(row.prompt_ids, ids) for row in fresh[:SPOT] for ids in row.synthetic_ids]
    scored = score(model, session.ring.base, rows, session.config.optimiser.micro_batch_tokens)
    said = [logprob for row in fresh[:SPOT] for logprob in row.logprobs]
    squares = [(a - b) ** 2 / len(ids) for a, b, (_, ids) in zip(scored, said, rows, strict=True)]
    gap = math.sqrt(sum(squares) / len(squares))
    if gap > FAR:
        raise LawBroken(
            f"law 5: the answers' log-probs when they were sampled and when they are scored differ by {gap:.2g} nats "
            "per square root of a token: the answers were changed since, or asked with another template"
        )
    return gap if gap <= NEAR else None


def _check_played(session: Session, data: Phase, played: Phase, fresh: Rows[Played], player: Player) -> None:
    """Law 11, and that these are answers to the training prompts."""
    check_player(played, player)
    check_answers(session, data, played, fresh)


def check_player(played: Phase, player: Player) -> None:
    """Law 11: the answers are this player's."""
    if played.facts["opponent"] != player.fingerprint:
        raise LawBroken(
            f"law 11: these answers were played by {played.facts['opponent']}, but the opponent is "
            f"{player.fingerprint}; remove {played.folder} to play again"
        )


def check_answers(session: Session, data: Phase, played: Phase, fresh: Rows[Played]) -> None:
    """The prompts are the training prompts, and an end token stands only where one was emitted; else LawBroken."""
    check_asked(session, session.prompts(data, "train"), played, fresh)


def check_asked(session: Session, prompts: Sequence[Prompt], played: Phase, fresh: Rows[Played]) -> None:
    """These prompts were answered, and an end token stands only where one was emitted; else LawBroken."""
    ends = set(session.renderer.end_ids)
    for number, rows in enumerate(fresh.batches(256)):
        for row, prompt in zip(rows, prompts[256 * number : 256 * (number + 1)], strict=True):
            if row.prompt_ids != prompt.prompt_ids:
                raise LawBroken(
                    f"the opponent was asked another prompt than the one trained on ({prompt.source}): another "
                    f"template or tokenizer; remove {played.folder} to play again"
                )
            for ids, finish in zip(row.synthetic_ids, row.finish, strict=True):
                if [token in ends for token in ids] != [False] * (len(ids) - 1) + [finish == "end"]:
                    raise LawBroken(
                        f"an answer to {prompt.source} is marked {finish!r} but its end tokens say otherwise; an end "
                        f"token counts once, if it was emitted; remove {played.folder} to play again"
                    )


def check_samples(session: Session, model: Any, fresh: Rows[Played]) -> float | None:
    """Test that y' ~ p_theta_t (law 5) on some answers; their z-score, or None when sampling was not plain."""
    generation = session.config.generation
    if generation.temperature != 1 or generation.top_p != 1:
        session.run.warn(
            f"temperature {generation.temperature:g} and top_p {generation.top_p:g}: the opponent's answers are not "
            "samples of p_θt, so SPIN's fixed point is another"
        )
        return None
    rows = [(row.prompt_ids, ids) for row in fresh[:CHECKED] for ids in row.synthetic_ids]
    gap = sampling_gap(model, session.ring.base, rows, session.config.optimiser.micro_batch_tokens)
    if abs(gap.total) > gap.allowed(CHANCE):
        raise LawBroken(
            f"law 5: the opponent's answers are not samples of p_θt: their log-probs are {gap.total:+.1f} nats from "
            f"its entropy (by chance at most {gap.allowed(CHANCE):.1f}): greedy decoding, a temperature, other weights"
        )
    return gap.z


def _scored(
    session: Session,
    model: Any,
    sources: list[tuple[Rows[Played], int, float]],
    iteration: int,
    counts: dict[str, int],
    caught: bool,
) -> Iterator[list[Pair]]:
    """Batches of scored pairs; adds to `counts` as it goes.

    caught  the fresh answers' log-probs are known from when they were sampled
    """
    flops, crew = Flops.of(model), session.crew
    batches: list[tuple[Rows[Played], int, list[int]]] = []
    for rows, played_at, part in sources:
        wanted = _share(len(rows), part, session.seed("previous", iteration))
        batches += [(rows, played_at, wanted[start : start + BATCH]) for start in range(0, len(wanted), BATCH)]
    done, total = 0, sum(len(chosen) for _, _, chosen in batches)
    for turn in range(0, len(batches), crew.size):  # a batch for each process, the same for any number of them
        mine: list[list[Pair]] = []
        for number, (rows, played_at, wanted) in enumerate(batches[turn : turn + crew.size]):
            chosen: list[Played] = [rows[i] for i in wanted]
            kept = [row for row in chosen if any(ids != row.real_ids for ids in row.synthetic_ids)]
            counts["identical"] += len(chosen) - len(kept)
            counts["pairs" if played_at == iteration else "previous_pairs"] += len(kept)
            known = caught and played_at == iteration
            count_cost(session, _rows(kept, known), counts, flops)
            done += len(chosen)
            if number == crew.rank:
                mine.append(_score(session, model, kept, played_at, known))
        yield from crew.gather(mine)
        session.run.tell({"event": "progress", "done": done, "total": total})


def _rows(kept: list[Played], known: bool) -> list[Row]:
    """What has to be scored: every answer, or only the real ones."""
    return [(row.prompt_ids, ids) for row in kept for ids in (row.real_ids, *(() if known else row.synthetic_ids))]


def count_cost(session: Session, rows: list[Row], counts: dict[str, int], flops: Flops) -> None:
    """Add the tokens and FLOPs of scoring some rows to `counts`."""
    tokens = computed_tokens(session.ring.base, rows)
    lengths = [len(prompt) + len(answer) - 1 for prompt, answer in rows]
    counts["tokens"] += tokens
    counts["flops"] += flops.forward(lengths, sum(len(answer) for _, answer in rows), tokens)


def _score(session: Session, model: Any, kept: list[Played], played_at: int, known: bool) -> list[Pair]:
    tokens = session.config.optimiser.micro_batch_tokens
    values = iter(score(model, session.ring.base, _rows(kept, known), tokens))
    pairs = []
    for row in kept:
        real = next(values)
        synthetic = row.logprobs if known else [next(values) for _ in row.synthetic_ids]
        pairs.append(Pair(row.key, row.prompt_ids, row.real_ids, row.synthetic_ids, real, synthetic, played_at))
    return pairs


def _share(count: int, share: float, seed: int) -> list[int]:
    """A share of `count` row numbers, in order, chosen by seed."""
    if share == 1:
        return list(range(count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[: round(count * share)])
