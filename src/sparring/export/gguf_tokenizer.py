"""Tokenizers as llama.cpp has them: byte-level BPE with a named way of splitting, or pieces with scores.

llama.cpp knows ways of splitting a text by name only. The name is found by behaviour: the one whose patterns split a
list of difficult texts as the tokenizer does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from sparring.data.messages import Message, Renderer
from sparring.errors import ModelError

# Where tokenizers differ: digits, contractions, case, runs of spaces and line breaks, punctuation, scripts, symbols.
DIFFICULT = (
    "Hello, world! How are you?",
    "  two spaces first, and   three inside, two at the end  ",
    "1 12 123 1234 12345 3.14159 1,000,000 2x3=6 0xFF",
    "I'm, I'M, we'll, WE'LL, they'd've, it's, 'quoted', don't",
    "line\nline\n\nline\n\n\n  indented\n\ttab\r\nend\n",
    "def f(x):\n    return x**2 + 1  # comment\n\n\nif __name__ == '__main__':\n\tf(3)\n",
    "camelCase PascalCase snake_case UPPER lowerUPPER McDonald iPhone",
    "naïve café über Straße ångström żółć",
    "Привет, мир! Γειά σου κόσμε. שלום עולם مرحبا بالعالم",
    "你好,世界。こんにちは世界 안녕하세요",
    "नमस्ते दुनिया, สวัสดี",
    "🙂 👩‍👩‍👧 ❤️ 🇩🇪 ½ ² ™ € £ →",
    "a/b\\c <tag attr=\"1\"/> {json: [1, 2]} $x^2$ ... --- !!! ???",
    "https://example.org/a-b_c?d=e&f=g#h me@example.org",
    "x",
    " x",
    "\n",
    " ",
    "",
)  # fmt: skip

# The same for chats: one question, a system text, a conversation.
ASKED: tuple[tuple[Message, ...], ...] = (
    (Message("user", "What is a prime number?"),),
    (Message("system", "Be brief."), Message("user", "Hello, who are you?")),
    (Message("user", "1 + 1?"), Message("assistant", "2."), Message("user", "And  twice that,\n\nin words? 🙂")),
)

_TAIL = r"\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _TAIL
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|" + _TAIL
_MARKED = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+ENDING|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*ENDING"
    r"|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|"
) + _TAIL

# (llama.cpp's name, whether a word that is a token is taken whole, the patterns that split a text in turn). Where two
# tell a text apart in the same way, the first that also treats whole words so is taken.
SPLITS: tuple[tuple[str, bool, tuple[str, ...]], ...] = (
    ("gpt-2", False, (_GPT2,)),
    ("smollm", False, (r"\p{N}", _GPT2)),
    ("qwen2", False, (_WORDS.replace("DIGITS", r"\p{N}"),)),
    ("qwen35", False, (_MARKED,)),
    ("llama-bpe", True, (_WORDS.replace("DIGITS", r"\p{N}{1,3}"),)),
    ("smaug-bpe", False, (_WORDS.replace("DIGITS", r"\p{N}{1,3}"),)),
    ("tekken", True, (_CASED.replace("DIGITS", r"\p{N}").replace("ENDING", ""),)),
    ("gpt-4o", False, (_CASED.replace("DIGITS", r"\p{N}{1,3}").replace("ENDING", f"{_CONTRACTION}?"),)),
)

# llama.cpp's patterns of these names tear combining marks (of Hindi, Thai) off their letters; nothing in a file helps.
WITHOUT_MARKS = ("tekken", "gpt-4o")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer for GGUF.

    model     "gpt2" (bytes, merges) or "llama" (pieces, scores)
    pre       the name of its way of splitting
    types     of each token: gguf's TokenType
    scores    of each token of a "llama" model: the higher, the sooner it is merged
    merges    of a "gpt2" model, "left right"
    ids       bos, eos, eot, unk, pad: those there are
    adds_bos  every text opens with bos
    opens     every text opens with a space
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    ids: dict[str, int]
    adds_bos: bool
    opens: bool

    def write(self, writer: Any) -> None:
        """Add it to a GGUF writer."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.model == "llama":
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.opens)
        else:
            writer.add_token_merges(self.merges)
        for name, number in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.adds_bos)
        # never: an end before the answer is what no player was trained on, whatever the tokenizer does by itself
        writer.add_add_eos_token(False)


