-- The cache: values by tenant, namespace and key. Unlogged: fast to write, empty after a crash, absent on a standby.

create unlogged table if not exists llm.cache_entries (
    tenant_id    text collate "C" not null check (tenant_id <> '*'),
    namespace    text collate "C" not null check (octet_length(namespace) between 1 and 100),
    key          text collate "C" not null check (octet_length(key) between 1 and 1000),
    value        jsonb compression lz4,
    bytes        bytea compression lz4,
    plain_value  jsonb storage external,
    plain_bytes  bytea storage external,
    created_at   timestamptz not null default statement_timestamp(),
    expires_at   timestamptz not null default 'infinity',
    used_at      timestamptz not null default clock_timestamp(),
    uses         bigint not null default 0,
    idle         interval,
    tags         text[] collate "C",
    depends_on   integer[],
    computed_in  pg_snapshot,
    lease        uuid,
    leased_until timestamptz,
    l1           boolean not null default false,

    primary key (tenant_id, namespace, key),
    constraint cache_entries_form_check check (num_nonnulls(value, bytes, plain_value, plain_bytes) <= 1),
    constraint cache_entries_dependency_check check ((depends_on is null) = (computed_in is null))
) with (
    fillfactor = 75, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0, toast.autovacuum_vacuum_scale_factor = 0.05,
    toast.autovacuum_vacuum_cost_delay = 0
);

comment on table llm.cache_entries is
'What is cached. value or bytes is what was cached, plain_value and plain_bytes the same where a policy wants no compression; a row without any is a
lease on a key that nobody has filled yet. It is valid before expires_at, while used_at is not longer ago than idle, and while nothing that it depends
on (words of llm.cache_bumps) changed after computed_in. used_at is right to a tenth of idle, else a sample''s, as uses is. lease,
leased_until: who computes a new value, and how long others leave it to him. l1: backends may keep it. Unlogged: a crash empties it, and a standby
cannot read it.';

-- "these hundred keys": half the time of the primary key, whose three texts are compared at every step
create index if not exists cache_entries_by_hash on llm.cache_entries
    using hash (hashtextextended(key, hashtextextended(namespace, hashtextextended(tenant_id, 0))));
-- "all with this tag"
create index if not exists cache_entries_by_tag on llm.cache_entries using gin (tags) where tags is not null;

select llm._protect_tenant_table('llm.cache_entries'::regclass, 'select'::text);
-- The functions that use the cache compare the tenant themselves, once.
drop policy if exists used_by_function on llm.cache_entries;
create policy used_by_function on llm.cache_entries to llm_owner using (true) with check (true);

-- Transaction ids of another server mean nothing here.
delete from llm.cache_entries where depends_on is not null and not llm._storage_is_of_this_server();

-- What backends keep is told of every change but those of used_at, uses and leases.
create or replace trigger coherence_insert
    before insert on llm.cache_entries
    for each row when (new.l1) execute function llm._cache_coherence();
alter table llm.cache_entries enable always trigger coherence_insert;

create or replace trigger coherence_update
    before update of expires_at on llm.cache_entries
    for each row when (old.l1 or new.l1) execute function llm._cache_coherence();
alter table llm.cache_entries enable always trigger coherence_update;

create or replace trigger coherence_delete
    before delete on llm.cache_entries
    for each row when (old.l1) execute function llm._cache_coherence();
alter table llm.cache_entries enable always trigger coherence_delete;

create or replace trigger coherence_truncate
    before truncate on llm.cache_entries
    for each statement execute function llm._coherence_truncate();
alter table llm.cache_entries enable always trigger coherence_truncate;

create or replace view llm.cache_caller with (security_invoker = true) as
select
    coalesce(
        (select r.tenant_id from llm.tenant_roles r where r.role_name = session_user),
        case
            when current_setting('role') in ('none', session_user)
                and current_setting('llm.tenant_set_at', true) = date_part('epoch', now())::text
                then nullif(current_setting('llm.tenant', true), '')
            else llm._owners_tenant()
        end
    ) as tenant_id;

comment on view llm.cache_caller is
'The caller''s tenant, as llm.current_tenant(), for security definer functions: part of the statement that needs it, where a call would cost as much
as the rest.';

create or replace view llm.cache_valid with (security_invoker = true) as
select
    e.tenant_id,
    e.namespace,
    e.key,
    hashtextextended(e.key, hashtextextended(e.namespace, hashtextextended(e.tenant_id, 0))) as hash,
    coalesce(e.value, e.plain_value) as value,
    coalesce(e.bytes, e.plain_bytes) as bytes,
    e.expires_at,
    e.l1 and e.depends_on is null and e.idle is null as l1,
    e.idle is not null and e.used_at < statement_timestamp() - e.idle / 10 as is_touch_due
from llm.cache_entries e
where llm._cache_is_live(e.tenant_id, e.expires_at, e.used_at, e.idle, e.depends_on, e.computed_in);

comment on view llm.cache_valid is
'The valid entries of all tenants, for security definer functions.';

create or replace view llm.cache_live with (security_invoker = true) as
select v.*
from llm.cache_valid v
where v.tenant_id = (select c.tenant_id from llm.cache_caller c);

comment on view llm.cache_live is
'The valid entries of the caller''s tenant, for security definer functions.';

alter view llm.cache_caller owner to llm_owner;
alter view llm.cache_valid owner to llm_owner;
alter view llm.cache_live owner to llm_owner;
