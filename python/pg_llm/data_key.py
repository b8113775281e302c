"""Data keys as they are wrapped: which one a call takes, and how often each was used."""

from __future__ import annotations

from time import time
from typing import NamedTuple
from uuid import UUID

from . import spi, tenant
from .coherence import Cache

#: Uses are counted ahead, at first so many at once, then twice as many each time.
FIRST_LEASE = 16
LARGEST_LEASE = 8192

#: Format, flags, key, version, initialization vector: what each ciphertext begins with.
START_BYTES = 38
IV_BYTES = 16
TAG_BYTES = 32

_READ = spi.plan("select * from llm._key_to_cache($1, $2)", "text", "text")
_MAKE = spi.plan("select llm._make_key($1, $2, null::timestamptz, 1073741824::bigint)", "text", "text")
_RESERVE = spi.plan(
    "select id, version from llm._reserve_uses($1, $2::uuid, $3, $4, $5, $6)", "text", "text", "integer", "bigint", "bigint", "bigint"
)
_TENANT = spi.plan("select llm._writable_tenant() as tenant")


def bound(*context: str | None) -> bytes:
    """Return texts as one that no others give: each with its length before it."""
    result = b""
    for text in context:
        part = (text or "").encode()
        result += len(part).to_bytes(4) + part
    return result


def start_of(wrapped: bytes, tenant_id: str, table: str, row: str) -> bytes:
    """Return what a wrapped key begins with, and after it what it must be bound to."""
    return wrapped[:START_BYTES] + bound(tenant_id, table, "wrapped", row)


class Wrapped(NamedTuple):
    """A wrapped key: the key that wraps it and the version of that, its ciphertext, what its tag is over, the tag. Nothing is secret."""

    wrapping_key: bytes
    wrapping_version: int
    iv: bytes
    ciphertext: bytes
    signed: bytes
    tag: bytes


def parsed(wrapped: bytes, start: bytes) -> Wrapped:
    """Return the parts of a wrapped key that must be bound to `start`."""
    ciphertext = wrapped[START_BYTES:-TAG_BYTES]
    iv = start[START_BYTES - IV_BYTES : START_BYTES]
    return Wrapped(start[2:18], int.from_bytes(start[18:22]), iv, ciphertext, start + ciphertext, wrapped[-TAG_BYTES:])


class Chain(NamedTuple):
    """The wrapped keys that lead to a version of a data key. Nothing is secret."""

    tenant_key: Wrapped
    #: What `llm._data_keys()` takes after the key that unwraps the tenant key.
    rest: bytes


def _chain(tenant_id: str, tenant_key_id: str, tenant_key: bytes, key_id: str, wrapped: bytes) -> Chain:
    outer = parsed(tenant_key, start_of(tenant_key, tenant_id, "llm.tenant_keys", tenant_key_id))
    inner = parsed(wrapped, start_of(wrapped, tenant_id, "llm.data_key_versions", key_id))
    parts = (outer.iv, outer.ciphertext, inner.iv, inner.ciphertext, inner.tag, len(inner.signed).to_bytes(2), inner.signed)
    return Chain(outer, b"".join(parts))


class Key(NamedTuple):
    """A data key, with the chain that leads to each version. Nothing is secret."""

    key_id: bytes
    version: int
    min_version: int
    soft_limit: int
    is_revoked: bool
    expires: float | None
    chains: dict[int, Chain]

    @property
    def name(self) -> str:
        """The key's id as users know it."""
        return str(UUID(bytes=self.key_id))


def _read(tenant_id: str, key_id: str) -> tuple[Key, int] | None:
    for row in _READ.rows(tenant_id, key_id):
        key_id, tenant_key = row["key_id"], row["tenant_key"]
        chains = {
            version: _chain(tenant_id, row["tenant_key_id"], tenant_key, key_id, wrapped)
            for version, wrapped in zip(row["versions"], row["wrapped"], strict=True)
            if tenant_key
        }
        key = Key(
            UUID(key_id).bytes,
            row["version"],
            row["min_decryption_version"],
            row["soft_limit"],
            row["revoked"],
            row["expires"],
            chains,
        )
        return key, 1000 + 1500 * len(chains)
    return None


_keys = Cache("data_keys", _read, lambda tenant_id, _: ((tenant_id,),))


def tenant_of(claimed: str | None) -> str:
    """Return the tenant of this call, * when it works on what is global."""
    found: str = tenant.verified(claimed) or _TENANT.row()["tenant"]
    return found


def find(tenant_id: str, key_id: str) -> Key:
    """Return a key by its id; or the tenant's key of a kind, `default` or `index`, which is made when there is none."""
    key: Key | None = _keys.get(tenant_id, key_id)
    if key is None and key_id in ("default", "index"):
        _MAKE.row(tenant_id, key_id)
        key = _keys.get(tenant_id, key_id)
    if key is None:
        raise spi.UndefinedObject(
            f"key {_named(key_id)} does not exist", detail="The tenant has no such key.", hint="llm.key_management lists the keys of the tenant."
        )
    if not key.chains:
        raise spi.ObjectNotInPrerequisiteState(
            f"key {key.name} was shredded", detail="What it encrypted cannot be read by anybody.", hint="llm.key_events tells when and why."
        )
    return key


def _named(key_id: str) -> str:
    # As a ciphertext has it, 32 digits; any other text is what the caller said.
    try:
        return str(UUID(key_id))
    except ValueError:
        return key_id


def require_usable(key: Key) -> None:
    """Raise when a key was revoked."""
    if key.is_revoked:
        raise spi.ObjectNotInPrerequisiteState(
            f"key {key.name} is revoked",
            hint="Encrypt with another key. To read what it has encrypted, llm_admin can call llm.break_glass_decrypt().",
        )


def find_to_encrypt(tenant_id: str, key_id: str) -> Key:
    """Return a key that may encrypt, after counting the use."""
    key = find(tenant_id, key_id)
    require_usable(key)
    if key.expires is not None and key.expires <= time():
        raise spi.ObjectNotInPrerequisiteState(f"key {key.name} has expired", hint="It still decrypts. Encrypt with another key: llm.generate_key().")
    lease = _leases.get((tenant_id, key.key_id))
    if lease is not None and lease.version == key.version and lease.left:
        lease.left -= 1
        return key
    return _renew(tenant_id, key_id, key, lease)


class _Lease:
    """Uses of a key's version that were counted ahead for this backend."""

    __slots__ = ("left", "row", "size", "version")

    def __init__(self, version: int, size: int, row: int | None) -> None:
        self.version = version
        self.size = size
        self.left = size - 1
        self.row = row


_leases: dict[tuple[str, bytes], _Lease] = {}


def _renew(tenant_id: str, key_id: str, key: Key, last: _Lease | None) -> Key:
    size = FIRST_LEASE
    if last is not None and last.version == key.version:
        size = min(2 * last.size, LARGEST_LEASE)
    size = max(min(size, key.soft_limit // 16), 1)
    known = last if last is not None and last.version == key.version else None
    row = _RESERVE.row(tenant_id, key.name, key.version, size, known and known.row, known and known.size)
    _leases[tenant_id, key.key_id] = _Lease(row["version"], size, row["id"])
    return key if row["version"] == key.version else find(tenant_id, key_id)
