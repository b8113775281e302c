create type llm.check_result as (
    name    text,
    ok      boolean,
    detail  text,
    hint    text
);

comment on type llm.check_result is
'One check of llm.doctor(): ok, what was found, and what to do if it is not ok.';


create function llm.doctor()
    returns setof llm.check_result
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query select * from llm._doctor_server();
    return query select * from llm._doctor_storage();
    return query select * from llm._doctor_security();
    return query select * from llm._doctor_partitions();
    return query select * from llm._doctor_personal_data();
    return query select * from llm._doctor_keys();
    return query select * from llm._doctor_audit();
    return query select * from llm._doctor_vectors();
    return query select * from llm._doctor_python();
    return query select * from llm._doctor_coherence();
end
$$;

comment on function llm.doctor() is
'Checks the installation, one row a check: versions, settings, Python''s paths, storage, row-level security, privileges, keys, caches. A row that is
not ok says what to do. For llm_admin, llm_auditor and superusers.';


create function llm._doctor_server()
    returns setof llm.check_result
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_server integer := current_setting('server_version_num');
begin
    return query values
        (
            'PostgreSQL version',
            v_server >= 170011 and (v_server < 180000 or v_server >= 180001),
            current_setting('server_version'),
            'Install the newest minor release: 17 before 17.11 leaks through row-level security plans (CVE-2026-14666).'
        ),
        (
            'database encoding',
            getdatabaseencoding() = 'UTF8',
            getdatabaseencoding()::text,
            'Create the database with encoding UTF8: models write all of Unicode.'
        ),
        (
            'triggers fire',
            current_setting('session_replication_role') = 'origin',
            'session_replication_role is ' || current_setting('session_replication_role'),
            'Reset session_replication_role: history is not written while it is replica.'
        ),
        (
            'crash safety',
            current_setting('fsync')::boolean and current_setting('full_page_writes')::boolean,
            format('fsync is %s, full_page_writes is %s', current_setting('fsync'), current_setting('full_page_writes')),
            'Turn both on: what is committed must survive a crash.'
        ),
        (
            'parameters stay out of error logs',
            current_setting('log_parameter_max_length_on_error') = '0',
            'log_parameter_max_length_on_error is ' || current_setting('log_parameter_max_length_on_error'),
            'Set it to 0: parameters hold prompts, keys and personal data.'
        ),
        (
            'no forgotten prepared transaction',
            not exists (select from pg_prepared_xacts where prepared < now() - interval '1 hour'),
            (select count(*) || ' older than an hour' from pg_prepared_xacts where prepared < now() - interval '1 hour'),
            'Commit or roll back what pg_prepared_xacts lists: it keeps caches and vacuum from advancing.'
        );

    return query
        select
            'extension ' || r.name,
            e.extversion is not null and string_to_array(e.extversion, '.')::integer[] >= string_to_array(r.minimum, '.')::integer[],
            coalesce('version ' || e.extversion, 'not installed') || ', at least ' || r.minimum || ' is needed',
            format('Install a newer package, then run: alter extension %I update;', r.name)
        from (
            values ('vector', '0.8'), ('pg_partman', '5'), ('pgcrypto', '1.3'), ('pg_trgm', '1.6'), ('btree_gist', '1.7'), ('plpython3u', '1.0')
        ) r (name, minimum)
        left join pg_extension e on e.extname = r.name;
end
$$;

comment on function llm._doctor_server() is
'The part of llm.doctor() about the server and the extensions that pg_llm builds upon.';


