create type llm.rate_limit_answer as (
    allowed      boolean,
    remaining    bigint,
    retry_after  interval,
    reset_after  interval
);

comment on type llm.rate_limit_answer is
'allowed: whether to go on; remaining: what is left of the limit now; retry_after: when the same would be allowed if nobody else came, zero when it is
allowed now, null for never; reset_after: when nothing of the limit is used any more.';


-- Not pinned: inlined into the caller's expression, fully qualified.
create function llm._limited_subject(
    p_tenant     text,
    p_resource   text,
    p_identifier text
)
    returns bytea
    language sql
    stable
as $$
    select pg_catalog.substring(
        pg_catalog.sha256(pg_catalog.convert_to(
            p_tenant operator(pg_catalog.||) E'\x1f' operator(pg_catalog.||) p_resource operator(pg_catalog.||) E'\x1f'
                operator(pg_catalog.||) p_identifier,
            'UTF8'
        )),
        1,
        16
    )
$$;

comment on function llm._limited_subject(text, text, text) is
'What llm.rate_limits calls a resource, in which there is no U+001F, and an identifier: a hash that nobody finds a second text for.';


create function llm._take_tokens(
    p_tenant  text,
    p_subject bytea,
    p_limit   double precision,
    p_window  interval,
    p_cost    double precision,
    p_take    boolean,
    p_now     timestamptz
)
    returns llm.rate_limit_answer
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_rate    double precision := p_limit / date_part('epoch', p_window);
    v_used    double precision;
    v_used_at timestamptz;
    v_now     timestamptz;
    v_allowed boolean;
begin
    loop
        if p_take then
            -- For who is denied it locks nothing. The time is read again after a lock was waited for, and first for used, the first column.
            update llm.rate_limits r
            set used = greatest(r.used - greatest(date_part('epoch', coalesce(p_now, clock_timestamp()) - r.used_at), 0) * v_rate, 0) + p_cost,
                used_at = coalesce(p_now, clock_timestamp())
            where r.tenant_id = p_tenant
                and r.subject = p_subject
                and r.algorithm = 'token_bucket'
                and r.per = p_window
                and greatest(r.used - greatest(date_part('epoch', coalesce(p_now, clock_timestamp()) - r.used_at), 0) * v_rate, 0) + p_cost
                    <= p_limit
            returning r.used into v_used;
            v_allowed := true;
            exit when found;
        end if;
        select r.used, r.used_at
        into v_used, v_used_at
        from llm.rate_limits r
        where r.tenant_id = p_tenant
            and r.subject = p_subject
            and r.algorithm = 'token_bucket'
            and r.per = p_window;
        if not found then
            v_used := 0;
            v_allowed := p_cost <= p_limit;
            exit when not v_allowed or not p_take;
            insert into llm.rate_limits (tenant_id, subject, algorithm, per, used, used_at)
            values (p_tenant, p_subject, 'token_bucket', p_window, p_cost, coalesce(p_now, clock_timestamp()))
            on conflict do nothing
            returning used into v_used;
            exit when found;
            continue;
        end if;
        v_now := coalesce(p_now, clock_timestamp());
        if v_used_at > v_now then
            -- The clock was set back. What was used counts as used just now: longer than it did, and no longer than that.
            update llm.rate_limits r
            set used_at = least(r.used_at, coalesce(p_now, clock_timestamp()))
            where r.tenant_id = p_tenant
                and r.subject = p_subject
                and r.algorithm = 'token_bucket'
                and r.per = p_window;
        end if;
        v_used := greatest(v_used - greatest(date_part('epoch', v_now - v_used_at), 0) * v_rate, 0);
        v_allowed := v_used + p_cost <= p_limit;
        exit when not v_allowed or not p_take;
    end loop;
    return (
        v_allowed,
        greatest(floor(p_limit - v_used), 0)::bigint,
        case
            when v_allowed then interval '0'
            when p_cost <= p_limit then make_interval(secs => (v_used + p_cost - p_limit) / v_rate) + interval '1 microsecond'
        end,
        case when v_used > 0 then make_interval(secs => v_used / nullif(v_rate, 0)) else interval '0' end
    );
