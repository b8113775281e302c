-- The user of a transaction

create function llm._refused_user()
    returns uuid
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'user % was not set by llm.set_user() in this transaction', current_setting('llm.user_id', true)
        using errcode = 'object_not_in_prerequisite_state',
              detail = 'A setting that outlives its transaction reaches the next client of a connection pool.',
              hint = 'Run: select llm.set_user(''…''); after llm.set_tenant() in each transaction.';
end
$$;

comment on function llm._refused_user() is
'Raises that llm.user_id was not set by llm.set_user(). Errors: object_not_in_prerequisite_state.';


-- Not pinned: inlined into the policies of every table with a user_id, fully qualified.
create function llm.current_user_id()
    returns uuid
    language sql
    stable
as $$
    select case
        -- After a transaction with SET LOCAL a setting is '', not null.
        when coalesce(pg_catalog.current_setting('llm.user_id', true), '') operator(pg_catalog.=) '' then null
        when pg_catalog.current_setting('llm.user_set_at', true)
             operator(pg_catalog.=) pg_catalog.date_part('epoch', pg_catalog.now())::pg_catalog.text
            then pg_catalog.current_setting('llm.user_id', true)::pg_catalog.uuid
        else llm._refused_user()
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



-- What identity, log-ins, keys and sessions share

create function llm._user_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_tenant   text := llm.current_tenant();
begin
    if v_tenant is null then
        raise exception 'no tenant is set, and users are a tenant''s'
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Run: select llm.set_tenant(''…''); as the first statement of the transaction, or llm.bind_role() for the role.';
    end if;
    return v_tenant;
end
$$;

comment on function llm._user_tenant() is
'The tenant whose users this transaction works with. Errors: object_not_in_prerequisite_state when none is set.';


create function llm._owners_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
begin
    select r.tenant_id into v_tenant from llm.tenant_roles r where r.role_name = session_user;
    if not found and current_setting('role') not in ('none', session_user) then
        select r.tenant_id into v_tenant from llm.tenant_roles r where r.role_name = current_setting('role');
    end if;
    if v_tenant is not null then
        return v_tenant;
    end if;
    v_tenant := nullif(current_setting('llm.tenant', true), '');
    if v_tenant = '*' or v_tenant is not null and current_setting('llm.tenant_set_at', true) is distinct from date_part('epoch', now())::text then
        return llm.current_tenant();
    end if;
    return v_tenant;
end
$$;

comment on function llm._owners_tenant() is
'llm.current_tenant() for hot security definer functions: plans that depend on row-level security are made anew whenever the role is another than
at the last call, so that these keep their own. Errors: as llm.current_tenant().';


create function llm._require_user(
    p_user_id uuid
)
    returns uuid
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
begin
    -- Shared, so that who is being deleted gets nothing more.
    perform from llm.users u where u.tenant_id = v_tenant and u.user_id = p_user_id and u.deleted_at is null for share;
    if not found then
        raise exception 'user % does not exist', coalesce(p_user_id::text, 'null')
            using errcode = 'no_data_found',
                  hint = 'Users are those of the current tenant, after llm.set_user() that one only. llm.create_user() makes one.';
    end if;
    return p_user_id;
end
$$;

comment on function llm._require_user(uuid) is
'Refuses a user who does not exist or is deleted, else returns it, and keeps it from being deleted until the transaction
ends. Errors: no_data_found.';


