create type llm.cache_policy as (
    namespace          text,
    max_size           bigint,
    max_entries        bigint,
    default_ttl        double precision,
    use_compression    boolean,
    eviction_threshold double precision,
    idle               double precision,
    l1                 boolean
);

comment on type llm.cache_policy is
'How a namespace of the cache is kept: see llm.set_cache_policy().';


create function llm.set_cache_policy(
    p_max_size           bigint default null,
    p_max_entries        bigint default null,
    p_default_ttl        double precision default null,
    p_use_compression    boolean default true,
    p_eviction_threshold double precision default 0.9,
    p_idle               double precision default null,
    p_l1                 boolean default false,
    p_namespace          text default 'default'
)
    returns llm.cache_policy
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_policy llm.cache_policy := row(
        p_namespace, p_max_size, p_max_entries, p_default_ttl, p_use_compression, p_eviction_threshold, p_idle, p_l1
    )::llm.cache_policy;
begin
    if p_max_size <= 0 or p_max_entries <= 0 or p_default_ttl <= 0 or p_idle <= 0
        or p_eviction_threshold not between 0.2 and 1
        or num_nulls(p_use_compression, p_eviction_threshold, p_l1, p_namespace) > 0
    then
        raise exception 'this is no policy of a cache: %', to_jsonb(v_policy)
            using errcode = 'invalid_parameter_value',
                  hint = 'Sizes and times are more than 0, or null for no limit; p_eviction_threshold is a share, from 0.2 to 1.';
    end if;
    insert into llm.cache_policies as p (
        tenant_id, namespace, max_size, max_entries, default_ttl, use_compression, eviction_threshold, idle, l1
    )
    values (
        llm._user_tenant(), p_namespace, p_max_size, p_max_entries, p_default_ttl, p_use_compression, p_eviction_threshold, p_idle, p_l1
    )
    on conflict (tenant_id, namespace) do update
    set max_size = excluded.max_size,
        max_entries = excluded.max_entries,
        default_ttl = excluded.default_ttl,
        use_compression = excluded.use_compression,
        eviction_threshold = excluded.eviction_threshold,
        idle = excluded.idle,
        l1 = excluded.l1,
        updated_at = now();
    perform llm.apply_eviction_policy(p_namespace);
    return v_policy;
end
$$;

comment on function llm.set_cache_policy(bigint, bigint, double precision, boolean, double precision, double precision, boolean, text) is
'Says how a namespace is kept, and applies that. p_max_size: at most so many bytes, p_max_entries: entries, null: any; p_default_ttl: seconds that
an entry lives if llm.cache_set() does not say, p_idle: seconds after its last use, null: for ever; p_use_compression: compress what is longer than
2 kB, by lz4; p_eviction_threshold: from this share of p_max_size and p_max_entries on the least recently used are evicted, until a tenth of it is
free; p_l1: let backends keep entries, for llm.cache_get_l1(). All but the sizes are of entries set from now on. Returns the policy. Errors:
invalid_parameter_value; object_not_in_prerequisite_state without a tenant.';


