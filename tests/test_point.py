"""Points."""

from __future__ import annotations

from tests.support import Client


def test_points(admin: Client, acme: Client) -> None:
    admin.run("select llm.create_collection('docs', 3)")
    assert acme.row(
        "select * from llm.upsert_points('docs', %s)",
        '[{"id":"a","embedding":[1,2,3],"content":"x"},{"id":1,"embedding":"[1,2,4]","payload":{"a":1}}]',
    ) == (2, 0, 0)
    assert acme.row("select * from llm.upsert_points('docs', p_ids => %s, p_contents => %s)", ["a", "b"], ["x", "y"]) == (1, 0, 1)
    acme.run("commit")
    assert admin.one("select llm.drop_collection('docs')") is True
