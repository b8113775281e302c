create type llm.audit_access as (
    id              bigint,
    "timestamp"     timestamptz,
    tenant_id       text,
    user_id         text,
    action          text,
    object_type     text,
    object_id       text,
    details         jsonb,
    client_info     jsonb,
    before          jsonb,
    after           jsonb,
    login_role      text,
    client_address  inet,
    application     text,
    is_sensitive    boolean
);

comment on type llm.audit_access is
'An event of the audit log; is_sensitive: there is more, for llm.read_sensitive_log().';


create type llm.authentication_event as enum (
    'login', 'logout', 'login_failed', 'session_expired', 'session_revoked', 'token_issued', 'token_refreshed', 'token_refused', 'password_changed',
    'password_reset', 'account_locked', 'account_unlocked', 'mfa_enrolled', 'mfa_removed', 'mfa_passed', 'mfa_failed'
);

comment on type llm.authentication_event is
'What may happen while somebody proves who he is.';


create type llm.security_event as enum (
    'api_key_created', 'api_key_used', 'api_key_refused', 'api_key_rotated', 'api_key_revoked', 'permission_granted', 'permission_revoked',
    'permission_denied', 'key_created', 'key_rotated', 'key_revoked', 'key_shredded', 'break_glass', 'sensitive_read', 'rate_limited',
    'injection_suspected', 'data_exported', 'policy_changed', 'workflow_started', 'workflow_finished', 'workflow_failed'
);

comment on type llm.security_event is
'What an examiner asks for besides who logged in: keys, permissions, refusals, exports, runs of workflows.';


-- Writing

-- security definer: nobody else writes the log, so that nobody writes what is not his to say (time, transaction, login role, tenant).
create function llm.log_audit_event(
    p_action       text,
    p_object_type  text,
    p_object_id    text,
    p_details      jsonb default null,
    p_user_id      text default session_user,
    p_client_info  jsonb default null,
    p_before       jsonb default null,
    p_after        jsonb default null,
    p_sensitive    text default null,
    p_access_level text default 'llm_auditor'
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := coalesce(llm.current_tenant(), '*');
begin
    if p_sensitive is null and p_action is not null and p_object_type is not null and p_object_id is not null then
        insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, details, client_info, before, after)
        values (v_tenant, coalesce(p_user_id, session_user), p_action, p_object_type, p_object_id, p_details, p_client_info, p_before, p_after);
        return;
    end if;

    if p_action is null or p_object_type is null or p_object_id is null then
        raise exception 'an event without %',
            case when p_action is null then 'an action' when p_object_type is null then 'the type of its object' else 'its object' end
            using errcode = 'invalid_parameter_value',
                  hint = 'Say who did what to which object; an empty text will do where there is no object.';
    end if;
    perform llm._log_sensitive(
        row(null::bigint, clock_timestamp(), v_tenant, coalesce(p_user_id, session_user), p_action, p_object_type, p_object_id, p_details,
            p_client_info, p_before, p_after, session_user::text, null::inet, null::text, true)::llm.audit_access,
        p_sensitive, p_access_level
    );
end
$$;

alter function llm.log_audit_event(text, text, text, jsonb, text, jsonb, jsonb, jsonb, text, text) owner to llm_owner;

comment on function llm.log_audit_event(text, text, text, jsonb, text, jsonb, jsonb, jsonb, text, text) is
'Writes an event to the audit log, for the current tenant and in this transaction: it is as durable as what it tells of. p_action, p_object_type,
p_object_id: what was done to what; p_details: anything else (text with NUL through llm.clean_jsonb()); p_user_id: who did it, by default the login
role, which is noted in any case; p_client_info: where from; p_before, p_after: the object; p_sensitive: what only members of role p_access_level may
read, encrypted, through llm.read_sensitive_log(). Returns nothing: a writer learns nothing of the log.
Errors: invalid_parameter_value, undefined_object for an unknown role, object_not_in_prerequisite_state without a master key for p_sensitive.';


