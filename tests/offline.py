"""Ciphertext and keys as docs/crypto.md describes them, computed outside the server, with another library."""

from __future__ import annotations

import importlib.util
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.padding import PKCS7

from tests.support import Client
from tools.cluster import ROOT


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"pg_llm_{name}", ROOT / "python" / "pg_llm" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


#: The module of pg_llm that needs no server.
secret = _load("secret")

HEAD = 38
TAG = 32


def bound(*context: str) -> bytes:
    """Return texts, each with its length before it."""
    return b"".join(len(part.encode()).to_bytes(4) + part.encode() for part in context)


def unseal(keys: bytes, sealed: bytes, *context: str) -> bytes:
    """Check and decrypt a ciphertext."""
    tag = hmac.HMAC(keys[32:], hashes.SHA256())
    tag.update(sealed[:HEAD] + bound(*context) + sealed[HEAD:-TAG])
    tag.verify(sealed[-TAG:])
    decryptor = Cipher(algorithms.AES(keys[:32]), modes.CBC(sealed[22:HEAD])).decryptor()
    unpadder = PKCS7(128).unpadder()
    return unpadder.update(decryptor.update(sealed[HEAD:-TAG]) + decryptor.finalize()) + unpadder.finalize()


@dataclass(frozen=True)
class Keys:
    """All keys of a database: those of the key store, what wraps tenants' keys, tenants' keys, data keys."""

    masters: dict[int, bytes]
    secrets: list[bytes]
    wrapping: list[bytes]
    tenants: dict[str, bytes]
    data: dict[tuple[str, int], bytes]

    def decrypt(self, sealed: bytes, tenant: str, table: str = "", column: str = "", row: str = "") -> str:
        """Decrypt a value."""
        key = self.data[sealed[2:18].hex(), int.from_bytes(sealed[18:22])]
        plain = unseal(key, sealed, tenant, table, column, row)
        return (zlib.decompress(plain) if sealed[1] else plain).decode()

    def canaries(self) -> set[bytes]:
        """Return what must be found nowhere: each half of each key, as bytes and as hexadecimal digits."""
        halves = {*self.masters.values(), *self.secrets}
        for key in (*self.wrapping, *self.tenants.values(), *self.data.values()):
            halves |= {key[:32], key[32:]}
        return halves | {half.hex().encode() for half in halves} | {half.hex().upper().encode() for half in halves}


def unwrap(store: Path, db: Client) -> Keys:
    """Unwrap all keys of a database with what is in its key store."""
    masters = {int(file.suffix[1:]): bytes.fromhex(file.read_text()) for file in store.glob("master.*")}
    keys = Keys(masters, [], [], {}, {})
    for tenant, name, version, wrapped in db.rows("select tenant_id, id, master_version, wrapped from llm.tenant_keys where shredded_at is null"):
        tenant_secret = (store / f"tenant.{name.hex}").read_bytes()
        wrapping = HKDFExpand(hashes.SHA512(), 64, b"pg_llm tenant key" + name.bytes).derive(masters[version] + tenant_secret)
        keys.secrets.append(tenant_secret)
        keys.wrapping.append(wrapping)
        keys.tenants[tenant] = unseal(wrapping, wrapped, tenant, "llm.tenant_keys", "wrapped", str(name))
    for tenant, name, version, wrapped in db.rows("select tenant_id, key_id, version, wrapped from llm.data_key_versions"):
        if tenant in keys.tenants:
            keys.data[name.hex, version] = unseal(keys.tenants[tenant], wrapped, tenant, "llm.data_key_versions", "wrapped", str(name))
    return keys
