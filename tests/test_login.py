"""Who may come in: passwords, second factors, failures and locks."""

from __future__ import annotations

import base64
import hmac
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg.errors import DataException, InsufficientPrivilege, InvalidParameterValue, NoDataFound, ObjectNotInPrerequisiteState

from tests.support import Client, Database, at_once, raises

PASSWORD = "correct horse"  # noqa: S105
SECRET = base64.b32encode(b"12345678901234567890").decode()


@pytest.fixture
def users(db: Client) -> dict[tuple[str, str], UUID]:
    """Users ann and bob of tenants acme and globex, by tenant and name; the work of a hash is small."""
    db.run("""select llm.save_config('login/bcrypt_cost', '4')""")
    ids = {}
    for tenant in ("acme", "globex"):
        for name in ("ann", "bob"):
            with db.tenant(tenant):
                ids[tenant, name] = db.one("select llm.create_user(%s, %s)", name, f"{PASSWORD} of {name} at {tenant}")
    return ids


def outcome(client: Client, name: str | None, password: str | None, code: str | None = None, tenant: str = "acme") -> str:
    """Return what came of an attempt."""
    with client.tenant(tenant):
        return str(client.one("select outcome from llm.authenticate(%s, %s, %s)", name, password, code))


def state(client: Client, user: UUID) -> dict[str, Any]:
    """Return how a user of acme stands."""
    with client.tenant("acme"):
        return dict(client.one("select to_jsonb(s) from llm.login_state(%s) s", user))


def events(db: Client, tenant: str = "acme") -> list[tuple[str, str, Any]]:
    """Return what the audit log has of log-ins."""
    return db.rows("select action, user_id, details from llm.audit_log where tenant_id = %s and object_type = 'authentication' order by id", tenant)


def test_a_right_password_lets_its_user_in(users: dict[tuple[str, str], UUID], app: Client) -> None:
    for (tenant, name), user in users.items():
        with app.tenant(tenant):
            assert app.row("select * from llm.authenticate(%s, %s)", name.upper(), f"{PASSWORD} of {name} at {tenant}") == ("ok", user)


def test_whatever_is_wrong_the_answer_is_the_same(users: dict[tuple[str, str], UUID], app: Client) -> None:
    right = f"{PASSWORD} of ann at acme"
    for name, password in (
        ("ann", "wrong password"), ("ann", ""), ("ann", None), ("nobody", right), ("", ""), (None, None), ("ann", f"{PASSWORD} of bob at acme"),
        ("ann", f"{PASSWORD} of ann at globex"), ("ann' or true --", right), ("ann", right + " "), ("%", "%"), ("ann", "x" * 100_000),
    ):  # fmt: skip
        with app.tenant("acme"):
            app.run("select llm.unlock_user(%s)", users["acme", "ann"])
            assert app.row("select * from llm.authenticate(%s, %s)", name, password) == ("refused", None), (name, password)


def test_bytes_that_bcrypt_would_not_read_count(users: dict[tuple[str, str], UUID], app: Client) -> None:
    with app.tenant("acme"):
        app.run("select llm.set_password(%s, %s)", users["acme", "ann"], "x" * 72)
    assert outcome(app, "ann", "x" * 72) == "ok"
    assert outcome(app, "ann", "x" * 73) == "refused"


def test_a_bad_password_is_not_set(users: dict[tuple[str, str], UUID], app: Client) -> None:
    hint = "at least 8 characters and at most 72 bytes"
    for password in (None, "", "seven77", "x" * 73, "é" * 37):
        with app.tenant("acme"), raises(InvalidParameterValue, match="a password of .* characters, .* bytes", hint=hint):
            app.run("select llm.set_password(%s, %s)", users["acme", "ann"], password)


def test_of_others_nothing_is_changed_and_nothing_told(users: dict[tuple[str, str], UUID], app: Client, master_key: Path) -> None:
    """RLS-04: users of another tenant, another user of this one, and nobody, are all unknown."""
    for stranger, setting in ((users["globex", "bob"], None), (users["acme", "bob"], users["acme", "ann"]), (UUID(int=9), None)):
        with app.tenant("acme"):
            app.run("select llm.set_user(%s)", setting)
            for call in ("set_password(%s, 'new password')", "enroll_mfa(%s)"):
                with raises(NoDataFound, match=f"user {stranger} does not exist", hint="of the current tenant"), app.transaction():
                    app.run(f"select llm.{call}", stranger)
            assert app.one("select llm.unlock_user(%s)", stranger) is False
            assert app.one("select llm.remove_mfa(%s)", stranger) is False
            assert app.one("select llm.confirm_mfa(%s, '000000')", stranger) is False
            assert app.row("select * from llm.login_state(%s)", stranger) == (None,) * 6
    assert outcome(app, "bob", f"{PASSWORD} of bob at globex", tenant="globex") == "ok"


