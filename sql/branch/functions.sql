create function llm._refuse_branch(
    p_conversation_id uuid,
    p_branch          bigint
)
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'conversation % has no branch %', p_conversation_id, p_branch
        using errcode = 'no_data_found',
              hint = 'llm.branches() lists them; the first is 0.';
end
$$;

comment on function llm._refuse_branch(uuid, bigint) is
'Raises no_data_found: there is no such branch.';


create function llm._branch_path(
    p_tenant          text,
    p_conversation_id uuid,
    p_branch          bigint
)
    returns table (branch bigint, upto bigint)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    branch := p_branch;
    upto := 9223372036854775807;
    while branch > 0 loop
        return next;
        select b.parent_branch, b.forked_at
        into branch, upto
        from llm.branches b
        where b.tenant_id = p_tenant
            and b.conversation_id = p_conversation_id
            and b.branch = _branch_path.branch;
    end loop;
    if branch = 0 then
        return next;
    end if;
end
$$;

comment on function llm._branch_path(text, uuid, bigint) is
'What a branch consists of, newest first: its own messages, then those of the branch that it was forked from, up to a number, and so on.';


create function llm._branch(
    p_tenant          text,
    p_conversation_id uuid,
    p_branch          bigint
)
    returns bigint
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_branch bigint;
    v_last   bigint;
begin
    select c.branch, c.last_branch
    into v_branch, v_last
    from llm.conversations c
    where c.tenant_id = p_tenant
        and c.conversation_id = p_conversation_id
        and c.deleted_at is null;
    if not found then
        perform llm._refuse_conversation(p_conversation_id);
    end if;
    if p_branch not between 0 and v_last then
        perform llm._refuse_branch(p_conversation_id, p_branch);
    end if;
    return coalesce(p_branch, v_branch);
end
$$;

comment on function llm._branch(text, uuid, bigint) is
'The branch that is meant: p_branch, or when that is null the one that messages are appended to. Errors: no_data_found.';


