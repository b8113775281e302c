create function llm._refuse_stale(
    p_tenant text,
    p_stale  bigint[],
    p_token  bigint
)
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if cardinality(p_stale) = 0 then
        return;
    end if;
    raise exception 'job % is not held by claim %', coalesce(p_stale[1]::text, 'null'), coalesce(p_token::text, 'null')
        using errcode = 'object_not_in_prerequisite_state',
              detail = format('Of those given so are: %s. Nothing was changed.', array_to_string(p_stale[:20], ', ', 'null')),
              hint = 'The lease was over and somebody else has it, or it is done or gone: drop the result. p_strict => false takes the others.';
end
$$;

comment on function llm._refuse_stale(text, bigint[], bigint) is
'Says that jobs are somebody else''s by now, if there are any. Errors: object_not_in_prerequisite_state.';


create function llm._complete_jobs(
    p_tenant  text,
    p_user_id uuid,
    p_ids     bigint[],
    p_token   bigint,
    p_results jsonb[],
    p_strict  boolean
)
    returns bigint[]
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_plain tid[];
    v_done  record;
begin
    -- What has neither a group nor a key, and is not kept, needs nothing but to go.
    v_plain := array(
        select r.ctid
        from llm.jobs r
        where r.tenant_id = p_tenant
            and r.id = any (p_ids)
            and r.token = p_token
            and (p_user_id is null or r.user_id = p_user_id)
            and not r.keep
            and r.group_key is null
            and r.dedup_key is null
        -- Also lets the plan be by this key, made when the table was empty, and the other seemed as good.
        order by r.id
        for update
    );
    if cardinality(v_plain) = cardinality(p_ids) then
        delete from llm.jobs j where j.ctid = any (v_plain);
        return p_ids;
    end if;

    with gone as (
        delete from llm.jobs j
        where j.ctid = any (array(
                select r.ctid
                from llm.jobs r
                where r.tenant_id = p_tenant
                    and r.id = any (p_ids)
                    and r.token = p_token
                    and (p_user_id is null or r.user_id = p_user_id)
                order by r.id
                for update
            ))
        returning j.id, j.queue, j.group_key, j.dedup_key, j.keep, case when j.keep then j end as kept
    )
    select
        array_agg(g.id) as ids, min(g.queue) as queue, array_agg(g.group_key) filter (where g.group_key is not null) as groups,
        array_agg(g.dedup_key) filter (where g.dedup_key is not null) as keys, array_agg(g.kept) filter (where g.keep) as kept
    into v_done
    from gone g;
    if p_strict and cardinality(p_ids) > coalesce(cardinality(v_done.ids), 0) then
        perform llm._refuse_stale(p_tenant, array(select i from unnest(p_ids) i where i is null or i <> all (coalesce(v_done.ids, '{}'))), p_token);
    end if;
    if v_done.kept is not null then
        insert into llm.job_archive (
            tenant_id, id, queue, priority, attempts, created_at, claimed_at, user_id, group_key, worker, payload, result
        )
        select
            k.tenant_id, k.id, k.queue, k.priority, k.attempts, k.created_at, k.due_set_at, k.user_id, k.group_key, k.worker, k.payload,
            p_results[array_position(p_ids, k.id)]
        from unnest(v_done.kept) k;
    end if;
    if coalesce(v_done.groups, v_done.keys) is not null then
        perform llm._let_go(p_tenant, v_done.queue, v_done.ids, v_done.groups, v_done.keys);
    end if;
    return coalesce(v_done.ids, '{}');
end
$$;

comment on function llm._complete_jobs(text, uuid, bigint[], bigint, jsonb[], boolean) is
'The part of llm.complete_jobs() and llm.claim_jobs() that completes.';


-- security definer: as llm.claim_jobs().
create function llm.complete_jobs(
    p_ids     bigint[],
    p_token   bigint,
    p_results jsonb[] default null,
    p_strict  boolean default true
)
    returns bigint[]
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set enable_bitmapscan = off
as $$
begin
    return llm._complete_jobs(llm._job_tenant(), llm.current_user_id(), p_ids, p_token, p_results, p_strict);
end
$$;

alter function llm.complete_jobs(bigint[], bigint, jsonb[], boolean) owner to llm_owner;

comment on function llm.complete_jobs(bigint[], bigint, jsonb[], boolean) is
'Says that jobs are done: they are gone, or in llm.job_archive where the queue keeps them. p_ids: jobs of one claim; p_token: of that claim;
p_results: one for each, for the archive; p_strict: true refuses all when somebody else has one by now, false completes the others. A lease that is
over counts until the job was given to somebody else, or back to the queue. Returns the ids of those completed. Errors:
object_not_in_prerequisite_state when one is not held by this claim, or no tenant is set.';


-- security definer: as llm.claim_jobs().
create function llm.fail_jobs(
    p_ids    bigint[],
    p_token  bigint,
    p_error  text,
    p_retry  boolean default true,
    p_delay  interval default null,
    p_strict boolean default true
)
    returns table (retried bigint, died bigint)
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set enable_bitmapscan = off
as $$
declare
    v_tenant  text := llm._job_tenant();
    v_user_id uuid := llm.current_user_id();
    v_now     timestamptz := clock_timestamp();
    v_failed  record;
