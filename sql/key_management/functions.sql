create type llm.shred_receipt as (
    tenant_id    text,
    key_id       text,
    keys         bigint,
    versions     bigint,
    in_backups   boolean,
    effect       text,
    shredded_at  timestamptz,
    event_id     bigint
);

comment on type llm.shred_receipt is
'What llm.shred_key() destroyed: key_id null for all keys of the tenant; how many keys and versions; in_backups, whether backups of the database are
of no use for them either; effect, the same in words; event_id, the row of llm.key_events that says so.';


-- security definer: who makes keys must not get at them.
create function llm.generate_key(
    p_key_size   integer default 256,
    p_expires_at timestamptz default null,
    p_max_uses   bigint default 1073741824
)
    returns text
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_key_size is distinct from 256 then
        raise exception 'a key of % bits', coalesce(p_key_size::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Supported: 256, for aes-256-cbc with HMAC-SHA256.';
    end if;
    if p_max_uses is null or p_max_uses not between 1 and 1073741824 then
        raise exception 'a key for % uses', coalesce(p_max_uses::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Take 1 to 1073741824: then the next version takes over.';
    end if;
    return llm._make_key(llm._writable_tenant(), 'data'::text, p_expires_at, p_max_uses)::text;
end
$$;

alter function llm.generate_key(integer, timestamptz, bigint) owner to llm_owner;

comment on function llm.generate_key(integer, timestamptz, bigint) is
'Makes a key of the current tenant and returns its id, for llm.encryption.key_id. p_key_size: 256; p_expires_at: from when on it decrypts only;
p_max_uses: after so many encryptions the next version takes over, and after twice as many the last one ends. Errors: invalid_parameter_value;
object_not_in_prerequisite_state without a master key or a tenant.';


-- security definer: who rotates keys must not get at them.
create function llm.rotate_key(
    p_key_id text default null
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_key llm.data_key := llm._key_of(p_key_id);
begin
    return llm._next_version(v_key.tenant_id, v_key.key_id, v_key.version, 'asked for'::text) is not null;
end
$$;

alter function llm.rotate_key(text) owner to llm_owner;

comment on function llm.rotate_key(text) is
'Makes a new version of a key, which encrypts from now on; the older ones still decrypt. p_key_id: null for the tenant''s default key. Returns false
when another session is busy with the same. See llm.rewrap() for what was encrypted before. Errors: undefined_object.';


-- security definer: nobody writes the tables of keys himself.
create function llm.revoke_key(
    p_key_id text,
    p_reason text default null
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_key llm.data_key := llm._key_of(p_key_id);
begin
    update llm.data_keys k
    set revoked_at = now()
    where k.tenant_id = v_key.tenant_id
        and k.key_id = v_key.key_id
        and k.revoked_at is null;
    if found then
        perform llm._note_key_event(v_key.tenant_id, v_key.key_id, 'revoked'::text, jsonb_build_object('reason', p_reason));
        return true;
    end if;
    return false;
end
$$;

alter function llm.revoke_key(text, text) owner to llm_owner;

comment on function llm.revoke_key(text, text) is
'Ends the use of a key: it neither encrypts nor decrypts any more, but by llm.break_glass_decrypt(). p_key_id: null for the tenant''s default key;
p_reason: for llm.key_events. For llm_admin. Returns false when it was revoked already. Errors: undefined_object.';


-- security definer: it reads what the application no longer can.
create function llm.break_glass_decrypt(
    p_encrypted_data bytea,
    p_purpose        text,
    p_table          text default '',
    p_column         text default '',
    p_row            text default ''
)
    returns text
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_text text;
begin
    if coalesce(length(btrim(p_purpose)), 0) = 0 then
        raise exception 'no purpose is given'
            using errcode = 'invalid_parameter_value',
                  hint = 'Say why this is read: it is kept in llm.key_events.';
    end if;
    v_text := convert_from(
        llm._unsealed(
            llm._key_chain_to_decrypt(
                llm._claimed_tenant(), substr(p_encrypted_data, 1, 38), null::text, true, p_table, p_column, p_row
            ),
            p_encrypted_data, true
        ),
        'UTF8'::name
    );
    perform llm._note_key_event(
        llm._writable_tenant(), encode(substr(p_encrypted_data, 3, 16), 'hex'::text)::uuid, 'read by break-glass'::text,
        jsonb_build_object('purpose', p_purpose, 'table', p_table, 'column', p_column, 'row', p_row)
    );
    return v_text;
end
$$;

alter function llm.break_glass_decrypt(bytea, text, text, text, text) owner to llm_owner;

comment on function llm.break_glass_decrypt(bytea, text, text, text, text) is
'As llm.decrypt_data(), also with a revoked key, for llm_admin; each call is kept in llm.key_events. p_purpose: why. The other arguments and the
result: as llm.decrypt_data. Errors: invalid_parameter_value without a purpose; as llm.decrypt_data.';


create function llm._remove_tenant_secret(
    p_tenant_key uuid
)
    returns boolean
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import key_store
return key_store.remove_tenant_secret(p_tenant_key)
$$;

comment on function llm._remove_tenant_secret(uuid) is
'Destroys a tenant''s secret wherever it is in a key store; returns whether the keys that it helped to wrap are thereby lost.';


-- security definer: nobody writes the tables of keys himself.
create function llm.shred_key(
    p_key_id text default null,
    p_reason text default null
)
    returns llm.shred_receipt
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant     text := llm._writable_tenant();
    v_tenant_key uuid;
    v_key        uuid;
    v_keys       bigint;
    v_versions   bigint;
    v_outside    boolean := false;
    v_effect     text;
    v_event      bigint;
begin
    if p_key_id is null then
        select t.id into v_tenant_key from llm.tenant_keys t where t.tenant_id = v_tenant and t.shredded_at is null for update;
        if not found then
            raise exception 'tenant % has no keys', v_tenant
                using errcode = 'undefined_object',
                      hint = 'There is nothing to shred.';
        end if;
        update llm.tenant_keys t
        set wrapped = null,
            shredded_at = now()
        where t.tenant_id = v_tenant
            and t.id = v_tenant_key;
    else
        select k.key_id into v_key from llm._key_of(p_key_id) k;
    end if;

    with gone as (
        delete from llm.data_key_versions v
        using llm.data_keys k
        where k.tenant_id = v.tenant_id
            and k.key_id = v.key_id
            and v.tenant_id = v_tenant
            and (k.tenant_key_id = v_tenant_key or k.key_id = v_key)
        returning v.key_id
    )
    select count(distinct g.key_id), count(*) into v_keys, v_versions from gone g;

    -- Last, since no rollback brings it back.
    if p_key_id is null then
        v_outside := llm._remove_tenant_secret(v_tenant_key);
    end if;
    v_effect := case
        when v_outside then
            'At once, in every backup of the database too: the tenant''s secret in the key store is gone. Destroy it in backups of the key store.'
        else 'When no backup, WAL archive or replica from before this moment is left: they still hold the wrapped key.'
    end;
    v_event := llm._note_key_event(
        v_tenant,
        v_key,
        'shredded'::text,
        jsonb_build_object(
            'keys', v_keys, 'versions', v_versions, 'in_backups', v_outside, 'effect', v_effect, 'tenant_key', v_tenant_key, 'reason', p_reason
        )
    );
    return (v_tenant, p_key_id, v_keys, v_versions, v_outside, v_effect, now(), v_event)::llm.shred_receipt;
end
$$;

alter function llm.shred_key(text, text) owner to llm_owner;

comment on function llm.shred_key(text, text) is
'Destroys keys, so that nobody can ever decrypt what they encrypted; a rollback does not bring them back. p_key_id: null for all keys of the tenant,
and its secret in the key store; p_reason: for llm.key_events. For llm_admin. Returns a receipt that says when that takes effect. New keys are made
at the next use. Errors: undefined_object when there is no such key.';


create function llm._carry_tenant_secret(
    p_old_version integer,
    p_new_version integer,
    p_tenant_key  uuid
)
    returns void
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import key_store
key_store.carry_tenant_secret(p_old_version, p_new_version, p_tenant_key)
$$;

comment on function llm._carry_tenant_secret(integer, integer, uuid) is
'Lets a tenant''s secret be where the new version of the master key looks for it.';


create function llm.rotate_master_key(
    p_location text default null,
    p_command  text[] default null
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_newest    llm.master_keys;
    v_version   integer;
    v_key       llm.tenant_keys;
    v_old_start bytea;
    v_new_start bytea;
    v_wrapped   bytea;
    v_count     bigint := 0;
begin
    select * into v_newest from llm.master_keys m order by m.version desc limit 1;
    if p_location is null and p_command is null then
        v_version := llm.add_master_key(v_newest.location, v_newest.command);
    else
        v_version := llm.add_master_key(p_location, p_command);
    end if;
    for v_key in
        select * from llm.tenant_keys t where t.master_version < v_version and t.shredded_at is null order by t.tenant_id, t.id for update
    loop
        perform llm._carry_tenant_secret(v_key.master_version::integer, v_version, v_key.id);
        v_old_start := llm._start_of_key(v_key.wrapped, v_key.tenant_id, 'llm.tenant_keys'::text, v_key.id::text);
        v_new_start := llm._key_start(v_key.id, v_version, v_key.tenant_id, 'llm.tenant_keys'::text, v_key.id::text);
        v_wrapped := llm._seal(llm._wrapping_keys(v_new_start), llm._tenant_keys(v_key.wrapped, v_old_start), v_new_start);
        update llm.tenant_keys t
        set wrapped = v_wrapped,
            master_version = v_version,
            wrapped_at = now()
        where t.tenant_id = v_key.tenant_id
            and t.id = v_key.id;
        v_count := v_count + 1;
    end loop;
    return v_count;
end
$$;

comment on function llm.rotate_master_key(text, text[]) is
'Adds the next version of the master key and wraps all tenants'' keys with it; no value is encrypted anew. p_location, p_command: as
llm.add_master_key, null for where the newest one is. Keep the older versions while there are backups from their time. For superusers. Returns how
many keys were wrapped. Errors: as llm.add_master_key; data_exception for a tenant key that is not authentic.';


select llm._grant_execute(
    array['llm_owner'],
    '_remove_tenant_secret'
);
select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'generate_key', 'rotate_key'
);
select llm._grant_execute(
    array['llm_admin'],
    'revoke_key', 'shred_key', 'break_glass_decrypt'
);
