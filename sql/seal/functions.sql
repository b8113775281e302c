create type llm.audit_finding as (
    ok      boolean,
    entry   bigint,
    row_id  bigint,
    kind    text,
    detail  text
);

comment on type llm.audit_finding is
'What llm.verify_audit() found: ok, as it should be; entry, the number in llm.audit_seals; row_id, the id in llm.audit_log; kind: verified, dropped,
row edited, row missing, rows missing, row inserted, rows changed, entry changed, entry missing, chain broken, anchor, sensitive.';


create function llm._audit_partitions()
    returns table (partition oid, rows_from timestamptz, rows_to timestamptz)
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select c.oid, b.bound[1]::timestamptz, b.bound[2]::timestamptz
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
    cross join regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(.+)''\) TO \(''(.+)''\)') b (bound)
    where i.inhparent = 'llm.audit_log'::regclass
        and b.bound is not null
    order by 2
$$;

comment on function llm._audit_partitions() is
'The partitions of llm.audit_log but the default one, each with the range of its rows.';


-- Not pinned: inlined into queries over many rows, fully qualified.
create function llm._audit_leaf(
    p_tenant_id      text,
    p_id             bigint,
    p_timestamp      timestamptz,
    p_user_id        text,
    p_action         text,
    p_object_type    text,
    p_object_id      text,
    p_details        jsonb,
    p_client_info    jsonb,
    p_before         jsonb,
    p_after          jsonb,
    p_sensitive_hash bytea,
    p_login_role     text,
    p_client_address inet,
    p_application    text,
    p_transaction_id xid8
)
    returns bytea
    language sql
    immutable
    parallel safe
as $$
    select pg_catalog.sha256(
        -- E'…' throughout: an inlined body is read under the caller's standard_conforming_strings.
        e'\\x00'::pg_catalog.bytea
        operator(pg_catalog.||) pg_catalog.int8send(p_id) operator(pg_catalog.||) pg_catalog.timestamptz_send(p_timestamp)
        operator(pg_catalog.||) pg_catalog.xid8send(p_transaction_id)
        operator(pg_catalog.||) pg_catalog.int4send(pg_catalog.octet_length(p_tenant_id))
        operator(pg_catalog.||) pg_catalog.int4send(pg_catalog.octet_length(p_user_id))
        operator(pg_catalog.||) pg_catalog.int4send(pg_catalog.octet_length(p_action))
        operator(pg_catalog.||) pg_catalog.int4send(pg_catalog.octet_length(p_object_type))
        operator(pg_catalog.||) pg_catalog.int4send(pg_catalog.octet_length(p_object_id))
        operator(pg_catalog.||) pg_catalog.int4send(pg_catalog.octet_length(p_login_role))
        operator(pg_catalog.||) pg_catalog.int4send(coalesce(pg_catalog.octet_length(p_application), -1))
        operator(pg_catalog.||) pg_catalog.replace(
            p_tenant_id operator(pg_catalog.||) p_user_id operator(pg_catalog.||) p_action operator(pg_catalog.||) p_object_type
            operator(pg_catalog.||) p_object_id
            operator(pg_catalog.||) p_login_role operator(pg_catalog.||) coalesce(p_application, '')
            -- Nested, so that large values are copied seldom.
            operator(pg_catalog.||) ((coalesce(p_details::pg_catalog.text, '') operator(pg_catalog.||) e'\n')
            operator(pg_catalog.||) ((coalesce(p_client_info::pg_catalog.text, '') operator(pg_catalog.||) e'\n')
            operator(pg_catalog.||) ((coalesce(p_before::pg_catalog.text, '') operator(pg_catalog.||) e'\n')
            operator(pg_catalog.||) ((coalesce(p_after::pg_catalog.text, '') operator(pg_catalog.||) e'\n')
            operator(pg_catalog.||) (coalesce(p_client_address::pg_catalog.text, '') operator(pg_catalog.||) e'\n'))))),
            e'\\', e'\\\\'
        )::pg_catalog.bytea
        operator(pg_catalog.||) coalesce(p_sensitive_hash, ''::pg_catalog.bytea)
    )
