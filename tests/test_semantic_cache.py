"""Answers of language models, found by what was asked or something like it: never those to another question, model, tenant or user."""

from __future__ import annotations

from collections.abc import Iterator
from math import cos, sin
from typing import Any
from uuid import UUID

import pytest
from psycopg.errors import DataException, InsufficientPrivilege, InvalidParameterValue, ObjectNotInPrerequisiteState
from psycopg.types.json import Jsonb

from tests.support import Client, Database, at_once, raises

ANN, BOB = UUID(int=1), UUID(int=2)

GET = "select answer from llm.semantic_cache_get(%s, %s, %s, %s)"
SET = "select llm.semantic_cache_set(%s, %s, %s, %s)"


@pytest.fixture
def acme(app: Client) -> Iterator[Client]:
    """An application's client in a transaction for tenant acme."""
    with app.tenant("acme"):
        yield app


def at(angle: float) -> str:
    """Return a vector whose similarity with that at 0 is the cosine of the angle."""
    return f"[{cos(angle)},{sin(angle)},0]"


def get(client: Client, prompt: str, embedding: str | None, threshold: float = 0.9, model: str = "m") -> Any:
    """Return the answer, None when there is none."""
    found = client.column(GET, prompt, embedding, threshold, model)
    assert len(found) <= 1
    return found[0] if found else None


def put(client: Client, prompt: str, embedding: str | None, answer: object, model: str = "m") -> int:
    """Keep an answer."""
    return int(client.one(SET, prompt, embedding, Jsonb(answer), model))


def test_an_answer_is_found_by_the_same_prompt_and_by_a_similar_one(acme: Client) -> None:
    entry = put(acme, "How old is the sun?", at(0), "old")
    put(acme, "How far is the sun?", at(1), "far")
    assert get(acme, "How old is the sun?", None) == "old"
    assert get(acme, "What is the age of the sun?", at(0.2)) == "old"
    assert get(acme, "What is the age of the sun?", at(0.9)) == "far"
    assert get(acme, "Who am I?", at(3)) is None
    assert get(acme, "Who am I?", None) is None
    row = acme.row("select similarity, prompt, entry_id, lookup_id, shadow_answer from llm.semantic_cache_get('?', %s, 0.9, 'm')", at(0.2))
    assert row == (pytest.approx(cos(0.2)), "How old is the sun?", entry, None, None)


def test_an_answer_takes_the_place_of_one_to_the_same_prompt(acme: Client) -> None:
    assert put(acme, "q", at(0), 1) == put(acme, "q", at(1), 2)
    assert (get(acme, "q", None), get(acme, "?", at(1)), get(acme, "?", at(0))) == (2, 2, None)


@pytest.mark.parametrize(("threshold", "answer"), [(0.6, "a"), (0.600001, None), (0.599999, "a"), (1.0, None)])
def test_a_similarity_equal_to_the_threshold_is_enough(acme: Client, threshold: float, answer: str | None) -> None:
    put(acme, "q", "[3,4,0]", "a")
    assert get(acme, "?", "[5,0,0]", threshold) == answer
    assert get(acme, "?", "[6,8,0]", 1.0) in ("a", None), "of the same direction, as far as single precision can tell"
    assert get(acme, "q", None, 1.0) == "a"


@pytest.mark.parametrize("threshold", [0, -0.5, 1.0001, float("nan"), None])
def test_bad_thresholds_are_refused(acme: Client, threshold: float | None) -> None:
    with raises(InvalidParameterValue, match="answers cannot be found by a similarity of", hint="semantic_cache_report"):
        acme.run(GET, "q", at(0), threshold, "m")


