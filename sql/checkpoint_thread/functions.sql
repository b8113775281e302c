-- security definer: as llm.put_checkpoint().
create function llm.delete_checkpoint_thread(
    p_thread_id text
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._checkpoint_tenant();
begin
    delete from llm.checkpoint_threads t
    where t.tenant_id = v_tenant
        and t.thread_id = p_thread_id;
    return found;
end
$$;

alter function llm.delete_checkpoint_thread(text) owner to llm_owner;

comment on function llm.delete_checkpoint_thread(text) is
'Deletes a thread with its checkpoints, pending writes and all contents that nothing else refers to; returns whether it was there.
Errors: object_not_in_prerequisite_state when no tenant is set.';


-- security definer: as llm.put_checkpoint().
create function llm.copy_checkpoint_thread(
    p_source text,
    p_target text
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._checkpoint_tenant();
    v_source bigint;
    v_target bigint;
    v_each   record;
    v_count  bigint;
begin
    select t.thread_no
    into v_source
    from llm.checkpoint_threads t
    where t.tenant_id = v_tenant
        and t.thread_id = p_source
    for update;
    if not found then
        raise exception 'thread % does not exist', coalesce(p_source, 'null')
            using errcode = 'no_data_found',
                  hint = 'A thread begins with its first checkpoint; a user sees his own threads only.';
    end if;
    perform llm._require_thread_id(p_target);
    insert into llm.checkpoint_threads (tenant_id, thread_id, user_id)
    select t.tenant_id, p_target, t.user_id
    from llm.checkpoint_threads t
    where t.tenant_id = v_tenant
        and t.thread_no = v_source
    on conflict (tenant_id, thread_id) do nothing
    returning thread_no into v_target;
    if not found then
        raise exception 'thread % is there already', p_target
            using errcode = 'duplicate_object',
                  hint = 'Copy to a new thread, or delete that one first with llm.delete_checkpoint_thread().';
    end if;

    for v_each in
        select s.hash, count(*) as refs
        from (
            select p.hash
            from llm.checkpoint_pieces p
            where p.tenant_id = v_tenant
                and p.thread_no = v_source
            union all
            select w.hash
            from llm.checkpoint_writes w
            where w.tenant_id = v_tenant
                and w.thread_no = v_source
        ) s
        where s.hash is not null
        group by s.hash
        order by s.hash
    loop
        update llm.checkpoint_blobs b
        set refs = b.refs + v_each.refs
        where b.tenant_id = v_tenant
            and b.hash = v_each.hash;
    end loop;
    insert into llm.checkpoint_pieces (tenant_id, thread_no, log_id, number, base_log, ends_at, digest, hash, content)
    select p.tenant_id, v_target, p.log_id, p.number, p.base_log, p.ends_at, p.digest, p.hash, p.content
    from llm.checkpoint_pieces p
    where p.tenant_id = v_tenant
        and p.thread_no = v_source;
    insert into llm.checkpoint_writes (
        tenant_id, thread_no, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, hash, content
    )
    select
        w.tenant_id, v_target, w.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx, w.task_path, w.channel, w.type, w.hash, w.content
    from llm.checkpoint_writes w
    where w.tenant_id = v_tenant
        and w.thread_no = v_source;
    insert into llm.checkpoints (
        tenant_id, thread_no, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata, channels
    )
    select c.tenant_id, v_target, c.checkpoint_ns, c.checkpoint_id, c.parent_checkpoint_id, c.checkpoint, c.metadata, c.channels
    from llm.checkpoints c
    where c.tenant_id = v_tenant
        and c.thread_no = v_source;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

alter function llm.copy_checkpoint_thread(text, text) owner to llm_owner;

comment on function llm.copy_checkpoint_thread(text, text) is
'Copies a thread, with all checkpoints and pending writes, to a new one of the same user; large contents are shared. Returns how many checkpoints.
Errors: no_data_found; duplicate_object when the target is there; object_not_in_prerequisite_state when no tenant is set.';


create function llm._drop_unused_pieces(
    p_tenant text,
    p_thread bigint
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    with recursive used as (
        select (e.value ->> 1)::uuid as log_id, (e.value ->> 2)::integer as number
        from llm.checkpoints c
        cross join jsonb_each(c.channels) e
        where c.tenant_id = p_tenant
            and c.thread_no = p_thread
            and jsonb_array_length(e.value) > 2
        union
        select p.base_log, p.number - 1
        from used u
        join llm.checkpoint_pieces p
            on p.tenant_id = p_tenant
            and p.thread_no = p_thread
            and p.log_id = u.log_id
            and p.number <= u.number
            and p.base_log is not null
    ),
    kept as (
        select u.log_id, max(u.number) as number
        from used u
        group by u.log_id
    )
    delete from llm.checkpoint_pieces p
    where p.tenant_id = p_tenant
        and p.thread_no = p_thread
        and not exists (select from kept k where k.log_id = p.log_id and k.number >= p.number);
end
$$;

comment on function llm._drop_unused_pieces(text, bigint) is
'Deletes the pieces that no checkpoint of a thread needs; the thread is locked.';


create function llm._kept_checkpoints(
    p_tenant text,
    p_thread bigint
)
    returns table (checkpoint_ns text, checkpoint_id text)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        with recursive latest as (
            select distinct on (c.checkpoint_ns) c.checkpoint_ns as ns, c.checkpoint_id as id
            from llm.checkpoints c
            where c.tenant_id = p_tenant
                and c.thread_no = p_thread
            order by c.checkpoint_ns, c.checkpoint_id desc
        ),
        -- A delta channel's value is what its ancestors' writes make of its last snapshot.
        kept as (
            select
                c.checkpoint_ns as ns, c.checkpoint_id as id, c.parent_checkpoint_id as parent, c.metadata -> 'parents' ->> '' as root,
                array(
                    select d.name
                    from jsonb_object_keys(c.metadata -> 'counters_since_delta_snapshot') d (name)
                    where not c.channels ? d.name
                ) as needs
            from latest l
            join llm.checkpoints c
                on c.tenant_id = p_tenant
                and c.thread_no = p_thread
                and c.checkpoint_ns = l.ns
                and c.checkpoint_id = l.id
            union all
            select
                p.checkpoint_ns, p.checkpoint_id, p.parent_checkpoint_id, k.root,
                array(select d.name from unnest(k.needs) d (name) where not p.channels ? d.name)
            from kept k
            join llm.checkpoints p
                on p.tenant_id = p_tenant
                and p.thread_no = p_thread
                and p.checkpoint_ns = k.ns
                and p.checkpoint_id = k.parent
            where k.needs <> '{}'
        )
        -- A call of a subgraph (its namespace names the task after a colon) goes with the checkpoint of the root graph that it started from.
        select k.ns, k.id
        from kept k
        where strpos(k.ns, ':') = 0
            or exists (select from kept r where r.ns = '' and r.id = k.root)
            or not exists (
                select
                from llm.checkpoints r
                where r.tenant_id = p_tenant
                    and r.thread_no = p_thread
                    and r.checkpoint_ns = ''
                    and r.checkpoint_id = k.root
            );
end
$$;

comment on function llm._kept_checkpoints(text, bigint) is
'What pruning leaves of a thread: the latest checkpoint of each namespace, with the ancestors that its delta channels are made of.';


-- security definer: as llm.put_checkpoint().
create function llm.prune_checkpoints(
    p_thread_ids text[],
    p_strategy   text default 'keep_latest'
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._checkpoint_tenant();
    v_thread bigint;
    v_count  bigint;
    v_total  bigint := 0;
begin
    if p_strategy is null or p_strategy not in ('keep_latest', 'delete') then
        raise exception 'checkpoints cannot be pruned by strategy %', coalesce(quote_literal(p_strategy), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Strategies are keep_latest and delete.';
    end if;
    for v_thread in
        select t.thread_no
        from llm.checkpoint_threads t
        where t.tenant_id = v_tenant
            and t.thread_id = any (p_thread_ids)
        order by t.thread_no
        for update
    loop
        -- Told by a write, so that a transaction with an older snapshot that puts a checkpoint here fails instead of building on what is gone.
        update llm.checkpoint_threads t set pruned_at = now() where t.tenant_id = v_tenant and t.thread_no = v_thread;
        with deleted as (
            delete from llm.checkpoints c
            where c.tenant_id = v_tenant
                and c.thread_no = v_thread
                and (
                    p_strategy = 'delete'
                    or (c.checkpoint_ns, c.checkpoint_id) not in (
                        select k.checkpoint_ns, k.checkpoint_id from llm._kept_checkpoints(v_tenant, v_thread) k
                    )
                )
            returning c.checkpoint_ns, c.checkpoint_id
        ),
        writes as (
            delete from llm.checkpoint_writes w
            using deleted d
            where w.tenant_id = v_tenant
                and w.thread_no = v_thread
                and w.checkpoint_ns = d.checkpoint_ns
                and w.checkpoint_id = d.checkpoint_id
        )
        select count(*)
        into v_count
        from deleted;
        v_total := v_total + v_count;
        if p_strategy = 'delete' then
            delete from llm.checkpoint_threads t where t.tenant_id = v_tenant and t.thread_no = v_thread;
        else
            update llm.checkpoints c
            set parent_checkpoint_id = null
            where c.tenant_id = v_tenant
                and c.thread_no = v_thread
                and not exists (
                    select
                    from llm.checkpoints p
                    where p.tenant_id = v_tenant
                        and p.thread_no = v_thread
                        and p.checkpoint_ns = c.checkpoint_ns
                        and p.checkpoint_id = c.parent_checkpoint_id
                )
                and c.parent_checkpoint_id is not null;
            perform llm._drop_unused_pieces(v_tenant, v_thread);
        end if;
    end loop;
    return v_total;
end
$$;

alter function llm.prune_checkpoints(text[], text) owner to llm_owner;

comment on function llm.prune_checkpoints(text[], text) is
'Deletes checkpoints of threads, with their writes and values, and returns how many. p_strategy: keep_latest leaves the latest of each namespace,
with the ancestors that its delta channels need; calls of subgraphs go with their root checkpoint. delete leaves nothing. Threads that do not exist
count 0. Errors: invalid_parameter_value for another strategy; object_not_in_prerequisite_state when no tenant is set.';


-- security definer: as llm.put_checkpoint().
create function llm.delete_checkpoint_runs(
    p_run_ids text[]
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._checkpoint_tenant();
    v_thread bigint;
    v_count  bigint;
    v_total  bigint := 0;
begin
    for v_thread in
        select t.thread_no
        from llm.checkpoint_threads t
        where t.tenant_id = v_tenant
            and t.thread_no in (
                select c.thread_no
                from llm.checkpoints c
                where c.tenant_id = v_tenant
                    and c.metadata ? 'run_id'
                    and c.metadata ->> 'run_id' = any (p_run_ids)
            )
        order by t.thread_no
        for update
    loop
        update llm.checkpoint_threads t set pruned_at = now() where t.tenant_id = v_tenant and t.thread_no = v_thread;
        with deleted as (
            delete from llm.checkpoints c
            where c.tenant_id = v_tenant
                and c.thread_no = v_thread
                and c.metadata ? 'run_id'
                and c.metadata ->> 'run_id' = any (p_run_ids)
            returning c.checkpoint_ns, c.checkpoint_id
        ),
        writes as (
            delete from llm.checkpoint_writes w
            using deleted d
            where w.tenant_id = v_tenant
                and w.thread_no = v_thread
                and w.checkpoint_ns = d.checkpoint_ns
                and w.checkpoint_id = d.checkpoint_id
        )
        select count(*)
        into v_count
        from deleted;
        v_total := v_total + v_count;
        perform llm._drop_unused_pieces(v_tenant, v_thread);
    end loop;
    return v_total;
end
$$;

alter function llm.delete_checkpoint_runs(text[]) owner to llm_owner;

comment on function llm.delete_checkpoint_runs(text[]) is
'Deletes the checkpoints that these runs made (run_id in their metadata), with their writes, and returns how many. Later checkpoints keep their
values; but a delta channel of theirs loses what these writes were to it. Errors: object_not_in_prerequisite_state when no tenant is set.';


-- security definer: as llm.put_checkpoint().
create function llm.checkpoint_usage(
    p_thread_id text default null
)
    returns table (thread_id text, checkpoints bigint, pieces bigint, piece_bytes bigint, value_bytes bigint)
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._checkpoint_tenant();
begin
    return query
        select t.thread_id, c.checkpoints, p.pieces, p.bytes, c.bytes
        from llm.checkpoint_threads t
        cross join lateral (
            select count(*) as pieces, coalesce(sum(octet_length(coalesce(q.content, b.content))), 0)::bigint as bytes
            from llm.checkpoint_pieces q
            left join llm.checkpoint_blobs b on b.tenant_id = q.tenant_id and b.hash = q.hash
            where q.tenant_id = t.tenant_id
                and q.thread_no = t.thread_no
        ) p
        cross join lateral (
            select count(distinct (k.checkpoint_ns, k.checkpoint_id)) as checkpoints, coalesce(sum(q.ends_at), 0)::bigint as bytes
            from llm.checkpoints k
            left join jsonb_each(k.channels) e on jsonb_array_length(e.value) > 2
            left join llm.checkpoint_pieces q
                on q.tenant_id = t.tenant_id
                and q.thread_no = t.thread_no
                and q.log_id = (e.value ->> 1)::uuid
                and q.number = (e.value ->> 2)::integer
            where k.tenant_id = t.tenant_id
                and k.thread_no = t.thread_no
        ) c
        where t.tenant_id = v_tenant
            and (p_thread_id is null or t.thread_id = p_thread_id)
        order by t.thread_id;
end
$$;

alter function llm.checkpoint_usage(text) owner to llm_owner;

comment on function llm.checkpoint_usage(text) is
'What threads hold: piece_bytes are stored for their values, value_bytes would be if each checkpoint stored its own. Of small values, which
checkpoints hold themselves, neither tells. p_thread_id: one thread, null for all. Errors: object_not_in_prerequisite_state when no tenant is set.';


create function llm.verify_checkpoints()
    returns table (tenant_id text, hash bytea, refs bigint, counted bigint, is_intact boolean)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select b.tenant_id, b.hash, b.refs, coalesce(r.refs, 0), sha256(b.content) = b.hash
        from llm.checkpoint_blobs b
        left join (
            select s.tenant_id, s.hash, count(*) as refs
            from (
                select p.tenant_id, p.hash from llm.checkpoint_pieces p
                union all
                select w.tenant_id, w.hash from llm.checkpoint_writes w
            ) s
            where s.hash is not null
            group by s.tenant_id, s.hash
        ) r on r.tenant_id = b.tenant_id and r.hash = b.hash
        where b.refs <> coalesce(r.refs, 0)
            or sha256(b.content) <> b.hash
        order by b.tenant_id, b.hash;
end
$$;

comment on function llm.verify_checkpoints() is
'Contents whose references are not as many as counted, or whose hash is not theirs: no row when all is well. Of the current tenant; for a superuser
of all.';


select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'delete_checkpoint_thread', 'copy_checkpoint_thread', 'prune_checkpoints', 'delete_checkpoint_runs'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'checkpoint_usage'
);

select llm._grant_execute(
    array['llm_admin'],
    'verify_checkpoints'
);

select llm._grant_execute(
    array['llm_owner'],
    '_drop_unused_pieces', '_kept_checkpoints'
);
