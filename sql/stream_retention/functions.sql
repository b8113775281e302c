create type llm.stream_summary as (
    stream          text,
    length          bigint,
    first_position  text,
    last_position   text,
    first_at        timestamptz,
    last_at         timestamptz,
    max_length      bigint,
    max_age         interval,
    waiting         bigint
);

comment on type llm.stream_summary is
'A stream: how many entries can be read, the first and last of them and their times, how much is kept; waiting: entries that are committed and cannot
be read yet, because an older transaction is at work.';


-- security definer: as llm.stream_append().
create function llm.set_stream_policy(
    p_stream     text,
    p_max_length bigint default null,
    p_max_age    interval default null
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := llm._stream_tenant();
    v_seconds double precision := extract(epoch from p_max_age);
begin
    perform llm._refuse_entry(p_stream, null::text, ''::text);
    if p_max_length < 1 or v_seconds <= 0 or v_seconds > 3e9 then
        raise exception 'a stream cannot be kept to % entries and %', coalesce(p_max_length::text, 'all'), coalesce(p_max_age::text, 'any age')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give at least one entry and more than no time, up to 95 years; null for all that there are partitions for.';
    end if;
    insert into llm.streams as s (tenant_id, stream, max_length, max_age)
    values (v_tenant, p_stream, p_max_length, make_interval(secs => v_seconds))
    on conflict (tenant_id, stream) do update
        set max_length = excluded.max_length,
            max_age = excluded.max_age;
end
$$;

alter function llm.set_stream_policy(text, bigint, interval) owner to llm_owner;

comment on function llm.set_stream_policy(text, bigint, interval) is
'Says how much of a stream is kept: p_max_length entries (llm.trim_streams() cuts it to that), and those younger than p_max_age (days count 24 hours);
null for all that there are partitions for. What is not kept is not read any more, and goes from the disk with the partition that it is in.
Errors: invalid_parameter_value, object_not_in_prerequisite_state.';


create function llm._trim_stream(
    p_tenant     text,
    p_stream     text,
    p_max_length bigint
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_window llm.stream_window := llm._stream_window(p_tenant, p_stream, null::text);
    v_last   record;
    v_cut    record;
begin
    select e.era, e.transaction_id, e.number
    into v_last
    from llm._settled_entries(p_tenant, p_stream, v_window) e
    order by e.era desc, e.transaction_id desc, e.number desc
    offset p_max_length
    limit 1;
    if not found then
        return 0;
    end if;

    select count(*) as entries, max(e.at) as youngest_at
    into v_cut
    from llm._settled_entries(p_tenant, p_stream, v_window) e
    where (e.era, e.transaction_id, e.number) <= (v_last.era, v_last.transaction_id, v_last.number);
    insert into llm.streams as s (tenant_id, stream, max_length, max_age, era, transaction_id, number, trimmed_at)
    values (p_tenant, p_stream, case when starts_with(p_stream, 'metrics:') then p_max_length end, llm._default_max_age(p_stream),
            v_last.era, v_last.transaction_id, v_last.number, v_cut.youngest_at)
    on conflict (tenant_id, stream) do update
        set era = excluded.era,
            transaction_id = excluded.transaction_id,
            number = excluded.number,
            trimmed_at = greatest(s.trimmed_at, excluded.trimmed_at)
        where (s.era, s.transaction_id, s.number) < (excluded.era, excluded.transaction_id, excluded.number);
    return v_cut.entries;
end
$$;

comment on function llm._trim_stream(text, text, bigint) is
'Keeps the newest entries of a stream. Returns how many were cut off.';


-- security definer: as llm.stream_append().
create function llm.stream_trim(
    p_stream     text,
    p_max_length bigint
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._stream_tenant_of_all();
begin
    if p_max_length is null or p_max_length < 0 then
        raise exception 'a stream cannot be cut to % entries', coalesce(p_max_length::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give how many of the newest are kept, at least 0.';
    end if;
    return llm._trim_stream(v_tenant, p_stream, p_max_length);
end
$$;

alter function llm.stream_trim(text, bigint) owner to llm_owner;

comment on function llm.stream_trim(text, bigint) is
'Cuts a stream to its newest entries, this once; llm.set_stream_policy() does it for good. p_stream; p_max_length: how many are kept. Returns how many
were cut off: they are not read any more, and go from the disk with the partition that they are in. Errors: invalid_parameter_value;
object_not_in_prerequisite_state, also when llm.set_user() told of a user.';


-- security definer: as llm.stream_read().
create function llm.stream_info(
    p_stream text
)
    returns llm.stream_summary
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := llm._stream_tenant();
    v_window  llm.stream_window := llm._stream_window(v_tenant, p_stream, null::text);
    v_kept    record;
    v_first   record;
    v_last    record;
begin
    select s.max_length, s.max_age into v_kept from llm.streams s where s.tenant_id = v_tenant and s.stream = p_stream;
    if not found then
        select null::bigint as max_length, llm._default_max_age(p_stream) as max_age into v_kept;
    end if;
    select concat_ws('-', e.era, e.transaction_id, e.number) as position, e.at
    into v_first
    from llm._settled_entries(v_tenant, p_stream, v_window) e
    limit 1;
    select r.position, r.at into v_last from llm.stream_range(p_stream, null::timestamptz, null::timestamptz, 1::bigint, true) r;
    return row(
        p_stream,
        (select count(*) from llm._settled_entries(v_tenant, p_stream, v_window)),
        v_first.position,
        v_last.position,
        v_first.at,
        v_last.at,
        v_kept.max_length,
        v_kept.max_age,
        (
            select count(*)
            from llm.stream_entries e
            where e.tenant_id = v_tenant
                and e.stream = p_stream
                and ((e.era, e.transaction_id) >= (v_window.before_era, v_window.before_transaction)
                     or e.transaction_id >= v_window.settled_transaction)
                and e.transaction_id is distinct from pg_current_xact_id_if_assigned()
        )
    )::llm.stream_summary;
end
$$;

alter function llm.stream_info(text) owner to llm_owner;

comment on function llm.stream_info(text) is
'How a stream is: its length, its ends, how much is kept, and how many entries wait for an older transaction to end. p_stream.
Errors: object_not_in_prerequisite_state.';


-- security definer: as llm.stream_read().
create function llm.list_streams()
    returns setof text
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._stream_tenant();
    v_stream text := '';
begin
    loop
        select e.stream
        into v_stream
        from llm.stream_entries e
        where e.tenant_id = v_tenant
            and e.stream > v_stream
        order by e.stream
        limit 1;
        exit when not found;
        return next v_stream;
    end loop;
end
$$;

alter function llm.list_streams() owner to llm_owner;

comment on function llm.list_streams() is
'The tenant''s streams that have entries, in order of their names. Errors: object_not_in_prerequisite_state.';


create function llm.stream_horizon()
    returns table (
        transaction_id text,
        pid            integer,
        gid            text,
        user_name      name,
        application    text,
        state          text,
        began_at       timestamptz
    )
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select w.transaction_id::text, w.pid, w.gid, w.user_name, w.application, w.state, w.began_at
        from (
            select a.backend_xid, a.pid, null::text, a.usename, a.application_name, a.state, a.xact_start
            from pg_stat_activity a
            where a.backend_xid is not null
            union all
            select p.transaction, null, p.gid, p.owner, null, 'prepared', p.prepared
            from pg_prepared_xacts p
        ) w (transaction_id, pid, gid, user_name, application, state, began_at)
        order by age(w.transaction_id) desc;
end
$$;

comment on function llm.stream_horizon() is
'Who keeps readers of streams waiting: the transactions at work that have written anything, of all databases of the server, the oldest first. Entries
of transactions younger than that one cannot be read until it ends. transaction_id in 32 bits; pid to end it by pg_terminate_backend(), or gid of a
prepared one; state and began_at are null for sessions of others unless the caller has pg_read_all_stats. On a standby ask the primary.';


-- What trimming leaves of partitions

create function llm._trim_all_streams()
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_stream record;
begin
    for v_stream in
        with recursive metrics as (
            (
                select e.tenant_id, e.stream
                from llm.stream_entries e
                where e.value is not null
                order by e.tenant_id, e.stream
                limit 1
            )
            union all
            select n.tenant_id, n.stream
            from metrics m
            cross join lateral (
                select e.tenant_id, e.stream
                from llm.stream_entries e
                where e.value is not null
                    and (e.tenant_id, e.stream) > (m.tenant_id, m.stream)
                order by e.tenant_id, e.stream
                limit 1
            ) n
        )
        select s.tenant_id, s.stream, s.max_length
        from llm.streams s
        where s.max_length is not null
        union all
        select m.tenant_id, m.stream, 10000
        from metrics m
        where not exists (select from llm.streams s where s.tenant_id = m.tenant_id and s.stream = m.stream)
        order by 1, 2
    loop
        perform llm._trim_stream(v_stream.tenant_id, v_stream.stream, v_stream.max_length);
    end loop;

    -- Whoever was away for longer would miss what is gone without being told.
    delete from llm.channel_subscribers c
    using llm.partition_sets s
    where s.parent = 'llm.stream_entries'
        and c.seen_at < now() - make_interval(hours => 24 * s.retention_days);
end
$$;

comment on function llm._trim_all_streams() is
'Cuts streams of all tenants to what llm.set_stream_policy() said, and metrics for which it said nothing to 10,000 entries; forgets
subscribers of channels who were away for longer than streams are kept.';


create function llm._is_trimmed(
    p_partition regclass
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_trimmed boolean;
begin
    execute format(
        'select not exists ('
        '    select from %s e left join llm.streams s on s.tenant_id = e.tenant_id and s.stream = e.stream'
        '    where coalesce((e.era, e.transaction_id, e.number) > (s.era, s.transaction_id, s.number), true)'
        '        and e.at >= coalesce(now() - case when s.stream is null then llm._default_max_age(e.stream) else s.max_age end, ''-infinity'')'
        ')',
        p_partition
    )
    into v_is_trimmed;
    return v_is_trimmed;
end
$$;

comment on function llm._is_trimmed(regclass) is
'Whether no entry in a partition can be read any more.';


create function llm._empty_trimmed_partition(
    p_partition regclass
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '200ms'
as $$
begin
    if pg_relation_size(p_partition) = 0 or not llm._is_trimmed(p_partition) then
        return false;
    end if;
    begin
        -- Not dropped, or llm.manage_partitions() would make it again. Who was appending has ended once the lock is there.
        execute format('lock table only %s in access exclusive mode', p_partition);
        if not llm._is_trimmed(p_partition) then
            return false;
        end if;
        execute format('truncate only %s', p_partition);
        return true;
    exception
        when undefined_table or lock_not_available or deadlock_detected then
            return false;
    end;
end
$$;

comment on function llm._empty_trimmed_partition(regclass) is
'Empties a partition of llm.stream_entries if nothing in it can be read any more. Returns whether it did: not so when a lock could not be had.';


create procedure llm.trim_streams(
    inout p_emptied bigint default null
)
    language plpgsql
as $$
declare
    v_partition pg_catalog.regclass;
begin
    perform llm._require_storage();
    perform llm._trim_all_streams();
    commit;
    p_emptied := 0;
    foreach v_partition in array array(
        select p.partition
        from llm._partitions('llm.stream_entries'::pg_catalog.regclass) p
        where not p.is_default
            and p.ends_at operator(pg_catalog.<=) pg_catalog.now()
    ) loop
        p_emptied := p_emptied operator(pg_catalog.+) llm._empty_trimmed_partition(v_partition)::pg_catalog.int4;
        commit;
    end loop;
end
$$;

comment on procedure llm.trim_streams(bigint) is
'Cuts streams to what llm.set_stream_policy() said, and empties partitions of the past in which nothing is left to be read; those past retention are
dropped by llm.manage_partitions(). Call it outside of a transaction, about every minute: see llm.schedule_maintenance(). For superusers.
p_emptied: leave it out; the row that is returned says how many partitions that were.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    'stream_info', 'list_streams', 'stream_horizon'
);
select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    'set_stream_policy', 'stream_trim', '_trim_stream'
);
