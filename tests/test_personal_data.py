"""The register of tables that hold rows of users."""

from __future__ import annotations

import pytest
from psycopg.errors import InsufficientPrivilege, InvalidParameterValue, UndefinedColumn

from tests.support import Client, Database, raises


@pytest.fixture
def notes(db: Client) -> Client:
    """A superuser's client of a database with an application's tables."""
    db.run("create table public.notes (id bigint primary key, owner uuid, other_id bigint, text text, key_id text)")
    db.run("create table public.remarks (id bigint primary key, note_id bigint references public.notes, text text)")
    return db


def registered(db: Client, like: str = "public.%") -> list[tuple[object, ...]]:
    """Return the register."""
    return db.rows("select relation, user_column, via, action, columns, reason from llm.personal_data where relation like %s order by 1, 2, 3", like)


def test_a_table_is_registered_once_and_as_told_last(notes: Client) -> None:
    for action in ("delete", "anonymize"):
        notes.run("select llm.register_personal_data('public.notes', 'owner', %s)", action)
    notes.run("select llm.register_personal_data('public.remarks', null, 'delete', p_via => 'public.notes')")
    assert registered(notes) == [
        ("public.notes", "owner", "", "anonymize", [], None),
        ("public.remarks", "", "public.notes", "delete", [], None),
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "match", "hint"),
    [
        (
            "'public.notes', 'owner', 'burn'",
            InvalidParameterValue,
            "personal data cannot be forgotten by 'burn'",
            "delete, anonymize, shred, release and keep",
        ),
        ("'public.notes', 'owner', null", InvalidParameterValue, "personal data cannot be forgotten by null", ""),
        ("'public.notes', null, 'delete'", InvalidParameterValue, "not clear which rows of public.notes are a user's", "p_user_column"),
        ("'public.notes', 'owner', 'delete', 'public.notes'", InvalidParameterValue, "not clear which rows", "p_via"),
        ("'public.notes', 'owner', 'release'", InvalidParameterValue, "not clear which rows of public.notes", "only rows of the user refer to"),
        ("'public.remarks', null, 'release', 'public.notes'", InvalidParameterValue, "not clear which rows", "for release neither"),
        ("null, 'owner', 'delete'", InvalidParameterValue, "not clear which rows of null", ""),
        ("'public.notes', 'owner', 'keep'", InvalidParameterValue, "action keep for public.notes lacks its reason", "p_reason"),
        ("'public.notes', 'owner', 'keep', null, null, ' '", InvalidParameterValue, "lacks its reason", ""),
        ("'public.notes', 'owner', 'shred'", InvalidParameterValue, "action shred for public.notes lacks its columns", "ids of keys"),
        ("'public.remarks', null, 'anonymize', 'public.notes'", InvalidParameterValue, "action anonymize for public.remarks lacks its columns", ""),
        ("'public.notes', 'user', 'delete'", UndefinedColumn, "table public.notes has no column user", "without quotes"),
        ("'public.notes', 'owner', 'anonymize', null, '{text, txt}'", UndefinedColumn, "no column txt", ""),
        (
            "'public.notes', null, 'delete', 'public.remarks'",
            InvalidParameterValue,
            "notes has not exactly one foreign key to public.remarks",
            "p_user",
        ),
    ],
)
def test_a_registration_that_could_not_be_carried_out_is_refused(
    notes: Client, arguments: str, error: type[Exception], match: str, hint: str
) -> None:
    with raises(error, match=match, hint=hint):  # type: ignore[arg-type]
        notes.run(f"select llm.register_personal_data({arguments})")
    assert registered(notes) == []


@pytest.mark.parametrize("user", ["app", "reader", "admin", "auditor"])
def test_only_superusers_register(database: Database, user: str) -> None:
    with raises(InsufficientPrivilege, match="register_personal_data"):
        database.client(user).run("select llm.register_personal_data('llm.config', 'key', 'keep', null, null, 'mine')")
