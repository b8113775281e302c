#!/usr/bin/env python3
"""Verifies what llm.prove_audit() and llm.prove_audit_growth() of pg_llm give: verify_audit_proof.py [--anchors FILE] PROOF…

Needs this file, Python 3.9 and no database. A proof of a row shows that the row, as it stands in the proof, is in the audit log whose head is an
anchor's; a proof of growth, that what was in the log at one anchor is in it unchanged at a later one. Without anchors it prints the heads that the
proofs lead to: compare them with those that you kept. Exit status: 0 when all proofs hold, 1 when one does not, 2 when something cannot be read.

The layout of rows, entries and trees: docs/seal.md. Trees are those of RFC 9162.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

ROW = "pg_llm audit proof 1"
GROWTH = "pg_llm audit growth 1"

#: The fields of an entry of llm.audit_seals, in the order in which it is hashed.
ENTRY_FIELDS = (
    "number", "kind", "previous_hash", "rows_from", "rows_to", "first_transaction", "last_transaction", "horizon", "ids", "row_count", "root",
    "detail", "sealed_at",
)  # fmt: skip


class Refused(Exception):
    """The proof does not hold."""


def leaf_of_row(row: dict[str, str | None]) -> bytes:
    """Return the hash of a row of llm.audit_log: 0x00 and its canonical bytes."""
    texts = [row[name] for name in ("tenant_id", "user_id", "action", "object_type", "object_id", "login_role", "application")]
    lengths = [-1 if text is None else len(text.encode()) for text in texts]
    lines = [row[name] for name in ("details", "client_info", "before", "after", "client_address")]
    numbers = (int(row["id"] or 0), _microseconds(row["timestamp"] or ""), int(row["transaction_id"] or 0))
    data = b"\x00"
    data += b"".join(number.to_bytes(8, "big", signed=True) for number in numbers)
    data += b"".join(length.to_bytes(4, "big", signed=True) for length in lengths)
    data += "".join(text or "" for text in texts).encode()
    data += "".join(f"{line or ''}\n" for line in lines).encode()
    data += bytes.fromhex(row["sensitive_hash"] or "")
    return sha256(data).digest()


def leaf_of_entry(entry: dict[str, str | None]) -> bytes:
    """Return the hash of an entry of llm.audit_seals: 0x00, a title, and its fields, a line each."""
    lines = ["pg_llm audit entry 1", *(f"{name}={entry[name] or ''}" for name in ENTRY_FIELDS)]
    return sha256(b"\x00" + "\n".join(lines).encode()).digest()


def root_by_inclusion(index: int, size: int, leaf: bytes, path: list[bytes]) -> bytes:
    """Return the root that a leaf and its path lead to (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        raise Refused(f"there is no leaf {index} in a tree of {size}")
    node, last = leaf, size - 1
    for sibling in path:
        if last == 0:
            raise Refused("the path is too long")
        if index & 1 or index == last:
            node = _node(sibling, node)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = _node(node, sibling)
        index, last = index >> 1, last >> 1
    if last:
        raise Refused("the path is too short")
    return node


def check_growth(first: int, first_root: bytes, size: int, size_root: bytes, path: list[bytes]) -> None:
    """Refuse unless the tree of `first` leaves is the beginning of that of `size` leaves (RFC 9162, 2.1.4.2)."""
    if not 1 <= first <= size:
        raise Refused(f"a log of {size} entries did not grow from one of {first}")
    if first == size:
        if path or first_root != size_root:
            raise Refused("two heads of one size differ")
        return
    if not path:
        raise Refused("the path is empty")
    index, last = first - 1, size - 1
    while index & 1:
        index, last = index >> 1, last >> 1
    rest = path if first & (first - 1) == 0 else path[1:]
    old = new = first_root if first & (first - 1) == 0 else path[0]
    for sibling in rest:
        if last == 0:
            raise Refused("the path is too long")
        if index & 1 or index == last:
            old, new = _node(sibling, old), _node(sibling, new)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            new = _node(new, sibling)
        index, last = index >> 1, last >> 1
    if last or old != first_root or new != size_root:
        raise Refused("the path does not lead from the one head to the other")


def heads(proof: dict[str, Any]) -> list[tuple[int, str]]:
    """Check what a proof says of itself; return the heads (entries, root) that it has to do with."""
    if proof["format"] == ROW:
        entry, leaf, chain = proof["entry"], proof["leaf"], proof["chain"]
        if entry["kind"] != "batch" or int(entry["row_count"]) != leaf["size"] or int(entry["number"]) != chain["index"] + 1:
            raise Refused("its parts do not belong together")
        found = root_by_inclusion(leaf["index"], leaf["size"], leaf_of_row(proof["row"]), _path(leaf)).hex()
        if found != entry["root"]:
            raise Refused(f"the row is not in batch {entry['number']}, whose root is {entry['root']}: it leads to {found}")
        head = root_by_inclusion(chain["index"], chain["size"], leaf_of_entry(entry), _path(chain)).hex()
        return [(chain["size"], head)]
    if proof["format"] == GROWTH:
        first, last = proof["first"], proof["last"]
        check_growth(first["size"], bytes.fromhex(first["head"]), last["size"], bytes.fromhex(last["head"]), _path(proof))
        return [(first["size"], first["head"]), (last["size"], last["head"])]
    raise Refused(f"it is of format {proof['format']!r}")


def check_anchors(found: list[tuple[int, str]], anchors: dict[int, set[str]]) -> None:
    """Refuse heads that no anchor has."""
    for size, head in found:
        if size not in anchors:
            raise Refused(f"no anchor has {size} entries: ask for a proof for the size of an anchor")
        if head not in anchors[size]:
            raise Refused(f"the anchor of {size} entries has head {' or '.join(sorted(anchors[size]))}, the proof leads to {head}")


def read_anchors(path: Path) -> dict[int, set[str]]:
    """Return the heads of a file that llm.anchor_audit() writes, by their number of entries; a line that was not finished is passed over."""
    anchors: dict[int, set[str]] = {}
    for line in path.read_text("utf-8").splitlines():
        if line.endswith("}"):
            anchor = json.loads(line)
            anchors.setdefault(anchor["size"], set()).add(anchor["head"])
    return anchors


def main() -> int:
    """Verify the proofs named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("proofs", nargs="+", type=Path, metavar="PROOF", help="a file with the JSON of a proof")
    parser.add_argument("--anchors", type=Path, metavar="FILE", help="the file that llm.anchor_audit() writes, as you kept it")
    arguments = parser.parse_args()
    status = 0
    try:
        anchors = None if arguments.anchors is None else read_anchors(arguments.anchors)
        proofs = [(path, json.loads(path.read_text("utf-8"))) for path in arguments.proofs]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(error, file=sys.stderr)
        return 2
    for path, proof in proofs:
        try:
            found = heads(proof)
            if anchors is not None:
                check_anchors(found, anchors)
        except Refused as error:
            print(f"{path}: REFUSED: {error}")
            status = 1
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            print(f"{path}: REFUSED: not a proof: {error!r}")
            status = 1
        else:
            leads = " and ".join(f"{head} of {size} entries" for size, head in found)
            print(f"{path}: {'holds, anchored' if anchors is not None else 'holds, if this is a head that you know'}: {leads}")
    return status


def _microseconds(text: str) -> int:
    """Return the microseconds since 2000, which PostgreSQL counts from."""
    moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    return (moment - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _path(part: dict[str, Any]) -> list[bytes]:
    return [bytes.fromhex(node) for node in part["path"]]


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


if __name__ == "__main__":
    sys.exit(main())
