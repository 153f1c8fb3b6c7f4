"""`sparring import`: an adapter that PEFT, TRL or Unsloth made, looked at, measured and verified as a run of its own.

An import is a run in which nothing trains: its θ_0 is the adapter, and there are no iterations. So whatever takes a run
takes it too. That the player which is seated here is what the adapter's makers have is not taken on trust: PEFT alone
loads the adapter on a base of its own, and the log-probs of both are compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.config import Config, ModelConfig
from sparring.configfile import build_config
from sparring.data.load import count_prompts
from sparring.errors import ConfigError, InputError, LawBroken, ModelError
from sparring.files import write_atomic
from sparring.folder import read_marker
from sparring.importing.check import Verified, verify
from sparring.importing.found import find_adapter, find_their_base, read_about
from sparring.importing.look import Look, look
from sparring.job import quiet_libraries, run_folder, run_job
from sparring.models.base import find_base
from sparring.report.records import difference, number, read_run
from sparring.report.tables import fixed, interval
from sparring.run import Event

VERIFIED = "verified.json"


def look_at(given: str, base: str | None = None) -> Look:
    """What there is to see in an adapter; ModelError as `find_adapter` and `look`.

    base  a base's folder, or a hub id in the local cache; None: the one that the adapter names, where it is here
    """
    quiet_libraries()
    folder = find_adapter(given)
    their = find_their_base(read_about(folder), folder)
    if base is not None:
        named = find_their_base({"base_model_name_or_path": base}, folder)
        if not named.name:
            raise ModelError(f"--base {base} is {named.why.partition(';')[0]}; with --data, a hub id is downloaded")
        their = named
    config = ModelConfig(base=their.name or "laboratory")
    return look(folder, find_base(config) if their.name else None, config)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An import that can begin: the adapter's folder, the run's config, and what was seen."""

    folder: Path
    config: Config
    seen: Look


def import_adapter(
    given: str, data: str, base: str | None = None, name: str | None = None, overrides: Sequence[str] = ()
) -> tuple[Path, Look, Verified]:
    """`prepare` and `measure` in one; (run, look, verified)."""
    prepared = prepare(given, data, base, name, overrides)
    run, found = measure(prepared)
    return run, prepared.seen, found


def prepare(given: str, data: str, base: str | None, name: str | None, overrides: Sequence[str]) -> Prepared:
    """Find an adapter and its base, compare them, and say what the run will be; loads no model.

    data  rows whose answers are measured, in any format that a run reads
    base  a folder or a hub id (which may be downloaded); None: the one that the adapter names, if it is here
    Raises InputError for what cannot be used.
    """
    quiet_libraries()
    folder = find_adapter(given)
    config = _config(folder, data, base or _their_base(folder), name, overrides)
    seen = look(folder, find_base(config.model), config.model)
    if seen.words is not None and seen.words.refusal:
        raise ModelError(seen.words.refusal)
    return Prepared(folder, _with_template(_held_out(config), seen), seen)


def measure(
    prepared: Prepared, listeners: Sequence[Callable[[Event], None]] = (), command: str = ""
) -> tuple[Path, Verified]:
    """Make the run: judge the adapter and its base on the held-out rows, and verify it; (run, verified).

    Raises InputError for what cannot be used, LawBroken (12) if the player is not PEFT's.
    """
    try:
        run = run_job(prepared.config, listeners, command)
    except InputError:
        _forget_template(prepared.config)
        raise
    found = verify(run, prepared.folder)
    write_atomic(run / VERIFIED, json.dumps(found.facts(), indent=2) + "\n")
    if found.broken:
        raise LawBroken(
            f"law 12: the player of {run} is not the adapter as PEFT loads it: on {found.answers} held-out answers the "
            f"log-probs are {found.rms:.2g} nats per token apart (allowed in {found.dtype}: {found.near:.2g}), the NLL "
            f"is {found.nll:.6f} against {found.their_nll:.6f} (allowed: {found.tolerance:.2g} apart); do not use it"
        )
    return run, found


