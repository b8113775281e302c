create type llm.user_api_key as (
    key_id     uuid,
    tenant_id  text,
    user_id    uuid,
    name       text,
    scopes     text[]
);

comment on type llm.user_api_key is
'Whom an API key lets act, and for what.';


create function llm.create_user_api_key(
    p_user_id    uuid,
    p_name       text,
    p_scopes     text[] default '{}',
    p_expires_at timestamptz default null,
    out key_id   uuid,
    out api_key  text
)
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
    v_token  record;
begin
    perform llm._require_user(p_user_id);
    if (length(p_name) between 1 and 200) is not true then
        raise exception 'an API key with a name of % characters', coalesce(length(p_name)::text, 'no')
            using errcode = 'check_violation',
                  hint = 'Its name has 1 to 200: what the user knows it by.';
    end if;
    select * into v_token from llm._new_token('llmk'::text);
    insert into llm.user_api_keys as k (tenant_id, user_id, name, scopes, expires_at, key_prefix, key_salt, key_hash)
    values (v_tenant, p_user_id, p_name, coalesce(p_scopes, '{}'), p_expires_at, v_token.prefix, v_token.salt, v_token.hash)
    returning k.key_id into key_id;
    api_key := v_token.token;
    perform llm.log_security_event(
        'api_key_created'::llm.security_event, 'user_api_key'::text, key_id::text, jsonb_build_object('name', p_name, 'scopes', to_jsonb(p_scopes)),
        p_user_id::text, null::jsonb
    );
end
$$;

comment on function llm.create_user_api_key(uuid, text, text[], timestamptz) is
'Makes an API key by which a program acts for a user. p_name: what the user calls it; p_scopes: what it is for, which is for the application to heed;
p_expires_at: null for never. Returns its id and the key, which is shown this once. Errors: no_data_found for an unknown user; check_violation for a
bad name; object_not_in_prerequisite_state without a tenant.';


-- security definer: which tenant it is, only the key tells.
create function llm.verify_user_api_key(
    p_api_key text
)
    returns setof llm.user_api_key
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._owners_tenant();
    v_key    record;
begin
    select
        k.key_id, k.tenant_id, k.user_id, k.name, k.scopes,
        coalesce(k.last_used_at < statement_timestamp() - interval '1 minute', true) as is_to_be_noted
    into v_key
    from llm.user_api_keys k
    where k.key_prefix = substr(p_api_key, 6, 16)
        and k.key_hash = sha256(k.key_salt || convert_to(p_api_key, 'UTF8'::name))
        and k.revoked_at is null
        and coalesce(k.expires_at > statement_timestamp(), true)
        and coalesce(k.tenant_id = v_tenant, v_tenant is null);
    if not found then
        return;
    end if;
    if v_key.is_to_be_noted and not pg_is_in_recovery() and not current_setting('transaction_read_only')::boolean then
        perform llm._note_key_use(v_key.tenant_id, v_key.key_id, v_key.user_id);
    end if;
    return next row(v_key.key_id, v_key.tenant_id, v_key.user_id, v_key.name, v_key.scopes)::llm.user_api_key;
end
$$;

alter function llm.verify_user_api_key(text) owner to llm_owner;

comment on function llm.verify_user_api_key(text) is
'Whose API key this is; no row when it is forged, expired or revoked, or its user deleted. Without a tenant any tenant''s, which llm.set_tenant() can
then be told; with one, its own only. The first use in a minute is noted in last_used_at and, as api_key_used, in the audit log. Errors:
object_not_in_prerequisite_state when the tenant was not set by llm.set_tenant().';


create function llm._note_key_use(
    p_tenant  text,
    p_key_id  uuid,
    p_user_id uuid
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant_before text := current_setting('llm.tenant', true);
    v_set_at_before text := current_setting('llm.tenant_set_at', true);
begin
    perform set_config('llm.tenant', p_tenant, true);
    perform set_config('llm.tenant_set_at', date_part('epoch', now())::text, true);
    -- Who comes second does not wait for the first one's transaction: one note is enough.
    update llm.user_api_keys k
    set last_used_at = statement_timestamp()
    where (k.tenant_id, k.key_id) in (
        select l.tenant_id, l.key_id
        from llm.user_api_keys l
        where l.tenant_id = p_tenant
            and l.key_id = p_key_id
        for no key update skip locked
    );
    if found then
        perform llm.log_security_event(
            'api_key_used'::llm.security_event, 'user_api_key'::text, p_key_id::text, null::jsonb, p_user_id::text, null::jsonb
        );
    end if;
    perform set_config('llm.tenant', coalesce(v_tenant_before, ''), true);
    perform set_config('llm.tenant_set_at', coalesce(v_set_at_before, ''), true);
end
$$;

comment on function llm._note_key_use(text, uuid, uuid) is
'Notes that an API key of a tenant is in use; afterwards the transaction works for whom it did.';


create function llm.revoke_user_api_key(
    p_key_id uuid
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
    v_user   uuid;
begin
    update llm.user_api_keys k
    set revoked_at = now()
    where k.tenant_id = v_tenant
        and k.key_id = p_key_id
        and k.revoked_at is null
    returning k.user_id into v_user;
    if not found then
        return false;
    end if;
    perform llm.log_security_event(
        'api_key_revoked'::llm.security_event, 'user_api_key'::text, p_key_id::text, null::jsonb, v_user::text, null::jsonb
    );
    return true;
end
$$;

comment on function llm.revoke_user_api_key(uuid) is
'Ends an API key at once. Returns whether there was one that was not revoked yet. Errors: object_not_in_prerequisite_state without a tenant.';


create function llm._revoke_user_api_keys()
    returns trigger
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    update llm.user_api_keys k
    set revoked_at = now()
    where k.tenant_id = new.tenant_id
        and k.user_id = new.user_id
        and k.revoked_at is null;
    return null;
end
$$;

comment on function llm._revoke_user_api_keys() is
'Trigger of llm.users: the keys of who is deleted end.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    '_revoke_user_api_keys'
);

select llm._grant_execute(
    array['llm_owner'],
    '_note_key_use'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'create_user_api_key', 'verify_user_api_key', 'revoke_user_api_key'
);
