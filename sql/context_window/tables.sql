-- Summaries of what was said before a message.

create table if not exists llm.summaries (
    tenant_id        text not null,
    conversation_id  uuid not null,
    branch           bigint not null,
    upto             bigint not null check (upto > 0),
    user_id          uuid,
    summary          text not null,
    token_count      integer check (token_count >= 0),
    created_at       timestamptz not null default clock_timestamp(),

    primary key (tenant_id, conversation_id, branch, upto),
    foreign key (tenant_id, conversation_id) references llm.conversations on delete cascade
);

comment on table llm.summaries is
'Summaries of a branch up to message number upto, which is on that branch itself; user_id is the conversation''s; token_count is null when unknown.
Written by llm.save_summary() alone.';

select llm._protect_tenant_table('llm.summaries'::regclass, 'select'::text);
select llm._protect_user_rows('llm.summaries'::regclass);
drop policy if exists written_by_function on llm.summaries;
create policy written_by_function on llm.summaries to llm_owner using (true) with check (true);

select llm.register_personal_data('llm.summaries'::regclass, 'user_id'::text, 'delete'::text, null::regclass, null::text[], null::text);
