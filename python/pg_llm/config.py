"""The cache of configuration values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from sys import getsizeof
from time import monotonic

from . import spi, tenant
from .coherence import Cache

_READ = spi.plan("select tenant_id, value from llm._config_to_cache($1)", "text")
_CURRENT_TENANT = spi.plan("select llm.current_tenant() as tenant")


def _read(tenant_id: str, key: str) -> tuple[str | None, int] | None:
    row = _READ.row(key)
    # A caller who claims a tenant that is not his must not fill that tenant's cache.
    if (row["tenant_id"] or "") != tenant_id:
        return None
    return row["value"], getsizeof(row["value"]) + getsizeof(key)


def _depends(tenant_id: str, key: str) -> tuple[tuple[str, str], ...]:
    return (tenant_id, key), ("*", key)


_values = Cache("config", _read, _depends)


def cached(key: str | None, claimed_tenant: str | None) -> str | None:
    """Return the JSON text of a value by the cache; None when there is none, or when the table is to be asked."""
    if key is None:
        return None
    value: str | None = _values.get(tenant.verified(claimed_tenant) or "", key)
    return value


def is_cached(key: str | None, tenant_id: str | None) -> bool:
    """Tell whether the cache holds a valid value."""
    entry = None if key is None else _values.peek(tenant.verified(tenant_id) or "", key)
    return entry is not None and entry.value is not None


def entries() -> list[tuple[str, str, datetime, bool]]:
    """Return (key, JSON text, end, validity) of each entry of the current tenant."""
    current = _CURRENT_TENANT.row()["tenant"] or ""
    now, clock = datetime.now(UTC), monotonic()
    return [
        (key, entry.value, now + timedelta(seconds=entry.expires - clock), is_valid)
        for (tenant_id, key), entry, is_valid in _values.entries()
        if tenant_id == current and entry.value is not None
    ]
