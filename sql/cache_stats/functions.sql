create function llm._cache_note_reads(
    p_tenant    text,
    p_namespace text,
    p_hits      bigint,
    p_misses    bigint
)
    returns void
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import cache_stats
cache_stats.note_reads(p_tenant, p_namespace, p_hits, p_misses)
$$;

comment on function llm._cache_note_reads(text, text, bigint, bigint) is
'Counts reads of a namespace, for all backends.';


create function llm._cache_note_writes(
    p_tenant    text,
    p_namespace text,
    p_entries   bigint,
    p_bytes     bigint
)
    returns boolean
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import cache_stats
return cache_stats.note_writes(p_tenant, p_namespace, p_entries, p_bytes)
$$;

comment on function llm._cache_note_writes(text, text, bigint, bigint) is
'Counts what was written to a namespace by all backends. Returns whether it is time to see if it is too full: the first to be told so does it.';


create function llm._cache_evicted(
    p_tenant       text,
    p_namespace    text,
    p_evictions    bigint,
    p_room_entries bigint,
    p_room_bytes   bigint
)
    returns void
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import cache_stats
cache_stats.note_evictions(p_tenant, p_namespace, p_evictions, p_room_entries, p_room_bytes)
$$;

comment on function llm._cache_evicted(text, text, bigint, bigint, bigint) is
'Counts evictions, and says after how many entries and bytes written to look at the namespace again.';


create function llm._cache_counts(
    p_tenant    text,
    p_namespace text,
    out hits      bigint,
    out misses    bigint,
    out evictions bigint
)
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import cache_stats
return cache_stats.counts(p_tenant, p_namespace)
$$;

comment on function llm._cache_counts(text, text) is
'What was counted of a namespace, by all backends.';


create function llm._cache_written(
    p_tenant    text,
    p_namespace text,
    p_entries   bigint,
    p_bytes     bigint
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if llm._cache_note_writes(p_tenant, p_namespace, p_entries, p_bytes) then
        perform llm._cache_evict(p_tenant, p_namespace);
    end if;
end
$$;

comment on function llm._cache_written(text, text, bigint, bigint) is
'Counts what was written, and evicts when it is time to.';


create function llm._cache_missed(
    p_namespace text,
    p_count     bigint
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm._cache_note_reads(llm._owners_tenant(), p_namespace, 0::bigint, p_count);
end
$$;

comment on function llm._cache_missed(text, bigint) is
'Counts misses of the caller''s tenant.';


create function llm._cache_hit(
    p_namespace text,
    p_key       text,
    p_is_due    boolean
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- One read in 64 stands for all, but those that find a touch due count themselves.
    perform llm._cache_note_reads(llm._owners_tenant(), p_namespace, case when p_is_due then 1 else 64 end::bigint, 0::bigint);
    perform llm._cache_touch(p_namespace, p_key);
end
$$;

comment on function llm._cache_hit(text, text, boolean) is
'Counts a sampled hit, or one that found the entry''s time of use due to be brought up to date, lest it seem idle; does that.';


create function llm._cache_touch(
    p_namespace text,
    p_key       text
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- Reads wait for nobody, and never fail because of this.
    if current_setting('transaction_read_only') = 'off' and current_setting('transaction_isolation') = 'read committed' then
        update llm.cache_entries e
        set used_at = statement_timestamp(),
            uses = e.uses + 1
        where e.ctid = any (
            array(
                select d.ctid
                from llm.cache_entries d
                where d.tenant_id = (select c.tenant_id from llm.cache_caller c)
                    and d.namespace = p_namespace
                    and d.key = p_key
                    and d.used_at < statement_timestamp() - interval '1 second'
                for update skip locked
            )
        );
    end if;
    return true;
end
$$;

comment on function llm._cache_touch(text, text) is
'Notes that an entry was used. Returns true.';


create function llm._cache_namespaces(
    p_tenant text
)
    returns setof text
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query select p.namespace from llm.cache_policies p where p.tenant_id = p_tenant;
    if not pg_is_in_recovery() then
        return query
            select distinct e.namespace
            from llm.cache_entries e
            where e.tenant_id = p_tenant
                and not exists (select from llm.cache_policies p where p.tenant_id = p_tenant and p.namespace = e.namespace);
    end if;
end
$$;

comment on function llm._cache_namespaces(text) is
'The namespaces of a tenant: those with a policy, and those with entries.';


-- security definer: counters are told to their own tenant only.
create function llm.cache_stats(
    p_namespace text default null
)
    returns table (
        namespace   text,
        hit_count   bigint,
        miss_count  bigint,
        hit_ratio   double precision,
        memory_used bigint,
        entries     bigint,
        evictions   bigint
    )
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._owners_tenant();
begin
    return query
        select
            n.namespace,
            c.hits,
            c.misses,
            c.hits::double precision / nullif(c.hits + c.misses, 0),
            u.bytes,
            u.entries,
            c.evictions
        from llm._cache_namespaces(v_tenant) n (namespace)
        cross join lateral llm._cache_counts(v_tenant, n.namespace) c
        cross join lateral llm._cache_usage(v_tenant, n.namespace) u
        where p_namespace is null
            or n.namespace = p_namespace
        order by n.namespace;
end
$$;

alter function llm.cache_stats(text) owner to llm_owner;

comment on function llm.cache_stats(text) is
'The tenant''s cache by namespace: reads by all backends that found a value (estimated: one in 64 is counted) and that found none, hits / (hits +
misses), null before the first; about how many bytes entries take, how many there are, and how many were evicted. p_namespace: null for all. Reads by
llm.cache_get_l1() that a backend answered itself are in llm.coherence_stats().';


select llm._grant_execute(
    array['llm_owner'],
    '_cache_note_reads', '_cache_note_writes', '_cache_evicted', '_cache_counts', '_cache_written', '_cache_missed', '_cache_hit', '_cache_touch',
    '_cache_namespaces'
);
select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'cache_stats'
);
