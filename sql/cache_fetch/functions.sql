create type llm.cache_answer as (
    value        jsonb,
    bytes        bytea,
    is_stale     boolean,
    must_compute boolean,
    token        text,
    retry_after  double precision
);

comment on type llm.cache_answer is
'What llm.cache_fetch() found: value or bytes, is_stale when it has expired; or must_compute, and the token to set it with; or neither, because
somebody else computes it: ask again, in retry_after seconds at the latest.';


-- security definer: as llm.cache_get().
create function llm.cache_fetch(
    p_key       text,
    p_namespace text default 'default',
    p_stale_for double precision default 0,
    p_wait      double precision default 5,
    p_lease     double precision default 30
)
    returns llm.cache_answer
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant   text;
    v_entry    record;
    v_began    timestamptz := clock_timestamp();
    v_snapshot text;
    v_lease    uuid;
    v_pause    double precision := 0.002;
begin
    if pg_is_in_recovery() then
        return row(null, null, false, true, null, null)::llm.cache_answer;
    end if;
    v_tenant := llm._cache_tenant();
    if p_key is null then
        perform llm._refuse_cache_entry(v_tenant, p_key, null::double precision);
    end if;
    loop
        -- The snapshot before the look at the entry, and before all that the caller will read.
        v_snapshot := llm._cache_life() || '/' || llm._cache_snapshot();
        v_entry := llm._cache_look(v_tenant, p_namespace, p_key, p_stale_for);
        if v_entry.is_live then
            if v_entry.is_touch_due or random() < 0.015625 then
                perform llm._cache_hit(p_namespace, p_key, v_entry.is_touch_due);
            end if;
            return row(v_entry.value, v_entry.bytes, false, false, null, null)::llm.cache_answer;
        end if;

        if v_entry.lease_ends is null or v_entry.lease_ends <= clock_timestamp() then
            v_lease := llm._cache_claim(v_tenant, p_namespace, p_key, p_lease);
            if v_lease is not null then
                perform llm._cache_missed(p_namespace, 1::bigint);
                return row(null, null, false, true, concat_ws('/', v_snapshot, v_lease), null)::llm.cache_answer;
            end if;
        end if;

        if v_entry.is_stale then
            return row(v_entry.value, v_entry.bytes, true, false, null, null)::llm.cache_answer;
        end if;
        -- A transaction of one snapshot would never see the value come.
        if extract(epoch from clock_timestamp() - v_began) >= p_wait or current_setting('transaction_isolation') <> 'read committed' then
            perform llm._cache_missed(p_namespace, 1::bigint);
            return row(
                null, null, false, false, null, greatest(extract(epoch from v_entry.lease_ends - clock_timestamp()), 0.1)
            )::llm.cache_answer;
        end if;
        perform pg_sleep(v_pause);
        v_pause := least(v_pause * 1.5, 0.05, greatest(p_wait - extract(epoch from clock_timestamp() - v_began), 0.001));
    end loop;
end
$$;

alter function llm.cache_fetch(text, text, double precision, double precision, double precision) owner to llm_owner;

comment on function llm.cache_fetch(text, text, double precision, double precision, double precision) is
'The value of a key, or the task to compute it, which only one of many callers at once gets: he computes it and calls llm.cache_set() with the
token, or llm.cache_release(). The others get the old value when that expired less than p_stale_for seconds ago (never one that is outdated by
llm.cache_bump()), else wait for the new one for p_wait seconds at most. p_lease: for how many seconds the task is his alone; another gets it after
that. Call it outside of a transaction, or commit before computing. On a standby each caller computes, without a token. Errors:
null_value_not_allowed; object_not_in_prerequisite_state without a tenant.';


