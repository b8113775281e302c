create function llm._check_rate_limit(
    p_resource   text,
    p_identifier text,
    p_limit      bigint,
    p_window     interval,
    p_cost       bigint,
    p_algorithm  text
)
    returns void
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_resource is null or octet_length(p_resource) not between 1 and 200
        or p_identifier is null or octet_length(p_identifier) not between 1 and 1000
    then
        raise exception 'resource and identifier of a limit have % and % bytes', coalesce(octet_length(p_resource)::text, 'no'),
            coalesce(octet_length(p_identifier)::text, 'no')
            using errcode = 'invalid_parameter_value',
                  hint = 'A resource has 1 to 200 bytes, an identifier 1 to 1,000: without one, all would share a limit.';
    end if;
    if strpos(p_resource, E'\x1f') > 0 then
        raise exception 'a resource has the character U+001F in its name'
            using errcode = 'invalid_parameter_value',
                  hint = 'It stands between a resource and an identifier. Leave it out.';
    end if;
    if p_limit is null or p_limit not between 0 and 1000000000000 or p_cost is null or p_cost not between 0 and 1000000000000 then
        raise exception 'a limit of % cannot be asked for %', coalesce(p_limit::text, 'null'), coalesce(p_cost::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Limit and cost are 0 to 1,000,000,000,000. A cost of 0 only asks.';
    end if;
    if p_window is null or p_window not between interval '1 millisecond' and interval '366 days' then
        raise exception 'a limit cannot be for %', coalesce(p_window::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'A window is a millisecond to a year.';
    end if;
    if p_algorithm is null or p_algorithm not in ('sliding_window', 'sliding_log', 'token_bucket') then
        raise exception 'a limit cannot be kept by %', coalesce(quote_literal(left(p_algorithm, 100)), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Algorithms are sliding_window, sliding_log and token_bucket.';
    end if;
    if p_algorithm = 'sliding_log' and p_limit > 10000 then
        raise exception 'a log cannot keep a limit of %', p_limit
            using errcode = 'program_limit_exceeded',
                  hint = 'It keeps each call, of at most 10,000. Use sliding_window, which keeps sums, or token_bucket.';
    end if;
end
$$;

comment on function llm._check_rate_limit(text, text, bigint, interval, bigint, text) is
'Refuses arguments of llm.rate_limit(). Errors: invalid_parameter_value, program_limit_exceeded.';


-- security definer: nobody else writes llm.rate_limits, so that nobody who is limited gives himself more; the tenant is the current one.
create function llm.rate_limit(
    p_resource      text,
    p_identifier    text,
    p_limit         bigint,
    p_window        interval,
    p_cost          bigint default 1,
    p_algorithm     text default null,
    p_transactional boolean default true
)
    returns llm.rate_limit_answer
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := coalesce(llm.current_tenant(), llm._writable_tenant());
begin
    p_algorithm := coalesce(p_algorithm, case when p_transactional then 'sliding_window' else 'token_bucket' end);
    if not coalesce(
        octet_length(p_resource) between 1 and 200 and octet_length(p_identifier) between 1 and 1000 and strpos(p_resource, E'\x1f') = 0
        and p_limit between 0 and 1000000000000 and p_cost between 0 and 1000000000000
        and p_window between interval '1 millisecond' and interval '366 days'
        and (p_algorithm in ('sliding_window', 'token_bucket') or p_algorithm = 'sliding_log' and p_limit <= 10000),
        false
    ) then
        perform llm._check_rate_limit(p_resource, p_identifier, p_limit, p_window, p_cost, p_algorithm);
    end if;
    if p_transactional then
        if pg_is_in_recovery() then
            raise exception 'a standby counts nothing in tables'
                using errcode = 'read_only_sql_transaction',
                      hint = 'p_transactional => false counts in its shared memory, for itself.';
        end if;
        if p_algorithm = 'token_bucket' then
            return llm._take_tokens(
                v_tenant, llm._limited_subject(v_tenant, p_resource, p_identifier), p_limit::double precision, p_window,
                greatest(p_cost, 1)::double precision, p_cost > 0, null::timestamptz
            );
        end if;
        return llm._take_slots(
            v_tenant, llm._limited_subject(v_tenant, p_resource, p_identifier), p_algorithm, p_limit::double precision, p_window,
            greatest(p_cost, 1)::double precision, p_cost > 0, null::timestamptz
        );
    end if;
    if p_algorithm <> 'token_bucket' then
        raise exception 'a % is not kept outside of transactions', p_algorithm
            using errcode = 'invalid_parameter_value',
                  hint = 'A token_bucket is; or call it in a transaction of its own, before the work begins.';
    end if;
    return llm._take_in_memory(v_tenant, p_resource, p_identifier, p_limit, date_part('epoch', p_window), p_cost);
end
$$;

alter function llm.rate_limit(text, text, bigint, interval, bigint, text, boolean) owner to llm_owner;

comment on function llm.rate_limit(text, text, bigint, interval, bigint, text, boolean) is
'Whether to go on, and if so counts it. p_resource: what is limited; p_identifier: for whom, any text, of which only a hash is kept; p_limit: how much
in p_window; p_cost: how much this is, 0 to ask whether 1 would be allowed, without counting; p_algorithm: sliding_window (never more than p_limit in
any p_window, and all of it again at most a tenth later than need be), sliding_log (no later; p_limit is at most 10,000), token_bucket (p_limit at
once, then as they come back evenly over p_window); null: sliding_window; p_transactional: true counts in this transaction, and has others that ask
for the same wait until it ends; false counts at once and for good, in this server''s shared memory, by token_bucket. Limits of other windows or
algorithms are other limits. Errors: invalid_parameter_value, program_limit_exceeded; object_not_in_prerequisite_state without a tenant;
serialization_failure in REPEATABLE READ; read_only_sql_transaction on a standby, unless p_transactional is false.';


create function llm._limits(
    p_tenant text,
    p_limits jsonb
)
    returns table (
        "number" bigint, subject bytea, resource text, identifier text, "limit" bigint, "window" interval, cost bigint, algorithm text
    )
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(p_limits) is distinct from 'array' or p_limits = '[]' or p_limits @? 'strict $[*] ? (@.type() != "object")' then
        raise exception 'these are not limits: %', left(coalesce(p_limits::text, 'null'), 40)
            using errcode = 'invalid_parameter_value',
                  hint = 'Give an array of objects with resource, identifier, limit and window, and maybe cost and algorithm.';
    end if;
    return query
        select
            e.number, llm._limited_subject(p_tenant, l.resource, l.identifier), l.resource, l.identifier, l."limit", l."window",
            case when e.given ? 'cost' then l.cost else 1 end, coalesce(l.algorithm, 'sliding_window')
        from jsonb_array_elements(p_limits) with ordinality e (given, number)
        cross join lateral jsonb_to_record(e.given) l (
            resource text, identifier text, "limit" bigint, "window" interval, cost bigint, algorithm text
        )
        -- Whoever asks for several takes their locks in one order.
        order by 2, 8, 6;
end
$$;

comment on function llm._limits(text, jsonb) is
'What llm.rate_limit_all() is given, in the order of the keys of llm.rate_limits. Errors: invalid_parameter_value.';


-- security definer: as llm.rate_limit().
create function llm.rate_limit_all(
    p_limits jsonb
)
    returns table (
        resource text, identifier text, allowed boolean, remaining bigint, retry_after interval, reset_after interval
    )
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := coalesce(llm.current_tenant(), llm._writable_tenant());
    v_step    text;
    v_now     timestamptz;
    v_limit   record;
    v_keys    text[];
    v_answers llm.rate_limit_answer[];
    v_all     boolean;
begin
    -- Who is denied locks nothing; who is not, locks all before it counts any.
    foreach v_step in array array['ask', 'lock', 'ask again', 'take'] loop
        if v_step = 'ask again' then
            v_now := clock_timestamp();
        end if;
        v_keys := '{}';
        v_all := true;
        for v_limit in select * from llm._limits(v_tenant, p_limits) l loop
            if v_step = 'ask' then
                perform llm._check_rate_limit(
                    v_limit.resource, v_limit.identifier, v_limit."limit", v_limit."window", v_limit.cost, v_limit.algorithm
                );
                if format('%s %s %s', v_limit.subject, v_limit.algorithm, date_part('epoch', v_limit."window")) = any (v_keys) then
                    raise exception 'the limit of % for % in % is there twice', v_limit.resource, v_limit.identifier, v_limit."window"
                        using errcode = 'invalid_parameter_value',
                              hint = 'Name each limit once, with what it all costs.';
                end if;
                v_keys := v_keys || format('%s %s %s', v_limit.subject, v_limit.algorithm, date_part('epoch', v_limit."window"));
            elsif v_step = 'lock' then
                insert into llm.rate_limits (tenant_id, subject, algorithm, per, used, used_at)
                values (v_tenant, v_limit.subject, v_limit.algorithm, v_limit."window", 0, clock_timestamp())
                on conflict do nothing;
                perform
                from llm.rate_limits r
                where r.tenant_id = v_tenant
                    and r.subject = v_limit.subject
                    and r.algorithm = v_limit.algorithm
                    and r.per = v_limit."window"
                for no key update;
                continue;
            end if;
            v_answers[v_limit."number"] := llm._take(
                v_tenant, v_limit.subject, v_limit.algorithm, v_limit."limit"::double precision, v_limit."window",
                greatest(v_limit.cost, 1)::double precision, v_step = 'take' and v_limit.cost > 0, v_now
            );
            v_all := v_all and (v_answers[v_limit."number"]).allowed;
        end loop;
        exit when not v_all;
    end loop;
    return query
        select l.resource, l.identifier, a.allowed, a.remaining, a.retry_after, a.reset_after
        from llm._limits(v_tenant, p_limits) l
        join unnest(v_answers) with ordinality a (allowed, remaining, retry_after, reset_after, "number") using ("number")
        order by l."number";
end
$$;

alter function llm.rate_limit_all(jsonb) owner to llm_owner;

comment on function llm.rate_limit_all(jsonb) is
'Whether to go on, by several limits: counts for all of them, or for none when one of them does not allow it. p_limits: an array of objects with the
names of llm.rate_limit()''s arguments without p_, all kept in this transaction. Returns the answer of each, in their order: go on if all are allowed.
Locks are taken in the order of keys, so that two such calls do not deadlock. Errors: as llm.rate_limit().';


-- security definer: as llm.rate_limit().
create function llm.reset_rate_limit(
    p_resource   text,
    p_identifier text
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := coalesce(llm.current_tenant(), llm._writable_tenant());
    v_subject bytea := llm._limited_subject(v_tenant, p_resource, p_identifier);
    v_count   bigint;
begin
    delete from llm.rate_limits r where r.tenant_id = v_tenant and r.subject = v_subject;
    get diagnostics v_count = row_count;
    return v_count + coalesce(llm._fill_in_memory(v_subject), 0);
end
$$;

alter function llm.reset_rate_limit(text, text) owner to llm_owner;

comment on function llm.reset_rate_limit(text, text) is
'Lets all limits of a resource for somebody begin anew, whatever their windows and algorithms; those in shared memory at once.
p_resource, p_identifier: as for llm.rate_limit(). Returns how many there were. Errors: object_not_in_prerequisite_state without a tenant.';


select llm._grant_execute(
    array['llm_owner'],
    '_check_rate_limit', '_limits'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'rate_limit', 'rate_limit_all', 'reset_rate_limit'
);
