"""Serve: who is chosen and what is shown, and a run asked over HTTP by OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import CHATML, byte_tokenizer, save_base

from sparring.browse import answer
from sparring.configfile import build_config
from sparring.errors import InputError, RunError
from sparring.job import run_job
from sparring.serving import engines as serve_engines
from sparring.serving import server as module
from sparring.serving.behind import anchored
from sparring.serving.engines import ENGINES, choose, installed
from sparring.serving.guard import Event, Guard, Wrong, is_loopback
from sparring.serving.models import weights
from sparring.serving.server import Wishes, command, plan, shown
from sparring.serving.shelf import Shelf, open_shelf

pytestmark = pytest.mark.usefixtures("undrawn")

MAIN = "from sparring.cli import main; main()"
HALF = "\N{REPLACEMENT CHARACTER}"  # of a character that the limit cut, not every server shows something
NO_SERVER = "fastapi, uvicorn or openai is not installed (the extra `serve`)"


def question(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, and runs on it: `talk` of chats, `text` of plain text, `prefix` of a method of its own."""
    place = tmp_path_factory.mktemp("place")
    tokenizer = byte_tokenizer(template=CHATML, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    save_base(place / "base", "llama", tokenizer)
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"{a} and {b}"},
                {"role": "assistant", "content": f"the sum is {a + b}"},
            ]
        }
        for a in range(4)
        for b in range(6)
    ]
    texts = [{"prompt": f"{a} and {b}:", "completion": f" {a + b}"} for a in range(4) for b in range(6)]
    for name, rows, method in (("talk", chats, "lora"), ("text", texts, "dora"), ("prefix", texts, "prefix")):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tree = {
            "name": name, "runs": str(place / "runs"), "threads": 1,
            "model": {"base": str(place / "base"), "dtype": "fp32", "device": "cpu"},
            "data": {"train": str(place / f"{name}.jsonl"), "eval_size": 6},
            "method": method, "sft": {"batch_size": 5, "lr": 2e-2, "epochs": 6},
            "selfplay": {"iterations": 1, "batch_size": 5, "lr": 1e-3, "stop_nll_rise": 9.0, "stop_real_drop": 9.0},
            "evaluation": {"show": 1},
        }  # fmt: skip
        run_job(build_config(tree, []), [])
    return place


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every server were installed, llama.cpp's as llama-cpp-python."""
    monkeypatch.setattr(serve_engines, "find_spec", lambda name: name)


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def planned(place: Path, run: str = "talk", **wishes: Any) -> module.Plan:
    return plan(run, place / "runs", Wishes(**{"port": free_port(), **wishes}))


def words(made: module.Plan) -> list[str]:
    return command(made, None).words


# ---------------------------------------------------------------- what is served


def test_all_players_are_served_or_those_that_are_named(place: Path) -> None:
    shelf = open_shelf("talk", place / "runs", [])
    assert [model.name for model in shelf.models] == ["base", "sft", "0", "best"]
    best = json.loads((place / "runs" / "talk" / "best" / "best.json").read_text())["player"]
    assert shelf.models[-1].player == best
    assert [m.name for m in open_shelf("talk", place / "runs", ["0", "base", "0"]).models] == ["0", "base"]
    with pytest.raises(InputError, match=r'no player "7"; .*known: 0, base, best, sft'):
        open_shelf("talk", place / "runs", ["7"])