def test_bad_embeddings_are_refused(acme: Client) -> None:
    put(acme, "q", at(0), 1)
    for call, more in ((GET, (0.9, "m")), (SET, (Jsonb(1), "m"))):
        with raises(InvalidParameterValue, match="the embedding of the prompt is zero", hint="Embed the prompt again"), acme.transaction():
            acme.run(call, "?", "[0,0,0]", *more)
        with (
            raises(InvalidParameterValue, match="has 2 dimensions, those it is compared with have 3", hint="name it in p_parameters"),
            acme.transaction(),
        ):
            acme.run(call, "?", "[1,2]", *more)
        for bad in ("[nan,1,1]", "[inf,1,1]"):
            with pytest.raises(DataException, match="not allowed in vector"), acme.transaction():
                acme.run(call, "?", bad, *more)
    assert put(acme, "?", "[1,2]", 1, "another") > 0


def test_bad_prompts_models_and_answers_are_refused(acme: Client) -> None:
    for prompt, count in (("", "0"), (None, "no"), ("x" * 1048577, "1048577")):
        with raises(InvalidParameterValue, match=f"the prompt has {count} bytes", hint="1 byte to 1 MB"), acme.transaction():
            acme.run(SET, prompt, None, Jsonb(1), "m")
    with raises(InvalidParameterValue, match="the name of a model has no bytes", hint="another's"), acme.transaction():
        acme.run(GET, "q", None, 0.9, None)
    with raises(InvalidParameterValue, match="an answer of no type cannot be kept for all seconds", hint="'null'"), acme.transaction():
        acme.run(SET, "q", None, None, "m")
    with raises(InvalidParameterValue, match="an answer of number cannot be kept for 0 seconds", hint="more than 0"):
        acme.run("select llm.semantic_cache_set('q', null, '1', 'm', p_ttl => 0)")


def test_answers_are_of_one_model_system_prompt_and_parameters(acme: Client) -> None:
    """BerriAI/litellm#29086: the same request in another order is the same."""
    put_it = "select llm.semantic_cache_set('q', %s, %s, %s, %s, %s)"
    get_it = "select answer from llm.semantic_cache_get('q', %s, 0.1, %s, %s, %s)"
    scopes = [("m", "", "{}"), ("n", "", "{}"), ("m", "Be brief.", "{}"), ("m", "", '{"a": 1, "b": [2]}'), ("m", "", '{"a": 1, "b": [3]}')]
    for number, scope in enumerate(scopes):
        acme.run(put_it, at(0), Jsonb(number), *scope)
    for number, scope in enumerate(scopes):
        assert acme.column(get_it, at(0), *scope) == [number]
    assert acme.column(get_it, at(0), "m", "", '{"b": [2], "a": 1}') == [3]
    assert acme.column(get_it, at(0), "m", None, None) == [0]
    assert acme.column(get_it, at(0), "m", "", '{"a": 2}') == []


def test_answers_are_a_tenants_and_a_users(database: Database) -> None:
    """RLS-04; BerriAI/litellm#19575, vllm-project/semantic-router#2134: another user's answer, to the byte."""
    app = database.client("app")
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            for user in (ANN, BOB, None):
                app.run("select llm.set_user(%s)", user)
                put(app, "q", at(0), f"{user} at {tenant}")
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            for user in (ANN, BOB, None):
                app.run("select llm.set_user(%s)", user)
                assert get(app, "q", None) == get(app, "?", at(0), 0.1) == f"{user} at {tenant}"
                assert app.one("select count(*) from llm.semantic_entries") == (3 if user is None else 1)
            app.run("select llm.set_user(%s)", ANN)
            assert app.one("select llm.semantic_cache_invalidate(p_model => 'm')") == 1
            for write in ("delete from llm.semantic_entries", "delete from llm.semantic_lookups", "update llm.semantic_entries set answer = '1'"):
                with raises(InsufficientPrivilege), app.transaction():
                    app.run(write)
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
        get(app, "q", None)


def test_what_is_shared_is_given_to_all_users_of_a_tenant(app: Client) -> None:
    get_it = "select answer from llm.semantic_cache_get('q', null, 0.9, 'm', p_shared => %s)"
    with app.tenant("acme"):
        app.run("select llm.set_user(%s)", ANN).run("select llm.semantic_cache_set('q', null, '1', 'm', p_shared => true)")
    with app.tenant("acme"):
        app.run("select llm.set_user(%s)", BOB)
        assert (app.column(get_it, True), app.column(get_it, False)) == ([1], [])
    with app.tenant("globex"):
        assert app.column(get_it, True) == []


