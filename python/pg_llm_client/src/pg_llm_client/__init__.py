"""LangGraph checkpoints, LangChain chat histories, vector stores and caches in PostgreSQL, by the extension pg_llm.

LangGraph and LangChain are needed only by the class that is for them, and imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bytestore import PgLlmByteStore
    from .history import PgLlmChatMessageHistory
    from .llm_cache import PgLlmCache, PgLlmSemanticCache
    from .saver import PgLlmSaver
    from .vectorstore import PgLlmVectorStore
    from .worker import Worker

__all__ = ["PgLlmByteStore", "PgLlmCache", "PgLlmChatMessageHistory", "PgLlmSaver", "PgLlmSemanticCache", "PgLlmVectorStore", "Worker"]

_MODULES = {
    "PgLlmByteStore": "bytestore",
    "PgLlmCache": "llm_cache",
    "PgLlmChatMessageHistory": "history",
    "PgLlmSaver": "saver",
    "PgLlmSemanticCache": "llm_cache",
    "PgLlmVectorStore": "vectorstore",
    "Worker": "worker",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
