create type llm.config_access as (
    key         text,
    value       jsonb,
    "timestamp" timestamptz,
    cached      boolean,
    version     bigint,
    tenant_id   text,
    description text
);

comment on type llm.config_access is
'A configuration value and where it comes from: timestamp is its last change; cached, whether this backend''s cache holds it;
version counts the changes of the key; tenant_id is * for a global value.';


-- Reading

-- Not pinned: inlined into the caller's query, fully qualified.
create function llm.load_config(
    p_key     text,
    p_default jsonb default null,
    p_cached  boolean default true
)
    returns jsonb
    language sql
    stable
as $$
    select case
        when p_cached
            then coalesce(llm._cached_config(p_key, llm._claimed_tenant()), llm._stored_config(p_key), p_default)
        else coalesce(llm._stored_config(p_key), p_default)
    end
$$;

comment on function llm.load_config(text, jsonb, boolean) is
'The value of a key: the tenant''s, else the global one, else p_default. Answered from this backend''s coherent cache where that holds it, and never
older than what had committed before. p_cached: false reads the table, as SERIALIZABLE transactions must, whose conflicts a cache would hide.
Errors: object_not_in_prerequisite_state when the storage is not set up or the tenant was not set by llm.set_tenant().';


create function llm._cached_config(
    p_key    text,
    p_tenant text
)
    returns jsonb
    language plpython3u
    stable
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import config
return config.cached(p_key, p_tenant)
$$;

comment on function llm._cached_config(text, text) is
'The value of a key by the cache, filled if need be; null when there is none or when the table answers faster. p_tenant: llm._claimed_tenant().';


create function llm._stored_config(
    p_key text
)
    returns jsonb
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
begin
    perform llm._require_storage();
    v_tenant := llm.current_tenant();
    return coalesce(
        (select c.value from llm.config c where c.tenant_id = v_tenant and c.key = p_key),
        (select c.value from llm.config c where c.tenant_id = '*' and c.key = p_key)
    );
end
$$;

comment on function llm._stored_config(text) is
'The value of a key by the table.';


create function llm._config_to_cache(
    p_key text
)
    returns table (tenant_id text, value text)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_value jsonb;
    v_limit integer;
begin
    v_value := llm._stored_config(p_key);
    v_limit := case when jsonb_typeof(v_value) in ('object', 'array') then 4000 else 64000 end;
    tenant_id := llm.current_tenant();
    -- The size as stored first: the text of a huge value is never made.
    if pg_column_size(v_value) <= v_limit and octet_length(v_value::text) <= v_limit then
        value := v_value::text;
    end if;
    return next;
end
$$;

comment on function llm._config_to_cache(text) is
'What the cache keeps of a key: the tenant that it was read for, and the value as text, or null when there is none or when parsing it (4 kB of an
object, 64 kB of a string) costs more than reading the table.';


create function llm.load_configs(
    p_prefix text default ''
)
    returns setof llm.config_access
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
begin
    perform llm._require_storage();
    v_tenant := llm.current_tenant();
    return query
        select distinct on (c.key)
            c.key,
            c.value,
            c.updated_at,
            llm._config_is_cached(c.key, v_tenant),
            c.version,
            c.tenant_id,
            c.description
        from llm.config c
        where c.tenant_id in ('*', v_tenant)
            and starts_with(c.key, p_prefix)
        order by c.key, c.tenant_id = '*';
end
$$;

comment on function llm.load_configs(text) is
'All values whose key starts with p_prefix, in order of keys: the tenant''s, and the global ones that it does not override.
Errors: as llm.load_config.';


create function llm.config_access(
    p_key text
)
    returns llm.config_access
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
    v_access llm.config_access;
begin
    perform llm._require_storage();
    v_tenant := llm.current_tenant();
    select
        c.key,
        c.value,
        c.updated_at,
        llm._config_is_cached(c.key, v_tenant),
        c.version,
        c.tenant_id,
        c.description
    into v_access
    from llm.config c
    where c.tenant_id in ('*', v_tenant)
        and c.key = p_key
    order by c.tenant_id = '*'
    limit 1;
    return v_access;
end
$$;

comment on function llm.config_access(text) is
'A value with its version, time and origin; all null when there is no such key. Read from the table. Errors: as llm.load_config.';


-- Writing

