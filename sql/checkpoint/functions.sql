create type llm.checkpoint as (
    thread_id             text,
    checkpoint_ns         text,
    checkpoint_id         text,
    parent_checkpoint_id  text,
    checkpoint            jsonb,
    metadata              jsonb,
    channels              jsonb,
    known                 integer[],
    contents              bytea[],
    write_tasks           text[],
    write_channels        text[],
    write_types           text[],
    write_contents        bytea[]
);

comment on type llm.checkpoint is
'A checkpoint with its values and pending writes: channels as in llm.checkpoints; contents: the values of those that are in logs, in the order of
channels, each from after the piece with the number in known (0: all of it); write_…: the pending writes, in the order in which LangGraph applies
them.';


-- Writing

-- security definer: checks tenant and thread once, where row-level security would ask in each statement; direct writing is for nobody.
create function llm.put_checkpoint(
    p_thread_id     text,
    p_checkpoint_ns text,
    p_checkpoint_id text,
    p_parent_id     text,
    p_checkpoint    jsonb,
    p_metadata      jsonb default '{}',
    p_channels      jsonb default '{}',
    p_contents      bytea[] default '{}',
    p_unchanged     text[] default '{}'
)
    returns table (stored boolean, channels jsonb, missing text[])
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._checkpoint_tenant();
    v_thread bigint;
    v_each   record;
    v_value  jsonb;
