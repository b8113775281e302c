create function llm._storage_scripts()
    returns table (ordinal integer, kind text, name text, version text, checksum text, script text)
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
as $scripts$
    values
        @STORAGE_SCRIPTS@
$scripts$;

comment on function llm._storage_scripts() is
'What the storage is made of: each subsystem''s tables.sql, then the numbered migrations (kind up and down), in order.';


create function llm._storage_checksum()
    returns text
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return '@STORAGE_CHECKSUM@';
end
$$;

comment on function llm._storage_checksum() is
'The SHA-256 of all checksums in llm._storage_scripts(): what llm.setup() records when it is done.';
