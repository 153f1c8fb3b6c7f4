"""How a player is loaded in four engines, as a model card says it: only what fits its method."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.export.card_facts import Source
from sparring.files import read_json
from sparring.methods import Method, Settings

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank may be
CONFIG = "adapter_config.json"
OWN = ("houlsby", "pfeiffer")  # kinds of adapter that PEFT learns from this package


@dataclass(frozen=True, slots=True)
class Exported:
    """What is written, as the text about it needs to know.

    kind      adapter, merged or gguf
    run       what `sparring` calls the run
    template  of chats; empty: the base's tokenizer brings it; None: not known any more
    model     the section `model` of the run's config
    computed  the dtype that the run computed in, as torch calls it
    system    the text that every chat opened with, or empty
    name      what the folder is called when it is finished
    ends      the tokens that end an answer
    """

    kind: str
    folder: Path
    run: str
    player: str
    base: Source
    row: Method
    settings: Settings
    chat: bool
    template: str | None
    model: dict[str, Any]
    computed: str
    system: str
    name: str
    ends: tuple[int, ...] = ()

    def command(self, verb: str, out: str) -> str:
        """A command of ours that writes this player in another form."""
        return f"sparring {verb} {shlex.quote(self.run)} --iteration {self.player} --out {out}"

    @property
    def held(self) -> str:
        """nf4, int8, or empty: how the run held the base."""
        found = str(self.model.get("quantise") or "none")
        return "" if found == "none" else found


def uses(exported: Exported) -> list[tuple[str, str, str]]:
    """(engine, code or empty, a sentence or empty) for each engine."""
    if exported.kind == "gguf-lora":
        return _gguf_lora(exported)
    return [_python(exported), _llama_cpp(exported), _vllm(exported)] if exported.kind != "gguf" else _gguf(exported)


def _python(exported: Exported) -> tuple[str, str, str]:
    adapter = exported.kind == "adapter"
    has_tokenizer = not adapter or (exported.folder / "tokenizer_config.json").exists()
    lines = ["import torch"] * bool(exported.held)
    lines += ["from peft import PeftModel"] * adapter
    names = ["AutoModelForCausalLM", "AutoTokenizer", *(["BitsAndBytesConfig"] if adapter and exported.held else [])]
    lines.append(f"from transformers import {', '.join(names)}")
    if adapter and exported.base.embedded:
        lines.append("from sparring.laboratory import base_folder")
    if adapter and exported.row.name in OWN:
        lines.append("import sparring.models.bottleneck  # from it PEFT learns this kind of adapter")
    lines += ["", f'folder = "{exported.name}"  # this folder, or its id on the hub']
    lines += [_base(exported.base)] * adapter
    lines.append(f"tokenizer = AutoTokenizer.from_pretrained({'folder' if has_tokenizer else 'base'})")
    if exported.chat and exported.template and not has_tokenizer:
        lines.append(f"tokenizer.chat_template = {exported.template!r}")
    if adapter:
        lines.append(f"model = AutoModelForCausalLM.from_pretrained(base, {_loading(exported)})")
        lines.append("model = PeftModel.from_pretrained(model, folder).eval()")
    else:
        lines.append('model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()')
    lines += ["", *_asking(exported.chat, exported.ends if adapter else (), exported.system)]
    name = "transformers and PEFT" if adapter else "transformers"
    needs = "" if exported.row.name not in OWN or not adapter else "It needs this package beside PEFT."
    if exported.held and adapter:
        needs = f"{needs} The run held its base in {exported.held}; in 16 or 32 bits it answers a little differently."
    return name, "\n".join(["```python", *lines, "```"]), needs.strip()


def _base(base: Source) -> str:
    if base.embedded:
        return "base = base_folder()"
    return f'base = "{base.name}"{"" if base.hub else "  # where you have it"}'


def _loading(exported: Exported) -> str:
    dtype = f'dtype="{exported.computed}"'
    if exported.held == "int8":
        return f"{dtype}, quantization_config=BitsAndBytesConfig(load_in_8bit=True)"
    if exported.held == "nf4":
        double = bool(exported.model.get("double_quant", True))
        return (
            f'{dtype}, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
            f"bnb_4bit_use_double_quant={double}, bnb_4bit_compute_dtype=torch.{exported.computed})"
        )
    return dtype


def _asking(chat: bool, ends: tuple[int, ...] = (), system: str = "") -> list[str]:
    stop = f", eos_token_id={list(ends)}" if ends else ""
    opening = f'{{"role": "system", "content": {json.dumps(system, ensure_ascii=False)}}}, ' if system else ""
    if chat:
        return [
            f"messages = [{opening}" + '{"role": "user", "content": "Hello!"}]',
            'ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", '
            "return_dict=True)",
            f"said = model.generate(**ids, max_new_tokens=256, do_sample=True{stop})",
            'print(tokenizer.decode(said[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    return [
        'ids = tokenizer("Once upon a time", return_tensors="pt")',
        f'said = model.generate(ids["input_ids"], max_new_tokens=256, do_sample=True{stop})',
        "print(tokenizer.decode(said[0], skip_special_tokens=True))",
    ]


def _llama_cpp(exported: Exported) -> tuple[str, str, str]:
    name, row = "llama.cpp and Ollama", exported.row
    if row.gguf == "no" or exported.settings.beside:
        return name, "", f"Not there: a player of method {row.name} is no change of the base's weights that they know."
    lone = exported.kind == "adapter" and row.gguf == "adapter"
    told = "A GGUF file is written from the run; for Ollama, a Modelfile beside it."
    if lone:
        told += (
            " In place of a whole model, llama.cpp also takes the adapter alone (`--to gguf:lora`), beside its base as "
            "GGUF."
        )
    code = f"{exported.command('export', 'mine')} --to gguf:q8_0,ollama\nllama-cli -m mine/gguf/*.gguf\n"
    code += "ollama create mine -f mine/gguf/Modelfile && ollama run mine"
    return name, f"```sh\n{code}\n```", told


def _vllm(exported: Exported) -> tuple[str, str, str]:
    row, folder = exported.row, exported.name
    if row.vllm == "no":
        return "vLLM", "", f"Not there: vLLM does not know players of method {row.name}."
    if exported.kind == "merged":
        return "vLLM", f"```sh\nvllm serve {folder}\n```", ""
    rank = _rank(exported)
    if row.vllm == "adapter" and rank and not exported.settings.beside:
        found = "$(python -c 'from sparring.laboratory import base_folder; print(base_folder())')"
        base = found if exported.base.embedded else shlex.quote(exported.base.name)
        code = f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules player={folder}"
        held = " It holds the base as it is in its folder, not quantised as in the run." if exported.held else ""
        return "vLLM", f"```sh\n{code}\n```", f"Ask for the model `player`.{held}"
    if exported.settings.beside:
        return "vLLM", "", "Not there: modules trained whole beside the adapter are not known to it."
    return (
        "vLLM",
        f"```sh\n{exported.command('merge', 'merged')}\nvllm serve merged\n```",
        "Only when merged into its base.",
    )


def _rank(exported: Exported) -> int:
    """The least of vLLM's limits that the adapter's ranks keep; 0: none, or no rank."""
    known = exported.settings.model_dump()
    times = 2 if exported.row.name == "pissa" else 1  # written as plain LoRA of twice the rank
    if (exported.folder / CONFIG).exists():  # which may be the sum of several
        known, times = read_json(exported.folder / CONFIG), 1
    wanted = times * max([known.get("r") or 0, *(known.get("rank_pattern") or {}).values()])
    return next((rank for rank in RANKS if rank >= wanted), 0) if wanted else 0


def _gguf(exported: Exported) -> list[tuple[str, str, str]]:
    files = sorted(file.name for file in exported.folder.glob("*.gguf"))
    server = "\n".join(f"llama-server -m {shlex.quote(file)}" for file in files or ["model.gguf"])
    ollama = "```sh\nollama create mine -f Modelfile && ollama run mine\n```"
    here = (exported.folder / "Modelfile").exists()
    merge = f"It takes the merged model: `{exported.command('merge', 'merged')}`"
    return [
        ("llama.cpp", f"```sh\n{server}\n```", ""),
        (
            "Ollama",
            ollama,
            "" if here else f"With the Modelfile of `{exported.command('export', 'mine')} --to ollama`.",
        ),
        ("transformers", "", f'{merge}, then `AutoModelForCausalLM.from_pretrained("merged")`.'),
        ("vLLM", "", f"{merge}, then `vllm serve merged`."),
    ]


def _gguf_lora(exported: Exported) -> list[tuple[str, str, str]]:
    file = next((file.name for file in sorted(exported.folder.glob("*.gguf"))), "lora.gguf")
    told = (
        "BASE.gguf is the base as GGUF, in any kind, by llama.cpp's convert_hf_to_gguf.py, or from Python by "
        "`sparring.export.gguf.write_gguf(folder, file, kind)`; `--lora-scaled` puts the adapter on in part."
    )
    code = f"```sh\nllama-server -m BASE.gguf --lora {shlex.quote(file)}\n```"
    return [("llama.cpp", code, told)]
