"""The logic behind pg_llm's SQL functions, one module a subsystem; loaded by `llm._boot()`, never from `sys.path`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Import a subsystem's module when a function first asks for it (PEP 562)."""
    try:
        return import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        raise AttributeError(f"pg_llm has no module {name}") from error
