-- Looking after queues

-- security definer: queues are written by functions alone; the tenant is named in each statement.
create function llm.pause_queue(
    p_queue text
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._job_tenant();
begin
    update llm.queues q
    set paused_at = clock_timestamp()
    where q.tenant_id = v_tenant
        and q.queue = p_queue
        and q.paused_at is null;
    return found;
end
$$;

alter function llm.pause_queue(text) owner to llm_owner;

comment on function llm.pause_queue(text) is
'Lets nothing be claimed from a queue; what runs may end, and jobs can be enqueued. Returns false when it was paused, or is not there. Errors:
object_not_in_prerequisite_state when no tenant is set.';


-- security definer: as llm.pause_queue().
create function llm.resume_queue(
    p_queue text
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._job_tenant();
begin
    update llm.queues q
    set paused_at = null
    where q.tenant_id = v_tenant
        and q.queue = p_queue
        and q.paused_at is not null;
    return found;
end
$$;

alter function llm.resume_queue(text) owner to llm_owner;

comment on function llm.resume_queue(text) is
'Ends llm.pause_queue(). Returns false when the queue was not paused. Errors: object_not_in_prerequisite_state when no tenant is set.';


-- security definer: as llm.enqueue().
create function llm.cancel_jobs(
    p_ids   bigint[],
    p_force boolean default false
)
    returns bigint[]
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := llm._job_tenant();
    v_user_id uuid := llm.current_user_id();
    v_ids     bigint[] := '{}';
    v_gone    record;
begin
    for v_gone in
        with chosen as (
            select j.id
            from llm.jobs j
            where j.tenant_id = v_tenant
                and j.id = any (p_ids)
                and (p_force or j.token is null)
                and (v_user_id is null or j.user_id = v_user_id)
            order by j.id
            for update
        ),
        gone as (
            delete from llm.jobs j
            where j.tenant_id = v_tenant
                and j.id in (select c.id from chosen c)
            returning j.id, j.queue, j.group_key, j.dedup_key
        )
        select
            g.queue, array_agg(g.id) as ids, array_agg(g.group_key) filter (where g.group_key is not null) as groups,
            array_agg(g.dedup_key) filter (where g.dedup_key is not null) as keys
        from gone g
        group by g.queue
        order by g.queue
    loop
        v_ids := v_ids || v_gone.ids;
        perform llm._let_go(v_tenant, v_gone.queue, v_gone.ids, v_gone.groups, v_gone.keys);
    end loop;
    return v_ids;
end
$$;

alter function llm.cancel_jobs(bigint[], boolean) owner to llm_owner;

comment on function llm.cancel_jobs(bigint[], boolean) is
'Removes jobs that need not be done any more, dead ones too. p_ids: which; p_force: also what a worker has, who will be refused when it is done.
Returns those that were removed. Errors: object_not_in_prerequisite_state when no tenant is set.';


-- security definer: as llm.enqueue().
create function llm.purge_queue(
    p_queue text,
    p_state text default 'ready',
    p_older interval default null
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._job_tenant();
    v_ids    bigint[];
begin
    if p_state is null or p_state not in ('ready', 'waiting', 'scheduled', 'running', 'dead', 'all') then
        raise exception 'jobs cannot be in state %', coalesce(quote_literal(p_state), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'States are ready, waiting, scheduled, running and dead; all is all of them.';
    end if;
    v_ids := array(
        select j.id
        from llm.jobs j
        where j.tenant_id = v_tenant
            and j.queue = p_queue
            and (p_state = 'all' or llm._job_state(j.lane, j.token) = p_state)
            and (p_older is null or j.created_at < clock_timestamp() - p_older)
    );
    return cardinality(llm.cancel_jobs(v_ids, p_state in ('running', 'all')));
end
$$;

alter function llm.purge_queue(text, text, interval) owner to llm_owner;

comment on function llm.purge_queue(text, text, interval) is
'Removes the jobs of a queue. p_state: those that are ready, or waiting, scheduled, running, dead; all: all of them; p_older: only those enqueued
longer ago. Returns how many. Errors: invalid_parameter_value; object_not_in_prerequisite_state when no tenant is set.';


-- security definer: as llm.enqueue().
create function llm.retry_dead_jobs(
    p_queue text,
    p_ids   bigint[] default null
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := llm._job_tenant();
    v_user_id uuid := llm.current_user_id();
    -- Before a place is drawn: llm._low_mark() relies on it.
    v_xid     xid8 := pg_current_xact_id();
    v_revived record;
begin
    with chosen as materialized (
        select j.id
        from llm.jobs j
        where j.tenant_id = v_tenant
            and j.queue = p_queue
            and j.lane = 1002
            and (p_ids is null or j.id = any (p_ids))
            and (v_user_id is null or j.user_id = v_user_id)
        order by j.id
        for update
    ),
    revived as (
        update llm.jobs j
        set lane = case when j.group_key is null then j.priority else 1001 end,
            place = case when j.group_key is null then nextval('llm.jobs_id_seq'::regclass) else j.id end,
            attempts = 0,
            -- Another job may have it by now.
            dedup_key = null
        where j.tenant_id = v_tenant
            and j.id in (select c.id from chosen c)
        returning j.id, j.group_key
    ),
    turns as (
        insert into llm.job_turns (tenant_id, queue, group_key, job_id)
        select v_tenant, p_queue, r.group_key, r.id from revived r where r.group_key is not null
    )
    select count(*) as jobs, array_agg(r.group_key) filter (where r.group_key is not null) as groups into v_revived from revived r;
    perform llm._settle_groups(v_tenant, p_queue, v_revived.groups);
    return v_revived.jobs;
end
$$;

alter function llm.retry_dead_jobs(text, bigint[]) owner to llm_owner;

comment on function llm.retry_dead_jobs(text, bigint[]) is
'Tries jobs again that were given up, with as many attempts as new ones. p_ids: these, null for all of the queue. Returns how many. Errors:
object_not_in_prerequisite_state when no tenant is set.';


create function llm.list_jobs(
    p_queue text,
    p_state text default null,
    p_limit integer default 100,
    p_after bigint default 0
)
    returns table (
        id bigint, state text, priority integer, attempts integer, due_at timestamptz, created_at timestamptz, group_key text, user_id uuid,
        worker text, last_error text, payload jsonb
    )
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select
            j.id, llm._job_state(j.lane, j.token), j.priority, j.attempts, case when j.token is not null or j.lane in (1000, 1002) then j.due_at end,
            j.created_at, j.group_key, j.user_id, j.worker, j.last_error, j.payload
        from llm.jobs j
        where j.queue = p_queue
            and (p_state is null or llm._job_state(j.lane, j.token) = p_state)
            and j.id > p_after
        order by j.id
        limit p_limit;
end
$$;

comment on function llm.list_jobs(text, text, integer, bigint) is
'The jobs of a queue, in the order of their ids. p_state: ready, waiting, scheduled, running or dead, null for all; p_limit: at most so many; p_after:
those after this id. due_at: when a lease ends, a job is due, or was given up.';


create function llm.job_result(
    p_id bigint
)
    returns table (state text, result jsonb, attempts integer, finished_at timestamptz, last_error text)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select llm._job_state(j.lane, j.token), null::jsonb, j.attempts, null::timestamptz, j.last_error from llm.jobs j where j.id = p_id
        union all
        select 'done', a.result, a.attempts, a.finished_at, null from llm.job_archive a where a.id = p_id
        limit 1;
end
$$;

comment on function llm.job_result(bigint) is
'What became of a job: its state, or done, with the result, when the queue keeps what is done. No row when it is unknown, or was not kept.';


select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'pause_queue', 'resume_queue', 'cancel_jobs', 'purge_queue', 'retry_dead_jobs'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'list_jobs', 'job_result'
);
