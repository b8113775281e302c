"""Seals rows of the audit log: a chain of entries, each with the Merkle root of a batch of rows that no transaction can add to any more."""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from . import merkle, spi

#: How much of each row's hash an entry keeps, to tell which row was changed.
FINGERPRINT = 4

#: The fields of an entry in the order in which they are hashed, each as text.
FIELDS = (
    "number", "kind", "previous_hash", "rows_from", "rows_to", "first_transaction", "last_transaction", "horizon", "ids", "row_count", "root",
    "detail", "sealed_at",
)  # fmt: skip

type Fields = dict[str, str | None]

_FIRST_ID, _LAST_ID = -(2**63), 2**63 - 1
_LAST_TRANSACTION = 2**64 - 1
_BEGINNING = bytes(merkle.SIZE)

_STATE = spi.plan(
    """
    select
        current_setting('transaction_isolation') as isolation,
        pg_try_advisory_xact_lock(hashtext('llm.seal_audit')) as locked,
        (select system_identifier::text from pg_control_system()) as server_id
    """
)

#: Who has seen a sealed batch must see it after a crash, too: its commit waits for the disk, whatever the session prefers.
_DURABLE = spi.plan("select set_config('synchronous_commit', 'on', true) where current_setting('synchronous_commit') = 'off'")

_HORIZON = spi.plan("select pg_snapshot_xmin(pg_current_snapshot())::text as horizon")

_LIFE = spi.plan(
    """
    select number, detail ->> 'server_id' as server_id, (detail ->> 'after_id')::bigint as after_id
    from llm.audit_seals
    where kind = 'life'
    order by number desc
    limit 1
    """
)

_FRONTIER = spi.plan("select horizon::text from llm.audit_seals where number >= $1 and horizon is not null order by number desc limit 1", "bigint")

_LOCK_OUT_WRITERS = spi.plan("lock table llm.audit_log in share mode")

_BEFORE = spi.plan(
    """
    select
        s.last_id,
        (select max(least(upper(ids) - 1, s.last_id)) from llm.audit_seals where ids is not null) as last_sealed_id
    from (select coalesce(pg_sequence_last_value('llm.audit_log_id_seq'), 0) as last_id) s
    """
)

#: The ranges of time of the partitions, and the months (of UTC) of those rows in the default partition that are to be sealed.
_CELLS = spi.plan(
    """
    with partitions as (
        select rows_from, rows_to from llm._audit_partitions()
    ),
    gaps as (
        select coalesce(lower(g.gap), '-infinity') as gap_from, coalesce(upper(g.gap), 'infinity') as gap_to
        from unnest('{(,)}'::tstzmultirange - coalesce((select range_agg(tstzrange(p.rows_from, p.rows_to)) from partitions p), '{}')) g (gap)
    ),
    months as (
        select distinct g.gap_from, g.gap_to, date_trunc('month', a."timestamp", 'UTC') as month
        from gaps g
        join llm.audit_log a on a."timestamp" >= g.gap_from and a."timestamp" < g.gap_to
        where a.transaction_id >= $1
            and isfinite(a."timestamp")
    ),
    cells as (
        select rows_from, rows_to from partitions
        union all
        select greatest(gap_from, month), least(gap_to, date_add(month, '1 month', 'UTC')) from months
    )
    select
        to_char(rows_from at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as rows_from,
        to_char(rows_to at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as rows_to
    from cells
    order by cells.rows_from
    """,
    "xid8",
)  # fmt: skip

#: The next rows of a cell, in an order in which no row can appear before one that is taken. Those of a transaction that share an id go together.
#: Sorted by what they are sorted by, and read again where they lie: a plan may sort all that waits, batch after batch.
_BATCH = spi.plan(
    """
    select
        count(*) as row_count,
        min(r.transaction_id)::text as first_transaction,
        max(r.transaction_id)::text as last_transaction,
        string_agg(int8send(r.id), ''::bytea order by r.id, r.tenant_id, r."timestamp") as ids,
        string_agg(l.leaf, ''::bytea order by r.id, r.tenant_id, r."timestamp") as leaves
    from (
        select a.transaction_id, a.id, a.tenant_id, a."timestamp", a.tableoid as partition, a.ctid as place
        from llm.audit_log a
        where a."timestamp" >= $1
            and a."timestamp" < $2
            and (a.transaction_id, a.id) > ($3, $4)
            and a.transaction_id < $5
            and a.id >= $6
            and (a.id > $7 or a.transaction_id >= $8)
        order by a.transaction_id, a.id
        fetch first $9 rows with ties
    ) r
    cross join lateral (
        select
            llm._audit_leaf(
                a.tenant_id, a.id, a."timestamp", a.user_id, a.action, a.object_type, a.object_id, a.details, a.client_info, a.before,
                a.after, a.sensitive_hash, a.login_role, a.client_address, a.application, a.transaction_id
            ) as leaf
        from llm.audit_log a
        where a."timestamp" >= $1
            and a."timestamp" < $2
            and a.tableoid = r.partition
            and a.ctid = r.place
        offset 0
    ) l
    """,
    "timestamptz", "timestamptz", "xid8", "bigint", "xid8", "bigint", "bigint", "xid8", "bigint",
)  # fmt: skip