def test_without_a_tenant_nobody_is_let_in(users: dict[tuple[str, str], UUID], app: Client) -> None:
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set, and users are a tenant's", hint="llm.set_tenant"):
        app.run("select llm.authenticate('ann', %s)", PASSWORD)


def test_nobody_reads_credentials(users: dict[tuple[str, str], UUID], database: Database) -> None:
    """SEC-06"""
    for role in ("app", "reader", "admin", "auditor"):
        with raises(InsufficientPrivilege, match="permission denied for table user_credentials"):
            database.client(role).run("select password_hash from llm.user_credentials")


def test_failures_lock_a_user_for_a_while(users: dict[tuple[str, str], UUID], db: Client, app: Client) -> None:
    ann, right = users["acme", "ann"], f"{PASSWORD} of ann at acme"
    for count in range(1, 5):
        assert outcome(app, "ann", "wrong") == "refused"
        assert state(app, ann)["failed_logins"] == count
    assert outcome(app, "ann", right) == "ok"
    assert state(app, ann)["failed_logins"] == 0
    for _ in range(5):
        outcome(app, "ann", "wrong")
    assert state(app, ann)["locked_until"] is not None
    assert outcome(app, "ann", right) == "refused"
    assert outcome(app, "bob", f"{PASSWORD} of bob at acme") == "ok"
    assert [details["reason"] for action, _, details in events(db) if action == "login_failed"] == ["password"] * 9 + ["locked"]
    # The time is over.
    db.run("update llm.user_credentials set locked_until = now() - interval '1 second' where user_id = %s", ann)
    assert state(app, ann)["locked_until"] is None
    assert outcome(app, "ann", right) == "ok"


def test_failures_long_ago_do_not_count(users: dict[tuple[str, str], UUID], db: Client, app: Client) -> None:
    for _ in range(4):
        outcome(app, "ann", "wrong")
    db.run("update llm.user_credentials set last_failed_at = now() - interval '16 minutes'")
    outcome(app, "ann", "wrong")
    assert state(app, users["acme", "ann"])["failed_logins"] == 1


def test_a_locked_user_is_unlocked(users: dict[tuple[str, str], UUID], db: Client, app: Client) -> None:
    ann = users["acme", "ann"]
    for change in ("unlock_user(%s)", "set_password(%s, 'correct horse of ann at acme')"):
        for _ in range(5):
            outcome(app, "ann", "wrong")
        with app.tenant("acme"):
            app.run(f"select llm.{change}", ann)
        assert outcome(app, "ann", f"{PASSWORD} of ann at acme") == "ok"
    assert [action for action, *_ in events(db)].count("account_locked") == 2
    assert [action for action, *_ in events(db)].count("account_unlocked") == 1


def test_many_at_once_guess_no_more_often_than_one(users: dict[tuple[str, str], UUID], db: Client, database: Database) -> None:
    """Q-06: of 32 attempts at the same moment, the right one the last, five are looked at; without a deadlock."""
    for _ in range(2):
        db.run("update llm.user_credentials set failed_logins = 0, locked_until = null")
        clients = database.clients(32, "app")
        for client in clients:
            client.run("begin").run("select llm.set_tenant('acme')")

        def attempt(client: Client) -> str:
            result = str(client.one("select outcome from llm.authenticate('ann', 'wrong')"))
            client.run("commit")
            return result

        before = len(events(db))
        with ThreadPoolExecutor(len(clients)) as pool:
            assert set(pool.map(attempt, clients)) == {"refused"}
        new = events(db)[before:]
        reasons = [details["reason"] for action, _, details in new if action == "login_failed"]
        assert sorted(reasons) == ["locked"] * 27 + ["password"] * 5
        assert [action for action, *_ in new].count("account_locked") == 1
        for client in clients:
            client.close()


def test_right_passwords_at_once_all_get_in(users: dict[tuple[str, str], UUID], db: Client, database: Database) -> None:
    db.run("select llm.bind_role('app', 'acme')")
    clients = database.clients(8, "app")
    outcomes = at_once(clients, "select outcome from llm.authenticate('ann', %s)", f"{PASSWORD} of ann at acme")
    assert outcomes == ["ok"] * 8


def test_an_unknown_name_takes_the_work_of_a_known_one(users: dict[tuple[str, str], UUID], db: Client, database: Database) -> None:
    """ENC-16: hashes computed are counted, which no load on the machine disturbs."""
    db.run(f"alter database {database.name} set track_functions = 'all'")
    app = database.client("app")
    db.run("update llm.user_credentials set locked_until = now() + interval '1 hour' where user_id = %s", users["acme", "bob"])

    computed = "select coalesce(sum(calls), 0)::int from pg_stat_xact_user_functions where funcname = 'crypt'"

    def hashes(name: str, password: str) -> int:
        with app.tenant("acme"):
            before = app.one(computed)
            app.run("select llm.authenticate(%s, %s)", name, password)
            return int(app.one(computed) - before)

    assert [hashes(*guess) for guess in (("ann", "wrong"), ("nobody", "wrong"), ("bob", "wrong"), ("ann", ""), ("ann", "x" * 100))] == [1] * 5