$$;

comment on function llm._audit_leaf(text, bigint, timestamptz, text, text, text, text, jsonb, jsonb, jsonb, jsonb, bytea, text, inet, text, xid8) is
'The hash of a row of llm.audit_log, a leaf of RFC 9162: SHA-256 of 0x00 and the canonical bytes that docs/audit.md describes.
Arguments: its columns.';


-- security definer: rows of all tenants are sealed, and only through here.
create function llm.seal_audit(
    p_max_rows   bigint default 1000000,
    p_batch_rows integer default 100000
)
    returns bigint
    language plpython3u
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    set work_mem = '32MB'
as $$
from pg_llm import seal
return seal.seal(p_max_rows, p_batch_rows)
$$;

alter function llm.seal_audit(bigint, integer) owner to llm_owner;

comment on function llm.seal_audit(bigint, integer) is
'Seals the rows of llm.audit_log whose transactions, and all older ones, are over: run it every few minutes. p_max_rows: stop after about so many, a
transaction is never divided; p_batch_rows: at most so many rows an entry of llm.audit_seals. Returns how many rows it sealed, null while another
session seals. On a server''s first run it waits for writers of the log, and holds them up, once. Errors: invalid_parameter_value below 1;
object_not_in_prerequisite_state outside of READ COMMITTED.';


-- security definer: rows of all tenants are verified.
create function llm.verify_audit(
    p_first  bigint default null,
    p_last   bigint default null,
    p_anchor jsonb default null
)
    returns setof llm.audit_finding
    language plpython3u
    stable
    security definer
    set search_path = pg_catalog, pg_temp
    set work_mem = '32MB'
as $$
from pg_llm import verify
return verify.verify(p_first, p_last, p_anchor)
$$;

alter function llm.verify_audit(bigint, bigint, jsonb) owner to llm_owner;

comment on function llm.verify_audit(bigint, bigint, jsonb) is
'Recomputes the hashes of rows, batches and entries from what is stored, and compares the chain with the anchor file. Returns what is not as it was
sealed (ok false), partitions that retention dropped, and at last a row of kind verified. p_first, p_last: rows of these entries only, null for all:
rows that were inserted are only found in all; p_anchor: besides, a line of the anchor file that you kept elsewhere. Errors: invalid_parameter_value
when p_anchor is none.';


-- security definer: leaves of rows of all tenants.
create function llm._audit_leaves(
    p_entry bigint
)
    returns table (ids bytea, leaves bytea)
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select
            string_agg(int8send(a.id), ''::bytea order by a.id, a.tenant_id, a."timestamp"),
            string_agg(
                llm._audit_leaf(
                    a.tenant_id, a.id, a."timestamp", a.user_id, a.action, a.object_type, a.object_id, a.details, a.client_info, a.before,
                    a.after, a.sensitive_hash, a.login_role, a.client_address, a.application, a.transaction_id
                ),
                ''::bytea order by a.id, a.tenant_id, a."timestamp"
            )
        from llm.audit_seals s
        join llm.audit_log a on a."timestamp" >= s.rows_from and a."timestamp" < s.rows_to
            and a.transaction_id between s.first_transaction and s.last_transaction
            and a.id >= lower(s.ids) and a.id < upper(s.ids) and a.id <@ s.ids
        where s.number = p_entry;
end
$$;

alter function llm._audit_leaves(bigint) owner to llm_owner;

comment on function llm._audit_leaves(bigint) is
'The ids and the hashes of the rows of a batch, in the order of its tree.';


create function llm.prove_audit(
    p_id   bigint,
    p_size bigint default null
)
    returns setof jsonb
    language plpython3u
    stable
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import prove
return prove.prove(p_id, p_size)
$$;

comment on function llm.prove_audit(bigint, bigint) is
'The proof that a row of llm.audit_log is sealed, one for each row of this id that the caller may see: the row, its path to the root of its batch,
and the path of that entry to the head of the chain. python/verify_audit_proof.py verifies it, without a database. p_id: the row; p_size: how many
entries the head has, as an anchor that somebody kept; null for all. Errors: no_data_found without such a row; object_not_in_prerequisite_state
while it is not sealed, or only in a later entry; data_corrupted when its batch is not what was sealed.';


