"""Checkpoints by plain SQL: what the client does not show."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.errors import InvalidParameterValue, ObjectNotInPrerequisiteState
from psycopg.types.json import Jsonb

from tests.support import Client, raises

LONG = b"long " * 1_000


def put(client: Client, thread: str, number: int, *, parent: int | None = None, unchanged: tuple[str, ...] = (), **values: Any) -> tuple[Any, ...]:
    """Put a checkpoint whose values are bytes, or descriptions with their content."""
    contents = [value[1] if isinstance(value, tuple) else value for value in values.values()]
    channels = {
        name: [*value[0][:5], place, value[0][5]] if isinstance(value, tuple) else ["bytes", None, None, "", 0, place, None]
        for place, (name, value) in enumerate(values.items(), 1)
    }
    return client.row(
        "select * from llm.put_checkpoint(%s, '', %s, %s, %s, '{}', %s, %s, %s)",
        thread, str(number), None if parent is None else str(parent), Jsonb({"channel_versions": dict.fromkeys((*unchanged, *values), 1)}),
        Jsonb(channels), contents, list(unchanged),
    )  # fmt: skip


def contents(client: Client, thread: str, number: int) -> list[bytes]:
    """Return the contents of a checkpoint."""
    found: list[bytes] = client.one("select contents from llm.get_checkpoint(%s, '', %s)", thread, str(number))
    return found


def after(stored: dict[str, Any], name: str, keep: int) -> list[Any]:
    """Return the description of a value that goes on from a stored one."""
    type_, log, number, head, digest = stored[name]
    return [type_, log, number, head, keep, digest]


def test_a_checkpoint_takes_over_what_its_parent_has(app: Client) -> None:
    with app.tenant("a"):
        put(app, "t", 1, kept=LONG, other=LONG)
        stored, channels, missing = put(app, "t", 2, parent=1, unchanged=("kept",))
        assert (stored, set(channels), missing) == (True, {"kept"}, [])
        assert contents(app, "t", 2) == [LONG]


def test_what_a_parent_does_not_have_is_asked_for_and_nothing_is_stored(app: Client) -> None:
    with app.tenant("a"):
        put(app, "t", 1, one=LONG)
        assert put(app, "t", 2, parent=1, unchanged=("one", "two"))[::2] == (False, ["two"])
        assert put(app, "t", 2, parent=7, unchanged=("one",))[::2] == (False, ["one"])
        assert app.rows("select * from llm.get_checkpoint('t', '', '2')") == []


@pytest.mark.parametrize("wrong", ["log", "number", "keep", "digest"])
def test_a_value_goes_on_only_from_what_is_there(app: Client, wrong: str) -> None:
    with app.tenant("a"):
        _, channels, _ = put(app, "t", 1, one=LONG)
        value = after(channels, "one", 5_000)
        assert put(app, "t", 2, one=(value, b"more"))[0]
        value = after(channels, "one", 5_000)
        place, other = {"log": (1, "00000000-0000-0000-0000-000000000000"), "number": (2, 2), "keep": (4, 5_001), "digest": (5, "00" * 16)}[wrong]
        value[place] = other
        assert put(app, "t", 3, one=(value, b"more"))[::2] == (False, ["one"])


def test_a_value_is_cut_where_it_changed(app: Client) -> None:
    with app.tenant("a"):
        _, channels, _ = put(app, "t", 1, one=b"a" * 100)
        _, channels, _ = put(app, "t", 2, one=(after(channels, "one", 100), b"b" * 100))
        _, channels, _ = put(app, "t", 3, one=(after(channels, "one", 150), b"c" * 100))
        assert contents(app, "t", 3) == [b"a" * 100 + b"b" * 50 + b"c" * 100]
        _, channels, _ = put(app, "t", 4, one=(after(channels, "one", 100), b""))
        assert contents(app, "t", 4) == [b"a" * 100]
        _, channels, _ = put(app, "t", 5, one=(after(channels, "one", 0), b"d"))
        assert contents(app, "t", 5) == [b"d"]
        assert contents(app, "t", 2) == [b"a" * 100 + b"b" * 100]


def test_only_what_the_caller_lacks_is_returned(app: Client) -> None:
    with app.tenant("a"):
        _, first, _ = put(app, "t", 1, one=LONG)
        _, second, _ = put(app, "t", 2, one=(after(first, "one", 5_000), b"more"))
        for known, rest in (
            ([first["one"][1], 1, first["one"][4]], (1, b"more")),
            ([second["one"][1], 2, second["one"][4]], (2, b"")),
            ([first["one"][1], 1, "00" * 16], (0, LONG + b"more")),
            ([first["one"][1], 3, first["one"][4]], (0, LONG + b"more")),
        ):
            numbers, found = app.row("select known, contents from llm.get_checkpoint('t', '', '2', %s)", Jsonb({"one": known}))
            assert (*numbers, *found) == rest


def test_the_same_checkpoint_put_twice_is_stored_once(app: Client, db: Client) -> None:
    with app.tenant("a"):
        _, channels, _ = put(app, "t", 1, one=LONG)
        for _ in range(2):
            put(app, "t", 2, one=(after(channels, "one", 5_000), b"more"))
        assert contents(app, "t", 2) == [LONG + b"more"]
    assert db.one("select count(*) from llm.checkpoint_pieces") == 2


@pytest.mark.parametrize(
    "channels", ['{"c": 1}', '{"c": ["bytes"]}', '{"c": ["bytes", null, null, "", 0, 9, null]}', '{"c": ["bytes", null, null, "", 5, 1, null]}']
)
def test_a_malformed_value_is_refused(app: Client, channels: str) -> None:
    with raises(InvalidParameterValue, "is not given as it should be", hint="base64"), app.tenant("a"):
        app.run("select llm.put_checkpoint('t', '', '1', null, '{}', '{}', %s, %s)", channels, [LONG])


def test_a_value_of_which_pieces_are_gone_is_not_returned(app: Client, db: Client) -> None:
    with app.tenant("a"):
        _, channels, _ = put(app, "t", 1, one=LONG)
        _, channels, _ = put(app, "t", 2, one=(after(channels, "one", 5_000), b"more"))
    db.run("delete from llm.checkpoint_pieces where number = 1")
    with raises(psycopg.errors.DataCorrupted, "of a checkpoint ends before byte 100", hint="backup"), app.tenant("a"):
        put(app, "t", 3, one=(after(channels, "one", 100), b"x"))
    with raises(psycopg.errors.DataCorrupted, "value is not whole: it has 4 of 5004 bytes", detail="Tenant a", hint="backup"), app.tenant("a"):
        contents(app, "t", 2)


def test_pending_writes_are_in_the_order_in_which_they_are_applied(app: Client) -> None:
    def write(task: str, path: str, indexes: list[int], names: list[str], contents: list[bytes]) -> int:
        stored: int = app.one(
            "select llm.put_checkpoint_writes('t', '', '1', %s, %s, %s, %s, %s, %s)", task, path, indexes, names, ["bytes"] * len(names), contents
        )
        return stored

    with app.tenant("a"):
        assert write("b", "1", [0, 1], ["x", "y"], [b"1", LONG]) == 2
        assert write("a", "2", [0], ["x"], [b"3"]) == 1
        assert write("b", "1", [0, 1, -1], ["z", "z", "__error__"], [b"no", LONG, b"first"]) == 1
        assert write("b", "1", [-1], ["__error__"], [LONG]) == 1
        put(app, "t", 1)
        tasks, names, found = app.row("select write_tasks, write_channels, write_contents from llm.get_checkpoint('t')")
        assert list(zip(tasks, names, found, strict=True)) == [
            ("b", "__error__", LONG), ("b", "x", b"1"), ("b", "y", LONG), ("a", "x", b"3")
        ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        "'', '1', 't', '', '{0}', '{c}', '{bytes}', array[null::bytea]",
        "'', '1', 't', '', '{0}', '{c}', '{null}', '{x}'",
        "'', '1', 't', '', '{0,1}', '{c}', '{bytes}', '{x}'",
        "'', '1', 't', '', null, '{c}', '{bytes}', '{x}'",
        "'', '1', 't', null, '{0}', '{c}', '{bytes}', '{x}'",
        "'', '1', '', '', '{0}', '{c}', '{bytes}', '{x}'",
        "'', repeat('1', 201), 't', '', '{0}', '{c}', '{bytes}', '{x}'",
        "repeat('n', 1001), '1', 't', '', '{0}', '{c}', '{bytes}', '{x}'",
        "null, '1', 't', '', '{0}', '{c}', '{bytes}', '{x}'",
    ],
)
def test_malformed_writes_are_refused(app: Client, db: Client, arguments: str) -> None:
    with raises(InvalidParameterValue, match="the writes of task .* are not given as they should be", hint="1 to 200 bytes"), app.tenant("a"):
        app.run(f"select llm.put_checkpoint_writes('t', {arguments})")
    assert db.one("select count(*) from llm.checkpoint_threads") == 0


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ("'t', '', '', null, '{}'", InvalidParameterValue, "checkpoint_id and checkpoint_ns have 0 and 0 bytes"),
        ("'t', '', null, null, '{}'", InvalidParameterValue, "have no and 0 bytes"),
        ("'t', repeat('n', 1001), '1', null, '{}'", InvalidParameterValue, "have 1 and 1001 bytes"),
        ("'t', null, '1', null, '{}'", InvalidParameterValue, "have 1 and no bytes"),
        ("'', '', '1', null, '{}'", InvalidParameterValue, "a thread_id of 0 bytes"),
        ("null, '', '1', null, '{}'", InvalidParameterValue, "a thread_id of no bytes"),
        ("repeat('t', 1001), '', '1', null, '{}'", InvalidParameterValue, "a thread_id of 1001 bytes"),
        ("'t', '', '1', null, null", InvalidParameterValue, "checkpoint 1 is null, its metadata object, its channels object"),
        ("'t', '', '1', null, '[]', null", InvalidParameterValue, "checkpoint 1 is array, its metadata null"),
        ("'t', '', '1', null, '{}', '{}', '1'", InvalidParameterValue, "its channels number"),
    ],
)
def test_a_checkpoint_without_its_place_or_content_is_refused(app: Client, arguments: str, error: type[psycopg.Error], match: str) -> None:
    with raises(error, match=match, hint="1 to|'{}'"), app.tenant("a"):
        app.run(f"select llm.put_checkpoint({arguments})")


def test_checkpoints_need_a_tenant(app: Client, db: Client) -> None:
    for client in (app, db):
        with raises(ObjectNotInPrerequisiteState, "checkpoints are a tenant's, and no tenant is set", hint="set_tenant"):
            client.run("select llm.get_checkpoint('t')")


def test_a_reader_reads_checkpoints_and_writes_none(database: Any, app: Client) -> None:
    with app.tenant("a"):
        put(app, "t", 1, one=LONG)
    reader = database.client("reader")
    with reader.tenant("a"):
        assert contents(reader, "t", 1) == [LONG]
    with raises(psycopg.errors.InsufficientPrivilege), reader.tenant("a"):
        put(reader, "t", 2, one=LONG)
