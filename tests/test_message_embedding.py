"""Messages are found by their meaning."""

from __future__ import annotations

from uuid import UUID

import pytest
from psycopg.errors import ArraySubscriptError, InvalidParameterValue, NoDataFound, UndefinedObject

from tests.support import Client, Database, raises

TALK, OTHER, ANN, BOB = (UUID(int=number) for number in (1, 2, 3, 4))

SEARCH = "select m.message_id from llm.search_messages(%s, p_embedding => %s::vector) m"

#: What is said, and a vector of it.
SAID = {"cats purr": "[1,0,0]", "kittens sleep": "[0.9,0.1,0]", "ships sail": "[0,1,0]"}


def said(number: int) -> UUID:
    """Return the id of a message."""
    return UUID(int=100 + number)


@pytest.fixture
def talk(admin: Client, app: Client) -> Client:
    """An application's client, where acme has said three things, with vectors."""
    admin.run("select llm.create_message_embeddings(3)")
    with app.tenant("acme"):
        app.run("select llm.create_conversation(p_conversation_id => %s, p_user_id => %s)", TALK, ANN)
        for number, text in enumerate(SAID):
            app.run("select llm.append_message(%s, 'user', %s, p_message_id => %s)", TALK, text, said(number))
        ids = [said(number) for number in range(3)]
        assert app.one("select llm.embed_messages(%s, %s::text[]::vector[])", ids, list(SAID.values())) == 3
    return app


def found(client: Client, words: str | None, vector: str | None, more: str = "") -> list[int]:
    """Return the numbers of the messages that are found, in order."""
    rows = client.column(f"select m.message_id from llm.search_messages(%s, p_embedding => %s::vector{more}) m", words, vector)
    return [each.int - 100 for each in rows]


def test_the_nearest_come_first(talk: Client) -> None:
    with talk.tenant("acme"):
        assert found(talk, None, "[1,0,0]") == [0, 1, 2]
        assert found(talk, None, "[0,1,0]", ", p_limit => 1") == [2]
        assert found(talk, None, "[1,0,0]", ", p_limit => 1, p_offset => 1") == [1]
        assert found(talk, None, "[1,0,0]", ", p_limit => 0") == []
        rank, headline = talk.row("select rank, headline from llm.search_messages(null, p_embedding => '[1,0,0]', p_limit => 1)")
        assert (round(rank, 6), headline) == (1, "cats purr")


def test_words_and_meaning_go_together(talk: Client) -> None:
    """What is among the first of both lists comes before what is the first of one."""
    with talk.tenant("acme"):
        assert found(talk, "kittens", "[1,0,0]") == [1, 0, 2]
        assert found(talk, "kittens", None) == [1]
        headline = talk.one("select headline from llm.search_messages('kittens', p_embedding => '[1,0,0]') limit 1")
        assert headline == "«kittens» sleep"


def test_a_conversation_a_tenant_and_a_user_find_their_own(talk: Client) -> None:
    """RLS-04"""
    for tenant, user in (("acme", BOB), ("globex", ANN)):
        with talk.tenant(tenant):
            talk.run("select llm.create_conversation(p_conversation_id => %s, p_user_id => %s)", OTHER, user)
            talk.run("select llm.append_message(%s, 'user', 'cats', p_message_id => %s)", OTHER, said(9))
            talk.run("select llm.embed_messages(%s, array['[1,0,0]']::vector[])", [said(9)])
    with talk.tenant("acme"):
        assert sorted(found(talk, None, "[1,0,0]")) == [0, 1, 2, 9]
        assert found(talk, None, "[1,0,0]", f", p_conversation_id => '{OTHER}'") == [9]
        talk.run("select llm.set_user(%s)", BOB)
        assert found(talk, None, "[1,0,0]") == [9]
        with raises(NoDataFound, match=f"message {said(0)} cannot be embedded", hint="another user's"), talk.transaction():
            talk.run("select llm.embed_messages(%s, array['[1,0,0]']::vector[])", [said(0)])
    with talk.tenant("globex"):
        assert found(talk, None, "[1,0,0]") == [9]


