"""Judges: both orders, rules, a reward model, an endpoint that answers well, badly, or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, final

import pytest
import torch
from tests.helpers import byte_tokenizer, config_of
from tests.unit.test_cli import call, refused
from transformers import AutoModelForSequenceClassification

from sparring.errors import InputError, ModelError
from sparring.evaluation import endpoint
from sparring.evaluation.judges import About, Choice, compare, find_judge

ROWS = [("p", "long answer", "short"), ("q", "a", "bb"), ("r", "ab", "cd")]
REAL = About(real={"p": "shore", "q": "cc", "r": "xy"})


# ---------------------------------------------------------------- both orders


def test_both_orders_are_asked_and_contradictions_are_ties() -> None:
    asked: list[tuple[str, str, str]] = []

    def judge(prompt: str, first: str, second: str) -> Choice:
        asked.append((prompt, first, second))
        if prompt == "p":
            return "first"  # whoever comes first: contradicts itself
        return "first" if first == "a" else "second" if second == "a" else "tie"

    found = compare(judge, ROWS)
    assert asked == [call for p, a, b in ROWS for call in ((p, a, b), (p, b, a))]
    assert found.wins == [0.5, 1.0, 0.5]
    assert found.disagreed == 1
    assert found.rate == pytest.approx(2 / 3)
    assert found.interval is None
    assert compare(judge, ROWS * 10).interval is None  # three prompts, however often they are asked
    many = compare(judge, [(f"{prompt}{time}", a, b) for time in range(10) for prompt, a, b in ROWS])
    low, high = many.interval or (0.0, 0.0)
    assert low < many.rate < high


def test_a_tie_in_one_order_is_a_tie() -> None:
    assert compare(lambda p, a, b: "first" if a == "bb" else "tie", [ROWS[1]]).wins == [0.5]


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("rule", "wins"),
    [
        ("longer", [1.0, 0.0, 0.5]),
        ("shorter", [0.0, 1.0, 0.5]),
        ("closer", [0.0, 0.0, 0.5]),
        ("match", [0.5, 0.5, 0.5]),
    ],
)
def test_rules(rule: str, wins: list[float]) -> None:
    found = compare(find_judge(f"rule:{rule}", REAL), ROWS)
    assert found.wins == wins
    assert found.disagreed == 0


def test_matching_follows_the_runs_own_way() -> None:
    about = About(real={"p": "so 5"}, match="last_number")
    assert compare(find_judge("rule:match", about), [("p", "it is 5", "so 6")]).wins == [1.0]


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rule_of_taste.py").write_text(
        "def vowels(prompt, first, second):\n"
        "    a, b = (sum(c in 'aeiou' for c in text) for text in (first, second))\n"
        "    return 'first' if a > b else 'second' if b > a else 'tie'\n"
        "def odd(prompt, first, second):\n    return 'left'\n"
        "def broken(prompt, first):\n    return 'tie'\n"
        "number = 3\n"
    )
    assert compare(find_judge("rule:my_rule_of_taste:vowels", REAL), ROWS).wins == [1.0, 1.0, 1.0]
    with pytest.raises(InputError, match='answered \'left\'; it must return "first", "second" or "tie"'):
        compare(find_judge("rule:my_rule_of_taste:odd", REAL), ROWS)
    with pytest.raises(InputError, match="failed: TypeError"):
        compare(find_judge("rule:my_rule_of_taste:broken", REAL), ROWS)
    for name in ("my_rule_of_taste:nothing", "no_such_module:f", "my_rule_of_taste:number"):
        with pytest.raises(InputError, match=r"cannot be imported|is a int"):
            find_judge(f"rule:{name}", REAL)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("longer", "give rule:longer"),
        ("rule", "lacks what comes behind the colon; give rule:NAME"),
        ("rulle:longer", 'did you mean "rule"'),
        ("rule:longr", 'did you mean "longer"'),
        ("endpoint:http://localhost:1/v1", "--model"),
        ("endpoint:file:///etc/passwd", "is no web address"),
    ],
)
def test_an_unknown_judge_is_one_sentence(spec: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        find_judge(spec, REAL)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- a reward model


def test_a_reward_model(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = config_of("llama", tokenizer)
    config.num_labels, config.pad_token_id = 1, tokenizer.eos_token_id
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")

    def reward(text: str) -> float:
        with torch.no_grad():
            return float(model(input_ids=torch.tensor([tokenizer(text).input_ids])).logits[0, 0])

    expected = [float(reward(p + a) > reward(p + b)) for p, a, b in ROWS]
    found = compare(find_judge(f"reward:{tmp_path / 'reward'}", REAL), ROWS)
    assert found.wins == expected
    assert found.disagreed == 0
    config.num_labels = 3
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "three")
    tokenizer.save_pretrained(tmp_path / "three")
    with pytest.raises(ModelError, match="gives 3 numbers"):
        find_judge(f"reward:{tmp_path / 'three'}", REAL)
    with pytest.raises(InputError, match="nor a model's folder"):
        find_judge(f"reward:{tmp_path / 'nothing'}", REAL)


def test_a_pickled_reward_model_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    config = config_of("llama", tokenizer)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config)
    config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="in safetensors"):
        find_judge(f"reward:{tmp_path}", REAL)


# ---------------------------------------------------------------- an endpoint

Reply = tuple[int, bytes]


def completion(text: str) -> Reply:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@final
class Stand:
    """A stand-in for an API: `reply` gives (status, body) for each request; the requests are kept."""

    def __init__(self, reply: Callable[[dict[str, Any]], Reply]) -> None:
        self.requests: list[tuple[str, dict[str, Any], str | None]] = []
        stand = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand.requests.append((self.path, body, self.headers.get("Authorization")))
                status, content = reply(body)
                self.send_response(status)
                if status in (301, 302):
                    self.send_header("Location", content.decode())
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of a client that waits no longer
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def judge(self, key_from: str | None = None) -> Any:
        return find_judge(f"endpoint:{self.url}", About(model="referee", key_from=key_from))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[dict[str, Any]], Reply]], Stand]]:
    monkeypatch.setattr(endpoint, "WAIT", 0.01)
    made: list[Stand] = []

    def make(reply: Callable[[dict[str, Any]], Reply]) -> Stand:
        made.append(Stand(reply))
        return made[-1]

    yield make
    for one in made:
        one.close()


def prefers_long(body: dict[str, Any]) -> Reply:
    text = body["messages"][0]["content"]
    a = text.split("[Answer A]\n")[1].split("\n\n[Answer B]")[0]
    b = text.split("[Answer B]\n")[1].split("\n\nExplain")[0]
    return completion(
        "I liked [[A]] at first. " + ("[[A]]" if len(a) > len(b) else "[[B]]" if len(b) > len(a) else "[[C]]")
    )


def test_an_endpoint(stand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = stand(prefers_long)
    monkeypatch.setenv("REFEREE_KEY", "secret")
    found = compare(server.judge("REFEREE_KEY"), ROWS)
    assert found.wins == [1.0, 0.0, 0.5]
    assert len(server.requests) == 6
    path, body, key = server.requests[0]
    assert path == "/v1/chat/completions"
    assert body["model"] == "referee"
    assert body["temperature"] == 0
    assert key == "Bearer secret"
    assert stand(prefers_long).judge()("p", "aa", "b") == "first"


def test_an_endpoint_is_tried_again(stand: Any) -> None:
    left = [503, 429]

    def reply(body: dict[str, Any]) -> Reply:
        return (left.pop(), b"busy") if left else prefers_long(body)

    server = stand(reply)
    assert server.judge()("p", "aa", "b") == "first"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "said", "tries"),
    [
        ((401, b"no"), "refused with HTTP 401: give the environment variable that holds its key with --key-from", 1),
        ((404, b"no"), "refused with HTTP 404: the address or the model's name (referee) is wrong", 1),
        ((400, b"too long"), "refused with HTTP 400: it said 'too long'", 1),
        ((302, b"http://127.0.0.1:9/elsewhere"), "refused with HTTP 302", 1),
        ((500, b"oh"), "5 times in turn (HTTP 500)", 5),
        ((200, b"<html>hello</html>"), "which is not a chat completion", 1),
        ((200, b'{"choices": []}'), "which is not a chat completion", 1),
    ],
)
def test_an_endpoint_that_cannot_be_used(stand: Any, reply: Reply, said: str, tries: int) -> None:
    server = stand(lambda body: reply)
    with pytest.raises(InputError) as error:
        server.judge()("p", "a", "b")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(server.requests) == tries


def test_replies_without_a_verdict(stand: Any) -> None:
    server = stand(lambda body: completion("Both are fine."))
    judge = server.judge()
    assert judge("p", "a", "b") == "tie"
    assert judge.unclear == 1
    with pytest.raises(InputError, match=r"3 of 3 replies of referee at .* hold no verdict"):
        compare(judge, ROWS)


def test_nobody_there(stand: Any) -> None:
    server = stand(prefers_long)
    judge = server.judge()
    server.close()
    with pytest.raises(InputError, match=r"cannot be used, 5 times in turn \(.*[Rr]efused"):
        judge("p", "a", "b")


def test_a_slow_endpoint(stand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "SECONDS", 0.05)
    monkeypatch.setattr(endpoint, "TRIES", 2)
    gate = threading.Event()

    def reply(body: dict[str, Any]) -> Reply:
        gate.wait(5)
        return prefers_long(body)

    judge = stand(reply).judge()
    with pytest.raises(InputError, match=r"2 times in turn \((no reply in 0.05 seconds|timed out)\)"):
        judge("p", "a", "b")
    gate.set()


def test_a_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(InputError, match="NO_SUCH_KEY, which should hold the endpoint's key, is not set"):
        find_judge("endpoint:http://localhost/v1", About(model="m", key_from="NO_SUCH_KEY"))


# ---------------------------------------------------------------- the verb


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a test, in short."""
    runs = tmp_path_factory.mktemp("runs")
    settings = [
        'data.split="[:40]"', "data.eval_limit=12", "data.test_size=10", "selfplay.iterations=1", "threads=1",
        "evaluation.match=last_number", f"runs={runs}", "name=r", "selfplay.lr=1e-3",
    ]  # fmt: skip
    assert call("run", *settings, "--json") == 0
    return runs


