"""`sparring export`: a player in the forms that others run, each loaded in its own engine before it gets its name.

    adapter   a PEFT adapter                     held against the run by PEFT alone
    merged    a model in Hugging Face layout     held against the run by transformers alone
    gguf      one file for llama.cpp             held against the merged model by llama.cpp
    ollama    a Modelfile beside the GGUF file

The base is loaded once to write, and each form once to verify. What does not hold is kept as `NAME.unverified`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sparring.browse import read_settings
from sparring.config import Config
from sparring.data.messages import Message
from sparring.errors import InputError, LawBroken, SparringError
from sparring.export.adapter import compare_adapter, write_player
from sparring.export.card import write_card
from sparring.export.compared import confirm
from sparring.export.engines import need
from sparring.export.gguf import write_gguf
from sparring.export.gguf_adapter import write_gguf_adapter
from sparring.export.gguf_check import verify_gguf
from sparring.export.gguf_family import shape_of
from sparring.export.gguf_tokenizer import vocabulary_of
from sparring.export.merged import compare_merged, write_merged
from sparring.export.ollama import modelfile
from sparring.export.places import begin, drop, free, held, place, set_aside
from sparring.export.push import check_push, push
from sparring.export.source import Source, base_of_run, take
from sparring.export.targets import Targets, refuse
from sparring.export.written import Written
from sparring.files import write_atomic
from sparring.methods import METHODS
from sparring.models.base import context_of, find_base, load_renderer, read_config
from sparring.names import player_name

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Push:
    """Where an export goes: owner/name on the hub, and whether others may see it."""

    to: str
    private: bool = True


def export_run(
    run: Path,
    targets: Targets,
    out: Path | None = None,
    player: str = "best",
    dtype: str | None = None,
    force: bool = False,
    pushed: Push | None = None,
    unchecked: bool = False,
    tell: Tell = lambda text: None,
) -> Written:
    """Write a player of a run (best, sft, or an iteration's number) into a folder of `out` for each form.

    out        default: RUN-PLAYER here
    dtype      of merged weights, which GGUF files are made from: fp32, bf16 or fp16; None: what the run computed in
    force      take the place of what was exported there before
    pushed     upload the one folder that is written
    unchecked  write GGUF without llama.cpp, which then cannot be asked: the folder is named `.unverified`
    tell       is called with each step, in words
    Raises InputError and ModelError, before a model is loaded, for what cannot be; LawBroken (12) where what was
    written is not the player.
    """
    name = player_name(run, player)
    config = Config.model_validate(read_settings(run))
    out = out or Path(f"{_plain(run.resolve().name)}-{name}")
    _prepare(run, config, name, targets, out, force, pushed, unchecked)
    with held(out):
        source = take(run, name, dtype, merging=targets.merges)
        made = not out.exists()
        out.mkdir(exist_ok=True)
        job = _Job(run, source, targets, Written(out), unchecked, tell)
        try:
            job.write()
            source.release()
            job.verify()
        finally:
            for partial in job.begun.values():
                drop(partial)
            if made and not any(out.iterdir()):
                out.rmdir()
    if pushed is not None:
        tell(f"uploading to {pushed.to}")
        folder = job.written.folders[0]
        try:
            job.written.address = push(folder, pushed.to, pushed.private)
        except SparringError as error:
            said = f"{error}; {folder} is written and verified: `hf upload {pushed.to} {folder}` uploads it later"
            raise type(error)(said) from error
    return job.written


def _prepare(
    run: Path, config: Config, name: str, targets: Targets, out: Path, force: bool, pushed: Push | None, unchecked: bool
) -> None:
    """Refuse all that can be refused before a model is loaded."""
    if name == "base":
        raise InputError("the base is not made by the run, so it is not exported; give best, sft, or a number")
    if pushed is not None:
        if len(targets.folders) != 1 or unchecked:
            raise InputError(f"--push uploads one verified folder; --to {' and '.join(targets.folders)} is not that")
        check_push(pushed.to)
    refuse(targets, METHODS[config.method.name], config.method.beside)
    base = base_of_run(run)
    if not out.is_dir() or out.is_symlink():
        free(out, False, base)
    for folder in targets.folders:
        if out.is_dir():
            free(out / folder, force, base)
    if targets.ollama and '"""' in (config.data.system or ""):
        raise InputError('the system text holds """, which a Modelfile cannot; export without ollama')
    if not targets.gguf and not targets.lora:
        return
    need("gguf", *([] if unchecked else ["llama_cpp"]))
    there = find_base(config.model)
    shape_of(there)  # the architecture, and below the tokenizer
    vocabulary_of(load_renderer(there, config.model), int(read_config(there, config.model).vocab_size))


def _plain(name: str) -> str:
    """A name for files, of letters that no shell and no Modelfile takes for anything else."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._") or "run"


@dataclass
class _Job:
    """One export under way.

    begun  form → the folder that it is written in
    lost   what quantising cost more than training gained, in sentences
    """

    run: Path
    source: Source
    targets: Targets
    written: Written
    unchecked: bool
    tell: Tell
    begun: dict[str, Path] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def write(self) -> None:
        """All that needs the base in memory."""
        if self.targets.adapter:
            self.tell("writing the adapter")
            write_player(self.source, self._begin("adapter"))
        if self.targets.merges:
            self.tell(f"merging in {self.source.model.dtype}")
            write_merged(self.source, self._begin("merged"))

    def verify(self) -> None:
        """Every form in its own engine."""
        out = self.written.out
        if self.targets.adapter:
            self.tell("loading the adapter with PEFT")
            found = confirm(*compare_adapter(self.source, self.begun["adapter"], out / "adapter"))
            self.written.compared.append(found)
            self._finish("adapter")
        if not self.targets.merges:
            return
        self.tell("loading the merged model with transformers")
        whole = self.begun["merged"]
        found = confirm(*compare_merged(self.source, whole, out / "merged"))
        if self.targets.merged:
            self.written.compared.append(found)
            whole = self._finish("merged")
        if self.targets.gguf:
            moved = found.nll(1) + sum(found.before) / found.tokens
            self._gguf(whole, moved)
        if self.targets.lora:
            self._lora(whole)

    def _gguf(self, whole: Path, moved: float) -> None:
        """A file for each kind, and Ollama's beside the first. moved: what training did to the base's NLL per token."""
        partial = self._begin("gguf")
        for kind in self.targets.gguf:
            name = f"{self._stem}-{kind}.gguf"
            self.tell(f"writing {name}" + ("" if self.unchecked else ", and loading it with llama.cpp"))
            write_gguf(whole, partial / name, kind, self._stem)
            with self._setting_aside("gguf"):
                self._check(name, partial / name, whole, kind)
            checked = self.written.checked.get(name)
            if checked is not None and checked.file - checked.model > abs(moved):
                self.lost.append(
                    f"{name}: writing it as {kind} costs {checked.file - checked.model:+.2g} nats per token, more than "
                    f"the {moved:+.2g} that training made of the base's; take a larger kind"
                )
        self.written.said += self.lost
        if self.targets.ollama:
            source, system = self.source, self.source.config.data.system
            renderer = load_renderer(whole, source.model.model_copy(update={"template": "auto"}))
            context = context_of(read_config(whole, source.model))
            first = f"{self._stem}-{self.targets.gguf[0]}.gguf"
            made = modelfile(first, renderer, context, source.chat, (system or "") if source.chat else "")
            write_atomic(partial / "Modelfile", made.text)
            self.written.said += [made.said] if made.said else []
        self._finish("gguf")

    def _lora(self, whole: Path) -> None:
        """The adapter alone as GGUF, verified on the base as GGUF, which is not kept."""
        partial, name = self._begin("gguf-lora"), f"{self._stem}-lora.gguf"
        adapter, base = partial / "adapter", partial / "base-f32.gguf"
        self.tell(f"writing {name}" + ("" if self.unchecked else ", and loading it with llama.cpp"))
        adapter.mkdir()
        write_player(self.source, adapter)
        write_gguf_adapter(adapter, self.source.base, partial / name, self._stem)
        drop(adapter)
        with self._setting_aside("gguf-lora"):
            if not self.unchecked:
                write_gguf(self.source.base, base, "f32", "base")
            self._check(name, base, whole, "f32", partial / name)
        base.unlink(missing_ok=True)
        self._finish("gguf-lora")

    def _check(self, name: str, file: Path, whole: Path, kind: str, lora: Path | None = None) -> None:
        if self.unchecked:
            return
        rows = [(prompt.prompt_ids, prompt.real_ids) for prompt in self.source.prompts]
        before = iter(self.source.before)
        parts = [[next(before) for _ in answer] for _, answer in rows]
        system = self.source.config.data.system
        chats = [(Message("system", system), Message("user", "Hello!"))] if self.source.chat and system else []
        self.written.checked[name] = verify_gguf(file, whole, kind, rows, chats, lora, parts)

    @property
    def _stem(self) -> str:
        return f"{_plain(self.run.resolve().name)}-{self.source.name}"

    def _begin(self, kind: str) -> Path:
        self.begun[kind] = begin(self.written.out / kind, self.source.mark)
        return self.begun[kind]

    @contextmanager
    def _setting_aside(self, kind: str) -> Iterator[None]:
        """A folder in which something does not hold is kept under a name that says so."""
        partial = self.begun[kind]
        try:
            yield
        except LawBroken as error:
            aside = set_aside(partial, self.written.out / kind)
            raise LawBroken(str(error).replace(str(partial), str(aside))) from error

    def _finish(self, kind: str) -> Path:
        """The card, and the name; returns the folder."""
        partial = self.begun[kind]
        checked = [f"{name}: {what.said()}" for name, what in self.written.checked.items() if (partial / name).exists()]
        compared = [found.said() for found in self.written.compared if found.what == kind]
        out, renderer = self.written.out / kind, self.source.renderer()
        verified = [*compared, *checked, *(self.lost if kind == "gguf" else [])]
        write_card(self.run, self.source.name, partial, kind, verified, kind, renderer.end_ids, renderer.portable)
        if self.unchecked and kind.startswith("gguf"):
            out = set_aside(partial, out)
            self.written.said.append(f"{out} is not verified: llama.cpp was not asked")
        else:
            place(partial, out)
        self.written.folders.append(out)
        return out
