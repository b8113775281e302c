"""Anchors of the audit log: signed heads of its chain in a file outside the data directory, each on a line of its own."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from . import key_store, merkle, secret, spi

FORMAT = "pg_llm audit anchor 1"

_TARGET = spi.plan(
    """
    select a.path, a.server_id = s.system_identifier as is_ours
    from llm.audit_anchor a
    cross join pg_control_system() s
    order by a.set_at desc
    limit 1
    """
)

_FACTS = spi.plan(
    """
    select
        pg_current_xact_id_if_assigned() is null as has_not_written,
        current_database()::text as database,
        (select system_identifier::text from pg_control_system()) as server_id,
        to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as at,
        (select max(version) from llm.master_keys) as key_version
    """
)

_HASHES = spi.plan("select hash from llm.audit_seals order by number")

_HINT_FILE = "Name a file in a directory that is not open to everybody, outside the data directory, which the server's own user may write."


class Anchor(NamedTuple):
    """A head of the chain as it was once written down, and where it stands."""

    size: int
    head: str
    at: str
    where: str
    rolled_back_to: int | None


def is_safe(path: str) -> bool:
    """Tell whether a path may be an anchor file's; raise why it may not. Makes the file."""
    directory, data = os.path.realpath(os.path.dirname(path)), os.path.realpath(".")
    if not os.path.isabs(path) or os.path.commonpath((directory, data)) == data:
        raise spi.InvalidParameter(
            f"{path} is no place for anchors", detail="It is in the data directory, or relative to it: it would be lost, or set back, with the data.",
            hint=_HINT_FILE,
        )  # fmt: skip
    try:
        mode = os.stat(directory).st_mode
        if mode & stat.S_IWOTH:
            raise spi.InvalidParameter(f"{path} is no place for anchors", detail=f"Everybody may write in {directory}.", hint=_HINT_FILE)
        os.close(_open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    except OSError as error:
        raise spi.InvalidParameter(f"{path} is no place for anchors", detail=f"{error.strerror}.", hint=_HINT_FILE) from None
    return True


def write(reason: str | None) -> str | None:
    """Write the head of the chain to the anchor file, unless it stands there; return the line, None before anything was sealed.

    A log that contradicts the file is only anchored with a reason, which the file then keeps.
    """
    path = _path()
    facts = _FACTS.row()
    if not facts["has_not_written"]:
        raise spi.ObjectNotInPrerequisiteState(
            "the audit log cannot be anchored in a transaction that has written",
            hint="Run it in a transaction of its own: what is not committed may never be.",
        )
    try:
        file = _open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    except OSError as error:
        raise _refused(path, error) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        return _write(file, path, facts, reason)
    except OSError as error:
        raise _refused(path, error) from None
    finally:
        os.close(file)


def _write(file: int, path: str, facts: dict[str, Any], reason: str | None) -> str | None:
    known, _, newest = _parse(path, _lines(file))
    size, heads = _heads({each.size for each in known})
    if not size:
        return None
    if known and (known[-1].size, known[-1].head) == (size, heads[size]):
        return newest
    wrong = list(_wrong(known, size, heads))
    if wrong and reason is None:
        raise spi.DataCorrupted(
            "the audit log contradicts its anchors",
            detail=f"{wrong[0].where} has {wrong[0].size} entries, the log {size}" + (", not the same." if wrong[0].size <= size else "."),
            hint="See llm.verify_audit(). If the server was set back on purpose, call llm.anchor_audit() with the reason.",
        )
    anchor: dict[str, Any] = {"format": FORMAT, "size": size, "head": heads[size]}
    anchor |= {name: facts[name] for name in ("database", "server_id", "at", "key_version")}
    if wrong:
        right = (each.size for each in known if each not in wrong)
        anchor |= {"reason": reason, "rolled_back_to": max(right, default=0)}
    anchor["signature"] = _signature(anchor, {})
    line = json.dumps(anchor)
    _append(file, line)
    return line


def read(kept: str | None) -> tuple[list[Anchor], list[str], str | None]:
    """Return the anchors of the file, and one that the caller kept, at last; what is wrong with them; and the path, None without a file."""
    target = next(iter(_TARGET.rows()), None)
    anchors: list[Anchor] = []
    faults: list[str] = []
    if target is not None and not target["is_ours"]:
        faults.append(f"{target['path']} was set on another server, and is not compared: call llm.set_audit_anchor() again")
    elif target is not None:
        try:
            file = _open(target["path"], os.O_RDONLY)
            try:
                anchors, faults, _ = _parse(target["path"], _lines(file))
            finally:
                os.close(file)
        except OSError as error:
            faults.append(f"{target['path']} cannot be read: {error.strerror}")
    if kept is not None:
        given, more, _ = _parse("the given anchor", [kept])
        if not given:
            raise spi.InvalidParameter("the given anchor is none", hint="Give a line of the file that llm.anchor_audit() writes, as jsonb.")
        anchors += given
        faults += more
    return anchors, faults, target["path"] if target else None


def compare(anchors: list[Anchor], size: int, heads: dict[int, str]) -> Iterator[tuple[bool, str]]:
    """Yield whether the chain is the one that was anchored, and the rest in words."""
    wrong = list(_wrong(anchors, size, heads))
    for anchor in wrong[:1]:
        more = f"; so are {len(wrong) - 1} more" if len(wrong) > 1 else ""
        if anchor.size > size:
            yield False, f"{anchor.where} knows {anchor.size} entries, the log has {size}: entries were removed, or the server was set back{more}"
        else:
            yield False, f"{anchor.where} has another head for {anchor.size} entries: the log was written anew{more}"
    for anchor in anchors:
        if anchor.rolled_back_to is not None:
            yield True, f"{anchor.where} says that the server was set back to {anchor.rolled_back_to} entries, on purpose"


def _wrong(anchors: list[Anchor], size: int, heads: dict[int, str]) -> Iterator[Anchor]:
    """Yield the anchors that the chain contradicts, newest first, but for those that a later one says were left behind."""
    accepted = None
    for anchor in reversed(anchors):
        is_right = anchor.size <= size and heads.get(anchor.size) == anchor.head
        if not is_right and (accepted is None or anchor.size <= accepted):
            yield anchor
        if anchor.rolled_back_to is not None:
            accepted = min(anchor.rolled_back_to, accepted if accepted is not None else anchor.rolled_back_to)


def _heads(wanted: set[int]) -> tuple[int, dict[int, str]]:
    tree, heads = merkle.Growing(), {}
    for row in _HASHES.stream():
        tree.add(row["hash"])
        if tree.size in wanted:
            heads[tree.size] = tree.root().hex()
    heads[tree.size] = tree.root().hex()
    return tree.size, heads


def _path() -> str:
    target = next(iter(_TARGET.rows()), None)
    hint = "As a superuser run: select llm.set_audit_anchor('/a/file/outside/the/data/directory');"
    if target is None:
        raise spi.ObjectNotInPrerequisiteState("no file for anchors of the audit log is set", hint=hint)
    path: str = target["path"]
    if not target["is_ours"]:
        raise spi.ObjectNotInPrerequisiteState(f"{path} was set for anchors on another server", hint=hint)
    return path


def _open(path: str, flags: int) -> int:
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(0, "it is no regular file")
    return file


def _lines(file: int) -> Iterator[str]:
    with os.fdopen(os.dup(file), "rb") as stream:
        for line in stream:
            yield line.decode("utf-8", "replace")


def _parse(source: str, lines: Iterable[str]) -> tuple[list[Anchor], list[str], str]:
    """Return the anchors, what is wrong, and the last line. One without its end, as a crash or a full disk leaves it, was never an anchor."""
    anchors: list[Anchor] = []
    faults: list[str] = []
    keys: dict[int, bytes] = {}
    is_signed, last = False, ""
    for number, line in enumerate(lines, 1):
        text, where = line.strip(), f"line {number} of {source}"
        if not text.endswith("}"):
            continue
        try:
            fields = json.loads(text)
            anchor = Anchor(int(fields["size"]), str(fields["head"]), str(fields["at"]), where, fields.get("rolled_back_to"))
            is_known = fields["format"] == FORMAT and datetime.fromisoformat(anchor.at) is not None
        except (ValueError, KeyError, TypeError, AttributeError):
            is_known = False
        if not is_known:
            faults.append(f"{where} is no anchor")
            continue
        anchors.append(anchor)
        last = text
        fault = _fault_of_signature(fields, keys)
        if fault or (is_signed and not fields.get("signature")):
            faults.append(f"{where} {fault or 'is not signed, as earlier ones are'}")
        is_signed = is_signed or bool(fields.get("signature"))
    return anchors, faults, last


def _append(file: int, line: str) -> None:
    size = os.fstat(file).st_size
    is_unfinished = size > 0 and os.pread(file, 1, size - 1) != b"\n"
    data = ("\n" if is_unfinished else "").encode() + line.encode() + b"\n"
    if os.write(file, data) < len(data):
        os.ftruncate(file, size)
        raise OSError(0, "the disk is full")
    os.fsync(file)


def _signature(anchor: dict[str, Any], keys: dict[int, bytes]) -> str | None:
    version = anchor["key_version"]
    if version is None:
        return None
    if version not in keys:
        keys[version] = key_store.anchor_key(version)
    message = json.dumps({name: value for name, value in anchor.items() if name != "signature"}, sort_keys=True)
    return secret.digest(keys[version], message.encode(), "sha256").hex()


def _fault_of_signature(anchor: dict[str, Any], keys: dict[int, bytes]) -> str | None:
    if not anchor.get("signature"):
        return None
    try:
        is_right = secret.compare_digest(_signature(anchor, keys) or "", anchor["signature"])
    except (spi.Error, spi.ServerError, KeyError, TypeError, ValueError) as error:
        return f"has a signature that cannot be checked: {error}"
    return None if is_right else "has a wrong signature"


def _refused(path: str, error: OSError) -> spi.InputOutput:
    return spi.InputOutput(
        f"the anchor file {path} cannot be written: {error.strerror}",
        hint="Sealing goes on. Mend it, and call llm.anchor_audit() again: the next anchor covers all that was sealed.",
    )


def status() -> tuple[str | None, int | None, str | None, str | None]:
    """Return the path of the file, the size and the time of its last anchor, and what is wrong."""
    anchors, faults, path = read(None)
    newest = anchors[-1] if anchors else None
    return path, newest.size if newest else None, newest.at if newest else None, faults[0] if faults else None
