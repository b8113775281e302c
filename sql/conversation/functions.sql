create type llm.conversation as (
    conversation_id  uuid,
    user_id          uuid,
    session_id       uuid,
    title            text,
    tags             text[],
    model_config     jsonb,
    context          jsonb,
    metadata         jsonb,
    branch           bigint,
    last_seq         bigint,
    message_count    bigint,
    token_count      bigint,
    cost             numeric,
    created_at       timestamptz,
    updated_at       timestamptz
);

comment on type llm.conversation is
'A conversation: context is a snapshot that the application keeps; branch is the one that messages are appended to; last_seq the newest message''s
number; message_count, token_count and cost count the messages that are not deleted, of all branches.';


create function llm._conversation_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
begin
    -- What llm._require_storage() and llm.current_tenant() ask first, at once; twice, as in llm.current_tenant().
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
        raise exception 'conversations are a tenant''s, and no tenant is set'
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Run: select llm.set_tenant(''…''); as the first statement of the transaction, or llm.bind_role() for the role.';
    end if;
    return v_tenant;
end
$$;

comment on function llm._conversation_tenant() is
'The tenant whose conversations this transaction reads and writes. Errors: object_not_in_prerequisite_state when none is set.';


-- Writing

-- security definer: conversations are written by functions alone, so that nobody sets a counter; user_isolation holds here too.
create function llm.create_conversation(
    p_title           text default null,
    p_user_id         uuid default null,
    p_session_id      uuid default null,
    p_tags            text[] default '{}',
    p_model_config    jsonb default '{}',
    p_context         jsonb default '{}',
    p_metadata        jsonb default '{}',
    p_conversation_id uuid default null
)
    returns uuid
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._conversation_tenant();
    v_user   uuid := coalesce(p_user_id, llm.current_user_id());
    v_id     uuid := coalesce(p_conversation_id, llm.uuid_v7());
begin
    insert into llm.conversations (tenant_id, conversation_id, user_id, session_id, title, tags, model_config, context, metadata)
    values (v_tenant, v_id, v_user, p_session_id, p_title, coalesce(p_tags, '{}'), coalesce(p_model_config, '{}'), coalesce(p_context, '{}'),
            coalesce(p_metadata, '{}'))
    on conflict (tenant_id, conversation_id) do nothing;
    if not found
        and not exists (select from llm.conversations c
                        where c.tenant_id = v_tenant and c.conversation_id = v_id and c.user_id is not distinct from v_user and c.deleted_at is null)
    then
        raise exception 'conversation % cannot be created', v_id
            using errcode = 'unique_violation',
                  hint = 'Its id is taken. Leave p_conversation_id out, or give a new UUID.';
    end if;
    return v_id;
end
$$;

alter function llm.create_conversation(text, uuid, uuid, text[], jsonb, jsonb, jsonb, uuid) owner to llm_owner;

comment on function llm.create_conversation(text, uuid, uuid, text[], jsonb, jsonb, jsonb, uuid) is
'Begins a conversation and returns its id. p_title; p_user_id: whose it is, by default that of llm.set_user(); p_session_id; p_tags; p_model_config:
as the application likes; p_context: a snapshot; p_metadata; p_conversation_id: chosen by the client, so that a repeated call makes no second
conversation.
Errors: unique_violation when the id is taken; insufficient_privilege for another user; object_not_in_prerequisite_state when no tenant is set.';


-- security definer: as llm.create_conversation().
create function llm.create_conversations(
    p_conversations jsonb
)
    returns setof uuid
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(p_conversations) is distinct from 'array' or p_conversations @? '$[*] ? (@.type() != "object")' then
        raise exception 'these are not conversations: %', left(coalesce(p_conversations::text, 'null'), 100)
            using errcode = 'invalid_parameter_value',
                  hint = 'Give an array of objects with the names of llm.create_conversation()''s arguments without p_.';
    end if;
    return query
        select llm.create_conversation(r.title, r.user_id, r.session_id, r.tags, r.model_config, r.context, r.metadata, r.conversation_id)
        from (
            select e.*
            from jsonb_array_elements(p_conversations) with ordinality a (value, number)
            cross join jsonb_to_record(a.value) e (
                title text, user_id uuid, session_id uuid, tags text[], model_config jsonb, context jsonb, metadata jsonb, conversation_id uuid
            )
            order by e.conversation_id, a.number
        ) r;
end
$$;

alter function llm.create_conversations(jsonb) owner to llm_owner;

comment on function llm.create_conversations(jsonb) is
'Begins many conversations, all or none, and returns their ids: those that the client chose in order, then the others as they were given.
p_conversations: an array of objects with the names of llm.create_conversation()''s arguments without p_. Errors: invalid_parameter_value; as
llm.create_conversation().';


