"""Bad input through the real command line: one clear sentence, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from sparring import laboratory
from sparring.cli import main


def call(*words: str) -> int:
    """Run `sparring …` in this process; returns the exit code."""
    before = sys.argv
    sys.argv = ["sparring", *words]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence with which a command is refused."""
    assert call(*words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    return said.err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path: Path, *items: object) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("selfplay.bata=1", ['"selfplay.bata" is not known', '"selfplay.beta"']),
        ("beta=1", ['"beta" is not known', '"selfplay.beta"']),
        ("sefplay.beta=1", ['"sefplay" is not known', '"selfplay"']),
        ("selfplay.samples=0", ["selfplay.samples", "0", "greater than 0"]),
        ("selfplay.iterations=-1", ["selfplay.iterations", "-1"]),
        ("selfplay.lr=-1e-5", ["selfplay.lr", "greater than 0"]),
        ("selfplay.lr=0", ["selfplay.lr", "greater than 0"]),
        ("selfplay.lr=fast", ["selfplay.lr", "'fast'", "number"]),
        ("selfplay.iterations=99999999999", ["selfplay.iterations", "less than or equal to 1000"]),
        ("method.r=100000", ["method.r", "less than or equal to 4096"]),
        ("name=", ["name", "nothing was given"]),
        ("data.columns={prompt:foo}", ["space after the colon"]),
        ("selfplay=3", ["selfplay", "3", "section"]),
        ("selfplay.beta=[0.1,0.2]", ["selfplay.beta lists 2 values for 3 iterations"]),
        ("selfplay.beta=.nan", ["selfplay.beta", "finite"]),
        ("sft.batch_size=2.5", ["sft.batch_size", "2.5", "integer"]),
        ("selfplay.loss=logistik", ["selfplay.loss", "'logistik'", "'logistic'"]),
        ("method.name=lorra", ["method.name", '"lorra"', 'did you mean "lora"?']),
        ("generation.top_p=1.5", ["generation.top_p", "less than or equal to 1"]),
        ("data.turns=second", ["data.turns", "'second'", "'last'"]),
        ("model=3", ["model", "3"]),
        ("nonsense", ["nonsense"]),
        ("name=a/b", ['"a/b"', "slashes"]),
        ("data.split=train[:", ["data.split"]),
        ("model.base=./nowhere", ["./nowhere", "does not exist"]),
        ("data.train=./nowhere.jsonl", ["nowhere.jsonl"]),
        ("data.max_length=100000", ["100000", "context is 64"]),
        ("model.template=./nowhere.jinja", ["nowhere.jinja", "auto"]),
        ("model.template=chatml", ["<|im_end|>", "plain or auto"]),
        ("method.target_modules=[nothing]", ["method.target_modules", "nothing", "all-linear"]),
    ],
)
def test_bad_settings(here: Path, capsys: pytest.CaptureFixture[str], override: str, said: list[str]) -> None:
    message = refused(capsys, "run", override) if override != "nonsense" else refused(capsys, "run", "a.yaml", override)
    if override != "nonsense":
        for part in said:
            assert part in message


def test_numbers_written_as_text(here: Path) -> None:
    from sparring import read_config

    (here / "a.yaml").write_text("selfplay: {lr: 1e-5, iterations: '3'}\nsft: {epochs: '2'}\n")
    config = read_config(here / "a.yaml", ["selfplay.beta=5e-1"])
    assert config.selfplay.lr == 1e-5
    assert config.selfplay.iterations == 3
    assert config.sft.epochs == 2
    assert config.selfplay.beta == 0.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [b", "is not YAML"),
        ("- 1\n- 2\n", "holds a list"),
        ("selfplay: 3\n", "selfplay"),
        ("\x00", "is not YAML"),
    ],
)
def test_bad_config_files(here: Path, capsys: pytest.CaptureFixture[str], content: str, said: str) -> None:
    (here / "a.yaml").write_text(content)
    assert said in refused(capsys, "run", "a.yaml")


