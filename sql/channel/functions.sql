create function llm._channel_patterns(
    p_patterns text[]
)
    returns text[]
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return array(
        select replace(replace(replace(replace(replace(p, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%'), '?', '_')
        from unnest(p_patterns) p
    );
end
$$;

comment on function llm._channel_patterns(text[]) is
'Patterns of channels as LIKE takes them: * stands for any characters, ? for one.';


create function llm._channel_signal(
    p_tenant     text,
    p_subscriber text
)
    returns text
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return 'llm_' || substr(encode(sha256(convert_to(octet_length(p_tenant)::text || ':' || p_tenant || p_subscriber, 'UTF8')), 'hex'), 1, 40);
end
$$;

comment on function llm._channel_signal(text, text) is
'What a subscriber may LISTEN to: a name that tells nothing of the tenant to others who listen.';


create function llm._refuse_subscriber(
    p_subscriber text
)
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'subscriber % is unknown', coalesce(quote_literal(left(p_subscriber, 200)), 'null')
        using errcode = 'no_data_found',
              hint = 'llm.channel_subscribe() makes one. Who was away for longer than streams are kept is forgotten.';
end
$$;

comment on function llm._refuse_subscriber(text) is
'Raises no_data_found: there is no such subscriber.';


create function llm.channel_publish(
    p_channel text,
    p_message text,
    p_user_id uuid default null
)
    returns text
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_channel is null then
        raise exception 'no channel is given'
            using errcode = 'invalid_parameter_value',
                  hint = 'Channels are named as you like, such as incidents:42.';
    end if;
    return llm.stream_append('channels'::text, p_message, p_channel, p_user_id);
end
$$;

comment on function llm.channel_publish(text, text, uuid) is
'Publishes a message on a channel, as an entry of stream channels whose name is the channel''s, and returns its position. Nobody needs to be there:
subscribers read what they missed. p_channel: 1 to 200 bytes; p_message: JSON text; p_user_id: for this user alone. No NOTIFY is sent:
llm.signal_subscribers() does. Errors: as llm.stream_append().';


-- security definer: as llm.stream_append().
create function llm.channel_subscribe(
    p_subscriber text,
    p_patterns   text[],
    p_after      text default null,
    p_presence   interval default '30 seconds'
)
    returns text
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := llm._stream_tenant();
    v_seconds double precision := extract(epoch from p_presence);
begin
    if p_subscriber is null or octet_length(p_subscriber) not between 1 and 200 or coalesce(cardinality(p_patterns), 0) = 0
        or array_position(p_patterns, null) is not null or (v_seconds between 0 and 3e9) is not true
    then
        raise exception 'subscriber % cannot have patterns % and presence %', coalesce(quote_literal(left(p_subscriber, 200)), 'null'),
            coalesce(p_patterns::text, 'null'), coalesce(p_presence::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give a name of 1 to 200 bytes, at least one pattern such as incidents:*, and how long who was seen counts as there.';
    end if;
    perform llm._stream_window(v_tenant, 'channels'::text, p_after);
    insert into llm.channel_subscribers as s (tenant_id, subscriber, user_id, patterns, position, presence)
    values (v_tenant, p_subscriber, llm.current_user_id(), p_patterns, coalesce(p_after, llm.stream_end('channels'::text)),
            make_interval(secs => v_seconds))
    on conflict (tenant_id, subscriber) do update
        set patterns = excluded.patterns,
            presence = excluded.presence,
            position = coalesce(p_after, s.position),
            seen_at = excluded.seen_at,
            is_signalled = false;
    return llm._channel_signal(v_tenant, p_subscriber);
end
$$;

alter function llm.channel_subscribe(text, text[], text, interval) owner to llm_owner;

comment on function llm.channel_subscribe(text, text[], text, interval) is
'Subscribes to channels whose names match a pattern. p_subscriber: 1 to 200 bytes; p_patterns: * stands for any characters, ? for one; p_after: the
position to begin after, null for what comes from now on, or, for a subscriber who was here before, for what he missed; p_presence: how long he counts
as there after each read. Returns the name to LISTEN to, if he likes to be woken by llm.signal_subscribers().
Errors: invalid_parameter_value; insufficient_privilege for another user''s; object_not_in_prerequisite_state.';


-- security definer: as llm.stream_append().
create function llm.channel_read(
    p_subscriber text,
    p_limit      bigint default 100
)
    returns setof llm.stream_entry
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    -- As llm.stream_read().
    set plan_cache_mode = force_generic_plan
    set enable_sort = off
as $$
declare
    v_tenant     text := llm._stream_tenant();
    v_subscriber record;
    v_patterns   text[];
    v_window     llm.stream_window;
    v_entry      record;
    v_position   text;
    v_left       bigint := coalesce(p_limit, 9223372036854775807);
begin
    select s.position, s.patterns
    into v_subscriber
    from llm.channel_subscribers s
    where s.tenant_id = v_tenant
        and s.subscriber = p_subscriber
    for no key update;
    if not found then
        perform llm._refuse_subscriber(p_subscriber);
    end if;
    v_patterns := llm._channel_patterns(v_subscriber.patterns);
    v_window := llm._stream_window(v_tenant, 'channels'::text, v_subscriber.position);

    if v_left > 0 then
        for v_entry in
            select concat_ws('-', e.era, e.transaction_id, e.number) as position, e.name, e.payload, e.value, e.user_id, e.at
            from llm._settled_entries(v_tenant, 'channels'::text, v_window) e
            limit 10000
        loop
            v_position := v_entry.position;
            if v_entry.name like any (v_patterns) then
                return next row(v_position, 'channels', v_entry.name, v_entry.payload, v_entry.value, v_entry.user_id, v_entry.at)::llm.stream_entry;
                v_left := v_left - 1;
                exit when v_left = 0;
            end if;
        end loop;
    end if;
    update llm.channel_subscribers s
    set position = coalesce(v_position, s.position),
        seen_at = clock_timestamp(),
        is_signalled = false
    where s.tenant_id = v_tenant
        and s.subscriber = p_subscriber;
end
$$;

alter function llm.channel_read(text, bigint) owner to llm_owner;

comment on function llm.channel_read(text, bigint) is
'The next messages for a subscriber, in the one order of all channels; name is the channel. He has then read them: they come again only if this
transaction rolls back, so handle them in it, or llm.channel_subscribe() at an earlier position. p_subscriber, who counts as there from now on;
p_limit: at most so many, 0 only to be there. At most 10,000 messages of all channels are looked at in a call: none returned does not mean that there
is none. Errors: no_data_found for an unknown subscriber; object_not_in_prerequisite_state.';


-- security definer: as llm.stream_append().
create function llm.channel_unsubscribe(
    p_subscriber text
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._stream_tenant();
begin
    delete from llm.channel_subscribers s
    where s.tenant_id = v_tenant
        and s.subscriber = p_subscriber;
    return found;
end
$$;

alter function llm.channel_unsubscribe(text) owner to llm_owner;

comment on function llm.channel_unsubscribe(text) is
'Ends a subscription. Returns false when there was none. Errors: object_not_in_prerequisite_state.';


create function llm.channel_presence(
    p_channel text default null
)
    returns table (subscriber text, patterns text[], user_id uuid, seen_at timestamptz)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._stream_tenant();
begin
    return query
        select s.subscriber, s.patterns, s.user_id, s.seen_at
        from llm.channel_subscribers s
        where s.tenant_id = v_tenant
            and s.seen_at + s.presence > clock_timestamp()
            and (p_channel is null or p_channel like any (llm._channel_patterns(s.patterns)))
        order by s.subscriber;
end
$$;

comment on function llm.channel_presence(text) is
'Who is there: the subscribers of a channel, null for any, who read within the time that they said. Errors: object_not_in_prerequisite_state.';


-- security definer: as llm.stream_append(); for all tenants only when an administrator who works for none asks.
create function llm.signal_subscribers()
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant     text := case when llm.current_tenant() is not null or not llm._may_write_global() then llm._stream_tenant_of_all() end;
    v_subscriber record;
    v_has_news   boolean;
    v_count      bigint := 0;
begin
    for v_subscriber in
        select s.tenant_id, s.subscriber, llm._channel_patterns(s.patterns) as patterns,
            llm._stream_window(s.tenant_id, 'channels'::text, s.position) as stream_window
        from llm.channel_subscribers s
        where (v_tenant is null or s.tenant_id = v_tenant)
            and not s.is_signalled
            and s.seen_at + s.presence > clock_timestamp()
        order by s.tenant_id, s.subscriber
        for no key update of s skip locked
    loop
        -- As far as llm.channel_read() looks in one call: beyond that, he has to come and go on.
        select count(*) = 10000 or coalesce(bool_or(e.name like any (v_subscriber.patterns)), false)
        into v_has_news
        from (
            select e.name
            from llm._settled_entries(v_subscriber.tenant_id, 'channels'::text, v_subscriber.stream_window) e
            limit 10000
        ) e;
        if v_has_news then
            update llm.channel_subscribers s
            set is_signalled = true
            where s.tenant_id = v_subscriber.tenant_id
                and s.subscriber = v_subscriber.subscriber;
            perform pg_notify(llm._channel_signal(v_subscriber.tenant_id, v_subscriber.subscriber), '');
            v_count := v_count + 1;
        end if;
    end loop;
    return v_count;
end
$$;

alter function llm.signal_subscribers() owner to llm_owner;

comment on function llm.signal_subscribers() is
'Wakes those who are there and have something to read, by one NOTIFY each until they have read: for a loop of one process, several times a second, so
that who publishes never waits for the lock that NOTIFY takes. Of the tenant; of all for llm_admin without one. Returns how many.
Errors: object_not_in_prerequisite_state.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_channel_patterns', 'channel_presence'
);
select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    '_channel_signal', '_refuse_subscriber', 'channel_publish', 'channel_subscribe', 'channel_read', 'channel_unsubscribe', 'signal_subscribers'
);
