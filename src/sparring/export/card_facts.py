"""What a model card says of base and data: their names without the user's paths, and their licences as far as known."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparring import laboratory
from sparring.data.messages import TEMPLATES
from sparring.report.records import Row, Run

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")
_ABSOLUTE = re.compile(r"(?<![\w:/.<\\+*)\]}-])(?:~|[A-Za-z]:)?[/\\](?:[\w.@+~-]+[/\\])+[\w.@+~-]*")

# Words of a licence's text → its name on the hub; the first row whose words are all there.
_TEXTS = (
    ("llama3.3", ("llama 3.3 community license",)),
    ("llama3.2", ("llama 3.2 community license",)),
    ("llama3.1", ("llama 3.1 community license",)),
    ("llama3", ("llama 3 community license",)),
    ("llama2", ("llama 2 community license",)),
    ("gemma", ("gemma terms of use",)),
    ("apache-2.0", ("apache license", "version 2.0")),
    ("agpl-3.0", ("gnu affero general public license", "version 3")),
    ("lgpl-3.0", ("gnu lesser general public license", "version 3")),
    ("gpl-3.0", ("gnu general public license", "version 3")),
    ("mpl-2.0", ("mozilla public license", "version 2.0")),
    ("cc-by-nc-sa-4.0", ("attribution-noncommercial-sharealike 4.0",)),
    ("cc-by-nc-4.0", ("attribution-noncommercial 4.0",)),
    ("cc-by-sa-4.0", ("attribution-sharealike 4.0",)),
    ("cc-by-4.0", ("attribution 4.0 international",)),
    ("cc0-1.0", ("cc0 1.0 universal",)),
    ("bsd-3-clause", ("redistribution and use in source and binary forms", "neither the name")),
    ("bsd-2-clause", ("redistribution and use in source and binary forms",)),
    ("mit", ("permission is hereby granted, free of charge", "without restriction")),
)


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence by its name on the hub, and how it is known; `other` if it is not, then perhaps with name and link."""

    name: str
    why: str
    called: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A base, or data. hub: its id there; folder: where it lies on this machine, if it does."""

    name: str
    hub: str = ""
    folder: Path | None = None

    @property
    def embedded(self) -> bool:
        """Whether it comes with this package."""
        return self.name == "laboratory"

    @property
    def local(self) -> bool:
        """Whether it was a file or folder of the user's, of which only the name is told."""
        return not self.hub and not self.embedded


def base_of(run: Run) -> Source:
    """The base of a run. A folder in the hub's cache is what it was downloaded as."""
    given = str(run.setting("model", "base") or "")
    if given == "laboratory":
        return Source(given, folder=laboratory.base_folder())
    path = Path(given).expanduser()
    if snapshot := _SNAPSHOT.search(path.as_posix() + "/"):
        return Source("/".join(snapshot.groups()), "/".join(snapshot.groups()), path if path.is_dir() else None)
    if path.is_dir() or not _HUB_ID.fullmatch(given):
        return Source(_last(given), folder=path if path.is_dir() else None)
    found = _cached(given, "config.json", run.setting("model", "revision"))
    return Source(given, given, found.parent if found else None)


def data_of(run: Run, key: str = "train") -> Source | None:
    """The data that a run read as `data.train`, `eval` or `test`; None if it was given none."""
    given = run.setting("data", key)
    if not given:
        return None
    if given == "laboratory":
        return Source("laboratory")
    path = Path(str(given)).expanduser()
    if path.exists() or path.suffix or "/" not in str(given) or not _HUB_ID.fullmatch(str(given)):
        return Source(_last(str(given)), folder=path if path.is_dir() else path.parent if path.exists() else None)
    found = _cached(str(given), "README.md", None, "dataset")
    return Source(str(given), str(given), found.parent if found else None)


def _cached(name: str, file: str, revision: str | None, kind: str = "model") -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision, repo_type=kind)
    return Path(found) if isinstance(found, str) else None


def study_of(run: Run) -> Path | None:
    """The folder of the study that a run is part of, at arms/ARM/seed-S or arms/ARM/VALUE/seed-S; None: of none."""
    return next((up for up in list(run.folder.resolve().parents)[:4] if (up / "study.lock.yaml").exists()), None)


def template_of(run: Run, base: Source) -> str | None:
    """The chat template of a run; empty if the base's tokenizer brings it, None if it cannot be found any more."""
    name = str(run.setting("model", "template") or "auto")
    if name == "auto" and (base.folder is None or _has_template(base.folder)):
        return ""
    name = "plain" if name == "auto" else name
    file = Path(name)
    return TEMPLATES.get(name) or (file.read_text(encoding="utf-8") if file.is_file() else None)


def _has_template(folder: Path) -> bool:
    file = folder / "tokenizer_config.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return bool(known.get("chat_template")) or (folder / "chat_template.jinja").is_file()


