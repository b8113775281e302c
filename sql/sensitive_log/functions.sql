create function llm._log_sensitive(
    p_event        llm.audit_access,
    p_sensitive    text,
    p_access_level text
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant_before text := current_setting('llm.tenant', true);
    v_set_at_before text := current_setting('llm.tenant_set_at', true);
    v_ciphertext    bytea;
begin
    if p_access_level is null or to_regrole(quote_ident(p_access_level)) is null then
        raise exception 'access level % is not a role', coalesce(quote_literal(p_access_level), 'null')
            using errcode = 'undefined_object',
                  hint = 'Name the role whose members may read it, such as llm_auditor.';
    end if;

    p_event.id := nextval('llm.audit_log_id_seq');
    if p_event.tenant_id <> '*' then
        perform set_config('llm.tenant', p_event.tenant_id, true);
        perform set_config('llm.tenant_set_at', date_part('epoch', now())::text, true);
    end if;
    v_ciphertext := llm.encrypt_data(
        p_sensitive, llm._encryption_for(p_event.tenant_id, p_event.user_id), 'llm.sensitive_log'::text, 'encrypted_details'::text, p_event.id::text
    );
    perform set_config('llm.tenant', coalesce(v_tenant_before, ''), true);
    perform set_config('llm.tenant_set_at', coalesce(v_set_at_before, ''), true);

    insert into llm.audit_log (
        id, "timestamp", tenant_id, user_id, action, object_type, object_id, details, client_info, before, after, sensitive_hash
    )
    values (
        p_event.id, p_event."timestamp", p_event.tenant_id, p_event.user_id, p_event.action, p_event.object_type, p_event.object_id,
        p_event.details, p_event.client_info, p_event.before, p_event.after, sha256(v_ciphertext)
    );
    insert into llm.sensitive_log (tenant_id, audit_log_id, audit_timestamp, encrypted_details, access_level)
    values (p_event.tenant_id, p_event.id, p_event."timestamp", v_ciphertext, p_access_level);
end
$$;

comment on function llm._log_sensitive(llm.audit_access, text, text) is
'The part of llm.log_audit_event() for sensitive details: encrypted for the event''s own tenant and bound to its id, and the event to the
ciphertext.';


-- security definer: nobody else reads ciphertext of the log, so that nobody reads it unseen.
create function llm.read_sensitive_log(
    p_audit_log_id bigint,
    p_purpose      text
)
    returns text
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_role          name := llm._acting_role();
    v_tenant        text := coalesce(llm.current_tenant(), '*');
    v_tenant_before text := current_setting('llm.tenant', true);
    v_set_at_before text := current_setting('llm.tenant_set_at', true);
    v_entry         record;
    v_details       text;
begin
    if coalesce(btrim(p_purpose), '') = '' then
        raise exception 'sensitive details are read for a purpose only'
            using errcode = 'invalid_parameter_value',
                  hint = 'Say why in p_purpose: it is written to the audit log.';
    end if;

    select s.tenant_id, s.encrypted_details, s.access_level
    into v_entry
    from llm.sensitive_log s
    where s.audit_log_id = p_audit_log_id
        and v_tenant in ('*', s.tenant_id);
    if not found then
        raise exception 'audit event % has no sensitive details', p_audit_log_id
            using errcode = 'no_data_found',
                  hint = 'llm.get_audit_logs() tells in is_sensitive which events have some.';
    end if;
    if to_regrole(quote_ident(v_entry.access_level)) is null or not pg_has_role(v_role, v_entry.access_level::name, 'usage'::text) then
        raise exception 'role % may not read sensitive details of level %', v_role, v_entry.access_level
            using errcode = 'insufficient_privilege',
                  hint = 'Only members of that role may.';
    end if;

    perform llm.log_audit_event(
        'sensitive_read'::text, 'audit_log'::text, p_audit_log_id::text, jsonb_build_object('purpose', p_purpose, 'tenant', v_entry.tenant_id),
        session_user::text, null::jsonb, null::jsonb, null::jsonb, null::text, 'llm_auditor'::text
    );
    -- Should this transaction be rolled back, the server's log still knows.
    raise log 'sensitive details of audit event % were read by %', p_audit_log_id, session_user;

    if v_entry.tenant_id <> '*' then
        perform set_config('llm.tenant', v_entry.tenant_id, true);
        perform set_config('llm.tenant_set_at', date_part('epoch', now())::text, true);
    end if;
    v_details := llm.decrypt_data(
        v_entry.encrypted_details, null::llm.encryption, 'llm.sensitive_log'::text, 'encrypted_details'::text, p_audit_log_id::text
    );
    perform set_config('llm.tenant', coalesce(v_tenant_before, ''), true);
    perform set_config('llm.tenant_set_at', coalesce(v_set_at_before, ''), true);
    return v_details;
end
$$;

alter function llm.read_sensitive_log(bigint, text) owner to llm_owner;

comment on function llm.read_sensitive_log(bigint, text) is
'The sensitive details of an event, decrypted. That they were read, by whom and what for, is itself an event (sensitive_read), in this transaction,
and a line of the server''s log. p_audit_log_id: the event; p_purpose: why. Errors: invalid_parameter_value without a purpose; no_data_found when
there is nothing; insufficient_privilege for a role that is no member of the access level; as llm.decrypt_data().';


create function llm._sensitive_may_be_dropped(
    p_partition regclass
)
    returns boolean
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return not exists (
        select
        from llm._partitions('llm.sensitive_log'::regclass) p
        join llm.audit_log a on a."timestamp" >= p.begins_at and a."timestamp" < p.ends_at
        where p.partition = p_partition
    );
end
$$;

comment on function llm._sensitive_may_be_dropped(regclass) is
'What llm.manage_partitions() asks before it drops a partition of llm.sensitive_log: whether the events of that time are gone.';


select llm._grant_execute(
    array['llm_owner'],
    '_log_sensitive'
);

select llm._grant_execute(
    array['llm_admin', 'llm_auditor'],
    'read_sensitive_log'
);
