create type llm.stream_window as (
    era                  bigint,
    transaction_id       xid8,
    number               bigint,
    since                timestamptz,
    before_era           bigint,
    before_transaction   xid8,
    settled_transaction  xid8,
    user_id              uuid
);

comment on type llm.stream_window is
'Which entries are to be read: those after a position, not older than since, before an era and transaction, and of transactions older than
settled_transaction in any era; of those that concern anybody only those of user_id, if that is not null.';


create function llm._stream_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
begin
    -- As llm._conversation_tenant().
    if to_regclass('llm.schema_migrations') is null then
        perform llm._require_storage();
    elsif current_user = 'llm_owner' then
        select r.tenant_id into v_tenant
        from llm.schema_migrations s left join llm.tenant_roles r on r.role_name = session_user
        where s.name = 'pg_llm' and s.checksum = llm._storage_checksum();
    else
        select r.tenant_id into v_tenant
        from llm.schema_migrations s left join llm.tenant_roles r on r.role_name = session_user
        where s.name = 'pg_llm' and s.checksum = llm._storage_checksum();
    end if;
    if not found then
        perform llm._require_storage();
    end if;

    v_tenant := coalesce(v_tenant, llm.current_tenant());
    if v_tenant is null then
        raise exception 'streams are a tenant''s, and no tenant is set'
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Run: select llm.set_tenant(''…''); as the first statement of the transaction, or llm.bind_role() for the role.';
    end if;
    return v_tenant;
end
$$;

comment on function llm._stream_tenant() is
'The tenant whose streams this transaction reads and writes. Errors: object_not_in_prerequisite_state when none is set.';


create function llm._stream_tenant_of_all()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if llm.current_user_id() is not null then
        raise exception 'this transaction works for user %, and sees only the entries that concern him or nobody', llm.current_user_id()
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Consumers of a group, and who trims a stream, work for all: select llm.set_user(null).';
    end if;
    return llm._stream_tenant();
end
$$;

comment on function llm._stream_tenant_of_all() is
'llm._stream_tenant() for what must see all entries. Errors: object_not_in_prerequisite_state when a user or no tenant is set.';


-- Positions

create function llm._refuse_position(
    p_position text
)
    returns void
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception '% is not a position of a stream', coalesce(quote_literal(left(p_position, 50)), 'null')
        using errcode = 'invalid_parameter_value',
              hint = 'Give the position of an entry as it was read, such as 1-5023-17, or null for the beginning.';
end
$$;

comment on function llm._refuse_position(text) is
'Raises invalid_parameter_value: this is no position.';


create function llm._default_max_age(
    p_stream text
)
    returns interval
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return case when starts_with(p_stream, 'metrics:') then interval '24 hours' end;
end
$$;

comment on function llm._default_max_age(text) is
'How long entries of a stream are kept that nobody said it for: metrics for 24 hours, others as long as their partition.';


create function llm._stream_window(
    p_tenant text,
    p_stream text,
    p_after  text
)
    returns llm.stream_window
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    -- Planned once: otherwise for each call.
    set plan_cache_mode = force_generic_plan
as $$
declare
    v_era         bigint := 0;
    v_transaction xid8 := '0';
    v_number      bigint := 0;
    v_kept        record;
    v_horizon     xid8 := pg_snapshot_xmin(pg_current_snapshot());
begin
    if p_after ~ '^\d{1,18}-\d{1,18}-\d{1,18}$' then
        v_era := split_part(p_after, '-', 1)::bigint;
        v_transaction := split_part(p_after, '-', 2)::xid8;
        v_number := split_part(p_after, '-', 3)::bigint;
    elsif p_after is not null then
        perform llm._refuse_position(p_after);
    end if;

    select e.era as present_era, e.began < v_horizon as is_settled, s.era, s.transaction_id, s.number,
        case when s.stream is null then llm._default_max_age(p_stream) else s.max_age end as max_age
    into v_kept
    from llm.stream_era e
    left join llm.streams s on s.tenant_id = p_tenant and s.stream = p_stream;
    if (v_kept.era, v_kept.transaction_id, v_kept.number) > (v_era, v_transaction, v_number) then
        v_era := v_kept.era;
        v_transaction := v_kept.transaction_id;
        v_number := v_kept.number;
    end if;

    -- Ids of earlier eras mean nothing here. Only while transactions are at work that saw the last era as the present one, they count.
    return row(
        v_era, v_transaction, v_number, coalesce(now() - v_kept.max_age, '-infinity'), v_kept.present_era,
        case when v_kept.is_settled then v_horizon else '0' end,
        case when v_kept.is_settled then '18446744073709551615' else v_horizon end,
        llm.current_user_id()
    )::llm.stream_window;
end
$$;

comment on function llm._stream_window(text, text, text) is
'Which entries of a stream are to be read after a position, null for the beginning: those that are kept, and that no transaction at work can add to.
Errors: invalid_parameter_value.';


-- Appending

create function llm._refuse_entry(
    p_stream  text,
    p_name    text,
    p_payload text
)
    returns void
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_stream is null or octet_length(p_stream) not between 1 and 200 or octet_length(p_name) not between 1 and 200 then
        raise exception 'stream and name of an entry have % and % bytes', coalesce(octet_length(p_stream)::text, 'no'),
            coalesce(octet_length(p_name)::text, 'no')
            using errcode = 'invalid_parameter_value',
                  hint = 'The stream has 1 to 200 bytes; the name too, if there is one.';
    end if;
    if p_payload is null then
        raise exception 'an entry of stream % has no payload', p_stream
            using errcode = 'null_value_not_allowed',
                  hint = 'Give JSON text; that of nothing is ''null''.';
    end if;
