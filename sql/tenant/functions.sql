create function llm._acting_role()
    returns name
    language plpgsql
    stable
    parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return case
        when current_user = 'llm_owner' then coalesce(nullif(current_setting('role'), 'none'), session_user)
        else current_user
    end;
end
$$;

comment on function llm._acting_role() is
'The current role; inside functions that run as llm_owner, the role of the session that called them: that of SET ROLE, else the login role.';


create function llm._bound_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
begin
    -- The login role first: SET ROLE to a group that it is a member of must not set it free.
    select r.tenant_id into v_tenant from llm.tenant_roles r where r.role_name = session_user;
    if not found and current_user <> session_user and llm._acting_role() <> session_user then
        select r.tenant_id into v_tenant from llm.tenant_roles r where r.role_name = llm._acting_role();
    end if;
    return v_tenant;
end
$$;

comment on function llm._bound_tenant() is
'The tenant that llm.tenant_roles binds the login role, else the acting role, to; null when neither is bound.';


create function llm.current_tenant()
    returns text
    language plpgsql
    stable
    parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
begin
    -- As llm._bound_tenant(), without calls where there is no SET ROLE: row-level security asks several times a statement. Twice, because the plan
    -- of a table with row-level security is of one role: with one statement, callers as llm_owner and others would have it planned anew in turns.
    if current_user = 'llm_owner' then
        select r.tenant_id into v_tenant from llm.tenant_roles r where r.role_name = session_user;
    else
        select r.tenant_id into v_tenant from llm.tenant_roles r where r.role_name = session_user;
    end if;
    if not found and current_user <> session_user and (current_user <> 'llm_owner' or current_setting('role') <> 'none')
        and llm._acting_role() <> session_user
    then
        select r.tenant_id into v_tenant from llm.tenant_roles r where r.role_name = llm._acting_role();
    end if;
    if v_tenant is not null then
        return v_tenant;
    end if;

    -- After a transaction with SET LOCAL a setting is '', not null. What is global is nobody's tenant.
    v_tenant := nullif(current_setting('llm.tenant', true), '');
    if v_tenant = '*' or v_tenant is not null
        and current_setting('llm.tenant_set_at', true) is distinct from date_part('epoch', now())::text
    then
        raise exception 'tenant % was not set by llm.set_tenant() in this transaction', v_tenant
            using errcode = 'object_not_in_prerequisite_state',
                  detail = 'A setting that outlives its transaction reaches the next client of a connection pool.',
                  hint = 'Run: select llm.set_tenant(''…''); as the first statement of each transaction.';
    end if;
    return v_tenant;
end
$$;

comment on function llm.current_tenant() is
'The tenant that this transaction works for, or null: that of the login or acting role in llm.tenant_roles, else the one given to llm.set_tenant.
Errors: object_not_in_prerequisite_state when llm.tenant was set in any other way.';


-- security definer: row-level security shows a role its own binding only, and the answer concerns all of them.
create function llm._any_role_is_bound()
    returns boolean
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (select from llm.tenant_roles);
end
$$;

alter function llm._any_role_is_bound() owner to llm_owner;

comment on function llm._any_role_is_bound() is
'Whether llm.tenant_roles binds any role to a tenant.';


create function llm._claimed_tenant()
    returns text
    language sql
    stable
    parallel safe
as $$
    select case
        when pg_catalog.current_setting('llm.tenant_set_at', true)
             operator(pg_catalog.=) pg_catalog.date_part('epoch', pg_catalog.now())::pg_catalog.text
            then pg_catalog.current_setting('llm.tenant', true)
        else llm.current_tenant()
    end
$$;

comment on function llm._claimed_tenant() is
'llm.current_tenant() for hot paths: inlined, without the look-up of the role''s own tenant. Who trusts it must check llm.tenant_roles.';