create function llm._doctor_storage()
    returns setof llm.check_result
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_wrong text;
begin
    return query
        select
            'code version',
            e.extversion = llm.version(),
            format('extension %s, code %s', e.extversion, llm.version()),
            'Run: alter extension pg_llm update;'
        from pg_extension e
        where e.extname = 'pg_llm';

    begin
        perform llm._require_storage();
    exception
        when object_not_in_prerequisite_state then
            v_wrong := sqlerrm;
    end;
    return query select
        'storage version', v_wrong is null, coalesce(v_wrong, 'set up for ' || llm.version()), 'As a superuser run: select llm.setup();';

    if to_regclass('llm.schema_migrations') is not null then
        return query select
            'storage is of this server',
            llm._storage_is_of_this_server(),
            case when llm._storage_is_of_this_server() then 'set up here' else 'restored from another server' end,
            'As a superuser run: select llm.setup(); then watchers of configuration start again.';
    end if;

    select string_agg(c.oid::regclass::text, ', ' order by c.oid)
    into v_wrong
    from pg_class c
    where c.relnamespace = 'llm'::regnamespace
        and c.relkind <> 'c'
        and c.relowner <> 'llm_owner'::regrole;
    return query select
        'storage belongs to llm_owner', v_wrong is null, coalesce(v_wrong, 'every relation'), 'Move foreign relations out of schema llm.';

    select string_agg(format('%s on %s', t.tgname, t.tgrelid::regclass), ', ' order by t.oid)
    into v_wrong
    from pg_trigger t
    join pg_class c on c.oid = t.tgrelid
    where c.relnamespace = 'llm'::regnamespace
        and not t.tgisinternal
        and t.tgenabled <> case when t.tgname ~ '^(coherence|append_only|audit)' then 'A' else 'O' end;
    return query select
        'triggers are enabled',
        v_wrong is null,
        coalesce(v_wrong, 'all'),
        'Enable them (coherence…, append_only…, audit…: ENABLE ALWAYS), or run: select llm.setup(); caches are stale, history has gaps without.';

    if to_regclass('llm.tenant_roles') is not null then
        select string_agg(r.role_name, ', ' order by r.role_name)
        into v_wrong
        from llm.tenant_roles r
        where to_regrole(quote_ident(r.role_name)) is null;
        return query select
            'bound roles exist', v_wrong is null, coalesce(v_wrong, 'all in llm.tenant_roles'), 'Remove them: select llm.bind_role(role, null);';
    end if;
end
$$;

comment on function llm._doctor_storage() is
'The part of llm.doctor() about the storage.';