#: The id that comes last in the order of _BATCH: the greatest of the last transaction.
_LAST_OF_BATCH = spi.plan(
    """
    select max(id) as id
    from llm.audit_log
    where "timestamp" >= $1
        and "timestamp" < $2
        and transaction_id = $3
        and id between $4 and $5
        and id <@ $6
    """,
    "timestamptz", "timestamptz", "xid8", "bigint", "bigint", "int8multirange",
)  # fmt: skip

#: Where to stop, so that one run does not take too long: the transaction of the row after the last.
_STOP = spi.plan(
    """
    select transaction_id::text as transaction_id
    from llm.audit_log
    where transaction_id >= $1
        and transaction_id < $2
        and id > $3
    order by transaction_id
    offset $4
    limit 1
    """,
    "xid8", "xid8", "bigint", "bigint",
)  # fmt: skip

_NEXT = spi.plan(
    """
    select
        coalesce(max(number), 0) + 1 as number,
        (select encode(hash, 'hex') from llm.audit_seals order by number desc limit 1) as previous_hash,
        to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as sealed_at,
        $1::text as detail
    from llm.audit_seals
    """,
    "jsonb",
)

_APPEND = spi.plan(
    """
    insert into llm.audit_seals (
        number, kind, previous_hash, rows_from, rows_to, first_transaction, last_transaction, horizon, ids, row_count, root, detail, sealed_at,
        hash, fingerprints
    )
    values ($1, $2, decode($3, 'hex'), $4, $5, $6, $7, $8, $9, $10, decode($11, 'hex'), $12, $13, $14, $15)
    """,
    "bigint", "text", "text", "timestamptz", "timestamptz", "xid8", "xid8", "xid8", "int8multirange", "bigint", "text", "jsonb", "timestamptz",
    "bytea", "bytea",
)  # fmt: skip


#: What stands against dropping a partition, and what its tombstone says.
_PARTITION = spi.plan(
    """
    select
        to_char(p.rows_from at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as rows_from,
        to_char(p.rows_to at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as rows_to,
        s.batches,
        coalesce(s.row_count, 0)::text as row_count,
        s.reaching_out,
        f.found,
        f.found > coalesce(s.row_count, 0) as not_sealed
    from llm._audit_partitions() p
    cross join lateral (
        select
            count(*) filter (where not b.is_inside) as reaching_out,
            count(*) filter (where b.is_inside) as batches,
            sum(b.row_count) filter (where b.is_inside) as row_count
        from (
            select s.row_count, s.rows_from >= p.rows_from and s.rows_to <= p.rows_to as is_inside
            from llm.audit_seals s
            where s.kind = 'batch'
                and s.rows_from < p.rows_to
                and s.rows_to > p.rows_from
        ) b
    ) s
    cross join lateral (
        select count(*) as found
        from llm.audit_log a
        where a."timestamp" >= p.rows_from
            and a."timestamp" < p.rows_to
    ) f
    where p.partition = $1::regclass
    """,
    "text",
)


@dataclass(frozen=True)
class Window:
    """Which rows a run seals: ids from `first_id`, of transactions below `end`, and either ids above `known` or of transactions from `begin`."""

    begin: int
    end: int
    first_id: int = _FIRST_ID
    known: int = _LAST_ID
    horizon: str | None = None


def seal(max_rows: int | None, batch_rows: int | None) -> int | None:
    """Seal what can be sealed, about `max_rows` at most; return the number of rows, None while another session seals."""
    if max_rows is None or batch_rows is None or max_rows < 1 or batch_rows < 1:
        raise spi.InvalidParameter(f"{max_rows} rows in batches of {batch_rows} cannot be sealed", hint="Give numbers of at least 1.")
    server_id = _begin()
    if server_id is None:
        return None
    life = next(iter(_LIFE.rows()), None)
    sealed = 0
    if life is None or life["server_id"] != server_id:
        sealed = _begin_life(life, server_id, batch_rows)
        life = _LIFE.row()
    frontier = _frontier(life["number"])
    horizon = int(_HORIZON.row()["horizon"])
    stop = _STOP.rows(str(frontier), str(horizon), life["after_id"], max_rows)
    if stop:
        # A transaction is sealed as a whole, however many rows it has.
        horizon = max(int(stop[0]["transaction_id"]), _first_transaction(frontier, horizon, life["after_id"]) + 1)
    return sealed + _seal(Window(frontier, horizon, first_id=life["after_id"] + 1, horizon=str(horizon)), batch_rows)


def _begin() -> str | None:
    """Become the only writer of the chain until the transaction ends; return the server's identifier, or None."""
    state = _STATE.row()
    if state["isolation"] != "read committed":
        raise spi.ObjectNotInPrerequisiteState(
            f"the audit log cannot be sealed in a transaction that is {state['isolation']}",
            hint="Run it in READ COMMITTED: a snapshot taken before another session sealed would seal the same rows again.",
        )
    _DURABLE.rows()
    return state["server_id"] if state["locked"] else None


