create type llm.checkpoint as (
    thread_id             text,
    checkpoint_ns         text,
    checkpoint_id         text,
    parent_checkpoint_id  text,
    checkpoint            jsonb,
    metadata              jsonb,
    channels              jsonb,
    contents              bytea[],
    write_tasks           text[],
    write_channels        text[],
    write_types           text[],
    write_contents        bytea[]
);

comment on type llm.checkpoint is
'A checkpoint with its values and pending writes: channels as in llm.checkpoints; contents: the values of those that are in logs, in the order of
channels; write_…: the pending writes, in the order in which LangGraph applies them.';


-- Writing

create function llm._missing_channels(
    p_tenant    text,
    p_thread    bigint,
    p_channels  jsonb,
    p_contents  bytea[],
    p_unchanged text[],
    p_inherited jsonb
)
    returns text[]
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_bad text;
begin
    select c.key
    into v_bad
    from jsonb_each(p_channels) c
    where jsonb_typeof(c.value) <> 'array'
        or jsonb_array_length(c.value) not in (2, 7)
        or jsonb_array_length(c.value) = 7 and p_contents[(c.value ->> 5)::integer] is null
    limit 1;
    if found then
        raise exception 'the value of channel % is not given', v_bad
            using errcode = 'invalid_parameter_value',
                  hint = 'A value is [type, base64], or [type, log, number, head, keep, content, digest] where content counts p_contents from 1.';
    end if;
    return array(
        select u.name
        from unnest(p_unchanged) u (name)
        where not p_inherited ? u.name
            and not p_channels ? u.name
        union all
        select c.key
        from jsonb_each(p_channels) c
        where c.value ->> 1 is not null
            and jsonb_array_length(c.value) = 7
            and not exists (
                select
                from llm.checkpoint_pieces p
                where p.tenant_id = p_tenant
                    and p.thread_no = p_thread
                    and p.log_id = (c.value ->> 1)::uuid
                    and p.number = (c.value ->> 2)::integer
                    and p.digest = decode(c.value ->> 6, 'hex')
                    and p.ends_at >= (c.value ->> 4)::bigint
            )
    );
end
$$;

comment on function llm._missing_channels(text, bigint, jsonb, bytea[], text[], jsonb) is
'The channels whose values cannot be stored because what they go on from is not there. Errors: invalid_parameter_value for a malformed value.';


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
begin
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
    missing := llm._missing_channels(v_tenant, v_thread, p_channels, p_contents, p_unchanged, channels);
    stored := missing = '{}';
    if stored then
        for v_each in
            select c.key, c.value
            from jsonb_each(p_channels) c
            order by c.key
        loop
            if jsonb_array_length(v_each.value) > 2 then
                v_each.value := llm._put_channel(v_tenant, v_thread, v_each.value, p_contents[(v_each.value ->> 5)::integer]);
            end if;
            channels := channels || jsonb_build_object(v_each.key, v_each.value);
        end loop;
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
'Stores a checkpoint, or stores it anew. p_parent_id: the checkpoint that it follows, or null; p_checkpoint: LangGraph''s, without the values of channels;
p_channels: the values that changed, by channel: [type, base64], or for larger ones [type, log, number, head, keep, content, digest]: a head (base64), the
first keep bytes of the value that log has up to number, with that digest, then element content of p_contents, counted from 1; log null begins a value. Other channels are the parent''s while their
version is. p_unchanged: channels that must be. Returns stored, false when a channel is missing: nothing is stored then, call again with the whole
values of those; channels: as stored. Errors: object_not_in_prerequisite_state, insufficient_privilege for a thread of another user, invalid_parameter_value.';


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
    select t.thread_no
    into v_thread
    from llm.checkpoint_threads t
    where t.tenant_id = v_tenant
        and t.thread_id = p_thread_id
    for key share;
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
    with inserted as (
        insert into llm.checkpoint_writes (
            tenant_id, thread_no, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, hash, content
        )
        select
            v_tenant, v_thread, p_checkpoint_ns, p_checkpoint_id, p_task_id, w.idx, p_task_path, w.channel, w.type,
            case when octet_length(w.content) >= 1000 then sha256(w.content) end,
            case when octet_length(w.content) < 1000 then w.content end
        from unnest(p_indexes, p_channels, p_types, p_contents) w (idx, channel, type, content)
        on conflict do nothing
        returning idx, hash
    ),
    counted as (
        insert into llm.checkpoint_blobs as b (tenant_id, hash, refs, content)
        select v_tenant, i.hash, count(*), (array_agg(w.content))[1]
        from inserted i
        join unnest(p_indexes, p_contents) w (idx, content) on w.idx = i.idx
        where i.hash is not null
        group by i.hash
        order by i.hash
        on conflict (tenant_id, hash) do update set refs = b.refs + excluded.refs
    )
    select count(*)
    into v_count
    from inserted;
    return v_count;
end
$$;

alter function llm.put_checkpoint_writes(text, text, text, text, text, integer[], text[], text[], bytea[]) owner to llm_owner;

