-- The words of messages, apart from them: finding words takes several times as long as storing a message, and is done later.

create table if not exists llm.message_index (
    tenant_id   text not null,
    message_id  uuid not null,
    search      tsvector not null,

    primary key (tenant_id, message_id),
    foreign key (tenant_id, message_id) references llm.messages (tenant_id, message_id) on delete cascade
);

comment on table llm.message_index is
'The words of messages, by llm.index_messages(), and as further words whose they are: tenant, user, conversation. For llm.search_messages() alone.';

create index if not exists message_index_search on llm.message_index using gin (search);

create table if not exists llm.message_queue (
    tenant_id        text not null,
    conversation_id  uuid not null,

    primary key (tenant_id, conversation_id),
    foreign key (tenant_id, conversation_id) references llm.conversations on delete cascade
);

comment on table llm.message_queue is
'Conversations with messages that llm.index_messages() has not come to: those after number indexed_seq.';

-- Nobody is granted anything: row-level security of its readers would keep the server from using the index.
alter table llm.message_index owner to llm_owner;
alter table llm.message_index enable row level security;
alter table llm.message_index force row level security;
drop policy if exists used_by_function on llm.message_index;
create policy used_by_function on llm.message_index to llm_owner using (true) with check (true);

alter table llm.message_queue owner to llm_owner;
alter table llm.message_queue enable row level security;
alter table llm.message_queue force row level security;
drop policy if exists used_by_function on llm.message_queue;
create policy used_by_function on llm.message_queue to llm_owner using (true) with check (true);

select llm.register_personal_data('llm.message_index'::regclass, null::text, 'delete'::text, 'llm.messages'::regclass, null::text[], null::text);
select llm.register_personal_data('llm.message_queue'::regclass, null::text, 'delete'::text, 'llm.conversations'::regclass, null::text[], null::text);
