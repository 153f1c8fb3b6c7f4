"""On preference pairs every verb has the same prompts and real answers, the same held-out and test prompts, one θ_0."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from sparring.allowance import spent_on_play
from sparring.configfile import build_config
from sparring.data.pairs import Prompt, Rows
from sparring.data.preferences import compares
from sparring.data.selfplayed import is_run
from sparring.errors import ConfigError, DataError
from sparring.files import read_json
from sparring.job import run_job
from sparring.laboratory import planted, world
from sparring.study import Study

SIDES = ("train", "eval", "test")


def pairs(file: Path) -> str:
    """Rows of the format chosen_rejected: twins, ties, a dirty row, several rejected answers to one chosen."""
    drawn, rows = random.Random(0), list[dict[str, Any]]()
    for number, row in enumerate(world.rows(0, 60, 0)[0]):
        answer = row["completion"]
        pair = {"prompt": row["prompt"], "chosen": answer, "rejected": answer + answer[: drawn.randint(2, 6)]}
        rows.append(pair)
        rows += [pair] if number % 7 == 0 else []
        rows += [pair | {"rejected": f"{answer};"}] if number % 5 == 0 else []
        rows += [pair | {"rejected": answer[:4], "votes": [1, 0, 0.5]}] if number % 6 == 0 else []
        rows += [pair | {"rejected": ""}] if number == 3 else []
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def tree(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "runs": str(folder / "runs"), "threads": 1, "model": {"dtype": "fp32"},
        "data": {
            "train": pairs(folder / "pairs.jsonl"), "eval_size": 12, "test_size": 10, "ties": "half", "bad_rows": "skip"
        },
        "method": {"r": 4}, "sft": {"lr": 2e-3, "batch_size": 16}, "generation": {"max_new_tokens": 16},
        "evaluation": {"match": "whole"}, "selfplay": {"iterations": 0}, **more,
    }  # fmt: skip


KINDS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"dpo": {"epochs": 0.3}},
    "rl": {"reinforce": {"iterations": 1, "samples": 2, "prompts": 8, "lr": 1e-3}, "scorer": {"name": "match"}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {name: run_job(build_config(tree(folder, name, **more))) for name, more in KINDS.items()}


def test_the_same_prompts_and_real_answers(made: dict[str, Path]) -> None:
    for side in SIDES:
        content = {name: (run / "data" / f"{side}.arrow").read_bytes() for name, run in made.items()}
        assert len(set(content.values())) == 1, side
    train: list[Prompt] = Rows([made["sft"] / "data" / "train.arrow"], Prompt)[:]
    kept = [(tuple(row.prompt_ids), tuple(row.real_ids)) for row in train]
    assert len(kept) == len(set(kept)) == 38  # each chosen answer once, of 60 prompts less 12 and 10
    prompts = {side: {tuple(row.prompt_ids) for row in Rows([made["dpo"] / "data" / f"{side}.arrow"], Prompt)[:]}
               for side in SIDES}  # fmt: skip
    assert not prompts["train"] & prompts["eval"]
    assert not prompts["train"] & prompts["test"]
    assert not prompts["eval"] & prompts["test"]


def test_the_same_start_made_anew(made: dict[str, Path]) -> None:
    starts = {(run / "sft" / "adapter_model.safetensors").read_bytes() for run in made.values()}
    assert len(starts) == 1


def test_tested_on_the_same_rows(made: dict[str, Path]) -> None:
    rows = {name: (run / "test" / "best.jsonl").read_text().splitlines() for name, run in made.items()}
    asked = {name: [(json.loads(line)["key"], json.loads(line)["real"]) for line in one] for name, one in rows.items()}
    assert asked["sft"] == asked["dpo"] == asked["rl"]
    assert len(asked["sft"]) == 10


def test_a_start_is_borrowed_between_verbs(made: dict[str, Path]) -> None:
    """The data, θ_0 and its judgement that fine-tuning made are DPO's, if it is told where they lie."""
    folder = made["sft"].parents[1]
    told: list[dict[str, Any]] = []
    run = run_job(build_config(tree(folder, "lent", dpo={"epochs": 0.3})), [told.append], like=made["sft"])
    begun = {event["phase"] for event in told if event["event"] == "start"}
    assert not begun & {"data", "sft", "sft-scores", "base-scores"}
    for name in ("0/player/adapter_model.safetensors", "test/best.jsonl"):
        assert (run / name).read_bytes() == (made["dpo"] / name).read_bytes()


