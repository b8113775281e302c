-- Conversations: what they are about, and the counters of their messages.

create table if not exists llm.conversations (
    tenant_id        text not null check (tenant_id <> '*'),
    conversation_id  uuid not null,
    user_id          uuid,
    session_id       uuid,
    title            text,
    tags             text[] not null default '{}',
    model_config     jsonb not null default '{}',
    context          jsonb not null default '{}',
    metadata         jsonb not null default '{}',
    branch           bigint not null default 0,
    last_branch      bigint not null default 0,
    last_seq         bigint not null default 0,
    indexed_seq      bigint not null default 0,
    message_count    bigint not null default 0,
    token_count      bigint not null default 0,
    cost             numeric not null default 0,
    created_at       timestamptz not null default clock_timestamp(),
    updated_at       timestamptz not null default clock_timestamp(),
    deleted_at       timestamptz,

    primary key (tenant_id, conversation_id)
-- No index has a column that an append changes: its update stays on the page (HOT), and the page keeps room for that.
) with (fillfactor = 50);

comment on table llm.conversations is
'Conversations of a tenant''s users: context is a snapshot that the application keeps; branch is the one that messages are appended to, last_branch
and last_seq the last numbers given out, indexed_seq how far llm.search_messages() has an index; message_count, token_count and cost count the
messages that are not deleted. Written by functions alone, which lock the row first: so numbers have no gap, and counters are right.';

-- "a user's conversations, newest first", with or without the user
create index if not exists conversations_by_user on llm.conversations (tenant_id, user_id, created_at, conversation_id);
create index if not exists conversations_by_time on llm.conversations (tenant_id, created_at, conversation_id);
create index if not exists conversations_by_session on llm.conversations (tenant_id, session_id) where session_id is not null;
-- "tagged with these"
create index if not exists conversations_by_tag on llm.conversations using gin (tags) where tags <> '{}';
-- "what may be purged"
create index if not exists conversations_deleted on llm.conversations (tenant_id, deleted_at) where deleted_at is not null;

select llm._protect_tenant_table('llm.conversations'::regclass, 'select'::text);
select llm._protect_user_rows('llm.conversations'::regclass);
drop policy if exists not_deleted on llm.conversations;
create policy not_deleted on llm.conversations as restrictive to llm_app, llm_reader using (deleted_at is null);
-- Functions ask for the tenant themselves, once.
drop policy if exists written_by_function on llm.conversations;
create policy written_by_function on llm.conversations to llm_owner using (true) with check (true);

select llm.register_personal_data('llm.conversations'::regclass, 'user_id'::text, 'delete'::text, null::regclass, null::text[], null::text);