def test_a_model_folder_is_served_under_its_own_name(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shelf = open_shelf(str(place / "base"), place / "runs", [])
    assert [model.name for model in shelf.models] == ["base"]
    assert shelf.chat
    assert shelf.place.is_relative_to(tmp_path)
    with pytest.raises(InputError, match="no other players"):
        open_shelf(str(place / "base"), place / "runs", ["sft"])


def test_an_unfinished_run_has_no_best(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "half"
    subprocess.run(["cp", "-r", str(place / "runs" / "talk"), str(copy)], check=True)
    (copy / "best" / "best.json").unlink()
    shelf = open_shelf(str(copy), tmp_path, [])
    assert [model.name for model in shelf.models] == ["base", "sft", "0"]
    assert any("not finished" in note for note in shelf.notes)
    with pytest.raises(RunError, match="no best player is chosen"):
        open_shelf(str(copy), tmp_path, ["best"])
    (copy / "data" / "phase.json").unlink()
    with pytest.raises(RunError, match="has only begun"):
        open_shelf(str(copy), tmp_path, [])


def test_a_player_that_was_not_kept_is_left_out(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "thin"
    subprocess.run(["cp", "-r", str(place / "runs" / "talk"), str(copy)], check=True)
    (copy / "sft" / "adapter_model.safetensors").unlink()
    shelf = open_shelf(str(copy), tmp_path, [])
    assert "sft" not in [model.name for model in shelf.models]
    assert any(note.startswith("sft is left out") for note in shelf.notes)


def test_another_base_is_refused(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other"
    subprocess.run(["cp", "-r", str(place / "runs" / "talk"), str(copy)], check=True)
    lock = copy / "run.lock.yaml"
    found = re.sub(r"(base:\n.*\n\s+fingerprint: )\w+", r"\g<1>0123456789abcdef", lock.read_text(), count=1)
    assert found != lock.read_text()
    lock.write_text(found)
    with pytest.raises(RunError, match="not the one this run was made with"):
        open_shelf(str(copy), tmp_path, [])


# ---------------------------------------------------------------- by whom


@pytest.mark.usefixtures("everything")
def test_the_server_is_chosen_by_the_method(place: Path) -> None:
    assert planned(place).engine.name == "vLLM"
    assert planned(place, "text").engine.name == "transformers serve"  # dora: merged, and vLLM takes one model
    assert planned(place, "text", players=("0",)).engine.name == "vLLM"
    with pytest.raises(InputError, match="no change of the base's weights"):
        planned(place, "prefix")
    assert planned(place, "prefix", players=("base",)).engine.name == "vLLM"
    with pytest.raises(InputError, match=r"only merged, one at a time; name one with --player"):
        planned(place, "text", engine="vllm")


def test_what_is_not_installed_is_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_engines, "find_spec", lambda name: None)
    monkeypatch.setattr(serve_engines.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"install with: pip install 'sparring\[serve\]'"):
        planned(place)
    with pytest.raises(InputError, match="pip install vllm"):
        planned(place, engine="vllm")
    monkeypatch.setattr(serve_engines, "find_spec", lambda name: None if name == "llama_cpp" else name)
    assert not installed("llama.cpp")
    monkeypatch.setattr(serve_engines.shutil, "which", lambda name: f"/bin/{name}")
    assert installed("llama.cpp")
    with pytest.raises(InputError, match="llama-server serves one model at a time"):
        planned(place, engine="llama.cpp")
    found = words(planned(place, engine="llama.cpp", players=("0",)))
    assert found[0] == "llama-server"
    assert found[found.index("--alias") + 1] == "0"
    assert found[found.index("--lora") + 1].endswith(".lora.gguf")


@pytest.mark.usefixtures("everything")
def test_vllm_gets_the_base_and_an_adapter_of_its_own_name_for_each_player(place: Path) -> None:
    made = planned(place, engine="vllm", host="0.0.0.0", key="secret")
    found, run = words(made), (place / "runs" / "talk").resolve()
    assert found[:2] == ["vllm", "serve"]
    assert found[found.index("--served-model-name") + 1] == "base"
    assert found[found.index("--max-lora-rank") + 1] == "16"
    start = found.index("--lora-modules") + 1
    best = json.loads((run / "best" / "best.json").read_text())["player"]
    homes = {"sft": run / "sft", "0": run / "0" / "player"}
    assert found[start : start + 3] == [f"sft={run / 'sft'}", f"0={homes['0']}", f"best={homes[best]}"]
    told = shown(made, command(made, None))
    assert "secret" not in told
    assert 'VLLM_API_KEY="$SPARRING_API_KEY"' in told


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize("engine", list(ENGINES))
def test_every_server_is_given_the_key_but_not_on_its_command_line(place: Path, engine: str) -> None:
    made = planned(place, engine=engine, host="0.0.0.0", key="hidden")
    started = command(made, None)
    assert started.key == ("VLLM_API_KEY" if engine == "vllm" else "SPARRING_API_KEY")
    assert f'{started.key}="$SPARRING_API_KEY"' in shown(made, started)
    assert "hidden" not in " ".join([*started.words, *map(str, started.env.values())])


def test_the_guard_does_not_start_open_to_others_without_a_key(tmp_path: Path) -> None:
    facts = {"models": ["0"], "context": 8, "place": str(tmp_path), "host": "0.0.0.0", "defaults": {}}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    line = [sys.executable, "-m", "sparring.serving.behind", str(tmp_path / "facts.json"), "transformers", "serve"]
    env = {name: value for name, value in os.environ.items() if name != "SPARRING_API_KEY"}
    found = subprocess.run(line, capture_output=True, text=True, env=env)
    assert found.returncode == 1
    assert "set SPARRING_API_KEY" in found.stderr


@pytest.mark.usefixtures("everything")
def test_showing_writes_nothing(place: Path) -> None:
    for engine in ENGINES:
        made = planned(place, engine=engine, players=("sft",))
        assert words(made)
    assert not (place / "runs" / "talk" / "serve").exists()


def test_hosts_of_others_need_a_key(place: Path) -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "localhost.example.org", "")))
    with pytest.raises(InputError, match="set SPARRING_API_KEY"):
        planned(place, host="0.0.0.0")
    with pytest.raises(InputError, match="which no client can send"):
        planned(place, host="0.0.0.0", key="a b")


