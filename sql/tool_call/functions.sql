create type llm.tool_call as (
    call_id          uuid,
    started_at       timestamptz,
    tool             text,
    version          bigint,
    user_id          uuid,
    conversation_id  uuid,
    tool_call_id     text,
    arguments        jsonb,
    result           jsonb,
    error            text,
    duration         interval
);

comment on type llm.tool_call is
'A call of a tool: tool_call_id is the model''s own id of it; error is null when it went well.';


create function llm._time_of_uuid(
    p_id uuid
)
    returns timestamptz
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_hex text := replace(p_id::text, '-', '');
begin
    return case when substr(v_hex, 13, 1) = '7' then to_timestamp(('x' || left(v_hex, 12))::bit(48)::bigint / 1000.0::double precision) end;
end
$$;

comment on function llm._time_of_uuid(uuid) is
'The time in a UUID of version 7 (RFC 9562), to the millisecond; null for other versions.';


create function llm.log_tool_call(
    p_tool            text,
    p_arguments       jsonb,
    p_result          jsonb default null,
    p_error           text default null,
    p_duration        interval default null,
    p_version         bigint default null,
    p_user_id         uuid default null,
    p_conversation_id uuid default null,
    p_tool_call_id    text default null,
    p_call_id         uuid default null,
    p_started_at      timestamptz default null
)
    returns uuid
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := llm._writable_tenant();
    v_id      uuid := coalesce(p_call_id, llm.uuid_v7());
    v_started timestamptz;
begin
    if p_tool is null or octet_length(p_tool) not between 1 and 200 or p_arguments is null
        or p_duration < '0' or p_duration > '10000 years'
    then
        raise exception 'a call of tool % with arguments % in %',
            coalesce(quote_literal(left(p_tool, 100)), 'null'), coalesce(jsonb_typeof(p_arguments), 'null'), coalesce(p_duration::text, 'no time')
            using errcode = 'invalid_parameter_value',
                  hint = 'Say which tool, 1 to 200 bytes, with which arguments, as the model gave them, and in no negative time.';
    end if;
    v_started := coalesce(p_started_at, llm._time_of_uuid(p_call_id), clock_timestamp() - coalesce(p_duration, '0'));
    perform llm._check_partition_time('llm.tool_calls'::regclass, v_started);
    insert into llm.tool_calls (
        tenant_id, call_id, started_at, tool, version, user_id, conversation_id, tool_call_id, arguments, result, error, duration
    )
    values (
        v_tenant, v_id, v_started, p_tool,
        coalesce(p_version, (select max(t.version) from llm.tools t where t.tenant_id = v_tenant and t.name = p_tool and t.retired_at is null)),
        coalesce(p_user_id, llm.current_user_id()), p_conversation_id, p_tool_call_id, p_arguments, p_result, p_error, p_duration
    )
    on conflict do nothing;
    return v_id;
end
$$;

comment on function llm.log_tool_call(text, jsonb, jsonb, text, interval, bigint, uuid, uuid, text, uuid, timestamptz) is
'Logs a call of a tool, also of one that does not exist. p_tool, p_arguments: what the model asked for; p_result, p_error: what came of it, error null
when it went well; p_duration: how long it took; p_version: null for the newest; p_user_id: for whom, null for llm.set_user()''s; p_conversation_id,
p_tool_call_id: where, by the model''s id; p_call_id: a UUID of version 7 that makes a repeated call of this function write nothing; p_started_at:
when, null for the time in p_call_id, else for p_duration ago. Returns the id. Errors: invalid_parameter_value; datetime_field_overflow for a time
that the log does not span; object_not_in_prerequisite_state without a tenant.';


create function llm.log_tool_calls(
    p_calls jsonb
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(p_calls) is distinct from 'array' or p_calls @? 'strict $[*] ? (@.type() != "object")' then
        raise exception 'these are not calls of tools: %', left(coalesce(p_calls::text, 'null'), 40)
            using errcode = 'invalid_parameter_value',
                  hint = 'Give an array of objects with the names of llm.log_tool_call()''s arguments, without p_.';
    end if;
    return (
        select count(llm.log_tool_call(
            c.tool, e.call -> 'arguments', nullif(e.call -> 'result', 'null'), c.error, c.duration, c.version, c.user_id, c.conversation_id,
            c.tool_call_id, c.call_id, c.started_at
        ))
        from jsonb_array_elements(p_calls) e (call)
        cross join lateral jsonb_to_record(e.call) c (
            tool text, error text, duration interval, version bigint, user_id uuid, conversation_id uuid, tool_call_id text, call_id uuid,
            started_at timestamptz
        )
    );
end
$$;

comment on function llm.log_tool_calls(jsonb) is
'Logs many calls, all or none. p_calls: an array of objects with the names of llm.log_tool_call()''s arguments, without p_. Returns how many.
Errors: as there.';


create function llm.list_tool_calls(
    p_tool            text default null,
    p_conversation_id uuid default null,
    p_user_id         uuid default null,
    p_failed          boolean default null,
    p_from            timestamptz default null,
    p_to              timestamptz default null,
    p_limit           integer default 100
)
    returns setof llm.tool_call
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_tenant   text := llm.current_tenant();
begin
    perform llm._check_page(p_limit::bigint, 0::bigint);
    return query
        select
            c.call_id, c.started_at, c.tool, c.version, c.user_id, c.conversation_id, c.tool_call_id, c.arguments, c.result, c.error, c.duration
        from llm.tool_calls c
        where c.tenant_id = v_tenant
            and (p_tool is null or c.tool = p_tool)
            and (p_conversation_id is null or c.conversation_id = p_conversation_id)
            and (p_user_id is null or c.user_id = p_user_id)
            and (p_failed is null or (c.error is not null) = p_failed)
            and (p_from is null or c.started_at >= p_from)
            and (p_to is null or c.started_at < p_to)
        order by c.started_at desc, c.call_id desc
        limit p_limit;
end
$$;

comment on function llm.list_tool_calls(text, uuid, uuid, boolean, timestamptz, timestamptz, integer) is
'Calls of tools, newest first. p_tool, p_conversation_id, p_user_id: null for any; p_failed: true for those with an error, false for those without;
p_from, p_to: from (inclusive) and until (exclusive) when they began; p_limit: at most so many. To go on, give the last started_at as p_to.';


create function llm.tool_stats(
    p_from timestamptz default '-infinity',
    p_to   timestamptz default 'infinity'
)
    returns table (
        tool       text,
        calls      bigint,
        failures   bigint,
        is_known   boolean,
        p50        interval,
        p95        interval,
        last_error text
    )
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_tenant   text := llm.current_tenant();
begin
    return query
        select
            c.tool,
            count(*),
            count(c.error),
            exists (select from llm.tools t where t.tenant_id = v_tenant and t.name = c.tool and t.retired_at is null),
            percentile_cont(0.5) within group (order by c.duration),
            percentile_cont(0.95) within group (order by c.duration),
            (array_agg(c.error order by c.started_at desc) filter (where c.error is not null))[1]
        from llm.tool_calls c
        where c.tenant_id = v_tenant
            and c.started_at >= p_from
            and c.started_at < p_to
        group by c.tool
        order by 2 desc, 1;
end
$$;

comment on function llm.tool_stats(timestamptz, timestamptz) is
'How the tools did: calls, failures, is_known (may be called now), median and 95th percentile of the durations that are known, the newest error.
p_from, p_to: from (inclusive) and until (exclusive) when the calls began.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    '_time_of_uuid', 'log_tool_call', 'log_tool_calls'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    'list_tool_calls', 'tool_stats'
);
