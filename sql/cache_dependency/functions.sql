-- Dependencies

create function llm._cache_words(
    p_names text[]
)
    returns integer[]
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return array(
        select distinct get_byte(h.digest, 0) << 8 | get_byte(h.digest, 1)
        from unnest(p_names) n (name)
        cross join lateral sha256(convert_to(n.name, 'UTF8'::name)) h (digest)
        where n.name is not null
        order by 1
    );
end
$$;

comment on function llm._cache_words(text[]) is
'The words of llm.cache_bumps that names of things hash to, in order.';


create function llm._cache_is_current(
    p_tenant      text,
    p_depends_on  integer[],
    p_computed_in pg_snapshot
)
    returns boolean
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- A snapshot ahead of this one is another server's: its transactions are not ours.
    return pg_snapshot_xmax(p_computed_in) <= pg_snapshot_xmax(pg_current_snapshot())
        and not exists (
            select
            from llm.cache_bumps b
            where b.tenant_id = p_tenant
                and b.word = any (p_depends_on)
                and not pg_visible_in_snapshot(b.bumped_in, p_computed_in)
        );
end
$$;

comment on function llm._cache_is_current(text, integer[], pg_snapshot) is
'Whether nothing of p_depends_on has changed, as far as the calling query sees, after the snapshot p_computed_in.';


-- Not pinned: inlined into the caller's query, fully qualified.
create function llm._cache_is_live(
    p_tenant      text,
    p_expires_at  timestamptz,
    p_used_at     timestamptz,
    p_idle        interval,
    p_depends_on  integer[],
    p_computed_in pg_snapshot
)
    returns boolean
    language sql
    stable
as $$
    select p_expires_at operator(pg_catalog.>) pg_catalog.statement_timestamp()
        and (p_idle is null or p_used_at operator(pg_catalog.>) (pg_catalog.statement_timestamp() operator(pg_catalog.-) p_idle))
        and (p_depends_on is null or llm._cache_is_current(p_tenant, p_depends_on, p_computed_in))
$$;

comment on function llm._cache_is_live(text, timestamptz, timestamptz, interval, integer[], pg_snapshot) is
'Whether an entry of the cache may be read: it is not expired, not idle for too long, not outdated.';


-- security definer: words are written by this function only; a caller who wrote ids of its own could make an old answer valid.
create function llm.cache_bump(
    variadic p_names text[]
)
    returns integer
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._cache_tenant();
    v_words  integer[] := llm._cache_words(p_names);
begin
    insert into llm.cache_bumps as b (tenant_id, word, bumped_in)
    select v_tenant, w.word, pg_current_xact_id()
    from unnest(v_words) w (word)
    order by w.word
    on conflict (tenant_id, word) do update
    set bumped_in = excluded.bumped_in
    where b.bumped_in <> excluded.bumped_in;
    return cardinality(v_words);
end
$$;

alter function llm.cache_bump(text[]) owner to llm_owner;

comment on function llm.cache_bump(text[]) is
'Says that things have changed from which entries of the cache were computed: call it in the transaction that changes them. Once that has committed
nobody reads an entry that depends on one of them and was computed before, nor can one still be put in. p_names: as in p_depends_on of
llm.cache_set(), such as ''model:7''. Transactions that bump the same name wait for each other. Returns how many words these names have. Errors:
object_not_in_prerequisite_state without a tenant.';


-- security definer: the rows are of all tenants, and nobody is to change them.
create function llm._cache_life()
    returns uuid
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_life uuid;
begin
    select l.life into v_life from llm.cache_life l order by l.life limit 1;
    if not found and current_setting('transaction_read_only') = 'off' then
        -- Several transactions may do so at once: none waits for another.
        insert into llm.cache_life default values returning life into v_life;
    end if;
    return v_life;
end
$$;

alter function llm._cache_life() owner to llm_owner;

comment on function llm._cache_life() is
'A name of the time since the last crash; null where a transaction that only reads would have to give it one.';


create function llm.cache_token()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_is_in_recovery() then
        return null;
    end if;
    -- Stable, so that the snapshot is that of the calling statement, which may read the sources, too.
    return llm._cache_life() || '/' || llm._cache_snapshot();
end
$$;

comment on function llm.cache_token() is
'What tells llm.cache_set() when a value was computed: take it before reading what the value is computed from, in the same transaction or an earlier
one. Null where nothing can be cached: on a standby. Valid until the server''s next crash, in any session.';


create function llm._cache_snapshot()
    returns pg_snapshot
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_snapshot pg_snapshot := pg_current_snapshot();
    v_own      xid8 := pg_current_xact_id_if_assigned();
begin
    -- What this transaction itself may still change counts as not seen.
    if v_own < pg_snapshot_xmax(v_snapshot) and pg_visible_in_snapshot(v_own, v_snapshot) then
        return (
            select format('%s:%s:%s', min(x.id), pg_snapshot_xmax(v_snapshot), string_agg(x.id::text, ',' order by x.id))
            from (select v_own union all select s.id from pg_snapshot_xip(v_snapshot) s (id)) x (id)
        )::pg_snapshot;
    end if;
    return v_snapshot;
end
$$;

comment on function llm._cache_snapshot() is
'The present snapshot, in which the own transaction counts as running.';


create function llm._cache_computed_in(
    p_token text
)
    returns pg_snapshot
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_life     uuid;
    v_snapshot pg_snapshot;
    v_lease    uuid;
