"""From conversations to token ids: templates in the styles in use, and the boundary of prompt and answer."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import CHATML, byte_tokenizer, piece_tokenizer

from sparring.data import messages
from sparring.data.messages import Conversation, Example, Message, Renderer, choose_template, fit
from sparring.errors import DataError, ModelError

# ---------------------------------------------------------------- styles of templates, as small as they go

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    + CHATML
)
QWEN3 = (
    "{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{%- set parts = message.content.split('</think>') %}"
    "{%- set thought = parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.last %}{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}"
    "{{- parts[-1].lstrip('\n') + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
OLD_CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"  # no opening
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@dataclass(frozen=True)
class Style:
    """A template with a tokenizer as its models have it.

    end       the token that ends a turn
    bos       how many beginning-of-text tokens a prompt holds
    trims     the template takes white space off the contents
    """

    make: Any
    template: str
    end: str
    bos: int
    trims: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def renderer(self) -> Renderer:
        return Renderer(self.make(**self.more), self.template)


STYLES = {
    "llama3": Style(
        byte_tokenizer, LLAMA3, "<|eot_id|>", 1, True,
        {"special": HEADERS, "bos": HEADERS[0], "eos": HEADERS[1], "add_bos": True},
    ),
    "qwen": Style(byte_tokenizer, QWEN, "<|im_end|>", 0, False, {"special": IM, "eos": "<|im_end|>"}),
    "qwen3": Style(
        byte_tokenizer, QWEN3, "<|im_end|>", 0, False,
        {"special": (*IM, "<think>", "</think>"), "eos": "<|im_end|>"},
    ),
    "qwen base": Style(byte_tokenizer, QWEN, "<|im_end|>", 0, False, {"special": IM}),
    "smollm": Style(byte_tokenizer, CHATML, "<|im_end|>", 0, False, {"special": IM, "eos": "<|im_end|>"}),
    "chatml, no opening": Style(byte_tokenizer, OLD_CHATML, "<|im_end|>", 0, False, {"special": IM}),
    "mistral": Style(piece_tokenizer, MISTRAL, "</s>", 1),
    "gemma": Style(
        piece_tokenizer, GEMMA, "<end_of_turn>", 1, True,
        {"bos": "<bos>", "eos": "<eos>", "special": ("<start_of_turn>", "<end_of_turn>")},
    ),
    "zephyr": Style(piece_tokenizer, ZEPHYR, "</s>", 0),
    "plain bytes": Style(byte_tokenizer, messages.PLAIN, "<|endoftext|>", 0),
    "plain bytes, bos and eos": Style(
        byte_tokenizer, messages.PLAIN, "</s>", 1, False,
        {"special": ("<s>", "</s>"), "bos": "<s>", "eos": "</s>", "add_bos": True, "add_eos": True},
    ),
    "plain pieces": Style(piece_tokenizer, messages.PLAIN, "</s>", 1),
    "plain pieces, no bos": Style(piece_tokenizer, messages.PLAIN, "</s>", 0, False, {"add_bos": False}),
    "plain pieces, bos and eos": Style(piece_tokenizer, messages.PLAIN, "</s>", 1, False, {"add_eos": True}),
}  # fmt: skip


@pytest.fixture(params=STYLES, ids=[name.replace(" ", "_").replace(",", "") for name in STYLES])
def style(request: pytest.FixtureRequest) -> Style:
    return STYLES[request.param]


def chat(*turns: str, system: str | None = None) -> Conversation:
    """Turns by turns: user, assistant, user, …"""
    roles = ("user", "assistant")
    made = [Message(roles[index % 2], text) for index, text in enumerate(turns)]
    opening = [Message("system", system)] if system is not None else []
    return Conversation(tuple([*opening, *made]), True, "test:1")


def text_of(renderer: Renderer, conversation: Conversation) -> str:
    """What the template writes, with no help of ours."""
    turns = [{"role": message.role, "content": message.content} for message in conversation.messages]
    settings = {"chat_template": renderer.template, "tokenize": False, "sparring_bos": renderer.adds_bos}
    return str(renderer.tokenizer.apply_chat_template(turns, **settings))


def normal(renderer: Renderer, text: str) -> str:
    """A text as this tokenizer gives it back (some put a space in front or behind a special token)."""
    return str(renderer.tokenizer.decode(renderer.tokenizer(text, add_special_tokens=False).input_ids))


def count_bos(renderer: Renderer, example: Example) -> int:
    return sum(token == renderer.tokenizer.bos_token_id for token in example.prompt_ids + example.answer_ids)


def answer_text(renderer: Renderer, example: Example) -> str:
    """What the answer's ids add to the prompt's text."""
    decode = renderer.tokenizer.decode
    whole, prompt = decode(example.prompt_ids + example.answer_ids), decode(example.prompt_ids)
    assert whole.startswith(prompt)
    return str(whole[len(prompt) :])


def check(renderer: Renderer, style: Style, conversation: Conversation) -> Example:
    """What must hold for every example of every style."""
    (example,) = renderer.render(conversation)
    end = renderer.tokenizer.convert_tokens_to_ids(style.end)
    rendered = text_of(renderer, conversation)
    up_to_end = rendered[: rendered.rindex(style.end) + len(style.end)]
    assert renderer.tokenizer.decode(example.prompt_ids + example.answer_ids) == normal(renderer, up_to_end)
    assert example.ended
    assert example.answer_ids[-1] == end
    assert not set(example.answer_ids[:-1]) & set(renderer.end_ids)
    assert example.prompt_ids == renderer.prompt(conversation.messages[:-1], chat=True)
    assert count_bos(renderer, example) == style.bos
    return example


# ---------------------------------------------------------------- every style


def test_the_end_token_is_found(style: Style) -> None:
    renderer = style.renderer()
    turn_end = renderer.tokenizer.convert_tokens_to_ids(style.end)
    assert renderer.turn_end == turn_end
    assert renderer.end_ids == tuple(sorted({turn_end, renderer.tokenizer.eos_token_id}))


def test_one_turn(style: Style) -> None:
    renderer = style.renderer()
    example = check(renderer, style, chat("How many legs has a dog?", "A dog has four legs."))
    written = answer_text(renderer, example).removesuffix(style.end).strip()
    assert (
        written.removeprefix("<|im_start|>assistant\n").removeprefix("<think>\n\n</think>\n\n")
        == "A dog has four legs."
    )


def test_many_turns_and_a_system_message(style: Style) -> None:
    renderer = style.renderer()
    turns = ("What is it?", "It is a cat.", "And this?", "It is a dog.\n\nYes.")
    check(renderer, style, chat(*turns))
    if "raise_exception" not in style.template:
        check(renderer, style, chat(*turns, system="Be short."))


@pytest.mark.parametrize(
    "answer", [" yes", "yes ", "\nyes\n", "\n\n yes \n\n", "  ", "", "é 猫 🐈", "</b>", "|", "<", "b", "\t1"]
)
def test_any_white_space_around_an_answer(style: Style, answer: str) -> None:
    renderer = style.renderer()
    example = check(renderer, style, chat("yes or no?", answer))
    if not style.trims and "im_" not in style.end:
        mistral = " " if style.template == MISTRAL else ""
        assert answer_text(renderer, example) == mistral + answer + style.end


def test_an_end_token_in_the_question_is_not_the_answers(style: Style) -> None:
    renderer = style.renderer()
    question = f"What does {style.end} mean?"
    example = check(renderer, style, chat(question, "Paris."))
    end = renderer.tokenizer.convert_tokens_to_ids(style.end)
    assert end in example.prompt_ids
    assert example.answer_ids.count(end) == 1


def test_an_answer_stops_at_the_first_end_token_that_it_writes_itself(style: Style) -> None:
    renderer = style.renderer()
    (plain,) = renderer.render(chat("yes or no?", "yes"))
    for token in {style.end, renderer.tokenizer.eos_token}:
        for more in ("", " and what no player could say"):
            (example,) = renderer.render(chat("yes or no?", f"yes{token}{more}"))
            assert example.answer_ids == plain.answer_ids, (token, more)


def test_turns(style: Style) -> None:
    renderer = style.renderer()
    conversation = chat("a cat?", "yes", "a dog?", "no", "a bird?", "yes yes")
    every = renderer.render(conversation, "all")
    assert len(every) == 3
    assert renderer.render(conversation, "first") == every[:1]
    assert renderer.render(conversation, "last") == every[-1:]
    assert renderer.render(conversation) == every[-1:]
    for index, example in enumerate(every):
        shorter = Conversation(conversation.messages[: 2 * index + 2], True, "test:1")
        assert example == check(renderer, style, shorter)


def test_a_prompt_asks_for_an_answer(style: Style) -> None:
    """The prompt ends with what opens an answer, so that the player writes an answer and not a question."""
    renderer = style.renderer()
    asked = renderer.tokenizer.decode(renderer.prompt((Message("user", "yes or no?"),), chat=True))
    after = asked[asked.index("yes or no?") :]
    opened = {"llama3": "assistant", "gemma": "model", "mistral": "[/inst]", "chatml, no opening": "<|im_end|>"}
    name = next(name for name, known in STYLES.items() if known is style)
    assert opened.get(name, "assistant") in after.lower()


# ---------------------------------------------------------------- single styles


def test_qwen_default_system_message() -> None:
    style = STYLES["qwen"]
    renderer = style.renderer()
    without = check(renderer, style, chat("yes?", "yes"))
    with_own = check(renderer, style, chat("yes?", "yes", system="Be short."))
    assert "helpful assistant" in renderer.tokenizer.decode(without.prompt_ids)
    assert "helpful assistant" not in renderer.tokenizer.decode(with_own.prompt_ids)
    assert without.answer_ids == with_own.answer_ids


def test_qwen3_thoughts_are_part_of_the_answer_and_dropped_from_earlier_turns() -> None:
    style = STYLES["qwen3"]
    renderer = style.renderer()
    conversation = chat("a?", "<think>\nfirst thought\n</think>\n\nyes", "b?", "<think>\nsecond\n</think>\n\nno")
    example = check(renderer, style, conversation)
    assert answer_text(renderer, example) == "<think>\nsecond\n</think>\n\nno<|im_end|>"
    assert "first thought" not in renderer.tokenizer.decode(example.prompt_ids)
    first, _ = renderer.render(conversation, "all")
    assert answer_text(renderer, first) == "<think>\nfirst thought\n</think>\n\nyes<|im_end|>"


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_template_without_a_system_role_puts_it_before_the_question(name: str) -> None:
    renderer = STYLES[name].renderer()
    (example,) = renderer.render(chat("yes?", "yes", "no?", "no", system="Be short."))
    (joined,) = renderer.render(chat("Be short.\n\nyes?", "yes", "no?", "no"))
    assert example == joined
    assert example.prompt_ids == renderer.prompt(
        chat("yes?", "yes", "no?", "no", system="Be short.").messages[:-1], True
    )


@pytest.mark.parametrize("name", ["gemma", "mistral"])
@pytest.mark.parametrize("system", [False, True])
def test_turns_that_a_template_refuses_are_the_users_error(name: str, system: bool) -> None:
    renderer = STYLES[name].renderer()
    turns = [Message("user", "a"), Message("user", "b"), Message("assistant", "c")]
    opening = [Message("system", "s")] if system else []
    with pytest.raises(DataError, match=r"refuses these turns.*alternate.*model\.template"):
        renderer.render(Conversation(tuple(opening + turns), True, "test:1"))


def test_a_template_that_rewrites_the_question_is_refused() -> None:
    template = "{{ messages | length }}" + CHATML
    renderer = Renderer(byte_tokenizer(IM, eos="<|im_end|>"), template)
    with pytest.raises(DataError, match=r"test:1.*cannot be told apart.*model\.template"):
        renderer.render(chat("a", "b"))


def test_no_answer_is_an_error() -> None:
    renderer = STYLES["qwen"].renderer()
    with pytest.raises(DataError, match="test:1: no assistant turn"):
        renderer.render(Conversation((Message("user", "a"),), True, "test:1"))


def test_the_end_token_is_found_whatever_letters_it_has() -> None:
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|eob|>{% endfor %}"
    renderer = Renderer(byte_tokenizer(("<|endoftext|>", "<|eob|>")), template)
    assert renderer.turn_end == renderer.tokenizer.convert_tokens_to_ids("<|eob|>")


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-text token"):
        Renderer(tokenizer, CHATML)


# ---------------------------------------------------------------- choosing a template


def test_choose_template(tmp_path: Path) -> None:
    chat_model, plain_model = byte_tokenizer(IM, template=QWEN), byte_tokenizer()
    file = tmp_path / "mine.jinja"
    file.write_text(ZEPHYR, encoding="utf-8")
    assert choose_template("auto", chat_model)[0] == QWEN
    assert choose_template("auto", plain_model)[0] == messages.PLAIN
    assert choose_template("plain", chat_model) == (messages.PLAIN, "plain")
    assert choose_template("chatml", chat_model) == (messages.CHATML, "chatml")
    assert choose_template(str(file), plain_model) == (ZEPHYR, "mine.jinja")
    with pytest.raises(ModelError, match=r"<\|im_end\|>, which this tokenizer lacks"):
        choose_template("chatml", plain_model)
    with pytest.raises(ModelError, match="neither auto, plain, chatml nor a file"):
        choose_template("chatlm", plain_model)


def test_chatml_by_name_is_chatml() -> None:
    assert messages.CHATML == CHATML


def test_the_plain_template_reads_as_documented() -> None:
    renderer = STYLES["plain bytes"].renderer()
    (example,) = renderer.render(chat("yes?", "yes", "no?", "no", system="Be short."))
    asked = "Be short.\n\n### User:\nyes?\n\n### Assistant:\nyes<|endoftext|>\n\n### User:\nno?\n\n### Assistant:\n"
    assert renderer.tokenizer.decode(example.prompt_ids) == asked
    assert answer_text(renderer, example) == "no<|endoftext|>"


# ---------------------------------------------------------------- plain text, no template


TOKENIZERS = {
    "bytes": lambda: byte_tokenizer(),
    "bytes_bos": lambda: byte_tokenizer(("<s>", "</s>"), bos="<s>", eos="</s>", add_bos=True),
    "bytes_eos": lambda: byte_tokenizer(("<s>", "</s>"), bos="<s>", eos="</s>", add_bos=True, add_eos=True),
    "pieces": lambda: piece_tokenizer(),
    "pieces_eos": lambda: piece_tokenizer(add_eos=True),
    "pieces_no_bos": lambda: piece_tokenizer(add_bos=False),
}


@pytest.fixture(params=TOKENIZERS)
def reader(request: pytest.FixtureRequest) -> Renderer:
    return Renderer(TOKENIZERS[request.param](), messages.PLAIN)


def opening(prompt: str, answer: str) -> Conversation:
    return Conversation((Message("user", prompt), Message("assistant", answer)), False, "test:1")


def check_text(renderer: Renderer, prompt: str, answer: str) -> Example:
    (example,) = renderer.render(opening(prompt, answer))
    tokenizer = renderer.tokenizer
    body, end = example.answer_ids[:-1], example.answer_ids[-1]
    assert end == tokenizer.eos_token_id
    assert end not in example.prompt_ids + body
    assert example.prompt_ids == renderer.prompt((Message("user", prompt),), chat=False)
    assert count_bos(renderer, example) == (1 if renderer.adds_bos else 0)
    # the whole reads as prompt + answer: no space lost or added where they meet
    start = example.prompt_ids[1:] if renderer.adds_bos else example.prompt_ids
    assert tokenizer.decode(start + body) == prompt + answer
    return example


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("The cat", " sat on the mat."),
        ("un", "able"),  # one token across the boundary
        ("The c", "at sat"),
        ("The cat ", "sat"),
        ("The cat", "\nsat\n"),
        ("The cat\n", "\nsat"),
        ("1", "0 20 30"),
        ("猫", "é"),
        ("The", ""),
    ],
)
def test_an_opening_and_its_continuation(reader: Renderer, prompt: str, answer: str) -> None:
    check_text(reader, prompt, answer)


def test_a_token_across_the_boundary_is_split_there(reader: Renderer) -> None:
    whole = reader.tokenizer("unable", add_special_tokens=False).input_ids
    part = reader.tokenizer("un", add_special_tokens=False).input_ids
    assert whole[: len(part)] != part, "the tokenizer of this test must join these"
    example = check_text(reader, "un", "able")
    assert example.prompt_ids[-len(part) :] == part


def test_random_texts_keep_every_character(reader: Renderer) -> None:
    draw = random.Random(0)
    bits = ["un", "able", "do", "g", " ", "  ", "\n", "\n\n", "The", "cat", "é", "猫", "1", "0", ".", "?", "### User:"]
    for _ in range(300):
        # A first character that is no white space: decoders of the piece family take one space off the front.
        prompt = "x" + "".join(draw.choices(bits, k=draw.randint(0, 6)))
        check_text(reader, prompt, "".join(draw.choices(bits, k=draw.randint(0, 6))))


def test_an_end_token_written_in_plain_text(reader: Renderer) -> None:
    eos = reader.tokenizer.eos_token
    (written,) = reader.render(opening("The cat", f" sat{eos} on it"))
    (plain,) = reader.render(opening("The cat", " sat"))
    assert written.answer_ids == plain.answer_ids
    (asked,) = reader.render(opening(f"The cat{eos}", " sat"))
    assert asked.prompt_ids[-1] == reader.tokenizer.eos_token_id
    assert asked.answer_ids.count(reader.tokenizer.eos_token_id) == 1
    assert asked.prompt_ids == reader.prompt((Message("user", f"The cat{eos}"),), chat=False)


def test_text_for_people_has_no_special_tokens() -> None:
    renderer = STYLES["llama3"].renderer()
    (example,) = renderer.render(chat("yes?", "yes it is"))
    assert renderer.decode(example.answer_ids) == "yes it is"


# ---------------------------------------------------------------- lengths


def example(prompt: int, answer: int) -> Example:
    return Example(list(range(prompt)), [*range(100, 99 + answer), 7], True, f"{prompt}+{answer}")


def test_fit_keeps_what_fits_exactly() -> None:
    examples = [example(4, 6), example(1, 9)]
    for how in ("drop", "truncate", "error"):
        assert fit(examples, 10, how) == (examples, {"too_long": 0, "truncated": 0})


def test_fit_drops_and_counts() -> None:
    kept, counts = fit([example(4, 6), example(4, 7), example(20, 1)], 10, "drop")
    assert kept == [example(4, 6)]
    assert counts == {"too_long": 2, "truncated": 0}


def test_fit_cuts_the_answer_without_an_end_token() -> None:
    kept, counts = fit([example(4, 7), example(9, 2), example(10, 1), example(11, 3)], 10, "truncate")
    assert counts == {"too_long": 2, "truncated": 2}
    assert [len(one.prompt_ids) + len(one.answer_ids) for one in kept] == [10, 10]
    for cut, whole in zip(kept, [example(4, 7), example(9, 2)], strict=True):
        assert cut.prompt_ids == whole.prompt_ids
        assert cut.answer_ids == whole.answer_ids[: len(cut.answer_ids)]
        assert 7 not in cut.answer_ids
        assert not cut.ended


def test_fit_names_the_row_that_is_too_long() -> None:
    with pytest.raises(DataError, match=r"4\+7: 11 tokens, but at most 10 fit.*data\.max_length.*data\.too_long"):
        fit([example(4, 6), example(4, 7)], 10, "error")
