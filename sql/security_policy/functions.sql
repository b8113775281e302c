create type llm.security_policy as (
    sensitive_fields       text[],
    encryption_algorithms  text[],
    min_key_size           integer,
    key_rotation_days      integer,
    enforce_encryption     boolean
);

comment on type llm.security_policy is
'What is to be encrypted and how: columns as schema.table.column; algorithms and the least key size that may be used; after how many days a key gets
a new version; whether the columns shall refuse what is no ciphertext.';


create type llm.compliance_finding as (
    rule    text,
    object  text,
    detail  text,
    hint    text
);

comment on type llm.compliance_finding is
'Something that the security policy forbids: the rule, the column, key or setting, what was found, and what to do.';


create function llm.current_security_policy()
    returns llm.security_policy
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_policy llm.security_policy;
begin
    select p.sensitive_fields, p.encryption_algorithms, p.min_key_size, p.key_rotation_days, p.enforce_encryption
    into v_policy
    from llm.security_policies p
    order by p.id desc
    limit 1;
    return v_policy;
end
$$;

comment on function llm.current_security_policy() is
'The policy in force; all null when none was applied.';


create function llm._sensitive_column(
    p_field      text,
    out p_table  regclass,
    out p_column name,
    out p_type   regtype
)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_parts text[];
begin
    begin
        v_parts := parse_ident(p_field);
    exception
        when invalid_parameter_value then
            return;
    end;
    select c.oid, a.attname, a.atttypid
    into p_table, p_column, p_type
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where cardinality(v_parts) = 3
        and n.nspname = v_parts[1]
        and c.relname = v_parts[2]
        and a.attname = v_parts[3]
        and c.relkind in ('r', 'p');
end
$$;

comment on function llm._sensitive_column(text) is
'The column that schema.table.column names; null when there is none.';


