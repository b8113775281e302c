-- How much of a limit is used.

create unlogged table if not exists llm.rate_limits (
    tenant_id  text collate "C" not null,
    subject    bytea not null,
    algorithm  text collate "C" not null check (algorithm in ('sliding_window', 'sliding_log', 'token_bucket')),
    per        interval not null,
    used       double precision not null,
    used_at    timestamptz not null,
    times      timestamptz[],
    costs      bigint[],

    primary key (tenant_id, subject, algorithm, per)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);

comment on table llm.rate_limits is
'What is used of a limit. subject: a hash of resource and identifier, so that nobody''s name is here; used: how much, as it was at used_at; times,
costs: what makes it up (when it was, what it cost), oldest first; none for a token bucket, which drains by itself. Written by functions only;
unlogged: after a crash of the server all limits begin anew.';

select llm._protect_tenant_table('llm.rate_limits'::regclass, 'select'::text);
-- Its functions run as llm_owner and name the tenant in each statement: row-level security would ask for it three times in each call.
drop policy if exists used_by_function on llm.rate_limits;
create policy used_by_function on llm.rate_limits to llm_owner using (true) with check (true);
