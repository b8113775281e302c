-- Jobs that are done, for queues that keep them. Daily partitions, thirty days kept.

create table if not exists llm.job_archive (
    tenant_id    text collate "C" not null check (tenant_id <> '*'),
    id           bigint not null,
    queue        text collate "C" not null,
    priority     integer not null,
    attempts     integer not null,
    created_at   timestamptz not null,
    claimed_at   timestamptz,
    finished_at  timestamptz not null default clock_timestamp(),
    user_id      uuid,
    group_key    text collate "C",
    worker       text,
    payload      jsonb not null,
    result       jsonb,

    primary key (tenant_id, finished_at, id)
) partition by range (finished_at);

comment on table llm.job_archive is
'Jobs that are done, with what llm.complete_jobs() was given as result. claimed_at: when the claim or the extension came that ended so.';

-- "what became of this job", "all that concerns this user"
create index if not exists job_archive_by_id on llm.job_archive (tenant_id, id);
create index if not exists job_archive_by_user on llm.job_archive (tenant_id, user_id) where user_id is not null;

-- Not again and again: who keeps them for longer, or shorter, has said so by llm.create_partitions().
select llm.create_partitions(('llm.job_archive', 'finished_at', 'daily', coalesce(
    (select s.retention_days from llm.partition_sets s where s.parent = 'llm.job_archive'), 30
))::llm.partition_strategy, null::text);
select llm._protect_tenant_table('llm.job_archive'::regclass, 'select'::text);
select llm._protect_user_rows('llm.job_archive'::regclass);
drop policy if exists used_by_function on llm.job_archive;
create policy used_by_function on llm.job_archive to llm_owner using (true) with check (true);
alter policy user_isolation on llm.job_archive to llm_admin, llm_app, llm_reader, llm_auditor;
select llm.register_personal_data('llm.job_archive'::regclass, 'user_id'::text, 'delete'::text, null::regclass, null::text[], null::text);