def test_a_port_that_is_taken_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_engines, "find_spec", lambda name: name)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="is taken; give another with --port"):
            planned(place, port=taken.getsockname()[1])


# ---------------------------------------------------------------- what is written


def test_players_are_merged_once_and_keep_their_name_only_while_they_are_the_same(place: Path) -> None:
    said: list[str] = []
    shelf = open_shelf("text", place / "runs", ["sft", "base"])
    shelf = Shelf(**{name: getattr(shelf, name) for name in Shelf.__slots__} | {"told": said.append})
    shelf.place.mkdir(exist_ok=True)
    sft, base = (weights(shelf, model) for model in shelf.models)
    assert len(said) == 1
    assert "sft" in said[0]
    assert weights(shelf, shelf.models[0]) == sft
    assert len(said) == 1
    assert (base / "model.safetensors").is_symlink()
    asked = json.loads((sft / "generation_config.json").read_text())
    assert asked["do_sample"]
    assert asked["eos_token_id"] == list(shelf.renderer.end_ids)
    assert asked["top_k"] == 0
    changed = type(shelf.models[0])("sft", "sft", shelf.models[0].chain, "another")
    assert shelf.folder(changed) != sft
    assert not [*shelf.place.rglob("*.partial")]


# ---------------------------------------------------------------- the guard


def asked(
    app: Any,
    body: bytes = b'{"model": "0"}',
    path: str = "/v1/completions",
    method: str = "POST",
    key: bytes = b"",
    **headers: bytes,
) -> tuple[int, Any]:
    """(status, what is answered) of a guard before an application."""
    sent: list[Event] = []
    guard = Guard(app, ["base", "0"], {"top_k": 0}, "hidden" if key else None)
    given = {"host": b"localhost:8000", "content_type": b"application/json", "authorization": b"Bearer " + key}
    pairs = [(name.replace("_", "-").encode(), value) for name, value in {**given, **headers}.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs}

    async def receive() -> Event:
        return {"type": "http.request", "body": body}

    async def send(event: Event) -> None:
        sent.append(event)

    asyncio.run(guard(scope, receive, send))
    told = b"".join(event.get("body", b"") for event in sent)
    return sent[0]["status"], json.loads(told)


def replying(status: int, body: bytes, error: Exception | None = None) -> Any:
    async def app(scope: Event, receive: Any, send: Any) -> None:
        got = (await receive())["body"] if scope["method"] == "POST" else b"{}"
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body or got})
        if error is not None:
            raise error

    return app