begin
    if p_token is null then
        if current_setting('transaction_isolation') = 'read committed' then
            raise exception 'it is not known when the value was computed'
                using errcode = 'object_not_in_prerequisite_state',
                      detail = 'With p_depends_on this decides whether the value is outdated already.',
                      hint = 'Give p_token of llm.cache_token() or llm.cache_fetch(), taken before, or compute in a REPEATABLE READ transaction.';
        end if;
        return llm._cache_snapshot();
    end if;
    v_life := split_part(p_token, '/', 1)::uuid;
    v_snapshot := split_part(p_token, '/', 2)::pg_snapshot;
    v_lease := nullif(split_part(p_token, '/', 3), '')::uuid;
    return (select v_snapshot from llm.cache_life l where l.life = v_life);
exception
    when invalid_text_representation then
        raise exception '% is not a token of the cache', quote_literal(left(p_token, 100))
            using errcode = 'invalid_parameter_value',
                  hint = 'Tokens are from llm.cache_token() or llm.cache_fetch().';
end
$$;

comment on function llm._cache_computed_in(text) is
'The snapshot of a token, null when a crash has made it void; without a token, that of the transaction. Errors: invalid_parameter_value,
object_not_in_prerequisite_state when there is no token in READ COMMITTED.';


create function llm._cache_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._owners_tenant();
begin
    if v_tenant is null then
        raise exception 'no tenant is set, and the cache is a tenant''s'
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Run: select llm.set_tenant(''…''); as the first statement of the transaction, or llm.bind_role() for the role.';
    end if;
    return v_tenant;
end
$$;

comment on function llm._cache_tenant() is
'The caller''s tenant, for security definer functions that write. Errors: object_not_in_prerequisite_state when none is set.';


-- Tags and patterns

-- security definer: entries are written by functions only.
create function llm.cache_invalidate_tag(
    p_tag       text,
    p_namespace text default null
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
    v_count  bigint;
begin
    if pg_is_in_recovery() then
        return 0;
    end if;
    v_tenant := llm._cache_tenant();
    delete from llm.cache_entries e
    where (e.tenant_id, e.namespace, e.key) in (
        select d.tenant_id, d.namespace, d.key
        from llm.cache_entries d
        where d.tenant_id = v_tenant
            and d.tags @> array[p_tag]
            and d.tags is not null
            and (p_namespace is null or d.namespace = p_namespace)
        order by d.namespace, d.key
        for update
    );
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

alter function llm.cache_invalidate_tag(text, text) owner to llm_owner;

comment on function llm.cache_invalidate_tag(text, text) is
'Deletes the entries with a tag. p_tag: as in p_tags of llm.cache_set(); p_namespace: null for all of the tenant''s. Returns how many. Who computes a
value meanwhile, under a lease of llm.cache_fetch(), cannot put it in; what was computed without one can come back: only dependencies rule that out.
Errors: object_not_in_prerequisite_state without a tenant.';


create function llm._glob_to_like(
    p_pattern text
)
    returns text
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(
        (
            select string_agg(
                case
                    when m.part[1] = '*' then '%'
                    when m.part[1] = '?' then '_'
                    when m.part[1] in ('%', '_', E'\\') then E'\\' || m.part[1]
                    when starts_with(m.part[1], E'\\') and right(m.part[1], 1) not in ('%', '_', E'\\') then right(m.part[1], 1)
                    else m.part[1]
                end,
                '' order by m.position
            )
            from regexp_matches(p_pattern, E'\\\\.|.', 'g') with ordinality m (part, position)
        ),
        ''
    );
end
$$;

comment on function llm._glob_to_like(text) is
'The LIKE pattern of a glob: * any text, ? any character, \ before either itself.';


-- security definer: entries are written by functions only.
create function llm.cache_invalidate(
    p_pattern   text,
    p_namespace text default 'default'
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_like   text := llm._glob_to_like(p_pattern);
    v_prefix text := split_part(split_part(split_part(p_pattern, '*', 1), '?', 1), E'\\', 1);
    v_tenant text;
    v_count  bigint;
begin
    if pg_is_in_recovery() then
        return 0;
    end if;
    v_tenant := llm._cache_tenant();
    delete from llm.cache_entries e
    where (e.tenant_id, e.namespace, e.key) in (
        select d.tenant_id, d.namespace, d.key
        from llm.cache_entries d
        where d.tenant_id = v_tenant
            and d.namespace = p_namespace
            and d.key between v_prefix and llm._end_of_prefix(v_prefix)
            and d.key like v_like
        order by d.namespace, d.key
        for update
    );
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

alter function llm.cache_invalidate(text, text) owner to llm_owner;

comment on function llm.cache_invalidate(text, text) is
'Deletes the entries whose key is like a pattern. p_pattern: * stands for any text, ? for any character, \ before either for itself, such as
conversation:*; p_namespace: where. What precedes the first * is looked up by index. Returns how many. See llm.cache_invalidate_tag() for what is
being computed meanwhile. Errors: object_not_in_prerequisite_state without a tenant.';


create function llm._end_of_prefix(
    p_prefix text
)
    returns text
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- Longer than any key of 1,000 bytes, and of the last character that there is.
    return p_prefix || repeat(chr(1114111), 250);
end
$$;

comment on function llm._end_of_prefix(text) is
'What no key with a prefix sorts after, in collation C.';


select llm._grant_execute(
    array['llm_owner'],
    '_cache_words', '_cache_is_current', '_cache_is_live', '_cache_tenant', '_glob_to_like', '_end_of_prefix', '_cache_computed_in'
);
select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    'cache_token', '_cache_snapshot', '_cache_life'
);
select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'cache_bump', 'cache_invalidate', 'cache_invalidate_tag'
);
