"""The security policy: what it asks for is enforced where it can be, and what is otherwise is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from psycopg.errors import CheckViolation, DatatypeMismatch, InsufficientPrivilege, InvalidParameterValue, UndefinedObject

from tests.conftest import new_cluster, new_database, new_key_store
from tests.support import Client, Database, raises
from tools.cluster import Installation

APPLY = "select llm.apply_security_policy((%s::text[], %s::text[], %s, %s, %s)::llm.security_policy)"


def apply(client: Client, fields: list[str], *, enforce: bool = False, days: int | None = 90) -> Any:
    return client.one(APPLY, fields, None, None, days, enforce)


def findings(client: Client) -> list[tuple[str, str]]:
    return client.rows("select rule, object from llm.validate_security_compliance() where rule <> 'plain text stays out of logs'")


@pytest.fixture
def people(db: Client, app: Client, master_key: Path) -> Client:
    """A superuser's client of a table with an encrypted column, a plain one, and one of another type."""
    db.run("create table public.people (id bigint primary key, email bytea, phone bytea, name text)").run("grant all on public.people to app, admin")
    with app.tenant("a"):
        app.run("insert into people select 1, llm.encrypt_data('ada@example.org', null, 'public.people', 'email', '1'), 'in clear', 'Ada'")
    db.run("select llm.register_encrypted_column('public.people', 'email', 'id')")
    return db


def test_a_policy_is_in_force_until_the_next(people: Client, database: Database) -> None:
    admin = database.client("admin")
    assert people.one("select (llm.current_security_policy()).sensitive_fields") is None
    assert apply(admin, ["public.people.email"]) is True
    assert apply(admin, ["public.people.email"]) is False
    assert people.row("select * from llm.current_security_policy()") == (["public.people.email"], ["aes-256-cbc"], 256, 90, False)
    assert apply(admin, ["public.people.email"], days=30) is True
    assert people.column("select key_rotation_days from llm.security_policies order by id") == [90, 30]
    assert people.column("select distinct applied_by from llm.security_policies") == ["admin"]
    for user in ("app", "reader", "auditor"):
        with raises(InsufficientPrivilege, match="permission denied for function apply_security_policy"):
            apply(database.client(user), [])


def test_what_cannot_be_kept_is_not_promised(people: Client) -> None:
    for algorithms, size in ((["aes-256-gcm"], None), (["chacha20", "3des"], 256), (None, 512)):
        with raises(InvalidParameterValue, match="a policy of .* with .* bits cannot be kept", hint="Supported: aes-256-cbc"):
            people.run(APPLY, [], algorithms, size, None, None)
    assert people.one(APPLY, [], ["aes", "chacha20"], 128, None, None) is True
    with raises(InvalidParameterValue, match="a rotation every 0 days", hint="90 is usual"):
        apply(people, [], days=0)
    for field in ("public.people.missing", "public.missing.email", "people.email", "email", "", "a.b.c.d", '"'):
        with raises(UndefinedObject, match="there is no column", hint="schema.table.column"):
            apply(people, [field])
    with raises(DatatypeMismatch, match="column public.people.name has type text", hint="Ciphertext is bytea"):
        apply(people, ["public.people.name"], enforce=True)
    with raises(UndefinedObject, match="table public.people has no column missing", hint="of type bytea"):
        people.run("select llm._enforce_encryption('people', 'missing', true)")


def test_an_enforced_column_takes_ciphertext_only(people: Client, app: Client) -> None:
    apply(people, ["public.people.email"], enforce=True)
    refused = {"match": "column email of public.people takes ciphertext only", "hint": "llm.encrypt_data"}
    for value in (b"in clear", b"", bytes(86), b"\1" * 85, b"\1\2" + bytes(84), b"\1\0" + bytes(85)):
        with raises(CheckViolation, **refused), app.tenant("a"):
            app.run("update people set email = %s", value)
    with raises(CheckViolation, **refused):
        app.run("insert into people values (2, 'x')")
    with app.tenant("a"):
        app.run("insert into people values (3, llm.encrypt_data(''), 'clear', 'x'), (4, llm.encrypt_data('x', '(,,,t)'), null, null)")
        app.run("insert into people values (5, null)")
        app.run("set local bytea_output = escape").run("update people set email = llm.encrypt_data('x') where id = 3")
        app.run("update people set phone = 'in clear too'")
    people.run("set session_replication_role = replica")
    with raises(CheckViolation, **refused):
        people.run("update people set email = 'x'")
    people.run("reset session_replication_role")
    apply(people, ["public.people.email"], enforce=False)
    app.run("update people set email = 'in clear'")