create function llm._cache_look(
    p_tenant    text,
    p_namespace text,
    p_key       text,
    p_stale_for double precision,
    out value        jsonb,
    out bytes        bytea,
    out is_live      boolean,
    out is_stale     boolean,
    out is_touch_due boolean,
    out lease_ends   timestamptz
)
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- What has a value but is not live has expired, or is outdated; live now means not before the end of a wait.
    select
        coalesce(e.value, e.plain_value),
        coalesce(e.bytes, e.plain_bytes),
        l.is_current and e.expires_at > clock_timestamp() and coalesce(e.used_at > clock_timestamp() - e.idle, true),
        l.is_current and e.expires_at > clock_timestamp() - make_interval(secs => p_stale_for),
        e.idle is not null and e.used_at < clock_timestamp() - e.idle / 10,
        e.leased_until
    into value, bytes, is_live, is_stale, is_touch_due, lease_ends
    from llm.cache_entries e
    cross join lateral (
        select
            num_nonnulls(e.value, e.bytes, e.plain_value, e.plain_bytes) = 1
            and (e.depends_on is null or llm._cache_is_current(e.tenant_id, e.depends_on, e.computed_in)) as is_current
    ) l
    where e.tenant_id = p_tenant
        and e.namespace = p_namespace
        and e.key = p_key;
end
$$;

comment on function llm._cache_look(text, text, text, double precision) is
'An entry as it is now: whether it is live, or was less than p_stale_for seconds ago, and until when somebody has the task to compute it.';


create function llm._cache_claim(
    p_tenant    text,
    p_namespace text,
    p_key       text,
    p_lease     double precision
)
    returns uuid
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_lease uuid := gen_random_uuid();
begin
    -- Who has the lock may be in the middle of a transaction: nobody waits for it to end.
    if not pg_try_advisory_xact_lock(hashtext('llm.cache_fetch'::text), hashtext(concat_ws(E'\x1f', p_tenant, p_namespace, p_key))) then
        return null;
    end if;
    insert into llm.cache_entries as e (tenant_id, namespace, key, expires_at, lease, leased_until)
    values (p_tenant, p_namespace, p_key, '-infinity', v_lease, clock_timestamp() + make_interval(secs => p_lease))
    on conflict (tenant_id, namespace, key) do update
    set lease = excluded.lease,
        leased_until = excluded.leased_until
    where coalesce(e.leased_until <= clock_timestamp(), true)
        and not llm._cache_is_live(e.tenant_id, e.expires_at, e.used_at, e.idle, e.depends_on, e.computed_in);
    return case when found then v_lease end;
end
$$;

comment on function llm._cache_claim(text, text, text, double precision) is
'Takes the task to compute a key, for p_lease seconds: the lease, or null when somebody else has it or the key has a value by now.';


create function llm._cache_release(
    p_tenant    text,
    p_namespace text,
    p_key       text,
    p_lease     uuid
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    update llm.cache_entries e
    set lease = null,
        leased_until = null
    where e.tenant_id = p_tenant
        and e.namespace = p_namespace
        and e.key = p_key
        and e.lease = p_lease;
    return found;
end
$$;

comment on function llm._cache_release(text, text, text, uuid) is
'Ends a lease.';


-- security definer: entries are written by functions only.
create function llm.cache_release(
    p_key       text,
    p_token     text,
    p_namespace text default 'default'
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_is_in_recovery() or p_token is null then
        return false;
    end if;
    perform llm._cache_computed_in(p_token);
    return llm._cache_release(llm._cache_tenant(), p_namespace, p_key, nullif(split_part(p_token, '/', 3), '')::uuid);
end
$$;

alter function llm.cache_release(text, text, text) owner to llm_owner;

comment on function llm.cache_release(text, text, text) is
'Gives a task of llm.cache_fetch() back: who asks next, or waits, gets it. p_key, p_namespace: as there; p_token: as it gave. Returns false when
somebody else had taken it. Errors: invalid_parameter_value for what is no token; object_not_in_prerequisite_state without a tenant.';


select llm._grant_execute(
    array['llm_owner'],
    '_cache_look', '_cache_claim', '_cache_release'
);
select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'cache_fetch', 'cache_release'
);
