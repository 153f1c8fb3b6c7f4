"""The laboratory's tokenizer: one character, one token, and `<s>` in front of what is encoded.

It has no chat template on purpose: the embedded default then runs the plain-text path, and the `<s>`
exercises the project's care for it (once, at the start of the prompt, never before an answer).
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")  # ids 0, 1, 2, 3
CHARACTERS = string.digits + "+=; \n" + string.ascii_lowercase


def build(characters: str = CHARACTERS) -> PreTrainedTokenizerFast:
    """A new tokenizer, of 45 tokens by default; encoding adds `<s>`, decoding joins the characters again."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *characters))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=64,
        padding_side="right",
    )