def test_judging_a_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = json.loads((finished / "r" / "best" / "best.json").read_text())["player"]
    capsys.readouterr()
    assert call("judge", "r", "--runs", str(finished), "--judge", "rule:match", "--first", "real", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["first"] == "real"
    assert facts["second"] == "sft"
    rows = [json.loads(x) for x in (finished / "r" / "sft-scores" / "answers.jsonl").read_text().splitlines()]
    if facts["answers"] == "held-out":  # the test holds the best and the last player's answers only
        ties = sum(row["answer"][-1:] == row["real"][-1:] for row in rows)
        assert facts["win_rate"] == pytest.approx((12 - ties / 2) / 12)
    assert (
        call("judge", "r", "--runs", str(finished), "--judge", "rule:longer", "--first", "0", "--second", "real") == 0
    )
    assert "0 against real, rule:longer, 10 test prompts: win rate" in capsys.readouterr().out
    assert (
        call("judge", "r", "--runs", str(finished), "--judge", "rule:longer", "--first", "0", "--second", "base") == 0
    )
    assert "0 against base, rule:longer, 12 held-out prompts" in capsys.readouterr().out
    for words, said in (
        (["--judge", "rule:longer", "--first", "best", "--second", best], "both are"),
        (["--judge", "rule:longer", "--first", "7"], 'no player "7"'),
        (["--judge", "longer"], "give rule:longer"),
    ):
        second = [] if "--second" in words else ["--second", "base"]
        assert said in refused(capsys, "judge", "r", "--runs", str(finished), *words, *second)
