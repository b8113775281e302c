create function llm._note_cache_uses(
    p_tenant text
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    with used as (
        update llm.cache_entries e
        set uses = 0
        from (
            select d.namespace, d.key, d.uses
            from llm.cache_entries d
            where d.tenant_id = p_tenant
                and d.uses > 0
            for update skip locked
        ) d
        where e.tenant_id = p_tenant
            and e.namespace = d.namespace
            and e.key = d.key
        returning e.namespace, e.key, d.uses, e.used_at
    )
    insert into llm.cache_uses as u (tenant_id, namespace, key, uses, last_used_at)
    select p_tenant, n.namespace, n.key, n.uses, n.used_at
    from used n
    order by n.namespace, n.key
    on conflict (tenant_id, namespace, key) do update
    set uses = u.uses + excluded.uses,
        last_used_at = excluded.last_used_at;

    delete from llm.cache_uses u
    using (
        select r.namespace, r.key, row_number() over (partition by r.namespace order by r.uses desc, r.last_used_at desc, r.key) as place
        from llm.cache_uses r
        where r.tenant_id = p_tenant
    ) r
    where u.tenant_id = p_tenant
        and u.namespace = r.namespace
        and u.key = r.key
        and r.place > 1000;
end
$$;

comment on function llm._note_cache_uses(text) is
'Adds the uses of entries since the last call to llm.cache_uses, and keeps the 1,000 most used keys of each namespace there.';


create function llm.cache_popular(
    p_namespace text default 'default',
    p_limit     integer default 100
)
    returns table (key text, uses bigint, last_used_at timestamptz, is_cached boolean)
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm.current_tenant();
    v_cached text[] := array(select k.key from llm.cache_keys(''::text, p_namespace) k (key));
begin
    return query
        select u.key, u.uses, u.last_used_at, u.key = any (v_cached)
        from llm.cache_uses u
        where u.tenant_id = v_tenant
            and u.namespace = p_namespace
        order by u.uses desc, u.last_used_at desc, u.key
        limit p_limit;
end
$$;

comment on function llm.cache_popular(text, integer) is
'The most used keys of a namespace, most used first: those to compute before anybody asks, after a crash has emptied the cache. p_limit: how many.
Returns keys, how often a sample saw them used, when last, and whether they have a value now. As of the last llm.clean_cache().';


select llm._grant_execute(
    array['llm_owner'],
    '_note_cache_uses'
);
select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'cache_popular'
);
