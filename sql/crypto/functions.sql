create type llm.encryption as (
    algorithm        text,
    key_size         integer,
    key_id           text,
    use_compression  boolean
);

comment on type llm.encryption is
'How to encrypt; whatever is null is chosen: algorithm aes-256-cbc (always with HMAC-SHA256), key_size 256, key_id the tenant''s default key,
use_compression false. Compression shows in the length how repetitive the text is: not for what mixes secrets with text of others.';


-- Encrypting and decrypting
--
-- Unwrapped keys are only arguments of functions and operands of expressions: a variable used in a statement would be a parameter, which auto_explain
-- logs. So what touches keys contains no statement, and Python, which touches them too, runs none.

create function llm._key_chain_to_encrypt(
    p_tenant     text,
    p_algorithm  text,
    p_key_size   integer,
    p_key_id     text,
    p_compressed boolean,
    p_table      text,
    p_column     text,
    p_row        text
)
    returns bytea[]
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.chain_to_encrypt(p_tenant, p_algorithm, p_key_size, p_key_id, p_compressed, p_table, p_column, p_row)
$$;

comment on function llm._key_chain_to_encrypt(text, text, integer, text, boolean, text, text, text) is
'What a new ciphertext begins with and is bound to, the wrapped tenant key and what that is bound to, the same of the data key.';


create function llm._key_chain_to_decrypt(
    p_tenant         text,
    p_head           bytea,
    p_is_break_glass boolean,
    p_table          text,
    p_column         text,
    p_row            text
)
    returns bytea[]
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.chain_to_decrypt(p_tenant, p_head, p_is_break_glass, p_table, p_column, p_row)
$$;

comment on function llm._key_chain_to_decrypt(text, bytea, boolean, text, text, text) is
'As llm._key_chain_to_encrypt() for a ciphertext that begins with p_head.';


create function llm._wrapping_keys(
    p_start bytea
)
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.wrapping_keys(p_start)
$$;

comment on function llm._wrapping_keys(bytea) is
'The keys that wrap the tenant key which begins with p_start: from the master key and the tenant''s secret, read from the key store on each call.';


create function llm._unwrapping_key(
    p_wrapped bytea,
    p_start   bytea
)
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.unwrapping_key(p_wrapped, p_start)
$$;

comment on function llm._unwrapping_key(bytea, bytea) is
'The key that decrypts a wrapped tenant key, after its tag was checked. Errors: as llm._has_right_tag.';


create function llm._new_key()
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.new_key()
$$;

comment on function llm._new_key() is
'A new key, not wrapped.';


create function llm._has_right_tag(
    p_tag      bytea,
    p_expected bytea,
    p_start    bytea
)
    returns boolean
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.has_right_tag(p_tag, p_expected, p_start)
$$;

comment on function llm._has_right_tag(bytea, bytea, bytea) is
'True when two tags are equal, compared in a time that does not tell where they differ; else raises why a ciphertext that should begin with p_start has
another. Errors: data_exception; config_file_error when the master key is not the one that it was.';


create function llm._deflated(
    p_plain bytea
)
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.deflated(p_plain)
$$;

comment on function llm._deflated(bytea) is
'Compressed (RFC 1950).';


create function llm._inflated(
    p_compressed bytea
)
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.inflated(p_compressed)
$$;

comment on function llm._inflated(bytea) is
'What llm._deflated() was given. Errors: program_limit_exceeded when it is more than 1 GB.';


create function llm._seal(
    p_keys  bytea,
    p_plain bytea,
    p_start bytea
)
    returns bytea
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_ciphertext bytea;
begin
    v_ciphertext := @extschema:pgcrypto@.encrypt_iv(p_plain, substr(p_keys, 1, 32), substr(p_start, 23, 16), 'aes-cbc/pad:pkcs'::text);
    return substr(p_start, 1, 38) || v_ciphertext
        || @extschema:pgcrypto@.hmac(p_start || v_ciphertext, substr(p_keys, 33, 32), 'sha256'::text);
end
$$;

comment on function llm._seal(bytea, bytea, bytea) is
'The ciphertext: the head and initialization vector that p_start begins with, AES-256-CBC, and HMAC-SHA256 over p_start and that. p_keys: 32 bytes
for each.';


