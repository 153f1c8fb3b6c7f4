"""What a benchmark is run on: the settings that the parent writes and every child process reads."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sparring.config import ModelConfig
from sparring.models.base import choose_device

MODELS = ("micro", "tiny", "135m", "0.5b")


@dataclass(frozen=True, slots=True)
class Settings:
    """The same for all contestants.

    work      learn, play, iteration or reinforce
    lengths   mean tokens of prompt, real answer, synthetic answer
    spread    sigma of log-normal lengths; 0: all are equal
    samples   synthetic answers per prompt
    step      pairs per optimiser step, the rivals' batch
    batch     rows that the rivals generate at once
    malloc    keep: glibc keeps large buffers for the next use, where by default it gives them back to the kernel
    """

    work: str
    model: str = "tiny"
    dtype: str = "fp32"
    lengths: tuple[int, int, int] = (121, 288, 288)
    spread: float = 0.0
    pairs: int = 16
    samples: int = 1
    step: int = 8
    batch: int = 32
    lr: float = 5e-4
    beta: float = 0.1
    seed: int = 0
    threads: int = 2
    malloc: str = "default"

    def write(self, folder: Path) -> None:
        """Leave the settings in the folder of the benchmark."""
        (folder / "settings.json").write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(folder: Path) -> Settings:
        """The settings in the folder of the benchmark."""
        found = json.loads((folder / "settings.json").read_text())
        return Settings(**{**found, "lengths": tuple(found["lengths"])})


def parser(doc: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have; the module's docstring is the help."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--lengths", type=_lengths, default=(121, 288, 288), metavar="P,R,S", help="mean tokens (default 121,288,288)")
    add("--spread", type=float, default=0.0, help="sigma of log-normal lengths, say 0.6 (default 0: equal lengths)")
    add("--pairs", type=int, default=16, help="pairs, or prompts (default 16)")
    add("--model", choices=MODELS, default="tiny", help="random weights in a known shape (default tiny)")
    add("--dtype", choices=("auto", "fp32", "bf16"), default="auto", help="see above (default auto, as for a run)")
    add("--step", type=int, default=8, help="pairs per optimiser step (default 8, TRL's)")
    add("--batch", type=int, default=32, help="rows per generate of the rivals (default 32)")
    add("--lr", type=float, default=5e-4, help="learning rate: large, so that the loss curves say something")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=2, help="threads of every process (default 2)")
    add("--malloc", choices=("default", "keep"), default="default", help="keep: no page is fetched anew (all alike)")
    add("--repeats", type=int, default=3, help="fresh processes of each contestant (default 3)")
    add("--json", action="store_true", help="end with one line of JSON")
    return made


def settings_of(work: str, options: argparse.Namespace) -> Settings:
    """The settings among the parsed options."""
    known = {field.name for field in fields(Settings)}
    given = {key: value for key, value in vars(options).items() if key in known}
    if given["dtype"] == "auto":
        given["dtype"] = str(choose_device(ModelConfig())[1]).replace("torch.", "").replace("float32", "fp32")
        given["dtype"] = given["dtype"].replace("bfloat16", "bf16")
    return Settings(work=work, **given)


def _lengths(text: str) -> tuple[int, int, int]:
    try:
        prompt, real, synthetic = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers of tokens such as 121,288,288") from None
    if min(prompt, real, synthetic) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: every length is at least 1")
    return prompt, real, synthetic
