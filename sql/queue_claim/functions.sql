-- Where the ready jobs of a queue begin

create type llm.queue_mark as (
    low        bigint,
    candidate  bigint,
    horizon    xid8,
    drawn      bigint,
    lane       text
);

comment on type llm.queue_mark is
'What a session knows of the ready jobs of a queue and priority (lane): none is, or ever will be, before position low; nor before candidate, once all
transactions before horizon are over. drawn: up to which number places had been drawn when that was found.';


create function llm._low_mark(
    p_tenant   text,
    p_queue    text,
    p_priority integer,
    p_low      bigint,
    p_drawn    bigint
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_lane      text := p_tenant || E'\n' || p_priority || E'\n' || p_queue;
    v_setting   text := 'llm.queue_mark_' || to_hex(hashtextextended(v_lane, 0));
    v_mark      llm.queue_mark := nullif(current_setting(v_setting, true), '')::llm.queue_mark;
    v_is_known  boolean := coalesce(v_mark.lane = v_lane and v_mark.drawn <= p_drawn, false);
    v_low       bigint := case when v_is_known then greatest(v_mark.low, p_low) else p_low end;
    v_candidate bigint := case when v_is_known then v_mark.candidate else p_low end;
    v_horizon   xid8 := case when v_is_known then v_mark.horizon else '3' end;
    v_first     record;
begin
    -- Rows that others have locked, or claimed without a commit yet, count: they may be left ready.
    select j.place, pg_snapshot_xmin(s.now) as xmin, pg_snapshot_xmax(s.now) as xmax
    into v_first
    from pg_current_snapshot() s (now)
    left join lateral (
        select r.place
        from llm.jobs r
        where r.tenant_id = p_tenant
            and r.queue = p_queue
            and r.lane = p_priority
            and r.place >= v_low
            and r.token is null
        order by r.place
        limit 1
    ) j on true;
    -- Whoever has drawn a place before that of a row seen here had its transaction id before, and so one before xmax. When all of those are
    -- over, and seen, nothing can appear before that row any more.
    if v_first.xmin >= v_horizon then
        v_low := greatest(v_low, least(v_candidate, coalesce(v_first.place, v_candidate)));
    end if;
    if v_first.place is not null and (v_first.xmin >= v_horizon or v_horizon > v_first.xmax) then
        v_candidate := v_first.place;
        v_horizon := v_first.xmax;
    end if;
    perform set_config(v_setting, (v_low, v_candidate, v_horizon, p_drawn, v_lane)::llm.queue_mark::text, false);

    if v_low > p_low + 50000 then
        -- For sessions that are new. Seldom, because the versions of this row that a pinned horizon keeps are read by all; and waiting for nobody.
        update llm.queues q
        set lows[array_position(q.priorities, p_priority)] = v_low
        where q.ctid = (
                select l.ctid from llm.queues l where l.tenant_id = p_tenant and l.queue = p_queue for no key update skip locked
            )
            and q.tenant_id = p_tenant
            and q.lows[array_position(q.priorities, p_priority)] < v_low;
    end if;
    return v_low;
end
$$;

comment on function llm._low_mark(text, text, integer, bigint, bigint) is
'A place before which no job of a queue and priority is ready or ever will be. Claims begin there instead of at the dead entries that an index keeps
of jobs that are gone, as long as some transaction could still see them. It holds because whoever makes a job ready draws a new place for it, with
a transaction id in hand. p_low: what llm.queues knows; p_drawn: a number just drawn from the sequence of places.';


-- Claiming

create function llm._sweep_queue(
    p_tenant       text,
    p_queue        text,
    p_max_attempts integer,
    p_now          timestamptz
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_until bigint := extract(epoch from p_now) * 1000000;
    v_xid   xid8;
    v_ids   bigint[];
    v_swept record;
begin
    -- Claims take the first jobs that nobody has locked: behind this many that nobody has, nobody has one.
    v_ids := array(
        select j.id
        from llm.queues q
        cross join unnest(q.priorities, q.lows) l (priority, low)
        cross join lateral (
            select r.id
            from llm.jobs r
            where r.tenant_id = p_tenant
                and r.queue = p_queue
                and r.lane = l.priority
                and r.place < coalesce(
                    (
                        select f.place
                        from llm.jobs f
                        where f.tenant_id = p_tenant
                            and f.queue = p_queue
                            and f.lane = l.priority
                            and f.place >= l.low
                            and f.token is null
                        order by f.place
                        offset 2000
                        limit 1
                    ),
                    9223372036854775807
                )
                and r.token is not null
                and r.due_at <= p_now
            order by r.place
            limit 1000
        ) j
        where q.tenant_id = p_tenant
            and q.queue = p_queue
        union all
        (
            select j.id
            from llm.jobs j
            where j.tenant_id = p_tenant
                and j.queue = p_queue
                and j.lane = 1000
                and j.place <= v_until
            order by j.place
            limit 1000
        )
    );
    if cardinality(v_ids) = 0 then
        return 0;
    end if;
    -- Before a place is drawn: llm._low_mark() relies on it.
    v_xid := pg_current_xact_id();
    with due as materialized (
        select
            j.ctid as row,
            case
                when j.token is not null and j.attempts >= coalesce(j.max_attempts, p_max_attempts) then 1002
                when j.lane = 1000 and j.attempts = 0 and j.group_key is not null then 1001
                else j.priority
            end as lane
        from llm.jobs j
        where j.tenant_id = p_tenant
            and j.id = any (v_ids)
            and j.due_at <= p_now
            and (j.lane = 1000 or j.lane <= 100 and j.token is not null)
        order by j.id
        for update skip locked
    ),
    swept as (
        update llm.jobs j
        set lane = d.lane,
            place = case when d.lane <= 100 then nextval('llm.jobs_id_seq'::regclass) else j.id end,
            token = null,
            due_at = p_now,
            last_error = case when j.token is not null then 'the worker that claimed it did not come back' else j.last_error end
        from due d
        where j.ctid = d.row
        returning j.id, j.lane, j.group_key, j.dedup_key
    )
    select
        count(*) as jobs,
        array_agg(s.id) filter (where s.lane = 1002) as dead,
        array_agg(s.group_key) filter (where s.lane = 1002 and s.group_key is not null) as dead_groups,
        array_agg(s.dedup_key) filter (where s.lane = 1002 and s.dedup_key is not null) as dead_keys,
        array_agg(s.id) filter (where s.lane = 1001) as waiting,
        array_agg(s.group_key) filter (where s.lane = 1001) as groups
    into v_swept
    from swept s;
    if v_swept.groups is not null then
        insert into llm.job_turns (tenant_id, queue, group_key, job_id)
        select p_tenant, p_queue, w.group_key, w.id from unnest(v_swept.waiting, v_swept.groups) w (id, group_key) order by w.group_key, w.id;
    end if;
    if coalesce(v_swept.groups, v_swept.dead_groups, v_swept.dead_keys) is not null then
        perform llm._let_go(p_tenant, p_queue, v_swept.dead, v_swept.dead_groups || v_swept.groups, v_swept.dead_keys);
    end if;
    return v_swept.jobs;
end
$$;

comment on function llm._sweep_queue(text, text, integer, timestamptz) is
'Makes ready what is due by p_now: jobs whose lease is over, those that were delayed, up to 1,000 at a time; gives those up that were claimed
p_max_attempts times, or as often as they say. Returns how many jobs it dealt with.';


-- security definer: jobs are written by functions alone; tenant and user are named in each statement.
create function llm.claim_jobs(
    p_queue   text,
    p_limit   integer default 1,
    p_lease   interval default null,
    p_worker  text default null,
    p_done    bigint[] default null,
    p_token   bigint default null,
    p_results jsonb[] default null
)
    returns setof llm.job
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    -- Plans are kept from when the table was another; and made anew each time they seem cheaper for this very call.
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set enable_bitmapscan = off
as $$
declare
    v_tenant   text := llm._owners_tenant();
    v_user_id  uuid := llm.current_user_id();
    v_token    bigint := nextval('llm.jobs_id_seq'::regclass);
    v_now      timestamptz := clock_timestamp();
    v_until    timestamptz;
    v_setting  text;
    v_epoch    double precision;
    v_next     double precision;
    v_name     text;
    v_mark     llm.queue_mark;
    v_queue    record;
    v_low      bigint;
    v_priority integer;
    v_left     integer := p_limit;
    v_got      integer;
    v_swept    boolean := false;
begin
    if v_tenant is null then
        v_tenant := llm._job_tenant();
    end if;
    if p_limit is null or p_limit not between 0 and 10000 or p_lease not between interval '1 millisecond' and interval '1 day' then
        raise exception '% jobs cannot be claimed for %', coalesce(p_limit::text, 'null'), coalesce(p_lease::text, 'the lease of the queue')
            using errcode = 'invalid_parameter_value',
                  hint = 'Claim up to 10,000 jobs, for a millisecond to a day; llm.extend_jobs() makes it longer.';
    end if;
    if p_done is not null then
        perform llm._complete_jobs(v_tenant, v_user_id, p_done, p_token, p_results, true);
    end if;
    select q.max_attempts, q.lease, q.archive, q.paused_at, q.priorities, q.lows
    into v_queue
    from llm.queues q
    where q.tenant_id = v_tenant
        and q.queue = p_queue;
    if not found or v_queue.paused_at is not null or p_limit = 0 then
        return;
    end if;

    v_until := v_now + coalesce(p_lease, v_queue.lease);
    v_setting := 'llm.queue_sweep_' || to_hex(hashtextextended(v_tenant || E'\n' || p_queue, 0));
    v_epoch := extract(epoch from v_now);
    v_next := nullif(current_setting(v_setting, true), '')::double precision;
    -- Once a second while there is other work, and less often when it takes long. A time too far ahead was set before the clock went back.
    if v_next is null or v_next not between v_epoch and v_epoch + 60 then
        perform llm._sweep_queue(v_tenant, p_queue, v_queue.max_attempts, v_now);
        v_swept := true;
        perform set_config(
            v_setting,
            (v_epoch + least(greatest(1, 20 * extract(epoch from clock_timestamp() - v_now)), 60))::text,
            false
        );
    end if;
    loop
        for v_lane in 1 .. cardinality(v_queue.priorities) loop
            v_priority := v_queue.priorities[v_lane];
            v_name := v_tenant || E'\n' || v_priority || E'\n' || p_queue;
            v_mark := nullif(current_setting('llm.queue_mark_' || to_hex(hashtextextended(v_name, 0)), true), '')::llm.queue_mark;
            if v_mark.lane = v_name and v_token between v_mark.drawn and v_mark.drawn + 64 / p_limit then
                v_low := v_mark.low;
            else
                v_low := llm._low_mark(v_tenant, p_queue, v_priority, v_queue.lows[v_lane], v_token);
            end if;
            return query
                update llm.jobs j
                set token = v_token,
                    attempts = j.attempts + 1,
                    due_at = v_until,
                    due_set_at = v_now,
                    keep = v_queue.archive,
                    worker = p_worker
                where j.ctid = any (array(
                        select r.ctid
                        from llm.jobs r
                        where r.tenant_id = v_tenant
                            and r.queue = p_queue
                            and r.lane = v_priority
                            and r.place >= v_low
                            and r.token is null
                            and (v_user_id is null or r.user_id = v_user_id)
                        order by r.place
                        limit v_left
                        for update skip locked
                    ))
                returning j.id, j.token, j.payload, j.attempts, j.priority, j.group_key, j.user_id, j.created_at, j.due_at;
            get diagnostics v_got = row_count;
            v_left := v_left - v_got;
            exit when v_left = 0;
        end loop;
        -- With nothing else to do there is time to look for what is due.
        exit when v_left < p_limit or v_swept;
        v_swept := true;
        exit when llm._sweep_queue(v_tenant, p_queue, v_queue.max_attempts, v_now) = 0;
    end loop;
end
$$;

alter function llm.claim_jobs(text, integer, interval, text, bigint[], bigint, jsonb[]) owner to llm_owner;

comment on function llm.claim_jobs(text, integer, interval, text, bigint[], bigint, jsonb[]) is
'Takes jobs of the current tenant, and of the user if one is set, those of the highest priority first, then those that became ready first; nobody else
gets them until the lease ends. Commit before doing them; or do what is only SQL in the same transaction. p_queue: no rows when there is no such
queue, when it is paused, or nothing is due; p_limit: at most so many; p_lease: other than the queue''s; p_worker: a name, to be seen in llm.jobs;
p_done, p_token, p_results: completes jobs in the same call, as llm.complete_jobs(), before it claims. Errors: invalid_parameter_value; those of
llm.complete_jobs(), and then nothing is claimed; object_not_in_prerequisite_state when no tenant is set.';


select llm._grant_execute(
    array['llm_owner'],
    '_low_mark', '_sweep_queue'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'claim_jobs'
);
