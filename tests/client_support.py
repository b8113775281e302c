"""What the tests of the Python client share."""

from __future__ import annotations

from typing import Any

from langgraph.checkpoint.base import empty_checkpoint

from pg_llm_client import PgLlmSaver


def of(thread: str, **more: str) -> Any:
    """Return a configuration."""
    return {"configurable": {"thread_id": thread, "checkpoint_ns": "", **more}}


def put(saver: PgLlmSaver, config: Any, **values: Any) -> Any:
    """Store a checkpoint in which all these values are new, and return its configuration."""
    versions = dict.fromkeys(values, saver.get_next_version(None, None))
    checkpoint = empty_checkpoint() | {"channel_values": values, "channel_versions": versions}
    return saver.put(config, checkpoint, {"source": "loop", "step": 1}, versions)


def values(saver: PgLlmSaver, config: Any) -> dict[str, Any]:
    """Return what a checkpoint holds."""
    found = saver.get_tuple(config)
    assert found
    return found.checkpoint["channel_values"]
