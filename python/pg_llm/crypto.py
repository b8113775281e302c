"""Which keys a ciphertext is made with, and what it is bound to. The cipher itself, and unwrapped keys, are SQL's: see sql/crypto."""

from __future__ import annotations

import struct
import unicodedata
import zlib
from uuid import UUID

from . import data_key, key_store, secret, spi
from .data_key import IV_BYTES, START_BYTES, Chain, Wrapped, bound, parsed

#: The first byte of a ciphertext: AES-256-CBC, then HMAC-SHA256 over all that it is bound to.
FORMAT = 1

#: A flag of a ciphertext.
COMPRESSED = 1

#: Format, flags, key, version; then the initialization vector: what a ciphertext begins with.
_HEAD = struct.Struct(">BB16sI")

ALGORITHMS = ("aes-256-cbc", "aes-256", "aes")
SUPPORTED = "aes-256-cbc (also: aes, aes-256) with key_size 256"


def _start(key: bytes, version: int, flags: int, *context: str | None) -> bytes:
    return _HEAD.pack(FORMAT, flags, key, version) + secret.urandom(IV_BYTES) + bound(*context)


def chain_to_encrypt(
    claimed: str | None, algorithm: str | None, key_size: int | None, key_id: str | None, compressed: bool | None, *place: str | None
) -> bytes:
    """Return the chain of keys that a new ciphertext takes, and what it begins with and is bound to."""
    if algorithm is not None or key_size is not None:
        _check_algorithm(algorithm, key_size)
    tenant_id = data_key.tenant_of(claimed)
    key = data_key.find_to_encrypt(tenant_id, key_id or "default")
    return _begun(key.chains[key.version]) + _start(key.key_id, key.version, COMPRESSED if compressed else 0, tenant_id, *place)


def _begun(chain: Chain) -> bytes:
    # What llm._data_keys() needs: the key that unwraps the tenant key, in memory for this call alone, and all else.
    return _unwrapping_key(chain.tenant_key) + chain.rest


def chain_to_decrypt(claimed: str | None, head: bytes, key_id: str | None, is_break_glass: bool, *place: str | None) -> bytes:
    """Return the chain of keys that a ciphertext which begins with `head` takes, and what it must begin with and be bound to."""
    _, key_bytes, version = _parsed(head)
    tenant_id = data_key.tenant_of(claimed)
    key = data_key.find(tenant_id, key_bytes.hex())
    if key_id is not None and key_id != key.name:
        raise spi.InvalidParameter(f"the ciphertext is of key {key.name}, not of {key_id}", hint="Leave the key out: the ciphertext tells.")
    if not is_break_glass:
        data_key.require_usable(key)
    if version not in key.chains:
        raise spi.UndefinedObject(
            f"key {key.name} has no version {version}", hint="The ciphertext was changed, or is of a newer state of the database."
        )
    if version < key.min_version:
        raise spi.ObjectNotInPrerequisiteState(
            f"version {version} of key {key.name} no longer decrypts",
            hint="Its min_decryption_version is higher: see llm.set_min_decryption_version().",
        )
    return _begun(key.chains[version]) + head + bound(tenant_id, *place)


def _parsed(head: bytes) -> tuple[int, bytes, int]:
    if len(head) < START_BYTES or head[0] != FORMAT or head[1] & ~COMPRESSED:
        raise spi.DataException("this is no ciphertext of pg_llm", hint="Pass the whole value that llm.encrypt_data() returned.")
    _, flags, key_bytes, version = _HEAD.unpack_from(head)
    return flags, key_bytes, version


def chain_to_rewrap(claimed: str | None, head: bytes, *place: str | None) -> bytes:
    """Return, for a ciphertext that begins with `head`, what `chain_to_encrypt` returns for the newest version of its key."""
    flags, key_bytes, _ = _parsed(head)
    tenant_id = data_key.tenant_of(claimed)
    key = data_key.find_to_encrypt(tenant_id, key_bytes.hex())
    return _begun(key.chains[key.version]) + _start(key.key_id, key.version, flags, tenant_id, *place)


