-- What entries of the cache were computed from, and who changed that last.

-- Each of a tenant's 65,536 words stands for all names of things that hash to it.
create table if not exists llm.cache_bumps (
    tenant_id  text collate "C" not null check (tenant_id <> '*'),
    word       integer not null check (word between 0 and 65535),
    bumped_in  xid8 not null default pg_current_xact_id(),

    primary key (tenant_id, word)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

comment on table llm.cache_bumps is
'The transaction that last changed what hashes to a word: entries that depend on it and were computed in a snapshot that does not see that are
outdated.';

select llm._protect_tenant_table('llm.cache_bumps'::regclass, 'select'::text);
drop policy if exists used_by_function on llm.cache_bumps;
create policy used_by_function on llm.cache_bumps to llm_owner using (true) with check (true);

create unlogged table if not exists llm.cache_life (
    life  uuid primary key default gen_random_uuid()
);

comment on table llm.cache_life is
'Names for the time since the last crash, one or a few: a token from before it is worth nothing, because transaction ids can come again.';

alter table llm.cache_life owner to llm_owner;
alter table llm.cache_life enable row level security;
alter table llm.cache_life force row level security;
drop policy if exists used_by_function on llm.cache_life;
create policy used_by_function on llm.cache_life to llm_owner using (true) with check (true);

-- Transaction ids of another server mean nothing here.
delete from llm.cache_bumps where not llm._storage_is_of_this_server();
delete from llm.cache_life where not llm._storage_is_of_this_server();
insert into llm.cache_life (life) select gen_random_uuid() where not exists (select from llm.cache_life);