def test_a_password_moves_to_the_cost_of_now(users: dict[tuple[str, str], UUID], db: Client, app: Client) -> None:
    stored = "select password_hash from llm.user_credentials where user_id = %s"
    ann = users["acme", "ann"]
    assert db.one(stored, ann).startswith("$2a$04$")
    db.run("select llm.save_config('login/bcrypt_cost', '5')")
    assert outcome(app, "ann", "wrong") == "refused"
    assert db.one(stored, ann).startswith("$2a$04$")
    for _ in range(2):
        assert outcome(app, "ann", f"{PASSWORD} of ann at acme") == "ok"
        assert db.one(stored, ann).startswith("$2a$05$")
    before = db.one(stored, ann)
    outcome(app, "ann", f"{PASSWORD} of ann at acme")
    assert db.one(stored, ann) == before


def test_the_cost_is_twelve_unless_said(db: Client) -> None:
    with db.tenant("acme"):
        user = db.one("select llm.create_user('ann', %s)", PASSWORD)
    assert db.one("select password_hash from llm.user_credentials where user_id = %s", user).startswith("$2a$12$")


def test_settings_are_the_tenants_own(users: dict[tuple[str, str], UUID], app: Client) -> None:
    with app.tenant("acme"):
        app.run("""select llm.save_configs('{"login/max_failures": 1, "login/lockout": "1 day"}')""")
    outcome(app, "ann", "wrong")
    assert outcome(app, "ann", f"{PASSWORD} of ann at acme") == "refused"
    outcome(app, "ann", "wrong", tenant="globex")
    assert outcome(app, "ann", f"{PASSWORD} of ann at globex", tenant="globex") == "ok"


def test_log_ins_and_failures_are_in_the_audit_log(users: dict[tuple[str, str], UUID], db: Client, app: Client) -> None:
    ann = str(users["acme", "ann"])
    before = len(events(db))
    with app.tenant("acme"):
        app.run("""select llm.authenticate('ann', 'wrong', p_client_info => '{"ip": "192.0.2.1"}')""")
    outcome(app, "my password by mistake", "x")
    outcome(app, "ann", f"{PASSWORD} of ann at acme")
    assert events(db)[before:] == [
        ("login_failed", ann, {"reason": "password"}),
        ("login_failed", "", {"reason": "unknown"}),
        ("login", ann, {"mfa": False}),
    ]
    assert db.one("select client_info from llm.audit_log where action = 'login_failed' order by id limit 1") == {"ip": "192.0.2.1"}
    assert db.one("select count(*) from llm.audit_log a where a::text ~ 'mistake|correct horse|wrong'") == 0


def test_a_deleted_user_is_not_let_in(users: dict[tuple[str, str], UUID], db: Client, app: Client) -> None:
    with app.tenant("acme"):
        assert app.one("select llm.delete_user(%s)", users["acme", "ann"]) is True
        assert app.row("select * from llm.login_state(%s)", users["acme", "ann"]) == (None,) * 6
    assert outcome(app, "ann", f"{PASSWORD} of ann at acme") == "refused"
    with app.tenant("acme"), raises(NoDataFound, match="does not exist"):
        app.run("select llm.set_password(%s, %s)", users["acme", "ann"], PASSWORD)


@pytest.mark.parametrize("statement", ["select llm.set_password(%s, %s)", "select llm.authenticate('ann', %s)"])
def test_a_password_is_a_parameter_of_no_statement(users: dict[tuple[str, str], UUID], db: Client, database: Database, statement: str) -> None:
    """R3.5: not even with every nested statement logged, parameters and all, does the server's log know it."""
    for setting in ("auto_explain.log_min_duration = 0", "auto_explain.log_nested_statements = on", "auto_explain.log_parameter_max_length = -1"):
        name, _, value = setting.partition(" = ")
        db.run("load 'auto_explain'").run(f"set {name} = '{value}'")
    db.run("set client_min_messages = log").run("set auto_explain.log_level = 'log'")
    seen: list[str] = []
    arguments = [users["acme", "ann"], "never to be seen"][2 - statement.count("%s") :]
    with db.tenant("acme"):
        # As a PL/pgSQL variable, so that the outermost statement has no parameter either.
        db.run("select set_config('test.password', 'never to be seen', true)")
        db.connection.add_notice_handler(lambda diagnostic: seen.append(str(diagnostic.message_primary)))
        db.run(statement.replace("%s)", "current_setting('test.password'))"), *arguments[:-1])
    assert len(seen) > 3
    assert not [line for line in seen if "never to be seen" in line]