end
$$;

comment on function llm._take_tokens(text, bytea, double precision, interval, double precision, boolean, timestamptz) is
'The token bucket of llm.rate_limit(): p_limit tokens, which come back evenly over p_window. p_take: false only asks; p_now: null for the clock.';


create function llm._take_slots(
    p_tenant    text,
    p_subject   bytea,
    p_algorithm text,
    p_limit     double precision,
    p_window    interval,
    p_cost      double precision,
    p_take      boolean,
    p_now       timestamptz
)
    returns llm.rate_limit_answer
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- Of so many seconds, whatever a day has where the session is.
    v_window    interval := make_interval(secs => date_part('epoch', p_window));
    v_slot      double precision := case p_algorithm when 'sliding_window' then date_part('epoch', p_window) / 10 end;
    v_is_locked boolean := false;
    v_is_there  boolean;
    v_written   xid;
    v_now       timestamptz;
    v_used      double precision;
    v_times     timestamptz[];
    v_costs     bigint[];
    v_count     integer;
    v_first     integer;
    v_back      interval;
    v_allowed   boolean;
    v_missing   double precision;
begin
    loop
        -- What is used up is told by reading alone. Who comes in between makes this lock the row, and read again.
        if v_is_locked then
            perform
            from llm.rate_limits r
            where r.tenant_id = p_tenant
                and r.subject = p_subject
                and r.algorithm = p_algorithm
                and r.per = p_window
            for no key update;
        end if;
        select r.used, r.times, r.costs, r.xmin
        into v_used, v_times, v_costs, v_written
        from llm.rate_limits r
        where r.tenant_id = p_tenant
            and r.subject = p_subject
            and r.algorithm = p_algorithm
            and r.per = p_window;
        v_is_there := found;
        v_now := coalesce(p_now, clock_timestamp());
        if not v_is_there then
            v_used := 0;
            v_times := '{}';
            v_costs := '{}';
        end if;
        v_count := coalesce(cardinality(v_times), 0);
        v_back := v_times[v_count] - v_now;
        if v_back > interval '0' then
            -- The clock was set back. The last one counts as of now, and those before as long before it as they were.
            v_times := array(select t.at - v_back from unnest(v_times) with ordinality t (at, position) order by t.position);
        end if;
        v_first := 1;
        while v_first <= v_count and v_times[v_first] <= v_now - v_window loop
            v_used := v_used - v_costs[v_first];
            v_first := v_first + 1;
        end loop;
        v_allowed := v_used + p_cost <= p_limit;
        exit when (not v_allowed or not p_take) and not coalesce(v_back > interval '0', false);

        if not v_is_there then
            insert into llm.rate_limits (tenant_id, subject, algorithm, per, used, used_at, times, costs)
            values (p_tenant, p_subject, p_algorithm, p_window, p_cost, v_now, array[v_now], array[p_cost::bigint])
            on conflict do nothing;
            if found then
                v_used := p_cost;
                exit;
            end if;
        else
            v_times := v_times[v_first:];
            v_costs := v_costs[v_first:];
            v_first := 1;
            v_count := coalesce(cardinality(v_times), 0);
            if v_allowed and p_take then
                v_used := v_used + p_cost;
                if v_count > 0 and floor(date_part('epoch', v_times[v_count]) / v_slot) = floor(date_part('epoch', v_now) / v_slot) then
                    v_costs[v_count] := v_costs[v_count] + p_cost;
                else
                    v_count := v_count + 1;
                    v_costs[v_count] := p_cost;
                end if;
                v_times[v_count] := v_now;
            end if;
            update llm.rate_limits r
            set used = v_used,
                used_at = v_now,
                times = v_times,
                costs = v_costs
            where r.tenant_id = p_tenant
                and r.subject = p_subject
                and r.algorithm = p_algorithm
                and r.per = p_window
                and r.xmin = v_written;
            exit when found;
        end if;
        v_is_locked := true;
    end loop;

    if not v_allowed and p_cost <= p_limit then
        v_missing := v_used + p_cost - p_limit;
        while v_missing > v_costs[v_first] loop
            v_missing := v_missing - v_costs[v_first];
            v_first := v_first + 1;
        end loop;
    end if;
    return (
        v_allowed,
        greatest(p_limit - v_used, 0)::bigint,
        case when v_allowed then interval '0' when p_cost <= p_limit then v_times[v_first] + v_window - v_now end,
        case when v_used = 0 then interval '0' when v_count = 0 then v_window else v_times[v_count] + v_window - v_now end
    );
