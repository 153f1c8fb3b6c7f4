"""The laboratory: a world with exact answers, its tokenizer, its measure, and the committed base."""

from __future__ import annotations

import itertools
import math
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparring import laboratory
from sparring.configfile import read_config
from sparring.errors import DataError, LawBroken, ModelError
from sparring.laboratory import exact, pretrain, world
from sparring.laboratory.tokenizer import CHARACTERS, build

WELL_FORMED = re.compile(r"\d\+\d=\d;\d\+\d=\d")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(laboratory.base_folder())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(laboratory.base_folder()).eval()


# ---------------------------------------------------------------- the world


def test_p_data_is_a_distribution_over_at_most_three_right_answers():
    for prompt in world.PROMPTS:
        valid = world.answers(prompt)
        assert 1 <= len(valid) <= 3
        assert math.fsum(valid.values()) == pytest.approx(1.0, abs=1e-15)
        total = sum(int(digit) for digit in re.findall(r"\d", prompt)) % 10
        for text in valid:
            assert WELL_FORMED.fullmatch(text)
            p, q, x, y, r, z = (int(digit) for digit in re.findall(r"\d", text))
            assert ((p + q) % 10, x, (y + r) % 10) == (x, y, z)
            assert z == total


def test_the_three_orders():
    assert world.answers("7+5+1=") == {"7+5=2;2+1=3": 0.5, "5+1=6;6+7=3": 0.3, "7+1=8;8+5=3": 0.2}


@pytest.mark.parametrize(
    ("prompt", "probabilities"),
    [("1+2+2=", [0.7, 0.3]), ("2+2+1=", [0.5, 0.5]), ("1+2+1=", [0.5, 0.3, 0.2]), ("4+4+4=", [1.0])],
)
def test_orders_with_the_same_text_add_up(prompt, probabilities):
    assert list(world.answers(prompt).values()) == pytest.approx(probabilities)


def test_samples_follow_p_data():
    rng = random.Random(0)
    counts = Counter(world.sample("7+5+1=", rng) for _ in range(20_000))
    for text, probability in world.answers("7+5+1=").items():
        assert counts[text] / 20_000 == pytest.approx(probability, abs=0.015)


@pytest.mark.parametrize("prompt", ["", "1+2=", "1+2+3", "1+2+30=", "1+2+x=", "1+2+3=\n", "١+2+3="])
def test_a_foreign_prompt_is_refused(prompt):
    with pytest.raises(DataError, match="three digits"):
        world.answers(prompt)


def test_rows_are_disjoint_valid_and_deterministic():
    train, held_out = world.rows(3)
    assert (len(train), len(held_out)) == (400, 150)
    assert len({row["prompt"] for row in train + held_out}) == 550
    assert all(row["completion"] in world.answers(row["prompt"]) for row in train + held_out)
    assert world.rows(3) == (train, held_out)
    assert world.rows(4) != (train, held_out)
    with pytest.raises(DataError, match="1000 prompts"):
        world.rows(0, train=900, held_out=101)


def test_rows_of_a_seed_are_these():
    train, held_out = world.rows(0, train=2, held_out=1)
    assert [*train, *held_out] == [
        {"prompt": "2+2+8=", "completion": "2+8=0;0+2=2"},
        {"prompt": "3+8+5=", "completion": "3+8=1;1+5=6"},
        {"prompt": "1+8+0=", "completion": "1+8=9;9+0=9"},
    ]


def test_the_corrupted_world_is_well_formed_and_about_half_wrong():
    rng = random.Random(0)
    drawn = [(prompt, world.corrupted_sample(prompt, rng)) for prompt in world.PROMPTS * 5]
    assert all(WELL_FORMED.fullmatch(text) for _, text in drawn)
    assert 0.4 < sum(text in world.answers(prompt) for prompt, text in drawn) / len(drawn) < 0.6


# ---------------------------------------------------------------- exact divergences


def perfect(prompt):
    return {text: math.log(probability) for text, probability in world.answers(prompt).items()}


def test_p_data_itself_is_at_distance_zero():
    measured = world.exact(world.PROMPTS, [perfect(prompt) for prompt in world.PROMPTS])
    assert measured["valid_mass"] == pytest.approx(1.0)
    for name in ("kl", "template_kl", "total_variation"):
        assert measured[name] == pytest.approx(0.0, abs=1e-12)


