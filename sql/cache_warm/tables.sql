-- Which keys of the cache are used most: what is worth computing again after a crash, before anybody asks.

create table if not exists llm.cache_uses (
    tenant_id    text collate "C" not null check (tenant_id <> '*'),
    namespace    text collate "C" not null,
    key          text collate "C" not null,
    uses         bigint not null,
    last_used_at timestamptz not null,

    primary key (tenant_id, namespace, key)
);

comment on table llm.cache_uses is
'The most used keys of the cache, at most 1,000 a namespace, by a sample of their uses, as of the last llm.clean_cache().';

select llm._protect_tenant_table('llm.cache_uses'::regclass, 'select'::text);
drop policy if exists used_by_function on llm.cache_uses;
create policy used_by_function on llm.cache_uses to llm_owner using (true) with check (true);
