create function llm._boot()
    returns void
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
import ctypes
import importlib.util
import os
import sys

# The running server's $libdir. A path fixed at build time would not survive pg_upgrade to another major version.
libdir = os.fsdecode((ctypes.c_char * 1024).in_dll(ctypes.CDLL(None), "pkglib_path").value)
directory = os.path.join(libdir, "pg_llm", "@VERSION@")
module = "pg_llm_" + "@VERSION@".replace(".", "_")
spec = importlib.util.spec_from_file_location(
    module, os.path.join(directory, "__init__.py"), submodule_search_locations=[directory]
)
package = importlib.util.module_from_spec(spec)
sys.modules[module] = package
try:
    spec.loader.exec_module(package)
except OSError as error:
    del sys.modules[module]
    plpy.error(
        f"the Python package of pg_llm @VERSION@ cannot be read: {error}",
        hint="On this server run make install from the sources of pg_llm @VERSION@.",
        sqlstate="58P01",
    )
GD["pg_llm@@VERSION@"] = package
$$;

comment on function llm._boot() is
'Loads the Python package that belongs to this version of the extension and keeps it in GD.';


create function llm._grant_execute(
    p_roles              text[],
    variadic p_functions text[]
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_function regprocedure;
    v_role     text;
begin
    if (select count(*) from pg_proc where pronamespace = 'llm'::regnamespace and proname = any (p_functions)) <> cardinality(p_functions) then
        raise exception 'not every function to be granted exists once: %', p_functions
            using errcode = 'undefined_function',
                  hint = 'Correct the list at the end of functions.sql.';
    end if;

    for v_function in
        select p.oid
        from pg_proc p
        where p.pronamespace = 'llm'::regnamespace
            and p.proname = any (p_functions)
            and p.proacl is null
    loop
        execute format('revoke all on routine %s from public', v_function);
        foreach v_role in array p_roles loop
            execute format('grant execute on routine %s to %I', v_function, v_role);
        end loop;
    end loop;
end
$$;

comment on function llm._grant_execute(text[], text[]) is
'Lets roles execute functions that are new, and PUBLIC not. Those of an earlier version keep what their users granted and revoked: a GRANT in an
update script would make pg_dump take that for our own.';


create function llm.version()
    returns text
    language sql
    immutable
    parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select '@VERSION@'
$$;

comment on function llm.version() is
'The version of the installed code, such as 0.1.0. The storage can lag behind it: see llm.schema_migrations.';


create function llm.uuid_v7()
    returns uuid
    language plpgsql
    volatile
    parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_microseconds bigint;
    v_bytes        bytea;
begin
    if current_setting('server_version_num')::integer >= 180000 then
        return uuidv7();
    end if;
    -- RFC 9562 section 6.2, method 3: the fraction of the millisecond fills the 12 bits after the version.
    v_microseconds := extract(epoch from clock_timestamp()) * 1000000;
    v_bytes := substring(int8send(v_microseconds / 1000) from 3)
        || substring(int8send(28672 + (v_microseconds % 1000) * 4096 / 1000) from 7)
        || substring(uuid_send(gen_random_uuid()) from 9);
    return encode(v_bytes, 'hex')::uuid;
end
$$;

comment on function llm.uuid_v7() is
'A new UUID of version 7 (RFC 9562): its order is the order of time, to the microsecond. On PostgreSQL 18 the server''s own.';


create function llm.clean_text(
    p_bytes bytea
)
    returns text
    language plpython3u
    immutable
    strict
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import text
return text.clean_bytes(p_bytes)
$$;

comment on function llm.clean_text(bytea) is
'Text that PostgreSQL can store, from UTF-8 bytes as a model or a PDF gave them. Nothing is lost: NUL, lone surrogates, bytes
that are not UTF-8, and the mark U+241B itself become U+241B and four hexadecimal digits; llm.original_bytes turns them back.
p_bytes: any bytes. Result: text without NUL.';


create function llm.original_bytes(
    p_text text
)
    returns bytea
    language plpython3u
    immutable
    strict
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import text
return text.original_bytes(p_text)
$$;

comment on function llm.original_bytes(text) is
'The bytes that llm.clean_text was given. p_text: its result. Text without a mark comes back as its own UTF-8 bytes.';


create function llm.clean_jsonb(
    p_json text
)
    returns jsonb
    language plpython3u
    immutable
    strict
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import text
return text.clean_json(p_json)
$$;

comment on function llm.clean_jsonb(text) is
'jsonb from a JSON text whose strings may escape NUL (\u0000) or lone surrogates, which jsonb refuses (SQLSTATE 22P05). They are
marked as llm.clean_text marks them. p_json: one JSON value. Errors: invalid_text_representation when it is not JSON.';


create function llm._check_page(
    p_limit  bigint,
    p_offset bigint default 0
)
    returns void
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_limit < 0 or p_offset < 0 then
        raise exception 'a page of % rows after %', coalesce(p_limit::text, 'all'), coalesce(p_offset, 0)
            using errcode = 'invalid_parameter_value',
                  hint = 'p_limit and p_offset are not negative; p_limit is null for all.';
    end if;
end
$$;

comment on function llm._check_page(bigint, bigint) is
'Refuses a page that there cannot be. Errors: invalid_parameter_value.';


create function llm._in_hours(
    p_interval interval
)
    returns interval
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_interval <= '0' or p_interval > '10000 years' and isfinite(p_interval) then
        raise exception 'a duration of %', p_interval
            using errcode = 'invalid_parameter_value',
                  hint = 'Durations are positive, and at most 10000 years, or infinity.';
    end if;
    return case when isfinite(p_interval) then make_interval(secs => extract(epoch from p_interval)::double precision) else p_interval end;
end
$$;

comment on function llm._in_hours(interval) is
'The same duration without days and months, which are of different length in time zones with summer time: a day is 24 hours, a month 30 days.
Errors: invalid_parameter_value when it is not positive, or longer than 10000 years and not infinite.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader', 'llm_auditor'],
    '_boot', '_check_page', '_in_hours', 'version', 'uuid_v7', 'clean_text', 'original_bytes', 'clean_jsonb'
);
