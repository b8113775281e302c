"""The part of the keys that lies outside the database: master keys, and a secret for each tenant."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from binascii import unhexlify
from time import time_ns
from typing import NamedTuple
from uuid import UUID

from . import secret, spi
from .coherence import Cache

#: Bytes of a master key, and of a tenant's secret.
KEY_BYTES = 32

#: A program that prints a key has so long.
COMMAND_SECONDS = 10

_RESTORE = "Restore this file of the key store from its backup."
_SAFE_FILE = "It must be a regular file of the server's own user, with mode 0400."
_SAFE_PLACE = "Name a directory of the server's own user, with mode 0700, outside the data directory."

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: Open files of a backend: path, then descriptor, inode, device.
_open_files: dict[str, tuple[int, int, int]] = {}
MOST_OPEN_FILES = 20

#: A file that did not change for so many nanoseconds gets another ctime by its next change, however coarse the file system's clock is.
SETTLED = 1_000_000_000

_READ = spi.plan("select provider, location, command, fingerprint from llm._master_key($1)", "integer")

_ALL = spi.plan("select version, provider, location, command, fingerprint from llm.master_keys order by version")
_LOCATIONS = spi.plan("select distinct location from llm.master_keys where location is not null")


class Master(NamedTuple):
    """Where a version of the master key is; never the key."""

    version: int
    provider: str
    location: str
    command: list[str]
    fingerprint: bytes


def _read(version: str) -> tuple[Master, int]:
    row = _READ.row(int(version))
    return Master(int(version), row["provider"], row["location"], row["command"], row["fingerprint"]), 500


_masters = Cache("master_keys", _read)


def master(version: int) -> Master:
    """Return where a version of the master key is."""
    found: Master = _masters.get(str(version)) or _read(str(version))[0]
    return found


_works: bool | None = None


def require_working_python() -> None:
    """Raise when this interpreter's cryptography does not give the known answers; asked once a session."""
    global _works
    if _works is None:
        _works = secret.self_test()
    if not _works:
        raise spi.ObjectNotInPrerequisiteState(
            "the server's Python fails the test of its cryptography",
            hint="llm.doctor() tells what replaced its modules; restart the server without it.",
        )


def wrapping_keys(version: int, tenant_key: bytes) -> bytes:
    """Return the 64 bytes, for encryption and for authentication, that wrap a tenant's key."""
    if not _works:
        require_working_python()
    where = master(version)
    # Either half of 64 random bytes is enough to make them a secret.
    key = _master_and_secret(where, tenant_key) if where.provider == "file" else secret.extract(b"", _master_key(where))
    return secret.expand(key, b"pg_llm tenant key" + tenant_key)


def anchor_key(version: int) -> bytes:
    """Return the key that signs anchors of the audit log."""
    _require_right(master(version))
    return secret.expand(secret.extract(b"", _master_key(master(version))), b"pg_llm audit anchor", 32)


def add_tenant_secret(version: int, tenant_key: str) -> None:
    """Make the secret of a new tenant's key in the key store, if the provider is one that can keep it."""
    where = master(version)
    if where.provider == "file":
        _require_right(where)
        _create(_secret_path(where.location, UUID(tenant_key).bytes), secret.urandom(KEY_BYTES))


def remove_tenant_secret(tenant_key: str) -> bool:
    """Destroy a tenant's secret in every key store that has it; tell whether there was one and none is left."""
    found = False
    for row in _LOCATIONS.rows():
        found = _destroy(_secret_path(row["location"], UUID(tenant_key).bytes)) or found
    return found


def carry_tenant_secret(old_version: int, new_version: int, tenant_key: str) -> None:
    """Let a tenant's secret be where the new version of the master key looks for it."""
    old, new = master(old_version), master(new_version)
    key = UUID(tenant_key).bytes
    _require_right(new)
    if new.provider == "file" and new.location != old.location:
        path = _secret_path(new.location, key)
        if not os.path.lexists(path):
            _create(path, _secret(old.location, key) if old.provider == "file" else secret.urandom(KEY_BYTES))


def prepare(version: int, location: str | None, command: list[str] | None) -> list[tuple[str, str | None, list[str] | None, bytes]]:
    """Check where a new master key is or is to be, make it if it is a file that is missing, and return the row of llm.master_keys."""
    require_working_python()
    if location is None:
        where = Master(version, "command", "", command or [], b"")
        return [("command", None, command, _fingerprint(_master_key(where)))]
    path = _safe_directory(location)
    if not os.path.lexists(_master_path(path, version)):
        _create(_master_path(path, version), secret.urandom(KEY_BYTES).hex().encode() + b"\n")
    return [("file", path, None, _fingerprint(_master_key(Master(version, "file", path, [], b""))))]


