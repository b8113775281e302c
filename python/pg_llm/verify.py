"""Verifies the audit log: recomputes rows, trees and chain, and says what is not as it was sealed."""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

from . import anchor, merkle, spi
from .seal import FINGERPRINT, entry_hash, fingerprints, numbers, runs

#: Findings of one kind in one batch; what is beyond is only counted.
MOST = 100

#: All entries, in order; what is text here is what was hashed.
_ENTRIES = spi.plan(
    """
    select
        number::text,
        kind,
        encode(previous_hash, 'hex') as previous_hash,
        to_char(rows_from at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as rows_from,
        to_char(rows_to at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as rows_to,
        first_transaction::text,
        last_transaction::text,
        horizon::text,
        ids::text,
        row_count::text,
        encode(root, 'hex') as root,
        detail::text,
        to_char(sealed_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as sealed_at,
        hash,
        lower(ids) as first_id,
        upper(ids) as end_id
    from llm.audit_seals s
    order by s.number
    """
)

#: The rows of a batch as they are now.
_ROWS = spi.plan(
    """
    select
        count(*) as row_count,
        string_agg(int8send(r.id), ''::bytea order by r.id, r.tenant_id, r."timestamp") as ids,
        string_agg(r.leaf, ''::bytea order by r.id, r.tenant_id, r."timestamp") as leaves
    from (
        select
            a.id,
            a.tenant_id,
            a."timestamp",
            llm._audit_leaf(
                a.tenant_id, a.id, a."timestamp", a.user_id, a.action, a.object_type, a.object_id, a.details, a.client_info, a.before,
                a.after, a.sensitive_hash, a.login_role, a.client_address, a.application, a.transaction_id
            ) as leaf
        from llm.audit_log a
        where a."timestamp" >= $1
            and a."timestamp" < $2
            and a.transaction_id between $3 and $4
            and a.id >= $5
            and a.id < $6
            and a.id <@ $7
    ) r
    """,
    "timestamptz", "timestamptz", "xid8", "xid8", "bigint", "bigint", "int8multirange",
)  # fmt: skip

_FINGERPRINTS = spi.plan("select fingerprints from llm.audit_seals where number = $1", "bigint")

_IS_COVERED = spi.plan("select exists (select from llm._audit_partitions() p where p.rows_from <= $1 and p.rows_to >= $2) as covered",
                       "timestamptz", "timestamptz")  # fmt: skip

#: Rows that must be in a batch: those that another server's life left behind, and those below the horizon; up to an id.
_COUNT_SEALED = spi.plan(
    "select count(*) as row_count from llm.audit_log where (id <= $1 or transaction_id < $2) and id <= $3", "bigint", "xid8", "bigint"
)
_SEALED = spi.plan(
    """
    select
        a.id,
        a.transaction_id::text as transaction_id,
        to_char(a."timestamp" at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as at
    from llm.audit_log a
    where (a.id <= $1 or a.transaction_id < $2)
        and a.id <= $3
    order by a.transaction_id, a.id
    """,
    "bigint", "xid8", "bigint",
)  # fmt: skip
_BATCHES = spi.plan(
    """
    select
        number,
        first_transaction::text as first_transaction,
        last_transaction::text as last_transaction,
        to_char(rows_from at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as rows_from,
        to_char(rows_to at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as rows_to,
        ids::text as ids
    from llm.audit_seals s
    where s.kind = 'batch'
        and s.ids is not null
    order by s.first_transaction
    """
)

_FUTURE = spi.plan(
    """
    select id, transaction_id::text as transaction_id
    from llm.audit_log a
    where a.transaction_id >= pg_snapshot_xmax(pg_current_snapshot())
        and a.transaction_id is distinct from pg_current_xact_id_if_assigned()
        and a.id > $1
    order by a.transaction_id, a.id
    limit 100
    """,
    "bigint",
)

_SERVER = spi.plan("select system_identifier::text as server_id from pg_control_system()")


#: Events with sensitive details, and those details, where the one is not what the other says.
_SENSITIVE = spi.plan(
    """
    select coalesce(a.id, s.audit_log_id) as id, a.id is null as is_foreign, s.id is null as is_missing
    from (select e.id, e.tenant_id, e."timestamp", e.sensitive_hash from llm.audit_log e where e.sensitive_hash is not null) a
    full join llm.sensitive_log s on s.tenant_id = a.tenant_id and s.audit_log_id = a.id and s.audit_timestamp = a."timestamp"
    where sha256(s.encrypted_details) is distinct from a.sensitive_hash
    limit 100
    """
)

#: The ranges of time of partitions that retention dropped, and the entry that says so.
_DROPPED = spi.plan(
    """
    select
        number,
        to_char(rows_from at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as rows_from,
        to_char(rows_to at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as rows_to
    from llm.audit_seals
    where kind = 'tombstone'
        and rows_from is not null
        and rows_to is not null
    """
)


