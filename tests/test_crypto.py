"""Ciphertext: what goes in comes out, for whom it was meant, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.errors import (
    DataException,
    ExternalRoutineException,
    ExternalRoutineInvocationException,
    InsufficientPrivilege,
    InvalidParameterValue,
    ObjectNotInPrerequisiteState,
    UndefinedObject,
)

from tests.offline import HEAD, TAG, secret, unwrap
from tests.support import Client, Database, at_once, raises

PLACE = "'public.notes', 'body', '7'"
DECRYPT = f"select llm.decrypt_data(%s, null, {PLACE})"

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))

with_database = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def sealed(app: Client, master_key: Path) -> bytes:
    """A ciphertext of tenant a."""
    with app.tenant("a"):
        return bytes(app.one(f"select llm.encrypt_data('a secret', null, {PLACE})"))


def decrypt(client: Client, value: bytes, tenant: str = "a") -> str:
    with client.tenant(tenant):
        return str(client.one(DECRYPT, value))


@with_database
@given(text=TEXTS, compressed=st.booleans(), place=st.tuples(TEXTS, TEXTS, TEXTS))
def test_enc_03_what_goes_in_comes_out(app: Client, master_key: Path, text: str, compressed: bool, place: tuple[str, str, str]) -> None:
    with app.tenant("a"):
        value = app.one(
            "select llm.encrypt_data(%s::text, (null, null, null, %s)::llm.encryption, %s::text, %s::text, %s::text)", text, compressed, *place
        )
        assert app.one("select llm.decrypt_data(%s, null, %s::text, %s::text, %s::text)", value, *place) == text
        assert compressed or len(value) == HEAD + (len(text.encode()) // 16 + 1) * 16 + TAG


def test_enc_03_null_stays_null(app: Client, master_key: Path) -> None:
    with app.tenant("a"):
        assert app.row("select llm.encrypt_data(null), llm.decrypt_data(null), llm.blind_index(null, 't', 'c')") == (None, None, None)
        assert app.one("select llm.decrypt_data(llm.encrypt_data('x', null, null, null, null), null, '', '', '')") == "x"


@pytest.mark.parametrize("compressed", [False, True])
def test_enc_03_100_megabytes_come_out(app: Client, master_key: Path, compressed: bool) -> None:
    with app.tenant("a"):
        size, is_same = app.row(
            """
            select octet_length(e), llm.decrypt_data(e) = t
            from (select t, llm.encrypt_data(t, (null, null, null, %s)::llm.encryption) as e from (select repeat('0123456789', 10000000) as t) t) e
            """,
            compressed,
        )
    assert is_same
    assert size < 300_000 if compressed else size == 100_000_000 + 16 + HEAD + TAG


def test_enc_03_no_length_but_the_right_one_is_accepted(app: Client, sealed: bytes) -> None:
    for value in (*(sealed[:length] for length in range(len(sealed))), sealed + b"\0", sealed + sealed, bytes(len(sealed)), b"\1" * len(sealed)):
        with (
            raises(DataException, match="this is no ciphertext of pg_llm|is not authentic")
            if value[:22] == sealed[:22] or len(value) < HEAD
            else (pytest.raises((DataException, UndefinedObject)))
        ):
            decrypt(app, value)
    assert decrypt(app, sealed) == "a secret"


def test_enc_01_every_flipped_byte_is_refused(app: Client, sealed: bytes) -> None:
    for position in range(len(sealed)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(sealed)
            changed[position] ^= flip
            with pytest.raises((DataException, UndefinedObject)) as caught:
                decrypt(app, bytes(changed))
            assert caught.value.diag.message_hint
            assert "secret" not in str(caught.value)


@with_database
@given(data=st.data())
def test_enc_01_no_change_at_all_is_accepted(app: Client, sealed: bytes, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(sealed)))
    last = data.draw(st.integers(first, len(sealed)))
    changed = sealed[:first] + data.draw(st.binary(max_size=20)) + sealed[last:]
    if changed != sealed:
        with pytest.raises((DataException, UndefinedObject)):
            decrypt(app, changed)


def test_enc_02_a_ciphertext_is_worth_nothing_elsewhere(app: Client, sealed: bytes) -> None:
    for place in ("'public.notes', 'body', '8'", "'public.notes', 'title', '7'", "'notes', 'body', '7'", "'public.notesb', 'ody', '7'", "'', '', ''"):
        refused = raises(
            DataException, match="is not authentic", detail="another tenant, table, column or row", hint="that the value was encrypted with"
        )
        with refused, app.tenant("a"):
            app.run(f"select llm.decrypt_data(%s, null, {place})", sealed)
    with raises(UndefinedObject, match="key .* does not exist", detail="The tenant has no such key"):
        decrypt(app, sealed, "b")


def test_enc_02_no_two_ciphertexts_have_a_part_in_common(app: Client, sealed: bytes) -> None:
    with app.tenant("a"):
        other_key = app.one("select llm.generate_key()")
        other = app.one(f"select llm.encrypt_data('a secret', (null, null, %s, null)::llm.encryption, {PLACE})", other_key)
        twin = app.one(f"select llm.encrypt_data('a secret', null, {PLACE})")
        again = app.one("select llm.encrypt_data('a secret', null, 'public.notes', 'body', '8')")
        app.run("select llm.rotate_key()")
        newer = app.one(f"select llm.encrypt_data('a secret', null, {PLACE})")
    with app.tenant("b"):
        foreign = app.one(f"select llm.encrypt_data('a secret', null, {PLACE})")
    assert decrypt(app, foreign, "b") == decrypt(app, other) == decrypt(app, twin) == decrypt(app, newer) == "a secret"
    cuts = (2, 18, 22, HEAD, len(sealed) - TAG)
    for donor in (other, again, twin, newer, foreign):
        for cut in cuts:
            for mixed in (sealed[:cut] + donor[cut:], donor[:cut] + sealed[cut:]):
                if mixed not in (sealed, other, twin, newer):
                    with pytest.raises((DataException, UndefinedObject)):
                        decrypt(app, mixed)


def test_enc_02_keys_cannot_be_swapped(db: Client, app: Client, sealed: bytes) -> None:
    with app.tenant("b"):
        app.run("select llm.encrypt_data('x')")
    db.run("set session_replication_role = replica")
    saved = db.rows("select key_id, wrapped from llm.data_key_versions")
    db.run("update llm.data_key_versions v set wrapped = o.wrapped from llm.data_key_versions o where o.tenant_id <> v.tenant_id")
    with raises(DataException, match="is not authentic"):
        decrypt(app, sealed)
    for key_id, wrapped in saved:
        db.run("update llm.data_key_versions set wrapped = %s where key_id = %s", wrapped, key_id)
    assert decrypt(app, sealed) == "a secret"
    db.run("update llm.tenant_keys t set wrapped = o.wrapped from llm.tenant_keys o where o.tenant_id <> t.tenant_id")
    with pytest.raises(DataException):
        decrypt(app, sealed)


def test_enc_04_no_other_format_is_accepted(app: Client, db: Client, sealed: bytes) -> None:
    pgp = db.one("select pgp_sym_encrypt('a secret', 'password', 'disable-mdc=1')")
    raw = db.one("select encrypt('a secret', 'key', 'aes')")
    for value in (b"", pgp, pgp * 3, raw * 10, *(bytes([first]) + sealed[1:] for first in (0, 2, 3, 0xC3, 0xFF))):
        with raises(DataException, match="this is no ciphertext of pg_llm", hint="Pass the whole value"):
            decrypt(app, value)
    for flags in (2, 3, 0x80):
        with raises(DataException, match="this is no ciphertext of pg_llm"):
            decrypt(app, sealed[:1] + bytes([flags]) + sealed[2:])


def test_a_version_that_there_never_was_is_unknown(app: Client, sealed: bytes) -> None:
    with raises(UndefinedObject, match="key .* has no version 99", hint="is of a newer state"):
        decrypt(app, sealed[:18] + (99).to_bytes(4) + sealed[22:])


def test_enc_05_known_answers(db: Client) -> None:
    assert secret.self_test()
    # RFC 5869, cases 1 to 3, with SHA-256
    zeros = b"\x0b" * 22
    long = "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9"
    long += "aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"
    first = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    cases = [
        (zeros, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42, first),
        (bytes(range(0x50)), bytes(range(0x60, 0xB0)), bytes(range(0xB0, 0x100)), 82, long),
        (zeros, b"", b"", 42, "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
    ]
    for secret_key, salt, info, length, derived in cases:
        assert secret.expand(secret.extract(salt, secret_key, "sha256"), info, length, "sha256").hex() == derived
    # RFC 4231, cases 1 to 3: what pgcrypto and the server's Python make of them
    for key, text, expected in (
        ("0b" * 20, "4869205468657265", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
        ("4a656665", "7768617420646f2079612077616e7420666f72206e6f7468696e673f", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
        ("aa" * 20, "dd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    ):
        assert db.one("select encode(hmac(decode(%s, 'hex'), decode(%s, 'hex'), 'sha256'), 'hex')", text, key) == expected
        assert secret.digest(bytes.fromhex(key), bytes.fromhex(text), "sha256").hex() == expected
    # NIST SP 800-38A, F.2.5: CBC-AES256, the first two blocks
    assert db.one(
        "select encode(encrypt_iv(decode(%s, 'hex'), decode(%s, 'hex'), decode(%s, 'hex'), 'aes-cbc/pad:none'), 'hex')",
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51",
        "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
        "000102030405060708090a0b0c0d0e0f",
    ) == "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d"  # fmt: skip


def test_enc_05_another_library_understands_the_format(db: Client, app: Client, master_key: Path) -> None:
    with app.tenant("a"):
        app.run("select llm.encrypt_data('x')").run("select llm.rotate_key()")
        values = [app.one(f"select llm.encrypt_data('möglich ✨', (null, null, null, %s)::llm.encryption, {PLACE})", flag) for flag in (True, False)]
    db.run("select llm.rotate_master_key()")
    keys = unwrap(master_key, db)
    assert sorted(version for _, version in keys.data) == [1, 2]
    for value in values:
        assert keys.decrypt(value, "a", "public.notes", "body", "7") == "möglich ✨"


def test_enc_06_no_initialization_vector_comes_twice(app: Client, master_key: Path) -> None:
    with app.tenant("a"):
        app.run("select llm.encrypt_data('x')")
    with app.tenant("a"):
        count, vectors, keys = app.row(
            """
            select count(*), count(distinct substr(e, 23, 16)), count(distinct substr(e, 3, 20))
            from (select llm.encrypt_data('x', null, '', '', i::text) as e from generate_series(1, 50000) i) e
            """
        )
    assert (count, vectors, keys) == (50_000, 50_000, 1)


def test_enc_20_sessions_that_begin_together_draw_different_numbers(database: Database, db: Client, master_key: Path) -> None:
    clients = database.clients(12)
    values = at_once(clients, "select llm.encrypt_data('x')")
    assert len({value[22:HEAD] for value in values}) == 12
    assert len({value[2:18] for value in values}) == 1, "each made a default key of its own"
    keys = at_once(clients, "select llm.generate_key()")
    assert len(set(keys)) == 12
    unwrapped = unwrap(master_key, db)
    assert len(set(unwrapped.data.values())) == 13
    assert db.one("select count(distinct wrapped) = count(*) from llm.data_key_versions")
    assert [client.one("select llm.decrypt_data(%s)", value) for client, value in zip(reversed(clients), values, strict=True)] == ["x"] * 12


def test_enc_19_no_cipher_but_ours_is_used(app: Client, master_key: Path) -> None:
    supported = r"Supported: aes-256-cbc \(also: aes, aes-256\) with key_size 256"
    with app.tenant("a"):
        for algorithm, size in (("aes", None), ("AES-256", 256), ("aes-256-cbc", 256), (None, 256)):
            assert app.one("select llm.decrypt_data(llm.encrypt_data('x', (%s::text, %s, null, null)::llm.encryption))", algorithm, size) == "x"
    for algorithm, size in (("blowfish", None), ("bf", 256), ("3des", 192), ("aes", 128), (None, 512), ("aes-256-gcm", 256), ("", None), ("none", 0)):
        with raises(InvalidParameterValue, match="encryption with .*, key size .*, is not supported", hint=supported), app.tenant("a"):
            app.run("select llm.encrypt_data('x', (%s::text, %s, null, null)::llm.encryption)", algorithm, size)


def test_enc_19_a_cipher_that_openssl_lacks_is_an_error(db: Client) -> None:
    """CVE-2026-14663: pgcrypto once went on without the cipher. OpenSSL 3 has Blowfish in a provider that is not loaded."""
    for cipher in ("bf", "cast5", "des"):
        with pytest.raises((ExternalRoutineException, ExternalRoutineInvocationException)):
            db.run("select encrypt('a secret', 'the key', %s)", cipher)


def test_a_ciphertext_of_another_key_than_was_named_is_refused(app: Client, sealed: bytes) -> None:
    with app.tenant("a"):
        own = app.one("select key_id from llm.key_management where kind = 'default'")
        assert app.one(f"select llm.decrypt_data(%s, (null, null, %s, null)::llm.encryption, {PLACE})", sealed, own) == "a secret"
        other = app.one("select llm.generate_key()")
    with raises(InvalidParameterValue, match=f"the ciphertext is of key {own}, not of {other}", hint="Leave the key out"), app.tenant("a"):
        app.run(f"select llm.decrypt_data(%s, (null, null, %s, null)::llm.encryption, {PLACE})", sealed, other)
    for unknown in ("nonsense", "00000000-0000-0000-0000-000000000000"):
        with raises(UndefinedObject, match=f"key {unknown} does not exist", hint="llm.key_management"), app.tenant("a"):
            app.run("select llm.encrypt_data('x', (null, null, %s, null)::llm.encryption)", unknown)


def test_an_application_gets_at_no_key(app: Client, db: Client, database: Database, sealed: bytes) -> None:
    internal = db.column(
        """
        select p.oid::regprocedure::text from pg_proc p
        where p.pronamespace = 'llm'::regnamespace
            and p.proname in ('_new_key', '_wrapping_keys', '_unwrapping_key', '_checked_key', '_tenant_keys', '_data_keys', '_seal', '_sealed',
                              '_unsealed', '_key_chain_to_encrypt', '_key_chain_to_decrypt', '_key_chain_to_rewrap',
                              '_blind_index_chain', '_index_key', '_key_to_cache', '_make_key', '_master_key')
        """
    )
    assert len(internal) == 17
    for user in ("app", "admin", "reader", "auditor", "nobody"):
        for signature in internal:
            assert not db.one("select has_function_privilege(%s, %s, 'execute')", user, signature), (user, signature)
    with raises(InsufficientPrivilege, match="permission denied for table tenant_keys"), app.tenant("a"):
        app.run("select wrapped from llm.tenant_keys")
    with raises(InsufficientPrivilege, match="permission denied for table data_key_versions"), app.tenant("a"):
        app.run("select wrapped from llm.data_key_versions")
    for user in ("reader", "auditor"):
        with raises(InsufficientPrivilege, match="permission denied for function decrypt_data"):
            database.client(user).run("select llm.decrypt_data(%s)", sealed)


def test_enc_15_a_blind_index_finds_equal_values(app: Client, master_key: Path, db: Client) -> None:
    def index(value: str, tenant: str = "a", more: str = "") -> bytes:
        with app.tenant(tenant):
            return bytes(app.one(f"select llm.blind_index(%s, 'users', 'email'{more})", value))

    before = index("Ada@Example.org ")
    assert before == index("ada@example.org")
    with app.tenant("a"):
        app.run("select llm.encrypt_data('x')").run("select llm.rotate_key()")
    db.run("select llm.rotate_master_key()")
    assert index("ada@example.org") == before
    assert index("ada@example.org", "b") != before
    assert index("eve@example.org") != before
    assert len(before) == 4
    with app.tenant("a"):
        assert app.one("select llm.blind_index('ada@example.org', 'users', 'name')") != before
        assert app.one("select llm.blind_index('ada@example.org', 'user', 'semail')") != before
    for bits in (8, 16, 128, 256):
        long = index("ada@example.org", more=f", {bits}")
        assert len(long) * 8 == bits
        assert long[:4] == before[: len(long)]
    for wrong in ("0", "7", "12", "264", "null"):
        with raises(InvalidParameterValue, match="a blind index of (null|[0-9]+) bits", hint="8, 16"):
            index("x", more=f", {wrong}")


def test_enc_15_values_are_compared_as_was_asked_for(app: Client, master_key: Path) -> None:
    def same(first: str, second: str, normalization: str) -> bool:
        with app.tenant("a"):
            statement = "select llm.blind_index(%s, 't', 'c', 64, %s) = llm.blind_index(%s, 't', 'c', 64, %s)"
            return bool(app.one(statement, first, normalization, second, normalization))

    assert same("Straße", "STRASSE", "casefold")
    assert same("caf\u00e9", "cafe\u0301", "casefold")
    assert same("\uff21", " a ", "casefold")
    assert not same("a", "b", "casefold")
    assert same("+49 (171) 12-34", "49171 1234", "digits")
    assert same("\u0661\u0662", "12", "digits")
    assert not same("A", "a", "none")
    for unknown in ("soundex", ""):
        with raises(InvalidParameterValue, match=f"normalization {unknown} is not known", hint="casefold, digits or none"):
            same("x", "x", unknown)


def test_keys_of_nobody_are_for_administrators(db: Client, database: Database, app: Client, master_key: Path) -> None:
    admin = database.client("admin")
    value = admin.one("select llm.encrypt_data('for all')")
    assert db.one("select llm.decrypt_data(%s)", value) == admin.one("select llm.decrypt_data(%s)", value) == "for all"
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set", detail="only llm_admin", hint="llm.set_tenant"):
        app.run("select llm.decrypt_data(%s)", value)
    with raises(UndefinedObject, match="does not exist"):
        decrypt(app, value, "a")


def test_the_random_numbers_are_the_systems() -> None:
    assert secret.urandom is os.urandom
