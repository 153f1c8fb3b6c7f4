"""The model card of a player: README.md with the hub's front matter, written from the run's folder, complete as it is.

Nothing of the user's machine is in it: paths are reduced to their last parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sparring.errors import InputError, RunError
from sparring.export.card_facts import (
    base_of,
    data_of,
    front_matter,
    licence_of,
    scrubbed,
    study_of,
    template_of,
)
from sparring.export.card_made import about_data, about_licence, about_making, about_method, citations
from sparring.export.card_origin import imported, origin_of
from sparring.export.card_use import Exported, uses
from sparring.files import write_atomic
from sparring.methods import METHODS
from sparring.names import player_name
from sparring.report.findings import headline_notes, verdict_of, warnings_of
from sparring.report.markdown import fenced, inline, lined, table, tested
from sparring.report.quantised import QUANTISED_HEADER, quantised_line, quantised_rows
from sparring.report.records import Row, Run, read_run, text
from sparring.report.tables import columns, result_lines

RELATIONS = {"adapter": "adapter", "merged": "finetune", "gguf": "quantized", "gguf-lora": "adapter"}
LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf", "gguf-lora": "gguf"}
WHAT = {
    "adapter": "an adapter for the base, which is needed beside it",
    "merged": "a whole model: the player merged into its base",
    "gguf": "a whole model as GGUF: the player merged into its base",
    "gguf-lora": "an adapter as GGUF, for the base as GGUF, which is needed beside it",
}


def write_card(
    run: Path,
    player: str,
    out: Path,
    kind: str,
    verified: Sequence[str] = (),
    name: str = "",
    ends: Sequence[int] = (),
    template: str = "",
) -> Path:
    """Write out/README.md for a player (best, sft, or an iteration's number); returns its path.

    kind      what `out` holds: adapter, merged, gguf or gguf-lora
    verified  what was measured when it was written, in sentences
    name      what the folder will be called; default: what it is called
    ends      the tokens that end an answer
    template  the chat template as other engines take it; default: as the run has it
    Raises InputError for a player or a kind that there is not, RunError for a damaged run.
    """
    if not out.is_dir():
        raise InputError(f"the folder {out} does not exist; write the player there first")
    found, which = read_run(run), player_name(run, player)
    exported = replace(_exported(found, which, out, kind), name=name or out.name, ends=tuple(ends))
    if exported.template and template:
        exported = replace(exported, template=template)
    parts = _parts(found, which, exported)
    if verified:
        said = "\n".join(f"- {inline(line)}" for line in verified)
        place = parts.index("## Data")
        parts[place:place] = [
            "### Verified",
            "When this was written it was loaded again and held against the run:",
            said,
        ]
    body = scrubbed(found, "\n\n".join(parts))
    head = yaml.safe_dump(_front(found, exported), sort_keys=False, allow_unicode=True)
    path = out / "README.md"
    write_atomic(path, f"---\n{head}---\n\n{body}\n")
    return path


def _exported(run: Run, player: str, out: Path, kind: str) -> Exported:
    """What is written, checked against what the method's players can be."""
    if kind not in RELATIONS:
        raise InputError(f'kind "{kind}" is not known; give {", ".join(RELATIONS)}')
    section = run.config.get("method")
    section = section if isinstance(section, dict) else {}
    row = METHODS.get(str(section.get("name")))
    if row is None:
        raise RunError(f"{run.folder / 'run.lock.yaml'} does not say which method this run was of; restore it")
    if player == "base":
        raise InputError("the base is no player of this run, and has a card of its own; give best, sft, or a number")
    fits = {"adapter": not row.whole, "merged": row.merges or row.whole, "gguf": row.gguf != "no"}
    fits["gguf-lora"] = row.gguf == "adapter"
    if not fits[kind]:
        able = [name for name, can in fits.items() if can]
        raise InputError(f"a player of method {row.name} cannot be had as {kind}; give {' or '.join(able)}")
    model, hardware = (tree if isinstance(tree, dict) else {} for tree in map(_of(run), ("model", "hardware")))
    base, folder, study = base_of(run), run.folder.resolve(), study_of(run)
    return Exported(
        kind=kind,
        folder=out,
        run=folder.name if study is None else folder.relative_to(study.parent).as_posix(),
        player=player,
        base=base,
        row=row,
        settings=row.settings.model_validate(section),
        chat=_chats(run),
        template=template_of(run, base),
        model=model,
        computed=str(hardware.get("dtype") or "float32"),
        system=str(run.setting("data", "system") or "") if _chats(run) else "",
        name=out.name,
    )


def _of(run: Run) -> Any:
    return lambda key: run.config.get(key) if key in run.config else run.lock.get(key)


def _chats(run: Run) -> bool:
    file = run.folder / "data" / "phase.json"
    return file.is_file() and bool(json.loads(file.read_text(encoding="utf-8"))["facts"].get("chat"))


# ---------------------------------------------------------------- front matter


def _front(run: Run, exported: Exported) -> Row:
    """What the hub reads."""
    base, licence = exported.base, licence_of(exported.base)
    data = [source.hub for key in ("train", "eval", "test") if (source := data_of(run, key)) and source.hub]
    head: Row = {"license": licence.name}
    if licence.name == "other":
        head["license_name"] = licence.called or "unknown"
        head |= {"license_link": licence.link} if licence.link else {}
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", base.name):
        head["base_model"] = base.name
        head["base_model_relation"] = RELATIONS[exported.kind]
    head |= {"library_name": LIBRARIES[exported.kind], "pipeline_tag": "text-generation"}
    head |= {"datasets": list(dict.fromkeys(data))} if data else {}
    language = front_matter(base.folder / "README.md").get("language") if base.folder else None
    head |= {"language": language} if language else {}
    tags = ["sparring", *([] if imported(run) else origin_of(run).tags), exported.row.name]
    tags += [exported.held] if exported.held else []
    tags += ["conversational"] if exported.chat else []
    tags += ["gguf"] if exported.kind.startswith("gguf") else []
    return {**head, "tags": tags}


# ---------------------------------------------------------------- the text


def _parts(run: Run, player: str, exported: Exported) -> list[str]:
    label = run.label(player)
    parts = [f"# {inline(run.name)}: {inline(label)}", _opening(run, player, exported)]
    parts += ["## How good it is", f"**{inline(verdict_of(run))}**", *_which(run, player), *_study(run)]
    parts += [inline(note) for note in headline_notes(run)]
    lines = [replace(x, label=f"{x.label} (this)") if x.player == player else x for x in result_lines(run)]
    parts.append(lined(columns(run), lines))
    parts += [part.replace("## ", "### ", 1) if part.startswith("## ") else part for part in tested(run)]
    if rows := quantised_rows(run):
        parts += ["### What quantising the base cost", inline(quantised_line(run)), table(QUANTISED_HEADER, rows)]
    said = warnings_of(run)
    parts += ["## Warnings", "\n".join(f"- {inline(line)}" for line in said) if said else "None."]
    parts += ["## How to use it", *_template(exported)]
    for engine, code, told in uses(exported):
        parts += [f"### {engine}", *([code] if code else []), *([told] if told else [])]
    parts += ["## Data", *about_data(run), "## Method and settings", *about_method(run, exported)]
    parts += ["## How it was made", *about_making(run), "## Licence", about_licence(run, exported)]
    return [*parts, "## Citation", *citations(run, exported)]


def _opening(run: Run, player: str, exported: Exported) -> str:
    base, row = exported.base, exported.row
    where = {True: f"[{base.name}](https://huggingface.co/{base.hub})", False: f"`{base.name}`"}[bool(base.hub)]
    held = f", held in {exported.held} while it was trained" if exported.held else ""
    before = "" if run.setting("sft", "epochs") == 0 and not run.config.get("start") else "fine-tuned, then "
    made = "fine-tuned" if player == "sft" else f"{before}trained {origin_of(run).words}"
    made = "adapted" if imported(run) else made
    said = f"{where}{held}, {made} with {inline(exported.settings.summary)}. This is {WHAT[exported.kind]}."
    if row.whole:
        said = said.replace("the player merged into its base", "all its weights were trained")
    if base.embedded:
        said += " The base is the tiny model that comes with Sparring, to try things on; it has no page on the hub."
    elif base.local:
        said += f" The base was a folder on disk, of which only the name, `{base.name}`, is told here: it is not an id."
    if start := run.config.get("start"):
        said += f" θ₀ is not fine-tuned here: it is the adapter `{Path(str(start)).name}`."
    hold = run.setting("selfplay", "hold")
    if hold in ("merge", "stack") and player.isdecimal() and exported.kind in ("adapter", "gguf-lora"):
        said += f" The run held players by `{hold}`; this adapter is the sum of those that this player is made of."
    return said


def _which(run: Run, player: str) -> list[str]:
    """Said where the player is not the one that the verdict is about."""
    best = text(run.best.get("player")) if run.best else ""
    if not best or best == player:
        return []
    return [inline(f"This is {run.label(player)}, not the player that the run chose ({run.label(best)}).")]


def _study(run: Run) -> list[str]:
    """What stands above a run that is one of a study's."""
    folder, study = run.folder.resolve(), study_of(run)
    if study is None:
        return []
    arm = "/".join(folder.relative_to(study).parts[1:-1])
    said = f"It is one run of a study: arm `{arm}`, {folder.name}. A claim needs the study, not one run."
    if (study / "study.json").exists():
        content = json.loads((study / "study.json").read_text(encoding="utf-8"))
        said += f" The study's verdict: {inline(text(content.get('headline')))}"
    return [said]


def _template(exported: Exported) -> list[str]:
    """How a prompt is written."""
    if not exported.chat:
        return ["It was trained on plain text: it continues what it is given, with no chat template."]
    if exported.template is None:
        return ["Prompts were written with a chat template of the user's own, which is not at hand any more."]
    opening = []
    if exported.system:
        opening = [f"Every chat opened with a system text: {inline(json.dumps(exported.system, ensure_ascii=False))}."]
    if not exported.template:
        return [*opening, "Prompts are written with the chat template of the base's tokenizer."]
    told = "Prompts are written with this chat template, also where the base's tokenizer has none or another one:"
    return [*opening, told, fenced(exported.template, "jinja")]
