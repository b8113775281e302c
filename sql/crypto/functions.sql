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
-- logs. So what touches keys contains no statement, and Python, which touches them too, runs none. PL/Python keeps the arguments of a function's last
-- call, by name and in args, for as long as the session lasts: functions that are given secrets have no names for them, and empty args.

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
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.chain_to_encrypt(p_tenant, p_algorithm, p_key_size, p_key_id, p_compressed, p_table, p_column, p_row)
$$;

comment on function llm._key_chain_to_encrypt(text, text, integer, text, boolean, text, text, text) is
'The chain of keys that a new ciphertext takes: 32 bytes, the key that decrypts the tenant key, derived from the key store''s on each call; the tenant
key''s initialization vector (16 bytes) and ciphertext (80); the data key''s (16, 80) and tag (32); the length (2) of what that tag is over, and that.
Then what the new ciphertext begins with and is bound to. Errors: as llm.encrypt_data.';


create function llm._key_chain_to_decrypt(
    p_tenant         text,
    p_head           bytea,
    p_key_id         text,
    p_is_break_glass boolean,
    p_table          text,
    p_column         text,
    p_row            text
)
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.chain_to_decrypt(p_tenant, p_head, p_key_id, p_is_break_glass, p_table, p_column, p_row)
$$;

comment on function llm._key_chain_to_decrypt(text, bytea, text, boolean, text, text, text) is
'As llm._key_chain_to_encrypt() for a ciphertext that begins with p_head. p_key_id: the key that it must be of, null for any. Errors: as
llm.decrypt_data.';


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
'The key that decrypts a wrapped tenant key, after its tag was checked. Errors: data_exception; config_file_error when the master key is not the one
that it was.';


create function llm._checked_key(bytea, bytea, bytea)
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.checked_key(args)
$$;

comment on function llm._checked_key(bytea, bytea, bytea) is
'The half of keys that decrypts, after the tag was checked by the other half. Arguments: the keys, what the tag is over, the tag. Errors:
data_exception.';


create function llm._deflated(bytea)
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.deflated(args)
$$;

comment on function llm._deflated(bytea) is
'Compressed (RFC 1950).';


create function llm._inflated(bytea)
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.inflated(args)
$$;

comment on function llm._inflated(bytea) is
'What llm._deflated() was given.';


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


-- Not pinned: inlined into llm._sealed() and llm._unsealed(), fully qualified; a call would take a tenth of theirs.
create function llm._data_keys(
    p_chain bytea
)
    returns bytea
    language sql
    volatile
as $$
    select @extschema:pgcrypto@.decrypt_iv(
        pg_catalog.substr(p_chain, 145, 80),
        llm._checked_key(
            @extschema:pgcrypto@.decrypt_iv(
                pg_catalog.substr(p_chain, 49, 80), pg_catalog.substr(p_chain, 1, 32), pg_catalog.substr(p_chain, 33, 16),
                'aes-cbc/pad:pkcs'::pg_catalog.text
            ),
            pg_catalog.substr(
                p_chain, 259, (256 operator(pg_catalog.*) pg_catalog.get_byte(p_chain, 256)) operator(pg_catalog.+) pg_catalog.get_byte(p_chain, 257)
            ),
            pg_catalog.substr(p_chain, 225, 32)
        ),
        pg_catalog.substr(p_chain, 129, 16),
        'aes-cbc/pad:pkcs'::pg_catalog.text
    )
$$;

comment on function llm._data_keys(bytea) is
'The unwrapped data key of a chain. Errors: data_exception.';


-- Not pinned: as llm._data_keys(). p_chain is a variable, or it would not be inlined.
create function llm._sealed(
    p_chain bytea,
    p_plain bytea
)
    returns bytea
    language sql
    volatile
as $$
    select llm._seal(
        llm._data_keys(p_chain), p_plain,
        pg_catalog.substr(
            p_chain, 259 operator(pg_catalog.+) (256 operator(pg_catalog.*) pg_catalog.get_byte(p_chain, 256))
            operator(pg_catalog.+) pg_catalog.get_byte(p_chain, 257)
        )
    )
$$;

comment on function llm._sealed(bytea, bytea) is
'The ciphertext of p_plain, by its chain of keys.';


create function llm._unsealed(
    p_chain       bytea,
    p_sealed      bytea,
    p_is_inflated boolean
)
    returns bytea
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_ciphertext bytea := substr(p_sealed, 39, greatest(octet_length(p_sealed) - 70, 0));
    v_plain      bytea := @extschema:pgcrypto@.decrypt_iv(
        v_ciphertext,
        llm._checked_key(
            llm._data_keys(p_chain),
            substr(p_chain, 259 + 256 * get_byte(p_chain, 256) + get_byte(p_chain, 257)) || v_ciphertext,
            substr(p_sealed, greatest(octet_length(p_sealed) - 31, 39))
        ),
        substr(p_sealed, 23, 16),
        'aes-cbc/pad:pkcs'::text
    );
begin
    return case when p_is_inflated and get_byte(p_sealed, 1) = 1 then llm._inflated(v_plain) else v_plain end;
end
$$;

comment on function llm._unsealed(bytea, bytea, boolean) is
'What llm._sealed() was given, after the tag was checked. p_is_inflated: without the compression, if there is one. Errors: data_exception.';


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
    v_chain bytea;