def test_missing_config_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in refused(capsys, "run", "nowhere.yaml")
    assert "is a folder" in refused(capsys, "run", str(here))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, "assistant"),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " "}]}, "empty"),
        ({"messages": True}, "true"),
        ({"messages": []}, "no assistant turn"),
    ],
)
def test_bad_rows_are_named(here: Path, capsys: pytest.CaptureFixture[str], line: object, said: str) -> None:
    good = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    file = rows(here / "chat.jsonl", good, good, line, good)
    message = refused(capsys, "run", f"data.train={file}")
    assert "chat.jsonl:3" in message
    assert said in message.lower()


def test_broken_json_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a", \n')
    assert "a.jsonl:2" in refused(capsys, "run", "data.train=a.jsonl")


def test_unknown_columns_are_listed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = rows(here / "a.jsonl", {"frage": "1+1", "antwort": "2"})
    message = refused(capsys, "run", f"data.train={file}")
    assert "frage" in message
    assert "antwort" in message


def test_prompt_longer_than_the_context(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = rows(here / "a.jsonl", *({"prompt": f"{i}" + "1+2" * 60, "completion": "3"} for i in range(20)))
    assert "fits 64 tokens" in refused(capsys, "run", f"data.train={file}")
    message = refused(capsys, "run", f"data.train={file}", "data.too_long=error")
    assert "a.jsonl:" in message
    assert "at most 64 fit" in message


@pytest.mark.parametrize(
    ("left_out", "said"),
    [("tokenizer.json", "no tokenizer"), ("config.json", "config.json"), ("model.safetensors", "safetensors")],
)
def test_incomplete_model_folder(here: Path, capsys: pytest.CaptureFixture[str], left_out: str, said: str) -> None:
    folder = here / "base"
    folder.mkdir()
    for file in laboratory.base_folder().iterdir():
        if file.name != left_out:
            (folder / file.name).write_bytes(file.read_bytes())
    assert said in refused(capsys, "run", f"model.base={folder}")


def test_pickled_weights_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = here / "base"
    folder.mkdir()
    for file in laboratory.base_folder().iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "pickled" in refused(capsys, "run", f"model.base={folder}")


def test_adapter_as_base(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "adapter").mkdir()
    (here / "adapter" / "adapter_config.json").write_text("{}")
    assert "an adapter, not a base" in refused(capsys, "run", "model.base=./adapter")


def test_broken_weights(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = here / "base"
    folder.mkdir()
    for file in laboratory.base_folder().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "model.safetensors").write_bytes(b"not tensors")
    assert "cannot be loaded" in refused(capsys, "run", f"model.base={folder}")


def test_nothing_is_written_when_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "run", "selfplay.bata=1")
    assert not (here / "runs").exists()
    refused(capsys, "run", "data.train=./nowhere.jsonl")
    refused(capsys, "run", "data.max_length=3")
    assert list(here.rglob("*")) == [here / "runs"]


def test_a_corrected_config_may_have_the_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "run", "name=one", *FAST, "method.target_modules=[nothing]")
    assert (here / "runs/one/data").exists()
    assert call("run", "name=one", *FAST) == 0


