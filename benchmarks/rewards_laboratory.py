"""What docs/rewards.md shows: reward models, and the four uses of a scorer, in the laboratory.

    python -m benchmarks.rewards_laboratory [--out docs/rewards] [--runs runs/rewards] [--seed 0]

Makes the runs (finished ones are not made again), prints the tables in Markdown, and writes numbers.json and a picture
for each use to --out. Every run is an ordinary one, by the settings that stand here; its report is in its folder. 200
test prompts are kept from all of them, so that no reward model has seen a prompt on which it chooses. One thread.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rewards_pictures import draw_all
from benchmarks.rewards_tables import show_curves, show_models, show_players, show_stop
from sparring.cli_reinforce import EMBEDDED
from sparring.configfile import read_config
from sparring.data.messages import Conversation, Message
from sparring.evaluation.rewarded_pairs import wins
from sparring.evaluation.statistics import share
from sparring.files import read_json, write_atomic
from sparring.folder import read_lines
from sparring.job import run_job
from sparring.laboratory import default_config, planted, reward_config, world
from sparring.models.base import find_base, load_base, load_renderer
from sparring.models.players import Ring
from sparring.report.records import Run, read_run
from sparring.rewards.build import make_scorer
from sparring.rewards.scorer import Answered
from sparring.rewards.settings import ImplicitScore

Row = dict[str, Any]
SIDES = ("chosen", "rejected")
TEST = 200  # prompts
MOST = 64  # answers to choose from
FORM = re.compile(r"([0-9])\+([0-9])=[0-9];[0-9]\+([0-9])=[0-9]")
BOLD = ["selfplay.lr=4.0e-3", "selfplay.stop_nll_rise=null", "selfplay.stop_real_drop=null", "selfplay.iterations=1",
        "selfplay.checks_per_iteration=9", "selfplay.epochs=3"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where the runs are, and their seed."""

    runs: Path
    seed: int

    def play(self, name: str, changes: Sequence[str], like: Path | None = None) -> Path:
        """A run of the embedded default, but for `changes`."""
        own = [*self.fixed(name), f"data.test_size={TEST}", "evaluation.show=0"]
        return run_job(read_config(default_config(), [*own, *changes]), like=like)

    def model(self, name: str, changes: Sequence[str]) -> Path:
        """A reward model."""
        return run_job(read_config(reward_config(), [*self.fixed(name), *changes]))

    def fixed(self, name: str) -> list[str]:
        return ["threads=1", f"runs={self.runs}", f"name={name}", f"seed={self.seed}"]


# ---------------------------------------------------------------- reward models


def reward_models(place: Place, untrained: Path, tuned: Path) -> dict[str, Path]:
    """What each is called → its run."""
    train, held = planted.split(place.seed)
    tested = {row["prompt"] for row in world.test_rows(TEST)}
    files = []
    for side, rows in (("train", train), ("eval", held)):
        kept = [row for row in rows if side == "eval" or row["prompt"] not in tested]
        files.append(place.runs / f"planted-{side}.jsonl")
        write_atomic(files[-1], "".join(json.dumps(row) + "\n" for row in kept))
    unseen = [f"data.train={files[0]}", f"data.eval={files[1]}", "data.subset=null", "data.render=text"]
    return {
        "planted preferences": place.model("reward-planted", []),
        "planted, without the test prompts": place.model("reward-unseen", unseen),
        "self-play pairs of the base": place.model("reward-base", [f"data.train={untrained}", "data.subset='0'"]),
        "self-play pairs of θ_0": place.model("reward-sft", [f"data.train={tuned}", "data.subset='0'"]),
    }


def judged_pairs(run: Path) -> list[Row]:
    """The held-out pairs of a reward model's run, with its rewards."""
    return list(read_lines(run / "reward-scores" / "pairs.jsonl"))


def by_likelihood(pairs: Sequence[Row], run: Path) -> list[Row]:
    """The same pairs, with the implicit reward of θ_0 against the base in the place of rewards: no training."""
    config = read_config(default_config())
    renderer = load_renderer(find_base(config.model), config.model)
    ring = Ring(load_base(find_base(config.model), config.model, renderer), config.method, config.model.base)
    scorer = make_scorer(ImplicitScore(run=str(run), player="sft", reference="base"), ring)
    asked = [
        Answered(example.prompt_ids, example.answer_ids, [])
        for row in pairs
        for side in SIDES
        for example in renderer.render(spoken(row["prompt"], row[side]))
    ]
    found = iter(scorer(asked))
    return [row | {f"{side}_reward": next(found) for side in SIDES} for row in pairs]


