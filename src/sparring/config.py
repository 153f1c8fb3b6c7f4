"""The config: what a run is. Pydantic models, read from YAML, with dotted overrides.

Unknown keys are refused with the nearest known name; numbers written as text (`lr: 1e-5` is text to
YAML) are numbers; sizes are checked. A key that may differ per iteration takes one value or a list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union

from pydantic import BeforeValidator, Field, model_validator

from sparring.config_compare import ArmConfig, AxisConfig, CompareConfig
from sparring.config_dpo import DPOConfig
from sparring.config_evaluation import (
    EvaluationConfig,
    PromptingConfig,
    check_best_of,
    check_scorer_uses,
    check_select,
)
from sparring.config_inputs import DataConfig, ModelConfig
from sparring.config_reinforce import ReinforceConfig
from sparring.config_reward import RewardConfig
from sparring.config_selfplay import PER_ITERATION, SelfPlayConfig, at
from sparring.config_sft import LATER_SFT, SFTConfig
from sparring.methods import METHODS, Settings, method_of
from sparring.methods.lora import LoRA
from sparring.rewards.settings import ScorerConfig
from sparring.section import NonNegativeFloat, PositiveFloat, PositiveInt, Section

__all__ = [
    "ArmConfig",
    "AxisConfig",
    "CompareConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "MethodConfig",
    "ModelConfig",
    "PromptingConfig",
]

T = TypeVar("T")
SLOWER = 20  # self-play's learning rate, where it is not given, is so many times lower than fine-tuning's


def _method(value: Any) -> Any:
    """`method: lora` is `method: {name: lora}`, and lora is what is meant if no name is given."""
    if isinstance(value, str):
        return {"name": value}
    return {"name": "lora", **value} if isinstance(value, dict) else value


# How a player differs from the base: the section of one of the methods in the table, told apart by its name.
if TYPE_CHECKING:
    MethodConfig = Settings
else:
    MethodConfig = Annotated[
        Annotated[Union[tuple(row.settings for row in METHODS.values())], Field(discriminator="name")],  # noqa: UP007
        BeforeValidator(_method),
    ]


def _name(tree: Any) -> str:
    """Which method a config that is not validated yet asks for."""
    given = tree.get("method") if isinstance(tree, dict) else None
    name = given.get("name", "lora") if isinstance(given, dict) else getattr(given, "name", given or "lora")
    return name if isinstance(name, str) else ""


class GenerationConfig(Section):
    """How players answer. Anything but temperature 1 and top_p 1 leaves the theory, and is said."""

    max_new_tokens: PositiveInt | None = Field(None, description="default: the longest real answer")
    temperature: NonNegativeFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    merge: bool = Field(True, description="decode with the adapter merged into the base; false: attached, slower")
    shard_size: PositiveInt = Field(512, description="prompts per file; a killed run repeats one file")
    batch_tokens: PositiveInt | None = Field(
        None, description="prompt + answer tokens decoded at once; default: what a cache of 1 GiB (CUDA: 8 GiB) holds"
    )


class OptimiserConfig(Section):
    """Shared by SFT and self-play."""

    name: Literal["adamw", "rmsprop", "sgd"] = "adamw"
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    micro_batch_tokens: PositiveInt = Field(
        8192, description="tokens per forward pass at most; training takes fewer where they would need much memory"
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto", description="compute layers again instead of keeping them; auto: if the longest pair needs it"
    )
    save_every: PositiveInt | None = Field(
        None, description="optimiser steps between checkpoints; default: about one a minute"
    )


class Config(Section):
    """A whole run."""

    name: str = Field("run", min_length=1, description="the run's folder under `runs`; default: the file's name")
    runs: str = "runs"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    threads: PositiveInt | None = Field(None, description="CPU threads of each process; default: the container's share")
    track: list[Literal["tensorboard", "trackio", "wandb", "mlflow"]] = Field(default_factory=list)
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    start: str | None = Field(
        None, description="θ_0: the folder of an adapter, made here or by PEFT, TRL or Unsloth; there is no SFT then"
    )
    method: MethodConfig = Field(default_factory=LoRA)
    sft: SFTConfig = Field(default_factory=SFTConfig)
    selfplay: SelfPlayConfig = Field(default_factory=SelfPlayConfig)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    optimiser: OptimiserConfig = Field(default_factory=OptimiserConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    dpo: DPOConfig | None = Field(None, description="what `sparring dpo` does instead of self-play")
    reward: RewardConfig | None = Field(None, description="how `sparring reward` trains; default: as it stands there")
    scorer: ScorerConfig | None = Field(None, description="what says how good an answer is")
    compare: CompareConfig | None = Field(None, description="arms that `sparring compare` trains beside self-play")
    reinforce: ReinforceConfig | None = Field(None, description="what `sparring reinforce` does instead of self-play")

    @model_validator(mode="before")
    @classmethod
    def _rates_of_the_method(cls, tree: Any) -> Any:
        """Methods need learning rates that differ by orders of magnitude: those not given are the method's."""
        name = _name(tree)
        if name not in METHODS or name == "lora" or tree.get("start") is not None:
            return tree
        sft, play = (tree.get(part) or {} for part in ("sft", "selfplay"))
        rate = METHODS[name].lr[1]
        if isinstance(sft, dict) and isinstance(play, dict):
            tree = {**tree, "sft": {"lr": rate, **sft}, "selfplay": {"lr": rate / SLOWER, **play}}
        return tree

    @model_validator(mode="before")
    @classmethod
    def _whole_in_fp32(cls, tree: Any) -> Any:
        """Where every weight trains, small updates would be lost in 16 bits: `auto` is fp32 then."""
        name, model = _name(tree), (tree.get("model") or {}) if isinstance(tree, dict) else None
        if isinstance(model, dict) and name in METHODS and METHODS[name].whole and model.get("dtype", "auto") == "auto":
            return {**tree, "model": {**model, "dtype": "fp32"}}
        return tree

    @model_validator(mode="after")
    def _method_fits(self) -> Config:
        row, hold = method_of(self.method), self.selfplay.hold
        if not row.holds(hold):
            able = [way for way in ("continue", "merge", "stack") if row.holds(way)]
            raise ValueError(
                f'selfplay.hold "{hold}" is not for method {row.name}, whose players cannot be '
                f"{'merged' if hold == 'merge' else 'stacked'} under another; give {' or '.join(able)}"
            )
        if self.model.quantise != "none" and not row.quantised:
            raise ValueError(
                f"model.quantise {self.model.quantise} is not for method {row.name}, which needs the base's weights as "
                "they are; give another method, or model.quantise none"
            )
        if row.whole and self.model.dtype == "fp16":
            raise ValueError(
                "model.dtype fp16 is not for method full: weights that train in 16 bits lose what a step adds; give "
                "fp32, or another method"
            )
        if hold != "continue" and self.method.beside:
            raise ValueError(
                f"method.modules_to_save trains whole modules, which selfplay.hold {hold} cannot put under others; set "
                "hold to continue"
            )
        if self.optimiser.weight_decay and row.learns < 1:
            raise ValueError(
                f"optimiser.weight_decay {self.optimiser.weight_decay:g} is not for method {row.name}, half of which "
                "must stay as it is; set it to 0"
            )
        if self.selfplay.keep is not None and hold != "continue":
            raise ValueError(
                f"selfplay.keep {self.selfplay.keep} drops players that later ones stand on with selfplay.hold {hold}; "
                "leave keep out, or set hold to continue"
            )
        return self

    @model_validator(mode="after")
    def _scorer_is_there(self) -> Config:
        check_scorer_uses(self.evaluation.select, self.selfplay, self.scorer is not None, self.sft.stop)
        data, judged = self.data, self.evaluation
        tested = bool(data.test or data.test_split or data.test_size)
        check_best_of(judged.best_of, tested, bool(self.scorer or self.in_laboratory or judged.match))
        return self

    @model_validator(mode="after")
    def _lists_fit(self) -> Config:
        play = self.selfplay
        for key in PER_ITERATION:
            value = getattr(play, key)
            if isinstance(value, list) and len(value) != play.iterations:
                raise ValueError(
                    f"selfplay.{key} lists {len(value)} values for {play.iterations} iterations; "
                    "give one value, or one per iteration"
                )
        for t in range(play.iterations):
            if at(play.beta, t) == 0 and play.loss == "ipo":
                raise ValueError(
                    f"selfplay.loss ipo divides by selfplay.beta, which is 0 in iteration {t}; give it a value above 0"
                )
            if at(play.beta, t) == 0 and at(play.anchor, t) == 0:
                raise ValueError(
                    f"selfplay.beta and selfplay.anchor are both 0 in iteration {t}, so nothing would be learnt; "
                    "give one of them a value above 0"
                )
        chosen_by = {"evaluation.select": self.evaluation.select}
        if self.reinforce is not None:
            chosen_by["reinforce.select"] = self.reinforce.select
        for key, select in chosen_by.items():
            check_select(key, select, self.evaluation.match, self.in_laboratory)
        thinks = self.evaluation.prompting.style in ("chain_of_thought", "reflection")
        if thinks and self.evaluation.select != "match" and play.iterations:
            raise ValueError(
                f"evaluation.prompting.style {self.evaluation.prompting.style} puts thinking before the answer, so "
                "real answers have no likelihood; set evaluation.select to match, and evaluation.match"
            )
        return self

    @property
    def in_laboratory(self) -> bool:
        """Whether the data are the laboratory's own, so that p_data is known."""
        data = self.data
        own = data.train == "laboratory" and data.eval is None and data.test is None
        return own and data.render != "chat"


