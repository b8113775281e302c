"""Encryption beside pgcrypto's own with its defaults, and beside AES-GCM outside the database: see README.md."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from time import sleep

import psycopg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.support import AtLeast, Probe, application, database, fact, line, medians, once, one, per_call, per_row, title
from tools.cluster import Cluster

SIZES = {"100 B": 100, "1 kB": 1_000, "100 kB": 100_000}

PLACE = "'public.letters', 'body', '1'"

#: Ciphertexts of pgp_sym_encrypt: each has a number of iterations of its own, drawn at random.
PGP = 16


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    with tempfile.TemporaryDirectory(prefix="pg_llm_keys.") as keys, database(cluster, "crypto") as superuser:
        superuser.execute("select llm.add_master_key(%s)", [keys])
        fill(superuser)
        # Files of a key store that changed in the last second are looked at by their paths: slower, and rare.
        sleep(1)
        with application(cluster, "crypto") as app:
            # The key is made here, and cached once its transaction has ended.
            app.execute("select llm.encrypt_data('x')")
            app.commit()
            app.execute("select llm.set_tenant('acme')")
            inside_one_query(app, quick=quick)
            through_a_client(app, quick=quick)
            parts(superuser, quick=quick)
        rewrap(superuser, quick=quick)


def fill(superuser: psycopg.Connection) -> None:
    """Store a plain text of each size, and its ciphertexts for tenant acme."""
    superuser.execute("create table bench.texts (name text primary key, plain text, ours bytea, pgp bytea[])")
    superuser.execute("grant all on bench.texts to app")
    superuser.execute("grant usage on schema bench to app")
    with superuser.transaction():
        superuser.execute("select llm.set_tenant('acme')")
        # Keys are made here: they are cached once no transaction from before is open.
        superuser.execute("select llm.blind_index('first', 'users', 'email')")
        for name, size in SIZES.items():
            superuser.execute(
                f"""
                insert into bench.texts
                select %s, t, llm.encrypt_data(t, null, {PLACE}),
                    array(select pgp_sym_encrypt(t, 'a password of some length') from generate_series(1, {PGP}))
                from (select left(string_agg(md5(i::text), ''), %s) as t from generate_series(1, %s) i) t
                """,
                [name, size, size // 32 + 1],
            )


def inside_one_query(app: psycopg.Connection, *, quick: bool) -> None:
    """Compare encryption and decryption where no client is involved: once a row of a query."""
    rounds = 5 if quick else 15
    title("encrypt_data and decrypt_data inside one query, a call (key look-up and unwrapping included)")
    for name, size in SIZES.items():
        rows = 30 if size > 10_000 else 200

        def each(expression: str, name: str = name, rows: int = rows) -> Probe:
            return per_row_of(app, expression, name, rows)

        time = medians(
            rounds,
            encrypt=each(f"llm.encrypt_data(t.plain, null, {PLACE})"),
            decrypt=each(f"llm.decrypt_data(t.ours, null, {PLACE})"),
            pgp_encrypt=each("pgp_sym_encrypt(t.plain, 'a password of some length')"),
            pgp_decrypt=each(f"pgp_sym_decrypt(t.pgp[1 + i % {PGP}], 'a password of some length')"),
            pgp_fast=each("pgp_sym_encrypt(t.plain, 'a password of some length', 's2k-mode=1,cipher-algo=aes256')"),
        )
        bar = AtLeast(5) if name == "1 kB" else None
        line(f"encrypt {name}", time["encrypt"], "pgp_sym_encrypt, defaults", time["pgp_encrypt"], bar)
        line(f"decrypt {name}", time["decrypt"], "pgp_sym_decrypt, defaults", time["pgp_decrypt"], bar)
        line(f"encrypt {name}", time["encrypt"], "pgp_sym_encrypt, s2k-mode=1, aes256, a key in the statement", time["pgp_fast"])


def per_row_of(app: psycopg.Connection, expression: str, name: str, rows: int) -> Probe:
    """Evaluate an expression over the text of a name, as often as there are rows; detoasted once."""
    statement = (
        f"select count({expression}) from generate_series(1, {rows}) i,"
        f" (select plain || '' as plain, ours || ''::bytea as ours, pgp || '{{}}'::bytea[] as pgp from bench.texts where name = '{name}' offset 0) t"
    )
    return once(lambda: app.execute(statement), rows)


def through_a_client(app: psycopg.Connection, *, quick: bool) -> None:
    """Compare with an application that encrypts before it sends."""
    rounds, calls = (3, 300) if quick else (7, 2_000)
    key = AESGCM(os.urandom(32))
    title("through a client: text in, ciphertext out, and back")
    for name, size in SIZES.items():
        text = str(one(app, "select plain from bench.texts where name = %s", name))
        times = calls // 10 if size > 10_000 else calls

        def ours(text: str = text) -> object:
            return one(app, f"select llm.decrypt_data(llm.encrypt_data(%s::text, null, {PLACE}), null, {PLACE})", text)

        def outside(text: str = text) -> object:
            nonce = os.urandom(12)
            sealed = nonce + key.encrypt(nonce, text.encode(), b"letters/body/1")
            returned = one(app, "select %s::bytea", sealed)
            return key.decrypt(returned[:12], returned[12:], b"letters/body/1").decode()

        def alone(text: str = text) -> object:
            nonce = os.urandom(12)
            return key.decrypt(nonce, key.encrypt(nonce, text.encode(), b"letters/body/1"), b"letters/body/1").decode()

        time = medians(rounds, ours=per_call(ours, times), outside=per_call(outside, times), alone=per_call(alone, times))
        line(f"both ways, {name}", time["ours"], "AES-GCM in Python outside, sent and received", time["outside"])
        line(f"both ways, {name}", time["ours"], "AES-GCM in Python alone, nothing sent", time["alone"])


def parts(superuser: psycopg.Connection, *, quick: bool) -> None:
    """Show where the time goes."""
    superuser.execute("begin")
    superuser.execute("select llm.set_tenant('acme')")
    superuser.execute(
        f"""
        create temporary table parts on commit drop as
        select c.chain, llm._data_keys(c.chain) as keys, convert_to(t.plain, 'UTF8') as plain, substr(t.ours, 1, 38) as start,
            (select k.wrapped from llm.tenant_keys k where k.tenant_id = 'acme') as tenant_key
        from bench.texts t, llm._key_chain_to_encrypt('acme', null, null, null, null, {PLACE}) as c (chain) where t.name = '1 kB'
        """
    )

    def part(expression: str) -> Callable[[], float]:
        return once(lambda: superuser.execute(f"select count({expression}) from generate_series(1, 500), parts p"), 500)

    time = medians(
        3 if quick else 9,
        chain=part(f"llm._key_chain_to_encrypt('acme', null, null, null, null, {PLACE})"),
        wrapping=part("llm._wrapping_keys(p.tenant_key)"),
        keys=part("llm._data_keys(p.chain)"),
        seal=part("llm._seal(p.keys, p.plain, p.start)"),
        index=per_row(superuser, "llm.blind_index('ada@example.org', 'users', 'email')", 500),
    )
    superuser.execute("rollback")
    title("the parts of encrypting 1 kB, a call", "")
    fact("keys chosen (cached), key store read", f"{time['chain']:.2f}")
    fact("  of that, key store and derivation", f"{time['wrapping']:.2f}")
    fact("tenant and data key unwrapped", f"{time['keys']:.2f}")
    fact("AES and HMAC of the value", f"{time['seal']:.2f}")
    fact("(blind_index, a call)", f"{time['index']:.2f}")


def rewrap(superuser: psycopg.Connection, *, quick: bool) -> None:
    """Show how long encrypting anew takes."""
    rows = 2_000 if quick else 100_000
    superuser.execute("create table bench.notes (id bigint primary key, body bytea)")
    superuser.execute("select llm.encrypt_data('x')")
    superuser.execute(
        "insert into bench.notes select i, llm.encrypt_data(repeat('x', 1000), null, 'bench.notes', 'body', i::text) from generate_series(1, %s) i",
        [rows],
    )
    superuser.execute("select llm.register_encrypted_column('bench.notes', 'body', 'id')")
    superuser.execute("select llm.rotate_key()")
    took = once(lambda: superuser.execute("call llm.rewrap('bench.notes', 'body')"), rows)()
    fact(f"rewrap of {rows:,} values of 1 kB, a value", f"{took:.1f}")
