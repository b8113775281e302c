"""Proofs for whoever does not trust the server: that a row is in the log, and that the log has only grown."""

from __future__ import annotations

import json
from typing import Any

from . import merkle, spi
from .seal import FIELDS, numbers

FORMAT_OF_ROW = "pg_llm audit proof 1"
FORMAT_OF_GROWTH = "pg_llm audit growth 1"

_ROWS = spi.plan(
    """
    select
        llm._audit_leaf(
            a.tenant_id, a.id, a."timestamp", a.user_id, a.action, a.object_type, a.object_id, a.details, a.client_info, a.before,
            a.after, a.sensitive_hash, a.login_role, a.client_address, a.application, a.transaction_id
        ) as leaf,
        a.tenant_id,
        a.id::text,
        to_char(a."timestamp" at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as "timestamp",
        a.user_id,
        a.action,
        a.object_type,
        a.object_id,
        a.details::text,
        a.client_info::text,
        a.before::text,
        a.after::text,
        encode(a.sensitive_hash, 'hex') as sensitive_hash,
        a.client_address::text,
        a.login_role,
        a.application,
        a.transaction_id::text
    from llm.audit_log a
    where a.id = $1
    order by a.tenant_id, a."timestamp"
    """,
    "bigint",
)

#: The batch that a row is in.
_ENTRY = spi.plan(
    """
    select
        s.number::text,
        s.kind,
        encode(s.previous_hash, 'hex') as previous_hash,
        to_char(s.rows_from at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as rows_from,
        to_char(s.rows_to at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as rows_to,
        s.first_transaction::text,
        s.last_transaction::text,
        s.horizon::text,
        s.ids::text,
        s.row_count::text,
        encode(s.root, 'hex') as root,
        s.detail::text,
        to_char(s.sealed_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as sealed_at
    from llm.audit_seals s
    where s.kind = 'batch'
        and $1 between s.first_transaction and s.last_transaction
        and $2 >= s.rows_from
        and $2 < s.rows_to
        and $3 <@ s.ids
    """,
    "xid8", "timestamptz", "bigint",
)  # fmt: skip

_LEAVES = spi.plan("select ids, leaves from llm._audit_leaves($1)", "bigint")

_HASHES = spi.plan(
    """
    select coalesce(string_agg(s.hash, ''::bytea order by s.number), ''::bytea) as hashes
    from llm.audit_seals s
    where s.number <= coalesce($1, 9223372036854775807)
    """,
    "bigint",
)


def prove(row_id: int | None, size: int | None) -> list[str]:
    """Return the proof of each row of this id that the caller may see."""
    rows = [] if row_id is None else _ROWS.rows(row_id)
    if not rows:
        raise spi.NoDataFound(f"audit row {row_id} does not exist", hint="Rows of other tenants are not shown.")
    chain = _chain(size)
    return [_proof(row, chain) for row in rows]


def _proof(row: dict[str, Any], chain: bytes) -> str:
    leaf = row.pop("leaf")
    entry = next(iter(_ENTRY.rows(row["transaction_id"], row["timestamp"], row["id"])), None)
    size = len(chain) // merkle.SIZE
    if entry is None or int(entry["number"]) > size:
        raise spi.ObjectNotInPrerequisiteState(
            f"audit row {row['id']} is not sealed " + ("yet" if entry is None else f"in {size} entries"),
            hint="Run llm.seal_audit(). It waits for older transactions: see llm.audit_seal_status().",
        )
    number = int(entry["number"])
    found = _LEAVES.row(number)
    leaves = found["leaves"] or b""
    if merkle.root(leaves).hex() != entry["root"]:
        raise spi.DataCorrupted(f"the rows of entry {number} are not those that were sealed", hint="See llm.verify_audit().")
    ids = numbers(found["ids"])
    at = next(at for at in range(ids.index(int(row["id"])), len(ids)) if leaves[at * merkle.SIZE : (at + 1) * merkle.SIZE] == leaf)
    return json.dumps(
        {
            "format": FORMAT_OF_ROW,
            "row": row,
            "leaf": {"index": at, "size": len(ids), "path": _hex(merkle.inclusion(at, leaves))},
            "entry": {name: entry[name] for name in FIELDS},
            "chain": {"index": number - 1, "size": size, "path": _hex(merkle.inclusion(number - 1, chain))},
            "head": merkle.root(chain).hex(),
        }
    )


def growth(first: int | None, last: int | None) -> str:
    """Return the proof that the chain of `first` entries is the beginning of that of `last` entries."""
    chain = _chain(last)
    if first is None or not 1 <= first <= len(chain) // merkle.SIZE:
        raise spi.InvalidParameter(f"the chain cannot have grown from {first} entries", hint=f"Give 1 to {len(chain) // merkle.SIZE}.")
    return json.dumps(
        {
            "format": FORMAT_OF_GROWTH,
            "first": {"size": first, "head": merkle.root(chain[: first * merkle.SIZE]).hex()},
            "last": {"size": len(chain) // merkle.SIZE, "head": merkle.root(chain).hex()},
            "path": _hex(merkle.consistency(first, chain)),
        }
    )


def _chain(size: int | None) -> bytes:
    chain: bytes = _HASHES.row(size)["hashes"]
    if size is not None and len(chain) != size * merkle.SIZE:
        raise spi.InvalidParameter(f"the chain has no {size} entries", hint=f"Give 1 to {len(chain) // merkle.SIZE}.")
    return chain


def _hex(nodes: list[bytes]) -> list[str]:
    return [node.hex() for node in nodes]