create function llm._identity_setting(
    p_key     text,
    p_default text
)
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm.current_tenant();
begin
    return coalesce(
        (select c.value #>> '{}' from llm.config c where c.tenant_id = v_tenant and c.key = p_key),
        (select c.value #>> '{}' from llm.config c where c.tenant_id = '*' and c.key = p_key),
        p_default
    );
end
$$;

comment on function llm._identity_setting(text, text) is
'A value of llm.config as text: the tenant''s, else the global one, else p_default.';


create function llm._new_token(
    p_kind     text,
    out token  text,
    out prefix text,
    out salt   bytea,
    out hash   bytea
)
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    token := p_kind || '_' || encode(@extschema:pgcrypto@.gen_random_bytes(40), 'hex'::text);
    prefix := substr(token, 6, 16);
    salt := @extschema:pgcrypto@.gen_random_bytes(16);
    hash := sha256(salt || convert_to(token, 'UTF8'::name));
end
$$;

comment on function llm._new_token(text) is
'A new token: p_kind (4 letters), _, 16 characters that it is looked up by, 64 that are 256 bits of chance. It is shown once; what is stored is its
salted SHA-256. The salt is nobody''s to know, so that the time which a comparison takes says nothing of the token.';


-- Users

create type llm.user_account as (
    user_id       uuid,
    username      text,
    email         text,
    display_name  text,
    preferences   jsonb,
    created_at    timestamptz,
    updated_at    timestamptz
);

comment on type llm.user_account is
'A user of the current tenant.';


create function llm._check_user(
    p_username    text,
    p_email       text,
    p_preferences jsonb
)
    returns void
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if length(p_username) not between 1 and 320 or p_username ~ '[[:cntrl:]]' then
        raise exception 'a username of % characters%', length(p_username), case when p_username ~ '[[:cntrl:]]' then ', not all printable' else '' end
            using errcode = 'check_violation',
                  hint = 'It has 1 to 320 printable characters.';
    end if;
    if length(p_email) not between 3 and 320 then
        raise exception 'an e-mail address of % characters', length(p_email)
            using errcode = 'check_violation',
                  hint = 'It has 3 to 320; null for none.';
    end if;
    if jsonb_typeof(p_preferences) <> 'object' then
        raise exception 'preferences that are %', jsonb_typeof(p_preferences)
            using errcode = 'check_violation',
                  hint = 'They are a JSON object, such as {"language": "no"}.';
    end if;
end
$$;

comment on function llm._check_user(text, text, jsonb) is
'Refuses what the constraints of llm.users would, in the user''s words. Errors: check_violation.';


create function llm.create_user(
    p_username     text,
    p_password     text default null,
    p_email        text default null,
    p_display_name text default null,
    p_preferences  jsonb default '{}',
    p_user_id      uuid default null
)
    returns uuid
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
    v_user   uuid := coalesce(p_user_id, llm.uuid_v7());
begin
    if p_username is null then
        raise exception 'a user without a username'
            using errcode = 'not_null_violation',
                  hint = 'Give p_username, what the user logs in by.';
    end if;
    perform llm._check_user(p_username, p_email, p_preferences);
    insert into llm.users (tenant_id, user_id, username, email, display_name, preferences)
    values (v_tenant, v_user, p_username, p_email, p_display_name, coalesce(p_preferences, '{}'));
    if p_password is not null then
        perform llm.set_password(v_user, p_password);
    end if;
    return v_user;
exception
    when unique_violation then
        raise exception 'user % exists already', p_username
            using errcode = 'unique_violation',
                  hint = 'A username is one of a kind in its tenant, whatever its case. To the public say the same in either case.';
end
$$;

comment on function llm.create_user(text, text, text, text, jsonb, uuid) is
'Makes a user of the current tenant and returns the id. p_username: what the user logs in by, 1 to 320 characters; p_password: as llm.set_password(),
null for one who proves elsewhere who he is; p_preferences: an object; p_user_id: an id that exists elsewhere, null for a new one. Errors:
unique_violation, check_violation, not_null_violation; object_not_in_prerequisite_state without a tenant; as llm.set_password().';


create function llm.get_user(
    p_user_id  uuid default null,
    p_username text default null
)
    returns setof llm.user_account
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
begin
    return query
        select u.user_id, u.username, u.email, u.display_name, u.preferences, u.created_at, u.updated_at
        from llm.users u
        where u.tenant_id = v_tenant
            and u.deleted_at is null
            and (u.user_id = p_user_id or p_user_id is null and lower(u.username) = lower(p_username));
end
$$;

comment on function llm.get_user(uuid, text) is
'A user of the current tenant, by id or else by username, whatever its case; no row when there is none, or it is deleted.
Errors: object_not_in_prerequisite_state without a tenant.';


create function llm.update_user(
    p_user_id      uuid,
    p_username     text default null,
    p_email        text default null,
    p_display_name text default null,
    p_preferences  jsonb default null
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
begin
    perform llm._check_user(p_username, p_email, p_preferences);
    update llm.users u
    set username = coalesce(p_username, u.username),
        email = coalesce(p_email, u.email),
        display_name = coalesce(p_display_name, u.display_name),
        preferences = jsonb_strip_nulls(u.preferences || coalesce(p_preferences, '{}')),
        updated_at = now()
    where u.tenant_id = v_tenant
        and u.user_id = p_user_id
        and u.deleted_at is null;
    return found;
exception
    when unique_violation then
        raise exception 'username % is taken', p_username
            using errcode = 'unique_violation',
                  hint = 'A username is one of a kind in its tenant, whatever its case.';
end
$$;

comment on function llm.update_user(uuid, text, text, text, jsonb) is
'Changes what is not null. p_preferences: keys to be set, those with null to be removed; the others stay. Returns whether there is such a user.
Errors: unique_violation, check_violation; object_not_in_prerequisite_state without a tenant.';


-- security definer: an application does not see who is deleted, so that it cannot delete either.
create function llm.delete_user(
    p_user_id uuid
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
begin
    update llm.users u
    set deleted_at = now(),
        updated_at = now()
    where u.tenant_id = v_tenant
        and u.user_id = p_user_id
        and u.deleted_at is null;
    return found;
end
$$;

alter function llm.delete_user(uuid) owner to llm_owner;

comment on function llm.delete_user(uuid) is
'Deletes a user softly: nobody but llm_admin sees him any more, his sessions end, his API keys are revoked, his name can be taken again. Returns
whether there was such a user. Errors: object_not_in_prerequisite_state without a tenant.';


create function llm.restore_user(
    p_user_id uuid
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
begin
    update llm.users u
    set deleted_at = null,
        updated_at = now()
    where u.tenant_id = v_tenant
        and u.user_id = p_user_id
        and u.deleted_at is not null;
    return found;
exception
    when unique_violation then
        raise exception 'the username of user % is taken by now', p_user_id
            using errcode = 'unique_violation',
                  hint = 'Rename one of the two: update llm.users set username = ….';
end
$$;

comment on function llm.restore_user(uuid) is
'Undoes llm.delete_user(); sessions and API keys do not come back. For llm_admin. Returns whether there was such a user.
Errors: unique_violation when somebody has the name now; object_not_in_prerequisite_state without a tenant.';


create function llm.purge_users(
    p_deleted_before timestamptz,
    p_limit          integer default 1000
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
    v_count  bigint;
begin
    perform llm._check_page(p_limit::bigint, 0::bigint);
    delete from llm.users u
    where u.tenant_id = v_tenant
        and u.user_id in (
            select d.user_id
            from llm.users d
            where d.tenant_id = v_tenant
                and d.deleted_at < p_deleted_before
            order by d.user_id
            limit p_limit
            for update skip locked
        );
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

comment on function llm.purge_users(timestamptz, integer) is
'Removes users of the current tenant who were softly deleted before, with credentials, keys and sessions, at most p_limit. For llm_admin. Returns how
many. What else they left, llm.forget_user() removes. Errors: object_not_in_prerequisite_state without a tenant.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader', 'llm_auditor'],
    '_refused_user', 'current_user_id', 'set_user'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_user_tenant', 'get_user'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    '_require_user', '_identity_setting', '_new_token', '_check_user', 'create_user', 'update_user', 'delete_user'
);

select llm._grant_execute(
    array['llm_owner'],
    '_owners_tenant', '_protect_user_rows'
);

select llm._grant_execute(
    array['llm_admin'],
    'restore_user', 'purge_users'
);