begin
    if p_data is null then
        return null;
    end if;
    v_chain := llm._key_chain_to_encrypt(
        llm._claimed_tenant(), p_encryption.algorithm, p_encryption.key_size, p_encryption.key_id, p_encryption.use_compression,
        p_table, p_column, p_row
    );
    return llm._sealed(
        v_chain,
        case when p_encryption.use_compression then llm._deflated(convert_to(p_data, 'UTF8'::name)) else convert_to(p_data, 'UTF8'::name) end
    );
end
$$;

alter function llm.encrypt_data(text, llm.encryption, text, text, text) owner to llm_owner;

comment on function llm.encrypt_data(text, llm.encryption, text, text, text) is
'Encrypts for the current tenant, and binds the result to it and to a place: llm.decrypt_data() must be told the same. p_data: any text, null gives
null; p_encryption: how, null for the defaults; p_table, p_column, p_row: where it will be stored. Returns 70 bytes more than the text, padded to 16.
Errors: invalid_parameter_value for an unsupported algorithm; undefined_object for an unknown key; object_not_in_prerequisite_state for a revoked
key, or without a master key or a tenant; config_file_error when the master key is missing, unsafe or wrong.';


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
begin
    if p_encrypted_data is null then
        return null;
    end if;
    return convert_from(
        llm._unsealed(
            llm._key_chain_to_decrypt(
                llm._claimed_tenant(), substr(p_encrypted_data, 1, 38), p_encryption.key_id, false, p_table, p_column, p_row
            ),
            p_encrypted_data, true
        ),
        'UTF8'::name
    );
end
$$;

alter function llm.decrypt_data(bytea, llm.encryption, text, text, text) owner to llm_owner;

comment on function llm.decrypt_data(bytea, llm.encryption, text, text, text) is
'The text that llm.encrypt_data() was given, for the same tenant, table, column and row. p_encrypted_data: null gives null; p_encryption: not
needed, the ciphertext tells; what it names must fit. Errors: data_exception when the ciphertext was changed or belongs elsewhere, or is none;
undefined_object for an unknown key; object_not_in_prerequisite_state for a revoked key or a version that no longer decrypts; as llm.encrypt_data.';


create function llm._blind_index_chain(
    p_tenant text,
    p_table  text,
    p_column text
)
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.chain_to_index(p_tenant, p_table, p_column)
$$;

comment on function llm._blind_index_chain(text, text, text) is
'The chain of the tenant''s key for indexes; what the index key of a column is derived with (HKDF-Expand, RFC 5869).';


create function llm._index_key(
    p_chain bytea
)
    returns bytea
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    return @extschema:pgcrypto@.hmac(
        substr(p_chain, 259 + 256 * get_byte(p_chain, 256) + get_byte(p_chain, 257)), substr(llm._data_keys(p_chain), 33, 32), 'sha256'::text
    );
end
$$;

comment on function llm._index_key(bytea) is
'The index key of a column, by llm._blind_index_chain().';


create function llm._normalized(text, text)
    returns bytea
    language plpython3u
    immutable
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.normalized(args)
$$;

comment on function llm._normalized(text, text) is
'A value as llm.blind_index() compares it. Errors: invalid_parameter_value for an unknown normalization.';


-- security definer: an application searches, and must not get at keys.
create function llm.blind_index(
    p_value         text,
    p_table         text,
    p_column        text,
    p_bits          integer default 32,
    p_normalization text default 'casefold'
)
    returns bytea
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_bits is null or p_bits not between 8 and 256 or p_bits % 8 <> 0 then
        raise exception 'a blind index of % bits', coalesce(p_bits::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Take 8, 16, … 256: the fewer, the less it tells, and the more rows a search decrypts in vain.';
    end if;
    if p_value is null then
        return null;
    end if;
    return substr(
        @extschema:pgcrypto@.hmac(
            llm._normalized(p_value, p_normalization),
            llm._index_key(llm._blind_index_chain(llm._claimed_tenant(), p_table, p_column)),
            'sha256'::text
        ),
        1,
        p_bits / 8
    );
end
$$;

alter function llm.blind_index(text, text, text, integer, text) owner to llm_owner;

comment on function llm.blind_index(text, text, text, integer, text) is
'What to store and to index beside a ciphertext, so that equal values can be found: HMAC-SHA256 by a key of the tenant and the column, the first
p_bits of it. p_value: null gives null; p_table, p_column: what it is an index of; p_bits: 8 to 256 in steps of 8; p_normalization: casefold (Unicode
NFKC, case folded, without blanks at the ends), digits (only those) or none. It is the same after every rotation. It tells which rows have equal
values: not for columns with few of them. Errors: invalid_parameter_value; as llm.encrypt_data.';


select llm._grant_execute(
    array['llm_owner'],
    '_key_chain_to_encrypt', '_key_chain_to_decrypt', '_blind_index_chain', '_wrapping_keys', '_unwrapping_key', '_checked_key', '_tenant_keys',
    '_deflated', '_inflated', '_normalized', '_seal', '_sealed', '_unsealed', '_index_key', '_data_keys'
);
select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'encrypt_data', 'decrypt_data', 'blind_index'
);