create function llm._check_config(
    p_key   text,
    p_value jsonb
)
    returns void
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_key is null or octet_length(p_key) not between 1 and 1000 then
        raise exception 'a configuration key of % bytes', coalesce(octet_length(p_key)::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Keys have 1 to 1000 bytes.';
    end if;
    if p_value is null then
        raise exception 'the value of configuration key % is null', p_key
            using errcode = 'null_value_not_allowed',
                  hint = 'To remove a key call llm.delete_config(). The JSON null is ''null''.';
    end if;
end
$$;

comment on function llm._check_config(text, jsonb) is
'Refuses what the constraints of llm.config would, in the user''s words. Errors: invalid_parameter_value, null_value_not_allowed.';


create function llm._config_conflict(
    p_key              text,
    p_tenant           text,
    p_expected_version bigint
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_version bigint;
begin
    select c.version into v_version from llm.config c where c.tenant_id = p_tenant and c.key = p_key;
    raise exception 'configuration key % is not at version %', p_key, p_expected_version
        using errcode = 'serialization_failure',
              detail = coalesce('Its version is ' || v_version || '.', 'It does not exist (version 0).'),
              hint = 'Load it again, decide again, and save with that version.';
end
$$;

comment on function llm._config_conflict(text, text, bigint) is
'Raises serialization_failure: the key is not at the version that a writer expected.';


create function llm._insert_config(
    p_tenant           text,
    p_key              text,
    p_value            jsonb,
    p_description      text,
    p_expected_version bigint
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_saved boolean := false;
begin
    perform llm._check_config(p_key, p_value);
    if coalesce(p_expected_version, 0) = 0 then
        insert into llm.config as c (tenant_id, key, value, description)
        select p_tenant, p_key, p_value, p_description
        where not exists (select from llm.config o
                          where o.tenant_id = p_tenant
                              and o.key = p_key
                              and (o.value, o.description) is not distinct from (p_value, coalesce(p_description, o.description)))
        on conflict (tenant_id, key) do update
            set value = excluded.value,
                description = coalesce(excluded.description, c.description)
            where p_expected_version is null;
        v_saved := found;
    end if;
    if not v_saved
        and p_expected_version is not null
        and not exists (select from llm.config c where c.tenant_id = p_tenant and c.key = p_key and c.version = p_expected_version)
    then
        perform llm._config_conflict(p_key, p_tenant, p_expected_version);
    end if;
    return v_saved;
end
$$;

comment on function llm._insert_config(text, text, jsonb, text, bigint) is
'The rest of llm.save_config(), for a key that its first statement did not change: it is new, or bad, or has that value already, or another version.';


-- security definer: for its own tenant alone, checked once, where row-level security would ask four times a statement.
create function llm.save_config(
    p_key              text,
    p_value            jsonb,
    p_description      text default null,
    p_expected_version bigint default null,
    p_reason           text default null
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._writable_tenant();
    v_saved  boolean;
begin
    if p_reason is not null then
        perform set_config('llm.config_reason', p_reason, true);
    end if;
    -- The usual case in one statement: a key that exists gets another value. A bad key or value is not found here either.
    update llm.config c
    set value = p_value,
        description = coalesce(p_description, c.description)
    where c.tenant_id = v_tenant
        and c.key = p_key
        and c.version = coalesce(p_expected_version, c.version)
        and p_value is not null
        and (c.value, c.description) is distinct from (p_value, coalesce(p_description, c.description));
    v_saved := found or llm._insert_config(v_tenant, p_key, p_value, p_description, p_expected_version);
    if p_reason is not null then
        perform set_config('llm.config_reason', '', true);
    end if;
    return v_saved;
end
$$;

alter function llm.save_config(text, jsonb, text, bigint, text) owner to llm_owner;

comment on function llm.save_config(text, jsonb, text, bigint, text) is
'Saves a value for the tenant, or globally for llm_admin without a tenant. p_key: 1 to 1000 bytes; p_value: any JSON; p_description: what it is
for, null keeps the present one; p_expected_version: the version that it must have, 0 for a new key; p_reason: why, for the history.
Returns false when it had that value already: nothing is written then. Errors: serialization_failure when it has another version, which
the DETAIL tells; invalid_parameter_value, null_value_not_allowed; object_not_in_prerequisite_state without a tenant.';


create function llm.save_configs(
    p_values jsonb,
    p_reason text default null
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text;
    v_changes bigint;
begin
    if jsonb_typeof(p_values) is distinct from 'object' then
        raise exception 'configuration values as %', coalesce('JSON ' || jsonb_typeof(p_values), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give one JSON object of keys and values.';
    end if;
    perform llm._check_config(v.key, v.value) from jsonb_each(p_values) v;
    v_tenant := llm._writable_tenant();

    perform set_config('llm.config_reason', coalesce(p_reason, ''), true);
    -- In order of keys: two batches that lock the same rows then wait for each other instead of deadlocking.
    insert into llm.config as c (tenant_id, key, value)
    select v_tenant, v.key, v.value
    from jsonb_each(p_values) v
    where not exists (select from llm.config o where o.tenant_id = v_tenant and o.key = v.key and o.value = v.value)
    order by v.key
    on conflict (tenant_id, key) do update
        set value = excluded.value
        where c.value <> excluded.value;
    get diagnostics v_changes = row_count;
    perform set_config('llm.config_reason', '', true);
    return v_changes;
end
$$;

comment on function llm.save_configs(jsonb, text) is
'Saves many values at once. p_values: an object of keys and values; p_reason: why, for the history. Returns how many keys changed.
Errors: as llm.save_config.';


create function llm.delete_config(
    p_key              text,
    p_expected_version bigint default null,
    p_reason           text default null
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text;
    v_deleted boolean;
begin
    v_tenant := llm._writable_tenant();

    perform set_config('llm.config_reason', coalesce(p_reason, ''), true);
    delete from llm.config c
    where c.tenant_id = v_tenant
        and c.key = p_key
        and c.version = coalesce(p_expected_version, c.version);
    v_deleted := found;
    perform set_config('llm.config_reason', '', true);

    if not v_deleted and p_expected_version is not null then
        perform llm._config_conflict(p_key, v_tenant, p_expected_version);
    end if;
    return v_deleted;
end
$$;

comment on function llm.delete_config(text, bigint, text) is
'Removes a value; a tenant''s key then has the global value again. p_expected_version: the version it must have; p_reason: why, for the history.
Returns false when there was none. Errors: serialization_failure when it has another version; as llm.save_config.';


-- security definer: as llm._coherence_truncate(); and the version of a key that comes back is counted over its history, which few may read.
create function llm._config_coherence()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_same   boolean := tg_op = 'UPDATE' and (old.tenant_id, old.key) = (new.tenant_id, new.key);
    v_is_raised boolean;
begin
    if tg_op <> 'INSERT' then
        v_is_raised := llm._coherence_raise('config'::text, array[old.tenant_id, old.key], pg_current_xact_id());
    end if;
    if tg_op = 'DELETE' then
        return old;
    end if;
    if not v_is_same then
        v_is_raised := llm._coherence_raise('config'::text, array[new.tenant_id, new.key], pg_current_xact_id());
    end if;
    -- A replica applies what its origin has counted.
    if current_setting('session_replication_role') = 'replica' then
        return new;
    end if;

    new.updated_at := clock_timestamp();
    if v_is_same then
        new.version := old.version + 1;
        new.created_at := old.created_at;
    else
        -- A key that comes back goes on counting, so that a version is never two different values.
        new.version := llm._last_config_version(new.tenant_id, new.key) + 1;
        new.created_at := now();
    end if;
    return new;
end
$$;

alter function llm._config_coherence() owner to llm_owner;

comment on function llm._config_coherence() is
'Trigger of llm.config: tells the caches (see docs/coherence.md), and keeps version, created_at and updated_at right, whoever changes a value and
however.';


-- Cache

create function llm._config_is_cached(
    p_key    text,
    p_tenant text
)
    returns boolean
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import config
return config.is_cached(p_key, p_tenant)
$$;

comment on function llm._config_is_cached(text, text) is
'Whether this backend''s cache holds a valid value of the key. p_tenant: llm.current_tenant().';


create function llm.get_cached_config(
    p_key text
)
    returns jsonb
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm.current_tenant();
begin
    if llm._config_is_cached(p_key, v_tenant) then
        return llm._cached_config(p_key, v_tenant);
    end if;
    return null;
end
$$;

comment on function llm.get_cached_config(text) is
'The value of a key if this backend''s cache holds it and it is valid, else null. Never reads the table.';


create function llm.cache_config(
    p_key text
)
    returns boolean
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm.current_tenant();
begin
    perform llm._cached_config(p_key, v_tenant);
    return llm._config_is_cached(p_key, v_tenant);
end
$$;

comment on function llm.cache_config(text) is
'Puts the present value of a key into this backend''s cache, ahead of its first use. The value is always the table''s: a cache that took any other
could not be right. Returns whether it is cached now: not on a standby, not while a transaction that changed it may be open, not when it does
not exist or is large. Errors: as llm.load_config.';


-- security definer: as llm._coherence_truncate().
create function llm.invalidate_config_cache(
    p_key text default null
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_is_in_recovery() then
        return;
    end if;
    if p_key is null then
        perform llm._coherence_raise_all();
    else
        perform llm._coherence_raise('config'::text, array['*', p_key], pg_current_xact_id());
    end if;
end
$$;

alter function llm.invalidate_config_cache(text) owner to llm_owner;

comment on function llm.invalidate_config_cache(text) is
'Makes every backend read a key anew, once this transaction has ended. Never needed for a change made in the database, however it was made.
p_key: the key, for all tenants; null for everything that is cached.';


create function llm.config_cache()
    returns table (key text, value jsonb, expires_at timestamptz, valid boolean)
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import config
return config.entries()
$$;

comment on function llm.config_cache() is
'What this backend''s cache holds for the current tenant: expires_at is the latest moment at which it is read anew; valid is false once the
row changed.';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'load_config', '_cached_config', '_stored_config', '_config_to_cache', 'load_configs', 'config_access', '_config_is_cached',
    'get_cached_config', 'cache_config', 'config_cache'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'save_config', 'save_configs', 'delete_config', 'invalidate_config_cache'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    '_check_config', '_config_conflict'
);

select llm._grant_execute(
    array['llm_owner'],
    '_insert_config'
);
