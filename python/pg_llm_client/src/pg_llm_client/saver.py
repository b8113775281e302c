"""A LangGraph checkpointer."""

from __future__ import annotations

import random
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langgraph.checkpoint.base import (
    EXCLUDED_METADATA_KEYS,
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
)

from . import text
from .connection import Row, Server, Steps
from .values import Known, Memory, Parcel, loaded

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.serde.base import SerializerProtocol

    from .connection import AnyConnection

#: What a listing asks for at once: enough to be fast, few enough for memory.
PAGE = 50

_TUPLE = (
    "r.thread_id, r.checkpoint_ns, r.checkpoint_id, r.parent_checkpoint_id, r.checkpoint::text, r.metadata::text, r.channels::text, r.known,"
    " r.contents, r.write_tasks, r.write_channels, r.write_types, r.write_contents"
)


class PgLlmSaver(BaseCheckpointSaver[Any]):
    """Checkpoints in a database with pg_llm.

    `connection` is a psycopg `Connection`, `ConnectionPool`, `AsyncConnection` or `AsyncConnectionPool`; asynchronous methods take any of them, the
    others a synchronous one. Each call is one statement. With `autocommit=True`, as LangGraph needs it when a run may be interrupted, it is one
    transaction and one round trip; otherwise a connection's open transaction gets it, and a pool commits it.

    `tenant` is given to `llm.set_tenant()` in each call, `user_id` to `llm.set_user()`; neither is needed where the connection's role is bound to
    a tenant. `memory` is how many bytes of values to remember, so that only what a step adds is sent to the server.
    """

    def __init__(
        self,
        connection: AnyConnection,
        *,
        tenant: str | None = None,
        user_id: UUID | None = None,
        serde: SerializerProtocol | None = None,
        memory: int = 64 * 2**20,
    ) -> None:
        super().__init__(serde=serde)
        self._server = Server(connection, tenant=tenant, user_id=user_id)
        self._memory = Memory(memory)

    # What LangGraph asks for, by the names of its interface

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return a checkpoint: that of the configuration's checkpoint_id, else the latest of the thread."""
        return self._server.run(self._get(config))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """As `get_tuple`."""
        return await self._server.arun(self._get(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - the interface's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Yield checkpoints, newest first: of a thread, or all; whose metadata contains `filter`; older than `before`; at most `limit`."""
        for steps in self._pages(config, filter, before, limit):
            yield from self._server.run(steps)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - the interface's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """As `list`."""
        for steps in self._pages(config, filter, before, limit):
            for found in await self._server.arun(steps):
                yield found

    def put(self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata, new_versions: ChannelVersions) -> RunnableConfig:
        """Store a checkpoint that follows the configuration's, and return its configuration."""
        return self._server.run(self._put(config, checkpoint, metadata, new_versions))

    async def aput(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata, new_versions: ChannelVersions
    ) -> RunnableConfig:
        """As `put`."""
        return await self._server.arun(self._put(config, checkpoint, metadata, new_versions))

    def put_writes(self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = "") -> None:
        """Store what a task wrote, before its step has ended."""
        self._server.run(self._put_writes(config, writes, task_id, task_path))

    async def aput_writes(self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = "") -> None:
        """As `put_writes`."""
        await self._server.arun(self._put_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread and all that is only its."""
        self._server.run(_call("delete_checkpoint_thread", "text", str(thread_id)))

    async def adelete_thread(self, thread_id: str) -> None:
        """As `delete_thread`."""
        await self._server.arun(_call("delete_checkpoint_thread", "text", str(thread_id)))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints that runs made."""
        self._server.run(_call("delete_checkpoint_runs", "text[]", [str(run) for run in run_ids]))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """As `delete_for_runs`."""
        await self._server.arun(_call("delete_checkpoint_runs", "text[]", [str(run) for run in run_ids]))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread to a new one."""
        self._server.run(_call("copy_checkpoint_thread", "text, text", str(source_thread_id), str(target_thread_id)))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """As `copy_thread`."""
        await self._server.arun(_call("copy_checkpoint_thread", "text, text", str(source_thread_id), str(target_thread_id)))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete old checkpoints: all but the latest of each namespace and what it is made of (`keep_latest`), or all (`delete`)."""
        self._server.run(_call("prune_checkpoints", "text[], text", _names(thread_ids), strategy))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """As `prune`."""
        await self._server.arun(_call("prune_checkpoints", "text[], text", _names(thread_ids), strategy))

    def get_next_version(self, current: Any, channel: None) -> Any:
        """Return the next version of a channel: a number, since what a version stands for is known by the checkpoint that has it.

        Threads that were brought from another saver go on with the form of versions that they have, which must not be mixed.
        """
        if isinstance(current, str):
            return f"{int(current.split('.')[0]) + 1:032}.{random.random():016}"  # noqa: S311 - tells forks apart, keeps no secret
        return (current or 0) + 1

    # How

    def _get(self, config: RunnableConfig) -> Steps[CheckpointTuple | None]:
        thread, namespace = _place(config)
        before = self._memory.get((thread, namespace))
        known = text.dumps({channel: [value.log, value.number, value.digest] for channel, value in before.items()})
        rows = yield _TUPLE, "get_checkpoint", "text, text, text, jsonb", [thread, namespace, get_checkpoint_id(config), known]
        if not rows:
            return None
        found, values = self._loaded(rows[0], before)
        self._memory.put((thread, namespace), values)
        return found

    def _pages(
        self, config: RunnableConfig | None, wanted: dict[str, Any] | None, before: RunnableConfig | None, limit: int | None
    ) -> Iterator[Steps[Sequence[CheckpointTuple]]]:
        """Yield the steps to each page; the next page begins where the last one, which must have been read, ended."""
        place = config["configurable"] if config else {}
        last = get_checkpoint_id(before) if before else None
        only = get_checkpoint_id(config) if config else None
        filtered = text.dumps(wanted or {})
        found: list[CheckpointTuple] = []

        def page(size: int | None) -> Steps[Sequence[CheckpointTuple]]:
            rows = yield (
                _TUPLE,
                "list_checkpoints",
                "text, text, text, jsonb, text, bigint",
                [place.get("thread_id"), place.get("checkpoint_ns"), only, filtered, last, size],
            )
            found[:] = [self._loaded(row, {})[0] for row in rows]
            return tuple(found)

        # Only ids of one namespace of one thread are all different, so that one of them is a place to go on from.
        if place.get("thread_id") is None or place.get("checkpoint_ns") is None:
            yield page(limit)
            return
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            yield page(size)
            if len(found) < size:
                return
            last = found[-1].config["configurable"]["checkpoint_id"]
            left = None if left is None else left - size

    def _put(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata, new_versions: ChannelVersions
    ) -> Steps[RunnableConfig]:
        thread, namespace = _place(config)
        values = checkpoint["channel_values"]
        frame = text.dumps({key: value for key, value in checkpoint.items() if key not in ("channel_values", "id")})
        about = text.dumps(_metadata(config, metadata))
        unchanged = [channel for channel in values if channel not in new_versions]
        before = self._memory.get((thread, namespace))
        parcel = Parcel()
        for channel in values:
            if channel in new_versions:
                parcel.add(channel, values[channel], before.get(channel), self.serde.dumps_typed)
        for _ in range(3):
            ((stored, channels, missing),) = yield (
                "r.stored, r.channels::text, r.missing",
                "put_checkpoint",
                "text, text, text, text, jsonb, jsonb, jsonb, bytea[], text[]",
                [
                    thread, namespace, checkpoint["id"], get_checkpoint_id(config),
                    frame, about, text.dumps(parcel.channels), parcel.contents, unchanged,
                ],
            )  # fmt: skip
            if stored:
                self._memory.put((thread, namespace), parcel.known(text.loads(channels)))
                return _config(thread, namespace, checkpoint["id"])
            # The parent has no such value (any more), or the server no such piece: say all of it.
            changed = [*(channel for channel in parcel.channels if channel not in missing), *missing]
            whole = Parcel()
            for channel in changed:
                whole.add(channel, values[channel], None if channel in missing else before.get(channel), self.serde.dumps_typed)
            parcel = whole
            unchanged = [channel for channel in unchanged if channel not in missing]
        raise RuntimeError(f"checkpoint {checkpoint['id']} cannot be stored: the server keeps asking for the values of {', '.join(missing)}")

    def _put_writes(self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str) -> Steps[None]:
        thread, namespace = _place(config)
        dumped = [self.serde.dumps_typed(value) for _, value in writes]
        yield (
            "r",
            "put_checkpoint_writes",
            "text, text, text, text, text, integer[], text[], text[], bytea[]",
            [
                thread, namespace, config["configurable"]["checkpoint_id"], task_id, task_path,
                [WRITES_IDX_MAP.get(channel, place) for place, (channel, _) in enumerate(writes)],
                [channel for channel, _ in writes], [type_ for type_, _ in dumped], [data for _, data in dumped],
            ],
        )  # fmt: skip

    def _loaded(self, row: Row, before: dict[str, Known]) -> tuple[CheckpointTuple, dict[str, Known]]:
        thread, namespace, id_, parent, frame, metadata, channels, numbers, contents, tasks, names, types, data = row
        values: dict[str, Any] = {}
        known: dict[str, Known] = {}
        parts = zip(contents or (), numbers or (), strict=True)
        for channel, stored in text.loads(channels).items():
            if len(stored) == 2:
                values[channel] = self.serde.loads_typed((stored[0], b64decode(stored[1])))
            else:
                values[channel], known[channel] = loaded(stored, *next(parts), before.get(channel), self.serde.loads_typed)
        return CheckpointTuple(
            config=_config(thread, namespace, id_),
            checkpoint=text.loads(frame) | {"id": id_, "channel_values": values},
            metadata=text.loads(metadata),
            parent_config=_config(thread, namespace, parent) if parent else None,
            pending_writes=[
                (task, name, self.serde.loads_typed((type_, content)))
                for task, name, type_, content in zip(tasks or (), names or (), types or (), data or (), strict=True)
            ],
        ), known


def _call(function: str, casts: str, *arguments: object) -> Steps[None]:
    yield "r", function, casts, arguments


def _place(config: RunnableConfig) -> tuple[str, str]:
    configurable = config["configurable"]
    return str(configurable["thread_id"]), configurable.get("checkpoint_ns") or ""


def _config(thread: str, namespace: str, id_: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": id_}}


def _names(thread_ids: Sequence[str]) -> list[str]:
    if isinstance(thread_ids, str):
        raise TypeError("thread_ids is a single string: give a sequence of them")
    return [str(thread) for thread in thread_ids]


def _metadata(config: RunnableConfig, metadata: CheckpointMetadata) -> dict[str, Any]:
    """Return the metadata with the plain values of the configuration, as LangGraph's own savers have it; but nothing is lost of its text."""
    merged: dict[str, Any] = {key: value for key, value in metadata.items() if key != "writes"}
    for source in (config.get("metadata"), config.get("configurable")):
        for key, value in (source or {}).items():
            if key not in merged and key not in EXCLUDED_METADATA_KEYS and not key.startswith("__") and isinstance(value, (str, int, float)):
                merged[key] = value
    return merged
