-- Messages of conversations.

create table if not exists llm.messages (
    tenant_id        text not null,
    conversation_id  uuid not null,
    branch           bigint not null default 0,
    seq              bigint not null,
    message_id       uuid not null,
    user_id          uuid,
    role             text not null,
    content          jsonb not null,
    status           text not null default 'complete',
    is_pinned        boolean not null default false,
    token_count      integer check (token_count >= 0),
    rating           smallint,
    cost             numeric check (cost >= '0' and cost < 'Infinity'),
    feedback         text,
    metadata         jsonb,
    created_at       timestamptz not null default clock_timestamp(),
    updated_at       timestamptz,
    deleted_at       timestamptz,

    -- "the last so many of this branch"
    primary key (tenant_id, conversation_id, branch, seq),
    unique (tenant_id, message_id),
    -- What functions see to anyway, as short as can be: PostgreSQL 17 parses checks anew for each statement, one sooner than six, constants sooner
    -- than expressions.
    constraint messages_check check (
        tenant_id <> '*'
        and seq > 0
        and role = any ('{user,assistant,system,tool}')
        and status = any ('{streaming,complete,failed,cancelled}')
        and jsonb_typeof(content) = any ('{string,array}')
        and rating >= '-1'
        and rating <= '1'
    )
-- No foreign key: its check would take half as long again as a row of a batch. Who appends holds the conversation's row anyway, and a trigger of
-- llm.conversations deletes what a key would.
);

comment on table llm.messages is
'Messages: seq numbers those of a conversation without a gap, over all its branches; user_id is the conversation''s; content is a string, or an
array of parts, which are objects with a type; status is streaming until the content is whole; token_count and cost are null when unknown; rating is
-1, 0 or 1; updated_at is when the content last changed. Written by functions alone.';

-- "what is always in the context"
create index if not exists messages_pinned on llm.messages (tenant_id, conversation_id, seq) where is_pinned or role = 'system';

select llm._protect_tenant_table('llm.messages'::regclass, 'select'::text);
select llm._protect_user_rows('llm.messages'::regclass);
drop policy if exists not_deleted on llm.messages;
create policy not_deleted on llm.messages as restrictive to llm_app, llm_reader using (deleted_at is null);
drop policy if exists written_by_function on llm.messages;
create policy written_by_function on llm.messages to llm_owner using (true) with check (true);

create or replace trigger messages
    after delete on llm.conversations
    for each row execute function llm._delete_messages();

create or replace view llm.session_history with (security_invoker = true) as
select
    m.tenant_id,
    m.message_id as id,
    c.session_id,
    llm._message_text(m.content) as message,
    m.role,
    m.created_at,
    m.conversation_id,
    m.seq
from llm.messages m
join llm.conversations c on c.tenant_id = m.tenant_id and c.conversation_id = m.conversation_id
where c.session_id is not null
    and c.deleted_at is null
    and m.deleted_at is null;

comment on view llm.session_history is
'The messages of sessions: id is the message''s, message its text, seq its number in the conversation. Order by conversation_id, seq.';

alter view llm.session_history owner to llm_owner;
grant select on llm.session_history to llm_admin, llm_app, llm_reader;

select llm.register_personal_data('llm.messages'::regclass, 'user_id'::text, 'delete'::text, null::regclass, null::text[], null::text);
