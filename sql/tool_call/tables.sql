-- Calls of tools. Monthly partitions, 90 days kept.

create table if not exists llm.tool_calls (
    tenant_id        text collate "C" not null check (tenant_id <> '*'),
    call_id          uuid not null,
    started_at       timestamptz not null default clock_timestamp(),
    tool             text collate "C" not null check (octet_length(tool) between 1 and 200),
    version          bigint,
    user_id          uuid,
    conversation_id  uuid,
    tool_call_id     text,
    arguments        jsonb not null,
    result           jsonb,
    error            text,
    duration         interval check (duration >= '0'),

    primary key (tenant_id, started_at, call_id)
) partition by range (started_at);

comment on table llm.tool_calls is
'Calls of tools, of unknown ones too: tool_call_id is the model''s own id of the call; error is null when it went well. Monthly partitions, 90 days
kept.';

-- "how did this tool do", "the newest calls of it"
create index if not exists tool_calls_by_tool on llm.tool_calls (tenant_id, tool, started_at);
-- "what was called in this conversation"
create index if not exists tool_calls_by_conversation on llm.tool_calls (tenant_id, conversation_id, started_at) where conversation_id is not null;
-- "all that concerns this user"
create index if not exists tool_calls_by_user on llm.tool_calls (tenant_id, user_id) where user_id is not null;

select llm.create_partitions(('llm.tool_calls', 'started_at', 'monthly', 90)::llm.partition_strategy, null::text);

alter table llm.tool_calls alter column call_id set default llm.uuid_v7();
select llm._protect_tenant_table('llm.tool_calls'::regclass, 'select, insert'::text);
select llm._protect_user_rows('llm.tool_calls'::regclass);
select llm.register_personal_data('llm.tool_calls'::regclass, 'user_id'::text, 'delete'::text, null::regclass, null::text[], null::text);
