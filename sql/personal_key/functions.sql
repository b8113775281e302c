create function llm._personal_key(
    p_tenant  text,
    p_user_id uuid
)
    returns text
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_key uuid;
begin
    select k.key_id into v_key from llm.personal_keys k where k.tenant_id = p_tenant and k.user_id = p_user_id;
    if not found then
        -- One at a time, lest a key be made that nobody uses.
        perform pg_advisory_xact_lock(hashtext('llm.personal_keys'::text), hashtext(p_tenant || ' ' || p_user_id::text));
        select k.key_id into v_key from llm.personal_keys k where k.tenant_id = p_tenant and k.user_id = p_user_id;
    end if;
    if v_key is null then
        v_key := llm._make_key(p_tenant, 'data'::text, null::timestamptz, 1073741824::bigint);
        insert into llm.personal_keys (tenant_id, user_id, key_id) values (p_tenant, p_user_id, v_key);
    end if;
    return v_key::text;
end
$$;

comment on function llm._personal_key(text, uuid) is
'The key of a user, made if there is none. Errors: object_not_in_prerequisite_state without a master key.';


-- security definer: who asks for a key must not write the tables of keys.
create function llm.personal_key(
    p_user_id uuid
)
    returns text
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._writable_tenant();
begin
    if p_user_id is null or v_tenant = '*' or p_user_id <> llm.current_user_id() then
        raise exception 'user % has no key here', coalesce(p_user_id::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give the id of a user of the tenant that llm.set_tenant() told; if llm.set_user() told of a user, his.';
    end if;
    return llm._personal_key(v_tenant, p_user_id);
end
$$;

alter function llm.personal_key(uuid) owner to llm_owner;

comment on function llm.personal_key(uuid) is
'The id of a user''s own key, for llm.encryption.key_id: what is encrypted with it, llm.forget_user() makes unreadable wherever it is. Made at the
first call. Errors: invalid_parameter_value; object_not_in_prerequisite_state without a tenant or a master key.';


create function llm._encryption_for(
    p_tenant  text,
    p_user_id text
)
    returns llm.encryption
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_tenant <> '*' and p_user_id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
        return row(null, null, llm._personal_key(p_tenant, p_user_id::uuid), null)::llm.encryption;
    end if;
    return null;
end
$$;

comment on function llm._encryption_for(text, text) is
'How to encrypt what concerns a user: with his key if p_user_id is a UUID, else (null) with the tenant''s default key.';


select llm._grant_execute(
    array['llm_owner'],
    '_personal_key', '_encryption_for'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'personal_key'
);
