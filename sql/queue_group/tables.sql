-- Groups of jobs: of one group only so many run at a time, in order.

create table if not exists llm.job_groups (
    tenant_id    text collate "C" not null check (tenant_id <> '*'),
    queue        text collate "C" not null,
    group_key    text collate "C" not null,
    max_running  integer check (max_running between 1 and 100000),
    turns        bigint not null default 0,

    primary key (tenant_id, queue, group_key)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

comment on table llm.job_groups is
'Groups that have had jobs lately, or a limit of their own (max_running, null: the queue''s). turns is raised by whoever looks for the group''s next
job, so that they do so one after the other.';

select llm._protect_tenant_table('llm.job_groups'::regclass, 'select'::text);
drop policy if exists used_by_function on llm.job_groups;
create policy used_by_function on llm.job_groups to llm_owner using (true) with check (true);

create table if not exists llm.job_turns (
    tenant_id   text collate "C" not null check (tenant_id <> '*'),
    queue       text collate "C" not null,
    group_key   text collate "C" not null,
    job_id      bigint not null,
    holds_slot  boolean not null default false,

    primary key (tenant_id, queue, group_key, job_id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

comment on table llm.job_turns is
'Jobs with a group, in the order in which they are to be done. holds_slot: it is one of those that may run now, and is ready, runs, or comes back.';

-- "how many of a group may run now"
create index if not exists job_turns_slots on llm.job_turns (tenant_id, queue, group_key) where holds_slot;
select llm._protect_tenant_table('llm.job_turns'::regclass, 'select'::text);
drop policy if exists used_by_function on llm.job_turns;
create policy used_by_function on llm.job_turns to llm_owner using (true) with check (true);