-- security definer: as llm.create_conversation().
create function llm.update_conversation(
    p_conversation_id uuid,
    p_title           text default null,
    p_tags            text[] default null,
    p_model_config    jsonb default null,
    p_context         jsonb default null,
    p_metadata        jsonb default null,
    p_session_id      uuid default null
)
    returns llm.conversation
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant       text := llm._conversation_tenant();
    v_conversation llm.conversation;
begin
    update llm.conversations c
    set title = coalesce(p_title, c.title),
        tags = coalesce(p_tags, c.tags),
        model_config = coalesce(p_model_config, c.model_config),
        context = coalesce(p_context, c.context),
        metadata = coalesce(p_metadata, c.metadata),
        session_id = coalesce(p_session_id, c.session_id),
        updated_at = clock_timestamp()
    where c.tenant_id = v_tenant
        and c.conversation_id = p_conversation_id
        and c.deleted_at is null
    returning
        c.conversation_id, c.user_id, c.session_id, c.title, c.tags, c.model_config, c.context, c.metadata, c.branch, c.last_seq, c.message_count,
        c.token_count, c.cost, c.created_at, c.updated_at
    into v_conversation;
    if not found then
        perform llm._refuse_conversation(p_conversation_id);
    end if;
    return v_conversation;
end
$$;

alter function llm.update_conversation(uuid, text, text[], jsonb, jsonb, jsonb, uuid) owner to llm_owner;

comment on function llm.update_conversation(uuid, text, text[], jsonb, jsonb, jsonb, uuid) is
'Changes a conversation and returns it. What is null stays as it is. Errors: no_data_found when there is no such conversation.';


