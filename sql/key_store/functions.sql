create function llm._master_keys_guard()
    returns trigger
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if not (select rolsuper from pg_roles where rolname = current_user) then
        raise exception 'role % may not change llm.master_keys', current_user
            using errcode = 'insufficient_privilege',
                  detail = 'What stands there makes the server read files and run programs.',
                  hint = 'Let a superuser call llm.add_master_key().';
    end if;
    return coalesce(new, old);
end
$$;

comment on function llm._master_keys_guard() is
'Trigger of llm.master_keys: only superusers write it, whoever may have been granted what. Errors: insufficient_privilege.';


-- security definer: writers of the table must not be able to raise words as they please.
create function llm._master_keys_coherence()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op <> 'INSERT' then
        perform llm._coherence_raise('master_keys'::text, array[old.version::text], pg_current_xact_id());
    end if;
    if tg_op <> 'DELETE' then
        perform llm._coherence_raise('master_keys'::text, array[new.version::text], pg_current_xact_id());
    end if;
    return coalesce(new, old);
end
$$;

alter function llm._master_keys_coherence() owner to llm_owner;

comment on function llm._master_keys_coherence() is
'Trigger of llm.master_keys: caches forget the changed version.';


create function llm._master_key(
    p_version integer
)
    returns table (provider text, location text, command text[], fingerprint bytea)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query select m.provider, m.location, m.command, m.fingerprint from llm.master_keys m where m.version = p_version;
    if not found then
        raise exception 'master key version % is missing in llm.master_keys', p_version
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Add it again with llm.add_master_key(), and its key in the key store.';
    end if;
end
$$;

comment on function llm._master_key(integer) is
'Where a version of the master key is. Errors: object_not_in_prerequisite_state when there is no such version.';


create function llm.add_master_key(
    p_location text default null,
    p_command  text[] default null
)
    returns integer
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_version integer;
begin
    perform llm._require_storage();
    if (p_location is null) = (p_command is null) then
        raise exception 'a master key needs either a location or a command'
            using errcode = 'invalid_parameter_value',
                  hint = 'p_location: a directory outside the data directory; p_command: a program that prints the key, and its arguments.';
    end if;
    if not (select rolsuper from pg_roles where rolname = current_user) then
        raise exception 'role % may not add a master key', current_user
            using errcode = 'insufficient_privilege',
                  hint = 'Let a superuser do it: the server will read that file or run that program.';
    end if;
    lock table llm.master_keys in share row exclusive mode;
    select coalesce(max(m.version), 0) + 1 into v_version from llm.master_keys m;
    insert into llm.master_keys (version, provider, location, command, fingerprint)
    select v_version, k.provider, k.location, k.command, k.fingerprint
    from llm._prepare_master_key(v_version, p_location, p_command) k;
    return v_version;
end
$$;

comment on function llm.add_master_key(text, text[]) is
'Adds the next version of the master key; new tenants'' keys are wrapped with it from now on, and llm.rotate_master_key() wraps the others with it.
p_location: a directory of the server''s own user with mode 0700, outside the data directory; the file master.<version> in it is made if it is
missing. Keep a copy of it elsewhere: without it what was encrypted is lost. p_command: a program with its arguments, called with the
version as the last one, which prints the key as 64 hexadecimal digits. For superusers. Returns the version. Errors: config_file_error when the key
is missing, empty, unsafe or malformed; invalid_parameter_value; insufficient_privilege.';


create function llm._prepare_master_key(
    p_version  integer,
    p_location text,
    p_command  text[]
)
    returns table (provider text, location text, command text[], fingerprint bytea)
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import key_store
return key_store.prepare(p_version, p_location, p_command)
$$;

comment on function llm._prepare_master_key(integer, text, text[]) is
'Checks the place of a new master key, makes the key if it is a file that is missing, and returns what llm.master_keys keeps.';


select llm._grant_execute(
    array['llm_owner'],
    '_master_key'
);
