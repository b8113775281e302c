-- The cache: values by tenant, namespace and key. Unlogged: fast to write, empty after a crash, absent on a standby.

create unlogged table if not exists llm.cache_entries (
    tenant_id    text collate "C" not null check (tenant_id <> '*'),
    namespace    text collate "C" not null default 'default' check (octet_length(namespace) between 1 and 100),
    key          text collate "C" not null check (octet_length(key) between 1 and 1000),
    value        jsonb compression lz4,
    bytes        bytea compression lz4,
    size         integer not null default 0,
    created_at   timestamptz not null default statement_timestamp(),
    expires_at   timestamptz not null default 'infinity',
    used_at      timestamptz not null default statement_timestamp(),
    idle         interval,
    tags         text[] collate "C",
    depends_on   integer[],
    computed_in  pg_snapshot,
    lease        uuid,
    leased_until timestamptz,
    l1           boolean not null default false,

    primary key (tenant_id, namespace, key),
    constraint cache_entries_form_check check (num_nonnulls(value, bytes) <= 1),
    constraint cache_entries_dependency_check check ((depends_on is null) = (computed_in is null))
) with (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0, toast.autovacuum_vacuum_scale_factor = 0.05);

comment on table llm.cache_entries is
'What is cached. value or bytes is what was cached; a row without either is a lease on a key that nobody has filled yet. It is valid before expires_at,
while used_at is not longer ago than idle, and while nothing it depends on (words of llm.cache_bumps) changed after computed_in. used_at is right to a
minute, or a tenth of idle. lease, leased_until: who computes a new value, and how long others leave it to him. l1: backends may keep it. size is
about what it takes, in bytes. Unlogged: a crash empties it, and a standby cannot read it.';

-- "all with this tag"
create index if not exists cache_entries_by_tag on llm.cache_entries using gin (tags) where tags is not null;

select llm._protect_tenant_table('llm.cache_entries'::regclass, 'select'::text);
drop policy if exists used_by_function on llm.cache_entries;
create policy used_by_function on llm.cache_entries to llm_owner using (true) with check (true);