def test_the_guard_hands_on_what_is_right_with_the_defaults() -> None:
    assert asked(replying(200, b"")) == (200, {"top_k": 0, "model": "0"})
    assert asked(replying(200, b""), b'{"model": "base", "top_k": 9}')[1]["top_k"] == 9
    assert asked(replying(200, b""), path="/v1/models", method="GET")[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b'{"model": "zero"}', 404, "known: 0, base"),
        (b'{"model": "/etc"}', 404, "/etc"),
        (b'{"model": ["0"]}', 404, "no model"),
        (b"{}", 404, "null"),
        (b'{"model"', 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"[" * 100000, 400, "not JSON"),
        (b"[1]", 400, "not a JSON object"),
        (b'{"model": "0", "x": "' + b"x" * 2**24 + b'"}', 413, "16 MiB"),
    ],
)
def test_the_guard_answers_what_is_wrong(body: bytes, status: int, word: str) -> None:
    found, told = asked(replying(200, b""), body)
    assert found == status
    assert word in told["error"]["message"]


def test_the_guard_asks_for_the_key() -> None:
    assert asked(replying(200, b""), key=b"hidden")[0] == 200
    for wrong in (b"hidde", b"Hidden", "hïdden".encode()):
        status, told = asked(replying(200, b""), key=wrong)
        assert status == 401
        assert "hidden" not in json.dumps(told)
    assert asked(replying(200, b""), path="/v1/models", method="GET", key=b"no")[0] == 401


def test_the_guard_keeps_web_pages_out() -> None:
    """A page of others may send plain text unasked, or have its own name lead to this machine; it reads no answer."""

    async def told(scope: Event, receive: Any, send: Any) -> None:
        await replying(200, json.dumps([name.decode() for name, _ in scope["headers"]]).encode())(scope, receive, send)

    assert "origin" not in asked(told, origin=b"https://example.org")[1]
    assert asked(told, content_type=b"text/plain")[0] == 415
    assert asked(told, content_type=b"application/json; charset=utf-8")[0] == 200
    assert asked(told, host=b"example.org")[0] == 403
    assert asked(told, host=b"example.org:8000")[0] == 403
    assert asked(told, host=b"192.168.0.1:8000")[0] == 403
    assert asked(told, host=b"")[0] == 403
    for host in (b"127.0.0.1", b"127.0.0.1:8000", b"[::1]:8000", b"[::1]", b"LOCALHOST"):
        assert asked(told, host=host)[0] == 200
    assert asked(told, host=b"example.org", key=b"hidden")[0] == 200


def test_the_guard_serves_nothing_else() -> None:
    for method, path in (("POST", "/load_model"), ("POST", "/reset"), ("GET", "/docs"), ("PUT", "/v1/models")):
        assert asked(replying(200, b""), path=path, method=method)[0] == 404


def test_the_guard_says_what_went_wrong_inside(capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(replying(422, b'{"detail": "too odd"}'))[1]["error"]["message"] == "too odd"
    status, told = asked(replying(500, b"Internal Server Error", ValueError("no such thing")))
    assert (status, "no such thing" in told["error"]["message"]) == (400, True)
    status, told = asked(replying(500, b"Internal Server Error", RuntimeError("broken")))
    assert (status, "broken" in told["error"]["message"]) == (500, True)
    assert "broken" in capsys.readouterr().err
    assert asked(replying(500, b"x", Wrong(400, "too long", "long")))[1]["error"]["code"] == "long"
    with pytest.raises(RuntimeError):  # half an answer was sent: the connection is broken off
        asked(replying(200, b"", RuntimeError("late")))


def test_an_answer_is_taken_apart_only_by_marks_that_its_template_writes() -> None:
    found = {"start_anchor": "<|im_start|>assistant\n"}
    assert anchored(found, "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n") == found
    assert anchored(found, "### User:\n?\n\n### Assistant:\n") is None
    assert anchored({"start_anchor": ["a", "b"]}, "b") is not None
    assert anchored({}, "b") is None


# ---------------------------------------------------------------- over HTTP


@dataclass
class Endpoint:
    """A server that was started by the command line."""

    process: subprocess.Popen[str]
    port: int

    def client(self) -> Any:
        import openai

        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=120)


