"""Libraries that an export needs and the project does not: found, or asked for in one sentence."""

from __future__ import annotations

from importlib.util import find_spec

from sparring.errors import InputError

# What is imported: what is installed.
PACKAGES = {"gguf": "gguf", "llama_cpp": "llama-cpp-python"}


def need(*modules: str) -> None:
    """Raise InputError with the command that installs what is missing; called before anything is written."""
    missing = [PACKAGES[name] for name in modules if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"GGUF needs {' and '.join(missing)}, which {verb} not installed; install with: "
            "pip install 'sparring[gguf]' (llama-cpp-python is built from source, some ten minutes with a C++ "
            "compiler); --unverified exports without it"
        )
