"""The pairs of a self-play run as preferences: the real answer over what the opponent said, as token ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparring.config import DataConfig
from sparring.data.load import Loaded
from sparring.data.messages import Example, Renderer
from sparring.data.pairs import Played, Prompt, Rows
from sparring.errors import DataError, nearest
from sparring.files import digest, read_json
from sparring.folder import MARKER, read_marker, same_of

LOCK = "run.lock.yaml"
Pairs = list[tuple[Example, Example, float, list[float]]]


def is_run(path: str) -> bool:
    """Whether data come from a run's folder."""
    return (Path(path).expanduser() / LOCK).is_file()


def loaded_run(config: DataConfig, renderer: Renderer) -> Loaded:
    """What the pairs of a run are; DataError if they are of another tokenizer or template, or not there."""
    run, play = _play(config)
    _same_tokens(run, renderer)
    judged = _judged(run, play)
    files = [read_marker(run / name)["files"] for name in (f"{play}/played", judged, "data")]
    kept = [{name: print_ for name, print_ in sorted(part.items()) if print_} for part in files]
    counts = {"rows": len(_played(run, play))}
    description = f"{run.resolve().name}, iteration {play}: real answers over the opponent's"
    if config.test or config.test_split:
        raise DataError(
            f"{run} is a run, whose pairs have no other test than a part of those held out; give data.test_size instead"
        )
    return Loaded([], [], counts, description, digest(kept), [], compared=True)


def run_pairs(config: DataConfig, renderer: Renderer) -> dict[str, Pairs]:
    """The run's training pairs of one iteration (`data.subset`, else the last) and, from judging, held-out ones.

    Of these, prompts are the test that `data.test_size` asks for, the same ones for every seed: nobody trained on them.
    """
    run, play = _play(config)
    _same_tokens(run, renderer)
    ends = set(renderer.end_ids)
    train: Pairs = []
    for index, row in enumerate(_played(run, play)):
        source = f"{run.resolve().name}/{play}/played[row {index}]"
        train += _pairs(row.prompt_ids, row.real_ids, row.synthetic_ids, ends, source)
    held: Pairs = []
    judged = _judged(run, play)
    for index, (prompt, said) in enumerate(zip(_prompts(run), _answers(run, judged), strict=True)):
        source = f"{run.resolve().name}/{judged}[row {index}]"
        held += _pairs(prompt.prompt_ids, prompt.real_ids, said["ids"], ends, source)
    return {"train": train, **_divided(held, config.test_size)}


def _divided(held: Pairs, size: float) -> dict[str, Pairs]:
    """Held-out pairs, and those of the test if there is one. size: a share of the prompts below 1, else a count."""
    prompts = sorted({tuple(pair[0].prompt_ids) for pair in held}, key=lambda ids: digest(["test", *ids]))
    count = max(1, round(size * len(prompts))) if 0 < size < 1 else int(size)
    if count >= len(prompts):
        raise DataError(
            f"data.test_size {size:g} takes {count} of the {len(prompts)} held-out prompts of that run for the test, "
            "which leaves none to choose by; lower it"
        )
    tested = set(prompts[:count])
    test = [pair for pair in held if tuple(pair[0].prompt_ids) in tested]
    rest = [pair for pair in held if tuple(pair[0].prompt_ids) not in tested]
    return {"eval": rest, "test": test} if test else {"eval": rest}


def chats(config: DataConfig) -> bool:
    """Whether the run's data were chats."""
    facts = read_json(Path(config.train).expanduser() / "data" / MARKER)["facts"]
    return bool(facts["chat"])


def _pairs(prompt: list[int], real: list[int], synthetic: list[list[int]], ends: set[int], source: str) -> Pairs:
    chosen = Example(prompt, real, real[-1] in ends, source)
    return [(chosen, Example(prompt, ids, ids[-1] in ends, source), 1.0, []) for ids in synthetic]


def _play(config: DataConfig) -> tuple[Path, str]:
    """(the run's folder, the iteration whose opponent gave the answers)."""
    run = Path(config.train).expanduser()
    known = sorted((path.parent.parent.name for path in run.glob(f"*/played/{MARKER}")), key=int)
    if not known:
        raise DataError(f"{run} is a run in which nobody has played, so it has no pairs; finish it, or give another")
    if config.subset is not None and config.subset not in known:
        raise DataError(f'{run} has no iteration "{config.subset}" (data.subset); {nearest(config.subset, known)}')
    return run, config.subset or known[-1]


def _judged(run: Path, play: str) -> str:
    """The phase in which that iteration's opponent answered the held-out prompts."""
    return "sft-scores" if play == "0" else f"{int(play) - 1}/scores"


def _played(run: Path, play: str) -> Rows[Played]:
    return Rows(sorted((run / play / "played").glob("*.arrow")), Played)


def _prompts(run: Path) -> Rows[Prompt]:
    return Rows([run / "data" / "eval.arrow"], Prompt)


def _answers(run: Path, judged: str) -> list[dict[str, Any]]:
    """What a judged player said to the held-out prompts; DataError if it is not there yet."""
    file = run / judged / "answers.jsonl"
    if not file.exists():
        raise DataError(f"{run} has not judged the opponent of its last iteration yet ({judged}); finish the run")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _same_tokens(run: Path, renderer: Renderer) -> None:
    """Ids mean the same here and there: the template is the same, and the held-out prompts read the same."""
    theirs = same_of(run / LOCK)["template fingerprint"]
    texts = [row["prompt"] for row in _answers(run, "sft-scores")]
    read = [renderer.decode(prompt.prompt_ids) for prompt in _prompts(run)]
    if theirs != digest([renderer.template, renderer.end_ids]) or texts != read:
        raise DataError(
            f"{run} was made with another tokenizer or template than this base has, so its pairs cannot be used here; "
            "give the base of that run"
        )
