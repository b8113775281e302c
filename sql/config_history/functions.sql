create type llm.config_change as (
    id          bigint,
    tenant_id   text,
    key         text,
    value       jsonb,
    version     bigint,
    operation   text,
    changed_at  timestamptz,
    changed_by  text,
    reason      text
);

comment on type llm.config_change is
'A change of configuration: operation is insert, update or delete (value is then null).';


create function llm._config_state(
    p_tenant text,
    p_at     timestamptz,
    p_change bigint
)
    returns table (key text, value jsonb, description text, version bigint, changed_at timestamptz)
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select s.key, s.value, s.description, s.version, s.changed_at
    from (
        select distinct on (h.key) h.*
        from llm.config_history h
        where h.tenant_id = p_tenant
            and h.changed_at <= coalesce(p_at, 'infinity')
            and h.id <= coalesce(p_change, 9223372036854775807)
        order by h.key, h.version desc
    ) s
    where s.operation <> 'delete'
$$;

comment on function llm._config_state(text, timestamptz, bigint) is
'The values of one tenant (* for the global ones) as of a time or a change, both inclusive.';


create function llm.config_at(
    p_at     timestamptz,
    p_prefix text default ''
)
    returns table (key text, value jsonb, version bigint, changed_at timestamptz, tenant_id text)
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
        select distinct on (s.key)
            s.key,
            s.value,
            s.version,
            s.changed_at,
            s.tenant_id
        from (
            select t.*, v_tenant as tenant_id from llm._config_state(v_tenant, p_at, null::bigint) t
            union all
            select g.*, '*' from llm._config_state('*'::text, p_at, null::bigint) g
        ) s
        where starts_with(s.key, p_prefix)
        order by s.key, s.tenant_id = '*';
end
$$;

comment on function llm.config_at(timestamptz, text) is
'The configuration as it was, as llm.load_configs would have shown it. p_at: a change counts from the moment it was written; p_prefix: start of
the keys. Errors: as llm.load_config.';


create function llm.config_diff(
    p_from timestamptz,
    p_to   timestamptz default now()
)
    returns table (key text, operation text, old_value jsonb, new_value jsonb)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select
            coalesce(o.key, n.key),
            case when o.value is null then 'insert' when n.value is null then 'delete' else 'update' end,
            o.value,
            n.value
        from llm.config_at(p_from, ''::text) o
        full join llm.config_at(p_to, ''::text) n on n.key = o.key
        where o.value is distinct from n.value
        order by 1;
end
$$;

comment on function llm.config_diff(timestamptz, timestamptz) is
'What differs between two times: keys with their old and new value; operation is insert, update or delete. Errors: as llm.load_config.';


