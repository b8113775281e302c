create function llm._refuse_audit_change()
    returns trigger
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception '% of %: the audit log is only ever added to', tg_op, tg_table_name
        using errcode = 'insufficient_privilege',
              hint = 'Old events leave by whole months: llm.delete_old_logs().';
end
$$;

comment on function llm._refuse_audit_change() is
'Trigger of the audit log and all of its partitions: refuses UPDATE, DELETE and TRUNCATE to everybody. Errors: insufficient_privilege.';


create function llm.delete_old_logs(
    p_days_to_keep integer
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_kept    integer[];
    v_action  llm.partition_action;
    v_dropped boolean := false;
begin
    if p_days_to_keep is null or p_days_to_keep < 1 then
        raise exception 'audit events cannot be kept for % days', coalesce(p_days_to_keep::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give at least 1 day. Whole months are dropped, and only those whose last event is older.';
    end if;

    v_kept := array(
        select s.retention_days from llm.partition_sets s where s.parent in ('llm.audit_log', 'llm.sensitive_log') order by s.parent for update
    );
    update llm.partition_sets s set retention_days = p_days_to_keep where s.parent in ('llm.audit_log', 'llm.sensitive_log');
    for v_action in select * from llm.partition_plan('llm.audit_log'::regclass) a where a.action = 'drop' loop
        perform llm._carry_out(v_action);
        v_dropped := true;
    end loop;
    for v_action in select * from llm.partition_plan('llm.sensitive_log'::regclass) a where a.action = 'drop' loop
        perform llm._carry_out(v_action);
    end loop;
    update llm.partition_sets s set retention_days = v_kept[1] where s.parent = 'llm.audit_log';
    update llm.partition_sets s set retention_days = v_kept[2] where s.parent = 'llm.sensitive_log';
    return v_dropped;
end
$$;

comment on function llm.delete_old_logs(integer) is
'Drops months of the audit log, sensitive details included, all of whose events are older, as llm.manage_partitions() does on its own after a year;
never single events, and no month that is not sealed. p_days_to_keep: at least 1. Returns whether anything was dropped. For superusers.
Errors: invalid_parameter_value, lock_not_available.';


-- security definer: whoever alters or drops what belongs to the log must leave a trace in it.
create function llm._audit_ddl()
    returns event_trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_off     boolean := not current_setting('row_security')::boolean;
    v_stack   text;
    v_query   text;
    v_command record;
begin
    for v_command in
        select d.command_tag, d.object_identity
        from pg_event_trigger_ddl_commands() d
        where tg_event = 'ddl_command_end'
            and (
                d.object_identity ~ '(^| on )llm[.](audit|sensitive)'
                or exists (select from pg_trigger t where t.tgrelid = d.objid and t.tgname like 'llm\_audit\_%' and t.tgenabled <> 'A')
            )
        union
        select tg_tag, format('%s %s', o.object_type, o.object_identity)
        from pg_event_trigger_dropped_objects() o
        where tg_event = 'sql_drop'
            and (
                o.original and o.address_names[1] = 'llm' and o.address_names[2] ~ '^(audit|sensitive)'
                or o.original and o.object_type = 'trigger' and o.address_names[3] like 'llm\_audit\_%'
                -- Dropped with its table.
                or not o.original and o.object_type = 'trigger' and o.address_names[3] = 'llm_audit_truncate'
            )
    loop
        get diagnostics v_stack = pg_context;
        -- A restore, which has row_security off, and our own steps are not news; that a month was dropped is.
        exit when to_regclass('llm.audit_log') is null
            or tg_event = 'ddl_command_end' and v_off
            or v_stack ~ '(?n)^PL/pgSQL function llm[.](setup|_make_audit_triggers|unaudit_table)[(]'
            or tg_event = 'ddl_command_end' and v_stack ~ '(?n)^PL/pgSQL function llm[.](create_partitions|_carry_out|_protect_new_partitions)[(]';
        v_query := current_query();
        -- A restore may begin by dropping, and the log is written under row-level security.
        perform set_config('row_security', 'on', true);
        begin
            perform llm.log_audit_event(
                lower(v_command.command_tag), 'audit'::text, v_command.object_identity,
                -- Only what is DDL itself: another statement may hold anything.
                case when v_query ~* '^\s*(alter|drop|create)\M' then jsonb_build_object('statement', left(v_query, 1000)) end,
                session_user::text, null::jsonb, null::jsonb, null::jsonb, null::text, 'llm_auditor'::text
            );
        exception
            when others then
                -- Who takes away what writing needs is not stopped; the server's log has it then.
                raise warning 'the audit log cannot note that % did % to %', session_user, lower(v_command.command_tag), v_command.object_identity
                    using detail = sqlerrm;
        end;
        perform set_config('row_security', case when v_off then 'off' else 'on' end, true);
    end loop;
end
$$;

alter function llm._audit_ddl() owner to llm_owner;

comment on function llm._audit_ddl() is
'Event trigger: writes an event of object type audit when a table, partition, trigger, column or rule of the audit log, or a trigger of an audited
table, is altered or dropped, or a warning if that is impossible. Not for llm.setup(), and not while row_security is off, as in a restore.';

do $event_trigger$
begin
    if not exists (select from pg_event_trigger e where e.evtname = 'llm_audit_alter') then
        create event trigger llm_audit_alter
            on ddl_command_end
            when tag in ('ALTER TABLE', 'ALTER TRIGGER', 'CREATE TRIGGER', 'CREATE RULE')
            execute function llm._audit_ddl();
    end if;
    alter event trigger llm_audit_alter enable always;
    if not exists (select from pg_event_trigger e where e.evtname = 'llm_audit_drop') then
        create event trigger llm_audit_drop
            on sql_drop
            execute function llm._audit_ddl();
    end if;
    alter event trigger llm_audit_drop enable always;
end
$event_trigger$;
