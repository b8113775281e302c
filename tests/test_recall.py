"""Reading what is remembered."""

from __future__ import annotations

from psycopg.types.json import Jsonb

from tests.support import Client


def remember(client: Client, **contents: str) -> None:
    """Remember sentences of agent a."""
    for name, content in contents.items():
        client.run("select llm.remember('agent', 'a', %s, %s, p_content => %s)", name, Jsonb(name), content)


def found(client: Client, query: str) -> list[str]:
    """Return the predicates that a search finds."""
    return client.column("select (memory).predicate from llm.search_memories(%s)", query)


def test_a_fact_is_found_by_any_of_its_words_and_by_words_like_them(app: Client) -> None:
    with app.tenant("acme"):
        remember(app, pet="Anne has a grey cat called Müsli", job="Anne repairs bicycles in Bergen", food="Likes rye bread")
        assert found(app, "cat") == ["pet"]
        assert found(app, "the CAT of Anne")[0] == "pet"
        assert found(app, "bicycle") == ["job"]
        assert found(app, "müsli") == ["pet"]
        assert found(app, "zeppelin") == []
        for odd in ("", " ", "'", "a & b | !c", "<->", ":*", "\\", "%", "((("):
            found(app, odd)


def test_what_no_longer_holds_is_not_found(app: Client) -> None:
    """mem0ai/mem0#3695: deleted memories were still found."""
    with app.tenant("acme"):
        remember(app, pet="a cat", job="a cat sitter", food="cat food", drink="cat milk")
        ids = dict(app.rows("select predicate, memory_id from llm.list_memories()"))
        app.run("select llm.end_memory(%s)", ids["pet"])
        app.run("select llm.forget_memory(%s)", ids["job"])
        app.run("select llm.update_memory(%s, '1', 'dog food')", ids["food"])
        assert found(app, "cat") == ["drink"]
        assert set(app.column("select predicate from llm.list_memories()")) == {"food", "drink"}


def test_a_search_may_be_narrowed(app: Client) -> None:
    with app.tenant("acme"):
        remember(app, pet="a cat")
        app.run("select llm.remember('conversation', 'c', 'topic', '1', p_content => 'a cat', p_user_id => %s)", "0" * 31 + "1")
        assert len(found(app, "cat")) == 2
        for narrowed in ("p_scope => 'conversation'", "p_owner => 'c'", "p_user_id => '00000000-0000-0000-0000-000000000001'"):
            assert app.column(f"select (memory).predicate from llm.search_memories('cat', {narrowed})") == ["topic"]
        assert len(app.rows("select * from llm.search_memories('cat', p_limit => 1)")) == 1


def test_a_list_is_read_page_by_page(app: Client) -> None:
    with app.tenant("acme"):
        app.run("select llm.remember_all((select jsonb_agg(jsonb_build_object('scope', 'agent', 'owner', 'a', 'predicate', 'p' || n, 'value', n))"
                " from generate_series(1, 25) n))")  # fmt: skip
        values, last = [], None
        while page := app.rows("select memory_id, value from llm.list_memories(p_limit => 10, p_after => %s)", last):
            values += [value for _, value in page]
            last = page[-1][0]
        assert sorted(values) == list(range(1, 26))
        ids = app.column("select memory_id from llm.list_memories()")
        assert app.column("select memory_id from llm.get_memories(%s)", ids[::-1]) == ids[::-1]
        assert app.one("select llm.count_memories('agent', 'a')") == 25