def _safe_directory(location: str) -> str:
    path = os.path.realpath(location)
    data = os.path.realpath(".")
    if not os.path.isabs(location) or os.path.commonpath((path, data)) == data:
        raise spi.InvalidParameter(
            f"{location} is no place for a master key", detail="It is in the data directory, or relative to it.", hint=_SAFE_PLACE
        )
    try:
        status = os.stat(path)
    except OSError as error:
        raise spi.ConfigFileError(f"{path} cannot be looked at: {error.strerror}", hint=_SAFE_PLACE) from None
    if not stat.S_ISDIR(status.st_mode) or stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != secret.USER:
        raise spi.ConfigFileError(f"{path} is not safe: user {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}", hint=_SAFE_PLACE)
    return path


def require_right(version: int) -> None:
    """Raise when the key that the provider gives is not the one that it gave when this version was added."""
    _require_right(master(version))


def _require_right(where: Master) -> None:
    if not secret.compare_digest(_fingerprint(_master_key(where)), where.fingerprint):
        raise spi.ConfigFileError(
            f"master key version {where.version} is not the key that it was",
            hint="Bring back the key with which llm.add_master_key() made this version.",
        )


def _fingerprint(key: bytes) -> bytes:
    return secret.expand(key, b"pg_llm fingerprint", 16)


def _master_key(where: Master) -> bytes:
    if where.provider == "file":
        path = _master_path(where.location, where.version)
        return _parse(_read_file(path, f"master key version {where.version}"), path)
    return _parse(_output(where), f"the command of master key version {where.version}")


def _master_path(location: str, version: int) -> str:
    return f"{location}/master.{version}"


def _secret_path(location: str, tenant_key: bytes) -> str:
    return f"{location}/tenant.{tenant_key.hex()}"


def _secret(location: str, tenant_key: bytes) -> bytes:
    path = _secret_path(location, tenant_key)
    content = _read_file(path, "the tenant's secret")
    if len(content) != KEY_BYTES:
        raise spi.ConfigFileError(
            f"{path} has {len(content)} bytes instead of {KEY_BYTES}", hint="Restore this file of the key store from its backup."
        )
    return content


def _read_file(path: str, what: str) -> bytes:
    try:
        status = os.lstat(path)
        if status.st_mode != secret.MODE or status.st_uid != secret.USER:
            raise spi.ConfigFileError(f"{path} {secret.fault(status)}", hint=_SAFE_FILE)
        return os.pread(_descriptor(path, status), 200, 0)
    except (FileNotFoundError, NotADirectoryError):
        raise spi.ConfigFileError(f"{what} is missing: there is no {path}", hint=_RESTORE) from None
    except OSError as error:
        raise spi.ConfigFileError(f"{path} cannot be read: {error.strerror}", hint=_SAFE_FILE) from None


def _descriptor(path: str, status: os.stat_result) -> int:
    # Opening costs more than all else that unwrapping a key takes. What is kept is the open file: what is in it is read on each call, and only while
    # the path still leads to it.
    kept = _open_files.get(path)
    if kept is not None:
        if kept[1] == status.st_ino and kept[2] == status.st_dev:
            return kept[0]
        _close(path)
    while len(_open_files) >= MOST_OPEN_FILES:
        _close(next(iter(_open_files)))
    file = os.open(path, _FLAGS)
    opened = os.fstat(file)
    if (opened.st_ino, opened.st_dev, opened.st_mode) != (status.st_ino, status.st_dev, status.st_mode):
        os.close(file)
        raise InterruptedError(errno.EINTR, "it was replaced in this moment")
    _open_files[path] = (file, status.st_ino, status.st_dev)
    return file


def _close(path: str) -> None:
    _pairs.clear()
    os.close(_open_files.pop(path)[0])


class _Pair(NamedTuple):
    """The open files of a master key and of a tenant's secret beside it, as they were when both were found by their paths."""

    where: Master
    path: bytes
    master: int
    inode: int
    device: int
    ctime: int
    secret: int
    secret_ctime: int


_pairs: dict[bytes, _Pair] = {}


