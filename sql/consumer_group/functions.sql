create type llm.group_entry as (
    position        text,
    name            text,
    payload         jsonb,
    value           double precision,
    user_id         uuid,
    at              timestamptz,
    consumer        text,
    delivered_at    timestamptz,
    delivery_count  bigint
);

comment on type llm.group_entry is
'An entry of a stream that was delivered to a consumer of a group: when that was last, and how often. payload is null when the entry itself is gone,
past retention.';


create function llm._refuse_group(
    p_stream text,
    p_group  text
)
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'stream % has no group %', coalesce(quote_literal(p_stream), 'null'), coalesce(quote_literal(p_group), 'null')
        using errcode = 'no_data_found',
              hint = 'llm.group_create() makes one; llm.group_lag() lists those that there are.';
end
$$;

comment on function llm._refuse_group(text, text) is
'Raises no_data_found: there is no such group.';


create function llm._refuse_consumer(
    p_name text
)
    returns void
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_name is null or octet_length(p_name) not between 1 and 200 then
        raise exception 'a group or consumer has a name of % bytes', coalesce(octet_length(p_name)::text, 'no')
            using errcode = 'invalid_parameter_value',
                  hint = 'Names have 1 to 200 bytes.';
    end if;
end
$$;

comment on function llm._refuse_consumer(text) is
'Raises invalid_parameter_value when this cannot be the name of a group or consumer.';