-- security definer: as llm.create_conversation().
create function llm.fork_conversation(
    p_conversation_id uuid,
    p_at              bigint default null,
    p_branch          bigint default null,
    p_name            text default null
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._conversation_tenant();
    v_user   uuid;
    v_branch bigint;
    v_parent record;
    v_new    bigint;
begin
    -- The lock before anything is read: forks and appends come one after the other.
    update llm.conversations c
    set last_branch = c.last_branch + 1,
        updated_at = clock_timestamp()
    where c.tenant_id = v_tenant
        and c.conversation_id = p_conversation_id
        and c.deleted_at is null
    returning c.user_id, c.branch, c.last_branch
    into v_user, v_branch, v_new;
    if not found then
        perform llm._refuse_conversation(p_conversation_id);
    end if;
    if p_branch not between 0 and v_new - 1 then
        perform llm._refuse_branch(p_conversation_id, p_branch);
    end if;
    v_branch := coalesce(p_branch, v_branch);
    if (select count(*) from llm._branch_path(v_tenant, p_conversation_id, v_branch)) > 1000 then
        raise exception 'branch % of conversation % is forked from 1000 others in turn', v_branch, p_conversation_id
            using errcode = 'program_limit_exceeded',
                  hint = 'Begin a new conversation.';
    end if;

    -- Of the branch that the message itself is on: siblings stay siblings.
    select p.branch, m.seq
    into v_parent
    from llm._branch_path(v_tenant, p_conversation_id, v_branch) p
    cross join lateral (
        select m.seq
        from llm.messages m
        where m.tenant_id = v_tenant
            and m.conversation_id = p_conversation_id
            and m.branch = p.branch
            and m.seq <= least(p.upto, p_at)
            and m.deleted_at is null
        order by m.seq desc
        limit 1
    ) m
    order by m.seq desc
    limit 1;
    if p_at <> coalesce(v_parent.seq, 0) then
        raise exception 'branch % of conversation % has no message %', v_branch, p_conversation_id, p_at
            using errcode = 'no_data_found',
                  hint = 'Fork at the number of one of its messages, or at 0, before all of them.';
    end if;

    insert into llm.branches (tenant_id, conversation_id, branch, user_id, parent_branch, forked_at, name)
    values (v_tenant, p_conversation_id, v_new, v_user, coalesce(v_parent.branch, 0), coalesce(v_parent.seq, 0), p_name);
    update llm.conversations c set branch = v_new where c.tenant_id = v_tenant and c.conversation_id = p_conversation_id;
    return v_new;
end
$$;

alter function llm.fork_conversation(uuid, bigint, bigint, text) owner to llm_owner;

comment on function llm.fork_conversation(uuid, bigint, bigint, text) is
'Begins a branch and returns its number; messages are then appended to it. Nothing is copied. p_conversation_id; p_at: the number of the last
message that it shares, 0 for none, by default the newest; p_branch: of which branch, by default that of the conversation; p_name.
Errors: no_data_found for an unknown conversation, branch or message; program_limit_exceeded when 1000 branches are forked from each other.';


-- security definer: as llm.create_conversation().
create function llm.select_branch(
    p_conversation_id uuid,
    p_branch          bigint
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
    perform llm._branch(v_tenant, p_conversation_id, p_branch);
    update llm.conversations c
    set branch = coalesce(p_branch, c.branch)
    where c.tenant_id = v_tenant
        and c.conversation_id = p_conversation_id;
end
$$;

alter function llm.select_branch(uuid, bigint) owner to llm_owner;

comment on function llm.select_branch(uuid, bigint) is
'Chooses the branch that messages are appended to and read from when none is named. Errors: no_data_found for an unknown conversation or branch.';


create function llm.branches(
    p_conversation_id uuid
)
    returns table (
        branch bigint, parent_branch bigint, forked_at bigint, name text, is_active boolean, message_count bigint, last_seq bigint,
        created_at timestamptz
    )
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._conversation_tenant();
    v_active bigint := llm._branch(v_tenant, p_conversation_id, null::bigint);
begin
    return query
        with all_branches as (
            select 0::bigint as branch, null::bigint as parent_branch, null::bigint as forked_at, null::text as name, c.created_at
            from llm.conversations c
            where c.tenant_id = v_tenant
                and c.conversation_id = p_conversation_id
            union all
            select b.branch, b.parent_branch, b.forked_at, b.name, b.created_at
            from llm.branches b
            where b.tenant_id = v_tenant
                and b.conversation_id = p_conversation_id
        )
        select b.branch, b.parent_branch, b.forked_at, b.name, b.branch = v_active, m.messages, m.newest, b.created_at
        from all_branches b
        cross join lateral (
            select count(*) as messages, max(m.seq) as newest
            from llm.messages m
            where m.tenant_id = v_tenant
                and m.conversation_id = p_conversation_id
                and m.branch = b.branch
                and m.deleted_at is null
        ) m
        order by b.branch;
end
$$;

comment on function llm.branches(uuid) is
'The branches of a conversation: from which one each was forked, and after which message; its name; whether messages are appended to it now; how
many it has of its own, and the number of the newest. Errors: no_data_found when there is no such conversation.';


-- security definer: as llm.create_conversation().
create function llm.edit_message(
    p_message_id  uuid,
    p_content     text default null,
    p_parts       text default null,
    p_token_count integer default null,
    p_metadata    jsonb default null,
    p_name        text default null
)
    returns llm.appended_message
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := llm._conversation_tenant();
    v_message record;
    v_branch  bigint;
begin
    select m.conversation_id, m.branch, m.seq, m.role
    into v_message
    from llm.messages m
    where m.tenant_id = v_tenant
        and m.message_id = p_message_id
        and m.deleted_at is null;
    if not found then
        perform llm._refuse_message_id(p_message_id);
    end if;
    v_branch := llm.fork_conversation(
        v_message.conversation_id,
        (
            select coalesce(max(m.seq), 0)
            from llm._branch_path(v_tenant, v_message.conversation_id, v_message.branch) p
            cross join lateral (
                select m.seq
                from llm.messages m
                where m.tenant_id = v_tenant
                    and m.conversation_id = v_message.conversation_id
                    and m.branch = p.branch
                    and m.seq <= p.upto
                    and m.seq < v_message.seq
                    and m.deleted_at is null
                order by m.seq desc
                limit 1
            ) m
        ),
        v_message.branch,
        p_name
    );
    return llm.append_message(
        v_message.conversation_id, v_message.role, p_content, p_parts, null::uuid, p_token_count, null::double precision, 'complete'::text,
        p_metadata, false, v_branch, false
    );
end
$$;

alter function llm.edit_message(uuid, text, text, integer, jsonb, text) owner to llm_owner;

comment on function llm.edit_message(uuid, text, text, integer, jsonb, text) is
'Says something else in a message''s place, on a new branch that begins before it: the message, and all that followed, stay on theirs. p_message_id;
p_content or p_parts, p_token_count, p_metadata: as for llm.append_message(); p_name: of the branch. Returns where the new message is.
Errors: no_data_found when there is no such message; as llm.append_message(), llm.fork_conversation().';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_refuse_branch', '_branch_path', '_branch'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'branches'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    'fork_conversation'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'select_branch', 'edit_message'
);