def against_base(run: Path) -> str:
    """What the adapter does to its base's likelihood of the held-out answers, in a sentence."""
    read = read_run(run)
    mine, theirs = (number(read.scores[name], "nll") for name in ("sft", "base"))
    if mine is None or theirs is None:
        return "no NLL was measured, so the adapter is not compared with its base"
    said = f"the adapter against its base: NLL {fixed(mine)} against {fixed(theirs)} per token"
    found = difference(read.scores["base"])
    if found is None:
        return f"{said}; too few rows for an interval"
    mean, low, high = -found[0], -found[2], -found[1]
    said += f", difference {fixed(mean, sign=True)} {interval(low, high, sign=True)}, 95 % over the prompts: "
    if low <= 0 <= high:
        return f"{said}no difference is seen on these rows; are they what it was trained for?"
    return said + ("better on these rows" if high < 0 else "worse on these rows; are they what it was trained for?")


def left_out(run: Path) -> str:
    """How many prompts of the data were not measured, in a sentence; empty if all were."""
    counts = read_marker(run / "data")["facts"]
    more = counts.get("over eval_limit", 0)
    return f"{more} more rows were not measured: data.eval_limit={more + counts['eval']} takes them all" if more else ""


# ---------------------------------------------------------------- the run


def _their_base(folder: Path) -> str:
    their = find_their_base(read_about(folder), folder)
    if their.name:
        return their.name
    said = f"the adapter says its base is {their.said}, " if their.said else ""
    raise ModelError(f"{said}{their.why}")


def _config(folder: Path, data: str, base: str, name: str | None, overrides: Sequence[str]) -> Config:
    """The run's config: the adapter as θ_0, and nothing that trains."""
    tree: dict[str, Any] = {
        "name": name or _name(folder),
        "start": str(folder),
        "model": {"base": base},
        "data": {"train": data},
        "sft": {"epochs": 0},
        "selfplay": {"iterations": 0},
    }
    config = build_config(tree, overrides)
    if config.selfplay.iterations or config.compare is not None or config.start != str(folder):
        raise ConfigError(
            "an import trains nothing, so selfplay.iterations, compare and start are not for it; to train on, run with "
            f"start={folder}"
        )
    return config


def _name(folder: Path) -> str:
    """A run's name for an adapter's folder: what tells it from others."""
    here = folder.resolve()
    if here.parent.name == "snapshots":  # in the hub's cache: models--OWNER--NAME/snapshots/COMMIT
        return here.parents[1].name.rpartition("--")[2]
    return f"{here.parent.name}-{here.name}" if here.name.startswith("checkpoint-") else here.name


def _with_template(config: Config, seen: Look) -> Config:
    """The config with the adapter's own chat template, kept beside the run, unless another was asked for."""
    template = None if seen.words is None else seen.words.template
    if template is None or "template" in config.model.model_fields_set:
        return config
    file = _template_file(config)
    file.parent.mkdir(parents=True, exist_ok=True)
    if run_folder(config).exists() and not (file.exists() and file.read_text(encoding="utf-8") == template):
        raise InputError(
            f"{run_folder(config)} exists, and was imported with another chat template; give another name with --name"
        )
    write_atomic(file, template)
    return config.model_copy(update={"model": config.model.model_copy(update={"template": str(file)})})


def _template_file(config: Config) -> Path:
    """Where an import keeps a chat template: a run folder takes no file before it is claimed."""
    folder = run_folder(config)
    return folder.with_name(f"{folder.name}.jinja")


def _forget_template(config: Config) -> None:
    if not run_folder(config).exists():
        _template_file(config).unlink(missing_ok=True)


def _held_out(config: Config) -> Config:
    """The config with all prompts but one held out, where nothing was said of it.

    A run has a training side: its longest answer limits those that players give. One prompt is left to it rather than
    put on both sides, for a prompt never is; nothing trains on it.
    """
    data = config.data
    told = {"eval", "eval_split", "eval_size", "test", "test_split", "test_size"} & data.model_fields_set
    if told or data.train == "laboratory":
        return config
    count = max(1, count_prompts(data, config.seed) - 1)
    return config.model_copy(update={"data": data.model_copy(update={"eval_size": float(count)})})
