create type llm.embedding_job as (
    id          bigint,
    token       uuid,
    point_id    text,
    content     text,
    model       text,
    dimensions  integer,
    attempt     integer
);

comment on type llm.embedding_job is
'A text to embed. token: of the claim, which llm.complete_embedding_jobs() and llm.fail_embedding_jobs() want to see; model, dimensions: of the
vector; attempt: how often the text was claimed, with this time.';


-- security definer: jobs and points are written by functions alone; tenant and user are named in each statement.
create function llm.claim_embedding_jobs(
    p_collection text,
    p_limit      integer default 64,
    p_lease      interval default '5 minutes',
    p_model      text default null
)
    returns setof llm.embedding_job
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
as $$
declare
    v_collection llm.collection := llm._find_collection(p_collection);
    v_tenant     text := llm._point_tenant();
    v_user_id    uuid := llm.current_user_id();
    v_token      uuid := gen_random_uuid();
    v_now        timestamptz := clock_timestamp();
    v_queue      llm.embedding_queues;
    v_ids        bigint[];
    v_died       bigint;
begin
    if p_limit is null or p_limit not between 1 and 10000 or p_lease is null
        or p_lease not between interval '1 millisecond' and interval '1 day'
    then
        raise exception '% jobs cannot be claimed for %', coalesce(p_limit::text, 'null'), coalesce(p_lease::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Claim 1 to 10,000 jobs, for a millisecond to a day: longer than a batch takes, so that nobody else does it meanwhile.';
    end if;
    select * into v_queue from llm.embedding_queues q where q.collection = v_collection.name;
    if not found then
        raise exception 'collection % has no embedding jobs', v_collection.name
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Run: select llm.set_embedding_model(…);';
    end if;
    if v_queue.open_until is not null then
        -- One worker at a time tries one job, when it is time to.
        update llm.embedding_queues q
        set open_until = v_now + p_lease
        where q.collection = v_collection.name
            and q.open_until <= v_now;
        if not found then
            return;
        end if;
        p_limit := 1;
    end if;

    loop
        with due as materialized (
            select j.id
            from llm.embedding_jobs j
            where j.tenant_id = v_tenant
                and (v_user_id is null or j.user_id = v_user_id)
                and j.collection = v_collection.name
                and j.died_at is null
                and j.due_at <= v_now
                and (p_model is null or j.model = p_model)
            order by j.due_at
            limit p_limit
            for update skip locked
        ),
        claimed as (
            update llm.embedding_jobs j
            set token = case when j.attempts < v_queue.max_attempts then v_token end,
                attempts = least(j.attempts + 1, v_queue.max_attempts),
                due_at = case when j.attempts < v_queue.max_attempts then v_now + p_lease else j.due_at end,
                died_at = case when j.attempts >= v_queue.max_attempts then v_now end,
                last_error = case
                    when j.attempts >= v_queue.max_attempts then coalesce(j.last_error, 'no worker that claimed it came back')
                    else j.last_error
                end
            from due d
            where j.tenant_id = v_tenant
                and j.id = d.id
            returning j.id, j.token
        )
        select array_agg(c.id order by c.id) filter (where c.token is not null), count(*) filter (where c.token is null)
        into v_ids, v_died
        from claimed c;
        -- If all of them were given up, there may be others.
        exit when v_ids is not null or v_died = 0;
    end loop;
    if v_ids is null then
        update llm.embedding_queues q
        set open_until = v_queue.open_until
        where v_queue.open_until is not null
            and q.collection = v_collection.name;
        return;
    end if;

    -- A statement of its own: while these jobs are locked, no other content of theirs can be committed.
    return query execute format(
        $claimed$
        select j.id, j.token, j.point_id, p.content, j.model, $3, j.attempts
        from unnest($2) i (id)
        cross join lateral (select * from llm.embedding_jobs j where j.tenant_id = $1 and j.id = i.id limit 1) j
        cross join lateral (select p.content from llm.%I p where p.tenant_id = $1 and p.id = j.point_id limit 1) p
        $claimed$,
        'points_' || v_collection.name
    )
    using v_tenant, v_ids, v_collection.dimensions;
end
$$;

alter function llm.claim_embedding_jobs(text, integer, interval, text) owner to llm_owner;

comment on function llm.claim_embedding_jobs(text, integer, interval, text) is
'Takes texts to embed, of the current tenant and of the user if one is set, those that have waited longest first; nobody else gets them until the
lease ends. p_collection: whose; p_limit: at most so many; p_lease: how long; p_model: only those for this model, null for all. Commit before
embedding them. No rows when none is due, or while the collection''s circuit is open; when it is half-open, one. Errors: undefined_object,
invalid_parameter_value, object_not_in_prerequisite_state when there is no tenant or the collection has no jobs.';


-- security definer: as llm.claim_embedding_jobs().
create function llm.complete_embedding_jobs(
    p_ids        bigint[],
    p_token      uuid,
    p_embeddings @extschema:vector@.vector[]
)
    returns table (stored bigint, dropped bigint)
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant     text := llm._point_tenant();
    v_user_id    uuid := llm.current_user_id();
    v_count      bigint := coalesce(cardinality(p_ids), 0);
    v_collection llm.collection;
    v_given      record;
begin
    if cardinality(p_embeddings) is distinct from v_count then
        raise exception 'there are % jobs and % vectors', v_count, coalesce(cardinality(p_embeddings), 0)
            using errcode = 'array_subscript_error',
                  hint = 'Give a vector for each; llm.fail_embedding_jobs() is for those that have none.';
    end if;
    select
        min(j.collection) as collection, array_agg(j.point_id) as point_ids, array_agg(j.content_hash) as hashes, array_agg(j.model) as models,
        array_agg(g.embedding) as embeddings
    into v_given
    from unnest(p_ids, p_embeddings) g (id, embedding)
    -- A look-up for each, here and below, whatever the planner thinks of tables that fill and empty all day.
    cross join lateral (select * from llm.embedding_jobs j where j.tenant_id = v_tenant and j.id = g.id limit 1) j
    where j.token = p_token
        and (v_user_id is null or j.user_id = v_user_id);
    stored := 0;
    if v_given.collection is not null then
        v_collection := llm._find_collection(v_given.collection);
        perform llm._check_points(v_collection, v_given.point_ids, v_given.embeddings, null::text[], null::jsonb[], null::uuid[]);
        execute format(
            $store$
            with due as (
                select p.id, g.embedding
                from (select * from unnest($2, $3, $4, $5) i (id, content_hash, model, embedding) order by i.id collate "C") g
                cross join lateral (select * from llm.%1$I p where p.tenant_id = $1 and p.id = g.id limit 1 for no key update) p
                where p.content_hash = g.content_hash
                    and p.model is not distinct from g.model
                    and p.embedding is null
            )
            update llm.%1$I p
            -- Under another number, so that no segment's index must take it in.
            set number = default,
                embedding = d.embedding::%2$s,
                updated_at = clock_timestamp()
            from due d
            where p.tenant_id = $1
                and p.id = d.id
            $store$,
            'points_' || v_collection.name, llm._vector_type(v_collection)
        )
        using v_tenant, v_given.point_ids, v_given.hashes, v_given.models, v_given.embeddings;
        get diagnostics stored = row_count;
        update llm.embedding_queues q
        set failures = 0,
            open_until = null
        where q.collection = v_collection.name
            and (q.failures > 0 or q.open_until is not null);
    end if;
    dropped := v_count - stored;
    return next;
end
$$;

alter function llm.complete_embedding_jobs(bigint[], uuid, @extschema:vector@.vector[]) owner to llm_owner;

comment on function llm.complete_embedding_jobs(bigint[], uuid, @extschema:vector@.vector[]) is
'Stores the vectors of jobs, and closes the collection''s circuit. p_ids: jobs of one claim; p_token: of that claim; p_embeddings: a vector for each.
Returns how many were stored, and how many were dropped: their text has changed or gone meanwhile, or somebody else has claimed them after the lease.
Errors: invalid_parameter_value for a vector of other dimensions, or zero by cosine distance: none is stored then; array_subscript_error;
object_not_in_prerequisite_state when no tenant is set.';


-- security definer: as llm.claim_embedding_jobs().
create function llm.fail_embedding_jobs(
    p_ids     bigint[],
    p_token   uuid,
    p_error   text,
    p_retry   boolean default true
)
    returns table (retried bigint, died bigint)
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant     text := llm._point_tenant();
    v_user_id    uuid := llm.current_user_id();
    v_now        timestamptz := clock_timestamp();
    v_collection text;
begin
    with failed as (
        select j.id, q.max_attempts, q.base_delay
        from llm.embedding_jobs j
        join llm.embedding_queues q on q.collection = j.collection
        where j.tenant_id = v_tenant
            and j.id = any (p_ids)
            and j.token = p_token
            and (v_user_id is null or j.user_id = v_user_id)
        order by j.point_id
        for update of j
    ),
    settled as (
        update llm.embedding_jobs j
        set token = null,
            last_error = left(coalesce(nullif(p_error, ''), 'failed'), 2000),
            died_at = case when not coalesce(p_retry, true) or j.attempts >= f.max_attempts then v_now end,
            -- Spread, so that jobs that failed together do not come back together.
            due_at = v_now + least(f.base_delay * 2 ^ least(j.attempts - 1, 30), interval '1 hour') * (0.5 + random() / 2)
        from failed f
        where j.tenant_id = v_tenant
            and j.id = f.id
        returning j.collection, j.died_at
    )
    select count(*) filter (where s.died_at is null), count(*) filter (where s.died_at is not null), min(s.collection)
    into retried, died, v_collection
    from settled s;
    if coalesce(p_retry, true) then
        update llm.embedding_queues q
        set failures = q.failures + 1,
            open_until = case
                when q.failures + 1 >= q.failure_threshold
                    then v_now + least(q.open_for * 2 ^ least(q.failures + 1 - q.failure_threshold, 20), interval '1 hour')
            end
        where q.collection = v_collection;
    end if;
    return next;
end
$$;

alter function llm.fail_embedding_jobs(bigint[], uuid, text, boolean) owner to llm_owner;

comment on function llm.fail_embedding_jobs(bigint[], uuid, text, boolean) is
'Gives jobs back that could not be done. p_ids, p_token: as llm.complete_embedding_jobs(); p_error: why, the first 2,000 characters are kept; p_retry:
true tries them again later, unless it was the last attempt, and counts as one failure for the circuit of the collection; false gives them up at once,
as what no model takes. Returns how many will be tried again, and how many were given up; jobs of another claim are neither. Errors:
object_not_in_prerequisite_state when no tenant is set.';


-- security definer: as llm.claim_embedding_jobs().
create function llm.retry_embedding_jobs(
    p_collection text,
    p_ids        bigint[] default null
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_collection llm.collection := llm._find_collection(p_collection);
    v_tenant     text := llm._point_tenant();
    v_user_id    uuid := llm.current_user_id();
    v_count      bigint;
begin
    update llm.embedding_jobs j
    set died_at = null,
        attempts = 0,
        due_at = clock_timestamp()
    where j.tenant_id = v_tenant
        and (v_user_id is null or j.user_id = v_user_id)
        and j.collection = v_collection.name
        and j.died_at is not null
        and (p_ids is null or j.id = any (p_ids));
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

alter function llm.retry_embedding_jobs(text, bigint[]) owner to llm_owner;

comment on function llm.retry_embedding_jobs(text, bigint[]) is
'Tries jobs again that were given up. p_ids: these, null for all of the collection. Returns how many. Errors: undefined_object when there is no such
collection; object_not_in_prerequisite_state when no tenant is set.';


select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'claim_embedding_jobs', 'complete_embedding_jobs', 'fail_embedding_jobs', 'retry_embedding_jobs'
);