comment on function llm.put_checkpoint_writes(text, text, text, text, text, integer[], text[], text[], bytea[]) is
'Stores pending writes of a task, whose checkpoint may still be on its way. p_indexes: the place of each; a second write at the same place is passed over,
at a negative one (error, scheduled, interrupt, resume) it replaces the first. Returns how many were stored. Errors: as llm.put_checkpoint.';


-- Reading

create function llm._checkpoint(
    p_tenant        text,
    p_thread        bigint,
    p_thread_id     text,
    p_checkpoint_ns text,
    p_checkpoint_id text
)
    returns llm.checkpoint
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_checkpoint llm.checkpoint;
begin
    select
        p_thread_id, c.checkpoint_ns, c.checkpoint_id, c.parent_checkpoint_id, c.checkpoint, c.metadata, c.channels,
        array(
            select llm._checkpoint_content(p_tenant, p_thread, (e.value ->> 1)::uuid, (e.value ->> 2)::integer)
            from jsonb_each(c.channels) with ordinality e (key, value, place)
            where jsonb_array_length(e.value) > 2
            order by e.place
        )
    into v_checkpoint
    from llm.checkpoints c
    where c.tenant_id = p_tenant
        and c.thread_no = p_thread
        and c.checkpoint_ns = p_checkpoint_ns
        and c.checkpoint_id = p_checkpoint_id;

    select
        array_agg(w.task_id order by w.task_path, w.task_id, w.idx),
        array_agg(w.channel order by w.task_path, w.task_id, w.idx),
        array_agg(w.type order by w.task_path, w.task_id, w.idx),
        array_agg(coalesce(w.content, b.content) order by w.task_path, w.task_id, w.idx)
    into v_checkpoint.write_tasks, v_checkpoint.write_channels, v_checkpoint.write_types, v_checkpoint.write_contents
    from llm.checkpoint_writes w
    left join llm.checkpoint_blobs b on b.tenant_id = w.tenant_id and b.hash = w.hash
    where w.tenant_id = p_tenant
        and w.thread_no = p_thread
        and w.checkpoint_ns = p_checkpoint_ns
        and w.checkpoint_id = p_checkpoint_id;
    return v_checkpoint;
end
$$;

comment on function llm._checkpoint(text, bigint, text, text, text) is
'A checkpoint that exists, with its values and pending writes.';


-- security definer: as llm.put_checkpoint().
create function llm.get_checkpoint(
    p_thread_id     text,
    p_checkpoint_ns text default '',
    p_checkpoint_id text default null
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
    select c.thread_no, c.checkpoint_id
    into v_checkpoint
    from llm.checkpoint_threads t
    join llm.checkpoints c on c.tenant_id = t.tenant_id and c.thread_no = t.thread_no
    where t.tenant_id = v_tenant
        and t.thread_id = p_thread_id
        and c.checkpoint_ns = p_checkpoint_ns
        and (p_checkpoint_id is null or c.checkpoint_id = p_checkpoint_id)
    order by c.checkpoint_id desc
    limit 1;
    if found then
        return next llm._checkpoint(v_tenant, v_checkpoint.thread_no, p_thread_id, p_checkpoint_ns, v_checkpoint.checkpoint_id);
    end if;
end
$$;

alter function llm.get_checkpoint(text, text, text) owner to llm_owner;

comment on function llm.get_checkpoint(text, text, text) is
'A checkpoint of a thread: the one of that id, by default the latest; no row when there is none, or when the thread is another user''s.
Errors: object_not_in_prerequisite_state; data_corrupted when a value is not whole.';


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
    for v_checkpoint in
        select t.thread_id, c.thread_no, c.checkpoint_ns, c.checkpoint_id
        from llm.checkpoint_threads t
        join llm.checkpoints c on c.tenant_id = t.tenant_id and c.thread_no = t.thread_no
        where t.tenant_id = v_tenant
            and (p_thread_id is null or t.thread_id = p_thread_id)
            and (p_checkpoint_ns is null or c.checkpoint_ns = p_checkpoint_ns)
            and (p_checkpoint_id is null or c.checkpoint_id = p_checkpoint_id)
            and (p_before is null or c.checkpoint_id < p_before)
            and c.metadata @> p_filter
        order by c.checkpoint_id desc, t.thread_id, c.checkpoint_ns
        limit p_limit
    loop
        return next llm._checkpoint(
            v_tenant, v_checkpoint.thread_no, v_checkpoint.thread_id, v_checkpoint.checkpoint_ns, v_checkpoint.checkpoint_id
        );
    end loop;
end
$$;

alter function llm.list_checkpoints(text, text, text, jsonb, text, bigint) owner to llm_owner;

comment on function llm.list_checkpoints(text, text, text, jsonb, text, bigint) is
'Checkpoints, newest first. p_thread_id, p_checkpoint_ns, p_checkpoint_id: of these alone; p_filter: whose metadata contains this; p_before: with ids
before this one; p_limit: at most so many. Each null for all. Errors: as llm.get_checkpoint.';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'get_checkpoint', 'list_checkpoints'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'put_checkpoint', 'put_checkpoint_writes'
);

select llm._grant_execute(
    array['llm_owner'],
    '_checkpoint', '_missing_channels'
);
