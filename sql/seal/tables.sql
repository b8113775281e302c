-- The seals of the audit log: a chain of entries, each of which covers a batch of rows by the root of a Merkle tree.

create table if not exists llm.audit_seals (
    number             bigint primary key,
    kind               text not null check (kind in ('life', 'batch', 'tombstone')),
    rows_from          timestamptz,
    rows_to            timestamptz,
    first_transaction  xid8,
    last_transaction   xid8,
    horizon            xid8,
    ids                int8multirange,
    row_count          bigint,
    root               bytea,
    detail             jsonb,
    sealed_at          timestamptz not null default clock_timestamp(),
    previous_hash      bytea not null,
    hash               bytea not null,
    fingerprints       bytea
);

comment on table llm.audit_seals is
'The chain that seals llm.audit_log, written by llm.seal_audit(). kind: life, a server begins to write (detail: its identifier, the last id before);
batch, the rows of [rows_from, rows_to) with these ids, written by transactions from first_transaction to last_transaction, where all below horizon
are now sealed, and root is that of the RFC 9162 tree over their hashes, in order of ids; tombstone, retention dropped a partition (detail). hash
covers all but fingerprints: the first 4 bytes of each row''s hash, which only tell which row was changed.';

-- the last life, and tombstones, among many batches
create index if not exists audit_seals_by_kind on llm.audit_seals (kind, number) where kind <> 'batch';
-- "which batches overlap this partition"
create index if not exists audit_seals_by_time on llm.audit_seals (rows_from, rows_to);

alter table llm.audit_seals owner to llm_owner;
alter table llm.audit_seals alter column fingerprints set storage external;
grant select on llm.audit_seals to llm_admin, llm_auditor;

create table if not exists llm.audit_anchor (
    path       text primary key,
    server_id  bigint not null,
    set_at     timestamptz not null default now(),
    set_by     text not null default session_user
);

comment on table llm.audit_anchor is
'The file outside the data directory that llm.anchor_audit() writes to, and the server that it is for; see llm.set_audit_anchor(). At most one row.';

alter table llm.audit_anchor owner to llm_owner;
grant select on llm.audit_anchor to llm_admin, llm_auditor;

create or replace trigger append_only
    before update or delete on llm.audit_seals
    for each row execute function llm._refuse_audit_change();
alter table llm.audit_seals enable always trigger append_only;

create or replace trigger append_only_truncate
    before truncate on llm.audit_seals
    for each statement execute function llm._refuse_audit_change();
alter table llm.audit_seals enable always trigger append_only_truncate;

-- Retention asks before it drops.
update llm.partition_sets set before_drop = '_audit_partition_may_go' where parent = 'llm.audit_log' and before_drop is null;