-- security definer: as llm.stream_append().
create function llm.group_create(
    p_stream text,
    p_group  text,
    p_after  text default null
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._stream_tenant_of_all();
begin
    perform llm._refuse_entry(p_stream, null::text, ''::text);
    perform llm._refuse_consumer(p_group);
    perform llm._stream_window(v_tenant, p_stream, p_after);
    insert into llm.consumer_groups (tenant_id, stream, group_name, position)
    values (v_tenant, p_stream, p_group, p_after)
    on conflict (tenant_id, stream, group_name) do nothing;
    return found;
end
$$;

alter function llm.group_create(text, text, text) owner to llm_owner;

comment on function llm.group_create(text, text, text) is
'Makes a group of consumers, who share the entries of a stream. p_stream, which need not have begun; p_group: 1 to 200 bytes; p_after: the position
to begin after, null for the first entry that there is, llm.stream_end(…) for what comes from now on. Returns false when the group was there, which
stays as it is. Errors: invalid_parameter_value; object_not_in_prerequisite_state, also when llm.set_user() told of a user.';


-- security definer: as llm.stream_append().
create function llm.group_seek(
    p_stream text,
    p_group  text,
    p_after  text
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._stream_tenant_of_all();
begin
    perform llm._stream_window(v_tenant, p_stream, p_after);
    update llm.consumer_groups g
    set position = p_after
    where g.tenant_id = v_tenant
        and g.stream = p_stream
        and g.group_name = p_group;
    if not found then
        perform llm._refuse_group(p_stream, p_group);
    end if;
    -- What is delivered anew is not pending from before.
    delete from llm.group_deliveries d
    where d.tenant_id = v_tenant
        and d.stream = p_stream
        and d.group_name = p_group;
end
$$;

alter function llm.group_seek(text, text, text) owner to llm_owner;

comment on function llm.group_seek(text, text, text) is
'Lets a group go on after another position, backwards too; what was delivered and not acknowledged is forgotten. p_stream; p_group; p_after: a
position, null for the beginning. Errors: no_data_found without such a group; invalid_parameter_value; object_not_in_prerequisite_state.';


-- security definer: as llm.stream_append().
create function llm.group_drop(
    p_stream text,
    p_group  text
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._stream_tenant_of_all();
begin
    delete from llm.consumer_groups g
    where g.tenant_id = v_tenant
        and g.stream = p_stream
        and g.group_name = p_group;
    if not found then
        return false;
    end if;
    delete from llm.group_deliveries d
    where d.tenant_id = v_tenant
        and d.stream = p_stream
        and d.group_name = p_group;
    return true;
end
$$;

alter function llm.group_drop(text, text) owner to llm_owner;

comment on function llm.group_drop(text, text) is
'Drops a group with what it has not acknowledged; the entries stay. Returns false when there was none. Errors: object_not_in_prerequisite_state.';


-- security definer: as llm.stream_append().
create function llm.group_read(
    p_stream   text,
    p_group    text,
    p_consumer text,
    p_limit    bigint default 10
)
    returns setof llm.group_entry
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    -- As llm.stream_read().
    set plan_cache_mode = force_generic_plan
    set enable_sort = off
as $$
declare
    v_tenant   text := llm._stream_tenant_of_all();
    v_position text;
    v_window   llm.stream_window;
begin
    perform llm._refuse_consumer(p_consumer);
    -- One consumer at a time: what he was given, the next one is not.
    select g.position
    into v_position
    from llm.consumer_groups g
    where g.tenant_id = v_tenant
        and g.stream = p_stream
        and g.group_name = p_group
    for no key update;
    if not found then
        perform llm._refuse_group(p_stream, p_group);
    end if;
    v_window := llm._stream_window(v_tenant, p_stream, v_position);

    return query
        with entries as materialized (
            select e.* from llm._settled_entries(v_tenant, p_stream, v_window) e limit p_limit
        ), delivered as (
            insert into llm.group_deliveries (tenant_id, stream, group_name, era, transaction_id, number, at, consumer)
            select v_tenant, p_stream, p_group, e.era, e.transaction_id, e.number, e.at, p_consumer
            from entries e
        ), moved as (
            update llm.consumer_groups g
            set position = l.position
            from (
                select concat_ws('-', e.era, e.transaction_id, e.number) as position
                from entries e
                order by e.era desc, e.transaction_id desc, e.number desc
                limit 1
            ) l
            where g.tenant_id = v_tenant
                and g.stream = p_stream
                and g.group_name = p_group
        )
        select
            concat_ws('-', e.era, e.transaction_id, e.number), e.name, e.payload, e.value, e.user_id, e.at, p_consumer, clock_timestamp(), 1::bigint
        from entries e;
end
$$;

alter function llm.group_read(text, text, text, bigint) owner to llm_owner;

comment on function llm.group_read(text, text, text, bigint) is
'Delivers to a consumer of a group the next entries that no other consumer of it was given, in order. They are pending until llm.group_ack(); those of
a consumer who died, another takes by llm.group_claim(). Call it in a transaction of its own: others wait until it has ended. p_stream; p_group;
p_consumer: 1 to 200 bytes; p_limit: at most so many. Errors: no_data_found without such a group; invalid_parameter_value;
object_not_in_prerequisite_state, also when llm.set_user() told of a user.';


-- security definer: as llm.stream_append().
create function llm.group_claim(
    p_stream   text,
    p_group    text,
    p_consumer text,
    p_min_idle interval default '1 minute',
    p_limit    bigint default 10
)
    returns setof llm.group_entry
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
as $$
declare
    v_tenant text := llm._stream_tenant_of_all();
    v_before timestamptz := clock_timestamp() - make_interval(secs => extract(epoch from p_min_idle));
begin
    perform llm._refuse_consumer(p_consumer);
    return query
        with idle as (
            select d.era, d.transaction_id, d.number
            from llm.group_deliveries d
            where d.tenant_id = v_tenant
                and d.stream = p_stream
                and d.group_name = p_group
                and d.delivered_at <= v_before
            order by d.era, d.transaction_id, d.number
            limit p_limit
            for update skip locked
        ), claimed as (
            update llm.group_deliveries d
            set consumer = p_consumer,
                delivered_at = clock_timestamp(),
                delivery_count = d.delivery_count + 1
            from idle i
            where d.tenant_id = v_tenant
                and d.stream = p_stream
                and d.group_name = p_group
                and d.era = i.era
                and d.transaction_id = i.transaction_id
                and d.number = i.number
            returning d.era, d.transaction_id, d.number, d.at, d.delivered_at, d.delivery_count
        )
        select
            concat_ws('-', c.era, c.transaction_id, c.number), e.name, e.payload, e.value, e.user_id, c.at, p_consumer, c.delivered_at,
            c.delivery_count
        from claimed c
        left join llm.stream_entries e
            on e.tenant_id = v_tenant
            and e.stream = p_stream
            and e.era = c.era
            and e.transaction_id = c.transaction_id
            and e.number = c.number
            and e.at = c.at
        order by c.era, c.transaction_id, c.number;
end
$$;

alter function llm.group_claim(text, text, text, interval, bigint) owner to llm_owner;

comment on function llm.group_claim(text, text, text, interval, bigint) is
'Delivers again to a consumer what was delivered and not acknowledged for some time, the oldest entries first; what another one is claiming just now
is left to him. p_stream; p_group; p_consumer: who takes them; p_min_idle: since their last delivery; p_limit: at most so many. delivery_count tells
poison. Errors: invalid_parameter_value; object_not_in_prerequisite_state, also when llm.set_user() told of a user.';


-- security definer: as llm.stream_append().
create function llm.group_ack(
    p_stream    text,
    p_group     text,
    p_positions text[],
    p_consumer  text default null
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
as $$
declare
    v_tenant text := llm._stream_tenant_of_all();
    v_count  bigint := 0;
    v_entry  record;
begin
    if array_to_string(p_positions, ' ', 'null') !~ '^(\d{1,18}-\d{1,18}-\d{1,18}( |$))*$' then
        perform llm._refuse_position(p) from unnest(p_positions) p where p is null or p !~ '^\d{1,18}-\d{1,18}-\d{1,18}$';
    end if;
    -- One by one, as no plan for all of them is right for few and many; in order, so that two who acknowledge the same wait instead of deadlocking.
    for v_entry in
        select split_part(p, '-', 1)::bigint as era, split_part(p, '-', 2)::xid8 as transaction_id, split_part(p, '-', 3)::bigint as number
        from unnest(p_positions) p
        order by 1, 2, 3
    loop
        delete from llm.group_deliveries d
        where d.tenant_id = v_tenant
            and d.stream = p_stream
            and d.group_name = p_group
            and d.era = v_entry.era
            and d.transaction_id = v_entry.transaction_id
            and d.number = v_entry.number
            and (p_consumer is null or d.consumer = p_consumer);
        v_count := v_count + found::integer;
    end loop;
    return v_count;
end
$$;

alter function llm.group_ack(text, text, text[], text) owner to llm_owner;

comment on function llm.group_ack(text, text, text[], text) is
'Says that entries which were delivered are done. p_stream; p_group; p_positions: which; p_consumer: only if they are still this consumer''s, null for
anybody''s. Returns how many there were: fewer than given when some were acknowledged before, or claimed by another.
Errors: invalid_parameter_value for what is no position; object_not_in_prerequisite_state.';


-- security definer: as llm.stream_read().
create function llm.group_pending(
    p_stream   text,
    p_group    text,
    p_consumer text default null,
    p_limit    bigint default 100
)
    returns setof llm.group_entry
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
as $$
declare
    v_tenant text := llm._stream_tenant_of_all();
begin
    return query
        select
            concat_ws('-', d.era, d.transaction_id, d.number), e.name, e.payload, e.value, e.user_id, d.at, d.consumer, d.delivered_at,
            d.delivery_count
        from (
            select *
            from llm.group_deliveries d
            where d.tenant_id = v_tenant
                and d.stream = p_stream
                and d.group_name = p_group
                and (p_consumer is null or d.consumer = p_consumer)
            order by d.era, d.transaction_id, d.number
            limit p_limit
        ) d
        left join llm.stream_entries e
            on e.tenant_id = v_tenant
            and e.stream = p_stream
            and e.era = d.era
            and e.transaction_id = d.transaction_id
            and e.number = d.number
            and e.at = d.at
        order by d.era, d.transaction_id, d.number;
end
$$;

alter function llm.group_pending(text, text, text, bigint) owner to llm_owner;

comment on function llm.group_pending(text, text, text, bigint) is
'What was delivered and is not acknowledged, in order: a consumer that starts again begins with its own. p_stream; p_group; p_consumer: whose, null
for all; p_limit: at most so many. Errors: object_not_in_prerequisite_state, also when llm.set_user() told of a user.';


-- security definer: as llm.stream_read().
create function llm.group_lag(
    p_stream text default null,
    p_group  text default null
)
    returns table (
        stream          text,
        group_name      text,
        last_delivered  text,
        lag             bigint,
        next_at         timestamptz,
        pending         bigint,
        consumers       bigint,
        oldest_delivery timestamptz
    )
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._stream_tenant_of_all();
begin
    return query
        select g.stream, g.group_name, g.position, l.lag, l.next_at, d.pending, d.consumers, d.oldest_delivery
        from llm.consumer_groups g
        cross join lateral (select llm._stream_window(v_tenant, g.stream, g.position) as stream_window offset 0) w
        cross join lateral (
            select count(*) as lag, min(e.at) as next_at from llm._settled_entries(v_tenant, g.stream, w.stream_window) e
        ) l
        cross join lateral (
            select count(*) as pending, count(distinct d.consumer) as consumers, min(d.delivered_at) as oldest_delivery
            from llm.group_deliveries d
            where d.tenant_id = v_tenant
                and d.stream = g.stream
                and d.group_name = g.group_name
        ) d
        where g.tenant_id = v_tenant
            and (p_stream is null or g.stream = p_stream)
            and (p_group is null or g.group_name = p_group)
        order by g.stream, g.group_name;
end
$$;

alter function llm.group_lag(text, text) owner to llm_owner;

comment on function llm.group_lag(text, text) is
'How far groups are behind. p_stream, p_group: which, null for all. last_delivered: a position; lag: entries that can be read and were not delivered,
next_at: the time of the oldest of them; pending: delivered and not acknowledged, to so many consumers, oldest_delivery: since when. Entries of
transactions at work are not counted: llm.stream_info() does. Errors: object_not_in_prerequisite_state, also when llm.set_user() told of a user.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_refuse_group', '_refuse_consumer', 'group_pending', 'group_lag'
);
select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    'group_create', 'group_seek', 'group_drop', 'group_read', 'group_claim', 'group_ack'
);
