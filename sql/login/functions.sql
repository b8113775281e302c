create type llm.authentication as (
    outcome  text,
    user_id  uuid
);

comment on type llm.authentication is
'What came of llm.authenticate(): outcome ok, with the user; mfa_required: the password was right, and the code of the second factor is missing; or
refused.';


create function llm._password_hash(
    p_password text
)
    returns text
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    return @extschema:pgcrypto@.crypt(
        p_password, @extschema:pgcrypto@.gen_salt('bf'::text, llm._identity_setting('login/bcrypt_cost'::text, '12'::text)::integer)
    );
end
$$;

comment on function llm._password_hash(text) is
'A password by bcrypt, with the cost that login/bcrypt_cost says.';


-- security definer: nobody but functions of pg_llm reads or writes credentials.
create function llm.set_password(
    p_user_id  uuid,
    p_password text
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
    v_hash   text;
begin
    if p_password is null or length(p_password) < 8 or octet_length(p_password) > 72 then
        raise exception 'a password of % characters, % bytes', coalesce(length(p_password), 0), coalesce(octet_length(p_password), 0)
            using errcode = 'invalid_parameter_value',
                  hint = 'Take at least 8 characters and at most 72 bytes: bcrypt reads no more.';
    end if;
    perform llm._require_user(p_user_id);
    v_hash := llm._password_hash(p_password);

    insert into llm.user_credentials as c (tenant_id, user_id, password_hash, password_changed_at)
    values (v_tenant, p_user_id, v_hash, now())
    on conflict (tenant_id, user_id) do update
        set password_hash = excluded.password_hash,
            password_changed_at = excluded.password_changed_at,
            failed_logins = 0,
            locked_until = null;
    perform llm.log_authentication_event('password_changed'::llm.authentication_event, p_user_id::text, null::jsonb, null::jsonb);
end
$$;

alter function llm.set_password(uuid, text) owner to llm_owner;

comment on function llm.set_password(uuid, text) is
'Gives a user a password, and unlocks him. Sessions that are open stay so: llm.end_sessions() ends them. p_password: 8 characters to 72 bytes; stored
by bcrypt with the cost in configuration value login/bcrypt_cost (12). Errors: invalid_parameter_value, no_data_found for an unknown user,
object_not_in_prerequisite_state without a tenant.';


-- security definer: as llm.set_password().
create function llm.authenticate(
    p_username    text,
    p_password    text,
    p_mfa_code    text default null,
    p_client_info jsonb default null
)
    returns llm.authentication
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant      text := llm._user_tenant();
    v_lockout     interval := llm._in_hours(llm._identity_setting('login/lockout'::text, '15 minutes'::text)::interval);
    v_most        integer := llm._identity_setting('login/max_failures'::text, '5'::text)::integer;
    v_password    text := coalesce(p_password, '');
    v_hash        text;
    v_credentials record;
    v_is_right    boolean;
    v_mfa_step    bigint;
    v_failures    integer;
begin
    select c.user_id, c.locked_until, c.password_hash, c.failed_logins, c.last_failed_at, c.mfa_secret, c.mfa_enrolled_at, c.mfa_last_step
    into v_credentials
    from llm.users u
    join llm.user_credentials c on c.tenant_id = u.tenant_id and c.user_id = u.user_id
    where u.tenant_id = v_tenant
        and lower(u.username) = lower(p_username)
        and u.deleted_at is null;

    if v_credentials.user_id is not null and (v_credentials.locked_until > clock_timestamp()) is not true then
        -- One attempt after the other: each is counted before the next is looked at.
        select c.user_id, c.locked_until, c.password_hash, c.failed_logins, c.last_failed_at, c.mfa_secret, c.mfa_enrolled_at, c.mfa_last_step
        into v_credentials
        from llm.user_credentials c
        where c.tenant_id = v_tenant
            and c.user_id = v_credentials.user_id
        for no key update;
    end if;

    -- Assigned, not performed: what a statement is given as a parameter, auto_explain can write to the server's log.
    if v_credentials.password_hash is null or v_credentials.locked_until > clock_timestamp() then
        -- The same work for somebody unknown, so that its time says nothing.
        v_hash := llm._password_hash(v_password);
        v_is_right := false;
    else
        v_hash := @extschema:pgcrypto@.crypt(v_password, v_credentials.password_hash);
        v_is_right := v_hash = v_credentials.password_hash and octet_length(v_password) <= 72;
    end if;

    if v_is_right and v_credentials.mfa_enrolled_at is not null then
        if p_mfa_code is null then
            return row('mfa_required', null)::llm.authentication;
        end if;
        v_mfa_step := llm._mfa_step(
            llm.decrypt_data(
                v_credentials.mfa_secret, null::llm.encryption, 'llm.user_credentials'::text, 'mfa_secret'::text, v_credentials.user_id::text
            ),
            p_mfa_code, date_part('epoch', clock_timestamp()), coalesce(v_credentials.mfa_last_step, 0::bigint)
        );
        v_is_right := v_mfa_step is not null;
    end if;

    if v_is_right then
        if split_part(v_hash, '$', 3)::integer <> llm._identity_setting('login/bcrypt_cost'::text, '12'::text)::integer then
            v_hash := llm._password_hash(v_password);
        end if;
        update llm.user_credentials c
        set password_hash = v_hash,
            failed_logins = 0,
            locked_until = null,
            last_login_at = clock_timestamp(),
            mfa_last_step = coalesce(v_mfa_step, c.mfa_last_step)
        where c.tenant_id = v_tenant
            and c.user_id = v_credentials.user_id;
        perform llm.log_authentication_event(
            'login'::llm.authentication_event, v_credentials.user_id::text, jsonb_build_object('mfa', v_mfa_step is not null), p_client_info
        );
        return row('ok', v_credentials.user_id)::llm.authentication;
    end if;

    if v_credentials.password_hash is not null and (v_credentials.locked_until > clock_timestamp()) is not true then
        v_failures := 1 + case when v_credentials.last_failed_at > clock_timestamp() - v_lockout then v_credentials.failed_logins else 0 end;
        update llm.user_credentials c
        set failed_logins = case when v_failures < v_most then v_failures else 0 end,
            last_failed_at = clock_timestamp(),
            locked_until = case when v_failures >= v_most then clock_timestamp() + v_lockout end
        where c.tenant_id = v_tenant
            and c.user_id = v_credentials.user_id;
        if v_failures >= v_most then
            perform llm.log_authentication_event(
                'account_locked'::llm.authentication_event, v_credentials.user_id::text, jsonb_build_object('failures', v_failures), p_client_info
            );
        end if;
    end if;
    -- What was typed as a name is not kept: often enough it is a password.
    perform llm.log_authentication_event(
        'login_failed'::llm.authentication_event,
        coalesce(v_credentials.user_id::text, ''),
        jsonb_build_object('reason', case
            when v_credentials.password_hash is null then 'unknown'
            when v_credentials.locked_until > clock_timestamp() then 'locked'
            when v_credentials.mfa_enrolled_at is not null and v_hash = v_credentials.password_hash then 'mfa'
            else 'password'
        end),
        p_client_info
    );
    return row('refused', null)::llm.authentication;
end
$$;

alter function llm.authenticate(text, text, text, jsonb) owner to llm_owner;

comment on function llm.authenticate(text, text, text, jsonb) is
'Whether these are a user''s name and password, and, if he has a second factor, its code. An unknown name, a wrong password, a locked or deleted user
are all refused, after the same work. It returns instead of raising, because failures must be counted: commit. After login/max_failures (5) failures
within login/lockout (15 minutes) the user is locked for as long; attempts at one user wait for each other. p_client_info: where from, for the audit
log, which gets each log-in and failure. A changed login/bcrypt_cost takes effect at the next log-in. Errors: object_not_in_prerequisite_state
without a tenant.';


-- security definer: as llm.set_password().
create function llm.unlock_user(
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
    update llm.user_credentials c
    set failed_logins = 0,
        locked_until = null
    where c.tenant_id = v_tenant
        and c.user_id = p_user_id
        and (c.failed_logins > 0 or c.locked_until is not null);
    if not found then
        return false;
    end if;
    perform llm.log_authentication_event('account_unlocked'::llm.authentication_event, p_user_id::text, null::jsonb, null::jsonb);
    return true;
end
$$;

alter function llm.unlock_user(uuid) owner to llm_owner;

comment on function llm.unlock_user(uuid) is
'Forgets the failed log-ins of a user, and unlocks him. Returns whether there were any. Errors: object_not_in_prerequisite_state without a tenant.';


-- security definer: as llm.set_password().
create function llm.login_state(
    p_user_id            uuid,
    out has_password     boolean,
    out has_mfa          boolean,
    out failed_logins    integer,
    out locked_until     timestamptz,
    out last_login_at    timestamptz,
    out password_changed_at timestamptz
)
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
begin
    select
        c.password_hash is not null, c.mfa_enrolled_at is not null, c.failed_logins,
        case when c.locked_until > clock_timestamp() then c.locked_until end, c.last_login_at, c.password_changed_at
    into has_password, has_mfa, failed_logins, locked_until, last_login_at, password_changed_at
    from llm.user_credentials c
    join llm.users u on u.tenant_id = c.tenant_id and u.user_id = c.user_id
    where c.tenant_id = v_tenant
        and c.user_id = p_user_id
        and u.deleted_at is null;
end
$$;

alter function llm.login_state(uuid) owner to llm_owner;

comment on function llm.login_state(uuid) is
'How a user stands with logging in, for himself and for who helps him: locked_until is null when he is not locked; all is null for who has no
credentials. Errors: object_not_in_prerequisite_state without a tenant.';


-- The second factor: codes that change with time (RFC 6238)

create function llm._new_mfa_secret()
    returns text
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import login
return login.new_secret()
$$;

comment on function llm._new_mfa_secret() is
'160 bits of chance in base 32.';


create function llm._mfa_step(
    p_secret    text,
    p_code      text,
    p_at        double precision,
    p_last_step bigint
)
    returns bigint
    language plpython3u
    immutable
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import login
return login.step(p_secret, p_code, p_at, p_last_step)
$$;

comment on function llm._mfa_step(text, text, double precision, bigint) is
'The time step that a code is of, the present one or its neighbours, if it is after p_last_step; else null. p_at: seconds since 1970.';


-- security definer: as llm.set_password().
create function llm.enroll_mfa(
    p_user_id uuid
)
    returns text
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
    v_secret text;
    v_sealed bytea;
begin
    perform llm._require_user(p_user_id);
    v_secret := llm._new_mfa_secret();
    v_sealed := llm.encrypt_data(v_secret, null::llm.encryption, 'llm.user_credentials'::text, 'mfa_secret'::text, p_user_id::text);
    insert into llm.user_credentials as c (tenant_id, user_id, mfa_secret)
    values (v_tenant, p_user_id, v_sealed)
    on conflict (tenant_id, user_id) do update
        set mfa_secret = excluded.mfa_secret
        where c.mfa_enrolled_at is null;
    if not found then
        raise exception 'user % has a second factor', p_user_id
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Remove it first, by llm.remove_mfa().';
    end if;
    return v_secret;
end
$$;

alter function llm.enroll_mfa(uuid) owner to llm_owner;

comment on function llm.enroll_mfa(uuid) is
'A new secret for a user''s authenticator (base 32; otpauth://totp/…?secret=…, SHA-1, 6 digits, 30 s), shown this once and stored encrypted. It is in
force once llm.confirm_mfa() was given a code. Errors: no_data_found for an unknown user; object_not_in_prerequisite_state when there is one in
force, without a tenant or without a master key.';


-- security definer: as llm.set_password().
create function llm.confirm_mfa(
    p_user_id uuid,
    p_code    text
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
    v_sealed bytea;
    v_step   bigint;
begin
    select c.mfa_secret
    into v_sealed
    from llm.user_credentials c
    where c.tenant_id = v_tenant
        and c.user_id = p_user_id
        and c.mfa_enrolled_at is null
    for no key update;
    v_step := llm._mfa_step(
        llm.decrypt_data(v_sealed, null::llm.encryption, 'llm.user_credentials'::text, 'mfa_secret'::text, p_user_id::text),
        p_code, date_part('epoch', clock_timestamp()), 0::bigint
    );
    if v_step is null then
        return false;
    end if;
    update llm.user_credentials c
    set mfa_enrolled_at = now(),
        mfa_last_step = v_step
    where c.tenant_id = v_tenant
        and c.user_id = p_user_id;
    perform llm.log_authentication_event('mfa_enrolled'::llm.authentication_event, p_user_id::text, null::jsonb, null::jsonb);
    return true;
end
$$;

alter function llm.confirm_mfa(uuid, text) owner to llm_owner;

comment on function llm.confirm_mfa(uuid, text) is
'Puts the secret of llm.enroll_mfa() in force, if the code is right: from then on llm.authenticate() asks for one. Returns whether it is.
Errors: object_not_in_prerequisite_state without a tenant; as llm.decrypt_data().';


-- security definer: as llm.set_password().
create function llm.remove_mfa(
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
    update llm.user_credentials c
    set mfa_secret = null,
        mfa_enrolled_at = null,
        mfa_last_step = null
    where c.tenant_id = v_tenant
        and c.user_id = p_user_id
        and c.mfa_secret is not null;
    if not found then
        return false;
    end if;
    perform llm.log_authentication_event('mfa_removed'::llm.authentication_event, p_user_id::text, null::jsonb, null::jsonb);
    return true;
end
$$;

alter function llm.remove_mfa(uuid) owner to llm_owner;

comment on function llm.remove_mfa(uuid) is
'Removes the second factor of a user. Returns whether there was one. Errors: object_not_in_prerequisite_state without a tenant.';


select llm._grant_execute(
    array['llm_owner'],
    '_password_hash', '_new_mfa_secret', '_mfa_step'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'set_password', 'authenticate', 'unlock_user', 'login_state', 'enroll_mfa', 'confirm_mfa', 'remove_mfa'
);