def start(place: Path, run: str, *options: str, engine: str = "transformers") -> Endpoint:
    port = free_port()
    line = [sys.executable, "-c", MAIN, "serve", run, "--runs", str(place / "runs"), "--port", str(port)]
    process = subprocess.Popen(
        [*line, "--engine", engine, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HOST": "256.0.0.1", "SEED": "no number"},
    )
    assert process.stdout is not None
    seen = []
    for text in process.stdout:
        seen.append(text)
        if text.startswith("ready:"):
            return Endpoint(process, port)
    raise AssertionError("".join(seen))


def end(endpoint: Endpoint, number: int = signal.SIGINT) -> int:
    endpoint.process.send_signal(number)
    endpoint.process.communicate(timeout=30)
    return endpoint.process.returncode


@pytest.fixture(scope="module")
def endpoint(place: Path) -> Iterator[Endpoint]:
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason=NO_SERVER)
    found = start(place, "talk")
    yield found
    end(found)


QUESTION = [question("1 and 2")]


def test_the_models_are_listed(endpoint: Endpoint) -> None:
    assert sorted(model.id for model in endpoint.client().models.list().data) == ["0", "base", "best", "sft"]


@pytest.mark.parametrize("who", ["base", "sft", "0", "best"])
def test_a_chat_is_answered_as_by_sample(place: Path, endpoint: Endpoint, who: str) -> None:
    client, run = endpoint.client(), place / "runs" / "talk"
    wanted = answer(run, "1 and 2", who, 1, 0, 0.0, 30)[0]
    asked: dict[str, Any] = {"model": who, "messages": QUESTION, "temperature": 0, "max_tokens": 30}
    said = client.chat.completions.create(**asked).choices[0]
    assert said.message.content == wanted
    if who != "base":  # which says bytes that are no characters: a stream leaves some of them out
        parts = [one.choices[0].delta.content or "" for one in client.chat.completions.create(**asked, stream=True)]
        assert "".join(parts).rstrip(HALF) == wanted.rstrip(HALF)
        assert len([part for part in parts if part]) > 1


def test_an_answer_ends_at_the_run_s_own_end_token(endpoint: Endpoint) -> None:
    said = endpoint.client().chat.completions.create(model="sft", messages=QUESTION, temperature=0)
    assert said.choices[0].finish_reason == "stop"
    assert "<|" not in said.choices[0].message.content
    assert said.usage.completion_tokens < 30


def test_answers_are_drawn_unless_the_temperature_is_0(endpoint: Endpoint) -> None:
    client = endpoint.client()
    said = {client.completions.create(model="base", prompt="The", max_tokens=12).choices[0].text for _ in range(4)}
    assert len(said) > 1


def test_an_answer_stays_within_the_context(place: Path, endpoint: Endpoint) -> None:
    context = open_shelf("talk", place / "runs", ["base"]).context
    said = endpoint.client().completions.create(model="base", prompt="a b c d e f g", temperature=0, max_tokens=9999)
    assert said.usage.total_tokens <= context


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_answered_is_an_error_and_the_server_lives_on(endpoint: Endpoint, stream: bool) -> None:
    import openai

    client = endpoint.client()

    def refused(kind: type[Exception], word: str, **changes: Any) -> None:
        with pytest.raises(kind, match=word):
            client.completions.create(**{"model": "0", "prompt": "a", "max_tokens": 5, "stream": stream, **changes})

    refused(openai.NotFoundError, "no model .*zero.*known: 0, base, best, sft", model="zero")
    refused(openai.NotFoundError, "no model", model=str(Path(__file__).parent))
    refused(openai.BadRequestError, r"the prompt has \d+ tokens, but the model's context is", prompt="a b c " * 2000)
    refused(openai.BadRequestError, "max_tokens must be 1 or more", max_tokens=0)
    refused(openai.BadRequestError, "temperature 0 or more", temperature=-1)
    refused(openai.BadRequestError, "prompt must be a string", prompt=["a", "b"])
    refused(openai.UnprocessableEntityError, "Unexpected fields", extra_body={"zork": 1})
    chat = client.chat.completions
    with pytest.raises(openai.BadRequestError, match=r"the prompt has \d+ tokens"):
        chat.create(model="0", messages=[question("1 and " * 2000)], stream=stream)
    with pytest.raises(openai.BadRequestError, match="cannot be answered"):
        chat.create(model="0", messages=[{"content": "no role"}], stream=stream)
    assert client.completions.create(model="0", prompt="a", max_tokens=3).choices[0].text is not None