create function llm._audit_events(
    p_events jsonb
)
    returns table (
        action text, object_type text, object_id text, details jsonb, user_id text, client_info jsonb, before jsonb, after jsonb,
        sensitive text, access_level text
    )
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
    select
        e.value ->> 'action', e.value ->> 'object_type', e.value ->> 'object_id', nullif(e.value -> 'details', 'null'), e.value ->> 'user_id',
        nullif(e.value -> 'client_info', 'null'), nullif(e.value -> 'before', 'null'), nullif(e.value -> 'after', 'null'),
        e.value ->> 'sensitive', e.value ->> 'access_level'
    from jsonb_array_elements(p_events) e
$$;

comment on function llm._audit_events(jsonb) is
'The events that llm.log_audit_events() is given, as rows.';


-- security definer: as llm.log_audit_event().
create function llm.log_audit_events(
    p_events jsonb
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant      text := coalesce(llm.current_tenant(), '*');
    v_user        text := session_user;
    v_address     inet := inet_client_addr();
    v_application text := current_setting('application_name');
    v_is_good     boolean;
    v_count       bigint;
    v_sensitive   record;
begin
    v_is_good := jsonb_typeof(p_events) is not distinct from 'array';
    if v_is_good then
        v_is_good := not exists (
            select from llm._audit_events(p_events) e where e.action is null or e.object_type is null or e.object_id is null
        );
    end if;
    if not v_is_good then
        raise exception 'these are not events: %', coalesce(jsonb_typeof(p_events), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give an array of objects, each with action, object_type and object_id.';
    end if;

    insert into llm.audit_log (
        tenant_id, user_id, action, object_type, object_id, details, client_info, before, after, client_address, application
    )
    select
        v_tenant, coalesce(e.user_id, v_user), e.action, e.object_type, e.object_id, e.details, e.client_info, e.before, e.after,
        v_address, v_application
    from llm._audit_events(p_events) e
    where e.sensitive is null;
    get diagnostics v_count = row_count;

    if p_events @? '$[*].sensitive' then
        for v_sensitive in select * from llm._audit_events(p_events) e where e.sensitive is not null loop
            perform llm.log_audit_event(
                v_sensitive.action, v_sensitive.object_type, v_sensitive.object_id, v_sensitive.details, v_sensitive.user_id,
                v_sensitive.client_info, v_sensitive.before, v_sensitive.after, v_sensitive.sensitive,
                coalesce(v_sensitive.access_level, 'llm_auditor')
            );
            v_count := v_count + 1;
        end loop;
    end if;
    return v_count;
end
$$;

alter function llm.log_audit_events(jsonb) owner to llm_owner;

comment on function llm.log_audit_events(jsonb) is
'Writes many events at once, in their order, those with sensitive details last. p_events: an array of objects with the names of
llm.log_audit_event()''s arguments without p_: action, object_type and object_id, and what else there is. Returns how many. All or nothing. Errors:
as llm.log_audit_event().';


-- security definer: as llm.log_audit_event().
create function llm._audit_events_insert()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant      text := coalesce(llm.current_tenant(), '*');
    v_user        text := session_user;
    v_address     inet := inet_client_addr();
    v_application text := current_setting('application_name');
begin
    if exists (select from new_events e where e.action is null or e.object_type is null or e.object_id is null) then
        raise exception 'an event without action, object_type or object_id'
            using errcode = 'invalid_parameter_value',
                  hint = 'Give these three columns; an empty text will do where there is no object.';
    end if;
    insert into llm.audit_log (
        tenant_id, user_id, action, object_type, object_id, details, client_info, before, after, client_address, application
    )
    select
        v_tenant, coalesce(e.user_id, v_user), e.action, e.object_type, e.object_id, e.details, e.client_info, e.before, e.after,
        v_address, v_application
    from new_events e;
    delete from llm.audit_events e
    where e.position between (select min(n.position) from new_events n) and (select max(n.position) from new_events n);
    return null;
end
$$;

alter function llm._audit_events_insert() owner to llm_owner;

comment on function llm._audit_events_insert() is
'Trigger of llm.audit_events: moves what COPY or INSERT brought to the audit log.';


create function llm.log_authentication_event(
    p_event       llm.authentication_event,
    p_user_id     text,
    p_details     jsonb default null,
    p_client_info jsonb default null
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm.log_audit_event(
        p_event::text, 'authentication'::text, p_user_id, p_details, p_user_id, p_client_info, null::jsonb, null::jsonb, null::text,
        'llm_auditor'::text
    );
end
$$;

comment on function llm.log_authentication_event(llm.authentication_event, text, jsonb, jsonb) is
'Writes to the audit log what happened while a user proved who he is; the event is the action, and the user is who did it and to whom it was done.
p_event: one of llm.authentication_event. Other arguments, and errors: as llm.log_audit_event().';


create function llm.log_security_event(
    p_event       llm.security_event,
    p_object_type text,
    p_object_id   text,
    p_details     jsonb default null,
    p_user_id     text default session_user,
    p_client_info jsonb default null
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm.log_audit_event(
        p_event::text, p_object_type, p_object_id, p_details, p_user_id, p_client_info, null::jsonb, null::jsonb, null::text, 'llm_auditor'::text
    );
end
$$;

comment on function llm.log_security_event(llm.security_event, text, text, jsonb, text, jsonb) is
'Writes to the audit log what concerns security: use of keys, permissions, refusals, exports, workflows; the event is the action.
p_event: one of llm.security_event. Other arguments, and errors: as llm.log_audit_event().';


-- Reading

create function llm.get_audit_logs(
    p_user_id     text default null,
    p_limit       integer default 100,
    p_action      text default null,
    p_object_type text default null,
    p_object_id   text default null,
    p_from        timestamptz default null,
    p_to          timestamptz default null,
    p_before_id   bigint default null
)
    returns setof llm.audit_access
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
declare
    v_tenant text;
    v_before timestamptz;
begin
    perform llm._require_storage();
    v_tenant := llm.current_tenant();
    if p_before_id is not null then
        select a."timestamp"
        into v_before
        from llm.audit_log a
        where a.id = p_before_id
            and (v_tenant is null or a.tenant_id = v_tenant);
        if not found then
            raise exception 'audit event % does not exist', p_before_id
                using errcode = 'no_data_found',
                      hint = 'Begin again without p_before_id. Events older than a year are dropped.';
        end if;
    end if;

    return query
        select
            a.id, a."timestamp", a.tenant_id, a.user_id, a.action, a.object_type, a.object_id, a.details, a.client_info, a.before, a.after,
            a.login_role, a.client_address, a.application, a.sensitive_hash is not null
        from llm.audit_log a
        where (v_tenant is null or a.tenant_id = v_tenant)
            and (p_user_id is null or a.user_id = p_user_id)
            and (p_action is null or a.action = p_action)
            and (p_object_type is null or a.object_type = p_object_type)
            and (p_object_id is null or a.object_id = p_object_id)
            and (p_from is null or a."timestamp" >= p_from)
            and (p_to is null or a."timestamp" < p_to)
            and (v_before is null or (a."timestamp", a.id) < (v_before, p_before_id))
        order by a."timestamp" desc, a.id desc
        limit p_limit;
end
$$;

comment on function llm.get_audit_logs(text, integer, text, text, text, timestamptz, timestamptz, bigint) is
'Events of the audit log, newest first: the tenant''s, or all when none is set. p_user_id, p_action, p_object_type, p_object_id: null for any;
p_from, p_to: from (inclusive) and until (exclusive) when; p_limit: at most so many; p_before_id: those before this event, the last one of the page
before. For llm_auditor and llm_admin. Errors: no_data_found for an unknown p_before_id; object_not_in_prerequisite_state when the storage is not set
up.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    'log_audit_event', 'log_audit_events', 'log_authentication_event', 'log_security_event'
);

select llm._grant_execute(
    array['llm_owner'],
    '_audit_events'
);

select llm._grant_execute(
    array['llm_admin', 'llm_auditor'],
    'get_audit_logs'
);
