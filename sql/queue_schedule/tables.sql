-- Jobs that are enqueued again and again, as cron would.

create table if not exists llm.job_schedules (
    tenant_id     text collate "C" not null check (tenant_id <> '*'),
    name          text collate "C" not null check (octet_length(name) between 1 and 200),
    queue         text collate "C" not null,
    cron          text not null,
    time_zone     text not null default 'UTC',
    payload       jsonb not null,
    priority      integer not null default 0,
    group_key     text collate "C",
    max_attempts  integer,
    next_at       timestamptz,
    last_at       timestamptz,
    last_job      bigint,
    last_error    text,
    created_at    timestamptz not null default now(),

    primary key (tenant_id, name)
);

comment on table llm.job_schedules is
'Jobs that llm.schedule_job() was told of. next_at: when the next one is enqueued, null for never again; last_at: the time for which the last one
was; last_job: its id; last_error: why it could not be.';

create index if not exists job_schedules_next on llm.job_schedules (tenant_id, next_at);
select llm._protect_tenant_table('llm.job_schedules'::regclass, 'select'::text);
drop policy if exists used_by_function on llm.job_schedules;
create policy used_by_function on llm.job_schedules to llm_owner using (true) with check (true);
