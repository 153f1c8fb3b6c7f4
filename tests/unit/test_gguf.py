"""GGUF files: every tensor and token as it was, what cannot be written refused, and the same model in llama.cpp."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import helpers
from tests.helpers import CHATML, byte_tokenizer, config_of, model_of, piece_tokenizer, random_rows, renderer_of
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, GemmaConfig, PreTrainedTokenizerFast

from sparring.data.messages import PLAIN, Message, Renderer
from sparring.errors import InputError, LawBroken, ModelError
from sparring.export import engines, gguf_check, gguf_family
from sparring.export import gguf as export
from sparring.export.gguf import KINDS, write_gguf
from sparring.export.gguf_adapter import write_gguf_adapter
from sparring.export.gguf_check import verify_gguf
from sparring.export.gguf_heard import Heard
from sparring.export.gguf_tokenizer import DIFFICULT, SPLITS, WITHOUT_MARKS, splitting, vocabulary_of

gguf = pytest.importorskip("gguf", reason="the library gguf is not here")
needs_llama = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not here")

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FOLDERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gpt2")
STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """byte or piece, with ChatML's tokens and template."""
    if kind == "byte":
        return byte_tokenizer(SPECIAL, template=CHATML)
    return piece_tokenizer(SPECIAL[1:], template=CHATML)