def test_what_is_deleted_is_not_found_and_has_no_vector(talk: Client, db: Client) -> None:
    with talk.tenant("acme"):
        talk.run("select llm.delete_message(%s)", said(0))
        assert found(talk, None, "[1,0,0]") == [1, 2]
    assert db.column("select id::uuid from llm.points_message_embeddings order by 1") == [said(1), said(2)]
    with talk.tenant("acme"):
        talk.run("select llm.delete_conversation(%s)", TALK)
        assert found(talk, None, "[1,0,0]") == []
    assert db.one("select count(*) from llm.points_message_embeddings") == 0


def test_messages_and_vectors_go_together(talk: Client, db: Client) -> None:
    db.run("delete from llm.conversations")
    assert db.one("select count(*) from llm.points_message_embeddings") == 0


def test_a_forgotten_users_vectors_are_counted(talk: Client, database: Database) -> None:
    admin = database.client("admin")
    with admin.tenant("acme"):
        receipt = {row[0]: row[1] for row in admin.rows("select relation, rows from llm.forget_user(%s)", ANN)}
    assert receipt["llm.points_message_embeddings"] == 3


def test_workers_find_vectors(admin: Client, app: Client) -> None:
    assert admin.one("select llm.create_message_embeddings(3, 'small')") is True
    assert admin.one("select llm.create_message_embeddings(3)") is False
    with app.tenant("acme"):
        app.run("select llm.create_conversation(p_conversation_id => %s)", TALK)
        app.run("select llm.append_message(%s, 'user', 'cats purr', p_message_id => %s)", TALK, said(0))
        assert app.one("select llm.embed_messages(%s)", [said(0)]) == 1
        assert app.one("select llm.embed_messages(%s)", [said(0)]) == 1
        (job,) = app.rows("select id, token, content, model from llm.claim_embedding_jobs('message_embeddings', 9)")
        assert job[2:] == ("cats purr", "small")
        assert found(app, None, "[1,0,0]") == []
        app.run("select llm.complete_embedding_jobs(%s, %s, array['[1,0,0]']::vector[])", [job[0]], job[1])
        assert found(app, None, "[1,0,0]") == [0]


def test_what_cannot_be_embedded_is_told(app: Client, talk: Client) -> None:
    with talk.tenant("acme"):
        talk.run("select llm.append_message(%s, 'assistant', 'I', p_message_id => %s, p_status => 'streaming')", TALK, said(5))
        for ids in ([said(7)], [said(5)], [said(0), None]):
            with raises(NoDataFound, match="message .* cannot be embedded", hint="streaming"), talk.transaction():
                talk.run("select llm.embed_messages(%s::uuid[])", ids)
        for some, vectors in ((None, None), ([said(0)], ["[1,0,0]", "[1,0,0]"])):
            with raises(ArraySubscriptError, match="messages have .* vectors", hint="a vector for each id"), talk.transaction():
                talk.run("select llm.embed_messages(%s::uuid[], %s::text[]::vector[])", some, vectors)
        assert talk.one("select llm.embed_messages('{}', '{}')") == 0
        with raises(InvalidParameterValue, match="there is no word to search for in null", hint="p_embedding"), talk.transaction():
            found(talk, None, None)


def test_without_a_collection_the_way_to_it_is_told(app: Client) -> None:
    with app.tenant("acme"):
        app.run("select llm.create_conversation(p_conversation_id => %s)", TALK)
        app.run("select llm.append_message(%s, 'user', 'cats purr', p_message_id => %s)", TALK, said(0))
        with raises(UndefinedObject, match="no vectors of messages are kept here", hint="llm.create_message_embeddings"), app.transaction():
            found(app, None, "[1,0,0]")
        with raises(UndefinedObject, match="message_embeddings", hint="create"):
            app.run("select llm.embed_messages(%s)", [said(0)])