def test_a_run_may_be_the_data_of_all(tmp_path: Path) -> None:
    """Its prompts and real answers; the test is a part of what it held out, which nobody trained on."""
    small = {"data": {"split": "[:30]", "eval_limit": 12}, "selfplay": {"iterations": 1, "lr": 1e-3}}
    spin = run_job(build_config(tree(tmp_path, "spin", **small)))
    assert is_run(str(spin))
    data = {"data": {"train": str(spin), "test_size": 0.5}}
    runs = [run_job(build_config(tree(tmp_path, name, **data, **more))) for name, more in list(KINDS.items())[:2]]
    for side in SIDES:
        assert len({(run / "data" / f"{side}.arrow").read_bytes() for run in runs}) == 1
    test, held = (Rows([runs[0] / "data" / f"{side}.arrow"], Prompt) for side in ("test", "eval"))
    prompts = [{tuple(row.prompt_ids) for row in side} for side in (test, held)]
    assert all(prompts)
    assert not prompts[0] & prompts[1]
    with pytest.raises(DataError, match=r"give data\.test_size instead"):
        run_job(build_config(tree(tmp_path, "other", data={"train": str(spin), "test": "rows.jsonl"})))


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, True),
        ({"instruction": "a", "response1": "b", "response2": "c", "annotator1": 1, "annotator2": 1, "annotator3": 1},
         True),
        ({"prompt": "a", "completion": "b"}, False),
        ({"conversations": [{"from": "human", "value": "a"}], "chosen": "b", "rejected": "c"}, False),  # fine as it is
        ({"real": [{"role": "user", "content": "a"}], "generated": []}, False),  # the opponent answers anew
        ({"neither": 1}, False),
    ],
)  # fmt: skip
def test_rows_that_hold_nothing_but_pairs_are_read_as_pairs(row: dict[str, Any], found: bool, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    data = build_config({"data": {"train": str(file)}}).data
    assert compares(data, 0) is found
    assert compares(data.model_copy(update={"answers": "chosen"}), 0) is True


def test_dpo_spends_a_budget(tmp_path: Path) -> None:
    whole = run_job(build_config(tree(tmp_path, "whole", dpo={"epochs": 2, "batch_size": 8, "lr": 1e-4})))
    goal = spent_on_play(whole, 1)
    for unit in ("flops", "tokens", "steps"):
        budget = {"selfplay": {"budget": {"unit": unit, "amount": goal[unit]}}}
        more = {"dpo": {"epochs": 50, "batch_size": 8, "lr": 1e-4}, **budget}
        found = spent_on_play(run_job(build_config(tree(tmp_path, unit, **more))), 1)
        assert found[unit] == pytest.approx(goal[unit], rel=0.03)


@pytest.mark.parametrize("select", ["nll", "match", "scorer"])
def test_what_chooses_is_what_was_asked_for(select: str, tmp_path: Path) -> None:
    scorer = {"scorer": {"name": "match"}} if select == "scorer" else {}
    run = run_job(build_config(tree(tmp_path, "run", dpo={"epochs": 0.3, "select": select}, **scorer)))
    best = read_json(run / "best" / "best.json")
    assert best["metric"] == {"scorer": "reward"}.get(select, select)
    assert set(best["values"]) == {"sft", "0"}
    better = max if select in ("match", "scorer") else min
    assert best["value"] == better(best["values"].values())


def test_what_cannot_choose_is_refused(tmp_path: Path) -> None:
    for select, said in (("exact_kl", "only in the laboratory"), ("scorer", "give scorer")):
        with pytest.raises(ConfigError, match=said):
            run_job(build_config(tree(tmp_path, "run", dpo={"select": select})))
    assert not (tmp_path / "runs" / "run" / "data").exists()


def test_the_laboratory_keeps_test_pairs_apart() -> None:
    train, held = planted.split(0, test=300)
    test = planted.test_pairs(300)
    prompts = [{row["prompt"] for row in part} for part in (train, held, test)]
    assert [len(part) for part in prompts] == [500, 200, 300]
    assert not prompts[0] & prompts[1] | prompts[0] & prompts[2] | prompts[1] & prompts[2]
    assert planted.split(1, test=300)[0] != train
    with pytest.raises(DataError, match=r"lower data\.test_size"):
        planted.split(0, test=800)


def test_a_study_has_one_data_for_all_arms(tmp_path: Path) -> None:
    """Also where a plain reading would do: DPO's chosen answers are everybody's, each once."""
    file = tmp_path / "chats.json"
    rows = [
        {"conversations": [{"from": "human", "value": f"{i}?"}], "chosen": f"a{i}", "rejected": f"b{i % 3}"}
        for i in range(40)
    ]
    file.write_text(json.dumps(rows))
    asked = {"arms": ["sft", "continued", "spin", "dpo"], "target": "spin", "seeds": [0]}
    config = tree(tmp_path, "study", data={"train": str(file), "eval_size": 8}, compare=asked)
    config["selfplay"] = {"iterations": 2}
    config["dpo"] = {"beta": 0.7, "anchor": 0.3}
    study = Study(build_config(config))
    arms = {arm.name: study.task(arm, None, 0).config for arm in study.arms if not arm.matched}
    arms |= {arm.name: study._config(arm, arm.values[0], 0) for arm in study.arms if arm.matched}
    assert {one.data.answers for one in arms.values()} == {"chosen"}
    assert {name for name, one in arms.items() if one.dpo is not None} == {"dpo"}
    dpo = arms["dpo"]
    assert (dpo.selfplay.iterations, dpo.selfplay.beta, dpo.selfplay.anchor) == (1, 0.7, 0.3)
    assert dpo.dpo is not None
    assert (dpo.dpo.select, dpo.evaluation.select) == ("nll", "nll")
    assert dpo.selfplay.lr == study.arms[-1].values[0] == 1e-5


def test_an_arm_of_pairs_needs_pairs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'arm "dpo" learns from pairs .*; set data\.subset=preferences, or'):
        Study(build_config({"runs": str(tmp_path / "runs"), "compare": {"arms": ["dpo"]}}))
    assert not (tmp_path / "runs").exists()