create function llm._unseal(
    p_keys   bytea,
    p_sealed bytea,
    p_start  bytea
)
    returns bytea
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_ciphertext bytea := substr(p_sealed, 39, greatest(octet_length(p_sealed) - 70, 0));
begin
    if llm._has_right_tag(
        @extschema:pgcrypto@.hmac(p_start || v_ciphertext, substr(p_keys, 33, 32), 'sha256'::text),
        substr(p_sealed, greatest(octet_length(p_sealed) - 31, 39)),
        p_start
    ) then
        return @extschema:pgcrypto@.decrypt_iv(v_ciphertext, substr(p_keys, 1, 32), substr(p_start, 23, 16), 'aes-cbc/pad:pkcs'::text);
    end if;
    return null;
end
$$;

comment on function llm._unseal(bytea, bytea, bytea) is
'What llm._seal() was given, after its tag was checked against what the ciphertext must be bound to. Errors: as llm._has_right_tag.';


create function llm._tenant_keys(
    p_wrapped bytea,
    p_start   bytea
)
    returns bytea
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    return @extschema:pgcrypto@.decrypt_iv(
        substr(p_wrapped, 39, 80), llm._unwrapping_key(p_wrapped, p_start), substr(p_start, 23, 16), 'aes-cbc/pad:pkcs'::text
    );
end
$$;

comment on function llm._tenant_keys(bytea, bytea) is
'The unwrapped tenant key.';


create function llm._data_keys(
    p_chain bytea[]
)
    returns bytea
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    return llm._unseal(llm._tenant_keys(p_chain[2], p_chain[3]), p_chain[4], p_chain[5]);
end
$$;

comment on function llm._data_keys(bytea[]) is
'The unwrapped data key of a chain.';


-- security definer: an application encrypts, and must not get at keys.
create function llm.encrypt_data(
    p_data       text,
    p_encryption llm.encryption default null,
    p_table      text default '',
    p_column     text default '',
    p_row        text default ''
)
    returns bytea
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_chain bytea[];
begin
    if p_data is null then
        return null;
    end if;
    v_chain := llm._key_chain_to_encrypt(
        llm._claimed_tenant(), p_encryption.algorithm, p_encryption.key_size, p_encryption.key_id, p_encryption.use_compression,
        p_table, p_column, p_row
    );
    if p_encryption.use_compression then
        return llm._seal(llm._data_keys(v_chain), llm._deflated(convert_to(p_data, 'UTF8'::name)), v_chain[1]);
    end if;
    return llm._seal(llm._data_keys(v_chain), convert_to(p_data, 'UTF8'::name), v_chain[1]);
end
$$;

alter function llm.encrypt_data(text, llm.encryption, text, text, text) owner to llm_owner;

comment on function llm.encrypt_data(text, llm.encryption, text, text, text) is
'Encrypts for the current tenant, and binds the result to it and to a place: llm.decrypt_data() must be told the same. p_data: any text, null
gives null; p_encryption: how, null for the defaults; p_table, p_column, p_row: where it will be stored. Returns 70 bytes more than the text,
padded to 16. Errors: invalid_parameter_value for an unsupported algorithm; undefined_object for an unknown key; object_not_in_prerequisite_state for a
revoked key, or without a master key or a tenant; config_file_error when the master key is missing, unsafe or wrong.';