def test_a_uniform_model():
    """Uniform over 14 characters and the end token: every 11-character answer has 15**-12."""
    measured = world.exact(["7+5+1="], [dict.fromkeys(world.answers("7+5+1="), -12 * math.log(15))])
    entropy = -math.fsum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    assert measured["valid_mass"] == pytest.approx(3 * 15**-12)
    assert measured["kl"] == pytest.approx(12 * math.log(15) - entropy)
    assert measured["template_kl"] == pytest.approx(math.log(3) - entropy)
    assert measured["total_variation"] == pytest.approx(1.0)


def brute_force(prompt, q):
    """The divergences by going through every well-formed text, valid or not; q maps text -> probability."""
    data = world.answers(prompt)
    inside = sum(q[text] for text in data)
    return {
        "valid_mass": inside,
        "kl": sum(p * math.log(p / q[text]) for text, p in data.items()),
        "template_kl": sum(p * math.log(p * inside / q[text]) for text, p in data.items()),
        "total_variation": sum(abs(data.get(text, 0.0) - q[text]) for text in q) / 2,
    }


def fake_model(rng):
    """A random distribution over every text that adds digits of 1 to 4, with sums of 2 to 6: 1600 texts."""
    digits, sums = range(1, 5), range(2, 7)
    texts = [f"{p}+{q}={x};{x}+{r}={y}" for p, q, r, x, y in itertools.product(*[digits] * 3, sums, sums)]
    weights = [rng.random() ** 40 for _ in texts]
    return {text: weight / sum(weights) for text, weight in zip(texts, weights, strict=True)}


def test_exact_equals_brute_force():
    rng = random.Random(1)
    prompts = ["1+2+3=", "1+1+2=", "1+2+1=", "2+1+1=", "1+1+1="]
    models = [fake_model(rng) for _ in prompts]
    expected = [brute_force(prompt, q) for prompt, q in zip(prompts, models, strict=True)]
    logprobs = [
        {text: math.log(q[text]) for text in world.answers(prompt)} for prompt, q in zip(prompts, models, strict=True)
    ]
    measured = world.exact(prompts, logprobs)
    for name, value in measured.items():
        assert value == pytest.approx(sum(one[name] for one in expected) / len(prompts), rel=1e-9)


def test_kl_is_lost_mass_plus_kl_of_the_orders():
    rng = random.Random(2)
    for prompt in rng.sample(world.PROMPTS, 50):
        scores = {text: math.log(rng.uniform(1e-6, 0.3)) for text in world.answers(prompt)}
        one = world.exact([prompt], [scores])
        assert one["kl"] == pytest.approx(-math.log(one["valid_mass"]) + one["template_kl"], abs=1e-12)


def test_far_and_impossible_answers():
    far = {text: score - 2000.0 for text, score in perfect("7+5+1=").items()}
    assert world.exact(["7+5+1="], [far])["kl"] == pytest.approx(2000.0)
    assert world.exact(["7+5+1="], [far])["template_kl"] == pytest.approx(0.0, abs=1e-9)
    never = dict.fromkeys(far, -math.inf)
    assert world.exact(["7+5+1="], [never])["kl"] == math.inf
    some = perfect("7+5+1=") | {"7+5=2;2+1=3": -math.inf}
    measured = world.exact(["7+5+1="], [some])
    assert measured["kl"] == math.inf
    assert measured["valid_mass"] == pytest.approx(0.5)


def test_exact_refuses_what_does_not_fit():
    with pytest.raises(DataError, match="0 prompts"):
        world.exact([], [])
    with pytest.raises(DataError, match="1 prompts and 2 sets"):
        world.exact(["7+5+1="], [{}, {}])
    with pytest.raises(DataError, match="give those of"):
        world.exact(["7+5+1="], [{"7+5=2;2+1=3": -1.0}])


# ---------------------------------------------------------------- tokenizer and measure


@pytest.mark.parametrize("text", ["7+5+1=", "7+5=2;2+1=3", " a  b\n", "", CHARACTERS])
def test_round_trip(tokenizer, text):
    for each in (build(), tokenizer):
        ids = each(text)["input_ids"]
        assert ids[0] == each.bos_token_id
        assert len(ids) == len(text) + 1
        assert each.decode(ids, skip_special_tokens=True) == text
        assert each.decode(each(text, add_special_tokens=False)["input_ids"]) == text


def test_the_committed_tokenizer_is_the_built_one(tokenizer):
    assert tokenizer.get_vocab() == build().get_vocab()
    assert tokenizer.chat_template is None
    specials = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    assert specials == ("<pad>", "<s>", "</s>", "<unk>")


