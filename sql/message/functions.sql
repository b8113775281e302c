create function llm._refuse_message_id(
    p_message_id uuid
)
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'message % does not exist', coalesce(p_message_id::text, 'null')
        using errcode = 'no_data_found',
              hint = 'It may be deleted, or another user''s: llm.get_messages() shows those of a conversation.';
end
$$;

comment on function llm._refuse_message_id(uuid) is
'Raises no_data_found: there is no such message.';


create function llm._refuse_amounts(
    p_what        text,
    p_token_count integer,
    p_cost        double precision
)
    returns void
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_token_count < 0 or p_cost < 0 or p_cost >= 'Infinity' then
        raise exception '% has % tokens, and cost %', p_what, coalesce(p_token_count::text, 'unknown'), coalesce(p_cost::text, 'unknown')
            using errcode = 'invalid_parameter_value',
                  hint = 'Neither is negative, and both are finite; null when unknown.';
    end if;
end
$$;

comment on function llm._refuse_amounts(text, integer, double precision) is
'Raises invalid_parameter_value when tokens or cost of a message cannot be. p_what: how it is called there.';


-- Reading

create function llm._newest_messages(
    p_tenant          text,
    p_conversation_id uuid,
    p_branch          bigint,
    p_upto            bigint,
    p_before          bigint,
    p_limit           bigint
)
    returns setof llm.message
    language sql
    stable
as $$
    select
        m.conversation_id, m.message_id, m.branch, m.seq, m.role, m.content, m.status, m.is_pinned, m.token_count, m.cost, m.rating, m.feedback,
        m.metadata, m.created_at, m.updated_at
    from llm.messages m
    where m.tenant_id operator(pg_catalog.=) p_tenant
        and m.conversation_id operator(pg_catalog.=) p_conversation_id
        and m.branch operator(pg_catalog.=) p_branch
        and m.seq operator(pg_catalog.<=) p_upto
        and m.seq operator(pg_catalog.<) coalesce(p_before, 9223372036854775807)
        and m.deleted_at is null
    order by m.seq desc
    limit p_limit
$$;

comment on function llm._newest_messages(text, uuid, bigint, bigint, bigint, bigint) is
'The newest messages that were appended to a branch itself, up to a number and before a number, newest first. Inlined where it is used.';


-- security definer: for its own tenant alone, checked once, where row-level security would ask for each table; users' rows are still theirs alone.
create function llm.get_messages(
    p_conversation_id uuid,
    p_before          bigint default null,
    p_after           bigint default null,
    p_limit           bigint default 50,
    p_branch          bigint default null
)
    returns setof llm.message
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
    -- Planned once: otherwise for each call, because a plan for any limit looks dear beside one for 50.
    set plan_cache_mode = force_generic_plan
as $$
declare
    v_tenant text := llm._conversation_tenant();
    v_branch bigint;
begin
    if p_limit < 0 then
        perform llm._check_page(p_limit, 0::bigint);
    end if;
    select coalesce(p_branch, c.branch)
    into v_branch
    from llm.conversations c
    where c.tenant_id = v_tenant
        and c.conversation_id = p_conversation_id
        and c.deleted_at is null
        and (p_branch is null or p_branch between 0 and c.last_branch);
    if not found then
        perform llm._branch(v_tenant, p_conversation_id, p_branch);
    end if;

    if p_after is null and v_branch = 0 then
        return query
            select * from llm._newest_messages(v_tenant, p_conversation_id, 0::bigint, 9223372036854775807, p_before, p_limit) m order by m.seq;
    elsif p_after is null then
        -- Limited twice: inside, a branch gives what it has, in order; outside, reading ends with the branch that fills the page.
        return query
            select r.*
            from (
                select m.*
                from llm._branch_path(v_tenant, p_conversation_id, v_branch) p
                cross join lateral llm._newest_messages(v_tenant, p_conversation_id, p.branch, p.upto, p_before, p_limit) m
                limit p_limit
            ) r
            order by r.seq;
    else
        return query
            select r.*
            from (
                select m.*
                from (select * from llm._branch_path(v_tenant, p_conversation_id, v_branch) order by upto) p
                cross join lateral (
                    select
                        m.conversation_id, m.message_id, m.branch, m.seq, m.role, m.content, m.status, m.is_pinned, m.token_count, m.cost, m.rating,
                        m.feedback, m.metadata, m.created_at, m.updated_at
                    from llm.messages m
                    where m.tenant_id = v_tenant
                        and m.conversation_id = p_conversation_id
                        and m.branch = p.branch
                        and m.seq <= p.upto
                        and m.seq < coalesce(p_before, 9223372036854775807)
                        and m.seq > p_after
                        and m.deleted_at is null
                    order by m.seq
                    limit p_limit
                ) m
                limit p_limit
            ) r
            order by r.seq;
    end if;
end
$$;