def test_codes_are_those_of_rfc_6238(db: Client) -> None:
    """Appendix B, the last six digits."""
    for at, code in (
        (59, "287082"),
        (1111111109, "081804"),
        (1111111111, "050471"),
        (1234567890, "005924"),
        (2000000000, "279037"),
        (20000000000, "353130"),
    ):
        assert db.one("select llm._mfa_step(%s, %s, %s, 0)", SECRET, code, float(at)) == at // 30
        assert db.one("select llm._mfa_step(%s, %s, %s, 0)", SECRET, f" {code[:3]} {code[3:]}", float(at + 30)) == at // 30
        assert db.one("select llm._mfa_step(%s, %s, %s, 0)", SECRET, code, float(at + 90)) is None
        assert db.one("select llm._mfa_step(%s, %s, %s, %s)", SECRET, code, float(at), at // 30) is None


def test_what_is_no_code_is_refused(db: Client) -> None:
    for code in (None, "", "0", "28708", "2870822", "²87082", "-87082", "x" * 10_000):
        assert db.one("select llm._mfa_step(%s, %s, 59.0, 0)", SECRET, code) is None, code


def code_of(secret: str, at: float) -> str:
    """Return the code that an authenticator shows."""
    mac = hmac.digest(base64.b32decode(secret), struct.pack(">q", int(at) // 30), "sha1")
    (number,) = struct.unpack_from(">I", mac, mac[-1] & 15)
    return f"{(number & 0x7FFFFFFF) % 1_000_000:06}"


def test_a_second_factor_is_asked_for_and_used_once(users: dict[tuple[str, str], UUID], db: Client, app: Client, master_key: Path) -> None:
    ann, right = users["acme", "ann"], f"{PASSWORD} of ann at acme"
    with app.tenant("acme"):
        secret = app.one("select llm.enroll_mfa(%s)", ann)
        assert app.one("select llm.confirm_mfa(%s, '000000')", ann) is False
    assert outcome(app, "ann", right) == "ok", "not in force yet"
    now = db.one("select extract(epoch from now())::float8")
    with app.tenant("acme"):
        assert app.one("select llm.confirm_mfa(%s, %s)", ann, code_of(secret, now)) is True
        with raises(ObjectNotInPrerequisiteState, match=f"user {ann} has a second factor", hint="llm.remove_mfa"), app.transaction():
            app.run("select llm.enroll_mfa(%s)", ann)
    assert outcome(app, "ann", right) == "mfa_required"
    assert outcome(app, "ann", "wrong") == "refused"
    assert outcome(app, "ann", right, code_of(secret, now)) == "refused", "used when it was confirmed"
    assert outcome(app, "ann", "wrong", code_of(secret, now + 30)) == "refused"
    assert outcome(app, "ann", right, code_of(secret, now + 30)) == "ok"
    assert outcome(app, "ann", right, code_of(secret, now + 30)) == "refused"
    assert state(app, ann)["failed_logins"] == 1
    assert [details["reason"] for action, _, details in events(db) if action == "login_failed"] == ["password", "mfa", "password", "mfa"]
    with app.tenant("acme"):
        assert app.one("select llm.remove_mfa(%s)", ann) is True
    assert outcome(app, "ann", right) == "ok"


def test_guessing_codes_locks_too(users: dict[tuple[str, str], UUID], db: Client, app: Client, master_key: Path) -> None:
    ann, right = users["acme", "ann"], f"{PASSWORD} of ann at acme"
    with app.tenant("acme"):
        app.run("select llm.enroll_mfa(%s)", ann)
    db.run("update llm.user_credentials set mfa_enrolled_at = now() where user_id = %s", ann)
    for _ in range(5):
        assert outcome(app, "ann", right, "wrong!") == "refused"
    assert outcome(app, "ann", right) == "refused"
    assert state(app, ann)["locked_until"] is not None


def test_the_secret_is_stored_encrypted_and_bound_to_its_user(users: dict[tuple[str, str], UUID], db: Client, app: Client, master_key: Path) -> None:
    ann, bob = users["acme", "ann"], users["acme", "bob"]
    with app.tenant("acme"):
        secret = app.one("select llm.enroll_mfa(%s)", ann)
    stored = db.one("select mfa_secret from llm.user_credentials where user_id = %s", ann)
    assert secret.encode() not in stored and base64.b32decode(secret) not in stored
    db.run("update llm.user_credentials set mfa_secret = %s where user_id = %s", stored, bob)
    with app.tenant("acme"), raises(DataException, match="not authentic"):
        app.run("select llm.confirm_mfa(%s, '000000')", bob)
