"""Conversations, and the one function that turns them into token ids.

`Renderer.render` serves fine-tuning, generation, scoring, evaluation and the preview alike, so that
what the opponent is asked and what the player is trained on are the same tokens. Nothing in the
project decodes and re-encodes an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2.exceptions import TemplateError

from sparring.errors import DataError, ModelError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Other:
    """The other answer to the same question.

    votes  what each of several people said: 1 the chosen answer, 0 this one, 1/2 neither; empty if it is not known
    tie    whether most people chose neither, or no two agree; then which is called chosen says nothing
    """

    rejected: str
    votes: tuple[float, ...] = ()
    tie: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that end in an assistant's answer.

    chat    True: rendered with the chat template. False: one user turn and one assistant turn
            that are an opening and its continuation, rendered as plain text with no template.
    source  "file:line" or "file[row]", for messages to the user.
    other   of a preference: the answer that was not chosen, and what people said.
    """

    messages: tuple[Message, ...]
    chat: bool
    source: str
    other: Other | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its real answer as token ids.

    prompt_ids  what a player is given, beginning-of-text token included when the tokenizer has one
    answer_ids  what follows, with one end token at the end if `ended`
    ended       False when the answer was cut: then it holds no end token
    """

    prompt_ids: list[int]
    answer_ids: list[int]
    ended: bool
    source: str


# Used when a tokenizer brings no template: three roles, a marker line each, the answer closed by eos.
PLAIN = (
    "{{ bos_token if bos_token and sparring_bos }}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}### User:\n{{ message.content }}\n\n"
    "{% else %}### Assistant:\n{{ message.content }}{{ eos_token }}\n\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"plain": PLAIN, "chatml": CHATML}


def answer_places(messages: tuple[Message, ...], turns: str) -> list[int]:
    """Where the answers stand in a conversation that `turns` chooses: the `last`, the `first`, or `all`."""
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    return {"last": answers[-1:], "first": answers[:1], "all": answers}[turns]


def choose_template(name: str, tokenizer: Any) -> tuple[str, str]:
    """(template text, where it came from) for `model.template`; ModelError if it cannot be had."""
    if name == "auto":
        own = tokenizer.chat_template
        return (own, "the tokenizer's own") if isinstance(own, str) else (PLAIN, "plain (the tokenizer has none)")
    if name == "chatml" and tokenizer.convert_tokens_to_ids("<|im_end|>") in (None, tokenizer.unk_token_id):
        raise ModelError("template chatml needs the token <|im_end|>, which this tokenizer lacks; use plain or auto")
    if name in TEMPLATES:
        return TEMPLATES[name], name
    file = Path(name)
    if not file.is_file():
        raise ModelError(f'template "{name}" is neither auto, plain, chatml nor a file; give one of these')
    return file.read_text(encoding="utf-8"), file.name


class Renderer:
    """Turns conversations into token ids with one tokenizer and one template.

    `end_ids` are the tokens that end an answer: the one that the template puts after an assistant's
    turn, and the tokenizer's end-of-text token.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-text token (eos_token), so no answer could end; set one")
        self.tokenizer = tokenizer
        self.template = template
        ids = tokenizer("a").input_ids
        self.adds_bos = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
        self.adds_eos = ids[-1:] == [tokenizer.eos_token_id]
        self.turn_end: int = self._find_turn_end()
        self.end_ids: tuple[int, ...] = tuple(sorted({self.turn_end, tokenizer.eos_token_id}))

    @property
    def portable(self) -> str:
        """The template for other engines, which do not say in `sparring_bos` whether the tokenizer opens with bos."""
        return self.template.replace("bos_token if bos_token and sparring_bos", "bos_token" if self.adds_bos else "''")

    def render(self, conversation: Conversation, turns: str = "last") -> list[Example]:
        """The examples of a conversation: one for `last` or `first`, one per answer for `all`."""
        messages = conversation.messages
        chosen = answer_places(messages, turns)
        if not chosen:
            raise DataError(f"{conversation.source}: no assistant turn; every row needs an answer")
        return [self._example(messages[: index + 1], conversation) for index in chosen]

    def prompt(self, messages: tuple[Message, ...], chat: bool) -> list[int]:
        """Token ids [P] that ask for an answer to `messages`."""
        return self._encode(self._text(messages, ask=True) if chat else messages[-1].content, special=not chat)

    def text(self, messages: tuple[Message, ...], ask: bool) -> str:
        """What the template makes of turns. ask: with what asks for an answer behind them; DataError if it refuses."""
        return self._text(messages, ask)

    def turns(self, messages: tuple[Message, ...]) -> list[dict[str, str]]:
        """The turns as the template takes them: the system's joined to the first question if it knows no system."""
        return self._taken(messages, ask=True)[0]

    def decode(self, ids: list[int]) -> str:
        """Text for people to read; fed back into a model only where it is asked about its own answer (reflection)."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    # ------------------------------------------------------------ one example

    def _example(self, messages: tuple[Message, ...], conversation: Conversation) -> Example:
        if conversation.chat:
            source = f"{conversation.source}: "
            before = self._text(messages[:-1], ask=True, source=source)
            full = self._text(messages, ask=False, source=source)
            if not full.startswith(before):
                raise DataError(
                    f"{conversation.source}: the chat template renders the answered conversation differently from "
                    "its question, so prompt and answer cannot be told apart; give another model.template"
                )
            prompt_ids, answer_ids = self._split(before, full[len(before) :], special=False)
            answer_ids = self._close(answer_ids, self.turn_end)
        else:
            question, answer = messages[-2].content, messages[-1].content
            prompt_ids, answer_ids = self._split(question, answer, special=True)
            answer_ids = self._close(answer_ids, self.tokenizer.eos_token_id)
        return Example(prompt_ids, answer_ids, True, conversation.source)

    def _text(self, messages: tuple[Message, ...], ask: bool, source: str = "") -> str:
        return self._taken(messages, ask, source)[1]

    def _taken(self, messages: tuple[Message, ...], ask: bool, source: str = "") -> tuple[list[dict[str, str]], str]:
        """(the turns that the template takes, what it makes of them)."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        tries = [turns]
        if turns[0]["role"] == "system" and len(turns) > 1 and turns[1]["role"] == "user":
            # Templates without a system role (Gemma's, say): the system text opens the first question.
            joined = {"role": "user", "content": turns[0]["content"] + "\n\n" + turns[1]["content"]}
            tries.append([joined, *turns[2:]])
        for attempt in tries:
            try:
                return attempt, self._apply(attempt, ask)
            except TemplateError as error:
                reason = str(error)
        raise DataError(f"{source}the chat template refuses these turns: {reason}; give another model.template")

    def _apply(self, turns: list[dict[str, str]], ask: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                turns,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=ask,
                sparring_bos=self.adds_bos,
            )
        )

    def _encode(self, text: str, special: bool) -> list[int]:
        """Ids of a text; `special` asks for the tokenizer's own beginning-of-text token, never an end."""
        ids = list(self.tokenizer(text, add_special_tokens=special).input_ids)
        return ids[:-1] if special and self.adds_eos else ids

    def _split(self, prompt: str, answer: str, special: bool) -> tuple[list[int], list[int]]:
        """Ids of prompt and answer, where the prompt's are those that generation will see."""
        prompt_ids = self._encode(prompt, special)
        full_ids = self._encode(prompt + answer, special)
        if full_ids[: len(prompt_ids)] == prompt_ids:
            return prompt_ids, full_ids[len(prompt_ids) :]
        # A token straddles the boundary: encode the answer alone, after a line break that is then
        # taken off, so that tokenizers which open every text with a space do not add one here.
        mark, marked = self._encode("\n", False), self._encode("\n" + answer, False)
        alone = marked[len(mark) :] if marked[: len(mark)] == mark else self._encode(answer, False)
        return prompt_ids, alone

    def _close(self, ids: list[int], end: int) -> list[int]:
        """The answer up to its first end token, and `end`: nothing after it could ever be said by a player.

        That drops what a template writes behind an answer, and end tokens that came with the data.
        """
        stop = next((index for index, token in enumerate(ids) if token in self.end_ids), len(ids))
        return [*ids[:stop], end]

    def _find_turn_end(self) -> int:
        """The special token that the template puts after an assistant's answer, else eos."""
        eos = int(self.tokenizer.eos_token_id)
        turns = (Message("user", "question"), Message("assistant", "sparring"))
        try:
            before, full = self._text(turns[:1], ask=True), self._text(turns, ask=False)
        except DataError:
            return eos
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        tail = full[len(before) :].rpartition("sparring")[2]
        return next((token for token in self._encode(tail, False) if token in special), eos)


def fit(examples: list[Example], length: int, too_long: str) -> tuple[list[Example], dict[str, int]]:
    """Make every example fit `length` tokens; returns the examples kept and what was done to how many.

    too_long  drop; truncate (cut the answer, leave its end token out; a prompt that leaves room for
              no answer token is dropped); error.
    """
    kept: list[Example] = []
    counts = {"too_long": 0, "truncated": 0}
    for example in examples:
        room = length - len(example.prompt_ids)
        if len(example.answer_ids) <= room:
            kept.append(example)
        elif too_long == "error":
            total = len(example.prompt_ids) + len(example.answer_ids)
            raise DataError(
                f"{example.source}: {total} tokens, but at most {length} fit; shorten it, raise data.max_length, "
                "or set data.too_long to drop or truncate"
            )
        elif too_long == "truncate" and room > 0:
            kept.append(Example(example.prompt_ids, example.answer_ids[:room], False, example.source))
            counts["truncated"] += 1
        else:
            counts["too_long"] += 1
    return kept, counts
