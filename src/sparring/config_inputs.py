"""What a run is given: the sections `model` and `data` of the config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sparring.section import NonNegativeFloat, PositiveInt, Section


class ModelConfig(Section):
    """The frozen base and its tokenizer."""

    base: str = Field("laboratory", description="a local folder, a hub id, or `laboratory`")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="computed in, and of what is not quantised; auto: bf16 on CUDA (fp16 on GPUs without it) and on "
        "CPUs fast at it, else fp32",
    )
    quantise: Literal["none", "nf4", "int8"] = Field(
        "none", description="hold the base's linear layers in 4 or 8 bits, through bitsandbytes; the head stays"
    )
    double_quant: bool = Field(True, description="nf4: quantise the scales too")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    template: str = Field("auto", description="auto (the tokenizer's own, else plain), plain, chatml, or a .jinja file")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


class DataConfig(Section):
    """Prompts and real answers."""

    train: str = Field("laboratory", description="a file, a folder, a hub id, or `laboratory`")
    eval: str | None = Field(None, description="held-out data; by default cut from train")
    subset: str | None = Field(
        None, description="configuration name of a hub data set; laboratory: noisy, or preferences"
    )
    split: str = Field("train", description="split and slice: train[:1%], [:2000], train[10%:20%]")
    eval_split: str | None = Field(None, description="split and slice of the held-out data")
    eval_size: float = Field(0.1, gt=0, description="held out of train: a share below 1, else a count of prompts")
    eval_limit: PositiveInt = Field(200, description="at most this many held-out prompts are used")
    test: str | None = Field(None, description="data for the last measurement, which chooses nothing")
    test_split: str | None = Field(None, description="split and slice of the test data")
    test_size: NonNegativeFloat = Field(
        0.0, description="cut from train, the same prompts for every seed: a share below 1, else a count; 0: no test"
    )
    test_limit: PositiveInt = Field(500, description="at most this many test prompts are used")
    format: Literal[
        "auto",
        "messages",
        "sharegpt",
        "alpaca",
        "prompt_completion",
        "question_answer",
        "text",
        "spin",
        "chosen_rejected",
        "comparison",
    ] = "auto"
    columns: dict[str, str] = Field(default_factory=dict, description="our name: the file's name")
    turns: Literal["last", "first", "all"] = Field("last", description="which assistant turns are answers")
    render: Literal["auto", "chat", "text"] = Field(
        "auto", description="chat: with the template; text: answer right after prompt; auto: by format"
    )
    system: str | None = Field(None, description="a system message for rows that have none")
    separator: str = Field("auto", description="what ends a document in plain text; auto: <|endoftext|> or blank line")
    opening: float = Field(0.25, gt=0, description="plain text: words given as the prompt, or a share below 1")
    max_length: PositiveInt | None = Field(None, description="prompt + answer in tokens; default: the model's context")
    too_long: Literal["drop", "truncate", "error"] = Field(
        "drop", description="truncate cuts the answer and leaves its end token out"
    )
    bad_rows: Literal["error", "skip"] = "error"
    answers: Literal["auto", "chosen"] = Field(
        "auto",
        description="which answers are real; chosen: those of preference pairs, each once; auto: the same where rows "
        "hold nothing but pairs",
    )
    ties: Literal["error", "drop", "half"] = Field(
        "error", description="preferences: where people chose neither answer; half: each is chosen by half"
    )