create function llm.set_tenant(
    p_tenant text
)
    returns text
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_bound text;
begin
    if p_tenant is null or p_tenant = '*' or length(p_tenant) not between 1 and 100 or p_tenant ~ '[[:cntrl:]]' then
        raise exception 'tenant % cannot be set', coalesce(quote_literal(p_tenant), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'A tenant is 1 to 100 printable characters; * stands for what is global.';
    end if;

    v_bound := llm._bound_tenant();
    if v_bound <> p_tenant then
        raise exception 'role % works for tenant % only', session_user, v_bound
            using errcode = 'insufficient_privilege',
                  hint = 'llm.tenant_roles decides, for the login role first; llm_admin can change it.';
    end if;

    perform set_config('llm.tenant', p_tenant, true);
    perform set_config('llm.tenant_set_at', date_part('epoch', now())::text, true);
    return p_tenant;
end
$$;

comment on function llm.set_tenant(text) is
'Sets the tenant for the rest of this transaction. p_tenant: 1 to 100 printable characters. Returns it.
Errors: invalid_parameter_value for a bad name; insufficient_privilege when the role is bound to another tenant.';


create function llm.bind_role(
    p_role   name,
    p_tenant text
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if to_regrole(quote_ident(p_role)) is null then
        raise exception 'role % does not exist', p_role
            using errcode = 'undefined_object',
                  hint = 'Create the role first, and grant it llm_app or llm_reader.';
    end if;

    if p_tenant is null then
        delete from llm.tenant_roles where role_name = p_role;
    else
        insert into llm.tenant_roles (role_name, tenant_id)
        values (p_role, p_tenant)
        on conflict (role_name) do update set tenant_id = excluded.tenant_id;
    end if;
end
$$;

comment on function llm.bind_role(name, text) is
'Binds a role to one tenant, whatever it sets: for roles that may send SQL of their own. p_role: an existing role; p_tenant: its tenant, null to
unbind. For llm_admin. Errors: undefined_object when there is no such role; check_violation for a bad tenant.';


create function llm._protect_tenant_table(
    p_table          regclass,
    p_app_privileges text default 'select, insert, update, delete'
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('alter table %s owner to llm_owner', p_table);
    execute format('alter table %s alter column tenant_id set default llm.current_tenant()', p_table);
    execute format('alter table %s enable row level security', p_table);
    execute format('alter table %s force row level security', p_table);
    execute format('drop policy if exists tenant_isolation on %s', p_table);
    execute format('create policy tenant_isolation on %s using (tenant_id = (select llm.current_tenant()))'
                   ' with check (tenant_id = (select llm.current_tenant()))', p_table);
    execute format('grant %s on %s to llm_admin, llm_app', p_app_privileges, p_table);
    execute format('grant select on %s to llm_reader', p_table);
end
$$;

comment on function llm._protect_tenant_table(regclass, text) is
'What every table with a tenant_id gets: owner, forced row-level security by tenant, grants (p_app_privileges: those of llm_admin and
llm_app). Row-level security evaluates the tenant once a statement, because the policy asks for it in a sub-select.';


create function llm._may_write_global()
    returns boolean
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return pg_has_role(llm._acting_role(), 'llm_admin'::name, 'usage');
end
$$;

comment on function llm._may_write_global() is
'Whether the acting role may change what is global (tenant *): members of llm_admin and superusers.';


create function llm._writable_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_tenant   text := llm.current_tenant();
begin
    if v_tenant is null and not llm._may_write_global() then
        raise exception 'no tenant is set'
            using errcode = 'object_not_in_prerequisite_state',
                  detail = 'Without a tenant only llm_admin may write: the values are then global.',
                  hint = 'Run: select llm.set_tenant(''…''); as the first statement of the transaction, or llm.bind_role() for the role.';
    end if;
    return coalesce(v_tenant, '*');
end
$$;

comment on function llm._writable_tenant() is
'The tenant whose rows this transaction may write; * (global) for llm_admin without a tenant.
Errors: object_not_in_prerequisite_state when no tenant is set.';


-- security definer: writers of the table must not be able to raise words as they please.
create function llm._tenant_roles_coherence()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm._coherence_raise('tenant_roles'::text, '{}'::text[], pg_current_xact_id());
    return coalesce(new, old);
end
$$;

alter function llm._tenant_roles_coherence() owner to llm_owner;

comment on function llm._tenant_roles_coherence() is
'Trigger of llm.tenant_roles: any change concerns the one cached answer, whether a role is bound at all.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader', 'llm_auditor'],
    '_acting_role', '_bound_tenant', 'current_tenant', '_claimed_tenant', '_any_role_is_bound', 'set_tenant'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    '_writable_tenant', '_may_write_global'
);

select llm._grant_execute(
    array['llm_admin'],
    'bind_role'
);

select llm._grant_execute(
    array['llm_owner'],
    '_protect_tenant_table'
);