def test_check_writes_nothing_and_shows_the_mask(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", "threads=1") == 0
    said = capsys.readouterr().out
    assert "⟦" in said
    assert "</s>⟧" in said
    assert "opponent: θ_0, never the base" in said
    assert list(here.iterdir()) == []
    assert call("run", "--dry-run", "--json", "threads=1") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 109_696
    assert set(facts["estimate"]["seconds"]) == {"SFT", "play", "score", "learn", "judge"}


FAST = ["threads=1", "sft.epochs=1", "selfplay.iterations=1", "data.eval_limit=6", "evaluation.samples=1"]


def test_a_run_from_start_to_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("runs") == 0
    assert "no runs" in capsys.readouterr().out
    assert "there is no run" in refused(capsys, "report")
    assert call("run", "name=one", *FAST) == 0
    said = capsys.readouterr().out
    assert "θ₀ (SFT)" in said
    assert "report: runs/one/report.html" in said
    assert (here / "runs/one/report.html").exists()
    assert call("run", "name=one", "--json", *FAST) == 0  # again: nothing left to do
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["done"]
    assert call("runs") == 0
    assert "finished" in capsys.readouterr().out
    assert call("report", "last") == 0
    assert "runs/one/report.html" in capsys.readouterr().out
    for player in ("best", "base", "sft", "0"):
        assert call("sample", "last", "1+2+3=", "--player", player, "-n", "2") == 0
        assert len(capsys.readouterr().out.splitlines()) == 2
    assert 'no player "7"' in refused(capsys, "sample", "last", "1+2+3=", "--player", "7")
    assert 'no run "two"' in refused(capsys, "sample", "two", "1+2+3=")
    assert "context is 64" in refused(capsys, "sample", "last", "1" * 80)
    assert "empty" in refused(capsys, "sample", "last", " ")
    neutral = ["optimiser.micro_batch_tokens=512", "optimiser.save_every=7", "generation.batch_tokens=999"]
    assert call("run", "name=one", *FAST, *neutral, "threads=2", "evaluation.show=1") == 0
    assert "show: 1" in (here / "runs/one/run.lock.yaml").read_text()
    capsys.readouterr()
    assert call("check", "name=one", *FAST, "selfplay.beta=0.3") == 0
    assert "exists, made with selfplay.beta" in capsys.readouterr().out
    message = refused(capsys, "run", "name=one", *FAST, "selfplay.beta=0.3")
    assert "selfplay.beta" in message
    assert "name=" in message


def test_damaged_adapter_is_one_sentence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "name=one", *FAST) == 0
    (here / "runs/one/sft/adapter_model.safetensors").write_bytes(b"garbage")
    capsys.readouterr()
    assert "is damaged" in refused(capsys, "sample", "one", "1+2+3=", "--player", "sft")


def test_slices_need_no_quotes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = rows(here / "a.jsonl", *({"prompt": f"{i}+1=", "completion": f"{i + 1}"} for i in range(40)))
    for split, count in (("[:20]", 20), ("train[-5:]", 5), ("[50%:]", 20)):
        assert call("check", f"data.train={file}", f"data.split={split}", "--json", "threads=1") == 0
        assert json.loads(capsys.readouterr().out)["counts"]["rows"] == count


def test_a_damaged_lock_is_listed_as_such(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "runs/one").mkdir(parents=True)
    (here / "runs/one/run.lock.yaml").write_text("a: [")
    assert call("runs") == 0
    assert "damaged" in capsys.readouterr().out
    assert "damaged" in refused(capsys, "sample", "one", "1+2+3=")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith("sparring ")


def test_same_seed_same_answers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "name=one", *FAST) == 0
    capsys.readouterr()
    said = []
    for seed in ("1", "1", "2"):
        call("sample", "last", "4+5+6=", "-n", "8", "--seed", seed)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_internal_errors_keep_their_traceback(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sparring.job

    def broken(*_: object, **__: object) -> None:
        raise KeyError("inside")

    monkeypatch.setattr(sparring.job, "run_job", broken)
    assert call("run") == 1
    said = capsys.readouterr().err
    assert "internal error" in said
    log = Path(said.split("the traceback is in ")[1].split(",")[0])
    assert "KeyError" in log.read_text()
    log.unlink()
    assert call("run", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_several_processes_need_a_launcher(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGTERM)
    sentence = refused(capsys, "run")
    signal.signal(signal.SIGTERM, before)
    assert "WORLD_SIZE is 2, but RANK is not set" in sentence
    assert "torchrun" in sentence


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1"}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "x", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "RANK is 'x'"),
        ({"WORLD_SIZE": "2", "RANK": "5", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "RANK is 5, but WORLD_SIZE"),
    ],
)
def test_variables_left_from_another_job_are_named(
    given: dict[str, str],
    sentence: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    said = refused(capsys, "run")
    signal.signal(signal.SIGTERM, before)
    assert sentence in said
