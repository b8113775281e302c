-- security definer: as llm.cache_get().
create function llm.cache_get_many(
    p_keys      text[],
    p_namespace text default 'default'
)
    returns table (key text, value jsonb)
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._owners_tenant();
    v_seed   bigint := hashtextextended(p_namespace collate "C", hashtextextended(v_tenant collate "C", 0));
    v_count  bigint;
begin
    if pg_is_in_recovery() then
        return;
    end if;
    return query
        select c.key, c.value
        from unnest(p_keys) k (key)
        join llm.cache_valid c on c.hash = hashtextextended(k.key collate "C", v_seed) and c.key = k.key collate "C"
        where c.tenant_id = v_tenant
            and c.namespace = p_namespace
            and case when c.is_touch_due or random() < 0.001 then llm._cache_touch(c.namespace, c.key) else true end;
    get diagnostics v_count = row_count;
    perform llm._cache_note_reads(v_tenant, p_namespace, v_count, greatest(cardinality(p_keys) - v_count, 0));
end
$$;

alter function llm.cache_get_many(text[], text) owner to llm_owner;

comment on function llm.cache_get_many(text[], text) is
'The values of many keys, as llm.cache_get() would give them, in one trip. p_keys: keys; p_namespace: their namespace. Returns a row for each key that
has a valid value.';


-- security definer: as llm.cache_get().
create function llm.cache_get_many_bytes(
    p_keys      text[],
    p_namespace text default 'default'
)
    returns table (key text, bytes bytea)
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._owners_tenant();
    v_seed   bigint := hashtextextended(p_namespace collate "C", hashtextextended(v_tenant collate "C", 0));
    v_count  bigint;
begin
    if pg_is_in_recovery() then
        return;
    end if;
    return query
        select c.key, c.bytes
        from unnest(p_keys) k (key)
        join llm.cache_valid c on c.hash = hashtextextended(k.key collate "C", v_seed) and c.key = k.key collate "C"
        where c.tenant_id = v_tenant
            and c.namespace = p_namespace
            and case when c.is_touch_due or random() < 0.001 then llm._cache_touch(c.namespace, c.key) else true end;
    get diagnostics v_count = row_count;
    perform llm._cache_note_reads(v_tenant, p_namespace, v_count, greatest(cardinality(p_keys) - v_count, 0));
end
$$;

alter function llm.cache_get_many_bytes(text[], text) owner to llm_owner;

comment on function llm.cache_get_many_bytes(text[], text) is
'As llm.cache_get_many(), for what was set as bytes.';


-- security definer: as llm.cache_get().
create function llm.cache_keys(
    p_prefix    text default '',
    p_namespace text default 'default'
)
    returns setof text
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_is_in_recovery() then
        return;
    end if;
    return query
        select c.key
        from llm.cache_live c
        where c.namespace = p_namespace
            and c.key between p_prefix and llm._end_of_prefix(p_prefix)
            and starts_with(c.key, p_prefix)
        order by c.key;
end
$$;

alter function llm.cache_keys(text, text) owner to llm_owner;

comment on function llm.cache_keys(text, text) is
'The keys with a valid value, in order of bytes. p_prefix: what they begin with; p_namespace: where.';



create function llm.cache_set_many(
    p_values     jsonb,
    p_ttl        double precision default null,
    p_namespace  text default 'default',
    p_tags       text[] default null,
    p_depends_on text[] default null,
    p_token      text default null
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(p_values) is distinct from 'object' then
        raise exception 'these are not keys and values: %', left(coalesce(p_values::text, 'null'), 40)
            using errcode = 'invalid_parameter_value',
                  hint = 'Give an object: its names are the keys.';
    end if;
    -- In the order of keys, so that two batches wait for each other instead of deadlocking.
    return (
        select count(*) filter (
            where llm._cache_put(p_namespace, v.key, v.value, null::bytea, p_ttl, p_tags, p_depends_on, p_token, false)
        )
        from (select e.key, e.value from jsonb_each(p_values) e order by e.key collate "C" offset 0) v
    );
end
$$;

comment on function llm.cache_set_many(jsonb, double precision, text, text[], text[], text) is
'llm.cache_set() of many keys in one trip, all in one transaction. p_values: an object, key by key; the rest as there, for each of them, p_token of
llm.cache_token(). Returns how many were cached. Errors: as llm.cache_set(); invalid_parameter_value when p_values is not an object.';


create function llm.cache_set_many_bytes(
    p_keys      text[],
    p_values    bytea[],
    p_ttl       double precision default null,
    p_namespace text default 'default'
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if cardinality(p_keys) is distinct from cardinality(p_values) then
        raise exception '% keys, but % values', coalesce(cardinality(p_keys)::text, 'no'), coalesce(cardinality(p_values)::text, 'no')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give as many values as keys, in the same order.';
    end if;
    return (
        select count(*) filter (
            where llm._cache_put(
                p_namespace, v.key, null::jsonb, v.bytes, p_ttl, null::text[], null::text[], null::text, false
            )
        )
        from (
            select k.key, k.bytes
            from unnest(p_keys, p_values) with ordinality k (key, bytes, position)
            order by k.key collate "C", k.position
            offset 0
        ) v
    );
end
$$;

comment on function llm.cache_set_many_bytes(text[], bytea[], double precision, text) is
'As llm.cache_set_many(), for bytes: the values of keys at the same positions. Errors: as llm.cache_set(); invalid_parameter_value when there are
not as many values as keys.';


-- security definer: entries are written by functions only.
create function llm.cache_delete_many(
    p_keys      text[],
    p_namespace text default 'default'
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
    v_count  bigint;
begin
    if pg_is_in_recovery() then
        return 0;
    end if;
    v_tenant := llm._cache_tenant();
    delete from llm.cache_entries e
    where (e.tenant_id, e.namespace, e.key) in (
        select d.tenant_id, d.namespace, d.key
        from llm.cache_entries d
        where d.tenant_id = v_tenant
            and d.namespace = p_namespace
            and d.key = any (p_keys)
        order by d.key
        for update
    );
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

alter function llm.cache_delete_many(text[], text) owner to llm_owner;

comment on function llm.cache_delete_many(text[], text) is
'Deletes many keys in one trip. Returns how many there were. Errors: object_not_in_prerequisite_state without a tenant.';


-- security definer: entries are written by functions only.
create function llm.cache_clear(
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
    v_count  bigint;
begin
    if pg_is_in_recovery() then
        return 0;
    end if;
    v_tenant := llm._cache_tenant();
    delete from llm.cache_entries e
    where (e.tenant_id, e.namespace, e.key) in (
        select d.tenant_id, d.namespace, d.key
        from llm.cache_entries d
        where d.tenant_id = v_tenant
            and (p_namespace is null or d.namespace = p_namespace)
        order by d.namespace, d.key
        for update
    );
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

alter function llm.cache_clear(text) owner to llm_owner;

comment on function llm.cache_clear(text) is
'Deletes all entries of a namespace, of all when it is null, of this tenant. Returns how many. Errors: object_not_in_prerequisite_state without a
tenant.';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'cache_get_many', 'cache_get_many_bytes', 'cache_keys'
);
select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'cache_set_many', 'cache_set_many_bytes', 'cache_delete_many', 'cache_clear'
);
