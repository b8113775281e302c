"""LangGraph checkpoints and LangChain chat histories in PostgreSQL, by the extension pg_llm.

LangGraph and LangChain are needed only by the class that is for them, and imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .history import PgLlmChatMessageHistory
    from .saver import PgLlmSaver

__all__ = ["PgLlmChatMessageHistory", "PgLlmSaver"]

_MODULES = {"PgLlmChatMessageHistory": "history", "PgLlmSaver": "saver"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