def chain_to_index(claimed: str | None, table: str | None, column: str | None) -> bytes:
    """Return the chain of keys for indexes, and what the index key of a column is derived with."""
    tenant_id = data_key.tenant_of(claimed)
    key = data_key.find(tenant_id, "index")
    return _begun(key.chains[key.version]) + b"pg_llm blind index" + bound(tenant_id, table, column) + b"\x01"


def normalized(arguments: list[str | None]) -> bytes:
    """Take a value and the name of a normalization; return the UTF-8 of the value as blind indexes compare it."""
    value, normalization = arguments[0] or "", arguments[1]
    arguments.clear()
    if normalization == "casefold":
        value = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold()).strip()
    elif normalization == "digits":
        value = "".join(str(unicodedata.digit(character)) for character in value if character.isdigit())
    elif normalization != "none":
        raise spi.InvalidParameter(f"normalization {normalization} is not known", hint="Take casefold, digits or none.")
    return value.encode()


def wrapping_keys(start_of_tenant_key: bytes) -> bytes:
    """Return the keys that a tenant's key is wrapped with."""
    _, _, tenant_key, master_version = _HEAD.unpack_from(start_of_tenant_key)
    return key_store.wrapping_keys(master_version, tenant_key)


def unwrapping_key(wrapped: bytes, expected_start: bytes) -> bytes:
    """Return the key that decrypts a tenant's wrapped key, after checking its tag; raise why if that is wrong."""
    return _unwrapping_key(parsed(wrapped, expected_start))


def _unwrapping_key(tenant_key: Wrapped) -> bytes:
    keys = key_store.wrapping_keys(tenant_key.wrapping_version, tenant_key.wrapping_key)
    if not secret.compare_digest(secret.digest(keys[32:], tenant_key.signed, "sha256"), tenant_key.tag):
        key_store.require_right(tenant_key.wrapping_version)
        raise _not_authentic()
    return keys[:32]


def checked_key(arguments: list[bytes]) -> bytes:
    """Take keys, what a tag is over, and the tag; return the half of the keys that decrypts, after checking the tag by the other."""
    keys, signed, tag = arguments
    arguments.clear()
    if not secret.compare_digest(secret.digest(keys[32:], signed, "sha256"), tag):
        raise _not_authentic()
    return keys[:32]


def new_key() -> bytes:
    """Return a new key: 32 bytes for encryption and 32 for authentication, derived from as many random ones."""
    key_store.require_working_python()
    return secret.expand(secret.extract(b"", secret.urandom(32)), b"pg_llm key")


def key_start(key: str, version: int, tenant_id: str, table: str, row: str) -> bytes:
    """Return what a newly wrapped key begins with, and after it what it is bound to."""
    return _start(UUID(key).bytes, version, 0, tenant_id, table, "wrapped", row)


def start_of_key(wrapped: bytes, tenant_id: str, table: str, row: str) -> bytes:
    """Return what a wrapped key begins with, and after it what it must be bound to."""
    return data_key.start_of(wrapped, tenant_id, table, row)


def _not_authentic() -> spi.DataException:
    return spi.DataException(
        "the ciphertext is not authentic",
        detail="It was changed, or it belongs to another tenant, table, column or row.",
        hint="Decrypt with the table, column and row that the value was encrypted with; else restore it from a backup.",
    )


def deflated(arguments: list[bytes]) -> bytes:
    """Compress."""
    return zlib.compress(arguments.pop())


def inflated(arguments: list[bytes]) -> bytes:
    """Return what was compressed: by `deflated`, as its tag has shown."""
    return zlib.decompress(arguments.pop())


def _check_algorithm(algorithm: str | None, key_size: int | None) -> None:
    if (algorithm is not None and algorithm.lower() not in ALGORITHMS) or key_size not in (None, 256):
        raise spi.InvalidParameter(
            f"encryption with {algorithm or ALGORITHMS[0]}, key size {key_size or 256}, is not supported", hint=f"Supported: {SUPPORTED}."
        )
