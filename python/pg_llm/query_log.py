"""Keeps some of the vectors that are searched for, so that recall is measured with what users ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import random

from . import spi
from .search_plan import Collection

_LOG = spi.plan("select llm._log_query($1, $2, $3, $4)", "text", "text", "text", "uuid")


class _State:
    is_measuring = False


def note(c: Collection, vector: str, tenant: str, user: str | None) -> None:
    """Keep a query's vector, or not, as the collection's share of logged queries says."""
    if not _State.is_measuring and random() < c.logged_share:  # noqa: S311 - chance, not secrets
        _LOG.rows(c.name, vector, tenant, user)


@contextmanager
def unlogged() -> Iterator[None]:
    """Have searches measured, and not logged."""
    _State.is_measuring = True
    try:
        yield
    finally:
        _State.is_measuring = False