# Keys that came later: they count where they are used, so that older run folders can be gone on with.
LATER = ("stop_score_drop", "keep_pairs")  # of selfplay; of sft: LATER_SFT

# Keys that do not change a run's result but for rounding, or whose content is fingerprinted instead (paths).
NEUTRAL = {
    "name": True,
    "runs": True,
    "threads": True,
    "track": True,
    "start": True,
    "model": {"base", "revision", "template", "quantise", "double_quant"},
    "data": {"train", "eval", "test", "ties", "answers"},  # ties: where there are preferences, identify adds it
    "sft": {*LATER_SFT},
    "selfplay": {"keep", *LATER},
    "evaluation": {"show": True, "best_of": True, "prompting": {"rules"}},  # best_of: counts in the test
    "compare": True,
    "reinforce": True,  # these three decide only what their verbs make (kinds.py)
    "dpo": True,
    "reward": True,
    "scorer": True,  # its content counts where it is used
    "generation": {"batch_tokens"},
    "optimiser": {"micro_batch_tokens", "gradient_checkpointing", "save_every"},
}


def decisive(config: Config) -> dict[str, Any]:
    """The part of a config that decides a run's result: a run folder is resumed only if it is the same."""
    found = config.model_dump(mode="json", exclude=NEUTRAL)  # type: ignore[arg-type]
    given = {key: getattr(config.selfplay, key) for key in LATER}
    found["selfplay"] |= {key: value for key, value in given.items() if value not in (None, "all")}
    if config.sft.stop != "none":
        found["sft"] |= {key: getattr(config.sft, key) for key in LATER_SFT}
    return found