create function llm._doctor_security()
    returns setof llm.check_result
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_wrong text;
begin
    select string_agg(c.oid::regclass::text, ', ' order by c.oid)
    into v_wrong
    from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
    where c.relnamespace = 'llm'::regnamespace
        and c.relkind in ('r', 'p')
        and not (c.relrowsecurity and c.relforcerowsecurity
                 and (c.relispartition or exists (select from pg_policy p where p.polrelid = c.oid)));
    return query select
        'row-level security', v_wrong is null, coalesce(v_wrong, 'forced on every table with a tenant'), 'As a superuser run: select llm.setup();';

    select string_agg(c.oid::regclass::text, ', ' order by c.oid)
    into v_wrong
    from pg_class c
    where c.relnamespace = 'llm'::regnamespace
        and c.relkind = 'v'
        and not coalesce('security_invoker=true' = any (c.reloptions), false);
    return query select
        'views use their caller''s rights', v_wrong is null, coalesce(v_wrong, 'all'), 'Alter view … set (security_invoker = true);';

    -- What tables.sql says, and what there is.
    with designed as (
        select m[2] as relation, m[1] as policy
        from llm._storage_scripts() s
        cross join regexp_matches(s.script, 'create policy (\w+) on (llm\.\w+)', 'g') m
        where s.kind = 'tables'
        union
        select m[1], 'tenant_isolation'
        from llm._storage_scripts() s
        cross join regexp_matches(s.script, '_protect_tenant_table\(''(llm\.\w+)''', 'g') m
        where s.kind = 'tables'
        union
        select m[1], 'user_isolation'
        from llm._storage_scripts() s
        cross join regexp_matches(s.script, '_protect_user_rows\(''(llm\.\w+)''', 'g') m
        where s.kind = 'tables'
        union
        select c.oid::regclass::text, unnest(array['tenant_isolation', 'user_isolation', 'used_by_function'])
        from pg_class c where c.relnamespace = 'llm'::regnamespace and c.relkind = 'r' and c.relname ~ '^points_'
    ),
    present as (
        select p.polrelid::regclass::text as relation, p.polname::text as policy
        from pg_policy p
        join pg_class c on c.oid = p.polrelid
        where c.relnamespace = 'llm'::regnamespace
    )
    select string_agg(
        format('%s on %s is %s', policy, relation, case when d.policy is null then 'foreign' else 'missing' end), ', ' order by relation, policy
    )
    into v_wrong
    from designed d
    full join present p using (relation, policy)
    where d.policy is null
        or p.policy is null;
    return query select
        'policies are as designed', v_wrong is null, coalesce(v_wrong, 'all'), 'Drop what is foreign; as a superuser run: select llm.setup();';

    select string_agg(distinct o.name, ', ' order by o.name)
    into v_wrong
    from (
        select p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner)) from pg_proc p where p.pronamespace = 'llm'::regnamespace
        union all
        select c.oid::regclass::text, c.relacl from pg_class c where c.relnamespace = 'llm'::regnamespace
        union all
        select format('%s.%I', c.oid::regclass, a.attname), a.attacl
        from pg_attribute a
        join pg_class c on c.oid = a.attrelid
        where c.relnamespace = 'llm'::regnamespace
        union all
        select 'schema llm', n.nspacl from pg_namespace n where n.nspname = 'llm'
    ) o (name, acl)
    cross join aclexplode(o.acl) a
    where a.grantee = 0;
    return query select
        'nothing is granted to PUBLIC', v_wrong is null, coalesce(v_wrong, 'nothing in schema llm'), 'Revoke it: revoke all on … from public;';

    select string_agg(distinct c.oid::regclass::text, ', ')
    into v_wrong
    from pg_class c
    join pg_attribute t on t.attrelid = c.oid
    where c.relnamespace = 'llm'::regnamespace
        and c.relispartition
        and c.relkind in ('r', 'p')
        and (exists (select from aclexplode(c.relacl) a where a.grantee <> c.relowner) or t.attacl is not null);
    return query select
        'nothing is granted on partitions',
        v_wrong is null,
        coalesce(v_wrong, 'nothing'),
        'Revoke it: row-level security of the parent does not protect a partition that is named directly.';

    select string_agg(format('%s on %s to %s', a.privilege_type, c.oid::regclass, a.grantee::regrole), ', ')
    into v_wrong
    from pg_class c
    cross join aclexplode(c.relacl) a
    where c.relnamespace = 'llm'::regnamespace
        and c.relkind in ('r', 'p')
        and a.grantee <> c.relowner
        and a.privilege_type in ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN');
    return query select
        'nobody can go round row-level security', v_wrong is null, coalesce(v_wrong, 'nobody'), 'Revoke it: these privileges ignore policies.';

    select string_agg(p.oid::regprocedure::text, ', ' order by p.oid)
    into v_wrong
    from pg_proc p
    where p.pronamespace = 'llm'::regnamespace
        and (p.prosecdef and p.proowner <> 'llm_owner'::regrole
             or not p.prosecdef and p.proowner = 'llm_owner'::regrole
             or not (select rolsuper or rolname = 'llm_owner' from pg_roles where oid = p.proowner));
    return query select
        'functions have the right owner',
        v_wrong is null,
        coalesce(v_wrong, 'all'),
        'Security definer functions belong to llm_owner, all others to a superuser. Install pg_llm anew.';

    select string_agg(case a.grantee when 0 then 'PUBLIC' else a.grantee::regrole::text end, ', ')
    into v_wrong
    from pg_namespace n
    cross join aclexplode(n.nspacl) a
    left join pg_roles r on r.oid = a.grantee
    where n.nspname = 'llm'
        and a.privilege_type = 'CREATE'
        and not (coalesce(r.rolsuper, false) or a.grantee = 'llm_owner'::regrole);
    return query select
        'only superusers and llm_owner create in schema llm',
        v_wrong is null,
        coalesce(v_wrong, 'nobody else'),
        'Revoke it: an object put beside ours can be called in its place.';

    select string_agg(format('%s has member %s', m.roleid::regrole, m.member::regrole), ', ')
    into v_wrong
    from pg_auth_members m
    where m.roleid = 'llm_owner'::regrole;
    return query select
        'llm_owner has no members', v_wrong is null, coalesce(v_wrong, 'none'), 'Revoke it: members could change functions and storage.';
end
$$;

comment on function llm._doctor_security() is
'The part of llm.doctor() about row-level security and privileges.';