alter function llm.get_messages(uuid, bigint, bigint, bigint, bigint) owner to llm_owner;

comment on function llm.get_messages(uuid, bigint, bigint, bigint, bigint) is
'A page of a conversation, in order of numbers: the newest messages, or those right before number p_before; or with p_after those right after that
number. p_limit: at most so many; p_branch: by default that of the conversation. Errors: no_data_found for an unknown conversation or branch.';


create function llm.get_messages_by_id(
    p_message_ids uuid[]
)
    returns setof llm.message
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    -- As llm.get_conversations().
    set plan_cache_mode = force_generic_plan
as $$
declare
    v_tenant text := llm._conversation_tenant();
begin
    return query
        select m.*
        from unnest(p_message_ids) with ordinality i (id, number)
        cross join lateral (
            select
                m.conversation_id, m.message_id, m.branch, m.seq, m.role, m.content, m.status, m.is_pinned, m.token_count, m.cost, m.rating,
                m.feedback, m.metadata, m.created_at, m.updated_at
            from llm.messages m
            where m.tenant_id = v_tenant
                and m.message_id = i.id
                and m.deleted_at is null
            limit 1
        ) m
        order by i.number;
end
$$;

comment on function llm.get_messages_by_id(uuid[]) is
'These messages, in this order; those that do not exist are left out. Errors: object_not_in_prerequisite_state when no tenant is set.';


create function llm.get_message(
    p_message_id uuid
)
    returns llm.message
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_message llm.message;
begin
    select * into v_message from llm.get_messages_by_id(array[p_message_id]);
    if not found then
        perform llm._refuse_message_id(p_message_id);
    end if;
    return v_message;
end
$$;

comment on function llm.get_message(uuid) is
'A message. Errors: no_data_found when there is no such message.';


create function llm.message_exists(
    p_message_id uuid
)
    returns boolean
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (select from llm.get_messages_by_id(array[p_message_id]));
end
$$;

comment on function llm.message_exists(uuid) is
'Whether there is such a message. Errors: object_not_in_prerequisite_state when no tenant is set.';


create function llm.count_messages(
    p_conversation_id uuid,
    p_branch          bigint default null
)
    returns bigint
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._conversation_tenant();
    v_branch bigint := llm._branch(v_tenant, p_conversation_id, p_branch);
begin
    return (
        select count(*)
        from llm._branch_path(v_tenant, p_conversation_id, v_branch) p
        join llm.messages m
            on m.tenant_id = v_tenant
            and m.conversation_id = p_conversation_id
            and m.branch = p.branch
            and m.seq <= p.upto
        where m.deleted_at is null
    );
end
$$;

comment on function llm.count_messages(uuid, bigint) is
'How many messages a branch shows, those that it shares included; llm.get_conversation() tells the number of all branches at once. p_branch: by
default that of the conversation. Errors: no_data_found for an unknown conversation or branch.';


-- Changing

-- security definer: as llm.create_conversation().
create function llm._lock_message(
    p_tenant     text,
    p_message_id uuid
)
    returns uuid
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_conversation uuid;
begin
    -- First the conversation, as who appends: then none can wait for another that waits for him.
    select c.conversation_id
    into v_conversation
    from llm.messages m
    join llm.conversations c on c.tenant_id = m.tenant_id and c.conversation_id = m.conversation_id
    where m.tenant_id = p_tenant
        and m.message_id = p_message_id
        and m.deleted_at is null
        and c.deleted_at is null
    for no key update of c;
    if found then
        perform from llm.messages m
        where m.tenant_id = p_tenant
            and m.message_id = p_message_id
            and m.deleted_at is null
        for no key update;
    end if;
    if not found then
        perform llm._refuse_message_id(p_message_id);
    end if;
    return v_conversation;
end
$$;

alter function llm._lock_message(text, uuid) owner to llm_owner;

comment on function llm._lock_message(text, uuid) is
'Locks a message and its conversation, and returns that. Errors: no_data_found when there is no such message.';


-- security definer: as llm.create_conversation().
create function llm.update_message(
    p_message_id  uuid,
    p_content     text default null,
    p_parts       text default null,
    p_status      text default null,
    p_token_count integer default null,
    p_cost        double precision default null,
    p_metadata    jsonb default null
)
    returns llm.message
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant       text := llm._conversation_tenant();
    v_content      jsonb := case when p_parts is null then to_jsonb(p_content) else llm._clean_json(p_parts) end;
    v_conversation uuid := llm._lock_message(v_tenant, p_message_id);
    v_old          record;