-- security definer: as llm.create_conversation().
create function llm.delete_conversation(
    p_conversation_id uuid
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._conversation_tenant();
    v_now    timestamptz := clock_timestamp();
begin
    update llm.conversations c
    set deleted_at = v_now
    where c.tenant_id = v_tenant
        and c.conversation_id = p_conversation_id
        and c.deleted_at is null;
    if not found then
        return false;
    end if;
    update llm.messages m
    set deleted_at = v_now
    where m.tenant_id = v_tenant
        and m.conversation_id = p_conversation_id
        and m.deleted_at is null;
    return true;
end
$$;

alter function llm.delete_conversation(uuid) owner to llm_owner;

comment on function llm.delete_conversation(uuid) is
'Deletes a conversation with its messages softly: no function shows them, llm.restore_conversation() brings them back until
llm.purge_conversations() has removed them. Returns false when there is no such conversation.';


-- security definer: as llm.create_conversation().
create function llm.restore_conversation(
    p_conversation_id uuid
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := llm._conversation_tenant();
    v_deleted timestamptz;
begin
    select c.deleted_at into v_deleted
    from llm.conversations c
    where c.tenant_id = v_tenant
        and c.conversation_id = p_conversation_id
        and c.deleted_at is not null
    for no key update;
    if not found then
        return false;
    end if;
    update llm.conversations c set deleted_at = null where c.tenant_id = v_tenant and c.conversation_id = p_conversation_id;
    -- Messages that were deleted before stay so.
    update llm.messages m
    set deleted_at = null
    where m.tenant_id = v_tenant
        and m.conversation_id = p_conversation_id
        and m.deleted_at = v_deleted;
    return true;
end
$$;

alter function llm.restore_conversation(uuid) owner to llm_owner;

comment on function llm.restore_conversation(uuid) is
'Undoes llm.delete_conversation(). Returns false when there is no such deleted conversation, as after llm.purge_conversations().';


-- security definer: as llm.create_conversation().
create function llm.purge_conversations(
    p_deleted_before timestamptz default now() - interval '30 days',
    p_limit          bigint default 1000
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._conversation_tenant();
    v_count  bigint;
begin
    perform llm._check_page(p_limit, 0::bigint);
    with due as (
        select c.conversation_id
        from llm.conversations c
        where c.tenant_id = v_tenant
            and c.deleted_at < p_deleted_before
        order by c.deleted_at
        limit p_limit
        for update skip locked
    )
    delete from llm.conversations c
    using due d
    where c.tenant_id = v_tenant
        and c.conversation_id = d.conversation_id;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

alter function llm.purge_conversations(timestamptz, bigint) owner to llm_owner;

comment on function llm.purge_conversations(timestamptz, bigint) is
'Removes conversations of the tenant that were deleted softly, with all that is theirs, for good; the longest deleted first. p_deleted_before: by
default 30 days ago; p_limit: at most so many. Returns how many; call it again while that is p_limit.';


-- Reading

create function llm.get_conversations(
    p_conversation_ids uuid[]
)
    returns setof llm.conversation
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    -- Planned once: otherwise for each call, because a plan for any number of ids looks dear beside one for one.
    set plan_cache_mode = force_generic_plan
as $$
declare
    v_tenant text := llm._conversation_tenant();
begin
    return query
        select c.*
        from unnest(p_conversation_ids) with ordinality i (id, number)
        cross join lateral (
            select
                c.conversation_id, c.user_id, c.session_id, c.title, c.tags, c.model_config, c.context, c.metadata, c.branch, c.last_seq,
                c.message_count, c.token_count, c.cost, c.created_at, c.updated_at
            from llm.conversations c
            where c.tenant_id = v_tenant
                and c.conversation_id = i.id
                and c.deleted_at is null
            limit 1  -- so that each is looked up by its key, whatever the planner thinks of their number
        ) c
        order by i.number;
end
$$;

comment on function llm.get_conversations(uuid[]) is
'These conversations, in this order; those that do not exist are left out. Errors: object_not_in_prerequisite_state when no tenant is set.';


create function llm.get_conversation(
    p_conversation_id uuid
)
    returns llm.conversation
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_conversation llm.conversation;
begin
    select * into v_conversation from llm.get_conversations(array[p_conversation_id]);
    if not found then
        perform llm._refuse_conversation(p_conversation_id);
    end if;
    return v_conversation;
end
$$;

comment on function llm.get_conversation(uuid) is
'A conversation with its counters. Errors: no_data_found when there is no such conversation.';


create function llm.conversation_exists(
    p_conversation_id uuid
)
    returns boolean
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (select from llm.get_conversations(array[p_conversation_id]));
end
$$;

comment on function llm.conversation_exists(uuid) is
'Whether there is such a conversation. Errors: object_not_in_prerequisite_state when no tenant is set.';


create function llm.list_conversations(
    p_user_id uuid default null,
    p_from    timestamptz default '-infinity',
    p_to      timestamptz default 'infinity',
    p_tags    text[] default '{}',
    p_limit   bigint default 50,
    p_after   uuid default null,
    p_offset  bigint default 0
)
    returns setof llm.conversation
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._conversation_tenant();
    v_user   uuid := coalesce(p_user_id, llm.current_user_id());
    v_to     timestamptz := coalesce(p_to, 'infinity');
    v_after  uuid;
begin
    perform llm._check_page(p_limit, p_offset);
    if p_after is not null then
        select c.created_at, c.conversation_id into v_to, v_after
        from llm.conversations c
        where c.tenant_id = v_tenant
            and c.conversation_id = p_after;
        if not found then
            perform llm._refuse_conversation(p_after);
        end if;
    end if;
    return query
        select
            c.conversation_id, c.user_id, c.session_id, c.title, c.tags, c.model_config, c.context, c.metadata, c.branch, c.last_seq, c.message_count,
            c.token_count, c.cost, c.created_at, c.updated_at
        from llm.conversations c
        where c.tenant_id = v_tenant
            and (v_user is null or c.user_id = v_user)
            and c.created_at >= coalesce(p_from, '-infinity')
            and c.created_at <= v_to
            and (v_after is null or (c.created_at, c.conversation_id) < (v_to, v_after))
            and (coalesce(p_tags, '{}') = '{}' or c.tags @> p_tags)
            and c.deleted_at is null
        order by c.created_at desc, c.conversation_id desc
        limit p_limit
        offset p_offset;
end
$$;

comment on function llm.list_conversations(uuid, timestamptz, timestamptz, text[], bigint, uuid, bigint) is
'Conversations, newest first. p_user_id: of this user, by default that of llm.set_user(), if there is one; p_from, p_to: created between; p_tags:
that have all of these; p_limit: at most so many, each null for any; p_after: the last conversation of the page before, which costs the same for every
page, where p_offset reads all that it leaves out. Errors: no_data_found when p_after does not exist.';


create function llm.count_conversations(
    p_user_id uuid default null,
    p_from    timestamptz default '-infinity',
    p_to      timestamptz default 'infinity',
    p_tags    text[] default '{}'
)
    returns bigint
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._conversation_tenant();
    v_user   uuid := coalesce(p_user_id, llm.current_user_id());
begin
    return (
        select count(*)
        from llm.conversations c
        where c.tenant_id = v_tenant
            and (v_user is null or c.user_id = v_user)
            and c.created_at between coalesce(p_from, '-infinity') and coalesce(p_to, 'infinity')
            and (coalesce(p_tags, '{}') = '{}' or c.tags @> p_tags)
            and c.deleted_at is null
    );
end
$$;

comment on function llm.count_conversations(uuid, timestamptz, timestamptz, text[]) is
'How many conversations llm.list_conversations() would list in all.';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'get_conversation', 'get_conversations', 'conversation_exists', 'list_conversations', 'count_conversations'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_conversation_tenant'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'create_conversations', 'update_conversation', 'delete_conversation', 'restore_conversation'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    'create_conversation'
);

select llm._grant_execute(
    array['llm_admin'],
    'purge_conversations'
);