create function llm._doctor_partitions()
    returns setof llm.check_result
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_wrong text;
begin
    select string_agg(p.partition::text, ', ' order by p.partition)
    into v_wrong
    from (
        select c.oid::regclass as partition
        from pg_inherits i
        join pg_class c on c.oid = i.inhrelid and c.relkind in ('r', 'p')
        join pg_class p on p.oid = i.inhparent and p.relnamespace = 'llm'::regnamespace
        where not (c.relrowsecurity and c.relforcerowsecurity and c.relowner = 'llm_owner'::regrole)
        union
        select m.partition from llm._missing_triggers(null::regclass) m
    ) p;
    return query select
        'partitions are protected',
        v_wrong is null,
        coalesce(v_wrong, 'as their parents'),
        'As a superuser run: select llm._protect_partition(partition) for each.';

    return query select
        'new partitions get protected',
        exists (select from pg_event_trigger e where e.evtname = 'llm_protect_new_partitions' and e.evtenabled = 'A'),
        'event trigger llm_protect_new_partitions',
        'Run: alter event trigger llm_protect_new_partitions enable always; if it is gone, install pg_llm anew.';

    if to_regclass('llm.partition_status') is null then
        return;
    end if;

    select string_agg(format('%s: %s%s', s.parent, coalesce('last at ' || s.last_ok_at, 'never yet'), E'\n' || s.last_error), ', ' order by s.parent)
    into v_wrong
    from llm.partition_status s
    where s.is_late;
    return query select
        'partitions are looked after',
        v_wrong is null,
        coalesce(v_wrong, 'all in llm.partition_status'),
        'As a superuser run: call llm.manage_partitions(); and have it called regularly: select * from llm.schedule_maintenance();';

    select string_agg(s.parent, ', ' order by s.parent) into v_wrong from llm.partition_status s where not s.is_ahead;
    return query select
        'partitions are made ahead',
        v_wrong is null,
        coalesce(v_wrong, 'for all in llm.partition_status'),
        'As a superuser run: call llm.manage_partitions(); and see last_error in llm.partition_status.';

    select string_agg(s.parent, ', ' order by s.parent) into v_wrong from llm.partition_status s where s.default_bytes > 0;
    return query select
        'default partitions are empty',
        v_wrong is null,
        coalesce(v_wrong, 'all'),
        'As a superuser run: call llm.manage_partitions(); what llm.partition_plan() keeps after that has impossible times: delete or correct it.';
end
$$;

comment on function llm._doctor_partitions() is
'The part of llm.doctor() about partitions.';


create function llm._doctor_personal_data()
    returns setof llm.check_result
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_wrong text;
begin
    if to_regclass('llm.personal_data') is null then
        return;
    end if;
    select string_agg(distinct u.relation || ' ' || u.problem, ', ') into v_wrong from llm._unregistered_tables() u;
    return query select
        'personal data is registered',
        v_wrong is null,
        coalesce(v_wrong, 'every table with a user_id, and what refers to one'),
        'As a superuser run: select llm.register_personal_data(…) for each table; delete from llm.personal_data what is no longer there.';
end
$$;

comment on function llm._doctor_personal_data() is
'The part of llm.doctor() about personal data.';


create function llm._doctor_keys()
    returns setof llm.check_result
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import key_store
return key_store.check()
$$;

comment on function llm._doctor_keys() is
'The part of llm.doctor() about the master keys and the key store.';


create function llm._doctor_audit()
    returns setof llm.check_result
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_status record;
begin
    if to_regclass('llm.audit_seals') is null then
        return;
    end if;
    select * into v_status from llm.audit_seal_status() s;
    return query select
        'the audit log is sealed',
        v_status.waiting_since is null or v_status.waiting_since > now() - interval '1 hour',
        case
            when v_status.waiting_rows = 0 then 'no row waits'
            else format('%s rows wait since %s%s', v_status.waiting_rows, v_status.waiting_since, ', held up by ' || v_status.held_up_by)
        end,
        'Run llm.seal_audit() every few minutes; end the transaction that holds it up.'::text;
    return query select
        'the audit log is anchored',
        v_status.anchor_problem is null
            and (v_status.anchor_path is null
                 or v_status.entries = coalesce(v_status.anchored, 0)
                 or v_status.anchored_at > now() - interval '1 day'),
        coalesce(
            v_status.anchor_problem,
            format('%s of %s entries in ', coalesce(v_status.anchored, 0), v_status.entries) || v_status.anchor_path,
            'no file is set: nothing tells whether the end of the log was cut off'
        ),
        'Run llm.anchor_audit() after llm.seal_audit(); as a superuser name its file with llm.set_audit_anchor().'::text;
end
$$;

comment on function llm._doctor_audit() is
'The part of llm.doctor() about the seals of the audit log.';


create function llm._doctor_python()
    returns setof llm.check_result
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import doctor
return doctor.check_python()
$$;

comment on function llm._doctor_python() is
'The part of llm.doctor() about the Python in the server.';


create function llm._doctor_coherence()
    returns setof llm.check_result
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import doctor
return doctor.check_coherence()
$$;

comment on function llm._doctor_coherence() is
'The part of llm.doctor() about the coherent caches.';


select llm._grant_execute(
    array['llm_admin', 'llm_auditor'],
    'doctor', '_doctor_server', '_doctor_storage', '_doctor_security', '_doctor_partitions', '_doctor_personal_data', '_doctor_keys',
    '_doctor_audit', '_doctor_python', '_doctor_coherence'
);