def test_an_enforced_column_needs_no_rights_in_pg_llm(people: Client, database: Database) -> None:
    apply(people, ["public.people.email"], enforce=True)
    people.run("grant all on people to nobody")
    nobody = database.client("nobody")
    with raises(CheckViolation, match="takes ciphertext only"):
        nobody.run("insert into people values (2, 'x')")
    nobody.run("insert into people values (2, null, 'x')")


def test_what_is_not_as_the_policy_wants_it_is_found(people: Client, app: Client, database: Database, master_key: Path) -> None:
    admin = database.client("admin")
    assert findings(admin) == [("a policy is in force", "llm.security_policies")]
    apply(people, ["public.people.email"], enforce=True)
    assert findings(admin) == findings(people) == []

    apply(people, ["public.people.email", "public.people.phone", "public.people.name"])
    assert findings(admin) == [
        ("sensitive fields are encrypted", "public.people.phone"),
        ("sensitive fields can be rotated", "public.people.phone"),
        ("sensitive fields are encrypted", "public.people.name"),
    ]
    detail = admin.one("select detail from llm.validate_security_compliance() where object = 'public.people.phone' and rule like '%encrypted'")
    assert detail == "1 values are no ciphertext"

    apply(people, ["public.people.email"], enforce=True)
    people.run("alter table people disable trigger ciphertext_email")
    assert findings(admin) == [("encryption is enforced", "public.people.email")]
    apply(people, ["public.people.email"], enforce=True, days=30)
    people.run("alter table people drop column email cascade")
    assert findings(admin) == [("sensitive fields exist", "public.people.email")]
    apply(people, [], days=30)

    people.run("update llm.data_keys set rotated_at = now() - interval '31 days'")
    ((rule, key),) = findings(admin)
    assert rule == "keys are rotated in time"
    assert key.endswith("of tenant a")
    with app.tenant("a"):
        app.run("select llm.rotate_key()")
    assert findings(admin) == []
    (master_key / "master.1").chmod(0o644)
    assert findings(admin) == [("keys outside the database are as they should be", "master keys")]


def test_settings_that_write_plain_text_into_the_log_are_found(installation: Installation, tmp_path: Path) -> None:
    """The boolean form needs a server where nothing is wrong."""
    safe = ("log_parameter_max_length=0", "log_parameter_max_length_on_error=0", "shared_preload_libraries=auto_explain",
            "auto_explain.log_parameter_max_length=0")  # fmt: skip
    with new_cluster(installation, tmp_path / "cluster", *safe) as server:
        for database in new_database(server):
            new_key_store(database, tmp_path / "keys")
            db, admin = database.client(), database.client("admin")
            apply(db, [])
            assert admin.one("select llm.is_security_compliant()") is True
            wrong = (
                ("log_parameter_max_length", "-1", "log_statement", "all"),
                ("log_parameter_max_length", "100B", "log_min_duration_statement", "1000"),
                ("log_parameter_max_length_on_error", "10B", "log_parameter_max_length_on_error", "10B"),
                ("auto_explain.log_parameter_max_length", "-1", "auto_explain.log_min_duration", "0"),
                ("pgaudit.log_parameter", "on", "pgaudit.log_parameter", "on"),
            )
            for name, value, other, other_value in wrong:
                with db.connection.transaction(force_rollback=True):
                    db.run(f"set local {name} = '{value}'").run(f"set local {other} = '{other_value}'")
                    assert db.rows("select rule, object, detail from llm.validate_security_compliance()") == [
                        ("plain text stays out of logs", name, f"{name} is {value}")
                    ]
                    assert db.one("select llm.is_security_compliant()") is False
