create function llm._settle_groups(
    p_tenant text,
    p_queue  text,
    p_groups text[]
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- Before a place is drawn: llm._low_mark() relies on it.
    v_xid   xid8 := pg_current_xact_id();
    v_limit integer;
    v_all   integer;
    v_group text;
    v_free  bigint;
    v_next  bigint[];
begin
    select q.group_limit into v_all from llm.queues q where q.tenant_id = p_tenant and q.queue = p_queue;
    -- In order, so that two batches wait for each other instead of deadlocking.
    for v_group in select distinct g.name collate "C" from unnest(p_groups) g (name) where g.name is not null order by 1 loop
        insert into llm.job_groups as g (tenant_id, queue, group_key)
        values (p_tenant, p_queue, v_group)
        on conflict (tenant_id, queue, group_key) do update set turns = g.turns + 1
        returning g.max_running into v_limit;
        select coalesce(v_limit, v_all) - count(*)
        into v_free
        from llm.job_turns t
        where t.tenant_id = p_tenant
            and t.queue = p_queue
            and t.group_key = v_group
            and t.holds_slot;
        if v_free > 0 then
            v_next := array(
                select t.job_id
                from llm.job_turns t
                join llm.jobs j
                    on j.tenant_id = t.tenant_id
                    and j.id = t.job_id
                where t.tenant_id = p_tenant
                    and t.queue = p_queue
                    and t.group_key = v_group
                    and not t.holds_slot
                order by t.job_id
                limit v_free
                -- Who removes a job of the group looks for the next one after that.
                for update skip locked
            );
            update llm.job_turns t
            set holds_slot = true
            where t.tenant_id = p_tenant
                and t.queue = p_queue
                and t.group_key = v_group
                and t.job_id = any (v_next);
            update llm.jobs j
            set lane = j.priority,
                place = nextval('llm.jobs_id_seq'::regclass)
            where j.ctid = any (array(
                select r.ctid from llm.jobs r where r.tenant_id = p_tenant and r.id = any (v_next) order by r.id
            ));
        end if;
    end loop;
end
$$;

comment on function llm._settle_groups(text, text, text[]) is
'Lets jobs that wait for their group be ready, as many as may run. For whoever has added or removed jobs of these groups.';


-- security definer: as llm.enqueue().
create function llm.set_group_limit(
    p_queue       text,
    p_group       text,
    p_max_running integer
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._job_tenant();
    v_open   boolean := llm._open_queue(v_tenant, p_queue, 0);
begin
    if p_group is null or octet_length(p_group) not between 1 and 200 or p_max_running not between 1 and 100000 then
        raise exception 'of group % cannot run % jobs at a time', coalesce(quote_literal(left(p_group, 50)), 'null'), p_max_running
            using errcode = 'invalid_parameter_value',
                  hint = 'A group has 1 to 200 bytes, its limit is 1 to 100,000; null for the queue''s own.';
    end if;
    insert into llm.job_groups as g (tenant_id, queue, group_key, max_running)
    values (v_tenant, p_queue, p_group, p_max_running)
    on conflict (tenant_id, queue, group_key) do update
        set max_running = excluded.max_running,
            turns = g.turns + 1;
    perform llm._settle_groups(v_tenant, p_queue, array[p_group]);
end
$$;

alter function llm.set_group_limit(text, text, integer) owner to llm_owner;

comment on function llm.set_group_limit(text, text, integer) is
'Says how many jobs of a group run at a time, other than the queue says. p_group: as llm.enqueue() is told; p_max_running: 1 to 100,000, null for the
queue''s own. What runs already is not stopped. Errors: invalid_parameter_value; object_not_in_prerequisite_state when no tenant is set.';


create function llm._let_go(
    p_tenant text,
    p_queue  text,
    p_ids    bigint[],
    p_groups text[],
    p_keys   text[]
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_now timestamptz := clock_timestamp();
begin
    if p_keys is not null then
        perform from llm.job_keys k
        where k.tenant_id = p_tenant
            and k.queue = p_queue
            and k.dedup_key = any (p_keys)
            and k.job_id = any (p_ids)
        order by k.dedup_key
        for update;
        delete from llm.job_keys k
        where k.tenant_id = p_tenant
            and k.queue = p_queue
            and k.dedup_key = any (p_keys)
            and k.job_id = any (p_ids)
            and coalesce(k.held_until, v_now) <= v_now;
        update llm.job_keys k
        set free_at = k.held_until
        where k.tenant_id = p_tenant
            and k.queue = p_queue
            and k.dedup_key = any (p_keys)
            and k.job_id = any (p_ids);
    end if;
    if p_groups is not null then
        delete from llm.job_turns t
        where t.tenant_id = p_tenant
            and t.queue = p_queue
            and t.group_key = any (p_groups)
            and t.job_id = any (p_ids);
        perform llm._settle_groups(p_tenant, p_queue, p_groups);
    end if;
end
$$;

comment on function llm._let_go(text, text, bigint[], text[], text[]) is
'Frees what jobs of a queue held that are done, dead or gone: their keys, and their places in their groups.';


create function llm._tend_groups()
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_stalled record;
begin
    delete from llm.job_keys k
    where k.free_at <= clock_timestamp()
        or k.free_at = 'infinity' and not exists (select from llm.jobs j where j.tenant_id = k.tenant_id and j.id = k.job_id);
    for v_stalled in
        select t.tenant_id, t.queue, array_agg(t.job_id) as ids, array_agg(distinct t.group_key) as groups
        from llm.job_turns t
        where not exists (select from llm.jobs j where j.tenant_id = t.tenant_id and j.id = t.job_id)
        group by t.tenant_id, t.queue
        order by t.tenant_id, t.queue
    loop
        perform llm._let_go(v_stalled.tenant_id, v_stalled.queue, v_stalled.ids, v_stalled.groups, null::text[]);
    end loop;
    delete from llm.job_groups g
    where (g.tenant_id, g.queue, g.group_key) in (
        select d.tenant_id, d.queue, d.group_key
        from llm.job_groups d
        where d.max_running is null
            and not exists (
                select from llm.job_turns t where t.tenant_id = d.tenant_id and t.queue = d.queue and t.group_key = d.group_key
            )
        for update skip locked
    );
end
$$;

comment on function llm._tend_groups() is
'Frees what jobs held that are gone without a word, as when their user was forgotten, and forgets groups without jobs, and keys that are free.';


select llm._grant_execute(
    array['llm_owner'],
    '_settle_groups', '_let_go', '_tend_groups'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'set_group_limit'
);
