"""Which keys a ciphertext is made with, and what it is bound to. The cipher itself, and unwrapped keys, are SQL's: see sql/crypto."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple
from uuid import UUID

from . import kdf, key_store, spi, tenant
from .coherence import Cache

#: The first byte of a ciphertext: AES-256-CBC, then HMAC-SHA256 over all that it is bound to.
FORMAT = 1

#: A flag of a ciphertext.
COMPRESSED = 1

#: The most that a value in PostgreSQL holds.
LARGEST = 2**30 - 1

#: Format, flags, key, version; then the initialization vector: what a ciphertext begins with.
_HEAD = struct.Struct(">BB16sI")
IV_BYTES = 16
START_BYTES = _HEAD.size + IV_BYTES
TAG_BYTES = 32

_READ = spi.plan("select * from llm._key_to_cache($1, $2::uuid)", "text", "text")
_MAKE = spi.plan("select llm._make_key($1, 'default'::text, null::timestamptz)", "text")
_TENANT = spi.plan("select llm._key_tenant() as tenant")

ALGORITHMS = ("aes-256-cbc", "aes-256", "aes")
SUPPORTED = "aes-256-cbc (also: aes, aes-256) with key_size 256"


class Wrapped(NamedTuple):
    """A wrapped key, and what it is bound to."""

    ciphertext: bytes
    start: bytes


class Key(NamedTuple):
    """A data key with all that unwrapping it takes; nothing in it is secret."""

    key_id: bytes
    version: int
    min_version: int
    is_active: bool
    tenant_key: Wrapped
    versions: dict[int, Wrapped]


def _wrapped(ciphertext: bytes, *context: str) -> Wrapped:
    return Wrapped(ciphertext, ciphertext[:START_BYTES] + _bound(context))


def _read(tenant_id: str, key_id: str) -> tuple[Key, int] | None:
    rows = _READ.rows(tenant_id, key_id or None)
    if not rows:
        return None
    row = rows[0]
    return (
        Key(
            UUID(row["key_id"]).bytes,
            row["version"],
            row["min_decryption_version"],
            row["active"],
            _wrapped(row["tenant_key"], tenant_id, "llm.tenant_keys", "wrapped", row["tenant_key_id"]),
            {
                version: _wrapped(ciphertext, tenant_id, "llm.data_key_versions", "wrapped", row["key_id"])
                for version, ciphertext in zip(row["versions"], row["wrapped"], strict=True)
            },
        ),
        1000 + 500 * len(row["versions"]),
    )


_keys = Cache("data_keys", _read, lambda tenant_id, _: ((tenant_id,),))


def _bound(context: tuple[str, ...]) -> bytes:
    result = b""
    for text in context:
        part = text.encode()
        result += len(part).to_bytes(4) + part
    return result


def start(key: bytes, version: int, *context: str, flags: int = 0) -> bytes:
    """Return what a new ciphertext begins with, and after it what it is bound to."""
    return _HEAD.pack(FORMAT, flags, key, version) + kdf.urandom(IV_BYTES) + _bound(context)


def chain_to_encrypt(
    claimed: str | None, algorithm: str | None, key_size: int | None, key_id: str | None, compressed: bool | None, *place: str
) -> list[bytes]:
    """Return what a new ciphertext begins with and is bound to, and the chain of wrapped keys that it takes."""
    _check_algorithm(algorithm, key_size)
    tenant_id = _tenant(claimed)
    key = _key(tenant_id, key_id)
    if not key.is_active:
        raise _revoked(key)
    version = _count_use(tenant_id, key)
    return [start(key.key_id, version, tenant_id, *place, flags=COMPRESSED if compressed else 0), *_chain(key, version)]


def chain_to_decrypt(claimed: str | None, head: bytes, is_break_glass: bool, *place: str) -> list[bytes]:
    """Return what a ciphertext that begins with `head` must be bound to, and the chain of wrapped keys that it takes."""
    if len(head) < START_BYTES or head[0] != FORMAT or head[1] & ~COMPRESSED:
        raise spi.DataException("this is no ciphertext of pg_llm", hint="Pass the whole value that llm.encrypt_data() returned.")
    _, _, key_id, version = _HEAD.unpack_from(head)
    tenant_id = _tenant(claimed)
    key = _key(tenant_id, str(UUID(bytes=key_id)))
    if not key.is_active and not is_break_glass:
        raise _revoked(key)
    if version < key.min_version:
        raise spi.ObjectNotInPrerequisiteState(
            f"version {version} of key {UUID(bytes=key_id)} no longer decrypts",
            hint="Its min_decryption_version was raised: see llm.set_min_decryption_version().",
        )
    if version not in key.versions:
        raise _unknown(str(UUID(bytes=key_id)), f"It has no version {version}.")
    return [head + _bound((tenant_id, *place)), *_chain(key, version)]


def chain_of(claimed: str | None, key_id: str) -> list[bytes]:
    """Return the chain of the newest version of a key."""
    key = _key(_tenant(claimed), key_id)
    return _chain(key, key.version)


def wrapping_keys(start_of_tenant_key: bytes) -> bytes:
    """Return the keys that a tenant's key is wrapped with."""
    _require_working_python()
    _, _, tenant_key, master_version = _HEAD.unpack_from(start_of_tenant_key)
    return key_store.wrapping_keys(master_version, tenant_key)