def vocabulary_of(renderer: Renderer, rows: int) -> Vocabulary:
    """The tokenizer of a model whose embedding has so many rows. ModelError if llama.cpp has no such tokenizer."""
    tokenizer = renderer.tokenizer
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = content["model"]["type"]
    if kind == "WordLevel" and (letters := _letters(content)):
        return _of_letters(renderer, content, letters, rows)
    if kind != "BPE":
        raise ModelError(
            f"the tokenizer is of type {kind}; only BPE (byte-level, or pieces with byte fallback) and single ASCII "
            "characters are written as GGUF; convert the folder with llama.cpp's convert_hf_to_gguf.py"
        )
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in content["model"]["merges"]]
    pieces = bool(content["model"].get("byte_fallback"))
    tokens, types = _tokens(content, rows, pieces)
    return Vocabulary(
        "llama" if pieces else "gpt2",
        "default" if pieces else splitting(tokenizer, bool(content["model"].get("ignore_merges"))),
        tokens,
        types,
        _scores(tokens, merges) if pieces else [],
        [" ".join(pair) for pair in merges],
        special_ids(renderer),
        adds_bos(renderer),
        pieces and _opens(renderer),
    )


def _letters(content: dict[str, Any]) -> dict[int, str]:
    """Id → character of a tokenizer for which every character is a token, all of them ASCII; else empty."""
    special = {added["id"] for added in content["added_tokens"]}
    found = {number: token for token, number in content["model"]["vocab"].items() if number not in special}
    split = content["pre_tokenizer"] or {}
    alone = split.get("pattern") == {"Regex": r"[\s\S]"} and split.get("behavior") == "Isolated"
    return found if alone and all(len(letter) == 1 and letter < "\x7f" for letter in found.values()) else {}


def _of_letters(renderer: Renderer, content: dict[str, Any], letters: dict[int, str], rows: int) -> Vocabulary:
    """Characters as bytes that nothing merges. llama.cpp drops what is not among them, where others say unknown."""
    written = {number: chr(256 + ord(letter)) if letter <= " " else letter for number, letter in letters.items()}
    known = {**content["model"]["vocab"]}
    for number, letter in letters.items():
        del known[letter]
        known[written[number]] = number
    tokens, types = _tokens({**content, "model": {**content["model"], "vocab": known}}, rows, pieces=False)
    never = f"{tokens[0]} {tokens[0]}"  # llama.cpp asks for merges; this one finds nothing to merge
    return Vocabulary("gpt2", "gpt-2", tokens, types, [], [never], special_ids(renderer), adds_bos(renderer), False)


def adds_bos(renderer: Renderer) -> bool:
    """Whether llama.cpp is to open every text with bos, as the tokenizer does by itself.

    Its servers do so with rendered chats too, unless a chat opens with bos already; so a template that leaves bos out
    settles it for a chat model.
    """
    if not renderer.adds_bos or not isinstance(renderer.tokenizer.chat_template, str):
        return renderer.adds_bos
    return bool(renderer.prompt((Message("user", "x"),), chat=True)[0] == renderer.tokenizer.bos_token_id)