begin
    if p_delay is not null and p_delay not between interval '0' and interval '366 days' then
        raise exception 'a job cannot come back after %', p_delay
            using errcode = 'invalid_parameter_value',
                  hint = 'Give 0 to 366 days, or null for the delays of the queue.';
    end if;
    with failing as materialized (
        select
            j.ctid as row,
            case
                when coalesce(p_retry, true) and j.attempts < coalesce(j.max_attempts, q.max_attempts)
                    -- Spread, so that jobs that failed together do not come back together.
                    then v_now + coalesce(p_delay, least(q.base_delay * 2 ^ least(j.attempts - 1, 30), q.max_delay) * (0.5 + random() / 2))
            end as due_at
        from (
            select r.ctid, r.*
            from llm.jobs r
            where r.tenant_id = v_tenant
                and r.id = any (p_ids)
                and r.token = p_token
                and (v_user_id is null or r.user_id = v_user_id)
            order by r.id
            for update
        ) j
        join llm.queues q
            on q.tenant_id = j.tenant_id
            and q.queue = j.queue
    ),
    failed as (
        update llm.jobs j
        set lane = case when f.due_at is not null then 1000 else 1002 end,
            place = case when f.due_at is not null then extract(epoch from f.due_at) * 1000000 else j.id end,
            token = null,
            last_error = left(coalesce(nullif(p_error, ''), 'failed'), 2000),
            due_set_at = v_now,
            due_at = coalesce(f.due_at, v_now)
        from failing f
        where j.ctid = f.row
        returning j.id, j.queue, j.lane, j.group_key, j.dedup_key
    )
    select
        count(*) filter (where f.lane = 1000) as retried, count(*) filter (where f.lane = 1002) as died,
        array_agg(f.id) as ids, min(f.queue) as queue,
        array_agg(f.id) filter (where f.lane = 1002) as dead,
        array_agg(f.group_key) filter (where f.lane = 1002 and f.group_key is not null) as groups,
        array_agg(f.dedup_key) filter (where f.lane = 1002 and f.dedup_key is not null) as keys
    into v_failed
    from failed f;
    if p_strict and cardinality(p_ids) > coalesce(cardinality(v_failed.ids), 0) then
        perform llm._refuse_stale(v_tenant, array(select i from unnest(p_ids) i where i is null or i <> all (coalesce(v_failed.ids, '{}'))), p_token);
    end if;
    if coalesce(v_failed.groups, v_failed.keys) is not null then
        perform llm._let_go(v_tenant, v_failed.queue, v_failed.dead, v_failed.groups, v_failed.keys);
    end if;
    retried := v_failed.retried;
    died := v_failed.died;
    return next;
end
$$;

alter function llm.fail_jobs(bigint[], bigint, text, boolean, interval, boolean) owner to llm_owner;

comment on function llm.fail_jobs(bigint[], bigint, text, boolean, interval, boolean) is
'Gives jobs back that could not be done. p_ids, p_token, p_strict: as llm.complete_jobs(); p_error: why, the first 2,000 characters are kept; p_retry:
true tries them again later, unless this was the last attempt, false gives them up at once; p_delay: when they come back, null for the delay of the
queue, doubled with each attempt. What was given up is a dead letter: see llm.retry_dead_jobs(). Returns how many come back, and how many were given
up. Errors: as llm.complete_jobs(), invalid_parameter_value.';


-- security definer: as llm.claim_jobs().
create function llm.extend_jobs(
    p_ids   bigint[],
    p_token bigint,
    p_lease interval default null
)
    returns bigint[]
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set enable_bitmapscan = off
as $$
declare
    v_tenant  text := llm._job_tenant();
    v_user_id uuid := llm.current_user_id();
    v_now     timestamptz := clock_timestamp();
    v_ids     bigint[];
begin
    if p_lease is not null and p_lease not between interval '1 millisecond' and interval '1 day' then
        raise exception 'a lease cannot last % longer', p_lease
            using errcode = 'invalid_parameter_value',
                  hint = 'Give a millisecond to a day from now, or null for the lease of the queue.';
    end if;
    with held as materialized (
        select j.ctid as row, coalesce(p_lease, q.lease) as lease
        from (
            select r.ctid, r.*
            from llm.jobs r
            where r.tenant_id = v_tenant
                and r.id = any (p_ids)
                and r.token = p_token
                and (v_user_id is null or r.user_id = v_user_id)
            order by r.id
            for update
        ) j
        join llm.queues q
            on q.tenant_id = j.tenant_id
            and q.queue = j.queue
    ),
    extended as (
        update llm.jobs j
        set due_at = v_now + h.lease,
            due_set_at = v_now
        from held h
        where j.ctid = h.row
        returning j.id
    )
    select coalesce(array_agg(e.id), '{}') into v_ids from extended e;
    return v_ids;
end
$$;

alter function llm.extend_jobs(bigint[], bigint, interval) owner to llm_owner;

comment on function llm.extend_jobs(bigint[], bigint, interval) is
'Makes leases last until p_lease from now, null for the queue''s lease: what a worker does from time to time while it works. p_ids, p_token: as
llm.complete_jobs(). Returns those that it still holds: leave the others alone, somebody else has them. Errors: invalid_parameter_value;
object_not_in_prerequisite_state when no tenant is set.';


select llm._grant_execute(
    array['llm_owner'],
    '_refuse_stale', '_complete_jobs'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'complete_jobs', 'fail_jobs', 'extend_jobs'
);