-- security definer: an application decrypts, and must not get at keys.
create function llm.decrypt_data(
    p_encrypted_data bytea,
    p_encryption     llm.encryption default null,
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
    v_chain bytea[];
begin
    if p_encrypted_data is null then
        return null;
    end if;
    v_chain := llm._key_chain_to_decrypt(llm._claimed_tenant(), substr(p_encrypted_data, 1, 38), false, p_table, p_column, p_row);
    if get_byte(p_encrypted_data, 1) = 1 then
        return convert_from(llm._inflated(llm._unseal(llm._data_keys(v_chain), p_encrypted_data, v_chain[1])), 'UTF8'::name);
    end if;
    return convert_from(llm._unseal(llm._data_keys(v_chain), p_encrypted_data, v_chain[1]), 'UTF8'::name);
end
$$;

alter function llm.decrypt_data(bytea, llm.encryption, text, text, text) owner to llm_owner;

comment on function llm.decrypt_data(bytea, llm.encryption, text, text, text) is
'The text that llm.encrypt_data() was given, for the same tenant, table, column and row. p_encrypted_data: null gives null; p_encryption: not
needed, the ciphertext tells; what it names must fit. Errors: data_exception when the ciphertext was changed or belongs elsewhere, or is none;
undefined_object for an unknown key; object_not_in_prerequisite_state for a revoked key or a version that no longer decrypts; as llm.encrypt_data.';


-- Keys

create function llm._key_start(
    p_key     uuid,
    p_version integer,
    p_tenant  text,
    p_table   text,
    p_row     text
)
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.key_start(p_key, p_version, p_tenant, p_table, p_row)
$$;

comment on function llm._key_start(uuid, integer, text, text, text) is
'What a newly wrapped key begins with and is bound to. p_key, p_version: the wrapping key; p_table, p_row: where it will be.';


create function llm._start_of_key(
    p_wrapped bytea,
    p_tenant  text,
    p_table   text,
    p_row     text
)
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.start_of_key(p_wrapped, p_tenant, p_table, p_row)
$$;

comment on function llm._start_of_key(bytea, text, text, text) is
'What a wrapped key begins with and must be bound to.';


create function llm._add_tenant_secret(
    p_master_version integer,
    p_tenant_key     uuid
)
    returns void
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import key_store
key_store.add_tenant_secret(p_master_version, p_tenant_key)
$$;

comment on function llm._add_tenant_secret(integer, uuid) is
'Makes the secret of a new tenant key in the key store, where there is one.';


create function llm._key_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
begin
    perform llm._require_storage();
    v_tenant := llm.current_tenant();
    -- Asked from within security definer functions, where the current role is llm_owner.
    if v_tenant is null
        and not pg_has_role(coalesce(nullif(current_setting('role'), 'none'), session_user)::name, 'llm_admin'::name, 'usage'::text)
    then
        raise exception 'no tenant is set'
            using errcode = 'object_not_in_prerequisite_state',
                  detail = 'Without a tenant only llm_admin may use keys: the global ones.',
                  hint = 'Run: select llm.set_tenant(''…''); as the first statement of the transaction, or llm.bind_role() for the role.';
    end if;
    return coalesce(v_tenant, '*');
end
$$;

comment on function llm._key_tenant() is
'The tenant whose keys this transaction may use; * (global) for llm_admin without a tenant. Errors: object_not_in_prerequisite_state.';


create function llm._key_to_cache(
    p_tenant text,
    p_key    uuid
)
    returns table (
        key_id                 text,
        version                integer,
        min_decryption_version integer,
        active                 boolean,
        tenant_key_id          text,
        tenant_key             bytea,
        versions               integer[],
        wrapped                bytea[]
    )
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm._require_storage();
    return query
        select
            k.key_id::text,
            k.version,
            k.min_decryption_version,
            k.revoked_at is null,
            t.id::text,
            t.wrapped,
            array(select v.version from llm.data_key_versions v where v.tenant_id = k.tenant_id and v.key_id = k.key_id order by v.version),
            array(select v.wrapped from llm.data_key_versions v where v.tenant_id = k.tenant_id and v.key_id = k.key_id order by v.version)
        from llm.data_keys k
        join llm.tenant_keys t on t.tenant_id = k.tenant_id and t.id = k.tenant_key_id
        where k.tenant_id = p_tenant
            and case when p_key is null then k.kind = 'default' and t.shredded_at is null else k.key_id = p_key end;
end
$$;

comment on function llm._key_to_cache(text, uuid) is
'A key of a tenant, null for its default key, with all its versions as they are wrapped.';


create function llm._tenant_key(
    p_tenant text
)
    returns uuid
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_id      uuid;
    v_master  integer;
    v_start   bytea;
    v_wrapped bytea;
begin
    select t.id into v_id from llm.tenant_keys t where t.tenant_id = p_tenant and t.shredded_at is null;
    if found then
        return v_id;
    end if;
    -- One at a time, lest a secret be made for a key that loses.
    perform pg_advisory_xact_lock(hashtext('llm.tenant_keys'::text), hashtext(p_tenant));
    select t.id into v_id from llm.tenant_keys t where t.tenant_id = p_tenant and t.shredded_at is null;
    if found then
        return v_id;
    end if;
    select max(m.version) into v_master from llm.master_keys m;
    if v_master is null then
        raise exception 'no master key is configured'
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'As a superuser run: select llm.add_master_key(''/a/directory/outside/the/data/directory'');';
    end if;
    v_id := gen_random_uuid();
    perform llm._add_tenant_secret(v_master, v_id);
    v_start := llm._key_start(v_id, v_master, p_tenant, 'llm.tenant_keys'::text, v_id::text);
    v_wrapped := llm._seal(llm._wrapping_keys(v_start), llm._new_key(), v_start);
    insert into llm.tenant_keys (tenant_id, id, master_version, wrapped) values (p_tenant, v_id, v_master, v_wrapped);
    return v_id;
end
$$;

comment on function llm._tenant_key(text) is
'The key in use that wraps a tenant''s data keys; made if there is none. Errors: object_not_in_prerequisite_state without a master key.';


create function llm._add_key_version(
    p_tenant  text,
    p_key     uuid,
    p_version integer
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant_key       uuid;
    v_tenant_key_blob  bytea;
    v_tenant_key_start bytea;
    v_start            bytea;
    v_wrapped          bytea;
begin
    select t.id, t.wrapped
    into strict v_tenant_key, v_tenant_key_blob
    from llm.data_keys k
    join llm.tenant_keys t on t.tenant_id = k.tenant_id and t.id = k.tenant_key_id
    where k.tenant_id = p_tenant
        and k.key_id = p_key;
    v_tenant_key_start := llm._start_of_key(v_tenant_key_blob, p_tenant, 'llm.tenant_keys'::text, v_tenant_key::text);
    v_start := llm._key_start(v_tenant_key, p_version, p_tenant, 'llm.data_key_versions'::text, p_key::text);
    v_wrapped := llm._seal(
        llm._tenant_keys(v_tenant_key_blob, v_tenant_key_start), llm._new_key(), v_start
    );
    insert into llm.data_key_versions (tenant_id, key_id, version, wrapped) values (p_tenant, p_key, p_version, v_wrapped);
end
$$;

comment on function llm._add_key_version(text, uuid, integer) is
'Makes a version of a data key.';


create function llm._make_key(
    p_tenant     text,
    p_kind       text,
    p_expires_at timestamptz
)
    returns uuid
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant_key uuid := llm._tenant_key(p_tenant);
    v_key        uuid := llm.uuid_v7();
begin
    insert into llm.data_keys (tenant_id, key_id, tenant_key_id, kind, expires_at)
    values (p_tenant, v_key, v_tenant_key, p_kind, p_expires_at)
    on conflict do nothing;
    if found then
        perform llm._add_key_version(p_tenant, v_key, 1);
        insert into llm.key_events (tenant_id, key_id, event, details) values (p_tenant, v_key, 'made', jsonb_build_object('kind', p_kind));
    end if;
    return v_key;
end
$$;

comment on function llm._make_key(text, text, timestamptz) is
'Makes a key; of the kinds default and index a tenant has one.';


-- security definer: raising words is not for those who write.
create function llm._tenant_keys_coherence()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op <> 'INSERT' then
        perform llm._coherence_raise('data_keys'::text, array[old.tenant_id], pg_current_xact_id());
    end if;
    if tg_op <> 'DELETE' then
        perform llm._coherence_raise('data_keys'::text, array[new.tenant_id], pg_current_xact_id());
    end if;
    return coalesce(new, old);
end
$$;

alter function llm._tenant_keys_coherence() owner to llm_owner;

comment on function llm._tenant_keys_coherence() is
'Trigger of the tables with keys: caches forget what they know of the tenant''s keys.';


select llm._grant_execute(
    array['llm_owner'],
    '_key_chain_to_encrypt', '_key_chain_to_decrypt', '_wrapping_keys', '_unwrapping_key', '_tenant_keys', '_new_key', '_has_right_tag', '_deflated', '_inflated', '_seal', '_unseal',
    '_data_keys', '_key_start', '_start_of_key', '_add_tenant_secret', '_key_tenant', '_key_to_cache', '_tenant_key', '_add_key_version', '_make_key'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'encrypt_data', 'decrypt_data'
);
