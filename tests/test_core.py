"""Identifiers, clean text, versions."""

from __future__ import annotations

import json
import time
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.errors import InvalidTextRepresentation, UndefinedFunction

from tests.support import Client, raises
from tools.build import version

with_fixtures = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

MARK = "\u241b"


# Identifiers


def test_a_uuid_has_version_7_and_the_time(db: Client) -> None:
    before = time.time_ns() // 1_000_000
    uuids = db.column("select llm.uuid_v7() from generate_series(1, 1000)")
    after = time.time_ns() // 1_000_000
    assert {(uuid.version, uuid.variant) for uuid in uuids} == {(7, UUID(int=0x8000 << 48).variant)}
    assert all(before <= uuid.int >> 80 <= after for uuid in uuids)


def test_the_order_of_uuids_is_the_order_of_time(db: Client) -> None:
    in_order = db.column("select llm.uuid_v7() from generate_series(1, 1000), pg_sleep(0.000002)")
    times = [uuid.int >> 64 for uuid in in_order]
    assert times == sorted(times)
    assert len(set(times)) > 100, "the bits after the version do not count the fraction of a millisecond"


def test_a_hundred_thousand_uuids_are_distinct(db: Client) -> None:
    assert db.one("select count(distinct llm.uuid_v7()) from generate_series(1, 100000)") == 100_000


# Text


@with_fixtures
@given(data=st.binary(max_size=200) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_come_back_from_clean_text(app: Client, data: bytes) -> None:
    text, original = app.row("select t, llm.original_bytes(t) from llm.clean_text(%s) t", data)
    assert original == data
    assert "\0" not in text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", "plain"),
        ("é €\U0001f600".encode(), "é €\U0001f600"),
        (b"", ""),
        (b"a\0b", f"a{MARK}0000b"),
        (b"\xff", f"{MARK}DCFF"),
        (b"\xed\xa0\x80", f"{MARK}DCED{MARK}DCA0{MARK}DC80"),
        (b"\xc0\x80", f"{MARK}DCC0{MARK}DC80"),
        (b"\xe2\x82", f"{MARK}DCE2{MARK}DC82"),
        (f"{MARK}0000".encode(), f"{MARK}241B0000"),
        (MARK.encode(), f"{MARK}241B"),
    ],
)
def test_clean_text_marks_what_cannot_be_stored(app: Client, data: bytes, text: str) -> None:
    assert app.one("select llm.clean_text(%s)", data) == text
    assert app.one("select llm.original_bytes(%s)", text) == data


def test_a_mark_without_a_code_is_text(app: Client) -> None:
    for text in (MARK, f"{MARK}12", f"{MARK}zzzz"):
        assert app.one("select llm.original_bytes(%s)", text) == text.encode()


def test_no_text_is_no_text(app: Client) -> None:
    assert app.row("select llm.clean_text(null), llm.original_bytes(null), llm.clean_jsonb(null)") == (None, None, None)


def marked(value: object) -> object:
    """Return a JSON value with its strings as llm.clean_jsonb should store them."""
    if isinstance(value, str):
        return "".join(f"{MARK}{ord(char):04X}" if char in ("\0", MARK) or "\ud800" <= char <= "\udfff" else char for char in value)
    if isinstance(value, list):
        return [marked(item) for item in value]
    if isinstance(value, dict):
        return {marked(key): marked(item) for key, item in value.items()}
    return value


hostile_text = st.text(st.sampled_from(["\0", "\ud800", "\udfff", MARK, "\\", '"', "u", "0", "/", "\n"]) | st.characters(), max_size=12)
hostile_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | hostile_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hostile_text, inner, max_size=4),
    max_leaves=12,
)


@with_fixtures
@given(value=hostile_json, is_ascii=st.booleans())
def test_any_json_is_stored_with_its_strings_marked(app: Client, value: object, is_ascii: bool) -> None:
    try:
        document = json.dumps(value, ensure_ascii=is_ascii)
        document.encode()
    except UnicodeEncodeError:
        document = json.dumps(value)
    # json.loads joins neighbouring surrogates to the character that they are.
    assert app.one("select llm.clean_jsonb(%s)", document) == marked(json.loads(document))


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (r'"a\u0000b"', f"a{MARK}0000b"),
        (r'"\\u0000"', r"\u0000"),
        (r'"\\\u0000"', f"\\{MARK}0000"),
        (r'"\\\\u0000"', r"\\u0000"),
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r'"\uD83D\uDE00"', "\U0001f600"),
        (r'"\ud83d"', f"{MARK}D83D"),
        (r'"\ude00"', f"{MARK}DE00"),
        (r'"\ude00\ud83d"', f"{MARK}DE00{MARK}D83D"),
        (r'"\ud83d\ud83d\ude00"', f"{MARK}D83D\U0001f600"),
        (r'"\ud83dx\ude00"', f"{MARK}D83Dx{MARK}DE00"),
        (rf'"{MARK}\u241b"', f"{MARK}241B{MARK}241B"),
        (r'"\"\/\b\f\n\r\t"', '"/\b\f\n\r\t'),
    ],
)
def test_clean_jsonb_marks_what_jsonb_refuses(app: Client, document: str, text: str) -> None:
    assert app.one("select llm.clean_jsonb(%s)", document) == text
    assert app.one("select llm.clean_jsonb(%s)", f"{{{document}: [{document}]}}") == {text: [text]}


@pytest.mark.parametrize("document", ["", "{", "nul", '"\\u00"', '"\\x"', "'a'", "{a: 1}", "[1,]", '"a\nb"', "NaN", "1 2", '"\\'])
def test_what_is_not_json_is_refused(app: Client, document: str) -> None:
    with raises(InvalidTextRepresentation, match="invalid input syntax for type json"):
        app.run("select llm.clean_jsonb(%s)", document)


# Versions


def test_the_version_is_that_of_the_control_file(app: Client) -> None:
    assert app.one("select llm.version()") == version()
    assert app.one("select extversion from pg_extension where extname = 'pg_llm'") == version()


# Sequences


@pytest.mark.parametrize("last", [2**31 - 1, 2**53])
def test_sequences_go_beyond_what_an_integer_holds(db: Client, app: Client, last: int) -> None:
    """Q-11"""
    columns = db.rows(
        """
        select
            a.attrelid::regclass::text,
            a.attname::text,
            format_type(a.atttypid, null),
            pg_get_serial_sequence(a.attrelid::regclass::text, a.attname)
        from pg_attribute a
        join pg_class c on c.oid = a.attrelid
        where c.relnamespace = 'llm'::regnamespace and c.relkind in ('r', 'p') and a.attidentity <> ''
        """
    )
    assert columns
    for table, column, kind, sequence in columns:
        assert kind == "bigint", f"{table}.{column}"
        db.run("select setval(%s, %s)", sequence, last)
    with app.tenant("acme"):
        app.run("select llm.save_config('k', '1'), llm.save_config('k', '2')")
    with app.tenant("acme"):
        assert app.column("select id from llm.config_history order by id") == [last + 1, last + 2]
        assert app.one("select llm.rollback_config(p_change => %s)", last + 1) == 1
        assert app.one("select llm.load_config('k')") == 1


# Privileges


def test_a_grant_of_a_function_that_does_not_exist_is_refused(db: Client) -> None:
    with raises(UndefinedFunction, match="not every function to be granted exists once", hint="functions.sql"):
        db.run("select llm._grant_execute(array['llm_app'], 'version', 'versoin')")
