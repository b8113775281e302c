create function llm._queue_embedding()
    returns trigger
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    -- Its plan may be made while there is no job yet.
    set enable_seqscan = off
    set enable_bitmapscan = off
as $$
begin
    if tg_op = 'DELETE' or new.embedding is not null or new.content is null then
        delete from llm.embedding_jobs j
        where j.tenant_id = old.tenant_id
            and j.collection = tg_argv[0]
            and j.point_id = old.id;
    else
        insert into llm.embedding_jobs as j (tenant_id, collection, point_id, user_id, content_hash, model)
        values (new.tenant_id, tg_argv[0], new.id, new.user_id, new.content_hash, new.model)
        on conflict (tenant_id, collection, point_id) do update
            set user_id = excluded.user_id,
                content_hash = excluded.content_hash,
                model = excluded.model,
                attempts = 0,
                due_at = excluded.due_at,
                token = null,
                last_error = null,
                died_at = null,
                created_at = excluded.created_at;
    end if;
    return null;
end
$$;

comment on function llm._queue_embedding() is
'Trigger of tables of points: makes, renews and removes the job of a point. Its argument is the collection.';


create function llm._drop_embedding_jobs()
    returns trigger
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    delete from llm.embedding_jobs j where j.collection = old.collection;
    return null;
end
$$;

comment on function llm._drop_embedding_jobs() is
'Trigger of llm.embedding_queues: the jobs of a collection go with it.';