create function llm.prove_audit_growth(
    p_first bigint,
    p_last  bigint default null
)
    returns jsonb
    language plpython3u
    stable
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import prove
return prove.growth(p_first, p_last)
$$;

comment on function llm.prove_audit_growth(bigint, bigint) is
'The proof that the chain of p_first entries is the unchanged beginning of the chain of p_last entries (null: of all), for
python/verify_audit_proof.py. Errors: invalid_parameter_value unless 1 <= p_first <= p_last <= all.';


create function llm._anchor_is_safe(
    p_path text
)
    returns boolean
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import anchor
return anchor.is_safe(p_path)
$$;

comment on function llm._anchor_is_safe(text) is
'Makes the anchor file if need be. Errors: invalid_parameter_value for a path in the data directory, or that cannot be used.';


create function llm.set_audit_anchor(
    p_path text
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_path is null or llm._anchor_is_safe(p_path) then
        delete from llm.audit_anchor;
        insert into llm.audit_anchor (path, server_id)
        select p_path, s.system_identifier
        from pg_control_system() s
        where p_path is not null;
    end if;
end
$$;

comment on function llm.set_audit_anchor(text) is
'Names the file that llm.anchor_audit() writes to on this server, and makes it. p_path: absolute, outside the data directory, in a directory that is
not open to everybody; null for none. For superusers. Errors: invalid_parameter_value.';


-- security definer: the file''s path, and the entries, whoever runs it.
create function llm.anchor_audit(
    p_reason text default null
)
    returns jsonb
    language plpython3u
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import anchor
return anchor.write(p_reason)
$$;

alter function llm.anchor_audit(text) owner to llm_owner;

comment on function llm.anchor_audit(text) is
'Writes the head of the chain, signed with a key that the master key gives (without one, unsigned), as a line of the file that
llm.set_audit_anchor() named. Returns it; null before anything was sealed; the last line when nothing was sealed since. p_reason: why the log is not
the one that was anchored, after the server was set back on purpose. Errors: data_corrupted when it is not, and no reason is given; io_error when
the file cannot be written, sealing goes on then; object_not_in_prerequisite_state without a file, or in a transaction that has written.';


-- security definer: rows of all tenants are counted.
create function llm.audit_seal_status()
    returns table (
        entries         bigint,
        sealed_rows     bigint,
        sealed_at       timestamptz,
        waiting_rows    bigint,
        waiting_since   timestamptz,
        held_up_by      text,
        anchor_path     text,
        anchored        bigint,
        anchored_at     timestamptz,
        anchor_problem  text
    )
    language plpython3u
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import seal_status
return seal_status.status()
$$;

alter function llm.audit_seal_status() owner to llm_owner;

comment on function llm.audit_seal_status() is
'One row: entries of the chain, rows and time of the last batch; rows that wait to be sealed, since when, and what holds them up (the oldest
transaction that is open, a prepared one among them); the anchor file, how many entries its last anchor has, and when it was written, or why that
cannot be told.';


-- security definer: only retention writes tombstones.
create function llm._audit_partition_may_go(
    p_partition regclass
)
    returns boolean
    language plpython3u
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import seal
return seal.partition_may_go(p_partition)
$$;

alter function llm._audit_partition_may_go(regclass) owner to llm_owner;

comment on function llm._audit_partition_may_go(regclass) is
'Called before retention drops a partition of llm.audit_log, in the same transaction: writes its tombstone, and returns true; or returns false, and
writes nothing, while it has rows that are not sealed, or another session seals.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_auditor'],
    '_audit_partitions'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_auditor'],
    '_audit_leaf'
);

select llm._grant_execute(
    array['llm_admin', 'llm_auditor'],
    'verify_audit', '_audit_leaves', 'prove_audit', 'prove_audit_growth', 'audit_seal_status'
);

select llm._grant_execute(
    array['llm_admin'],
    'seal_audit', 'anchor_audit'
);
