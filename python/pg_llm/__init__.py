"""The logic behind pg_llm's SQL functions, one module a subsystem; loaded by `llm._boot()`, never from `sys.path`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Import a subsystem's module when a function first asks for it (PEP 562)."""
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        from .spi import UndefinedFile

        version = __name__.removeprefix("pg_llm_").replace("_", ".")
        raise UndefinedFile(
            f"the Python package of pg_llm {version} cannot be read: {error}",
            hint=f"On this server run make install from the sources of pg_llm {version}.",
        ) from error
