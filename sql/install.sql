-- The end of an installation: sets the storage up, then lets go of it, so that tables with user data are nobody's members.

do $install$
declare
    v_member record;
begin
    perform llm._boot();

    if to_regclass('llm.schema_migrations') is not null then
        perform llm._forget_setup();
        raise warning 'storage of an earlier pg_llm was kept'
            using hint = 'Run: select llm.setup();';
        return;
    end if;

    -- pg_dump's scripts run with row_security off, and bring the tables themselves.
    if not current_setting('row_security')::boolean then
        raise warning 'pg_llm has no storage yet: row_security is off, as in a restore'
            using hint = 'If this is not a restore, run: select llm.setup();';
        return;
    end if;

    perform llm.setup();

    for v_member in
        select i.type, i.identity
        from pg_depend d
        join pg_extension e on e.oid = d.refobjid
        join pg_class c on c.oid = d.objid
        cross join pg_identify_object(d.classid, d.objid, 0) i
        where d.refclassid = 'pg_extension'::regclass
            and d.classid = 'pg_class'::regclass
            and d.deptype = 'e'
            and e.extname = 'pg_llm'
            and c.relkind <> 'c'
    loop
        execute format('alter extension pg_llm drop %s %s', v_member.type, v_member.identity);
    end loop;
end
$install$;