def save_model(folder: Path, name: str, tokenizer: Any, **changes: Any) -> Path:
    """A tiny model, sharp enough to prefer some tokens, whose norms and biases are not 1 and 0."""
    if name == "gemma":
        config = GemmaConfig(**helpers._GROUPED, head_dim=8, vocab_size=len(tokenizer), pad_token_id=None)
    else:
        config = config_of(name, tokenizer, **changes)
    if name == "mistral":
        config.sliding_window = 64
    model = model_of(config, sharp=4.0 if name == "gpt2" else 8.0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """made(architecture, tokenizer="byte"): its folder, made once."""
    place = tmp_path_factory.mktemp("models")

    def make(name: str, kind: str = "byte") -> Path:
        folder = place / f"{name}-{kind}"
        return folder if folder.exists() else save_model(folder, name, tokenizer_of(kind))

    return make


def read(file: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """(fields, names of types, tensors in fp32) of a GGUF file."""
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    tensors = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    return fields, types, tensors


# ---------------------------------------------------------------- tensors

PLACES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
GEMMAS = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
          "post_feedforward_layernorm": "post_ffw_norm"}  # fmt: skip


def expected(name: str, arch: str, tensor: torch.Tensor) -> tuple[str, np.ndarray]:
    """Where a tensor of transformers goes, and as what: said once more, in other words than in the source."""
    places = PLACES | (GEMMAS if arch in ("gemma2", "gemma3") else {})
    match = re.fullmatch(r"(?:(?:model\.layers|transformer\.h)\.(\d+)\.)?(.+)\.(weight|bias)", name)
    assert match
    layer, module, part = match.groups()
    there = f"{'' if layer is None else f'blk.{layer}.'}{places[module]}.{part}"
    value = tensor.float().numpy()
    if arch in ("llama", "mistral") and places[module] in ("attn_q", "attn_k"):
        size = 8  # of a head
        rows = [base + (row % 2) * size // 2 + row // 2 for base in range(0, len(value), size) for row in range(size)]
        value = value[rows]
    if arch == "gpt2" and module.split(".")[-1].startswith("c_") and part == "weight":
        value = value.T
    return there, value + 1 if arch.startswith("gemma") and module.endswith("norm") else value


@pytest.mark.parametrize("arch", FOLDERS)
def test_every_tensor_is_read_back_as_it_was(made, tmp_path, arch):
    write_gguf(made(arch), tmp_path / "a.gguf", "f32")
    fields, types, tensors = read(tmp_path / "a.gguf")
    wanted = dict(expected(name, arch, t) for name, t in load_file(made(arch) / "model.safetensors").items())
    assert set(tensors) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)
    assert set(types.values()) == {"F32"}
    assert fields["general.architecture"] == ("llama" if arch == "mistral" else arch)
    assert fields["general.type"] == "model"
    assert not list(tmp_path.glob("*.tmp"))


# How far a number may be from what it was, in steps of its block's range: half a step, and the rounding of the step
# to 16 bits; Q4_0 and Q5_0 cannot hold the largest number's opposite, which is a whole step off.
STEPS = {
    "q8_0": (127, 0.6), "q5_0": (16, 1.05), "q4_0": (8, 1.05), "q5_1": (31, 0.6), "q4_1": (15, 0.6)
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_are_rounded_to_their_kind_and_nothing_else_is(made, tmp_path, kind):
    write_gguf(made("llama"), tmp_path / "exact.gguf", "f32")
    write_gguf(made("llama"), tmp_path / "a.gguf", kind)
    _, types, tensors = read(tmp_path / "a.gguf")
    exact = read(tmp_path / "exact.gguf")[2]
    for name, value in exact.items():
        type_, error = types[name].lower(), np.abs(tensors[name] - value)
        if value.ndim == 1:
            assert type_ == "f32"
        elif name == "output.weight" and kind[:2] in ("q4", "q5"):
            assert type_ == "q8_0"  # the head keeps 8 bits
        elif name.endswith("ffn_down.weight") and kind.startswith("q"):
            assert type_ == "f16"  # rows of 48 are no multiple of 32
        else:
            assert type_ == kind
        if type_ in STEPS:
            steps, most = STEPS[type_]
            blocks = value.reshape(-1, 32)
            range_ = np.ptp(blocks, axis=1) if type_.endswith("1") else np.abs(blocks).max(axis=1)
            assert (error.reshape(-1, 32).max(axis=1) <= most * range_ / steps + 1e-6).all(), name
        else:
            assert (error <= np.abs(value) * {"f32": 0, "f16": 2**-11, "bf16": 2**-8}[type_] + 1e-7).all(), name
    size = (tmp_path / "a.gguf").stat().st_size
    assert size <= (tmp_path / "exact.gguf").stat().st_size


def test_a_head_that_is_the_embedding_is_written_once_and_keeps_8_bits(tmp_path):
    folder = save_model(tmp_path / "m", "llama", tokenizer_of("byte"), tie_word_embeddings=True)
    write_gguf(folder, tmp_path / "a.gguf", "q4_0")
    _, types, _ = read(tmp_path / "a.gguf")
    assert "output.weight" not in types
    assert (types["token_embd.weight"], types["blk.0.attn_q.weight"]) == ("Q8_0", "Q4_0")


def test_large_matrices_are_quantised_in_parts_as_in_one(monkeypatch):
    matrix = torch.randn(70, 64)
    whole = export.stored(matrix, "Q5_1")
    monkeypatch.setattr(export, "_ROWS", 16)
    np.testing.assert_array_equal(export.stored(matrix, "Q5_1"), whole)


def test_16_bit_weights_go_through_unrounded(made, tmp_path):
    source = made("llama")
    tensors = {name: t.bfloat16() for name, t in load_file(source / "model.safetensors").items()}
    folder = tmp_path / "m"
    folder.mkdir()
    for file in source.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_gguf(folder, tmp_path / "a.gguf", "bf16")
    found = read(tmp_path / "a.gguf")[2]
    np.testing.assert_array_equal(found["output.weight"], tensors["lm_head.weight"].float().numpy())


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2"])
def test_transformers_reads_the_file_back(made, tmp_path, arch):
    write_gguf(made(arch), tmp_path / "a.gguf", "f32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32).eval()
    ours = AutoModelForCausalLM.from_pretrained(made(arch), dtype=torch.float32).eval()
    ids = torch.tensor([random_rows(400)[0][0]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- numbers

ROPE = {"rope_theta": 500000.0}
LLAMA3 = {**ROPE, "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
YARN = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA3 = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
          "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip


def fields_of(folder: Path, **changes: Any) -> dict[str, Any]:
    name = changes.pop("arch", "llama")
    save_model(folder / "m", name, tokenizer_of("byte"), **changes)
    write_gguf(folder / "m", folder / "a.gguf", "f32")
    return read(folder / "a.gguf")[0]


def test_the_numbers_of_an_architecture(made, tmp_path):
    write_gguf(made("llama"), tmp_path / "a.gguf", "q8_0")
    fields = read(tmp_path / "a.gguf")[0]
    sizes = {"block_count": 2, "embedding_length": 32, "feed_forward_length": 48, "context_length": 128,
             "attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 8}  # fmt: skip
    assert {name: fields[f"llama.{name}"] for name in sizes} == sizes
    assert fields["llama.vocab_size"] == len(fields["tokenizer.ggml.tokens"])
    assert fields["general.file_type"] == int(gguf.LlamaFileType.MOSTLY_Q8_0)


def test_long_contexts(tmp_path):
    assert fields_of(tmp_path / "yarn", rope_parameters=YARN)["llama.rope.scaling.type"] == "yarn"
    fields = fields_of(tmp_path / "llama3", rope_parameters=LLAMA3)
    assert fields["llama.rope.freq_base"] == pytest.approx(500000.0)
    assert "llama.rope.scaling.type" not in fields
    factors = read(tmp_path / "llama3" / "a.gguf")[2]["rope_freqs.weight"]
    # waves of 6.3, 167, 4443 and 118 k tokens, over a context of 32: the first is kept, the long ones are divided
    np.testing.assert_allclose(factors, [1, 4, 4, 4], rtol=1e-5)


def test_windows(tmp_path, made):
    fields = fields_of(tmp_path / "gemma3", arch="gemma3", rope_parameters=GEMMA3)
    assert fields["gemma3.attention.sliding_window"] == 6
    assert fields["gemma3.attention.sliding_window_pattern"] == [True, False]
    assert fields["gemma3.rope.freq_base_swa"] == pytest.approx(1e4)
    assert fields["gemma3.rope.scaling.factor"] == pytest.approx(8.0)
    write_gguf(made("mistral"), tmp_path / "b.gguf", "f32")
    assert (
        read(tmp_path / "b.gguf")[0]["llama.context_length"] == 64
    )  # llama.cpp's has no window, so it goes no further


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arch", "changes", "what"),
    [
        ("gpt_neo", {}, r"is a gpt_neo model, which is not among those written as GGUF \(gemma, .*\); convert the "),
        ("llama", {"hidden_act": "relu"}, "the activation relu, which llama.cpp does not compute for llama"),
        ("llama", {"rope_parameters": {**YARN, "beta_fast": 8}}, "yarn with settings of its own"),
        ("qwen2", {"rope_parameters": LLAMA3}, "rope of type llama3"),
        ("qwen3", {"attention_bias": True}, "biases in attention"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "attention scaled by layer"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path, arch, changes, what):
    folder = save_model(tmp_path / "m", arch, tokenizer_of("byte"), **changes)
    with pytest.raises(ModelError, match=what):
        write_gguf(folder, tmp_path / "a.gguf", "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_attention_scale_of_its_own_is_refused(tmp_path, made):
    folder = tmp_path / "m"
    folder.mkdir()
    for file in made("gemma3").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"query_pre_attn_scalar": 256}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"query_pre_attn_scalar 256 \(heads of 8\)"):
        write_gguf(folder, tmp_path / "a.gguf", "f16")


def test_a_tensor_without_a_place_is_refused(tmp_path, made):
    folder = tmp_path / "m"
    folder.mkdir()
    for file in made("llama").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors") | {"model.layers.0.extra.weight": torch.zeros(2)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"holds model.layers.0.extra.weight, which llama.cpp has no place for"):
        write_gguf(folder, tmp_path / "a.gguf", "f16")


def test_an_unknown_kind_names_the_nearest(tmp_path, made):
    with pytest.raises(InputError, match='GGUF kind "q8" is not known; did you mean "q8_0"'):
        write_gguf(made("llama"), tmp_path / "a.gguf", "q8")


def test_what_is_missing_is_asked_for_before_anything_is_written(tmp_path, made, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs gguf, which is not installed; install with: pip install 'sparring"):
        write_gguf(made("llama"), tmp_path / "a.gguf", "f16")
    with pytest.raises(InputError, match=r"needs gguf and llama-cpp-python, which are not installed"):
        verify_gguf(tmp_path / "a.gguf", made("llama"), "f16", [([1], [2])])
    assert not list(tmp_path.iterdir())


def test_a_failure_half_way_leaves_nothing_and_keeps_what_was_there(tmp_path, made, monkeypatch):
    (tmp_path / "a.gguf").write_text("before")
    real, left = export.stored, [3]

    def stored(tensor: Any, kind: str) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("disk full")
        return real(tensor, kind)

    monkeypatch.setattr(export, "stored", stored)
    with pytest.raises(OSError, match="disk full"):
        write_gguf(made("llama"), tmp_path / "a.gguf", "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]
    assert (tmp_path / "a.gguf").read_text() == "before"


# ---------------------------------------------------------------- tokenizers


# The patterns of the tokenizers that these names are for, as their own tokenizer.json have them.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
OWN = {
    "gpt-2": (False, (_GPT2,)),
    "smollm": (False, (r"\p{N}", _GPT2)),
    "qwen2": (False, (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),)),
    "qwen35": (False, (_QWEN35,)),
    "llama-bpe": (True, (_LLAMA3,)),
    "smaug-bpe": (False, (_LLAMA3,)),
    "tekken": (True, (_TEKKEN,)),
    "gpt-4o": (False, (_GPT4O,)),
}


def split_tokenizer(patterns: tuple[str, ...], whole: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE that splits texts by some patterns, with merges enough to tell ways of splitting apart."""
    from tokenizers import decoders, trainers

    core = Tokenizer(models.BPE(ignore_merges=whole))
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, show_progress=False, special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(list(DIFFICULT) * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", [row[0] for row in SPLITS])
def test_a_way_of_splitting_is_known_by_what_it_does(name):
    whole, patterns = OWN[name]
    assert splitting(split_tokenizer(patterns, whole), whole) == name


def test_gpt2s_own_splitter_and_digits_by_themselves_are_known():
    tokenizer = byte_tokenizer()
    assert splitting(tokenizer, False) == "gpt-2"
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert splitting(tokenizer, False) == "smollm"
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ModelError, match=r"splits texts in a way that is not among those known .*gpt-2, smollm"):
        splitting(tokenizer, False)


def test_a_byte_level_vocabulary(made, tmp_path):
    tokenizer = tokenizer_of("byte")
    tokenizer.add_tokens(["<tool>"])
    found = vocabulary_of(renderer_of(tokenizer), len(tokenizer) + 2)
    assert (found.model, found.pre, found.adds_bos) == ("gpt2", "gpt-2", False)
    types = gguf.TokenType
    assert found.tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert found.tokens[-2:] == ["[PAD0]", "[PAD1]"]
    assert found.types[-3:] == [types.USER_DEFINED, types.UNUSED, types.UNUSED]
    assert found.types[0] == types.CONTROL
    assert found.ids == {"eos": 0, "eot": tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert len(found.merges) == len(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"])


def test_a_vocabulary_of_pieces():
    tokenizer = piece_tokenizer()
    tokenizer.add_tokens(["▁▁▁"])
    found = vocabulary_of(renderer_of(tokenizer), len(tokenizer))
    types, index = gguf.TokenType, found.tokens.index
    assert (found.model, found.opens, found.adds_bos) == ("llama", True, True)
    assert found.types[index("<unk>")] == types.UNKNOWN
    assert found.types[index("<s>")] == types.CONTROL
    assert found.types[index("<0x0A>")] == types.BYTE
    assert found.types[index("   ")] == types.USER_DEFINED  # as it stands in a text
    assert found.types[index("▁the")] == types.NORMAL
    assert found.scores[index("▁the")] > min(found.scores)


def test_bos_is_added_where_tokenizer_and_template_both_have_it():
    with_bos = "{{ bos_token }}" + CHATML
    assert vocabulary_of(renderer_of(piece_tokenizer(template=with_bos)), 700).adds_bos
    assert not vocabulary_of(renderer_of(piece_tokenizer(template=CHATML)), 700).adds_bos
    assert not vocabulary_of(renderer_of(piece_tokenizer(template=with_bos, add_bos=False)), 700).adds_bos
    assert vocabulary_of(renderer_of(piece_tokenizer()), 700).adds_bos


@pytest.mark.parametrize("adds", [True, False])
def test_the_plain_template_says_by_itself_whether_it_opens_with_bos(tmp_path, adds):
    save_model(tmp_path / "m", "llama", piece_tokenizer(template=PLAIN, add_bos=adds))
    write_gguf(tmp_path / "m", tmp_path / "a.gguf", "f16")
    template = read(tmp_path / "a.gguf")[0]["tokenizer.chat_template"]
    assert "sparring" not in template
    turns = (Message("user", "x"),)
    tokenizer = piece_tokenizer(template=template, add_bos=adds)
    assert (renderer_of(tokenizer).prompt(turns, True)[0] == tokenizer.bos_token_id) is adds


def test_other_tokenizers_are_refused(tmp_path, made):
    core = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("</s>", -2.0)], unk_id=0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    with pytest.raises(ModelError, match="the tokenizer is of type Unigram; only BPE"):
        vocabulary_of(renderer_of(tokenizer), 3)


# ---------------------------------------------------------------- adapters


def adapted(folder: Path, base: Path, **settings: Any) -> tuple[Path, Path]:
    """(adapter folder, the model with it merged)."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj", "o_proj", "down_proj"]} | settings
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that it saves an adapted head's own matrix too
        wrapped.save_pretrained(folder / "adapter")
    wrapped.merge_and_unload().save_pretrained(folder / "merged")
    for file in [*base.glob("tokenizer*"), *base.glob("*.jinja")]:
        (folder / "merged" / file.name).write_bytes(file.read_bytes())
    return folder / "adapter", folder / "merged"


PATTERNS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.o_proj": 3}},
    "head": {"target_modules": ["q_proj", "lm_head"]},
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_lora_holds_what_peft_adds(made, tmp_path, name):
    adapter, merged = adapted(tmp_path, made("llama"), **PATTERNS[name])
    write_gguf_adapter(adapter, made("llama"), tmp_path / "a.gguf")
    fields, _, halves = read(tmp_path / "a.gguf")
    assert fields["general.type"] == "adapter"
    assert (fields["adapter.type"], fields["adapter.lora.alpha"]) == ("lora", 6.0)
    for folder, file in ((made("llama"), "base"), (merged, "merged")):
        write_gguf(folder, tmp_path / f"{file}.gguf", "f32")
    before, after = read(tmp_path / "base.gguf")[2], read(tmp_path / "merged.gguf")[2]
    changed = {weight for weight in before if not np.array_equal(before[weight], after[weight])}
    assert changed == {half.removesuffix(".lora_a") for half in halves if half.endswith("a")}
    for weight in changed:
        a_RI, b_OR = halves[f"{weight}.lora_a"], halves[f"{weight}.lora_b"]
        delta = 6.0 / len(a_RI) * b_OR @ a_RI  # llama.cpp's scale
        np.testing.assert_allclose(before[weight] + delta, after[weight], atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"use_dora": True}, "is a DoRA, with magnitudes, which llama.cpp's adapters cannot hold; merge it"),
        ({"modules_to_save": ["lm_head"]}, "trains modules whole"),
        ({"target_modules": ["embed_tokens"]}, "holds .*embed_tokens.lora_embedding_A, which is not a LoRA on a"),
    ],
)
def test_what_is_more_than_a_lora_on_matrices_is_refused(made, tmp_path, settings, what):
    adapter, _ = adapted(tmp_path, made("llama"), **settings)
    with pytest.raises(ModelError, match=what):
        write_gguf_adapter(adapter, made("llama"), tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


# ---------------------------------------------------------------- in llama.cpp


def rows_for(folder: Path) -> list[tuple[list[int], list[int]]]:
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    return random_rows(vocabulary, count=5)


@needs_llama
@pytest.mark.parametrize("kind", ["byte", "piece"])
@pytest.mark.parametrize("arch", FOLDERS)
def test_llama_cpp_computes_the_model(made, tmp_path, arch, kind):
    if (arch, kind) == ("qwen2", "piece"):
        pytest.skip("transformers gives every Qwen2 folder a tokenizer of its own class")
    folder = made(arch, kind)
    write_gguf(folder, tmp_path / "a.gguf", "f32")
    found = verify_gguf(tmp_path / "a.gguf", folder, "f32", rows_for(folder))
    assert found.largest < 0.003  # Gemma's and GPT-2's activation is a table of 16 bits there
    assert found.greedy > 30
    assert found.texts >= 15
    assert found.chats == 3


@needs_llama
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_within_its_tolerance(made, tmp_path, kind):
    write_gguf(made("qwen3"), tmp_path / "a.gguf", kind)
    found = verify_gguf(tmp_path / "a.gguf", made("qwen3"), kind, rows_for(made("qwen3")))
    assert (found.greedy > 0) is (kind in ("f32", "f16"))
    assert found.facts()["tolerance"] == gguf_check.TOLERANCE[kind]
    assert f"{found.file:.5f} in llama.cpp" in found.said()


@needs_llama
@pytest.mark.parametrize("changes", [LLAMA3, YARN, {**ROPE, "rope_type": "linear", "factor": 4.0}])
def test_long_contexts_are_computed_alike(tmp_path, changes):
    folder = save_model(tmp_path / "m", "llama", tokenizer_of("byte"), rope_parameters=changes)
    write_gguf(folder, tmp_path / "a.gguf", "f32")
    rows = random_rows(400, count=4, prompt=60, answer=50)
    assert verify_gguf(tmp_path / "a.gguf", folder, "f32", rows).largest < 1e-4


@needs_llama
@pytest.mark.parametrize("name", [row[0] for row in SPLITS])
def test_llama_cpp_splits_as_the_name_says(tmp_path, name):
    whole, patterns = OWN[name]
    folder = save_model(tmp_path / "m", "llama", split_tokenizer(patterns, whole))
    write_gguf(folder, tmp_path / "a.gguf", "f16")
    assert read(tmp_path / "a.gguf")[0]["tokenizer.ggml.pre"] == name
    found = verify_gguf(tmp_path / "a.gguf", folder, "f16", random_rows(400, count=2))
    assert found.texts == len(DIFFICULT) - (3 if name in WITHOUT_MARKS else 1)


@needs_llama
@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_spaces_before_texts(tmp_path, scheme):
    tokenizer = piece_tokenizer(SPECIAL[1:], template=CHATML)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    folder = save_model(tmp_path / "m", "llama", tokenizer)
    write_gguf(folder, tmp_path / "a.gguf", "f16")
    # a chat opens with a special token, so a space at the very beginning of texts is none of a chat's
    assert read(tmp_path / "a.gguf")[0]["tokenizer.ggml.add_space_prefix"] is (scheme == "always")
    found = verify_gguf(tmp_path / "a.gguf", folder, "f16", random_rows(400, count=2))
    assert found.chats == 3
    assert (found.apart > 0) is (scheme != "never")


@needs_llama
@pytest.mark.parametrize("name", PATTERNS)
def test_llama_cpp_adds_the_lora(made, tmp_path, name):
    adapter, merged = adapted(tmp_path, made("llama"), **PATTERNS[name])
    write_gguf(made("llama"), tmp_path / "base.gguf", "f32")
    write_gguf_adapter(adapter, made("llama"), tmp_path / "a.gguf")
    rows = rows_for(made("llama"))
    found = verify_gguf(tmp_path / "base.gguf", merged, "f32", rows, lora=tmp_path / "a.gguf")
    assert found.largest < 1e-3
    with pytest.raises(LawBroken, match=r"law 12: base.gguf is not the model"):
        verify_gguf(tmp_path / "base.gguf", merged, "f32", rows)  # without it


@needs_llama
def test_a_file_that_is_not_the_model_is_set_aside_with_its_numbers(made, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_family, "paired", lambda tensor, heads: tensor)
    write_gguf(made("llama"), tmp_path / "a.gguf", "f16")
    with pytest.raises(LawBroken, match=r"law 12: a.gguf is not .*greedy token .* below the model's likeliest"):
        verify_gguf(tmp_path / "a.gguf", made("llama"), "f16", rows_for(made("llama")))
    assert [path.name for path in tmp_path.iterdir()] == ["a.unverified.gguf"]
    write_gguf(made("llama"), tmp_path / "b.gguf", "q8_0")
    with pytest.raises(LawBroken, match=r"the held-out NLL per token is \d\.\d+, that of the model .* allowed in q8_0"):
        verify_gguf(tmp_path / "b.gguf", made("llama"), "q8_0", rows_for(made("llama")))


@needs_llama
def test_long_rows_are_cut_and_none_are_refused(made, tmp_path):
    write_gguf(made("llama"), tmp_path / "a.gguf", "f32")
    long = [([5] * 150, [6] * 20), ([7] * 30, [8] * 300), ([9], [10])]
    found = verify_gguf(tmp_path / "a.gguf", made("llama"), "f32", long)
    assert (found.rows, found.tokens) == (3, 20 + 64 + 1)  # a context of 128
    with pytest.raises(InputError, match="a file in f32 cannot be checked with 0 held-out rows in 128 tokens"):
        verify_gguf(tmp_path / "a.gguf", made("llama"), "f32", [])


@needs_llama
def test_other_tokens_and_other_chats_are_found(made, tmp_path, monkeypatch):
    monkeypatch.setattr(Renderer, "portable", property(lambda renderer: PLAIN))
    write_gguf(made("llama"), tmp_path / "a.gguf", "f16")
    with pytest.raises(LawBroken, match=r"a chat of 1 turns is \d+ tokens and there \d+"):
        verify_gguf(tmp_path / "a.gguf", made("llama"), "f16", rows_for(made("llama")))
    folder = save_model(tmp_path / "m", "llama", split_tokenizer(OWN["gpt-2"][1]))
    monkeypatch.setattr("sparring.export.gguf_tokenizer.splitting", lambda tokenizer, whole: "llama-bpe")
    write_gguf(folder, tmp_path / "b.gguf", "f16")
    with pytest.raises(LawBroken, match=r"is \d+ tokens \[.*… and there \d+ \["):
        verify_gguf(tmp_path / "b.gguf", folder, "f16", random_rows(400, count=2))


@needs_llama
def test_a_file_that_cannot_be_loaded_is_set_aside(made, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF and nothing more")
    with pytest.raises(LawBroken, match=r"llama\.cpp cannot load it"):
        verify_gguf(tmp_path / "a.gguf", made("llama"), "f16", rows_for(made("llama")))
    assert (tmp_path / "a.unverified.gguf").exists()


def test_ties_are_counted_and_worse_tokens_named(made):
    """The model's own second choices, as if llama.cpp had made them."""
    folder = made("llama")
    rows = rows_for(folder)[:1]
    renderer = renderer_of(tokenizer_of("byte"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        top = model(torch.tensor([rows[0][0]])).logits[0, -1].topk(2)
    gap, silent = float(top.values[0] - top.values[1]), [np.zeros(len(rows[0][1]))]
    for tie, ties, wrong in ((gap * 1.1, 1, 0), (gap * 0.9, 0, 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(gguf_check.TIE, "f16", tie)
            heard = Heard(silent, [[int(top.indices[1])]], [], 0, 0, 0)
            found, differ = gguf_check._compare(folder, renderer, "f16", rows, heard, {})
        assert (found.ties, len(differ), found.greedy) == (ties, wrong, 1)


@needs_llama
@pytest.mark.skipif(not STORIES.exists(), reason="stories260K is not here")
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_a_real_model(tmp_path, kind):
    write_gguf(STORIES, tmp_path / "a.gguf", kind)
    renderer = renderer_of(PreTrainedTokenizerFast.from_pretrained(STORIES))
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    ids = renderer.prompt((Message("user", text),), chat=False)
    found = verify_gguf(tmp_path / "a.gguf", STORIES, kind, [(ids[:8], ids[8:])])
    assert found.model < 2.0
    assert found.chats == 0