def test_a_forgotten_user_leaves_no_answers(database: Database, db: Client) -> None:
    app = database.client("app")
    with app.tenant("acme"):
        app.run("select llm.set_user(%s)", ANN).run("select llm.semantic_cache_set('q', null, '1', 'm', p_shared => true)")
        app.run("select * from llm.semantic_cache_get('q', null, 0.9, 'm', p_shadow => true)")
    with db.tenant("acme"):
        db.run("select * from llm.forget_user(%s, 'asked for')", ANN)
    assert db.one("select (select count(*) from llm.semantic_entries) + (select count(*) from llm.semantic_lookups)") == 0


# Until when


def test_answers_are_given_for_a_time(database: Database, db: Client) -> None:
    app = database.client("app")
    with app.tenant("acme"):
        app.run("select llm.semantic_cache_set('q', %s, '1', 'm', p_ttl => 3600)", at(0))
        put(app, "for ever", at(1), 2)
        assert get(app, "q", None) == 1
    db.run("update llm.semantic_entries set expires_at = expires_at - interval '1 hour'")
    with app.tenant("acme"):
        assert (get(app, "q", None), get(app, "?", at(0)), get(app, "for ever", None)) == (None, None, 2)
        put(app, "q", at(0), 3)
        assert get(app, "q", None) == 3


def test_expired_answers_and_old_lookups_are_deleted(db: Client, app: Client) -> None:
    with app.tenant("acme"):
        for prompt in ("a", "b"):
            app.run("select llm.semantic_cache_set(%s, null, '1', 'm', p_ttl => 3600)", prompt)
            app.run("select * from llm.semantic_cache_get(%s, null, 0.9, 'm', p_shadow => true)", prompt)
    db.run("update llm.semantic_entries set expires_at = now() - interval '1 s' where prompt = 'a'")
    db.run("update llm.semantic_lookups set asked_at = now() - interval '91 days' where prompt = 'a'")
    db.run("call llm.expire_semantic_cache()")
    assert db.rows("select e.prompt, l.prompt from llm.semantic_entries e cross join llm.semantic_lookups l") == [("b", "b")]
    assert "llm.expire_semantic_cache" in db.column("select name from llm._regular_calls('17 * * * *')")


def test_answers_with_a_tag_or_of_a_model_are_forgotten(acme: Client) -> None:
    for prompt, tags, model in (("a", ["x"], "m"), ("b", ["x", "y"], "m"), ("c", ["y"], "n"), ("d", None, "n")):
        acme.run("select llm.semantic_cache_set(%s, null, '1', %s, p_tags => %s)", prompt, model, tags)
    with raises(InvalidParameterValue, match="not said which answers", hint="p_tag, p_model"), acme.transaction():
        acme.run("select llm.semantic_cache_invalidate()")
    assert acme.one("select llm.semantic_cache_invalidate('x')") == 2
    assert acme.one("select llm.semantic_cache_invalidate('y', 'm')") == 0
    assert acme.one("select llm.semantic_cache_invalidate(p_model => 'n')") == 2


def test_an_answer_is_outdated_when_what_it_depends_on_changes(database: Database) -> None:
    """And who is slow cannot put an old one back."""
    first, second = database.clients(2, "app")
    keep = "select llm.semantic_cache_set('q', %s, %s, 'm', p_depends_on => '{prompt:7}', p_token => %s)"
    with first.tenant("acme"):
        token = first.one("select llm.cache_token()")
        assert first.one(keep, at(0), Jsonb("old"), token) is not None
        assert get(first, "q", None) == "old"
    with second.tenant("acme"):
        second.run("select llm.cache_bump('prompt:7')")
    with first.tenant("acme"):
        assert (get(first, "q", None), get(first, "?", at(0))) == (None, None)
        assert first.one(keep, at(0), Jsonb("old"), token) is None
        assert get(first, "q", None) is None
        assert first.one(keep, at(0), Jsonb("new"), first.one("select llm.cache_token()")) is not None
        assert get(first, "q", None) == get(first, "?", at(0)) == "new"


