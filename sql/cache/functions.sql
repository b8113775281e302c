-- Reading. Each function has its own statement: one more call would cost as much as the look-up. Stable, because they read with the caller's
-- snapshot; what they count and touch, nobody sees in his answer.

-- security definer: the tenant is looked up once, not once more by the policies of the table; touching needs no privilege then.
create function llm.cache_get(
    p_key       text,
    p_namespace text default 'default'
)
    returns jsonb
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_value  jsonb;
    v_is_due boolean;
begin
    if pg_is_in_recovery() then
        return null;
    end if;
    select c.value, c.is_touch_due into v_value, v_is_due from llm.cache_live c where c.namespace = p_namespace and c.key = p_key;
    if not found then
        perform llm._cache_missed(p_namespace, 1::bigint);
    elsif v_is_due or random() < 0.015625 then
        perform llm._cache_hit(p_namespace, p_key, v_is_due);
    end if;
    return v_value;
end
$$;

alter function llm.cache_get(text, text) owner to llm_owner;

comment on function llm.cache_get(text, text) is
'The value of a key, null when there is no valid one: it was never set, is expired, outdated, evicted; or after a crash, or on a standby. p_key: the
key; p_namespace: the namespace. What was set as bytes is read by llm.cache_get_bytes().';


-- Not pinned: inlined into the caller's query, fully qualified.
create function llm.cache_get_text(
    p_key       text,
    p_namespace text default 'default'
)
    returns text
    language sql
    volatile
