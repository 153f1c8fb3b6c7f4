"""The main job around Algorithm 1: config → run folder → self-play, or another kind of work → report."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from sparring.config import Config, decisive
from sparring.crew import local_size, muster
from sparring.data.load import Loaded
from sparring.data.messages import Renderer
from sparring.errors import InputError
from sparring.evaluation.prompting.sheet import read_rules
from sparring.files import digest
from sparring.folder import lender
from sparring.kinds import kind_of
from sparring.machine import available_threads
from sparring.models.base import choose_device, find_base, fingerprint_base, load_renderer, read_config
from sparring.models.quantised import NAMES, check_quantised, described
from sparring.rewarding import judged_by
from sparring.run import Event, Run
from sparring.session import Session
from sparring.start import fingerprint_start, settled
from sparring.stopping import stopped_by
from sparring.verbs import verb_of


def quiet_libraries() -> None:
    """Keep transformers' own bars and notes off the terminal."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def run_folder(config: Config) -> Path:
    """Where a run lives: runs/name."""
    name = config.name
    if name in (".", "..") or "/" in name or "\\" in name:
        raise InputError(f'name "{name}" is not a folder name; give one without slashes, and the place as runs=...')
    return Path(config.runs) / name


def open_session(config: Config, run: Run, command: str = "", like: Path | None = None) -> Session:
    """Find base and data, check them, and claim the run folder; loads no weights.

    like  another run's folder: what it has made in the same way is copied, not made again
    """
    missing = [name for name in config.track if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"track names {missing[0]}, which is not installed; install it (pip install {missing[0]}), or leave it out"
        )
    found = identify(config)
    config = found.config
    facts = {"command": command, **_facts(config, found, run.crew.size)}
    run.claim(config.model_dump(mode="json"), facts, found.same, found.scorer)
    if like is not None:
        run.lender = lender(like, found.same)
    return Session(config, run, found.renderer, found.base_folder, found.loaded)


@dataclass(frozen=True, slots=True)
class Found:
    """What a config names, found and read.

    config  as its verb settles it, with the method of the adapter that it starts from
    same    what a run folder must have been made with to be gone on with
    quantised  what is done to the base's weights, in words; empty if nothing is
    bitsandbytes  whether they are held by it
    scorer  what judges the players, with its fingerprint
    """

    config: Config
    base_folder: Path
    renderer: Renderer
    loaded: Loaded
    same: dict[str, Any]
    quantised: str = ""
    bitsandbytes: bool = False
    scorer: Event | None = None


def identify(config: Config) -> Found:
    """Find the base and read the data of a config; loads no weights."""
    quiet_libraries()
    kind = kind_of(config)
    config = settled(kind.settle(config))
    torch.set_num_threads(config.threads or max(1, available_threads() // local_size()))
    base_folder = find_base(config.model)
    renderer = load_renderer(base_folder, config.model)
    quantised = check_quantised(read_config(base_folder, config.model), config)
    loaded = kind.read(config, renderer)
    device, dtype = choose_device(config.model)
    same: dict[str, Any] = {
        **kind.decides(config),  # first, for what differs first is told
        **decisive(config),
        "computed on": f"{device.type} in {str(dtype).removeprefix('torch.')}",
        **({"base quantised to": described(quantised, config.model)} if quantised else {}),
        "base fingerprint": fingerprint_base(base_folder, config.model),
        "data fingerprint": loaded.fingerprint,
        "template fingerprint": digest([renderer.template, renderer.end_ids]),
    }
    if loaded.compared:
        same["data"] = {**same["data"], "ties": config.data.ties}
    if config.evaluation.prompting.style == "rules":
        same["rules fingerprint"] = digest(read_rules(config.evaluation.prompting))
    if config.sft.stop == "scorer" and verb_of(config) != "reward":  # which fine-tunes nothing
        same["sft"] |= stopped_by(config, renderer, same["base fingerprint"])
    if config.start is not None:
        same["start fingerprint"] = fingerprint_start(config)
    words = quantised and described(quantised, config.model)
    scorer = judged_by(config, renderer, same["base fingerprint"])
    return Found(config, base_folder, renderer, loaded, same, words, quantised in NAMES, scorer)


def run_job(
    config: Config,
    listeners: Sequence[Callable[[Event], None]] = (),
    command: str = "",
    like: Path | None = None,
) -> Path:
    """The whole job, self-play or what else the config is for (kinds.py); returns the run folder.

    Called again after a kill, it goes on from there. In each process that torchrun or accelerate started it does a
    part of the job, and one writes.
    command  what the user typed, for the report
    like     another run's folder, of which is copied what it has made in the same way
    """
    kind = kind_of(config)
    with muster() as crew, Run(run_folder(config), crew) as run:
        run.listeners += listeners
        kind.work(open_session(config, run, command, like))
        run.gather()
        if crew.writes:
            kind.report(run.folder)
        return run.folder


def _facts(config: Config, found: Found, processes: int) -> dict[str, Any]:
    device, dtype = choose_device(config.model)
    packages = ["sparring", "torch", "transformers", "peft", "accelerate"]
    packages += ["bitsandbytes"] if found.bitsandbytes else []
    return {
        "name": config.name,
        "seed": config.seed,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "hardware": {
            "cpu": platform.processor() or platform.machine(),
            "processes": processes,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "dtype": str(dtype).removeprefix("torch."),
        },
        "base": {
            "name": config.model.base,
            "fingerprint": found.same["base fingerprint"],
            **({"quantised": found.quantised} if found.quantised else {}),
        },
        "data": {
            "description": found.loaded.description,
            "train": config.data.train,
            "eval": config.data.eval,
            "counts": found.loaded.counts,
            "fingerprint": found.loaded.fingerprint,
        },
    }