create function llm.rollback_config(
    p_change bigint default null,
    p_at     timestamptz default null,
    p_key    text default null,
    p_reason text default null
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text;
    v_changes bigint := 0;
    v_step    record;
begin
    v_tenant := llm._writable_tenant();
    if num_nonnulls(p_change, p_at) <> 1 then
        raise exception 'a rollback needs a change or a time, and not both'
            using errcode = 'invalid_parameter_value',
                  hint = 'Give p_change (an id of llm.config_history) or p_at.';
    end if;
    if p_change is not null
        and not exists (select from llm.config_history h where h.tenant_id = v_tenant and h.id = p_change)
    then
        raise exception 'configuration change % does not exist', p_change
            using errcode = 'no_data_found',
                  hint = 'llm.config_history lists the changes of this tenant.';
    end if;

    perform set_config('llm.config_reason',
                       coalesce(p_reason, 'rollback to ' || coalesce('change ' || p_change, p_at::text)), true);
    -- In order of keys, deletions among them: as llm.save_configs, so that neither deadlocks with the other.
    for v_step in
        select coalesce(c.key, s.key) as key, s.key is null as is_gone, s.value, s.description
        from (select * from llm.config where tenant_id = v_tenant) c
        full join llm._config_state(v_tenant, p_at, p_change) s using (key)
        where coalesce(c.key, s.key) = coalesce(p_key, c.key, s.key)
            and (c.value, c.description) is distinct from (s.value, s.description)
        order by 1
    loop
        if v_step.is_gone then
            delete from llm.config c where c.tenant_id = v_tenant and c.key = v_step.key;
        else
            insert into llm.config as c (tenant_id, key, value, description)
            values (v_tenant, v_step.key, v_step.value, v_step.description)
            on conflict (tenant_id, key) do update
                set value = excluded.value,
                    description = excluded.description;
        end if;
        v_changes := v_changes + 1;
    end loop;
    perform set_config('llm.config_reason', '', true);
    return v_changes;
end
$$;

comment on function llm.rollback_config(bigint, timestamptz, text, text) is
'Brings the tenant''s values back to what they were, as new changes: history stays. p_change: after that change; or p_at: at that time;
p_key: this key only, null for all; p_reason: for the history, by default the target. Returns how many keys changed.
Errors: invalid_parameter_value without a target or with two; no_data_found for an unknown change; as llm.save_config.';


create function llm.watch_config(
    p_after  bigint default null,
    p_prefix text default '',
    p_limit  integer default 1000
)
    returns setof llm.config_change
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
    v_after  xid8 := '0';
begin
    perform llm._require_storage();
    v_tenant := llm.current_tenant();
    if p_after is not null then
        select h.transaction_id
        into v_after
        from llm.config_history h
        where h.tenant_id in ('*', v_tenant)
            and h.id = p_after;
        if not found then
            raise exception 'configuration change % does not exist', p_after
                using errcode = 'no_data_found',
                      hint = 'Start again without p_after, and read the present values with llm.load_configs().';
        end if;
    end if;
    if not llm._storage_is_of_this_server() then
        raise exception 'the configuration history was restored from another server'
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'As a superuser run: select llm.setup(); then start again without p_after.';
    end if;

    -- Transactions below the horizon are over: no change can appear before one that was returned.
    return query
        select h.id, h.tenant_id, h.key, h.value, h.version, h.operation, h.changed_at, h.changed_by, h.reason
        from llm.config_history h
        where h.tenant_id in ('*', v_tenant)
            and (h.transaction_id, h.id) > (v_after, coalesce(p_after, 0))
            and h.transaction_id < pg_snapshot_xmin(pg_current_snapshot())
            and starts_with(h.key, p_prefix)
        order by h.transaction_id, h.id
        limit p_limit;
end
$$;

comment on function llm.watch_config(bigint, text, integer) is
'The changes after a known one, of the tenant and global, in an order that loses none: call it again with the last id received. A change appears once
no older transaction is still open. p_after: the last change known, null for all; p_prefix: start of the keys; p_limit: at most so many.
With llm.config_notify = on every transaction that changes configuration notifies channel llm_config once.
Errors: no_data_found for an unknown change; object_not_in_prerequisite_state after a restore from another server; as llm.load_config.';


create function llm._last_config_version(
    p_tenant text,
    p_key    text
)
    returns bigint
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce((select max(h.version) from llm.config_history h where h.tenant_id = p_tenant and h.key = p_key), 0);
end
$$;

comment on function llm._last_config_version(text, text) is
'How many changes a key has had, also before it was last deleted. For triggers: only llm_owner sees them all.';


-- security definer: only triggers may write history, and only triggers may raise words.
create function llm._config_history()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'UPDATE' and (old.tenant_id, old.key) = (new.tenant_id, new.key) then
        insert into llm.config_history (tenant_id, key, value, description, version, operation)
        values (new.tenant_id, new.key, new.value, new.description, new.version, 'update');
    else
        if tg_op <> 'INSERT' then
            insert into llm.config_history (tenant_id, key, version, operation)
            values (old.tenant_id, old.key, old.version + 1, 'delete');
        end if;
        if tg_op <> 'DELETE' then
            -- A new key waits for a transaction that deletes it, after llm._config_coherence() has counted.
            if llm._last_config_version(new.tenant_id, new.key) >= new.version then
                raise exception 'configuration key % was deleted at the same time', new.key
                    using errcode = 'serialization_failure',
                          hint = 'Try again.';
            end if;
            insert into llm.config_history (tenant_id, key, value, description, version, operation)
            values (new.tenant_id, new.key, new.value, new.description, new.version, 'insert');
        end if;
    end if;
    if current_setting('llm.config_notify', true) = 'on' then
        perform pg_notify('llm_config', '');
    end if;
    return null;
end
$$;

alter function llm._config_history() owner to llm_owner;

comment on function llm._config_history() is
'Trigger of llm.config: writes llm.config_history, whoever changes a value and however.';


-- security definer: as llm._config_history().
create function llm._config_history_truncate()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    insert into llm.config_history (tenant_id, key, version, operation, reason)
    select c.tenant_id, c.key, c.version + 1, 'delete', 'truncate'
    from llm.config c
    order by c.tenant_id, c.key;
    if found and current_setting('llm.config_notify', true) = 'on' then
        perform pg_notify('llm_config', '');
    end if;
    return null;
end
$$;

alter function llm._config_history_truncate() owner to llm_owner;

comment on function llm._config_history_truncate() is
'Trigger of llm.config: TRUNCATE is a deletion of each value.';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    '_config_state', 'config_at', 'config_diff', 'watch_config'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'rollback_config'
);

select llm._grant_execute(
    array['llm_owner'],
    '_last_config_version'
);