create function llm._watch_embeddings(
    p_collection text
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_table   regclass := format('llm.%I', 'points_' || p_collection)::regclass;
    v_trigger record;
begin
    for v_trigger in
        select *
        from (
            values
                ('embed_inserted', 'insert', 'new.embedding is null and new.content is not null'),
                (
                    'embed_updated', 'update',
                    'old.embedding is null and (new.embedding is not null or new.content is null)'
                    ' or new.embedding is null and new.content is not null and (old.embedding is not null or old.content is null'
                    ' or (old.content_hash, old.model, old.user_id) is distinct from (new.content_hash, new.model, new.user_id))'
                ),
                ('embed_deleted', 'delete', 'old.embedding is null')
        ) t (name, event, condition)
        -- Making one again would wait for all writers.
        where not exists (select from pg_trigger g where g.tgrelid = v_table and g.tgname = t.name)
    loop
        execute format(
            'create trigger %I after %s on %s for each row when (%s) execute function llm._queue_embedding(%L)',
            v_trigger.name, v_trigger.event, v_table, v_trigger.condition, p_collection
        );
    end loop;
end
$$;

comment on function llm._watch_embeddings(text) is
'Makes the triggers that turn points without a vector into jobs. What has a vector costs one comparison.';


-- security definer: tables of points, and their triggers, are llm_owner''s.
create function llm.set_embedding_model(
    p_collection        text,
    p_model             text,
    p_max_attempts      integer default 8,
    p_base_delay        interval default '1 second',
    p_failure_threshold integer default 5,
    p_open_for          interval default '30 seconds'
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_collection llm.collection := llm._find_collection(p_collection);
    v_table      text := format('llm.%I', 'points_' || v_collection.name);
    v_name       text;
    v_jobs       bigint;
begin
    if p_model is null then
        delete from llm.embedding_queues q where q.collection = v_collection.name;
        foreach v_name in array array['embed_inserted', 'embed_updated', 'embed_deleted'] loop
            execute format('drop trigger if exists %I on %s', v_name, v_table);
        end loop;
        return 0;
    end if;
    if v_collection.model is distinct from p_model then
        perform llm.alter_collection(
            v_collection.name, null::text, null::integer, null::integer, null::integer, null::integer, null::bigint, null::bigint, null::bigint,
            null::double precision, null::jsonb, null::boolean, p_model
        );
    end if;

    perform llm._watch_embeddings(v_collection.name);
    begin
        insert into llm.embedding_queues as q (collection, max_attempts, base_delay, failure_threshold, open_for)
        values (v_collection.name, p_max_attempts, p_base_delay, p_failure_threshold, p_open_for)
        on conflict (collection) do update
            set max_attempts = excluded.max_attempts,
                base_delay = excluded.base_delay,
                failure_threshold = excluded.failure_threshold,
                open_for = excluded.open_for;
    exception
        when check_violation or not_null_violation then
            raise exception 'jobs cannot be retried like this: % attempts, delay %, circuit opens after % failures for %',
                coalesce(p_max_attempts::text, 'null'), coalesce(p_base_delay::text, 'null'), coalesce(p_failure_threshold::text, 'null'),
                coalesce(p_open_for::text, 'null')
                using errcode = 'invalid_parameter_value',
                      hint = 'Give 1 to 100 attempts, 1 to 1,000 failures, and intervals from a millisecond to an hour.';
    end;
    -- What is pending is embedded by this model, whatever was said before.
    execute format('update %s set model = $1 where embedding is null and content is not null and model is distinct from $1', v_table) using p_model;
    execute format(
        $jobs$
        insert into llm.embedding_jobs (tenant_id, collection, point_id, user_id, content_hash, model)
        select p.tenant_id, %L, p.id, p.user_id, p.content_hash, p.model
        from %s p
        where p.embedding is null
            and p.content is not null
        on conflict (tenant_id, collection, point_id) do nothing
        $jobs$,
        v_collection.name, v_table
    );
    select count(*) into v_jobs from llm.embedding_jobs j where j.collection = v_collection.name and j.died_at is null;
    return v_jobs;
end
$$;

alter function llm.set_embedding_model(text, text, integer, interval, integer, interval) owner to llm_owner;

comment on function llm.set_embedding_model(text, text, integer, interval, integer, interval) is
'Makes the points of a collection that have content and no vector into jobs for workers, those that are there and those to come, in the transaction
that writes them. p_model: the model that embeds them, null for no jobs any more; p_max_attempts: after so many a job is given up; p_base_delay:
before the second one, doubled each time, up to an hour; p_failure_threshold: after so many batches that failed in a row no job is given out for
p_open_for, doubled as long as it goes on, up to an hour. Returns how many jobs are pending. Errors: undefined_object when there is no such
collection; object_not_in_prerequisite_state when it has vectors of another model; invalid_parameter_value.';


-- security definer: llm_admin sees rows of one tenant at a time; here are names of tenants and counts alone.
create function llm.embedding_backlog()
    returns table (tenant_id text, collection text, due bigint, pending bigint, dead bigint)
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
begin
    return query
        select
            j.tenant_id, j.collection, count(*) filter (where j.died_at is null and j.due_at <= statement_timestamp()),
            count(*) filter (where j.died_at is null), count(*) filter (where j.died_at is not null)
        from llm.embedding_jobs j
        group by j.tenant_id, j.collection
        order by j.tenant_id, j.collection;
end
$$;

alter function llm.embedding_backlog() owner to llm_owner;

comment on function llm.embedding_backlog() is
'The tenants with embedding jobs, for a worker that serves all of them: how many are due, how many pending, how many were given up.';


-- security definer: jobs are looked at whosever they are; here are names of collections, counts and times alone.
create function llm._doctor_embeddings()
    returns table (name text, ok boolean, detail text, hint text)
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_wrong text;
begin
    if to_regclass('llm.embedding_jobs') is null then
        return;
    end if;
    select string_agg(format('%s of collection %s, of %s tenants', d.jobs, d.collection, d.tenants), ', ' order by d.collection)
    into v_wrong
    from (
        select j.collection, count(*) as jobs, count(distinct j.tenant_id) as tenants
        from llm.embedding_jobs j
        where j.died_at is not null
        group by j.collection
    ) d;
    return query select
        'no embedding job was given up',
        v_wrong is null,
        coalesce(v_wrong, 'none'),
        'llm.embedding_backlog() names the tenants, llm.embedding_jobs has their last_error. When it is mended: select llm.retry_embedding_jobs(…);';

    select string_agg(format('%s: %s batches failed in a row', q.collection, q.failures), ', ' order by q.collection)
    into v_wrong
    from llm.embedding_queues q
    where q.open_until is not null;
    return query select
        'embedding circuits are closed',
        v_wrong is null,
        coalesce(v_wrong, 'all'),
        'Look at what the model''s endpoint answers: last_error of llm.embedding_jobs. One job at a time is tried, and closes the circuit again.';

    select string_agg(
        format('%s jobs of collection %s, the first since %s', d.jobs, d.collection, to_char(d.due_at, 'YYYY-MM-DD HH24:MI:SS TZ'))
        || case when d.leases > 0 then format(', %s of them left behind by workers', d.leases) else '' end,
        ', ' order by d.collection
    )
    into v_wrong
    from (
        select j.collection, count(*) as jobs, min(j.due_at) as due_at, count(j.token) as leases
        from llm.embedding_jobs j
        join llm.embedding_queues q on q.collection = j.collection and q.open_until is null
        where j.died_at is null
            and j.due_at < statement_timestamp() - interval '10 minutes'
        group by j.collection
    ) d;
    return query select
        'embedding jobs are claimed when they are due',
        v_wrong is null,
        coalesce('due for more than ten minutes: ' || v_wrong, 'none has been due for more than ten minutes'),
        'Start workers for the collection, or more of them, such as pg-llm-embed; and look whether those that ran have crashed.';
end
$$;

alter function llm._doctor_embeddings() owner to llm_owner;

comment on function llm._doctor_embeddings() is
'The part of llm.doctor() about embedding jobs.';


select llm._grant_execute(
    array['llm_owner'],
    '_queue_embedding', '_drop_embedding_jobs', '_watch_embeddings'
);

select llm._grant_execute(
    array['llm_admin'],
    'set_embedding_model'
);

select llm._grant_execute(
    array['llm_admin', 'llm_auditor'],
    'embedding_backlog', '_doctor_embeddings'
);
