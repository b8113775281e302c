create type llm.tool as (
    name         text,
    version      bigint,
    description  text,
    arguments    jsonb,
    result       jsonb,
    metadata     jsonb,
    created_at   timestamptz,
    retired_at   timestamptz
);

comment on type llm.tool is
'A version of a tool: arguments and result are JSON Schemas; retired_at is null as long as it may be called.';


create function llm._check_json_schema(
    p_what   text,
    p_schema jsonb
)
    returns void
    language plpython3u
    immutable
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import tool
tool.check_schema(p_what, p_schema)
$$;

comment on function llm._check_json_schema(text, jsonb) is
'Refuses what is no JSON Schema (draft 2020-12 or 7): keywords with values of a wrong type, patterns that are none, references that lead nowhere.
p_what: the name of it in the error. Errors: invalid_parameter_value, with the place as a JSON pointer; program_limit_exceeded when it is nested too
deep.';


create function llm.register_tool(
    p_name        text,
    p_arguments   jsonb,
    p_description text default '',
    p_result      jsonb default null,
    p_metadata    jsonb default '{}'
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := llm._writable_tenant();
    v_version bigint;
    v_newest  record;
begin
    if p_name is null or p_name !~ '^[A-Za-z0-9_-]{1,64}$' then
        raise exception 'a tool cannot be called %', coalesce(quote_literal(left(p_name, 100)), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Models take names of 1 to 64 letters, digits, _ and -.';
    end if;
    if p_arguments ->> 'type' is distinct from 'object' then
        raise exception 'the arguments of tool % are not an object', p_name
            using errcode = 'invalid_parameter_value',
                  hint = 'Give a JSON Schema with "type": "object", for a tool without arguments {"type": "object", "properties": {}}.';
    end if;
    perform llm._check_json_schema(format('what tool %s takes', p_name), p_arguments);
    perform llm._check_json_schema(format('what tool %s returns', p_name), p_result) where p_result is not null;

    loop
        select t.* into v_newest from llm.tools t where t.tenant_id = v_tenant and t.name = p_name order by t.version desc limit 1;
        if v_newest.retired_at is null
            and (v_newest.arguments, v_newest.description, v_newest.metadata) = (p_arguments, coalesce(p_description, ''), coalesce(p_metadata, '{}'))
            and v_newest.result is not distinct from p_result
        then
            return v_newest.version;
        end if;
        insert into llm.tools (tenant_id, name, version, description, arguments, result, metadata)
        values (v_tenant, p_name, coalesce(v_newest.version, 0) + 1, coalesce(p_description, ''), p_arguments, p_result, coalesce(p_metadata, '{}'))
        on conflict (tenant_id, name, version) do nothing
        returning version into v_version;
        -- None when another session has just registered one: now it can be seen.
        if v_version is not null then
            return v_version;
        end if;
    end loop;
end
$$;

comment on function llm.register_tool(text, jsonb, text, jsonb, jsonb) is
'Makes a tool known, or a new version of it. p_name: 1 to 64 letters, digits, _ and -; p_arguments: a JSON Schema of an object; p_description: what
the model is told; p_result: a JSON Schema or null; p_metadata: anything else. Returns the version: that which has this definition already if it is
the newest. Errors: invalid_parameter_value, program_limit_exceeded; object_not_in_prerequisite_state without a tenant.';


create function llm.register_tools(
    p_tools jsonb
)
    returns setof llm.tool
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tool record;
begin
    if jsonb_typeof(p_tools) is distinct from 'array' or p_tools @? 'strict $[*] ? (@.type() != "object")' then
        raise exception 'these are not tools: %', left(coalesce(p_tools::text, 'null'), 40)
            using errcode = 'invalid_parameter_value',
                  hint = 'Give an array of objects with the names of llm.register_tool()''s arguments, without p_.';
    end if;
    -- In the order of names: two batches then wait for each other instead of deadlocking.
    for v_tool in
        select
            t.value ->> 'name' as name, t.value -> 'arguments' as arguments, t.value ->> 'description' as description,
            nullif(t.value -> 'result', 'null') as result, nullif(t.value -> 'metadata', 'null') as metadata
        from jsonb_array_elements(p_tools) with ordinality t (value, position)
        order by t.value ->> 'name' collate "C", t.position
    loop
        perform llm.register_tool(v_tool.name, v_tool.arguments, v_tool.description, v_tool.result, v_tool.metadata);
        return next llm.get_tool(v_tool.name, null::bigint);
    end loop;
end
$$;

comment on function llm.register_tools(jsonb) is
'llm.register_tool() for many, all or none. p_tools: an array of objects with the names of its arguments, without p_. Returns them in the order of
names. Errors: as there.';


create function llm.get_tool(
    p_name    text,
    p_version bigint default null
)
    returns llm.tool
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_tenant   text := llm.current_tenant();
    v_tool     llm.tool;
begin
    select t.name, t.version, t.description, t.arguments, t.result, t.metadata, t.created_at, t.retired_at
    into v_tool
    from llm.tools t
    where t.tenant_id = v_tenant
        and t.name = p_name
        and case when p_version is null then t.retired_at is null else t.version = p_version end
    order by t.version desc
    limit 1;
    return v_tool;
end
$$;

comment on function llm.get_tool(text, bigint) is
'A tool; all null when there is none. p_version: null for the newest that is not retired.';


create function llm.tool_exists(
    p_name text
)
    returns boolean
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (llm.get_tool(p_name, null::bigint)).name is not null;
end
$$;

comment on function llm.tool_exists(text) is
'Whether there is a tool of this name that is not retired.';


create function llm.list_tools(
    p_prefix text default '',
    p_limit  integer default 100,
    p_after  text default null
)
    returns setof llm.tool
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_tenant   text := llm.current_tenant();
begin
    perform llm._check_page(p_limit::bigint, 0::bigint);
    return query
        select distinct on (t.name) t.name, t.version, t.description, t.arguments, t.result, t.metadata, t.created_at, t.retired_at
        from llm.tools t
        where t.tenant_id = v_tenant
            and starts_with(t.name, coalesce(p_prefix, ''))
            and (p_after is null or t.name > p_after)
            and t.retired_at is null
        order by t.name, t.version desc
        limit p_limit;
end
$$;

comment on function llm.list_tools(text, integer, text) is
'Tools that may be called, in the order of their names. p_prefix: how the names begin; p_limit: at most so many; p_after: those after this name.';


create function llm.count_tools(
    p_prefix text default ''
)
    returns bigint
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select count(*) from llm.list_tools(p_prefix, null::integer, null::text));
end
$$;

comment on function llm.count_tools(text) is
'How many tools llm.list_tools() has to list.';


create function llm.retire_tool(
    p_name    text,
    p_version bigint default null
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._writable_tenant();
    v_count  bigint;
begin
    update llm.tools t
    set retired_at = now()
    where t.tenant_id = v_tenant
        and t.name = p_name
        and (p_version is null or t.version = p_version)
        and t.retired_at is null;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

comment on function llm.retire_tool(text, bigint) is
'Ends that a tool may be called; its definition and its calls stay. p_version: null for all versions; without the newest the one before it is what
models are told of. Returns how many versions that concerned.';


create function llm.tool_definitions(
    p_names text[] default null,
    p_shape text default 'openai'
)
    returns jsonb
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_shape is null or p_shape not in ('openai', 'anthropic', 'mcp') then
        raise exception 'tools have no shape %', coalesce(quote_literal(p_shape), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Shapes are openai, anthropic and mcp.';
    end if;
    return (
        select coalesce(
            jsonb_agg(
                case p_shape
                    when 'openai' then jsonb_build_object(
                        'type', 'function',
                        'function', jsonb_build_object('name', t.name, 'description', t.description, 'parameters', t.arguments)
                    )
                    when 'anthropic' then jsonb_build_object('name', t.name, 'description', t.description, 'input_schema', t.arguments)
                    else jsonb_strip_nulls(jsonb_build_object('name', t.name, 'description', t.description))
                        || jsonb_build_object('inputSchema', t.arguments)
                        || case when t.result is null then '{}' else jsonb_build_object('outputSchema', t.result) end
                end
                order by t.name
            ),
            '[]'
        )
        from llm.list_tools(''::text, null::integer, null::text) t
        where p_names is null or t.name = any (p_names)
    );
end
$$;

comment on function llm.tool_definitions(text[], text) is
'Tools as a model''s API takes them, a JSON array. p_names: which, null for all; p_shape: openai, anthropic or mcp. Errors: invalid_parameter_value.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    'register_tool', 'register_tools', 'retire_tool', '_check_json_schema'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    'get_tool', 'tool_exists', 'list_tools', 'count_tools', 'tool_definitions'
);