begin
    if (octet_length(p_checkpoint_id) between 1 and 200 and octet_length(p_checkpoint_ns) <= 1000) is not true then
        raise exception 'checkpoint_id and checkpoint_ns have % and % bytes', coalesce(octet_length(p_checkpoint_id)::text, 'no'),
            coalesce(octet_length(p_checkpoint_ns)::text, 'no')
            using errcode = 'invalid_parameter_value',
                  hint = 'A checkpoint_id has 1 to 200 bytes, a checkpoint_ns at most 1000; the one of the graph itself is ''''.';
    end if;
    if (jsonb_typeof(p_checkpoint) = 'object' and jsonb_typeof(p_metadata) = 'object' and jsonb_typeof(p_channels) = 'object') is not true then
        raise exception 'checkpoint % is %, its metadata %, its channels %', p_checkpoint_id, coalesce(jsonb_typeof(p_checkpoint), 'null'),
            coalesce(jsonb_typeof(p_metadata), 'null'), coalesce(jsonb_typeof(p_channels), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Each is an object; what is empty is ''{}''.';
    end if;
    select t.thread_no
    into v_thread
    from llm.checkpoint_threads t
    where t.tenant_id = v_tenant
        and t.thread_id = p_thread_id
    for no key update;
    if not found then
        v_thread := llm._begin_thread(v_tenant, p_thread_id);
    end if;

    channels := coalesce(
        (
            select jsonb_object_agg(c.key, c.value)
            from llm.checkpoints p
            cross join jsonb_each(p.channels) c
            where p.tenant_id = v_tenant
                and p.thread_no = v_thread
                and p.checkpoint_ns = p_checkpoint_ns
                and p.checkpoint_id = p_parent_id
                and not p_channels ? c.key
                and p.checkpoint -> 'channel_versions' -> c.key = p_checkpoint -> 'channel_versions' -> c.key
        ),
        '{}'
    );
    channels := channels || p_channels;
    missing := '{}';
    if not channels ?& p_unchanged then
        missing := array(select u.name from unnest(p_unchanged) u (name) where not channels ? u.name);
    end if;
    for v_each in
        select c.key, c.value
        from jsonb_each(p_channels) c
        where jsonb_typeof(c.value -> 1) is distinct from 'string'
            or c.value -> 2 is not null
    loop
        v_value := llm._put_channel(v_tenant, v_thread, v_each.value, p_contents[(v_each.value ->> 5)::integer]);
        if v_value is null then
            missing := missing || v_each.key;
        end if;
        channels := channels || jsonb_build_object(v_each.key, v_value);
    end loop;
    stored := missing = '{}';
    if stored then
        insert into llm.checkpoints as c (
            tenant_id, thread_no, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata, channels
        )
        values (v_tenant, v_thread, p_checkpoint_ns, p_checkpoint_id, p_parent_id, p_checkpoint, p_metadata, put_checkpoint.channels)
        on conflict (tenant_id, thread_no, checkpoint_ns, checkpoint_id) do update
            set parent_checkpoint_id = excluded.parent_checkpoint_id,
                checkpoint = excluded.checkpoint,
                metadata = excluded.metadata,
                channels = excluded.channels;
    end if;
    return next;
end
$$;

alter function llm.put_checkpoint(text, text, text, text, jsonb, jsonb, jsonb, bytea[], text[]) owner to llm_owner;

comment on function llm.put_checkpoint(text, text, text, text, jsonb, jsonb, jsonb, bytea[], text[]) is
'Stores a checkpoint, or stores it anew. p_parent_id: the checkpoint that it follows, or null; p_checkpoint: LangGraph''s, without the values of
channels; p_channels: the values that changed, by channel: [type, base64], or for larger ones [type, log, number, head, keep, content, digest]: a
head (base64), the first keep bytes of the value that log has up to number, with that digest, then element content of p_contents, counted from 1;
log null begins a value. Other channels are the parent''s while their version is. p_unchanged: channels that must be. Returns stored, false when a
channel is missing: nothing is stored then, call again with the whole values of those; channels: as stored. Errors:
object_not_in_prerequisite_state, insufficient_privilege for a thread of another user, invalid_parameter_value.';


-- security definer: as llm.put_checkpoint().
create function llm.put_checkpoint_writes(
    p_thread_id     text,
    p_checkpoint_ns text,
    p_checkpoint_id text,
    p_task_id       text,
    p_task_path     text,
    p_indexes       integer[],
    p_channels      text[],
    p_types         text[],
    p_contents      bytea[]
)
    returns integer
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._checkpoint_tenant();
    v_thread bigint;
    v_count  integer;
begin
    if (octet_length(p_checkpoint_id) between 1 and 200 and octet_length(p_checkpoint_ns) <= 1000
        and octet_length(p_task_id) between 1 and 200 and p_task_path is not null
        and cardinality(p_indexes) = all (array[cardinality(p_channels), cardinality(p_types), cardinality(p_contents)])
        and num_nulls(array_position(p_indexes, null), array_position(p_channels, null), array_position(p_types, null),
                      array_position(p_contents, null)) = 4) is not true
    then
        raise exception 'the writes of task % to checkpoint % are not given as they should be', coalesce(p_task_id, 'null'),
            coalesce(p_checkpoint_id, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Each has an index, a channel, a type and a content; ids have 1 to 200 bytes, a checkpoint_ns at most 1000.';
    end if;
    select t.thread_no
    into v_thread
    from llm.checkpoint_threads t
    where t.tenant_id = v_tenant
        and t.thread_id = p_thread_id;
    if not found then
        v_thread := llm._begin_thread(v_tenant, p_thread_id);
    end if;

    if 0 > any (p_indexes) then
        delete from llm.checkpoint_writes w
        where w.tenant_id = v_tenant
            and w.thread_no = v_thread
            and w.checkpoint_ns = p_checkpoint_ns
            and w.checkpoint_id = p_checkpoint_id
            and w.task_id = p_task_id
            and w.idx < 0
            and w.idx = any (p_indexes);
    end if;
    insert into llm.checkpoint_writes (tenant_id, thread_no, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, content)
    select v_tenant, v_thread, p_checkpoint_ns, p_checkpoint_id, p_task_id, w.idx, p_task_path, w.channel, w.type, w.content
    from unnest(p_indexes, p_channels, p_types, p_contents) w (idx, channel, type, content)
    where (octet_length(w.content) >= 2000) is not true
    on conflict do nothing;
    get diagnostics v_count = row_count;
    for v_place in 1 .. cardinality(p_indexes) loop
        if octet_length(p_contents[v_place]) >= 2000 then
            with written as (
                insert into llm.checkpoint_writes (
                    tenant_id, thread_no, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, hash
                )
                values (
                    v_tenant, v_thread, p_checkpoint_ns, p_checkpoint_id, p_task_id, p_indexes[v_place], p_task_path,
                    p_channels[v_place], p_types[v_place], sha256(p_contents[v_place])
                )
                on conflict do nothing
                returning hash
            )
            insert into llm.checkpoint_blobs as b (tenant_id, hash, refs, content)
            select v_tenant, w.hash, 1, p_contents[v_place]
            from written w
            on conflict (tenant_id, hash) do update set refs = b.refs + 1;
            v_count := v_count + found::integer;
        end if;
    end loop;
    return v_count;
end
$$;

alter function llm.put_checkpoint_writes(text, text, text, text, text, integer[], text[], text[], bytea[]) owner to llm_owner;

comment on function llm.put_checkpoint_writes(text, text, text, text, text, integer[], text[], text[], bytea[]) is
'Stores pending writes of a task, whose checkpoint may still be on its way. p_indexes: the place of each; a second write at the same place is passed
over, at a negative one (error, scheduled, interrupt, resume) it replaces the first. Returns how many were stored. Errors: as llm.put_checkpoint.';


-- Reading

-- security definer: as llm.put_checkpoint().
create function llm.get_checkpoint(
    p_thread_id     text,
    p_checkpoint_ns text default '',
    p_checkpoint_id text default null,
    p_known         jsonb default '{}'
)
    returns setof llm.checkpoint
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._checkpoint_tenant();
    v_thread bigint;
begin
    select t.thread_no
    into v_thread
    from llm.checkpoint_threads t
    where t.tenant_id = v_tenant
        and t.thread_id = p_thread_id;
    return query
        select
            p_thread_id, c.checkpoint_ns, c.checkpoint_id, c.parent_checkpoint_id, c.checkpoint, c.metadata, c.channels,
            v.known, v.contents, w.tasks, w.channels, w.types, w.contents
        from llm.checkpoints c
        cross join lateral (
            select
                array_agg(k.number order by e.place) as known,
                array_agg(coalesce(p.content, llm._checkpoint_content(v_tenant, v_thread, l.log_id, l.number)) order by e.place) as contents
            from jsonb_each(c.channels) with ordinality e (name, value, place)
            cross join lateral (select (e.value ->> 1)::uuid as log_id, (e.value ->> 2)::integer as number) l
            cross join lateral (
                select coalesce(max(q.number), 0) as number
                from llm.checkpoint_pieces q
                where q.tenant_id = v_tenant
                    and q.thread_no = v_thread
                    and q.log_id = l.log_id
                    and q.log_id = (p_known -> e.name ->> 0)::uuid
                    and q.number = (p_known -> e.name ->> 1)::integer
                    and q.number <= l.number
                    and q.digest = decode(p_known -> e.name ->> 2, 'hex')
            ) k
            -- The usual case: all is in this log. Otherwise, or when something is missing, the function above is asked.
            cross join lateral (
                select case when count(*) = l.number - k.number
                    then coalesce(string_agg(coalesce(q.content, b.content), ''::bytea order by q.number), ''::bytea) end as content
                from llm.checkpoint_pieces q
                left join llm.checkpoint_blobs b on b.tenant_id = q.tenant_id and b.hash = q.hash
                where q.tenant_id = v_tenant
                    and q.thread_no = v_thread
                    and q.log_id = l.log_id
                    and q.number > k.number
                    and q.number <= l.number
            ) p
            where jsonb_array_length(e.value) > 2
        ) v
        cross join lateral (
            select
                array_agg(q.task_id order by q.task_path, q.task_id, q.idx) as tasks,
                array_agg(q.channel order by q.task_path, q.task_id, q.idx) as channels,
                array_agg(q.type order by q.task_path, q.task_id, q.idx) as types,
                array_agg(coalesce(q.content, b.content) order by q.task_path, q.task_id, q.idx) as contents
            from llm.checkpoint_writes q
            left join llm.checkpoint_blobs b on b.tenant_id = q.tenant_id and b.hash = q.hash
            where q.tenant_id = v_tenant
                and q.thread_no = v_thread
                and q.checkpoint_ns = c.checkpoint_ns
                and q.checkpoint_id = c.checkpoint_id
        ) w
        where c.tenant_id = v_tenant
            and c.thread_no = v_thread
            and c.checkpoint_ns = p_checkpoint_ns
            and c.checkpoint_id = coalesce(
                p_checkpoint_id,
                (
                    select l.checkpoint_id
                    from llm.checkpoints l
                    where l.tenant_id = v_tenant
                        and l.thread_no = v_thread
                        and l.checkpoint_ns = p_checkpoint_ns
                    order by l.checkpoint_id desc
                    limit 1
                )
            );
end
$$;

alter function llm.get_checkpoint(text, text, text, jsonb) owner to llm_owner;

comment on function llm.get_checkpoint(text, text, text, jsonb) is
'A checkpoint of a thread: the one of that id, by default the latest; no row when there is none, or when the thread is another user''s. p_known:
values that the caller has, by channel: [log, number, digest]; of what begins with such a value only the rest is returned. Errors:
object_not_in_prerequisite_state; data_corrupted when a value is not whole.';


-- security definer: as llm.put_checkpoint().
create function llm.list_checkpoints(
    p_thread_id     text default null,
    p_checkpoint_ns text default null,
    p_checkpoint_id text default null,
    p_filter        jsonb default '{}',
    p_before        text default null,
    p_limit         bigint default null
)
    returns setof llm.checkpoint
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant     text := llm._checkpoint_tenant();
    v_checkpoint record;
begin
    perform llm._check_page(p_limit, 0::bigint);
    for v_checkpoint in
        select t.thread_id, c.checkpoint_ns, c.checkpoint_id
        from llm.checkpoint_threads t
        join llm.checkpoints c on c.tenant_id = t.tenant_id and c.thread_no = t.thread_no
        where t.tenant_id = v_tenant
            and (p_thread_id is null or t.thread_id = p_thread_id)
            and (p_checkpoint_ns is null or c.checkpoint_ns = p_checkpoint_ns)
            and (p_checkpoint_id is null or c.checkpoint_id = p_checkpoint_id)
            and (p_before is null or c.checkpoint_id < p_before)
            and c.metadata @> coalesce(p_filter, '{}')
        order by c.checkpoint_id desc, t.thread_id, c.checkpoint_ns
        limit p_limit
    loop
        return query
            select *
            from llm.get_checkpoint(v_checkpoint.thread_id, v_checkpoint.checkpoint_ns, v_checkpoint.checkpoint_id, '{}'::jsonb);
    end loop;
end
$$;

alter function llm.list_checkpoints(text, text, text, jsonb, text, bigint) owner to llm_owner;

comment on function llm.list_checkpoints(text, text, text, jsonb, text, bigint) is
'Checkpoints, newest first. p_thread_id, p_checkpoint_ns, p_checkpoint_id: of these alone; p_filter: whose metadata contains this; p_before: with ids
before this one; p_limit: at most so many. Each null for all. Errors: as llm.get_checkpoint.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    'get_checkpoint', 'list_checkpoints'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'put_checkpoint', 'put_checkpoint_writes'
);