def unwrapping_key(wrapped: bytes, expected_start: bytes) -> bytes:
    """Return the key that decrypts a tenant's wrapped key, after checking its tag; raise why if that is wrong."""
    keys = wrapping_keys(expected_start)
    end = len(wrapped) - TAG_BYTES
    has_right_tag(kdf.digest(keys[32:], expected_start + wrapped[START_BYTES:end], "sha256"), wrapped[end:], expected_start)
    return keys[:32]


def new_key() -> bytes:
    """Return a new key: 32 bytes for encryption and 32 for authentication, derived from as many random ones."""
    _require_working_python()
    return kdf.expand(kdf.extract(b"", kdf.urandom(32)), b"pg_llm key")


def key_start(key: str, version: int, tenant_id: str, table: str, row: str) -> bytes:
    """Return what a newly wrapped key begins with, and after it what it is bound to."""
    return start(UUID(key).bytes, version, tenant_id, table, "wrapped", row)


def start_of_key(wrapped: bytes, tenant_id: str, table: str, row: str) -> bytes:
    """Return what a wrapped key begins with, and after it what it must be bound to."""
    return wrapped[:START_BYTES] + _bound((tenant_id, table, "wrapped", row))


def has_right_tag(tag: bytes, expected: bytes, expected_start: bytes) -> bool:
    """Compare two tags in a time that does not depend on where they differ; if they do, raise why."""
    if kdf.compare_digest(tag, expected):
        return True
    _, _, _, version = _HEAD.unpack_from(expected_start)
    if _bound(("llm.tenant_keys", "wrapped")) in expected_start:
        key_store.require_right(version)
    raise spi.DataException(
        "the ciphertext is not authentic",
        detail="It was changed, or it belongs to another tenant, table, column or row.",
        hint="Decrypt with the table, column and row that the value was encrypted with; else restore it from a backup.",
    )


def deflated(plain: bytes) -> bytes:
    """Compress."""
    return zlib.compress(plain)


def inflated(compressed: bytes) -> bytes:
    """Return what was compressed, up to what a value in the database may have."""
    inflater = zlib.decompressobj()
    plain = inflater.decompress(compressed, LARGEST)
    if inflater.unconsumed_tail:
        raise spi.LimitExceeded("the compressed text has more than 1 GB", hint="No text in PostgreSQL is that long: it was not encrypted here.")
    return plain


def _chain(key: Key, version: int) -> list[bytes]:
    data_key = key.versions[version]
    return [key.tenant_key.ciphertext, key.tenant_key.start, data_key.ciphertext, data_key.start]


def _tenant(claimed: str | None) -> str:
    tenant_id: str = tenant.verified(claimed) or _TENANT.row()["tenant"]
    return tenant_id


def _key(tenant_id: str, key_id: str | None) -> Key:
    key: Key | None = _keys.get(tenant_id, key_id or "")
    if key is None and key_id is None:
        _MAKE.row(tenant_id)
        key = _keys.get(tenant_id, "")
    if key is None:
        raise _unknown(key_id or "default")
    return key


def _unknown(key_id: str, detail: str = "The tenant has no such key.") -> spi.UndefinedObject:
    return spi.UndefinedObject(f"key {key_id} does not exist", detail=detail, hint="llm.key_management lists the keys of the tenant.")


def _revoked(key: Key) -> spi.ObjectNotInPrerequisiteState:
    return spi.ObjectNotInPrerequisiteState(
        f"key {UUID(bytes=key.key_id)} is revoked",
        hint="Encrypt with another key. To read what it has encrypted, llm_admin can call llm.break_glass_decrypt().",
    )


def _check_algorithm(algorithm: str | None, key_size: int | None) -> None:
    if (algorithm is not None and algorithm.lower() not in ALGORITHMS) or key_size not in (None, 256):
        raise spi.InvalidParameter(
            f"encryption with {algorithm or ALGORITHMS[0]}, key size {key_size or 256}, is not supported", hint=f"Supported: {SUPPORTED}."
        )


def _count_use(tenant_id: str, key: Key) -> int:
    return key.version


_works: bool | None = None


def _require_working_python() -> None:
    global _works
    if _works is None:
        _works = kdf.self_test()
    if not _works:
        raise spi.ObjectNotInPrerequisiteState(
            "the server's Python fails the test of its cryptography",
            hint="llm.doctor() tells what replaced its modules; restart the server without it.",
        )
