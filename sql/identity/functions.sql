-- The user of a transaction

create function llm.current_user_id()
    returns uuid
    language plpgsql
    stable
    parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- After a transaction with SET LOCAL a setting is '', not null.
    v_user text := nullif(current_setting('llm.user_id', true), '');
begin
    if v_user is not null and current_setting('llm.user_set_at', true) is distinct from date_part('epoch', now())::text then
        raise exception 'user % was not set by llm.set_user() in this transaction', v_user
            using errcode = 'object_not_in_prerequisite_state',
                  detail = 'A setting that outlives its transaction reaches the next client of a connection pool.',
                  hint = 'Run: select llm.set_user(''…''); after llm.set_tenant() in each transaction.';
    end if;
    return v_user::uuid;
end
$$;

comment on function llm.current_user_id() is
'The user that this transaction works for, by llm.set_user(), or null: then rows of all users of the tenant are seen.
Errors: object_not_in_prerequisite_state when llm.user_id was set in any other way.';


create function llm.set_user(
    p_user_id uuid
)
    returns uuid
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform set_config('llm.user_id', coalesce(p_user_id::text, ''), true);
    perform set_config('llm.user_set_at', date_part('epoch', now())::text, true);
    return p_user_id;
end
$$;

comment on function llm.set_user(uuid) is
'Sets the user for the rest of this transaction: of tables with a user_id, it then sees and writes rows of that user only. p_user_id: a user of the
current tenant, which is not looked up; null for all users again. Returns it.';


create function llm._protect_user_rows(
    p_table regclass
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('drop policy if exists user_isolation on %s', p_table);
    execute format('create policy user_isolation on %s as restrictive'
                   ' using ((select llm.current_user_id()) is null or user_id = (select llm.current_user_id()))'
                   ' with check ((select llm.current_user_id()) is null or user_id = (select llm.current_user_id()))', p_table);
end
$$;

comment on function llm._protect_user_rows(regclass) is
'What every table with a user_id gets besides llm._protect_tenant_table(): when llm.set_user() told of a user, rows of that user only.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader', 'llm_auditor'],
    'current_user_id', 'set_user'
);
