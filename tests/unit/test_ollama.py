"""Modelfiles: what Ollama would send is what the chat template makes, letter for letter and token for token."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from tests.gotemplate import parse_modelfile, render
from tests.helpers import CHATML, byte_tokenizer, piece_tokenizer, renderer_of, save_base

from sparring.data.messages import PLAIN, Message, Renderer
from sparring.errors import InputError
from sparring.export.ollama import modelfile

LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' "
    "+ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)
QWEN = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BRACES = "{% for m in messages %}{{ '{{' + m.role + '}}' + m.content + eos_token }}{% endfor %}{{ '{{assistant}}' }}"
TEMPLATES = {
    "chatml": CHATML, "plain": PLAIN, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL, "qwen": QWEN,
    "braces": BRACES,
}  # fmt: skip
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>")
CHATS = (
    (Message("user", "What is the capital of France?"),),
    (Message("system", "Be brief."), Message("user", "Why?")),
    (Message("user", "1 + 1?"), Message("assistant", "2"), Message("user", "And {{ this }}, doubled?")),
    (
        Message("system", "Be kind."), Message("user", "a"), Message("assistant", "b"), Message("user", "c"),
        Message("assistant", "d\n\ne"), Message("user", "f"),
    ),
)  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("adds", [True, False])
def test_ollama_writes_chats_as_the_template_does(name, adds):
    tokenizer = piece_tokenizer(special=SPECIAL, template=TEMPLATES[name], add_bos=adds)
    renderer = renderer_of(tokenizer)
    made = modelfile("player.gguf", renderer, 512)
    trims = "| trim" in TEMPLATES[name]
    assert made.said == "The chat template takes white space around a turn away, which Ollama does not." * trims
    read = parse_modelfile(made.text)
    assert read["FROM"] == "./player.gguf"
    for chat in CHATS:
        text = render(read["TEMPLATE"], chat)
        ids = renderer.prompt(chat, chat=True)
        # Ollama opens with bos if the GGUF says so, which it does where tokenizer and template both do
        added = [tokenizer.bos_token_id] if adds and ids[0] == tokenizer.bos_token_id else []
        assert not (added and text.startswith(tokenizer.bos_token))
        assert added + list(tokenizer(text, add_special_tokens=False).input_ids) == ids
    stops = [value for key, value in read["parameters"] if key == "stop"]
    assert stops == [tokenizer.convert_ids_to_tokens(number) for number in renderer.end_ids]
    assert ("num_ctx", 512) in read["parameters"]


def test_the_token_that_ends_a_turn_stops_an_answer():
    renderer = renderer_of(piece_tokenizer(special=SPECIAL, template=CHATML))
    stops = [v for k, v in parse_modelfile(modelfile("a.gguf", renderer, 8).text)["parameters"] if k == "stop"]
    assert set(stops) == {"<|im_end|>", "</s>"}


def test_an_answer_that_is_begun_is_left_open():
    renderer = renderer_of(piece_tokenizer(special=SPECIAL, template=CHATML))
    template = parse_modelfile(modelfile("a.gguf", renderer, 8).text)["TEMPLATE"]
    text = render(template, (Message("user", "a"), Message("assistant", "b")))
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb"


NUMBERED = "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}"
UPPER = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}{{ eos_token }}\n{% endfor %}"


@pytest.mark.parametrize("template", [NUMBERED, UPPER])
def test_a_template_of_another_kind_is_left_to_ollama_with_a_sentence(template):
    renderer = Renderer(byte_tokenizer(), template)
    made = modelfile("a.gguf", renderer, 64)
    assert "chat template cannot be written in Ollama's language" in made.said
    assert made.text.startswith(f"# {made.said}\n")
    read = parse_modelfile(made.text)
    assert "TEMPLATE" not in read
    assert ("num_ctx", 64) in read["parameters"]


def test_plain_text_is_gone_on_with():
    renderer = renderer_of(byte_tokenizer(template=CHATML))
    read = parse_modelfile(modelfile("a.gguf", renderer, 64, chat=False, system="ignored").text)
    assert read["TEMPLATE"] == "{{ .Prompt }}"
    assert "SYSTEM" not in read


def test_the_system_text_of_the_training_comes_along():
    renderer = renderer_of(byte_tokenizer(template=CHATML))
    assert parse_modelfile(modelfile("a.gguf", renderer, 64, system="Be\nbrief.").text)["SYSTEM"] == "Be\nbrief."


def test_what_a_modelfile_cannot_hold_is_said():
    dated = CHATML.replace("{% for", "{{ strftime_now('%d %b %Y') }}{% for", 1)
    assert "that of the day it was made" in modelfile("a.gguf", Renderer(byte_tokenizer(), dated), 64).said
    with pytest.raises(InputError, match='the system text holds """'):
        modelfile("a.gguf", Renderer(byte_tokenizer(), CHATML), 64, system='a """ b')


@pytest.mark.skipif(find_spec("llama_cpp") is None or find_spec("gguf") is None, reason="llama-cpp-python is not here")
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("adds", [True, False])
def test_llama_cpp_gives_what_ollama_sends_the_tokens_of_the_training(tmp_path, name, adds):
    import llama_cpp

    from sparring.export.gguf import write_gguf

    tokenizer = piece_tokenizer(special=SPECIAL, template=TEMPLATES[name], add_bos=adds)
    write_gguf(save_base(tmp_path / "m", "llama", tokenizer), tmp_path / "a.gguf", "f16")
    engine = llama_cpp.Llama(str(tmp_path / "a.gguf"), vocab_only=True, verbose=False)
    renderer = renderer_of(tokenizer)
    template = parse_modelfile(modelfile("a.gguf", renderer, 512).text)["TEMPLATE"]
    for chat in CHATS:
        sent = render(template, chat).encode()
        # Ollama asks for whatever the file says is added
        assert engine.tokenize(sent, add_bos=True, special=True) == renderer.prompt(chat, chat=True)
    engine.close()