-- security definer: entries are written by functions only.
create function llm.apply_eviction_policy(
    p_namespace text default null
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
begin
    if pg_is_in_recovery() then
        return 0;
    end if;
    v_tenant := llm._cache_tenant();
    return coalesce(
        (
            select sum(llm._cache_evict(v_tenant, p.namespace))
            from llm.cache_policies p
            where p.tenant_id = v_tenant
                and (p_namespace is null or p.namespace = p_namespace)
        ),
        0
    );
end
$$;

alter function llm.apply_eviction_policy(text) owner to llm_owner;

comment on function llm.apply_eviction_policy(text) is
'Evicts what a namespace has too much, as llm.cache_set() does when it is due. p_namespace: null for all. Returns how many entries were evicted.
Errors: object_not_in_prerequisite_state without a tenant.';


-- security definer: entries are written by functions only.
create function llm.optimize_cache_usage()
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
begin
    if pg_is_in_recovery() then
        return 0;
    end if;
    v_tenant := llm._cache_tenant();
    return llm._cache_clean(v_tenant, null::text) + llm.apply_eviction_policy(null::text);
end
$$;

alter function llm.optimize_cache_usage() owner to llm_owner;

comment on function llm.optimize_cache_usage() is
'Deletes what can no longer be read, evicts what is too much. Returns how many entries that were. Errors: object_not_in_prerequisite_state without a
tenant.';


create procedure llm.clean_cache()
    language plpgsql
as $$
declare
    v_tenant pg_catalog.text;
begin
    perform llm._require_storage();
    for v_tenant in select distinct e.tenant_id from llm.cache_entries e order by 1 loop
        perform llm._note_cache_uses(v_tenant);
        perform llm._cache_clean(v_tenant, null::pg_catalog.text);
        perform llm._cache_evict(v_tenant, p.namespace) from llm.cache_policies p where p.tenant_id operator(pg_catalog.=) v_tenant;
        commit;
    end loop;
end
$$;

comment on procedure llm.clean_cache() is
'llm.optimize_cache_usage() for every tenant, and notes which keys are used most, for llm.cache_popular(). Call it outside of a transaction, about
every five minutes: see llm.schedule_maintenance(). For superusers.';


create function llm._cache_clean(
    p_tenant    text,
    p_namespace text
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_count bigint;
begin
    -- What somebody has at hand is left to the next time.
    delete from llm.cache_entries e
    where e.ctid = any (array(
        select d.ctid
        from llm.cache_entries d
        where d.tenant_id = p_tenant
            and (p_namespace is null or d.namespace = p_namespace)
            and coalesce(d.leased_until <= clock_timestamp(), true)
            and not llm._cache_is_live(d.tenant_id, d.expires_at, d.used_at, d.idle, d.depends_on, d.computed_in)
            -- llm.cache_fetch() may still serve it.
            and (not isfinite(d.expires_at) or d.expires_at < clock_timestamp() - interval '1 hour' or p_namespace is not null)
        for update skip locked
    ));
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

comment on function llm._cache_clean(text, text) is
'Deletes entries that can no longer be read: in a namespace, or everywhere those that expired an hour ago.';


create function llm._cache_evict(
    p_tenant    text,
    p_namespace text
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_policy record;
    v_is     record;
    v_count  bigint := 0;
begin
    select p.max_size, p.max_entries, p.eviction_threshold into v_policy
    from llm.cache_policies p
    where p.tenant_id = p_tenant
        and p.namespace = p_namespace;
    -- A transaction of one snapshot would fail where others evict, too.
    if num_nonnulls(v_policy.max_size, v_policy.max_entries) = 0 or current_setting('transaction_isolation') <> 'read committed' then
        return 0;
    end if;

    perform llm._cache_clean(p_tenant, p_namespace);
    select * into v_is from llm._cache_usage(p_tenant, p_namespace);
    if v_is.bytes > v_policy.max_size * v_policy.eviction_threshold or v_is.entries > v_policy.max_entries * v_policy.eviction_threshold then
        -- By place: a join would be planned as for one entry, in quadratic time.
        delete from llm.cache_entries e
        where e.ctid = any (array(
            select d.ctid
            from llm.cache_entries d
            where d.ctid = any (array(
                select o.place
                from (
                    select
                        r.ctid as place,
                        row_number() over recent as entries,
                        sum(llm._cache_entry_size(r.key, coalesce(r.value, r.plain_value), coalesce(r.bytes, r.plain_bytes))) over recent as bytes
                    from llm.cache_entries r
                    where r.tenant_id = p_tenant
                        and r.namespace = p_namespace
                    window recent as (order by r.used_at desc, r.key rows unbounded preceding)
                ) o
                where o.bytes > v_policy.max_size * (v_policy.eviction_threshold - 0.1)
                    or o.entries > v_policy.max_entries * (v_policy.eviction_threshold - 0.1)
            ))
            for update skip locked
        ));
        get diagnostics v_count = row_count;
        select * into v_is from llm._cache_usage(p_tenant, p_namespace);
    end if;
    perform llm._cache_evicted(
        p_tenant, p_namespace, v_count,
        greatest(v_policy.max_entries * v_policy.eviction_threshold - v_is.entries, v_policy.max_entries * 0.05)::bigint,
        greatest(v_policy.max_size * v_policy.eviction_threshold - v_is.bytes, v_policy.max_size * 0.05)::bigint
    );
    return v_count;
end
$$;

comment on function llm._cache_evict(text, text) is
'Evicts the least recently used of a namespace when it is fuller than its policy''s threshold, and says after how many writes to look again. Returns
how many were evicted.';


create function llm._cache_usage(
    p_tenant    text,
    p_namespace text,
    out entries bigint,
    out bytes   bigint
)
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_is_in_recovery() then
        entries := 0;
        bytes := 0;
        return;
    end if;
    select
        count(*) filter (where num_nonnulls(e.value, e.bytes, e.plain_value, e.plain_bytes) = 1),
        coalesce(sum(llm._cache_entry_size(e.key, coalesce(e.value, e.plain_value), coalesce(e.bytes, e.plain_bytes))), 0)
    into entries, bytes
    from llm.cache_entries e
    where e.tenant_id = p_tenant
        and e.namespace = p_namespace;
end
$$;

comment on function llm._cache_usage(text, text) is
'How many entries a namespace has, and about how many bytes they take; nothing on a standby.';


select llm._grant_execute(
    array['llm_owner'],
    '_cache_clean', '_cache_evict', '_cache_usage'
);
select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'set_cache_policy', 'optimize_cache_usage'
);
select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    'apply_eviction_policy'
);
