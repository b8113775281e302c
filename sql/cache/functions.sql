create function llm.cache_size()
    returns bigint
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm.current_tenant();
begin
    if pg_is_in_recovery() then
        return 0;
    end if;
    return (
        select count(*)
        from llm.cache_entries e
        where e.tenant_id = v_tenant
            and num_nonnulls(e.value, e.bytes) = 1
            and e.expires_at > statement_timestamp()
    );
end
$$;

comment on function llm.cache_size() is
'How many entries the current tenant has in the cache; on a standby, which has none, 0.';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'cache_size'
);
