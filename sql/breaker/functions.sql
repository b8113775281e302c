create type llm.breaker_answer as (
    allowed      boolean,
    state        text,
    retry_after  interval,
    probe        uuid
);

comment on type llm.breaker_answer is
'allowed: whether to call the service; state: closed, open or half_open; retry_after: when it may be worth asking again, zero when allowed; probe: the
token of a call that tries whether the service is back, for llm.breaker_success() and llm.breaker_failure().';


create function llm._check_service(
    p_service text
)
    returns void
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_service is null or octet_length(p_service) not between 1 and 200 then
        raise exception 'the name of a service has % bytes', coalesce(octet_length(p_service)::text, 'no')
            using errcode = 'invalid_parameter_value',
                  hint = 'It has 1 to 200.';
    end if;
end
$$;

comment on function llm._check_service(text) is
'Refuses what is no name of a service. Errors: invalid_parameter_value.';


-- security definer: nobody writes llm.breakers but these functions, which name the tenant in each statement.
create function llm.set_breaker(
    p_service           text,
    p_failure_threshold integer default 5,
    p_timeout           interval default '30 seconds',
    p_success_threshold integer default 1
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := coalesce(llm.current_tenant(), llm._writable_tenant());
begin
    perform llm._check_service(p_service);
    if p_failure_threshold is null or p_failure_threshold not between 1 and 1000000
        or p_success_threshold is null or p_success_threshold not between 1 and 1000
        or p_timeout is null or p_timeout not between interval '1 millisecond' and interval '1 day'
    then
        raise exception 'a breaker cannot open after % failures for % and close after % successes', coalesce(p_failure_threshold::text, 'null'),
            coalesce(p_timeout::text, 'null'), coalesce(p_success_threshold::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Failures are 1 to 1,000,000, the time-out is a millisecond to a day, successes are 1 to 1,000.';
    end if;
    insert into llm.breakers as b (tenant_id, service, failure_threshold, timeout, success_threshold)
    values (v_tenant, p_service, p_failure_threshold, p_timeout, p_success_threshold)
    on conflict (tenant_id, service) do update
        set failure_threshold = excluded.failure_threshold,
            timeout = excluded.timeout,
            success_threshold = excluded.success_threshold;
end
$$;

alter function llm.set_breaker(text, integer, interval, integer) owner to llm_owner;

comment on function llm.set_breaker(text, integer, interval, integer) is
'Sets when the breaker of a service opens and closes; without it the defaults hold. p_failure_threshold: after so many failures in a row it opens;
p_timeout: for so long, then one call at a time may try; p_success_threshold: after so many of these in a row have succeeded it closes. Its state
stays. Errors: invalid_parameter_value; object_not_in_prerequisite_state without a tenant.';


create function llm._log_breaker(
    p_service  text,
    p_before   text,
    p_after    text,
    p_failures integer,
    p_error    text
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm.log_audit_event(
        'breaker_' || p_after, 'breaker'::text, p_service, jsonb_strip_nulls(jsonb_build_object('failures', p_failures, 'error', p_error)),
        session_user::text, null::jsonb, jsonb_build_object('state', p_before), jsonb_build_object('state', p_after), null::text, 'llm_auditor'::text
    );
end
$$;

comment on function llm._log_breaker(text, text, text, integer, text) is
'Writes to the audit log that a breaker is in another state: breaker_open, breaker_half_open or breaker_closed.';


create function llm._probe_breaker(
    p_tenant  text,
    p_service text,
    p_now     timestamptz
)
    returns llm.breaker_answer
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_now timestamptz := coalesce(p_now, clock_timestamp());
    v_old llm.breakers;
    v_new llm.breakers;
begin
    select * into v_old from llm.breakers b where b.tenant_id = p_tenant and b.service = p_service;
    if not found or v_old.state = 'closed' then
        return (true, 'closed'::text, interval '0', null::uuid);
    end if;
    -- It is never to be tried later than a time-out from now, unless the clock was set back.
    if (v_now >= v_old.retry_at or v_now < v_old.retry_at - v_old.timeout) and not pg_is_in_recovery() then
        -- One takes the probe, and nobody waits for him.
        select *
        into v_old
        from llm.breakers b
        where b.tenant_id = p_tenant
            and b.service = p_service
            and b.state <> 'closed'
        for no key update skip locked;
        v_now := coalesce(p_now, clock_timestamp());
        if found and (v_now >= v_old.retry_at or v_now < v_old.retry_at - v_old.timeout) then
            update llm.breakers b
            set state = 'half_open',
                retry_at = v_now + b.timeout,
                probe = gen_random_uuid(),
                changed_at = case b.state when 'open' then v_now else b.changed_at end
            where b.tenant_id = p_tenant
                and b.service = p_service
            returning b.* into v_new;
            if v_old.state = 'open' then
                perform llm._log_breaker(p_service, 'open'::text, 'half_open'::text, v_new.failures, null::text);
            end if;
            return (true, 'half_open'::text, interval '0', v_new.probe);
        end if;
    end if;
    return (false, coalesce(v_old.state, 'half_open'), least(greatest(v_old.retry_at - v_now, interval '0'), v_old.timeout), null::uuid);
end
$$;

comment on function llm._probe_breaker(text, text, timestamptz) is
'The part of llm.breaker_allow() about breakers that are not closed. p_now: null for the clock.';


create function llm._settle_breaker(
    p_tenant  text,
    p_service text,
    p_probe   uuid,
    p_ok      boolean,
    p_error   text,
    p_now     timestamptz
)
    returns text
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_now      timestamptz;
    v_old      llm.breakers;
    v_state    text;
    v_failures integer;
begin
    perform llm._check_service(p_service);
    select * into v_old from llm.breakers b where b.tenant_id = p_tenant and b.service = p_service;
    if p_ok and (not found or v_old.state = 'closed' and v_old.failures = 0) then
        return 'closed';
    end if;
    insert into llm.breakers (tenant_id, service) values (p_tenant, p_service) on conflict do nothing;
    select * into strict v_old from llm.breakers b where b.tenant_id = p_tenant and b.service = p_service for no key update;
    v_now := coalesce(p_now, clock_timestamp());

    if v_old.state = 'closed' then
        v_failures := case when p_ok then 0 else v_old.failures + 1 end;
        v_state := case when v_failures >= v_old.failure_threshold then 'open' else 'closed' end;
    elsif p_probe = v_old.probe then
        v_failures := case when p_ok then v_old.failures else v_old.failures + 1 end;
        v_state := case when not p_ok then 'open' when v_old.successes + 1 >= v_old.success_threshold then 'closed' else 'half_open' end;
    else
        -- It was called before the breaker opened, or so long ago that another tries meanwhile.
        return v_old.state;
    end if;
    update llm.breakers b
    set state = v_state,
        failures = case when v_state = 'closed' and v_old.state <> 'closed' then 0 else v_failures end,
        successes = case v_state when 'half_open' then v_old.successes + 1 else 0 end,
        retry_at = case v_state when 'open' then v_now + b.timeout when 'half_open' then v_now end,
        probe = null,
        last_error = coalesce(left(p_error, 1000), b.last_error),
        changed_at = case when v_state = b.state then b.changed_at else v_now end
    where b.tenant_id = p_tenant
        and b.service = p_service;
    if v_state <> v_old.state then
        perform llm._log_breaker(p_service, v_old.state, v_state, v_failures, left(p_error, 1000));
    end if;
    return v_state;
end
$$;

comment on function llm._settle_breaker(text, text, uuid, boolean, text, timestamptz) is
'llm.breaker_success() and llm.breaker_failure(). p_now: null for the clock.';


-- security definer: as llm.set_breaker().
create function llm.breaker_allow(
    p_service text
)
    returns llm.breaker_answer
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := coalesce(llm.current_tenant(), llm._writable_tenant());
begin
    if exists (select from llm.breakers b where b.tenant_id = v_tenant and b.service = p_service and b.state <> 'closed') then
        return llm._probe_breaker(v_tenant, p_service, null::timestamptz);
    end if;
    perform llm._check_service(p_service);
    return (true, 'closed'::text, interval '0', null::uuid);
end
$$;

alter function llm.breaker_allow(text) owner to llm_owner;

comment on function llm.breaker_allow(text) is
'Whether to call a service. p_service: any name; a breaker that is not there is closed. Closed: yes, by reading alone. Open: no, until its time-out is
over; then, half open, one call at a time, which gets a token (probe); when that does not come back within the time-out, the next one does. Tell how
it went by llm.breaker_success() or llm.breaker_failure(), with the token. On a standby nobody tries. Errors: invalid_parameter_value;
object_not_in_prerequisite_state without a tenant.';


-- security definer: as llm.set_breaker().
create function llm.breaker_success(
    p_service text,
    p_probe   uuid default null
)
    returns text
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    return llm._settle_breaker(
        coalesce(llm.current_tenant(), llm._writable_tenant()), p_service, p_probe, true, null::text, null::timestamptz
    );
end
$$;

alter function llm.breaker_success(text, uuid) owner to llm_owner;

comment on function llm.breaker_success(text, uuid) is
'Tells that a call succeeded: failures in a row are forgotten, and after enough probes the breaker closes. Writes nothing when there was none.
p_service: as llm.breaker_allow(); p_probe: the token that it gave, or null; without it nothing changes unless the breaker is closed, because the call
was made before it opened. Returns the state. Errors: as llm.breaker_allow().';


-- security definer: as llm.set_breaker().
create function llm.breaker_failure(
    p_service text,
    p_probe   uuid default null,
    p_error   text default null
)
    returns text
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    return llm._settle_breaker(
        coalesce(llm.current_tenant(), llm._writable_tenant()), p_service, p_probe, false, p_error, null::timestamptz
    );
end
$$;

alter function llm.breaker_failure(text, uuid, text) owner to llm_owner;

comment on function llm.breaker_failure(text, uuid, text) is
'Tells that a call failed: after enough of them in a row the breaker opens, after a failed probe it opens again. Call it in a transaction of its own:
one that rolls back has told nothing. p_service, p_probe: as llm.breaker_success(); p_error: what went wrong, 1,000 characters of which are kept.
Returns the state. Errors: as llm.breaker_allow().';


-- security definer: as llm.set_breaker().
create function llm.reset_breaker(
    p_service text
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := coalesce(llm.current_tenant(), llm._writable_tenant());
    v_old    llm.breakers;
begin
    select * into v_old from llm.breakers b where b.tenant_id = v_tenant and b.service = p_service and b.state <> 'closed' for no key update;
    if not found then
        return false;
    end if;
    update llm.breakers b
    set state = 'closed',
        failures = 0,
        successes = 0,
        retry_at = null,
        probe = null,
        changed_at = clock_timestamp()
    where b.tenant_id = v_tenant
        and b.service = p_service;
    perform llm._log_breaker(p_service, v_old.state, 'closed'::text, v_old.failures, null::text);
    return true;
end
$$;

alter function llm.reset_breaker(text) owner to llm_owner;

comment on function llm.reset_breaker(text) is
'Closes a breaker by hand. p_service: as llm.breaker_allow(). Returns false when it was closed, or is not there. Errors: as llm.breaker_allow().';


select llm._grant_execute(
    array['llm_owner'],
    '_check_service', '_probe_breaker', '_settle_breaker', '_log_breaker'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'set_breaker', 'breaker_allow', 'breaker_success', 'breaker_failure', 'reset_breaker'
);
