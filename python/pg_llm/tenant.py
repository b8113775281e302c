"""Which tenant a call works for, at the price of a cached look-up."""

from __future__ import annotations

from . import spi
from .coherence import Answer

#: Not llm.current_tenant(): the caller may just have asked that, under another role, and what row-level security is about is planned for one role.
_BOUND = spi.plan("select llm._bound_tenant() as tenant")
_ANY_ROLE_IS_BOUND = spi.plan("select llm._any_role_is_bound() as bound")


def _read_bound() -> tuple[bool, int]:
    return _ANY_ROLE_IS_BOUND.row()["bound"], 0


_bound = Answer("tenant_roles", _read_bound)


def verified(claimed: str | None) -> str | None:
    """Return the tenant of this call. `claimed` is the setting, which any role may set: it counts only for a role that is not bound."""
    if _bound.get():
        tenant: str | None = _BOUND.row()["tenant"]
        return claimed if tenant is None else tenant
    return claimed