#: What of an entry says which rows are its own, in the order of _ROWS.
_BATCH = ("rows_from", "rows_to", "first_transaction", "last_transaction", "first_id", "end_id", "ids")


class Finding(NamedTuple):
    """Something that was found: whether it is as it should be, the entry and row that it is about, of what kind it is, and the rest in words."""

    ok: bool
    entry: int | None
    row_id: int | None
    kind: str
    detail: str


class _Chain:
    """What the entries say, gathered while they pass by."""

    def __init__(self, heads_wanted: set[int]) -> None:
        self.tree = merkle.Growing()
        self.heads: dict[int, str] = {}
        self.server_id: str | None = None
        self.after_id = -(2**63)
        self.horizon = 0
        self.last_id = -(2**63)
        self._wanted = heads_wanted
        self._previous = bytes(merkle.SIZE).hex()

    def follow(self, entry: dict[str, Any]) -> Iterator[Finding]:
        """Check that an entry is whole and follows the last one."""
        number, computed = int(entry["number"]), entry_hash(entry)
        if number != self.tree.size + 1:
            yield Finding(False, number, None, "entry missing", f"entry {self.tree.size + 1} should come here")
        if computed != entry["hash"]:
            yield Finding(False, number, None, "entry changed", "it is not what its hash says")
        if entry["previous_hash"] != self._previous:
            yield Finding(False, number, None, "chain broken", "it was not written after the entry before it")
        self._previous = computed.hex()
        self.tree.add(computed)
        if self.tree.size in self._wanted:
            self.heads[self.tree.size] = self.tree.root().hex()
        self._learn(entry)

    def _learn(self, entry: dict[str, Any]) -> None:
        if entry["kind"] == "life":
            life = _detail(entry)
            self.server_id, self.after_id = life.get("server_id"), int(life.get("after_id", 0))
        if entry["horizon"]:
            self.horizon = int(entry["horizon"])
        if entry["end_id"] is not None:
            self.last_id = max(self.last_id, entry["end_id"] - 1)


def verify(first: int | None, last: int | None, kept_anchor: str | None) -> Iterator[Finding]:
    """Return what is found: in the chain as a whole, and in the rows of the batches from `first` to `last`."""
    return _verify(first, last, *anchor.read(kept_anchor))


def _verify(first: int | None, last: int | None, anchors: list[anchor.Anchor], faults: list[str], path: str | None) -> Iterator[Finding]:
    chain = _Chain({each.size for each in anchors})
    dropped = [(row["rows_from"], row["rows_to"], row["number"]) for row in _DROPPED.rows()]
    is_intact = not faults
    batches = rows = 0
    yield from (Finding(False, None, None, "anchor", fault) for fault in faults)
    for entry in _ENTRIES.stream():
        number = int(entry["number"])
        findings = list(chain.follow(entry))
        if entry["kind"] == "tombstone":
            findings.append(_tombstone(entry))
        if entry["kind"] == "batch" and (first is None or first <= number) and (last is None or number <= last):
            is_dropped = any(number < at and start <= entry["rows_from"] and entry["rows_to"] <= end for start, end, at in dropped)
            found = _ROWS.row(*(entry[name] for name in _BATCH))
            if found["row_count"] or not is_dropped:
                batches, rows = batches + 1, rows + found["row_count"]
                findings += _differences(entry, found)
        is_intact = is_intact and all(finding.ok for finding in findings)
        yield from findings
    findings = [Finding(is_right, None, None, "anchor", text) for is_right, text in anchor.compare(anchors, chain.tree.size, chain.heads)]
    if first is None and last is None:
        findings += [*_strangers(chain, rows), *_sensitive()]
    yield from findings
    yield Finding(
        is_intact and all(finding.ok for finding in findings),
        chain.tree.size or None,
        None,
        "verified",
        f"batches: {batches}, rows: {rows}, head: {chain.tree.root().hex()}, anchors: {len(anchors)}"
        + ("" if anchors else f", none in {path} yet" if path else ", so that nothing tells whether the end was cut off"),
    )


def _tombstone(entry: dict[str, Any]) -> Finding:
    detail = _detail(entry)
    missing = int(entry["row_count"] or 0) - int(detail.get("found", 0))
    return Finding(
        not missing,
        int(entry["number"]),
        None,
        "dropped",
        f"{detail.get('partition')} with {entry['row_count']} rows from {entry['rows_from']} to {entry['rows_to']} was dropped by retention"
        + (f", when {missing} of them were missing" if missing else ""),
    )


