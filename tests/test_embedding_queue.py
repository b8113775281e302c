"""Points without a vector become jobs."""

from __future__ import annotations

import re
from datetime import timedelta
from uuid import UUID

import pytest
from psycopg.errors import InsufficientPrivilege, InvalidParameterValue, ObjectNotInPrerequisiteState, UndefinedObject

from tests.support import Client, Database, in_tenant, next_transaction, raises

JOBS = "select point_id, model, attempts, token is not null, died_at is not null from llm.embedding_jobs order by id"


@pytest.fixture
def docs(admin: Client, acme: Client) -> Client:
    """An application's client in a transaction for tenant acme, with a collection docs whose texts model m embeds."""
    admin.run("select llm.create_collection('docs', 3)").run("select llm.set_embedding_model('docs', 'm')")
    return acme


def upsert(client: Client, **contents: str | None) -> None:
    client.run("select llm.upsert_points('docs', p_ids => %s, p_contents => %s)", list(contents), list(contents.values()))


def jobs(client: Client) -> list[str]:
    return client.column("select point_id from llm.embedding_jobs order by id")


def test_content_without_a_vector_is_a_job_of_the_same_transaction(docs: Client, db: Client) -> None:
    upsert(docs, a="text a", b="text b")
    docs.run("""select llm.upsert_points('docs', '[{"id": "v", "content": "x", "embedding": [1, 2, 3]}, {"id": "w", "embedding": [1, 2, 3]}]')""")
    assert docs.rows(JOBS) == [("a", "m", 0, False, False), ("b", "m", 0, False, False)]
    assert db.column("select point_id from llm.embedding_jobs") == []
    docs.run("rollback")
    assert db.column("select point_id from llm.embedding_jobs") == []


def test_only_a_text_that_changed_is_a_job(docs: Client) -> None:
    upsert(docs, a="text a", b="text b")
    docs.run("select llm.complete_embedding_jobs(array_agg(id), (array_agg(token))[1], array_agg('[1,2,3]'::vector))"
             " from llm.claim_embedding_jobs('docs')")  # fmt: skip
    assert jobs(docs) == []
    upsert(docs, a="text a", b="another text")
    docs.run("select llm.set_payload('docs', array['a', 'b'], '{\"k\": 1}')")
    assert jobs(docs) == ["b"]
    before = docs.row("select id, created_at from llm.embedding_jobs")
    upsert(docs, b="another text")
    docs.run("select llm.set_payload('docs', array['b'], '{\"k\": 2}')")
    assert docs.row("select id, created_at from llm.embedding_jobs") == before, "as it was"


def test_a_job_ends_with_its_point_its_text_or_a_vector_from_elsewhere(docs: Client) -> None:
    upsert(docs, a="text a", b="text b", c="text c")
    docs.run("select llm.delete_points('docs', array['a'])")
    docs.run("select llm.upsert_points('docs', p_ids => array['b', 'c'], p_embeddings => array['[1,2,3]', '[1,2,4]']::vector[],"
             " p_contents => array['text b', null])")  # fmt: skip
    assert jobs(docs) == []


def test_a_changed_text_begins_again(docs: Client, db: Client) -> None:
    upsert(docs, a="text a")
    docs.run("select llm.fail_embedding_jobs(array_agg(id), (array_agg(token))[1], 'too long', false) from llm.claim_embedding_jobs('docs')")
    assert docs.rows(JOBS) == [("a", "m", 1, False, True)]
    upsert(docs, a="a shorter text")
    assert docs.rows(JOBS) == [("a", "m", 0, False, False)]
    assert db.one("select count(*) from llm.embedding_jobs where last_error is not null") == 0


def test_what_is_there_already_becomes_jobs_of_all_tenants(admin: Client, database: Database) -> None:
    admin.run("select llm.create_collection('docs', 3)")
    app = database.client("app")
    for tenant in "ab":
        with app.tenant(tenant):
            upsert(app, x="text", y="text")
            app.run("select llm.upsert_points('docs', p_ids => array['z'], p_embeddings => array['[1,2,3]']::vector[])")
    assert admin.one("select llm.set_embedding_model('docs', 'm')") == 4
    assert admin.rows("select * from llm.embedding_backlog()") == [("a", "docs", 2, 2, 0), ("b", "docs", 2, 2, 0)]
    assert admin.one("select llm.set_embedding_model('docs', 'm')") == 4
    with app.tenant("a"):
        assert app.column("select distinct model from llm.embedding_jobs") == ["m"]
        assert app.row("select pending, due, running, retrying, dead, circuit from llm.embedding_progress") == (2, 2, 0, 0, 0, "closed")
        assert app.one("select oldest from llm.embedding_progress") > timedelta(0)
    assert admin.one("select llm.set_embedding_model('docs', 'n')") == 4, "of the tenants' vectors none is of model m"
    with app.tenant("a"):
        assert app.column("select distinct model from llm.embedding_jobs") == ["n"]


def test_a_model_is_not_exchanged_below_its_vectors(docs: Client, admin: Client) -> None:
    docs.run("select llm.upsert_points('docs', p_ids => array['a'], p_embeddings => array['[1,2,3]']::vector[])").run("commit")
    with raises(ObjectNotInPrerequisiteState, "collection docs has vectors of model 'm'", hint="copy_for_model"):
        admin.run("select llm.set_embedding_model('docs', 'n')")
    assert admin.one("select model from llm.list_collections()") == "m"


