-- Refuses a schema or roles that somebody else prepared, then makes the roles. Runs before anything else is created.
--
-- Whoever owns the schema, or an object in it, could add overloads and operators that our functions would call as superuser
-- (CVE-2022-2625 and its kin); whoever administers a role could grant himself everything that we grant to it.

do $guard$
declare
    v_offence text;
begin
    if current_setting('server_version_num')::integer < 170000 then
        raise exception 'pg_llm needs PostgreSQL 17 or newer, this is %', current_setting('server_version')
            using errcode = 'feature_not_supported',
                  hint = 'Upgrade the server first.';
    end if;

    select format('schema llm belongs to %I, who is not a superuser', n.nspowner::regrole)
    into v_offence
    from pg_namespace n
    join pg_roles r on r.oid = n.nspowner
    where n.nspname = 'llm'
        and not r.rolsuper;

    if v_offence is null then
        select format('%s may create objects in schema llm',
                      case a.grantee when 0 then 'PUBLIC' else a.grantee::regrole::text end)
        into v_offence
        from pg_namespace n
        cross join aclexplode(n.nspacl) a
        left join pg_roles r on r.oid = a.grantee
        where n.nspname = 'llm'
            and a.privilege_type = 'CREATE'
            and r.rolsuper is not true
            and a.grantee is distinct from to_regrole('llm_owner')
        limit 1;
    end if;

    -- What an earlier installation kept is relations and types of llm_owner; anything else is foreign.
    if v_offence is null then
        select format('schema llm holds %s, which belongs to %I', pg_describe_object(o.class, o.object, 0), pg_get_userbyid(o.owner))
        into v_offence
        from (
            select 'pg_class'::regclass as class, oid as object, relowner as owner, relnamespace as namespace from pg_class
            union all select 'pg_type'::regclass, oid, typowner, typnamespace from pg_type
            union all select 'pg_proc'::regclass, oid, proowner, pronamespace from pg_proc
            union all select 'pg_operator'::regclass, oid, oprowner, oprnamespace from pg_operator
            union all select 'pg_opclass'::regclass, oid, opcowner, opcnamespace from pg_opclass
            union all select 'pg_opfamily'::regclass, oid, opfowner, opfnamespace from pg_opfamily
            union all select 'pg_collation'::regclass, oid, collowner, collnamespace from pg_collation
            union all select 'pg_conversion'::regclass, oid, conowner, connamespace from pg_conversion
            union all select 'pg_ts_config'::regclass, oid, cfgowner, cfgnamespace from pg_ts_config
            union all select 'pg_ts_dict'::regclass, oid, dictowner, dictnamespace from pg_ts_dict
            union all select 'pg_ts_parser'::regclass, oid, 10, prsnamespace from pg_ts_parser
            union all select 'pg_ts_template'::regclass, oid, 10, tmplnamespace from pg_ts_template
            union all select 'pg_statistic_ext'::regclass, oid, stxowner, stxnamespace from pg_statistic_ext
        ) o
        where o.namespace = to_regnamespace('llm')
            and (o.owner is distinct from to_regrole('llm_owner')
                 or o.class not in ('pg_class'::regclass, 'pg_type'::regclass, 'pg_statistic_ext'::regclass))
        order by 1
        limit 1;
    end if;

    if v_offence is not null then
        raise exception 'pg_llm is not installed: %', v_offence
            using errcode = 'insufficient_privilege',
                  hint = 'Move what schema llm holds elsewhere and drop the schema, or let a superuser own it alone.';
    end if;
end
$guard$;

do $roles$
declare
    v_role    text;
    v_offence text;
begin
    foreach v_role in array array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader', 'llm_auditor'] loop
        if to_regrole(v_role) is null then
            continue;
        end if;

        select case
                   when r.rolcanlogin or r.rolsuper or r.rolcreaterole or r.rolcreatedb or r.rolreplication or r.rolbypassrls
                       then 'it has attributes beyond NOLOGIN'
                   when exists (select from pg_auth_members m where m.member = r.oid)
                       then 'it is a member of another role'
                   when v_role = 'llm_owner' and exists (select from pg_auth_members m where m.roleid = r.oid)
                       then 'it has members'
                   when exists (select from pg_auth_members m join pg_roles g on g.oid = m.grantor
                                where m.roleid = r.oid and not g.rolsuper)
                       then 'a role that is not a superuser granted it'
                   when exists (select from pg_auth_members m join pg_roles a on a.oid = m.member
                                where m.roleid = r.oid and m.admin_option and not a.rolsuper)
                       then 'a role that is not a superuser administers it'
               end
        into v_offence
        from pg_roles r
        where r.rolname = v_role;

        if v_offence is not null then
            raise exception 'pg_llm is not installed: role % exists, but %', v_role, v_offence
                using errcode = 'insufficient_privilege',
                      hint = format('Drop role %s, or make it a plain NOLOGIN role that only superusers administer.', v_role);
        end if;
    end loop;

    foreach v_role in array array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader', 'llm_auditor'] loop
        if to_regrole(v_role) is null then
            execute format('create role %I nologin', v_role);
        end if;
    end loop;
end
$roles$;

grant usage on schema llm to llm_owner, llm_admin, llm_app, llm_reader, llm_auditor;
-- For llm.create_collection(): nobody is a member of llm_owner.
grant create on schema llm to llm_owner;
