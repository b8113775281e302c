-- Circuit breakers.

create table if not exists llm.breakers (
    tenant_id          text collate "C" not null,
    service            text collate "C" not null check (octet_length(service) between 1 and 200),
    state              text collate "C" not null default 'closed' check (state in ('closed', 'open', 'half_open')),
    failures           integer not null default 0,
    successes          integer not null default 0,
    retry_at           timestamptz,
    probe              uuid,
    last_error         text,
    changed_at         timestamptz not null default clock_timestamp(),
    failure_threshold  integer not null default 5 check (failure_threshold between 1 and 1000000),
    success_threshold  integer not null default 1 check (success_threshold between 1 and 1000),
    timeout            interval not null default interval '30 seconds' check (timeout between interval '1 millisecond' and interval '1 day'),

    primary key (tenant_id, service),
    constraint breakers_times_check check ((state = 'closed') = (retry_at is null) and (state = 'half_open' or probe is null))
) with (fillfactor = 50);

comment on table llm.breakers is
'Circuit breakers that were set, or have seen a failure. closed: calls go on; failures: how many failed in a row, failure_threshold of which open it.
open: none goes on before retry_at. half_open: one at a time, with the token probe, until success_threshold of them in a row have succeeded; one that
has not come back by retry_at has its place taken by another. timeout: from opening to the first probe, and how long one may take. changed_at: since
when it is in its state. Written by functions only.';

select llm._protect_tenant_table('llm.breakers'::regclass, 'select'::text);
-- Its functions run as llm_owner and name the tenant in each statement.
drop policy if exists used_by_function on llm.breakers;
create policy used_by_function on llm.breakers to llm_owner using (true) with check (true);
