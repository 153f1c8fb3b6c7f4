"""The sections of the config that name a scorer: `scorer: match`, or `scorer: {name: model, path: runs/reward}`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Field, field_validator

from sparring.evaluation.extract import extractor
from sparring.section import PositiveFloat, Section


class ScorerSettings(Section):
    """Settings of a scorer; each has its own."""

    name: str


class ModelScore(ScorerSettings):
    """A reward model that `sparring reward` made."""

    name: Literal["model"] = "model"
    path: str = Field(min_length=1, description="the run that made it, or its folder")


class ImplicitScore(ScorerSettings):
    """β·(log p_θ - log p_ref): what a player's likelihoods say of an answer, with no further training."""

    name: Literal["implicit"] = "implicit"
    run: str = Field(min_length=1, description="a run's folder")
    player: str = Field("best", description="θ: best, sft, base, or an iteration's number")
    reference: str = Field("sft", description="the reference: the same names")
    beta: PositiveFloat = Field(1.0, description="1: the score is a difference of log-probs in nats")
    reduction: Literal["sum", "mean"] = Field("sum", description="over an answer's token log-probs")


class MatchScore(ScorerSettings):
    """1 if what counts in an answer is that of the real one, else 0."""

    name: Literal["match"] = "match"
    match: str = Field("whole", description="whole, last_number, or a regular expression, as evaluation.match")

    @field_validator("match")
    @classmethod
    def _readable(cls, match: str) -> str:
        try:
            extractor(match)
        except ValueError as error:
            raise ValueError(str(error).replace("evaluation.match", "scorer.match", 1)) from None
        return match


class RegexScore(ScorerSettings):
    """1 if a regular expression is found in the answer, else 0."""

    name: Literal["regex"] = "regex"
    pattern: str
    whole: bool = Field(False, description="the whole answer must match")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f'scorer.pattern "{pattern}" is not a regular expression ({error}); correct it, or escape its special '
                "characters"
            ) from None
        return pattern


class FunctionScore(ScorerSettings):
    """A Python function (prompt, answer, real) → number, by its import path. It runs code of yours."""

    name: Literal["function"] = "function"
    path: str = Field(description="module:function; modules in the working folder are found too")

    @field_validator("path")
    @classmethod
    def _import_path(cls, path: str) -> str:
        parts = path.split(":")
        if len(parts) != 2 or not all(name.isidentifier() for part in parts for name in part.split(".")):
            raise ValueError(f'scorer.path "{path}" is not an import path; give module:function')
        return path


class ValidityScore(ScorerSettings):
    """The laboratory's own: 1 if an answer that ended is one of its prompt's valid ones, else 0."""

    name: Literal["validity"] = "validity"


SETTINGS: tuple[type[ScorerSettings], ...] = (
    ModelScore,
    ImplicitScore,
    MatchScore,
    RegexScore,
    FunctionScore,
    ValidityScore,
)


def _named(value: Any) -> Any:
    """`scorer: validity` is `scorer: {name: validity}`."""
    return {"name": value} if isinstance(value, str) else value


if TYPE_CHECKING:
    ScorerConfig = ScorerSettings
else:
    ScorerConfig = Annotated[
        Annotated[Union[SETTINGS], Field(discriminator="name")],  # noqa: UP007
        BeforeValidator(_named),
    ]