def spoken(prompt: str, answer: str) -> Conversation:
    """A prompt and an answer as plain text."""
    return Conversation((Message("user", prompt), Message("assistant", answer)), False, "laboratory")


def model_row(name: str, pairs: Sequence[Row], opponent: Path | None) -> Row:
    """Accuracy on held-out pairs, and what its pairs allow.

    opponent  the run whose pairs they are: what p_data and p_data/p_opponent would say is known exactly
    """
    valid = [tuple(planted.is_valid(row["prompt"], row[side]) for side in SIDES) for row in pairs]
    right = wins([row["chosen_reward"] for row in pairs], [row["rejected_reward"] for row in pairs])
    prompts = [row["prompt"] for row in pairs]
    by_validity = wins([float(a) for a, _ in valid], [float(b) for _, b in valid])
    found: Row = {"name": name, "pairs": len(pairs), "labels": share(right, [1.0] * len(pairs), prompts)}
    found["allowed"] = {"validity": share(by_validity, [1.0] * len(pairs), prompts)}
    order = [(r if a else 1 - r, p) for r, (a, b), p in zip(right, valid, prompts, strict=True) if a != b]
    found["order"] = share([r for r, _ in order], [1.0] * len(order), [p for _, p in order]) | {"pairs": len(order)}
    if opponent is not None:
        found["allowed"] |= _by_data(pairs, opponent)
    return found


def _by_data(pairs: Sequence[Row], opponent: Path) -> Row:
    """Accuracy on self-play pairs by p_data, and by p_data over the opponent's probability, which no rule can beat."""
    model = read_config(default_config()).model
    decode = load_renderer(find_base(model), model).decode
    logprobs: dict[tuple[str, str], float] = {}
    for row in read_lines(opponent / "sft-scores" / "answers.jsonl"):
        said = {decode(ids): value for ids, value in zip(row["ids"], row["logprobs"], strict=True)}
        logprobs |= {
            (row["prompt"], text): value for text, value in (said | {row["real"]: row["real_logprob"]}).items()
        }
    prompts, found = [pair["prompt"] for pair in pairs], {}
    data = [[world.answers(pair["prompt"]).get(pair[side], 0.0) for pair in pairs] for side in SIDES]
    ratio = [
        [
            math.log(p) - logprobs[pair["prompt"], pair[side]] if p else -math.inf
            for p, pair in zip(ps, pairs, strict=True)
        ]
        for ps, side in zip(data, SIDES, strict=True)
    ]
    for name, (chosen, rejected) in (("p_data", data), ("ratio", ratio)):
        found[name] = share(wins(chosen, rejected), [1.0] * len(pairs), prompts)
    return found


# ---------------------------------------------------------------- the four uses


def stopping(place: Place, like: Path) -> Row:
    """One bold iteration that is only looked at, and the same one that may be stopped."""
    scored = ["scorer=validity", "evaluation.select=scorer", *BOLD]
    found = {}
    for name, patience in (("looked", 1000), ("stopped", 2)):
        run = place.play(name, [*scored, f"selfplay.stop_score_drop={patience}"], like=like)
        events = list(read_lines(run / "metrics.jsonl"))
        steps = [event for event in events if event["event"] == "step" and event["phase"] == "0/player"]
        found[name] = {
            "start": events_of(run, "reward", "sft"),
            "checks": [event for event in events if event["event"] == "check" and event["phase"] == "0/player"],
            "stop": next((event for event in events if event["event"] == "stop"), None),
            "steps": steps[0]["steps"],
            "end": events_of(run, "reward", "0"),
            "nll": {name: events_of(run, "scores", name)["nll"] for name in ("sft", "0")},
            "best": read_json(run / "best" / "best.json")["player"],
        }
    return found