def test_answer_tokens_continue_the_prompt(tokenizer):
    prompt, answer = exact.tokens(tokenizer, "7+5+1=", "7+5=2;2+1=3")
    assert prompt + answer == [*tokenizer("7+5+1=7+5=2;2+1=3")["input_ids"], tokenizer.eos_token_id]
    assert (len(prompt), len(answer)) == (7, 12)
    assert tokenizer.bos_token_id not in answer


def test_a_tokenizer_that_joins_prompt_and_answer_is_refused():
    class Joining:
        eos_token_id = 2

        def __call__(self, text):
            return {"input_ids": [sum(map(ord, text))]}

    with pytest.raises(ModelError, match="joins tokens"):
        exact.tokens(Joining(), "7+5+1=", "7+5=2;2+1=3")


def test_measure_scores_every_valid_answer_once(tokenizer):
    def score(prompt_ids, answer_ids):
        prompts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in prompt_ids]
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answer_ids]
        assert all(ids[-1] == tokenizer.eos_token_id for ids in answer_ids)
        return [perfect(prompt)[text] - math.log(2) for prompt, text in zip(prompts, texts, strict=True)]

    measured = exact.measure(score, tokenizer, ["7+5+1=", "1+2+2=", "4+4+4="])
    assert measured["valid_mass"] == pytest.approx(0.5)
    assert measured["kl"] == pytest.approx(math.log(2))
    assert measured["total_variation"] == pytest.approx(0.5)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_more_than_all_probability_breaks_a_law(tokenizer, value):
    with pytest.raises(LawBroken, match=r"7\+5\+1="):
        exact.measure(lambda prompts, answers: [value] * len(answers), tokenizer, ["7+5+1="])


# ---------------------------------------------------------------- the base


def test_the_committed_base_is_small():
    sizes = [file.stat().st_size for file in laboratory.base_folder().rglob("*") if file.is_file()]
    assert 0 < sum(sizes) <= 2 * 2**20


def test_its_readme_says_its_exact_divergences(model, tokenizer):
    card = (laboratory.base_folder() / "README.md").read_text(encoding="utf-8")
    stated = {name: float(value) for name, value in re.findall(r"\| (\w+) \| ([\d.]+) \|", card)}
    measured = exact.measure(pretrain.scorer(model), tokenizer, world.PROMPTS)
    assert measured == pytest.approx(stated, abs=1e-3)
    assert 0.7 <= measured["kl"] <= 1.2
    assert 0.4 <= measured["valid_mass"] <= 0.6


def test_it_writes_well_formed_text_and_ends(model, tokenizer):
    torch.manual_seed(0)
    inputs = tokenizer(list(world.PROMPTS[::10]), return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=16)
    new = ids[:, inputs["input_ids"].shape[1] :]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    assert sum(WELL_FORMED.fullmatch(text) is not None for text in texts) >= 90
    assert (new == tokenizer.eos_token_id).any(-1).float().mean() >= 0.9


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_pretraining_twice_gives_the_same_bytes(tmp_path):
    lines: list[str] = []
    threads = torch.get_num_threads()
    for name in ("one", "two"):
        torch.rand(7)  # the caller's random state must not matter
        pretrain.pretrain(tmp_path / name, seed=1, steps=4, batch_size=16, say=lines.append)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
    expected = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    assert set(contents(tmp_path / "one")) == expected | {"tokenizer.json", "tokenizer_config.json"}
    assert torch.get_num_threads() == threads
    assert any(line.startswith("step 4/4") for line in lines)
    pretrain.pretrain(tmp_path / "one", seed=2, steps=4, batch_size=16, force=True, say=lines.append)
    assert contents(tmp_path / "one")["model.safetensors"] != contents(tmp_path / "two")["model.safetensors"]


def test_overwriting_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ModelError, match="--force"):
        pretrain.pretrain(tmp_path)
    with pytest.raises(ModelError, match="not a model's folder"):
        pretrain.pretrain(tmp_path, force=True)
    assert (tmp_path / "mine.txt").read_text() == "kept"


# ---------------------------------------------------------------- around it


def test_importing_the_laboratory_loads_nothing_heavy():
    code = (
        "import sys, sparring.laboratory, sparring.laboratory.world, sparring.laboratory.exact, "
        "sparring.laboratory.tokenizer; assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_default_config_is_valid():
    config = read_config(laboratory.default_config())
    assert (config.model.base, config.data.train) == ("laboratory", "laboratory")
    assert Path(laboratory.base_folder()).is_dir()