def test_without_a_model_there_are_no_jobs(docs: Client, admin: Client, db: Client) -> None:
    upsert(docs, a="text a")
    docs.run("commit")
    assert admin.one("select llm.set_embedding_model('docs', null)") == 0
    assert db.one("select count(*) from llm.embedding_jobs") == 0
    in_tenant(docs, "acme")
    upsert(docs, b="text b")
    assert jobs(docs) == []
    docs.run("commit")
    assert admin.one("select llm.set_embedding_model('docs', 'm')") == 2


def test_jobs_go_with_their_collection(docs: Client, admin: Client, db: Client) -> None:
    upsert(docs, a="text a")
    docs.run("commit")
    admin.run("select llm.drop_collection('docs')")
    assert db.one("select count(*) from llm.embedding_jobs") == 0


def test_jobs_of_a_forgotten_user_are_gone(docs: Client, db: Client) -> None:
    users = [docs.one("select llm.create_user(%s)", f"{name}@x.org") for name in "ab"]
    docs.run("select llm.upsert_points('docs', p_ids => array['a', 'b'], p_contents => array['x', 'y'], p_user_ids => %s)", users)
    next_transaction(docs).run("select llm.set_user(%s)", users[1])
    assert jobs(docs) == ["b"]
    docs.run("commit")
    with db.tenant("acme"):
        db.run("select llm.forget_user(%s)", users[0])
    in_tenant(docs, "acme")
    assert jobs(docs) == ["b"]


def test_only_an_administrator_sets_a_model_and_sees_all_tenants(docs: Client) -> None:
    for statement in ("select llm.set_embedding_model('docs', 'm')", "select * from llm.embedding_backlog()"):
        with raises(InsufficientPrivilege), docs.transaction():
            docs.run(statement)


@pytest.mark.parametrize("wrong", ["p_max_attempts => 0", "p_base_delay => '0 s'", "p_failure_threshold => null", "p_open_for => '1 day'"])
def test_retries_that_make_no_sense_are_refused(docs: Client, admin: Client, wrong: str) -> None:
    with raises(InvalidParameterValue, "jobs cannot be retried like this", hint="1 to 100 attempts"):
        admin.run(f"select llm.set_embedding_model('docs', 'm', {wrong})")
    with raises(UndefinedObject, "does not exist"):
        admin.run("select llm.set_embedding_model('nothing', 'm')")


def test_dropping_the_extension_keeps_jobs_and_setting_up_makes_more(docs: Client, db: Client) -> None:
    upsert(docs, a="text a")
    docs.run("commit")
    db.run("set client_min_messages = warning").run("drop extension pg_llm cascade").run("create extension pg_llm").run("select llm.setup()")
    assert db.column("select tgname::text from pg_trigger where tgrelid = 'llm.points_docs'::regclass order by 1") == [
        "embed_deleted", "embed_inserted", "embed_updated"
    ]  # fmt: skip
    assert db.column("select point_id from llm.embedding_jobs") == ["a"]


def test_the_doctor_tells_of_jobs_that_go_wrong(docs: Client, admin: Client, db: Client) -> None:
    def wrong() -> dict[str, str]:
        return dict(admin.rows("select name, detail from llm.doctor() where not ok and name ~ 'embedding'"))

    upsert(docs, a="text a", b="text b", c="text c")
    docs.run("commit")
    assert wrong() == {}
    db.run("update llm.embedding_jobs set due_at = now() - interval '11 minutes'")
    with docs.tenant("acme"):
        claimed = docs.rows("select id, token from llm.claim_embedding_jobs('docs', 2)")
    assert re.fullmatch("due for .*: 1 jobs of collection docs, the first since 20[^,]*", wrong()["embedding jobs are claimed when they are due"])
    db.run("update llm.embedding_jobs set due_at = now() - interval '11 minutes'")
    assert wrong()["embedding jobs are claimed when they are due"].endswith(", 2 of them left behind by workers")
    with docs.tenant("acme"):
        docs.run("select llm.fail_embedding_jobs(%s, %s, 'too long', false)", [row[0] for row in claimed], claimed[0][1])
    db.run("update llm.embedding_jobs set due_at = now()")
    assert wrong() == {"no embedding job was given up": "2 of collection docs, of 1 tenants"}
    with docs.tenant("acme"):
        docs.run("select llm.retry_embedding_jobs('docs')")
    for _ in range(5):
        db.run("update llm.embedding_jobs set due_at = now() - interval '11 minutes'")
        with docs.tenant("acme"):
            docs.run("select llm.fail_embedding_jobs(array[c.id], c.token, '503') from llm.claim_embedding_jobs('docs', 1) c")
    assert wrong() == {"embedding circuits are closed": "docs: 5 batches failed in a row"}, "which is why the others wait"


def test_users_of_a_tenant_see_their_own_jobs(docs: Client) -> None:
    user: UUID = docs.one("select llm.create_user('a@x.org')")
    upsert(docs, a="everybody's")
    next_transaction(docs).run("select llm.set_user(%s)", user)
    upsert(docs, b="his")
    assert jobs(docs) == ["b"]
    assert docs.one("select pending from llm.embedding_progress") == 1
    in_tenant(docs.run("commit"), "other")
    assert jobs(docs) == []