end
$$;

comment on function llm._take_slots(text, bytea, text, double precision, interval, double precision, boolean, timestamptz) is
'The sliding_window and sliding_log of llm.rate_limit(): no more than p_limit in any p_window, each call for itself or those of a tenth of the window
together. p_take: false only asks; p_now: null for the clock.';


create function llm._take(
    p_tenant    text,
    p_subject   bytea,
    p_algorithm text,
    p_limit     double precision,
    p_window    interval,
    p_cost      double precision,
    p_take      boolean,
    p_now       timestamptz
)
    returns llm.rate_limit_answer
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_algorithm = 'token_bucket' then
        return llm._take_tokens(p_tenant, p_subject, p_limit, p_window, p_cost, p_take, p_now);
    end if;
    return llm._take_slots(p_tenant, p_subject, p_algorithm, p_limit, p_window, p_cost, p_take, p_now);
end
$$;

comment on function llm._take(text, bytea, text, double precision, interval, double precision, boolean, timestamptz) is
'llm._take_tokens() or llm._take_slots(), by the algorithm.';


create function llm._take_in_memory(
    p_tenant     text,
    p_resource   text,
    p_identifier text,
    p_limit      bigint,
    p_window     double precision,
    p_cost       bigint
)
    returns llm.rate_limit_answer
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import rate_counter
return rate_counter.answer(p_tenant, p_resource, p_identifier, p_limit, p_window, p_cost)
$$;

comment on function llm._take_in_memory(text, text, text, bigint, double precision, bigint) is
'The part of llm.rate_limit() that counts in shared memory. p_window: in seconds.';


create function llm._take_from_slot(
    p_subject bytea,
    p_limit   double precision,
    p_window  double precision,
    p_cost    double precision,
    p_take    boolean,
    p_now     double precision
)
    returns double precision
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import rate_counter
return rate_counter.take(p_subject, p_limit, p_window, p_cost, p_take, p_now)
$$;

comment on function llm._take_from_slot(bytea, double precision, double precision, double precision, boolean, double precision) is
'The token bucket of llm.rate_limit() in shared memory, at a time of the machine''s clock. Returns how many tokens are gone, or, when there are not
enough, -1 minus that. For tests.';


create function llm._fill_in_memory(
    p_subject bytea
)
    returns bigint
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import rate_counter
return rate_counter.fill(p_subject)
$$;

comment on function llm._fill_in_memory(bytea) is
'The part of llm.reset_rate_limit() about shared memory.';


create procedure llm.expire_rate_limits()
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    delete from llm.rate_limits r where r.used_at < clock_timestamp() - r.per;
end
$$;

comment on procedure llm.expire_rate_limits() is
'Deletes the rows of limits of which nothing is used any more. Call it every few minutes: see llm.schedule_maintenance(). For superusers.';


select llm._grant_execute(
    array['llm_owner'],
    '_limited_subject', '_take_tokens', '_take_slots', '_take', '_take_in_memory', '_take_from_slot', '_fill_in_memory'
);