def test_of_too_many_answers_those_used_last_are_kept(db: Client, app: Client) -> None:
    with app.tenant("acme"):
        for number in range(8):
            put(app, f"q{number}", None, number)
        put(app, "q", None, 1, "another")
    db.run("update llm.semantic_entries set used_at = now() - id * interval '2 hours'")
    db.run("update llm.semantic_entries set expires_at = now() - interval '1 s' where prompt = 'q0'")
    with app.tenant("acme"):
        assert get(app, "q7", None) == 7
        scope = db.one("select distinct scope from llm.semantic_entries where model = 'm'")
    assert db.one("select llm._evict_semantic('acme', %s, 3)", scope) == 5
    assert sorted(db.column("select prompt from llm.semantic_entries")) == ["q", "q1", "q2", "q7"]
    assert db.one("select llm._evict_semantic('acme', %s, 3)", scope) == 0


def test_sixteen_answers_to_one_prompt_at_once_are_one(database: Database) -> None:
    """Q-16"""
    database.client("admin").run("select llm.bind_role('app', 'acme')")
    clients = database.clients(16, "app")
    ids = at_once(clients, "select llm.semantic_cache_set('q', %s, to_jsonb(pg_backend_pid()), 'm')", at(0))
    assert len(set(ids)) == 1


# Shadow mode


def test_in_shadow_mode_nothing_is_answered_and_all_is_recorded(acme: Client) -> None:
    look = "select answer, similarity, shadow_answer, lookup_id from llm.semantic_cache_get(%s, %s, 0.99, 'm', p_shadow => true)"
    assert acme.row(look, "first", at(0))[:3] == (None, None, None)
    put(acme, "first", at(0), "one")
    # Similarities 1, 0.995, 0.95, 0.88, 0.54; agreed, agreed, wrong, not judged, wrong.
    for angle, agreed in ((0.0, True), (0.1, True), (0.3, False), (0.5, None), (1.0, False)):
        answer, similarity, shadow, lookup = acme.row(look, f"prompt {angle}", at(angle))
        assert (answer, similarity, shadow) == (None, pytest.approx(cos(angle)), "one")
        if agreed is not None:
            assert acme.one("select llm.semantic_cache_judge(%s, %s)", lookup, agreed) is True
    nothing = acme.one("select id from llm.semantic_lookups where prompt = 'first'")
    assert acme.one("select llm.semantic_cache_judge(%s, true)", nothing) is False
    assert acme.one("select llm.semantic_cache_judge(-1, true)") is False
    report = acme.rows("select * from llm.semantic_cache_report('m', p_thresholds => '{0.5,0.85,0.9,0.99,1}')")
    assert [row[:3] for row in report] == [(0.5, 6, 5), (0.85, 6, 4), (0.9, 6, 3), (0.99, 6, 2), (1, 6, 1)]
    assert [row[4:6] for row in report] == [(4, 2), (3, 1), (3, 1), (2, 0), (1, 0)]
    assert [row[6] for row in report] == pytest.approx([2 / 4, 1 / 3, 1 / 3, 0, 0])
    assert report[0][3] == pytest.approx(5 / 6)
    assert acme.rows("select * from llm.semantic_cache_report('another')") == []


def test_lookups_are_a_tenants_and_a_users(app: Client) -> None:
    lookups = {}
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            app.run("select llm.set_user(%s)", ANN)
            put(app, "q", None, 1)
            lookups[tenant] = app.one("select lookup_id from llm.semantic_cache_get('q', null, 1, 'm', p_shadow => true)")
    with app.tenant("acme"):
        assert app.one("select llm.semantic_cache_judge(%s, true)", lookups["globex"]) is False
        assert app.one("select max(lookups) from llm.semantic_cache_report()") == 1
        app.run("select llm.set_user(%s)", BOB)
        assert app.one("select llm.semantic_cache_judge(%s, true)", lookups["acme"]) is False
        assert app.rows("select * from llm.semantic_cache_report()") == []