def _differences(entry: dict[str, Any], found: dict[str, Any]) -> Iterator[Finding]:
    """Name the rows of a batch that are not as they were sealed."""
    number, ids, leaves = int(entry["number"]), numbers(found["ids"]), found["leaves"] or b""
    if str(found["row_count"]) == entry["row_count"] and merkle.root(leaves).hex() == entry["root"]:
        return
    if not ids:
        is_covered = _IS_COVERED.row(entry["rows_from"], entry["rows_to"])["covered"]
        why = "" if is_covered else ": their partition was removed, and not by retention"
        yield Finding(False, number, None, "rows missing", f"all {entry['row_count']} rows are missing{why}")
        return
    named = 0
    for finding in _named(number, _ranges(entry["ids"]), ids, leaves):
        named += 1
        if named <= MOST:
            yield finding
    if named > MOST:
        yield Finding(False, number, None, "rows changed", f"{named - MOST} more findings in this batch")
    if not named:
        yield Finding(
            False, number, None, "rows changed", f"{len(ids)} of {entry['row_count']} rows are there, with another root; nothing tells which changed"
        )


def _named(number: int, ranges: list[tuple[int, int]], ids: array[int], leaves: bytes) -> Iterator[Finding]:
    now, sealed = fingerprints(leaves), _FINGERPRINTS.row(number)["fingerprints"] or b""
    # Where rows shared an id when they were sealed, positions do not tell which fingerprint is whose.
    is_aligned = sum(end - start for start, end in ranges) * FINGERPRINT == len(sealed)
    missing = array("q")
    at = position = 0
    for expected in (each for start, end in ranges for each in range(start, end)):
        begin = at
        while at < len(ids) and ids[at] == expected:
            at += 1
        mark = sealed[position : position + FINGERPRINT]
        position += FINGERPRINT
        if at == begin:
            missing.append(expected)
        elif is_aligned:
            marks = [now[row * FINGERPRINT : (row + 1) * FINGERPRINT] for row in range(begin, at)]
            if mark not in marks:
                yield Finding(False, number, expected, "row edited", "the row is not the one that was sealed")
            elif len(marks) > 1:
                yield Finding(False, number, expected, "row inserted", f"{len(marks)} rows have this id, one was sealed")
    for start, end in runs(missing):
        yield Finding(False, number, start, "row missing", "the row is missing" if start == end else f"rows {start} to {end} are missing")


def _strangers(chain: _Chain, selected: int) -> Iterator[Finding]:
    """Name rows that claim to be older than what was sealed last, and are in no batch; and rows of transactions that have not begun."""
    is_ours = chain.server_id == _SERVER.row()["server_id"]
    # Until another server has begun its life here, its ids are all that tells its rows from those that came with the dump.
    claim = chain.after_id, str(chain.horizon), 2**63 - 1 if is_ours else chain.last_id
    if chain.server_id is not None and _COUNT_SEALED.row(*claim)["row_count"] != selected:
        for count, row in enumerate(_in_no_batch(_SEALED.stream(*claim))):
            if count == MOST:
                yield Finding(False, None, None, "row inserted", f"and more than {MOST} others")
                break
            yield Finding(False, None, row["id"], "row inserted", f"transaction {row['transaction_id']} was sealed without this row")
    if is_ours:
        for row in _FUTURE.rows(chain.after_id):
            yield Finding(False, None, row["id"], "row inserted", f"transaction {row['transaction_id']} has not begun yet")


def _sensitive() -> Iterator[Finding]:
    """Compare what is encrypted in llm.sensitive_log with the hash of it that the event holds: keys are not needed, and may be gone."""
    for row in _SENSITIVE.rows():
        what = "belong to no event" if row["is_foreign"] else "are missing" if row["is_missing"] else "are not what the event says"
        yield Finding(False, None, row["id"], "sensitive", f"its sensitive details {what}")


def _in_no_batch(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield those of the rows, which come in order of transactions, that no batch covers."""
    batches = _BATCHES.stream()
    following = next(batches, None)
    open_batches: list[tuple[int, str, str, list[tuple[int, int]]]] = []
    newest = -1
    for row in rows:
        transaction = int(row["transaction_id"])
        if transaction > newest:
            newest = transaction
            while following and int(following["first_transaction"]) <= transaction:
                ranges = _ranges(following["ids"])
                open_batches.append((int(following["last_transaction"]), following["rows_from"], following["rows_to"], ranges))
                following = next(batches, None)
            open_batches = [batch for batch in open_batches if batch[0] >= transaction]
        if not any(start <= row["at"] < end and _holds(ranges, row["id"]) for _, start, end, ranges in open_batches):
            yield row


def _detail(entry: dict[str, Any]) -> dict[str, Any]:
    detail = json.loads(entry["detail"] or "{}")
    return detail if isinstance(detail, dict) else {}


def _ranges(ids: str) -> list[tuple[int, int]]:
    """Return the ranges of an int8multirange, each as its first number and the one after its last."""
    pairs = (pair.split(",") for pair in ids.strip("{}[)").split("),["))
    return [(int(start), int(end)) for start, end in pairs]


def _holds(ranges: list[tuple[int, int]], number: int) -> bool:
    at = bisect_right(ranges, number, key=lambda pair: pair[0])
    return at > 0 and number < ranges[at - 1][1]
