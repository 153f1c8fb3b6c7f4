"""A server of others, behind the guard: `python -m sparring.serving.behind FACTS.json transformers serve --host …`.

The server is started as its own command line would start it.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparring.serving.guard import KEY, App, Guard, Wrong, is_loopback

HELD = "SPARRING_HELD"  # set: end when standard input does


def anchored(found: dict[str, Any], opening: str) -> dict[str, Any] | None:
    """How transformers takes thoughts and tool calls out of an answer, by the family of the model alone; None if a
    chat's opening has not the marks that this goes by: then the question would be taken for a part of the answer."""
    anchors = found.get("start_anchor") or []
    marks = [anchors] if isinstance(anchors, str) else anchors
    return found if any(mark in opening for mark in marks) else None


def _before_transformers(facts: dict[str, Any], guarded: Callable[[App], App]) -> None:
    """Offline, in a cache of models that holds nothing else: what is not served cannot be found, nor downloaded."""
    os.environ |= {"HF_HUB_CACHE": facts["place"], "HF_HUB_OFFLINE": "1"}
    os.chdir(facts["place"])  # a folder that has a model's name would be taken for it
    from transformers.cli.serving import server, utils

    build, streamed, answered = (
        server.build_server,
        utils.GenerateManager.generate_streaming,
        utils.GenerateManager.generate_non_streaming,
    )

    def fit(inputs: Any, settings: Any) -> None:
        """Prompt and answer must fit the context, beyond which transformers goes on without a word."""
        length, context = inputs["input_ids"].shape[-1], facts["context"]
        if length == 0:
            raise Wrong(400, "the prompt is empty", "bad_request")
        if length >= context:
            said = f"the prompt has {length} tokens, but the model's context is {context}; shorten it"
            raise Wrong(400, said, "context_length_exceeded")
        if settings.max_new_tokens < 1 or not settings.temperature >= 0:
            raise Wrong(400, "max_tokens must be 1 or more, and temperature 0 or more", "bad_request")
        settings.max_new_tokens = min(settings.max_new_tokens, context - length)

    def streaming(self: Any, model: Any, processor: Any, inputs: Any, settings: Any, *more: Any, **named: Any) -> Any:
        fit(inputs, settings)
        return streamed(self, model, processor, inputs, settings, *more, **named)

    def answering(self: Any, model: Any, processor: Any, inputs: Any, settings: Any, *more: Any, **named: Any) -> Any:
        fit(inputs, settings)
        return answered(self, model, processor, inputs, settings, *more, **named)

    taken_apart = utils.get_response_template

    def template(processor: Any, model: Any) -> Any:
        found = taken_apart(processor, model)
        if found is None or not processor.chat_template:
            return None
        question = [{"role": "user", "content": "?"}]
        return anchored(found, processor.apply_chat_template(question, tokenize=False, add_generation_prompt=True))

    utils.get_response_template = template
    utils.GenerateManager.generate_streaming = streaming
    utils.GenerateManager.generate_non_streaming = answering
    server.build_server = lambda *given, **named: guarded(build(*given, **named))


def _before_llama_cpp(facts: dict[str, Any], guarded: Callable[[App], App]) -> None:
    """Nothing that happens to be in the environment (SEED, CACHE, …) becomes a setting."""
    import llama_cpp.server.app as server
    from llama_cpp.server.settings import Settings

    for name in [*os.environ]:
        if name.lower() in Settings.model_fields and name not in ("HOST", "PORT"):
            del os.environ[name]
    build = server.create_app
    server.create_app = lambda *given, **named: guarded(build(*given, **named))


SERVERS = {
    "transformers": ("transformers.cli.transformers", _before_transformers),
    "llama_cpp.server": ("llama_cpp.server", _before_llama_cpp),
}


def _end_with_parent() -> None:
    """A parent that is killed closes its end of standard input, and says nothing else."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """FACTS.json, the server's module, its arguments."""
    facts, which = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2]
    module, before = SERVERS[which]
    key = os.environ.pop(KEY, None) or None
    if key is None and not is_loopback(facts["host"]):
        sys.exit(f"error: {facts['host']} is open to other machines, so clients must bring a key; set {KEY}")
    if os.environ.pop(HELD, None):
        threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = [which, *sys.argv[3:]]
    before(facts, lambda app: Guard(app, facts["models"], facts["defaults"], key, facts["chats"]))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