begin
    select m.role, m.content, m.status, m.token_count, m.cost
    into v_old
    from llm.messages m
    where m.tenant_id = v_tenant
        and m.message_id = p_message_id;
    if v_old.status <> 'streaming' and (v_content is not null or p_status <> v_old.status) then
        raise exception 'message % is %', p_message_id, v_old.status
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'What was said stays: llm.edit_message() says something else on a new branch.';
    end if;
    perform llm._refuse_message('the message'::text, v_old.role, coalesce(v_content, v_old.content), coalesce(p_status, v_old.status));
    perform llm._refuse_amounts('the message'::text, p_token_count, p_cost);

    update llm.messages m
    set content = coalesce(v_content, m.content),
        updated_at = case when v_content is null then m.updated_at else clock_timestamp() end,
        status = coalesce(p_status, m.status),
        token_count = coalesce(p_token_count, m.token_count),
        cost = coalesce(p_cost::numeric, m.cost),
        metadata = coalesce(p_metadata, m.metadata)
    where m.tenant_id = v_tenant
        and m.message_id = p_message_id;
    if p_token_count is not null or p_cost is not null then
        update llm.conversations c
        set token_count = c.token_count - coalesce(v_old.token_count, 0) + coalesce(p_token_count, v_old.token_count, 0),
            cost = c.cost - coalesce(v_old.cost, 0) + coalesce(p_cost::numeric, v_old.cost, 0),
            updated_at = clock_timestamp()
        where c.tenant_id = v_tenant
            and c.conversation_id = v_conversation;
    end if;
    if v_content is not null then
        perform llm._index_message_again(v_tenant, p_message_id);
    end if;
    return llm.get_message(p_message_id);
end
$$;

alter function llm.update_message(uuid, text, text, text, integer, double precision, jsonb) owner to llm_owner;

comment on function llm.update_message(uuid, text, text, text, integer, double precision, jsonb) is
'Goes on with a message that is streaming: its whole content so far in p_content or p_parts, and at the end p_status complete, failed or cancelled.
p_token_count, p_cost and p_metadata of any message may be corrected; what is null stays as it is. Returns the message.
Errors: no_data_found when there is no such message; object_not_in_prerequisite_state for content or status of one that is not streaming;
invalid_parameter_value.';


-- security definer: as llm.create_conversation().
create function llm.delete_message(
    p_message_id uuid
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant       text := llm._conversation_tenant();
    v_conversation uuid := llm._lock_message(v_tenant, p_message_id);
begin
    with d as (
        update llm.messages m
        set deleted_at = clock_timestamp()
        where m.tenant_id = v_tenant
            and m.message_id = p_message_id
        returning m.token_count, m.cost
    )
    update llm.conversations c
    set message_count = c.message_count - 1,
        token_count = c.token_count - coalesce(d.token_count, 0),
        cost = c.cost - coalesce(d.cost, 0),
        updated_at = clock_timestamp()
    from d
    where c.tenant_id = v_tenant
        and c.conversation_id = v_conversation;
end
$$;

alter function llm.delete_message(uuid) owner to llm_owner;

comment on function llm.delete_message(uuid) is
'Deletes a message softly: no function shows it, and it is not counted. Its number is not given again. Errors: no_data_found when there is no such
message.';


-- security definer: as llm.create_conversation().
create function llm.rate_message(
    p_message_id uuid,
    p_rating     integer,
    p_feedback   text default null
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._conversation_tenant();
begin
    if p_rating not between -1 and 1 then
        raise exception 'a rating of %', p_rating
            using errcode = 'invalid_parameter_value',
                  hint = 'Ratings are -1, 0 and 1, null for none; words go into p_feedback.';
    end if;
    perform llm._lock_message(v_tenant, p_message_id);
    update llm.messages m
    set rating = p_rating,
        feedback = p_feedback
    where m.tenant_id = v_tenant
        and m.message_id = p_message_id;
end
$$;

alter function llm.rate_message(uuid, integer, text) owner to llm_owner;

comment on function llm.rate_message(uuid, integer, text) is
'Says what a user thinks of a message. p_rating: -1, 0 or 1, null to take it back; p_feedback: in words. Errors: no_data_found when there is no such
message; invalid_parameter_value.';


-- security definer: as llm.create_conversation().
create function llm.pin_message(
    p_message_id uuid,
    p_is_pinned  boolean default true
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._conversation_tenant();
begin
    perform llm._lock_message(v_tenant, p_message_id);
    update llm.messages m
    set is_pinned = coalesce(p_is_pinned, true)
    where m.tenant_id = v_tenant
        and m.message_id = p_message_id;
end
$$;

alter function llm.pin_message(uuid, boolean) owner to llm_owner;

comment on function llm.pin_message(uuid, boolean) is
'Makes a message part of every llm.context_window() of its branch, or no longer. Errors: no_data_found when there is no such message.';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'get_messages', 'message_exists', 'count_messages'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_refuse_message_id', 'get_message', 'get_messages_by_id'
);

select llm._grant_execute(
    array['llm_owner'],
    '_refuse_amounts', '_lock_message', '_newest_messages'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'update_message', 'delete_message', 'rate_message', 'pin_message'
);