def _master_and_secret(where: Master, tenant_key: bytes) -> bytes:
    pair = _pairs.get(tenant_key)
    if pair is not None and pair.where is where and _is_unchanged(pair):
        return _parse(os.pread(pair.master, 200, 0), "the master key") + os.pread(pair.secret, KEY_BYTES, 0)
    key = _master_key(where) + _secret(where.location, tenant_key)
    _note_pair(where, tenant_key)
    return key


def _is_unchanged(pair: _Pair) -> bool:
    # Moving, removing, writing and making readable all set a file's ctime. The one that is looked at by its path tells of the directory, too.
    try:
        status = os.lstat(pair.path)
    except OSError:
        return False
    return (
        status.st_ctime_ns == pair.ctime
        and status.st_ino == pair.inode
        and status.st_dev == pair.device
        and os.fstat(pair.secret).st_ctime_ns == pair.secret_ctime
    )


def _note_pair(where: Master, tenant_key: bytes) -> None:
    path = _master_path(where.location, where.version)
    master_file, secret_file = _open_files.get(path), _open_files.get(_secret_path(where.location, tenant_key))
    if master_file is None or secret_file is None:
        return
    status, secret_status = os.fstat(master_file[0]), os.fstat(secret_file[0])
    if max(status.st_ctime_ns, secret_status.st_ctime_ns) < time_ns() - SETTLED:
        _pairs[tenant_key] = _Pair(
            where,
            os.fsencode(path),
            master_file[0],
            status.st_ino,
            status.st_dev,
            status.st_ctime_ns,
            secret_file[0],
            secret_status.st_ctime_ns,
        )


def check() -> list[tuple[str, bool, str, str]]:
    """Return the checks of `llm.doctor()`: every version of the master key is there, safe and right; key stores are safe; Python computes rightly."""
    try:
        masters = [Master(*row.values()) for row in _ALL.rows()]
    except spi.Error:  # no storage, which another check tells
        masters = []
    wrong: list[str] = []
    hint = "See docs/key_store.md."
    for where in masters:
        try:
            if where.provider == "file":
                _safe_directory(where.location)
            _require_right(where)
        except spi.Error as error:
            wrong.append(str(error))
            hint = error.hint or hint
    found = ", ".join(f"version {where.version} by {where.provider}" for where in masters)
    return [
        ("master keys", not wrong, "; ".join(wrong) or found or "none is configured: nothing is encrypted", hint),
        (
            "Python's cryptography is right",
            secret.self_test(),
            "known answers of RFC 4231 and RFC 5869",
            "Something replaced hmac or os in the server's Python: restart the server without it.",
        ),
    ]


def _parse(text: bytes, source: str) -> bytes:
    # One newline at the end is what most programs write; it cannot change a key that is hexadecimal.
    digits = text.removesuffix(b"\n")
    try:
        key = unhexlify(digits)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise spi.ConfigFileError(
            f"{source} {'holds no key' if digits else 'is empty'}",
            hint=f"It must be {2 * KEY_BYTES} hexadecimal digits, such as openssl rand -hex {KEY_BYTES} prints.",
        )
    return key


def _output(where: Master) -> bytes:
    try:
        result = subprocess.run(
            [*where.command, str(where.version)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except OSError as error:
        reason = error.strerror
    except subprocess.TimeoutExpired:
        reason = f"it took more than {COMMAND_SECONDS} seconds"
    else:
        if result.returncode == 0:
            return result.stdout
        reason = f"it exited with {result.returncode}"
    raise spi.ConfigFileError(
        f"master key version {where.version} is missing: {where.command[0]} failed, {reason}",
        hint="As the server's user run the command with the version as its last argument: it must print the key, and exit with 0.",
    ) from None


def _create(path: str, content: bytes) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
        try:
            os.write(file, content)
            os.fsync(file)
        finally:
            os.close(file)
        _sync_directory(os.path.dirname(path))
    except OSError as error:
        raise spi.ConfigFileError(
            f"{path} cannot be made: {error.strerror}", hint="The key store must be a directory of the server's own user, with mode 0700."
        ) from None


def _destroy(path: str) -> bool:
    try:
        os.chmod(path, 0o600, follow_symlinks=False)
        file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(file, bytes(KEY_BYTES))
            os.fsync(file)
        finally:
            os.close(file)
        os.unlink(path)
        _sync_directory(os.path.dirname(path))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise spi.ConfigFileError(f"{path} cannot be destroyed: {error.strerror}", hint="Remove it as the server's user, and shred again.") from None
    return True


def _sync_directory(directory: str) -> None:
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