def _begin_life(last: dict[str, object] | None, server_id: str, batch_rows: int) -> int:
    """Let this server's transaction ids begin; seal what came along in a dump, whose transactions are over. Return how many rows that were.

    Ids tell the rows of another server from our own, because a restored sequence goes on after them. When the lock is ours, who took an id is done.
    """
    _LOCK_OUT_WRITERS.rows()
    before = _BEFORE.row()
    frontier = 0 if last is None else _frontier(last["number"])
    known = _FIRST_ID if before["last_sealed_id"] is None else before["last_sealed_id"]
    append({"kind": "life", "horizon": _HORIZON.row()["horizon"]}, detail={"server_id": server_id, "after_id": before["last_id"]})
    return _seal(Window(frontier, _LAST_TRANSACTION, known=known), batch_rows)


def _frontier(life: object) -> int:
    rows = _FRONTIER.rows(life)
    return int(rows[0]["horizon"]) if rows else 0


def _first_transaction(frontier: int, horizon: int, after_id: int) -> int:
    return int(_STOP.row(str(frontier), str(horizon), after_id, 0)["transaction_id"])


def _seal(window: Window, batch_rows: int) -> int:
    begin = 0 if window.horizon is None else window.begin
    cells = _CELLS.rows(str(begin))
    return sum(_seal_cell(cell["rows_from"], cell["rows_to"], window, (begin, _FIRST_ID), batch_rows) for cell in cells)


def _seal_cell(rows_from: str, rows_to: str, window: Window, position: tuple[int, int], batch_rows: int) -> int:
    sealed = 0
    limits = str(window.end), window.first_id, window.known, str(window.begin)
    while True:
        batch = _BATCH.row(rows_from, rows_to, str(position[0]), position[1], *limits, batch_rows)
        row_count: int = batch["row_count"]
        if not row_count:
            return sealed
        ids, leaves = numbers(batch["ids"]), batch["leaves"]
        ranges = multirange(ids)
        fields: Fields = {
            "kind": "batch",
            "rows_from": rows_from,
            "rows_to": rows_to,
            "first_transaction": batch["first_transaction"],
            "last_transaction": batch["last_transaction"],
            "horizon": window.horizon,
            "ids": ranges,
            "row_count": str(row_count),
            "root": merkle.root(leaves).hex(),
        }
        append(fields, fingerprints=fingerprints(leaves))
        sealed += row_count
        if row_count < batch_rows:
            return sealed
        last = batch["last_transaction"]
        position = int(last), _LAST_OF_BATCH.row(rows_from, rows_to, last, ids[0], ids[-1], ranges)["id"]


def append(fields: Fields, *, detail: dict[str, object] | None = None, fingerprints: bytes | None = None) -> None:
    """Add an entry to the chain. The caller has called `_begin`."""
    ahead = _NEXT.row(None if detail is None else json.dumps(detail))
    entry: Fields = dict.fromkeys(FIELDS) | fields
    entry["number"] = str(ahead["number"])
    entry["previous_hash"] = ahead["previous_hash"] or _BEGINNING.hex()
    entry["detail"] = ahead["detail"]
    entry["sealed_at"] = ahead["sealed_at"]
    _APPEND.rows(*entry.values(), entry_hash(entry), fingerprints)


def partition_may_go(partition: str) -> bool:
    """Write the tombstone of a partition that retention drops; return False, and write nothing, while it has rows that are not sealed."""
    if _begin() is None:
        return False
    facts = next(iter(_PARTITION.rows(partition)), None)
    if facts is None or facts["not_sealed"] or facts["reaching_out"]:
        return False
    if facts["batches"]:
        fields: Fields = {name: facts[name] for name in ("rows_from", "rows_to", "row_count")} | {"kind": "tombstone"}
        append(fields, detail={"partition": partition, "batches": facts["batches"], "found": facts["found"]})
    return True


def entry_hash(entry: Fields) -> bytes:
    """Return the hash of an entry, as a leaf of the tree of all entries."""
    lines = ["pg_llm audit entry 1", *(f"{name}={entry[name] or ''}" for name in FIELDS)]
    return merkle.leaf_hash("\n".join(lines).encode())


def fingerprints(leaves: bytes) -> bytes:
    """Return the beginnings of hashes."""
    return b"".join([leaves[at : at + FINGERPRINT] for at in range(0, len(leaves), merkle.SIZE)])


def numbers(data: bytes | None) -> array[int]:
    """Return the numbers that int8send() made bytes of."""
    found = array("q", data or b"")
    if sys.byteorder == "little":
        found.byteswap()
    return found


def multirange(ids: array[int]) -> str:
    """Return sorted numbers as PostgreSQL writes an int8multirange."""
    return "{" + ",".join(f"[{first},{last + 1})" for first, last in runs(ids)) + "}"


def runs(ids: array[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last of each run of consecutive numbers; they are sorted, and may occur more than once."""
    first = last = None
    for number in ids:
        if last is None or first is None:
            first = number
        elif number > last + 1:
            yield first, last
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last
