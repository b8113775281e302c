create type llm.stream_entry as (
    position  text,
    stream    text,
    name      text,
    payload   jsonb,
    value     double precision,
    user_id   uuid,
    at        timestamptz
);

comment on type llm.stream_entry is
'An entry of a stream: position is where it stands, to read on from; name and payload what happened, value what a metric measured, user_id whom it
concerns, at when.';


create function llm._settled_entries(
    p_tenant text,
    p_stream text,
    p_window llm.stream_window
)
    returns table (
        era            bigint,
        transaction_id xid8,
        number         bigint,
        name           text,
        payload        jsonb,
        value          double precision,
        user_id        uuid,
        at             timestamptz
    )
    language sql
    stable
as $$
    select e.era, e.transaction_id, e.number, e.name, e.payload, e.value, e.user_id, e.at
    from llm.stream_entries e
    where e.tenant_id operator(pg_catalog.=) p_tenant
        and e.stream operator(pg_catalog.=) p_stream
        and (e.era, e.transaction_id, e.number) operator(pg_catalog.>) ((p_window).era, (p_window).transaction_id, (p_window).number)
        and (e.era, e.transaction_id) operator(pg_catalog.<) ((p_window).before_era, (p_window).before_transaction)
        and e.transaction_id operator(pg_catalog.<) (p_window).settled_transaction
        and e.at operator(pg_catalog.>=) (p_window).since
        and ((p_window).user_id is null or e.user_id is null or e.user_id operator(pg_catalog.=) (p_window).user_id)
    order by e.era, e.transaction_id, e.number
$$;

comment on function llm._settled_entries(text, text, llm.stream_window) is
'The entries of a stream in a window of llm._stream_window(), in order. Inlined where it is used.';


-- security definer: for its own tenant and user alone, checked once, where row-level security would ask for each table.
create function llm.stream_read(
    p_stream text,
    p_after  text default null,
    p_limit  bigint default 100
)
    returns setof llm.stream_entry
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
    -- Planned once, and to go along the index: a plan for any limit would rather sort the whole stream.
    set plan_cache_mode = force_generic_plan
    set enable_sort = off
as $$
declare
    v_tenant text := llm._stream_tenant();
    v_window llm.stream_window := llm._stream_window(v_tenant, p_stream, p_after);
begin
    return query
        select concat_ws('-', e.era, e.transaction_id, e.number), p_stream, e.name, e.payload, e.value, e.user_id, e.at
        from llm._settled_entries(v_tenant, p_stream, v_window) e
        limit p_limit;
end
$$;

alter function llm.stream_read(text, text, bigint) owner to llm_owner;

comment on function llm.stream_read(text, text, bigint) is
'The entries of a stream after a position, in the one order that all readers see; whoever goes on from the last one misses none. p_stream; p_after: a
position, null for the beginning; p_limit: at most so many. Entries of transactions that are younger than one still at work wait:
llm.stream_horizon() says for whom. Errors: invalid_parameter_value for what is no position; object_not_in_prerequisite_state.';


create function llm.stream_read_many(
    p_after jsonb,
    p_limit bigint default 100
)
    returns setof llm.stream_entry
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(p_after) is distinct from 'object' then
        raise exception 'these are not streams: %', left(coalesce(p_after::text, 'null'), 40)
            using errcode = 'invalid_parameter_value',
                  hint = 'Give an object of positions by stream: {"orders": "1-5023-17", "mails": null}.';
    end if;
    return query select r.* from jsonb_each_text(p_after) s (stream, after) cross join lateral llm.stream_read(s.stream, s.after, p_limit) r;
end
$$;

comment on function llm.stream_read_many(jsonb, bigint) is
'llm.stream_read() of several streams at once. p_after: positions by stream; p_limit: at most so many of each. Errors: as there.';


-- security definer: as llm.stream_read().
create function llm.stream_range(
    p_stream       text,
    p_from         timestamptz default null,
    p_to           timestamptz default null,
    p_limit        bigint default 100,
    p_newest_first boolean default false
)
    returns setof llm.stream_entry
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._stream_tenant();
    v_window llm.stream_window := llm._stream_window(v_tenant, p_stream, null::text);
    v_from   timestamptz := coalesce(p_from, '-infinity');
    v_to     timestamptz := coalesce(p_to, 'infinity');
begin
    if p_newest_first then
        return query
            select concat_ws('-', e.era, e.transaction_id, e.number), p_stream, e.name, e.payload, e.value, e.user_id, e.at
            from llm._settled_entries(v_tenant, p_stream, v_window) e
            where e.at >= v_from
                and e.at < v_to
            order by e.era desc, e.transaction_id desc, e.number desc
            limit p_limit;
    else
        return query
            select concat_ws('-', e.era, e.transaction_id, e.number), p_stream, e.name, e.payload, e.value, e.user_id, e.at
            from llm._settled_entries(v_tenant, p_stream, v_window) e
            where e.at >= v_from
                and e.at < v_to
            order by e.era, e.transaction_id, e.number
            limit p_limit;
    end if;
end
$$;

alter function llm.stream_range(text, timestamptz, timestamptz, bigint, boolean) owner to llm_owner;

comment on function llm.stream_range(text, timestamptz, timestamptz, bigint, boolean) is
'The entries of a stream that were appended in a time, in the order of the stream. p_stream; p_from, p_to: inclusive, exclusive, null for all;
p_limit: at most so many; p_newest_first: in the opposite order. Partitions of other times are not looked at.
Errors: object_not_in_prerequisite_state.';


create function llm.stream_end(
    p_stream text
)
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- That of an entry, and no number ahead of it: what was not committed yet, a crash may give again.
    return (select r.position from llm.stream_range(p_stream, null::timestamptz, null::timestamptz, 1::bigint, true) r);
end
$$;

comment on function llm.stream_end(text) is
'The position of the last entry of a stream that can be read, null when there is none: who reads on from there sees what comes later.
Errors: object_not_in_prerequisite_state.';


-- security definer: as llm.stream_read().
create function llm.stream_length(
    p_stream text
)
    returns bigint
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._stream_tenant();
    v_window llm.stream_window := llm._stream_window(v_tenant, p_stream, null::text);
begin
    return (select count(*) from llm._settled_entries(v_tenant, p_stream, v_window));
end
$$;

alter function llm.stream_length(text) owner to llm_owner;

comment on function llm.stream_length(text) is
'How many entries of a stream can be read. They are counted: about a second for five million. Errors: object_not_in_prerequisite_state.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_settled_entries', 'stream_read', 'stream_read_many', 'stream_range', 'stream_end', 'stream_length'
);
