"""The later parts of a model card: data, method and settings, how it was made, licence, citations."""

from __future__ import annotations

import re
from typing import Any

import yaml

from sparring.export.card_facts import Licence, Source, command_of, data_of, licence_of, tidy
from sparring.export.card_origin import imported, origin_of
from sparring.export.card_use import Exported
from sparring.report.markdown import fenced, inline, table
from sparring.report.records import Run, text


def about_data(run: Run) -> list[str]:
    """What was trained and measured on, and under which licence."""
    names = {"train": "measured on" if imported(run) else "trained on", "eval": "held out", "test": "tested on"}
    rows = [[word, *_about(source)] for key, word in names.items() if (source := data_of(run, key))]
    found = run.lock.get("data")
    about = found if isinstance(found, dict) else {}
    counts = about.get("counts")
    said = [inline(text(about["description"]) + ".")] if about.get("description") else []
    if isinstance(counts, dict) and counts:
        said.append("Rows: " + ", ".join(f"{inline(text(key))} {text(value)}" for key, value in counts.items()) + ".")
    if about.get("fingerprint"):
        said.append(f"Fingerprint of the rows: `{text(about['fingerprint'])}`.")
    return [table(["", "data", "licence"], rows), *said]


def _about(source: Source) -> list[str]:
    licence = licence_of(source)
    told = licence.called or licence.name
    if licence.name == "other" and not licence.called:
        told = "not known" if source.folder is None or source.local else "not stated"
    elif source.local:
        told += ", by a file beside the data"
    where = " (made by Sparring)" if source.embedded else " (a local file)" if source.local else " (on the hub)"
    return [source.name + where, told]


def about_method(run: Run, exported: Exported) -> list[str]:
    rows = [["method", key, _value(value)] for key, value in exported.settings.model_dump(mode="json").items()]
    for part in () if imported(run) else ("sft", *origin_of(run).sections, "optimiser"):
        section = run.config.get(part)
        rows += [[part, key, _value(value)] for key, value in section.items()] if isinstance(section, dict) else []
    rows = [row for row in rows if row[2]]
    return [f"Method {exported.row.name}: {inline(exported.row.what)}.", table(["section", "setting", "value"], rows)]


def _value(value: Any) -> str:
    return "" if value in (None, [], {}) else str(value).lower() if isinstance(value, bool) else text(value)


def about_making(run: Run) -> list[str]:
    lock = tidy(run)
    command = command_of(run) or f"sparring {origin_of(run).verb} CONFIG.yaml"
    told = "With the command"
    if not command_of(run):
        told = "By Sparring, from Python or by a study; with the `config` below saved as CONFIG.yaml"
    parts = [f"{told}:", fenced(command, "sh")]
    for key in ("versions", "hardware"):
        found = lock.get(key)
        if isinstance(found, dict) and found:
            parts.append(
                f"{key.capitalize()}: " + ", ".join(f"{inline(text(k))} {inline(text(v))}" for k, v in found.items())
            )
    shown = {key: value for key, value in lock.items() if key != "same"}
    content = text(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100))
    note = "paths are reduced to their last parts"
    return [*parts, f"<details><summary>run.lock.yaml ({note})</summary>", fenced(content, "yaml"), "</details>"]


def about_licence(run: Run, exported: Exported) -> str:
    licence: Licence = licence_of(exported.base)
    if licence.name != "other":
        said = f"As its base: {licence.name} ({inline(licence.why)})."
    elif licence.called:
        said = f"As its base: {inline(licence.called)} ({inline(licence.why)})."
    else:
        said = f"The licence of the base could not be found: {inline(licence.why)}. Look there before you use this."
    return f"{said} The data may ask for more; what is known of that is under Data."


def citations(run: Run, exported: Exported) -> list[str]:
    origin = origin_of(run)
    parts = [] if imported(run) else [f"{origin.idea}:", fenced(origin.entry, "bibtex")]
    if not exported.row.whole:
        source = inline(exported.row.source)
        link = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)
        parts.append(f"The method, {exported.row.name}: {link}.")
    return parts
