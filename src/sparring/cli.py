"""The command line: verb → module, imported when chosen, so that `--help` loads no torch."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparring.cli_chat import app as chat
from sparring.cli_dpo import app as dpo
from sparring.cli_evaluate import app as evaluate
from sparring.cli_export import app as export
from sparring.cli_import import app as import_
from sparring.cli_lab import lab
from sparring.cli_plan import DryRunOption, show_plan
from sparring.cli_reinforce import app as reinforce
from sparring.cli_reward import app as reward
from sparring.cli_runs import ConfigArgument, JsonOption, Overrides, carry_out, conclude, follows, given_config
from sparring.cli_serve import app as serve
from sparring.errors import SparringError

if TYPE_CHECKING:
    from sparring.config import Config

app = typer.Typer(
    name="sparring",
    help="Low-rank self-play fine-tuning of small language models: SFT, then SPIN, honestly compared. "
    "--version tells the version; --debug, with any verb, shows the traceback of an internal error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(lab, name="lab")
app.add_typer(chat)
app.add_typer(evaluate)  # sample, judge, bench, mt-bench
app.add_typer(export)  # methods, merge, export
app.add_typer(import_)
app.add_typer(serve)
app.add_typer(reinforce)
app.add_typer(dpo)
app.add_typer(reward)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="a run's folder or name, or `last`")]
RunsOption = Annotated[str, typer.Option("--runs", help="the folder that holds the runs")]


@app.command()
def run(
    config: ConfigArgument = None,
    overrides: Overrides = None,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Fine-tune, then self-play: the whole job. The same command goes on after a kill."""
    settings = _config(config, overrides)
    _studied(settings)
    if dry_run:
        show_plan(settings, as_json)
        return
    carry_out(settings, as_json)
    if settings.compare is not None and not as_json and not follows():
        print()
        _compare(settings)


@app.command()
def compare(
    config: ConfigArgument = None,
    overrides: Overrides = None,
    axis: Annotated[
        str | None, typer.Option("--axis", metavar="KEY=A,B", help="instead of arms: method=lora,dora, or any key")
    ] = None,
) -> None:
    """Did self-play do it? Train control arms at an equal budget, over seeds; one page with intervals."""
    changes = list(overrides or [])
    if axis is not None:
        from sparring.axis import read_axis

        changes.append(read_axis(axis))
    # the laboratory's model is so small that two runs at once are faster than one with two threads
    _compare(given_config(config, changes, embedded=["compare.jobs=2"]))


@app.command()
def check(config: ConfigArgument = None, overrides: Overrides = None, as_json: JsonOption = False) -> None:
    """Show the plan of what the config is for, one example with its mask, counts and an estimate; train nothing."""
    show_plan(_studied(given_config(config, overrides)), as_json)


@app.command()
def runs(folder: RunsOption = "runs", as_json: JsonOption = False) -> None:
    """List the runs in a folder, newest last."""
    from sparring.browse import list_runs
    from sparring.terminal import print_table

    header, rows = list_runs(Path(folder))
    if as_json:
        import json

        for row in rows:
            print(json.dumps(dict(zip(header, row, strict=True))))
    elif rows:
        print_table(header, rows)
    else:
        print(f"no runs in {folder}; `sparring run` makes one")


@app.command()
def report(which: RunArgument = "last", folder: RunsOption = "runs") -> None:
    """Write the report of a run or a study again, and print its table."""
    from sparring.browse import find_run
    from sparring.cli_reward import told as told_reward
    from sparring.names import reward_model
    from sparring.report.page import write_report
    from sparring.report.reward_page import write_reward_report
    from sparring.report.study_page import write_study

    for place in (Path(which), Path(folder) / which, Path(folder) / f"{which}.compare"):
        if (place / "study.json").exists():
            _told(write_study(place).parent)
            return
    found = find_run(which, Path(folder))
    if reward_model(found):
        write_reward_report(found)
        told_reward(found)
        return
    conclude(found, write_report(found))


# ---------------------------------------------------------------- helpers


def _config(config: str | None, overrides: list[str] | None) -> Config:
    """The config of a run of self-play."""
    from sparring.verbs import for_verb

    return for_verb(given_config(config, overrides), "run")


def _studied(settings: Config) -> Config:
    """The config of the run that comes before a comparison, if there is one, whose arms have the other verbs' sections.

    What is wrong with the comparison is said before the run.
    """
    if settings.compare is None:
        return settings
    from sparring.study import Study
    from sparring.verbs import SECTIONS

    Study(settings)
    return settings.model_copy(update=dict.fromkeys(SECTIONS))


def _compare(settings: Config) -> None:
    from sparring.study import run_study

    _told(run_study(settings, command=shlex.join(["sparring", *sys.argv[1:]])))


def _told(folder: Path) -> None:
    """A study's table and verdict, and where its page is."""
    from sparring.report.study import read_study
    from sparring.report.study_costs import cost_rows
    from sparring.report.study_tables import brief_rows
    from sparring.terminal import print_table

    study = read_study(folder)
    print()
    print_table(*(cost_rows(study) if study.pairs else brief_rows(study)))
    print(f"\n{study.said('headline')}\nreport: {folder / 'report.html'}")


def main() -> None:
    """Entry point: deliberate errors become one sentence and an exit code."""
    for name, value in {
        "OMP_WAIT_POLICY": "PASSIVE",  # read once, when torch is imported, as the next
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "1",
        "PYTHONWARNINGS": "ignore",
    }.items():
        os.environ.setdefault(name, value)
    if "--debug" not in sys.argv:
        import warnings

        warnings.simplefilter("ignore")
    if sys.argv[1:] == ["--version"]:
        from importlib.metadata import version

        print(f"sparring {version('sparring')}")
        return
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]  # understood by every verb
    with _errors(debug):
        app(standalone_mode=True)


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    try:
        yield
    except SparringError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # typer makes 130 of Ctrl-C, and says nothing
            raise
        _fail("stopped; nothing is lost: the same command goes on from here", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except MemoryError:
        _fail(_memory(), 2)
    except Exception as error:  # the last line of defence: a log, and one sentence
        known = _memory() if type(error).__name__ == "OutOfMemoryError" else _disk(error)
        _fail(known or _internal(debug), 2 if known else 1)


def _memory() -> str:
    return (
        "out of memory; lower optimiser.micro_batch_tokens or generation.batch_tokens, or set "
        "optimiser.gradient_checkpointing=true; with these changed the run goes on from here"
    )


def _fail(message: str, code: int) -> None:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from sparring.crew import speaks

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher ends all when one ends: first say why
        if not speaks():  # another process says it
            sys.exit(code)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _disk(error: BaseException) -> str | None:
    """One sentence when the disk, not the program, is at fault."""
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    if number in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in text or "No space left" in text:
        return f"the disk is full{where}; make room, then the same command goes on from here"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"no permission to write or read{where}; give another place with runs=..., or change its permissions"
    if any(words in text for words in ("PytorchStreamWriter", "unexpected pos", "iostream error")):
        free = shutil.disk_usage(Path.cwd()).free
        return f"a checkpoint could not be written ({free // 2**20} MiB free here); make room, then try again"
    return None


def _internal(debug: bool) -> str:
    """Keep the traceback of an internal error, and say where."""
    if debug:
        traceback.print_exc()
    log = Path(tempfile.mkstemp(prefix="sparring-error-", suffix=".log")[1])
    log.write_text(traceback.format_exc(), encoding="utf-8")
    last = traceback.format_exc().strip().splitlines()[-1]
    return f"internal error, please report it: {last}; the traceback is in {log}, and --debug shows it here"
