"""Queues, and putting jobs into them."""

from __future__ import annotations

from tests.support import Client


def test_smoke(bound: Client) -> None:
    first = bound.one("select llm.enqueue('q', '{\"n\": 1}')")
    assert first > 0
    rows = bound.rows("select * from llm.claim_jobs('q')")
    assert rows[0][0] == first
    assert bound.rows("select * from llm.claim_jobs('q')") == []
    assert bound.one("select llm.complete_jobs(%s, %s)", [first], rows[0][1]) == [first]
