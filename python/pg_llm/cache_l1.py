"""What backends keep of the cache."""

from __future__ import annotations

from sys import getsizeof
from time import time

from . import spi, tenant
from .coherence import Cache

_READ = spi.plan("select tenant_id, value, expires_at from llm._cache_entry_to_keep($1, $2)", "text", "text")


def _read(tenant_id: str, namespace: str, key: str) -> tuple[tuple[str, float] | None, int] | None:
    row = _READ.row(key, namespace)
    # A caller who claims a tenant that is not his must not fill that tenant's cache; what is not there is not kept either: it will come.
    if row["value"] is None or (row["tenant_id"] or "") != tenant_id:
        return None
    return (row["value"], row["expires_at"]), getsizeof(row["value"]) + getsizeof(key)


_entries = Cache("cache", _read)


def get(key: str | None, namespace: str | None, claimed_tenant: str | None) -> str | None:
    """Return the JSON text of an entry; None when the table is to be asked."""
    if key is None or namespace is None:
        return None
    found: tuple[str, float] | None = _entries.get(tenant.verified(claimed_tenant) or "", namespace, key)
    return None if found is None or found[1] <= time() else found[0]