end
$$;

comment on function llm._refuse_entry(text, text, text) is
'Raises when an entry cannot be one. Errors: invalid_parameter_value, null_value_not_allowed.';


create function llm._refuse_user(
    p_user_id uuid
)
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'this transaction works for another user than %', p_user_id
        using errcode = 'insufficient_privilege',
              hint = 'What concerns him is written for him, or for nobody: select llm.set_user(null).';
end
$$;

comment on function llm._refuse_user(uuid) is
'Raises insufficient_privilege: this is not the user that llm.set_user() told of.';


create function llm._checked_writer(
    p_tenant  text,
    p_stream  text,
    p_name    text,
    p_user_id uuid,
    p_payload text
)
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_user_id <> llm.current_user_id() then
        perform llm._refuse_user(p_user_id);
    end if;
    perform llm._refuse_entry(p_stream, p_name, p_payload);
    return coalesce(p_tenant, llm._stream_tenant());
end
$$;

comment on function llm._checked_writer(text, text, text, uuid, text) is
'The tenant for whom an entry may be written, after all that can be wrong with it was looked at. Errors: as llm.stream_append().';


-- security definer: streams are written by functions alone, so that nobody chooses a position.
create function llm.stream_append(
    p_stream  text,
    p_payload text,
    p_name    text default null,
    p_user_id uuid default null
)
    returns text
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    -- Planned once: otherwise for each call.
    set plan_cache_mode = force_generic_plan
as $$
declare
    v_tenant   text;
    v_era      bigint;
    v_position text;
begin
    -- What llm._stream_tenant() asks, in one statement; every expression more is felt beside a bare insert.
    select coalesce(r.tenant_id, llm.current_tenant()), n.era
    into v_tenant, v_era
    from llm.schema_migrations s
    cross join llm.stream_era n
    left join llm.tenant_roles r on r.role_name = session_user
    where s.name = 'pg_llm'
        and s.checksum = llm._storage_checksum();
    if (v_tenant is not null and octet_length(p_stream) between 1 and 200 and p_payload is not null and p_name is null and p_user_id is null)
        is not true
    then
        v_tenant := llm._checked_writer(v_tenant, p_stream, p_name, p_user_id, p_payload);
    end if;
    insert into llm.stream_entries as e (tenant_id, stream, era, user_id, name, payload)
    values (v_tenant, p_stream, v_era, p_user_id, p_name,
            case when strpos(p_payload, '\u') = 0 and strpos(p_payload, '␛') = 0 then p_payload::jsonb else llm._clean_json(p_payload) end)
    returning concat_ws('-', e.era, e.transaction_id, e.number)
    into v_position;
    return v_position;
end
$$;

alter function llm.stream_append(text, text, text, uuid) owner to llm_owner;

comment on function llm.stream_append(text, text, text, uuid) is
'Appends an entry to a stream, which begins with its first, and returns its position. p_stream: 1 to 200 bytes; p_payload: JSON text, cleaned as by
llm.clean_jsonb(); p_name: what kind of event it is; p_user_id: whom it concerns. It can be read when this and every older transaction has ended.
Errors: invalid_parameter_value, null_value_not_allowed; invalid_text_representation when it is not JSON; insufficient_privilege for another user than
llm.set_user() told of; object_not_in_prerequisite_state.';


-- security definer: as llm.stream_append().
create function llm.stream_append_all(
    p_stream   text,
    p_payloads text[],
    p_names    text[] default null,
    p_user_ids uuid[] default null
)
    returns text[]
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant    text := llm._stream_tenant();
    v_all       text := array_to_string(p_payloads, '');
    v_is_clean  boolean := strpos(v_all, '\u') = 0 and strpos(v_all, '␛') = 0;
    v_positions text[];
begin
    if array_position(p_payloads, null) is not null or cardinality(p_names) <> cardinality(p_payloads)
        or cardinality(p_user_ids) <> cardinality(p_payloads)
    then
        raise exception 'there are % payloads, % names and % users', cardinality(array_remove(p_payloads, null)), cardinality(p_names),
            cardinality(p_user_ids)
            using errcode = 'invalid_parameter_value',
                  hint = 'Each payload is JSON text; give as many names and users, or none.';
    end if;
    perform llm._refuse_entry(p_stream, n.name, ''::text) from unnest(coalesce(p_names, '{null}')) n (name);
    perform llm._refuse_user(u) from unnest(p_user_ids) u where u <> llm.current_user_id();

    with appended as (
        insert into llm.stream_entries as e (tenant_id, stream, era, user_id, name, payload)
        select v_tenant, p_stream, s.era, n.user_id, n.name, case when v_is_clean then n.payload::jsonb else llm._clean_json(n.payload) end
        from unnest(p_payloads, p_names, p_user_ids) with ordinality n (payload, name, user_id, ordinal)
        cross join llm.stream_era s
        order by n.ordinal
        returning e.era, e.transaction_id, e.number
    )
    select array_agg(concat_ws('-', a.era, a.transaction_id, a.number) order by a.number) into v_positions from appended a;
    return coalesce(v_positions, '{}');
end
$$;

alter function llm.stream_append_all(text, text[], text[], uuid[]) owner to llm_owner;

comment on function llm.stream_append_all(text, text[], text[], uuid[]) is
'llm.stream_append() for many entries at once, all or none; returns their positions. p_stream; p_payloads: JSON texts; p_names, p_user_ids: as many,
or null. Errors: as there.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_stream_tenant', '_stream_tenant_of_all', '_refuse_position', '_default_max_age', '_stream_window'
);
select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    '_checked_writer', '_refuse_user', '_refuse_entry', 'stream_append', 'stream_append_all'
);