as $$
    select llm.cache_get(p_key, p_namespace) operator(pg_catalog.#>>) '{}'
$$;

comment on function llm.cache_get_text(text, text) is
'As llm.cache_get(), the value as text: of what llm.cache_set_text() set that, of any other its JSON.';


-- security definer: as llm.cache_get().
create function llm.cache_get_bytes(
    p_key       text,
    p_namespace text default 'default'
)
    returns bytea
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_bytes  bytea;
    v_is_due boolean;
begin
    if pg_is_in_recovery() then
        return null;
    end if;
    select c.bytes, c.is_touch_due into v_bytes, v_is_due from llm.cache_live c where c.namespace = p_namespace and c.key = p_key;
    if not found then
        perform llm._cache_missed(p_namespace, 1::bigint);
    elsif v_is_due or random() < 0.015625 then
        perform llm._cache_hit(p_namespace, p_key, v_is_due);
    end if;
    return v_bytes;
end
$$;

alter function llm.cache_get_bytes(text, text) owner to llm_owner;

comment on function llm.cache_get_bytes(text, text) is
'As llm.cache_get(), for what llm.cache_set_bytes() set.';


-- security definer: as llm.cache_get().
create function llm.cache_ttl(
    p_key       text,
    p_namespace text default 'default'
)
    returns integer
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_expires_at timestamptz;
begin
    if not pg_is_in_recovery() then
        select c.expires_at into v_expires_at from llm.cache_live c where c.namespace = p_namespace and c.key = p_key;
    end if;
    return case
        when v_expires_at is null then -2
        when v_expires_at = 'infinity' then -1
        else least(ceil(extract(epoch from v_expires_at - statement_timestamp())), 2147483647)
    end;
end
$$;

alter function llm.cache_ttl(text, text) owner to llm_owner;

comment on function llm.cache_ttl(text, text) is
'For how many seconds a key keeps its value, as Redis says it: -1 for ever, -2 when it has none.';


-- Writing

-- security definer: entries are written by functions only, and the tenant is looked up once.
create function llm._cache_put(
    p_namespace  text,
    p_key        text,
    p_value      jsonb,
    p_bytes      bytea,
    p_ttl        double precision,
    p_tags       text[],
    p_depends_on text[],
    p_token      text,
    p_only_new   boolean
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_policy      record;
    v_words       integer[];
    v_computed    pg_snapshot;
    v_lease       uuid;
    v_ttl         double precision;
    v_expires     timestamptz := 'infinity';
    v_plain_value jsonb;
    v_plain_bytes bytea;
    v_done        boolean;
begin
    if pg_is_in_recovery() then
        return false;
    end if;
    select
        c.tenant_id,
        p.default_ttl,
        coalesce(p.use_compression, true) as use_compression,
        make_interval(secs => p.idle) as idle,
        coalesce(p.l1, false) as l1,
        p.max_size is not null or p.max_entries is not null as is_limited
    into v_policy
    from llm.cache_caller c
    left join llm.cache_policies p on p.tenant_id = c.tenant_id and p.namespace = p_namespace;
    v_ttl := coalesce(p_ttl, v_policy.default_ttl);
    if v_policy.tenant_id is null or p_key is null or num_nonnulls(p_value, p_bytes) = 0 or not coalesce(v_ttl > 0 and v_ttl <= 'infinity', true) then
        perform llm._refuse_cache_entry(v_policy.tenant_id, p_key, v_ttl);
    end if;
    if v_ttl < 1e9 then
        v_expires := statement_timestamp() + make_interval(secs => v_ttl);
    end if;
    if p_token is not null or cardinality(p_depends_on) > 0 then
        v_computed := llm._cache_computed_in(p_token);
        if v_computed is null then
            return false;
        end if;
        v_lease := nullif(split_part(p_token, '/', 3), '')::uuid;
        if cardinality(p_depends_on) > 0 then
            v_words := llm._cache_words(p_depends_on);
            if not llm._cache_is_current(v_policy.tenant_id, v_words, v_computed) then
                perform llm._cache_release(v_policy.tenant_id, p_namespace, p_key, v_lease);
                return false;
            end if;
        else
            v_computed := null;
        end if;
    end if;

    if not v_policy.use_compression then
        v_plain_value := p_value;
        v_plain_bytes := p_bytes;
        p_value := null;
        p_bytes := null;
    end if;
    if v_lease is not null then
        update llm.cache_entries e
        set value = p_value,
            bytes = p_bytes,
            plain_value = v_plain_value,
            plain_bytes = v_plain_bytes,
            created_at = statement_timestamp(),
            expires_at = v_expires,
            used_at = clock_timestamp(),
            idle = v_policy.idle,
            tags = p_tags,
            depends_on = v_words,
            computed_in = v_computed,
            lease = null,
            leased_until = null,
            l1 = v_policy.l1
        where e.tenant_id = v_policy.tenant_id
            and e.namespace = p_namespace
            and e.key = p_key
            and e.lease = v_lease;
    else
        insert into llm.cache_entries as e (
            tenant_id, namespace, key, value, bytes, plain_value, plain_bytes, expires_at, idle, tags, depends_on, computed_in, l1
        )
        values (
            v_policy.tenant_id, p_namespace, p_key, p_value, p_bytes, v_plain_value, v_plain_bytes, v_expires, v_policy.idle, p_tags, v_words,
            v_computed, v_policy.l1
        )
        on conflict (tenant_id, namespace, key) do update
        set value = excluded.value,
            bytes = excluded.bytes,
            plain_value = excluded.plain_value,
            plain_bytes = excluded.plain_bytes,
            created_at = excluded.created_at,
            expires_at = excluded.expires_at,
            used_at = excluded.used_at,
            idle = excluded.idle,
            tags = excluded.tags,
            depends_on = excluded.depends_on,
            computed_in = excluded.computed_in,
            lease = null,
            leased_until = null,
            l1 = excluded.l1
        where not p_only_new
            or not llm._cache_is_live(e.tenant_id, e.expires_at, e.used_at, e.idle, e.depends_on, e.computed_in);
    end if;
    v_done := found;

    if v_done and v_policy.is_limited then
        perform llm._cache_written(
            v_policy.tenant_id, p_namespace, 1::bigint,
            llm._cache_entry_size(p_key, coalesce(p_value, v_plain_value), coalesce(p_bytes, v_plain_bytes))
        );
    end if;
    return v_done;
end
$$;

alter function llm._cache_put(text, text, jsonb, bytea, double precision, text[], text[], text, boolean) owner to llm_owner;

comment on function llm._cache_put(text, text, jsonb, bytea, double precision, text[], text[], text, boolean) is
'What all ways to set an entry come to. p_only_new: leave a valid entry as it is. Returns whether it was set. Errors: as llm.cache_set().';


create function llm._refuse_cache_entry(
    p_tenant text,
    p_key    text,
    p_ttl    double precision
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_tenant is null then
        perform llm._cache_tenant();
    end if;
    if not coalesce(p_ttl > 0 and p_ttl <= 'infinity', true) then
        raise exception 'the cache cannot keep % for % s', quote_nullable(left(p_key, 100)), p_ttl
            using errcode = 'invalid_parameter_value',
                  hint = 'p_ttl is in seconds and more than 0; llm.cache_delete() deletes.';
    end if;
    raise exception 'the key of the cache, or the value of %, is null', quote_nullable(left(p_key, 100))
        using errcode = 'null_value_not_allowed',
              hint = 'The JSON null is ''null''; llm.cache_delete() deletes.';
end
$$;

comment on function llm._refuse_cache_entry(text, text, double precision) is
'Says what is wrong with an entry. Errors: object_not_in_prerequisite_state, invalid_parameter_value, null_value_not_allowed.';


create function llm._cache_entry_size(
    p_key   text,
    p_value jsonb,
    p_bytes bytea
)
    returns bigint
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return 150 + octet_length(p_key) + coalesce(pg_column_size(p_value), 0) + coalesce(pg_column_size(p_bytes), 0);
end
$$;

comment on function llm._cache_entry_size(text, jsonb, bytea) is
'About what an entry takes in the table and its index, in bytes.';


-- The ways to set an entry are not pinned: inlined into the caller's query, fully qualified.
create function llm.cache_set(
    p_key        text,
    p_value      jsonb,
    p_ttl        double precision default null,
    p_namespace  text default 'default',
    p_tags       text[] default null,
    p_depends_on text[] default null,
    p_token      text default null
)
    returns boolean
    language sql
    volatile
as $$
    select llm._cache_put(p_namespace, p_key, p_value, null::pg_catalog.bytea, p_ttl, p_tags, p_depends_on, p_token, false)
$$;

comment on function llm.cache_set(text, jsonb, double precision, text, text[], text[], text) is
'Caches a value. p_key: 1 to 1,000 bytes; p_value: any JSON; p_ttl: for how many seconds, null for the namespace''s default, infinity for ever;
p_namespace: 1 to 100 bytes; p_tags: for llm.cache_invalidate_tag(); p_depends_on: what it was computed from, see llm.cache_bump(), with p_token: of
llm.cache_token() or llm.cache_fetch(), taken before the computation. Returns false when it was not cached: it is outdated already, a crash made the
token void, the lease of llm.cache_fetch() is another''s by now; or this is a standby. Errors: null_value_not_allowed, invalid_parameter_value,
check_violation; object_not_in_prerequisite_state without a tenant, or with p_depends_on but without p_token.';


create function llm.cache_set_text(
    p_key        text,
    p_value      text,
    p_ttl        double precision default null,
    p_namespace  text default 'default',
    p_tags       text[] default null,
    p_depends_on text[] default null,
    p_token      text default null
)
    returns boolean
    language sql
    volatile
as $$
    select llm._cache_put(
        p_namespace, p_key, pg_catalog.to_jsonb(p_value), null::pg_catalog.bytea, p_ttl, p_tags, p_depends_on, p_token, false
    )
$$;

comment on function llm.cache_set_text(text, text, double precision, text, text[], text[], text) is
'As llm.cache_set(), for a text, which llm.cache_get() gives as a JSON string.';


create function llm.cache_set_bytes(
    p_key        text,
    p_value      bytea,
    p_ttl        double precision default null,
    p_namespace  text default 'default',
    p_tags       text[] default null,
    p_depends_on text[] default null,
    p_token      text default null
)
    returns boolean
    language sql
    volatile
as $$
    select llm._cache_put(p_namespace, p_key, null::pg_catalog.jsonb, p_value, p_ttl, p_tags, p_depends_on, p_token, false)
$$;

comment on function llm.cache_set_bytes(text, bytea, double precision, text, text[], text[], text) is
'As llm.cache_set(), for bytes, which llm.cache_get_bytes() gives.';


create function llm.cache_set_ex(
    p_key       text,
    p_value     jsonb,
    p_ttl       double precision,
    p_namespace text default 'default'
)
    returns boolean
    language sql
    volatile
as $$
    select llm._cache_put(
        p_namespace, p_key, p_value, null::pg_catalog.bytea, coalesce(p_ttl, 0), null::pg_catalog.text[], null::pg_catalog.text[],
        null::pg_catalog.text, false
    )
$$;

comment on function llm.cache_set_ex(text, jsonb, double precision, text) is
'llm.cache_set() for so many seconds, as SETEX of Redis.';


create function llm.cache_set_nx(
    p_key       text,
    p_value     jsonb,
    p_ttl       double precision default null,
    p_namespace text default 'default'
)
    returns boolean
    language sql
    volatile
as $$
    select llm._cache_put(
        p_namespace, p_key, p_value, null::pg_catalog.bytea, p_ttl, null::pg_catalog.text[], null::pg_catalog.text[], null::pg_catalog.text, true
    )
$$;

comment on function llm.cache_set_nx(text, jsonb, double precision, text) is
'llm.cache_set() if the key has no valid value yet, as SETNX of Redis. Returns whether it was set; of many at once one is.';


-- Deleting

-- security definer: entries are written by functions only.
create function llm.cache_delete(
    p_key       text,
    p_namespace text default 'default'
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text;
    v_is_live boolean;
begin
    if pg_is_in_recovery() then
        return false;
    end if;
    v_tenant := llm._cache_tenant();
    delete from llm.cache_entries e
    where e.tenant_id = v_tenant
        and e.namespace = p_namespace
        and e.key = p_key
    returning llm._cache_is_live(e.tenant_id, e.expires_at, e.used_at, e.idle, e.depends_on, e.computed_in) into v_is_live;
    return coalesce(v_is_live, false);
end
$$;

alter function llm.cache_delete(text, text) owner to llm_owner;

comment on function llm.cache_delete(text, text) is
'Deletes a key. Returns whether it had a valid value. See llm.cache_invalidate_tag() for a value that is being computed meanwhile. Errors:
object_not_in_prerequisite_state without a tenant.';


select llm._grant_execute(
    array['llm_owner'],
    '_refuse_cache_entry', '_cache_entry_size'
);
select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'cache_get', 'cache_get_text', 'cache_get_bytes', 'cache_ttl'
);
select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    '_cache_put'
);
select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'cache_set', 'cache_set_text', 'cache_set_bytes', 'cache_set_ex', 'cache_set_nx', 'cache_delete'
);
