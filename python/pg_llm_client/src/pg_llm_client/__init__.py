"""LangGraph checkpoints, LangChain chat histories and vector stores in PostgreSQL, by the extension pg_llm.

LangGraph and LangChain are needed only by the class that is for them, and imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .history import PgLlmChatMessageHistory
    from .saver import PgLlmSaver
    from .vectorstore import PgLlmVectorStore
    from .worker import Worker

__all__ = ["PgLlmChatMessageHistory", "PgLlmSaver", "PgLlmVectorStore", "Worker"]

_MODULES = {"PgLlmChatMessageHistory": "history", "PgLlmSaver": "saver", "PgLlmVectorStore": "vectorstore", "Worker": "worker"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