def as_pieces(tokenizer: Any, opens: bool) -> Tokenizer:
    """A tokenizer of pieces as llama.cpp has it.

    opens  a space is put before every text, and before what follows a special token
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = [{"type": "Prepend", "prepend": "▁"}] * opens
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    content |= {"normalizer": {"type": "Sequence", "normalizers": [*steps, replace]}, "pre_tokenizer": None}
    return Tokenizer.from_str(json.dumps(content))


def _opens(renderer: Renderer) -> bool:
    """Whether llama.cpp is to put a space before texts: whichever gives more chats, then more texts, the same tokens.

    It does so everywhere or nowhere; others do it at the very beginning only, or not before another space.
    """
    tokenizer = renderer.tokenizer
    chats = ASKED if isinstance(tokenizer.chat_template, str) else ()

    def same(opens: bool) -> tuple[int, int]:
        twin = as_pieces(tokenizer, opens)
        alike = [ids_of(twin, renderer.text(chat, ask=True)) == renderer.prompt(chat, chat=True) for chat in chats]
        texts = [ids_of(twin, text) == tokenizer(text, add_special_tokens=False).input_ids for text in DIFFICULT]
        return sum(alike), sum(texts)

    return same(True) >= same(False)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text, without any that the tokenizer adds."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def splitting(tokenizer: Any, whole: bool) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits texts. whole: words that are tokens are taken so."""
    mine = tokenizer.backend_tokenizer.pre_tokenizer
    found = [(name, same) for name, same, patterns in SPLITS if mine is not None and _alike(mine, patterns)]
    if not found:
        raise ModelError(
            "the tokenizer splits texts in a way that is not among those known by a name in llama.cpp "
            f"({', '.join(name for name, _, _ in SPLITS)}); convert the folder with llama.cpp's convert_hf_to_gguf.py"
        )
    return next((name for name, same in found if same == whole), found[0][0])


def _alike(mine: Any, patterns: Sequence[str]) -> bool:
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    theirs = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return all(_pieces(mine, text) == _pieces(theirs, text) for text in DIFFICULT)


def _pieces(splitter: Any, text: str) -> list[str]:
    return [piece for piece, _ in splitter.pre_tokenize_str(text)]


def _tokens(content: dict[str, Any], rows: int, pieces: bool) -> tuple[list[str], list[int]]:
    """Text and type of every row of the embedding."""
    from gguf import TokenType

    by_id = {number: token for token, number in content["model"]["vocab"].items()}
    types = dict.fromkeys(by_id, TokenType.NORMAL)
    if pieces:
        types |= {content["model"]["vocab"][name]: TokenType.BYTE for name in _byte_names(content["model"]["vocab"])}
    for added in content["added_tokens"]:
        number, text = added["id"], added["content"]
        types[number] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        # a token of the user's is looked for in the text before its spaces become ▁
        by_id[number] = text.replace("▁", " ") if pieces and not added["special"] else text
    unknown = content["model"].get("unk_token")
    types |= {number: TokenType.UNKNOWN for number, token in by_id.items() if pieces and token == unknown}
    taken = set(by_id.values())
    if len(taken) < len(by_id):
        raise ModelError("two tokens of the tokenizer have the same text, which llama.cpp does not allow")
    empty = (name for name in (f"[PAD{index}]" for index in range(10**9)) if name not in taken)
    tokens = [by_id[number] if number in by_id else next(empty) for number in range(rows)]
    return tokens, [int(types.get(number, TokenType.UNUSED)) for number in range(rows)]


def _byte_names(vocab: dict[str, int]) -> list[str]:
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    missing = [name for name in names if name not in vocab]
    if missing:
        raise ModelError(
            f"the tokenizer falls back to bytes but lacks the token {missing[0]}, which llama.cpp needs; "
            "export the model as merged"
        )
    return names


def _scores(tokens: list[str], merges: Sequence[tuple[str, ...]]) -> list[float]:
    """A piece's score is the rank of the first merge that makes it; what no merge makes is made last."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, 2 * len(merges) + 1)) for token in tokens]


def special_ids(renderer: Renderer) -> dict[str, int]:
    """By GGUF's names: bos, eos, eot, unk, pad, those that there are."""
    tokenizer = renderer.tokenizer
    given = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
        # what ends an assistant's turn, where that is not the end of the text
        "eot": renderer.turn_end if renderer.turn_end != tokenizer.eos_token_id else None,
    }
    return {name: int(number) for name, number in given.items() if number is not None}
