"""How far the seals of the audit log are behind, and what holds them up."""

from __future__ import annotations

from typing import Any

from . import anchor, spi

_ENTRIES = spi.plan(
    """
    select
        count(*) as entries,
        coalesce(sum(s.row_count) filter (where s.kind = 'batch'), 0)::bigint as sealed_rows,
        max(s.sealed_at) filter (where s.kind = 'batch')::text as sealed_at,
        (select l.number from llm.audit_seals l where l.kind = 'life' order by l.number desc limit 1) as life
    from llm.audit_seals s
    """
)

_WAITING = spi.plan(
    """
    select count(*) as waiting_rows, min(a."timestamp")::text as waiting_since
    from llm.audit_log a
    where a.transaction_id >= coalesce(
            (select s.horizon from llm.audit_seals s where s.number >= $1 and s.horizon is not null order by s.number desc limit 1), '0')
        and a.id > coalesce((select (s.detail ->> 'after_id')::bigint from llm.audit_seals s where s.number = $1), -9223372036854775808)
    """,
    "bigint",
)

#: Who has the oldest transaction that is open: a backend, or nobody since it was prepared.
_OLDEST = spi.plan(
    """
    select coalesce(
        'process ' || l.pid,
        (select format('prepared transaction %s', quote_literal(p.gid)) from pg_prepared_xacts p where p.transaction = l.transactionid)
    ) as holder
    from pg_locks l
    where l.locktype = 'transactionid'
        and l.granted
        and l.mode = 'ExclusiveLock'
        and l.transactionid = (pg_snapshot_xmin(pg_current_snapshot())::text::bigint % 4294967296)::text::xid
        and l.pid is distinct from pg_backend_pid()
    """
)


def status() -> list[tuple[Any, ...]]:
    """Return the row of llm.audit_seal_status()."""
    entries = _ENTRIES.row()
    waiting = _WAITING.row(entries["life"] or 0)
    holder = next((row["holder"] for row in _OLDEST.rows()), None)
    path, anchored, anchored_at, problem = anchor.status()
    return [
        (
            entries["entries"], entries["sealed_rows"], entries["sealed_at"], waiting["waiting_rows"], waiting["waiting_since"],
            holder if waiting["waiting_rows"] else None, path, anchored, anchored_at, problem,
        )
    ]  # fmt: skip
