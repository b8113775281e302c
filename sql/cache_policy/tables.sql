-- Policies of the cache: how large a namespace may get, how long its entries live.

create table if not exists llm.cache_policies (
    tenant_id          text collate "C" not null check (tenant_id <> '*'),
    namespace          text collate "C" not null check (octet_length(namespace) between 1 and 100),
    max_size           bigint check (max_size > 0),
    max_entries        bigint check (max_entries > 0),
    default_ttl        double precision check (default_ttl > 0),
    use_compression    boolean not null default true,
    eviction_threshold double precision not null default 0.9 check (eviction_threshold between 0.2 and 1),
    idle               double precision check (idle > 0),
    l1                 boolean not null default false,
    updated_at         timestamptz not null default now(),

    primary key (tenant_id, namespace)
);

comment on table llm.cache_policies is
'How a namespace of the cache is kept: at most max_size bytes and max_entries entries, from eviction_threshold (a share of that) on the least recently
used are evicted; default_ttl and idle in seconds; null: no limit. l1: backends may keep its entries, see llm.cache_get_l1().';

select llm._protect_tenant_table('llm.cache_policies'::regclass, 'select, insert, update, delete'::text);
drop policy if exists used_by_function on llm.cache_policies;
create policy used_by_function on llm.cache_policies for select to llm_owner using (true);
