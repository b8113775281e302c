-- Branches of conversations: each begins at a message of another one.

create table if not exists llm.branches (
    tenant_id        text not null,
    conversation_id  uuid not null,
    branch           bigint not null check (branch > 0),
    user_id          uuid,
    parent_branch    bigint not null,
    forked_at        bigint not null check (forked_at >= 0),
    name             text,
    created_at       timestamptz not null default clock_timestamp(),

    primary key (tenant_id, conversation_id, branch),
    foreign key (tenant_id, conversation_id) references llm.conversations on delete cascade,
    -- Whoever follows parents comes to an end.
    constraint branches_parent_check check (parent_branch >= 0 and parent_branch < branch)
);

comment on table llm.branches is
'Branches of a conversation besides the first, which is 0 and has no row: a branch has the messages of its parent up to number forked_at, and then
its own. user_id is the conversation''s. Written by functions alone.';

select llm._protect_tenant_table('llm.branches'::regclass, 'select'::text);
select llm._protect_user_rows('llm.branches'::regclass);
drop policy if exists written_by_function on llm.branches;
create policy written_by_function on llm.branches to llm_owner using (true) with check (true);

select llm.register_personal_data('llm.branches'::regclass, 'user_id'::text, 'delete'::text, null::regclass, null::text[], null::text);