create function llm.apply_security_policy(
    p_policy llm.security_policy
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_algorithms text[] := coalesce(p_policy.encryption_algorithms, array['aes-256-cbc']);
    v_size       integer := coalesce(p_policy.min_key_size, 256);
    v_days       integer := coalesce(p_policy.key_rotation_days, 90);
    v_enforce    boolean := coalesce(p_policy.enforce_encryption, false);
    v_fields     text[] := coalesce(p_policy.sensitive_fields, '{}');
    v_field      text;
    v_table      regclass;
    v_column     name;
    v_type       regtype;
begin
    perform llm._require_storage();
    if not v_algorithms && array['aes-256-cbc', 'aes-256', 'aes'] or v_size > 256 then
        raise exception 'a policy of % with % bits cannot be kept', array_to_string(v_algorithms, ', '), v_size
            using errcode = 'invalid_parameter_value',
                  hint = 'Supported: aes-256-cbc (also: aes, aes-256) with 256 bits.';
    end if;
    if v_days < 1 then
        raise exception 'a rotation every % days', v_days
            using errcode = 'invalid_parameter_value',
                  hint = 'Take 1 or more; 90 is usual.';
    end if;
    foreach v_field in array v_fields loop
        select s.p_table, s.p_column, s.p_type into v_table, v_column, v_type from llm._sensitive_column(v_field) s;
        if v_table is null then
            raise exception 'there is no column %', v_field
                using errcode = 'undefined_object',
                      hint = 'Name each sensitive field as schema.table.column.';
        end if;
        if v_enforce and v_type <> 'bytea'::regtype then
            raise exception 'column % has type %', v_field, v_type
                using errcode = 'datatype_mismatch',
                      hint = 'Ciphertext is bytea: change the column''s type, encrypting what is in it, or do not enforce encryption yet.';
        end if;
        perform llm._enforce_encryption(v_table, v_column, v_enforce);
    end loop;

    insert into llm.security_policies (sensitive_fields, encryption_algorithms, min_key_size, key_rotation_days, enforce_encryption)
    select v_fields, v_algorithms, v_size, v_days, v_enforce
    where (v_fields, v_algorithms, v_size, v_days, v_enforce)::llm.security_policy is distinct from llm.current_security_policy();
    return found;
end
$$;

comment on function llm.apply_security_policy(llm.security_policy) is
'Puts a policy in force. p_policy: what is null is chosen (aes-256-cbc, 256 bits, 90 days, not enforced); with enforce_encryption the sensitive
columns get a trigger that refuses what is no ciphertext of pg_llm, for which one must own the tables. For llm_admin. Returns false when it was in
force already. Errors: invalid_parameter_value for what is not supported; undefined_object; datatype_mismatch for a column that is not bytea;
insufficient_privilege.';


create function llm._enforce_encryption(
    p_table   regclass,
    p_column  name,
    p_enforce boolean
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_trigger name := left('ciphertext_' || p_column, 63);
begin
    if not exists (select from pg_attribute a where a.attrelid = p_table and a.attname = p_column and a.attnum > 0) then
        raise exception 'table % has no column %', p_table, p_column
            using errcode = 'undefined_object',
                  hint = 'Name a column of type bytea.';
    end if;
    if p_enforce then
        execute format(
            'create or replace trigger %I before insert or update of %I on %s for each row execute function llm._require_ciphertext(%L)',
            v_trigger, p_column, p_table, p_column
        );
        execute format('alter table %s enable always trigger %I', p_table, v_trigger);
    elsif exists (select from pg_trigger t where t.tgrelid = p_table and t.tgname = v_trigger) then
        execute format('drop trigger %I on %s', v_trigger, p_table);
    end if;
end
$$;

comment on function llm._enforce_encryption(regclass, name, boolean) is
'Lets a column refuse what is no ciphertext, or no longer. Errors: undefined_object.';


create function llm._require_ciphertext()
    returns trigger
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_value bytea := to_jsonb(new) ->> tg_argv[0];
begin
    -- As llm._is_ciphertext(), which writers of the table may not be allowed to call.
    if not (octet_length(v_value) >= 86 and octet_length(v_value) % 16 = 6 and get_byte(v_value, 0) = 1 and get_byte(v_value, 1) in (0, 1)) then
        raise exception 'column % of % takes ciphertext only', tg_argv[0], tg_relid::regclass
            using errcode = 'check_violation',
                  hint = 'Encrypt the value with llm.encrypt_data(): the security policy enforces it.';
    end if;
    return new;
end
$$;

comment on function llm._require_ciphertext() is
'Trigger of a sensitive column, its argument: refuses what has not the form of a ciphertext. Errors: check_violation.';


create function llm._is_ciphertext(
    p_value bytea
)
    returns boolean
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return octet_length(p_value) >= 86 and octet_length(p_value) % 16 = 6 and get_byte(p_value, 0) = 1 and get_byte(p_value, 1) in (0, 1);
end
$$;

comment on function llm._is_ciphertext(bytea) is
'Whether a value has the form that llm.encrypt_data() gives; who may not decrypt it cannot tell more.';


-- security definer: keys of all tenants are looked at, of which no material is shown.
create function llm._keys_out_of_policy(
    p_days integer
)
    returns setof llm.compliance_finding
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select
            'keys are rotated in time',
            format('key %s of tenant %s', k.key_id, k.tenant_id),
            format('version %s is of %s', k.version, k.rotated_at::date),
            'Call llm.rotate_key() for the tenant, and llm.rewrap() for what older versions encrypted.'
        from llm.data_keys k
        join llm.tenant_keys t on t.tenant_id = k.tenant_id and t.id = k.tenant_key_id
        where k.kind <> 'index'
            and k.revoked_at is null
            and t.shredded_at is null
            and exists (select from llm.data_key_versions v where v.tenant_id = k.tenant_id and v.key_id = k.key_id)
            and k.rotated_at < now() - make_interval(days => p_days)
        order by k.tenant_id, k.key_id;
end
$$;

alter function llm._keys_out_of_policy(integer) owner to llm_owner;

comment on function llm._keys_out_of_policy(integer) is
'The keys whose newest version is older than so many days.';


create function llm.validate_security_compliance()
    returns setof llm.compliance_finding
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_policy llm.security_policy := llm.current_security_policy();
    v_field  text;
    v_table  regclass;
    v_column name;
    v_type   regtype;
    v_count  bigint;
begin
    if v_policy.sensitive_fields is null then
        return query select
            'a policy is in force', 'llm.security_policies', 'there is none', 'Call llm.apply_security_policy().';
        v_policy := (array[]::text[], array['aes-256-cbc'], 256, 90, false)::llm.security_policy;
    end if;

    foreach v_field in array v_policy.sensitive_fields loop
        select s.p_table, s.p_column, s.p_type into v_table, v_column, v_type from llm._sensitive_column(v_field) s;
        if v_table is null then
            return query select
                'sensitive fields exist', v_field, 'there is no such column', 'Apply the policy again without it, or with its new name.';
        elsif v_type <> 'bytea'::regtype then
            return query select
                'sensitive fields are encrypted', v_field, format('it has type %s', v_type), 'Change it to bytea with llm.encrypt_data().';
        else
            execute format('select count(*) from %s t where not llm._is_ciphertext(t.%I)', v_table, v_column) into v_count;
            if v_count > 0 then
                return query select
                    'sensitive fields are encrypted', v_field, format('%s values are no ciphertext', v_count), 'Encrypt them: llm.encrypt_data().';
            end if;
            if not exists (select from llm.encrypted_columns c where c.table_name = llm._qualified(v_table) and c.column_name = v_column) then
                return query select
                    'sensitive fields can be rotated', v_field, 'the column is not registered', 'Call llm.register_encrypted_column().';
            end if;
            if v_policy.enforce_encryption
                and not exists (select from pg_trigger t where t.tgrelid = v_table and t.tgfoid = 'llm._require_ciphertext()'::regprocedure
                                    and t.tgname = left('ciphertext_' || v_column, 63) and t.tgenabled = 'A')
            then
                return query select
                    'encryption is enforced', v_field, 'its trigger is missing or disabled', 'Apply the policy again.';
            end if;
        end if;
    end loop;

    return query select * from llm._keys_out_of_policy(v_policy.key_rotation_days);
    return query
        select 'keys outside the database are as they should be', c.name, c.detail, c.hint from llm._doctor_keys() c where not c.ok
            or c.detail like 'none is configured%';
    return query select * from llm._settings_out_of_policy();
end
$$;

comment on function llm.validate_security_compliance() is
'What is not as the policy in force wants it, one row a finding, none when all is well: sensitive columns that are missing, hold plain text, are not
registered or not guarded; keys past their rotation; master keys that are missing or wrong; settings that write plain text into logs. Reads the
sensitive columns from end to end. For llm_admin, and whoever else may read those columns.';


create function llm._settings_out_of_policy()
    returns setof llm.compliance_finding
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select
            'plain text stays out of logs',
            s.name,
            format('%s is %s', s.name, s.setting),
            s.hint
        from (
            select 'log_parameter_max_length' as name, current_setting('log_parameter_max_length') as setting,
                   'Set it to 0: statements are logged, and their parameters with them.' as hint,
                   current_setting('log_parameter_max_length') <> '0'
                   and (current_setting('log_statement') in ('mod', 'all') or current_setting('log_min_duration_statement') <> '-1'
                        or current_setting('log_min_duration_sample') <> '-1' or current_setting('log_transaction_sample_rate') <> '0') as wrong
            union all
            select 'log_parameter_max_length_on_error', current_setting('log_parameter_max_length_on_error'),
                   'Set it to 0: a failing statement is logged with its parameters.',
                   current_setting('log_parameter_max_length_on_error') <> '0'
            union all
            select 'auto_explain.log_parameter_max_length', current_setting('auto_explain.log_parameter_max_length', true),
                   'Set it to 0: slow statements are logged with their parameters.',
                   current_setting('auto_explain.log_parameter_max_length', true) <> '0'
                   and current_setting('auto_explain.log_min_duration', true) <> '-1'
            union all
            select 'pgaudit.log_parameter', current_setting('pgaudit.log_parameter', true),
                   'Turn it off: audited statements are logged with their parameters.',
                   current_setting('pgaudit.log_parameter', true) = 'on'
        ) s
        where s.wrong;
end
$$;

comment on function llm._settings_out_of_policy() is
'The settings of this session that would write plain text, given as a parameter, into the server''s log.';


create function llm.is_security_compliant()
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    return not exists (select from llm.validate_security_compliance());
end
$$;

comment on function llm.is_security_compliant() is
'Whether llm.validate_security_compliance() finds nothing. For llm_admin.';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader', 'llm_auditor'],
    'current_security_policy', '_is_ciphertext'
);
select llm._grant_execute(
    array['llm_admin', 'llm_auditor'],
    'validate_security_compliance', 'is_security_compliant', '_sensitive_column', '_keys_out_of_policy', '_settings_out_of_policy'
);
select llm._grant_execute(
    array['llm_admin'],
    'apply_security_policy', '_enforce_encryption', '_require_ciphertext'
);