# ---------------------------------------------------------------- licences


def licence_of(source: Source) -> Licence:
    """From the folder's README, its LICENSE or its config.json, in this order."""
    if source.embedded:
        return Licence("apache-2.0", "it comes with Sparring")
    if source.folder is None:
        return Licence("other", f"it is not known, for {source.name} is not at hand to look into")
    head = front_matter(source.folder / "README.md") if not source.local or _is_model(source.folder) else {}
    stated = head.get("license")
    if isinstance(stated, str) and stated:
        told = Licence(stated, f"the README of {source.name} says so")
        called, link = (str(head.get(key) or "") for key in ("license_name", "license_link"))
        return Licence(told.name, told.why, called, link) if stated == "other" else told
    for file in sorted([*source.folder.glob("LICEN[SC]E*"), *source.folder.glob("COPYING*")]):
        name = _recognised(file)
        return Licence(name or "other", f"{'read from' if name else 'its text is in'} {file.name} of {source.name}")
    stated = _config(source.folder).get("license")
    if isinstance(stated, str) and stated:
        return Licence(stated.lower(), f"the config.json of {source.name} says so")
    return Licence("other", f"{source.name} does not say what it is under")


def _recognised(file: Path) -> str:
    said = " ".join(file.read_text(encoding="utf-8", errors="replace").lower().split())
    return next((name for name, words in _TEXTS if all(word in said for word in words)), "")


def front_matter(file: Path) -> Row:
    """The YAML at the top of a README; empty if there is none that can be read."""
    said = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    found = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", said, re.DOTALL)
    try:
        tree = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _config(folder: Path) -> Row:
    file = folder / "config.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


# ---------------------------------------------------------------- paths


# Keys whose values are paths, or ids on the hub, however they are spelt.
PLACES = (
    "model.base", "model.template", "data.train", "data.eval", "data.test", "start", "runs",
    "evaluation.prompting.rules", "scorer.path", "scorer.run",
)  # fmt: skip


def tidy(run: Run) -> Row:
    """run.lock.yaml with every path reduced to its last part."""
    given = _places(run)
    return {key: _walk(value, given) for key, value in run.lock.items()} | {"command": command_of(run)}


def _places(run: Run) -> set[str]:
    """What the run was given as places on the user's machine: no ids on the hub, and no words of ours."""
    found = set()
    for key in PLACES:
        tree: Any = run.config
        for part in key.split("."):
            tree = tree.get(part) if isinstance(tree, dict) else None
        if isinstance(tree, str) and re.search(r"[/\\]", tree) and not (_HUB_ID.fullmatch(tree) and not _here(tree)):
            found.add(tree)
    return found


def _here(path: str) -> bool:
    """Whether a name that could be an id on the hub is a place here."""
    return bool(Path(path).suffix) or Path(path).expanduser().exists()


def command_of(run: Run) -> str:
    """The command that made the run, its paths reduced to their last parts; empty if it is not known."""
    words, given = [], _places(run)
    for word in shlex.split(str(run.lock.get("command") or "")):
        key, equals, value = word.rpartition("=")
        place = _is_path(value) or value in given or key in PLACES
        words.append(f"{key}{equals}{_last(value)}" if place and not _hub(value, given) else word)
    return shlex.join(words)


def _hub(value: str, given: set[str]) -> bool:
    """Whether a place is an id on the hub, which is told whole."""
    return value not in given and bool(_HUB_ID.fullmatch(value)) and not _here(value)


def scrubbed(run: Run, said: str) -> str:
    """Text without the user's paths: those that the run was given, and all else that looks like one."""
    known = {value for value in _strings(run.lock) if _is_path(value)}
    given = _places(run)
    known |= {str(run.folder.resolve()), str(run.folder.resolve().parent), str(Path.home())}
    for path in sorted(known, key=len, reverse=True):
        if path.count("/") + path.count("\\") > 1:
            said = said.replace(path, _last(path))
    for path in sorted(given, key=len, reverse=True):
        said = said.replace(path, _last(path))
    return _ABSOLUTE.sub(lambda found: _last(found[0]), said)


def _walk(tree: Any, given: set[str]) -> Any:
    if isinstance(tree, dict):
        return {key: _walk(value, given) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_walk(value, given) for value in tree]
    return _last(tree) if isinstance(tree, str) and (_is_path(tree) or tree in given) else tree


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, (dict, list)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _strings(value)


def _is_path(value: str) -> bool:
    """Whether a text is a path that tells of the user's machine: an absolute one, or one out of where it was given."""
    return bool(re.match(r"(/[^/ ]+/|~[^/ ]*/|\.\.[/\\]|[A-Za-z]:\\)[\w.@+~/\\ -]*$", value))


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path