def test_bad_json_is_an_error(endpoint: Endpoint) -> None:
    url = f"http://127.0.0.1:{endpoint.port}/v1/completions"
    asked = urllib.request.Request(url, b'{"model": "0", ', {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(asked):
        pass
    with caught.value as error:
        assert error.code == 400
        assert "not JSON" in json.loads(error.read())["error"]["message"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_server_ends_with_the_command(place: Path, number: int, code: int) -> None:
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason=NO_SERVER)
    found = start(place, "text", "--player", "sft")
    assert end(found, number) == code  # waits until the server, too, has closed its output
    with socket.socket() as trial:
        assert trial.connect_ex(("127.0.0.1", found.port)) != 0


@pytest.mark.slow
def test_a_key_is_asked_for_and_not_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason=NO_SERVER)
    import openai

    monkeypatch.setenv("SPARRING_API_KEY", "of-the-house")
    found = start(place, "text", "--player", "sft")
    try:
        client = found.client()
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        client.api_key = "of-the-house"
        assert [model.id for model in client.models.list().data] == ["sft"]
        assert (
            client.completions.create(model="sft", prompt="1 and 2:", temperature=0).choices[0].text
            == answer(place / "runs" / "text", "1 and 2:", "sft", 1, 0, 0.0, 60)[0]
        )
    finally:
        found.process.send_signal(signal.SIGINT)
        told, _ = found.process.communicate(timeout=30)
    assert "of-the-house" not in told


# ---------------------------------------------------------------- llama.cpp


@pytest.mark.slow
@pytest.mark.parametrize("run", ["talk", "text"])
def test_llama_cpp_gives_the_same_answers(place: Path, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("llama_cpp", "gguf", "fastapi", "uvicorn", "openai", "sse_starlette", "starlette_context"):
        pytest.importorskip(name, reason="llama-cpp-python with its server is not installed")
    import openai

    monkeypatch.setenv("SPARRING_API_KEY", "of-the-house")
    found = start(place, run, engine="llama.cpp")
    try:
        client = found.client()
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        client.api_key = "of-the-house"
        assert sorted(model.id for model in client.models.list().data) == ["0", "base", "best", "sft"]
        for who in ("sft", "0"):
            wanted = answer(place / "runs" / run, "1 and 2", who, 1, 0, 0.0, 30)[0]
            if run == "talk":
                said = client.chat.completions.create(model=who, messages=QUESTION, temperature=0, max_tokens=30)
                assert said.choices[0].message.content.rstrip(HALF) == wanted.rstrip(HALF)
            else:
                said = client.completions.create(model=who, prompt="1 and 2", temperature=0, max_tokens=30)
                assert said.choices[0].text.rstrip(HALF) == wanted.rstrip(HALF)
        with pytest.raises(openai.NotFoundError, match="no model"):
            client.completions.create(model="zero", prompt="a")
        with pytest.raises(openai.BadRequestError, match="context"):
            client.completions.create(model="0", prompt="a b c " * 2000)
        assert client.completions.create(model="base", prompt="a", max_tokens=3).choices[0].text is not None
    finally:
        assert end(found) == 130


def test_choose_says_why(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_engines, "find_spec", lambda name: None if name in ("vllm", "llama_cpp") else name)
    monkeypatch.setattr(serve_engines.shutil, "which", lambda name: None)
    engine, why = choose(open_shelf("talk", place / "runs", []), "auto")
    assert (engine.name, why) == ("transformers serve", "it takes every player that can be merged into its base")