def players(run: Path) -> list[Row]:
    """Every player's held-out numbers."""
    read: Run = read_run(run)
    keys = ("reward", "reward_low", "reward_high", "nll", "nll_low", "nll_high", "kl_start", "label")
    best = read_json(run / "best" / "best.json")["player"]
    rows = [{"player": name, **{key: row.get(key) for key in keys}} for name, row in read.scores.items()]
    for row, scores in zip(rows, read.scores.values(), strict=True):
        row |= {"label": read.label(row["player"]), "best": row["player"] == best}
        row |= {"difference": scores.get("reward_difference"), "nll_difference": scores.get("nll_difference")}
        row["exact"] = scores.get("exact")
    return rows


def strays(run: Path) -> list[float]:
    """Shares of answers that do not even add the prompt's own digits in the right form: of all, of the chosen ones."""
    prompts = [row["prompt"] for row in read_lines(run / "test" / "best.jsonl")]
    lost = []
    for prompt, row in zip(prompts, read_lines(run / "test" / "best-candidates.jsonl"), strict=True):
        found = [FORM.fullmatch(answer) for answer in row["answers"]]
        digits = sorted(prompt[:6:2])
        each = [one is None or sorted(one.groups()) != digits for one in found]
        lost.append((sum(each) / len(each), float(each[row["chosen"]])))
    return [sum(column) / len(lost) for column in zip(*lost, strict=True)]


def ranking(
    place: Place, like: Path, unseen: Path, played: Path
) -> tuple[dict[str, list[Row]], dict[str, list[float]]]:
    """The best of n of θ_0's test answers, by what chooses: a curve each; and how many strays it chose."""
    choosers = {
        "validity itself": "validity",
        "reward model, planted": f"{{name: model, path: '{unseen}'}}",
        "reward model, self-play": f"{{name: model, path: '{played}'}}",
        "implicit, θ_0 against base": f"{{name: implicit, run: '{like}', player: sft, reference: base}}",
        "implicit, θ_3 against θ_0": f"{{name: implicit, run: '{like}', player: '2', reference: sft}}",
    }
    found, lost = {}, {}
    for index, (name, scorer) in enumerate(choosers.items()):
        changes = ["selfplay.iterations=0", f"evaluation.best_of={MOST}", f"scorer={scorer}"]
        run = place.play(f"best-of-{index}", changes, like=like)
        found[name], lost[name] = read_run(run).best_of["best"], strays(run)
    for row in found["validity itself"]:
        row |= {f"valid{end}": row[f"reward{end}"] for end in ("", "_low", "_high", "_gain", "_gain_low", "_gain_high")}
    return found, lost


def events_of(run: Path, kind: str, player: str) -> Row:
    return next(e for e in read_lines(run / "metrics.jsonl") if e["event"] == kind and e["player"] == player)


def main() -> None:
    """Make the runs, print the tables, write the pictures."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/rewards"))
    parser.add_argument("--runs", type=Path, default=Path("runs/rewards"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun, place = time.process_time(), Place(options.runs, options.seed)
    place.runs.mkdir(parents=True, exist_ok=True)
    untrained = place.play("untrained", ["sft.epochs=0", "selfplay.iterations=1"])
    tuned = place.play("tuned", ["scorer=validity"])
    models = reward_models(place, untrained, tuned)
    judged = {name: judged_pairs(run) for name, run in models.items()}
    base = "self-play pairs of the base"
    judged["the base's pairs, by implicit reward"] = by_likelihood(judged[base], tuned)
    opponents = (None, None, untrained, tuned, untrained)
    select = place.play("better", ["scorer=validity", "selfplay.keep_pairs=better"], like=tuned)
    learnt = place.play("learn", EMBEDDED[1:], like=tuned)
    curves, lost = ranking(place, tuned, list(models.values())[1], list(models.values())[2])
    made: Row = {
        "models": [model_row(*item, run) for item, run in zip(judged.items(), opponents, strict=True)],
        "stop": stopping(place, tuned),
        "select": players(select),
        "rank": curves,
        "strays": lost,
        "learn": players(learnt),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "numbers.json", json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    draw_all(made, options.out)
    show_models(made["models"])
    show_stop(made["stop"])
    show_players("Use 2: select", made["select"])
    show_curves(curves, lost)
    show_players("Use 4: learn", made["learn"])
    print(f"\n{time.process_time() - begun:.0f} CPU seconds")


if __name__ == "__main__":
    main()
