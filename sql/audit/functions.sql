-- security definer: the log is written through functions only.
create function llm.log_audit_event(
    p_action      text,
    p_object_type text,
    p_object_id   text,
    p_details     jsonb default null,
    p_user_id     text default null,
    p_client_info jsonb default null
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, details, client_info)
    values (coalesce(llm.current_tenant(), '*'), coalesce(p_user_id, session_user), p_action, p_object_type, p_object_id, p_details, p_client_info);
end
$$;

alter function llm.log_audit_event(text, text, text, jsonb, text, jsonb) owner to llm_owner;

comment on function llm.log_audit_event(text, text, text, jsonb, text, jsonb) is
'Writes one event to the audit log, in this transaction.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    'log_audit_event'
);
