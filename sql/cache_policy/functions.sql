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
'Says how a namespace is kept, and applies that. p_max_size: at most so many bytes, p_max_entries: entries, null: any; p_default_ttl: seconds that an
entry lives if llm.cache_set() does not say, p_idle: seconds after its last use, null: for ever; p_use_compression: compress what is longer than 2 kB, by
lz4; p_eviction_threshold: from this share of p_max_size and p_max_entries on the least recently used are evicted, until a tenth of it is free; p_l1: let
backends keep entries, for llm.cache_get_l1(). All but the sizes are of entries set from now on. Returns the policy. Errors: invalid_parameter_value;
object_not_in_prerequisite_state without a tenant.';


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
'Evicts what a namespace has too much, as llm.cache_set() does when it is due. p_namespace: null for all. Returns how many entries were evicted. Errors:
object_not_in_prerequisite_state without a tenant.';


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
    return llm._cache_clean(v_tenant, null::text) + llm.apply_eviction_policy();
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
'llm.optimize_cache_usage() for every tenant, and notes which keys are used most, for llm.cache_popular(). Call it outside of a transaction, about every
five minutes: see llm.schedule_maintenance(). For superusers.';


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
    where (e.tenant_id, e.namespace, e.key) in (
        select d.tenant_id, d.namespace, d.key
        from llm.cache_entries d
        where d.tenant_id = p_tenant
            and (p_namespace is null or d.namespace = p_namespace)
            and coalesce(d.leased_until <= clock_timestamp(), true)
            and not llm._cache_is_live(d.tenant_id, d.expires_at, d.used_at, d.idle, d.depends_on, d.computed_in)
            -- llm.cache_fetch() may still serve it.
            and (not isfinite(d.expires_at) or d.expires_at < clock_timestamp() - interval '1 hour' or p_namespace is not null)
        for update skip locked
    );
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
        delete from llm.cache_entries e
        where (e.tenant_id, e.namespace, e.key) in (
            select d.tenant_id, d.namespace, d.key
            from llm.cache_entries d
            join (
                select
                    r.key,
                    row_number() over recent as entries,
                    sum(llm._cache_entry_size(r.key, coalesce(r.value, r.plain_value), coalesce(r.bytes, r.plain_bytes))) over recent as bytes
                from llm.cache_entries r
                where r.tenant_id = p_tenant
                    and r.namespace = p_namespace
                window recent as (order by r.used_at desc, r.key rows unbounded preceding)
            ) o on o.key = d.key
            where d.tenant_id = p_tenant
                and d.namespace = p_namespace
                and (
                    o.bytes > v_policy.max_size * (v_policy.eviction_threshold - 0.1)
                    or o.entries > v_policy.max_entries * (v_policy.eviction_threshold - 0.1)
                )
            for update of d skip locked
        );
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
'Evicts the least recently used of a namespace when it is fuller than its policy''s threshold, and says after how many writes to look again. Returns how
many were evicted.';


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


-- Counting

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
from pg_llm import cache_policy
cache_policy.note_reads(p_tenant, p_namespace, p_hits, p_misses)
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
from pg_llm import cache_policy
return cache_policy.note_writes(p_tenant, p_namespace, p_entries, p_bytes)
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
from pg_llm import cache_policy
cache_policy.note_evictions(p_tenant, p_namespace, p_evictions, p_room_entries, p_room_bytes)
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
from pg_llm import cache_policy
return cache_policy.counts(p_tenant, p_namespace)
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
    -- One read in sixteen stands for all, but those that find a touch due count themselves.
    perform llm._cache_note_reads(llm._owners_tenant(), p_namespace, case when p_is_due then 1 else 16 end::bigint, 0::bigint);
    perform llm._cache_touch(p_namespace, p_key);
end
$$;

comment on function llm._cache_hit(text, text, boolean) is
'Counts a sampled hit, or one that found the entry''s time of use due to be brought up to date; does that.';


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


create function llm._cache_read_many(
    p_namespace text,
    p_hits      bigint,
    p_misses    bigint,
    p_keys      text[]
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm._cache_note_reads(llm._owners_tenant(), p_namespace, p_hits, greatest(p_misses, 0));
    if random() < 0.0625 then
        perform llm._cache_touch(p_namespace, k.key) from unnest(p_keys) k (key);
    end if;
end
$$;

comment on function llm._cache_read_many(text, bigint, bigint, text[]) is
'Counts what llm.cache_get_many() found and did not find; one call in sixteen notes that they were used.';


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
'The tenant''s cache by namespace: reads by all backends that found a value (estimated: one in sixteen is counted) and that found none, hits / (hits +
misses), null before the first; about how many bytes entries take, how many there are, and how many were evicted. p_namespace: null for all. Reads by
llm.cache_get_l1() that a backend answered itself are in llm.coherence_stats().';


select llm._grant_execute(
    array['llm_owner'],
    '_cache_clean', '_cache_evict', '_cache_usage', '_cache_note_reads', '_cache_note_writes', '_cache_evicted', '_cache_counts', '_cache_written',
    '_cache_missed', '_cache_hit', '_cache_touch', '_cache_read_many', '_cache_namespaces'
);
select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'set_cache_policy', 'optimize_cache_usage'
);
select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    'apply_eviction_policy'
);
select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'cache_stats'
);
