"""How players are judged: the section `evaluation` of the config."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from sparring.evaluation.extract import extractor
from sparring.section import PositiveFloat, PositiveInt, Section


class PromptingConfig(Section):
    """What a test prompt is wrapped in: what no training gives."""

    style: Literal["none", "rules", "few_shot", "chain_of_thought", "reflection"] = "none"
    rules: str | None = Field(None, description="a text file with the rule sheet; default: a general one")
    shots: PositiveInt = Field(4, description="examples from the training data, for few_shot")


class EvaluationConfig(Section):
    """How players are judged on held-out prompts."""

    select: Literal["nll", "exact_kl", "match", "scorer"] = Field(
        "nll",
        description="the held-out metric that chooses the best iteration; exact_kl: laboratory only; match: the share "
        "of sampled answers that match the real one, needs `match`; scorer: the scorer's mean over them",
    )
    samples: PositiveInt = Field(1, description="answers sampled per held-out prompt")
    match: str | None = Field(
        None,
        description="what of an answer must equal the real one's: whole, last_number, or a regular expression, whose "
        "last match counts (its first group, if it has one)",
    )
    best_of: PositiveInt = Field(
        1,
        description="answers to each test prompt, of which the scorer chooses one; needs a scorer and test prompts; "
        "above 1 `samples` does not count in the test",
    )
    temperature: PositiveFloat = Field(1.0, description="logits are divided by it when players are judged")
    prompting: PromptingConfig = Field(default_factory=lambda: PromptingConfig())
    show: Annotated[int, Field(ge=0)] = Field(6, description="prompts shown side by side in the report")

    @field_validator("match")
    @classmethod
    def _readable(cls, match: str | None) -> str | None:
        if match is not None:
            extractor(match)  # raises ValueError
        return match


def check_select(key: str, select: str, match: str | None, in_laboratory: bool) -> None:
    """Raise ValueError where a metric cannot choose the best iteration. key: where it stands."""
    if select == "exact_kl" and not in_laboratory:
        raise ValueError(
            f'{key} "exact_kl" is known only in the laboratory (data.train laboratory, no data.eval, '
            "rendered as text); use nll"
        )
    if select == "match" and match is None:
        raise ValueError(
            f'{key} is "match", but evaluation.match does not say what must match; give whole, '
            "last_number or a regular expression"
        )


def check_best_of(best_of: int, tested: bool, scored: bool) -> None:
    """Raise ValueError for a choice among test answers where there is no test, or nothing to choose by."""
    if best_of == 1:
        return
    if not tested:
        raise ValueError(
            f"evaluation.best_of {best_of} chooses among answers to test prompts, and there are none; give data.test, "
            "data.test_split or data.test_size"
        )
    if not scored:
        raise ValueError(
            f"evaluation.best_of {best_of} needs something that says which answer is best; give scorer (model, "
            "implicit, match, regex or function), or evaluation.match"
        )


def check_scorer_uses(select: str, play: Any, given: bool, stop: str = "none") -> None:
    """Raise ValueError for what asks a scorer where there is none. play: the section `selfplay`; stop: `sft.stop`."""
    keys = {
        "sft.stop scorer": stop == "scorer",
        "evaluation.select scorer": select == "scorer",
        "selfplay.stop_score_drop": play.stop_score_drop is not None,
        "selfplay.keep_pairs better": play.keep_pairs == "better",
    }
    asked = next((key for key, used in keys.items() if used), None)
    if asked and not given:
        raise ValueError(
            f"{asked} needs something that says how good an answer is; give scorer (model, implicit, match, regex, "
            "function or validity)"
        )
    if play.stop_score_drop and not play.checks_per_iteration:
        raise ValueError(
            "selfplay.stop_score_drop is asked at the checks of an iteration, but selfplay.checks_per_iteration is 0; "
            "give it a value above 0"
        )
