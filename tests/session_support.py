"""What tests of sessions share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from psycopg.errors import InvalidAuthorizationSpecification

from tests.support import Client, raises

ANN, BOB = UUID(int=1), UUID(int=2)

#: Id and token of a session, by tenant and user.
type Sessions = dict[tuple[str, UUID], tuple[UUID, str]]


def open_sessions(app: Client) -> Sessions:
    """Make users ann and bob of tenants acme and globex each, and open a session of each."""
    made = {}
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            for name, user in (("ann", ANN), ("bob", BOB)):
                app.run("select llm.create_user(%s, p_user_id => %s)", name, user)
                made[tenant, user] = app.row("""select * from llm.open_session(%s, 'phone', '192.0.2.7', '{"n": 1}')""", user)
    return made


def verified(client: Client, token: str | None, device: str | None = None, tenant: str = "acme") -> list[tuple[Any, ...]]:
    """Return the session of a token."""
    with client.tenant(tenant):
        return client.rows("select tenant_id, user_id, session_id from llm.verify_session(%s, %s)", token, device)


@contextmanager
def invalid() -> Iterator[None]:
    """Expect the one answer to every token that is not valid."""
    with raises(InvalidAuthorizationSpecification, match="^the session is not valid$", hint="log in again"):
        yield
