"""What can be done with each method's players: the table METHODS in words, for the terminal and for the docs."""

from __future__ import annotations

from pydantic.fields import FieldInfo

from sparring.methods import METHODS, Method, known

HEADER = [
    "method", "fresh = base", "packed rows", "merges", "hold", "4/8-bit base", "several GPUs", "GGUF", "vLLM",
    "sft.lr tried",
]  # fmt: skip
MARK = {True: "yes", False: "no"}


def support_rows() -> list[list[str]]:
    """A row for every method under `HEADER`."""
    return [_row(name, row) for name, row in METHODS.items()]


def support_markdown() -> str:
    """The same as a Markdown table."""
    lines = [HEADER, ["---"] * len(HEADER), *support_rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def about(name: str) -> tuple[str, list[list[str]]]:
    """(what a method is, in a few lines; its settings: name, default, what it is); ConfigError if it is not known."""
    row = known(name)
    rates = ", ".join(f"{rate:g}" for rate in row.lr)
    lines = [f"{name}: {row.what}", f"source: {row.source}", f"learning rates worth trying in SFT: {rates}"]
    fields = {key: field for key, field in row.settings.model_fields.items() if key != "name"}
    settings = [[f"method.{key}", _default(field), field.description or ""] for key, field in fields.items()]
    return "\n".join(lines), settings


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "" if value in (None, [], {}) else f"{value:g}" if isinstance(value, float) else str(value)


def _row(name: str, row: Method) -> list[str]:
    holds = [hold for hold in ("continue", "merge", "stack") if row.holds(hold)]
    return [
        name,
        MARK[row.starts_as_base],
        MARK[row.packs],
        "is whole" if row.whole else MARK[row.merges],
        ", ".join(holds),
        MARK[row.quantised],
        MARK[row.processes],
        _home(row, row.gguf),
        _home(row, row.vllm),
        ", ".join(f"{rate:g}" for rate in row.lr),
    ]


def _home(row: Method, way: str) -> str:
    """How a player gets into another engine."""
    if way == "no":
        return "no"
    return "the model" if row.whole else "adapter or merged" if way == "adapter" else "merged"
