-- security definer: as llm.get_messages().
create function llm.append_and_read(
    p_conversation_id uuid,
    p_role            text,
    p_content         text default null,
    p_parts           text default null,
    p_message_id      uuid default null,
    p_token_count     integer default null,
    p_cost            double precision default null,
    p_metadata        jsonb default null,
    p_limit           bigint default 50
)
    returns setof llm.message
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
as $$
declare
    v_tenant   text := llm._conversation_tenant();
    v_appended llm.appended_message;
begin
    if p_limit < 0 then
        perform llm._check_page(p_limit, 0::bigint);
    end if;
    v_appended := llm._append_message(
        v_tenant, p_conversation_id, p_role, p_content, p_parts, p_message_id, p_token_count, p_cost, 'complete'::text, p_metadata, false,
        null::bigint
    );
    if v_appended.branch = 0 then
        return query
            select * from llm._newest_messages(v_tenant, p_conversation_id, 0::bigint, 9223372036854775807, null::bigint, p_limit) m order by m.seq;
    else
        return query
            select * from llm.get_messages(p_conversation_id, null::bigint, null::bigint, p_limit, v_appended.branch);
    end if;
end
$$;

alter function llm.append_and_read(uuid, text, text, text, uuid, integer, double precision, jsonb, bigint) owner to llm_owner;

comment on function llm.append_and_read(uuid, text, text, text, uuid, integer, double precision, jsonb, bigint) is
'A turn of a chat in one statement: as llm.append_message(), then as llm.get_messages(): appends a message and returns the newest ones, it last.';


create function llm.append_messages(
    p_conversation_id uuid,
    p_messages        text,
    p_branch          bigint default null,
    p_create          boolean default false
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_create then
        perform llm._create_unless_there(llm._conversation_tenant(), p_conversation_id);
    end if;
    return llm._append_messages(p_conversation_id, llm._clean_json(p_messages), p_branch);
end
$$;

comment on function llm.append_messages(uuid, text, bigint, boolean) is
'Appends many messages in one statement, all or none, and returns how many were new. p_conversation_id; p_messages: JSON text, an array of objects
with role and content (a string or parts), and as they are known message_id, token_count, cost, status, is_pinned, metadata, created_at; p_branch:
and p_create: as for llm.append_message(). Errors: as llm.append_message(), and they name the first bad message by its index, from 0.';


-- security definer: as llm.create_conversation().
create function llm._append_messages(
    p_conversation_id uuid,
    p_messages        jsonb,
    p_branch          bigint
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant       text := llm._conversation_tenant();
    v_conversation record;
    v_new          record;
begin
    if jsonb_typeof(p_messages) is distinct from 'array' or p_messages @? '$[*] ? (@.type() != "object")' then
        raise exception 'these are not messages: %', left(coalesce(p_messages::text, 'null'), 100)
            using errcode = 'invalid_parameter_value',
                  hint = 'Give an array of objects with role and content, and what else llm.append_message() takes, without p_.';
    end if;

    -- As llm._is_content().
    if p_messages @? 'strict $[*].content ? (@.type() == "array")[*] ? (@.type() != "object")'
        or p_messages @? 'lax $[*].content[*] ? (@.type() == "object" && !(@."type".type() == "string"))'
    then
        perform llm._refuse_messages(p_messages);
    end if;

    select c.last_seq, c.branch, c.last_branch, c.user_id, c.indexed_seq
    into v_conversation
    from llm.conversations c
    where c.tenant_id = v_tenant
        and c.conversation_id = p_conversation_id
        and c.deleted_at is null
    for no key update;
    if not found then
        perform llm._refuse_conversation(p_conversation_id);
    end if;
    if p_branch not between 0 and v_conversation.last_branch then
        perform llm._refuse_branch(p_conversation_id, p_branch);
    end if;

    with i as (
        insert into llm.messages (
            tenant_id, conversation_id, branch, seq, message_id, user_id, role, content, status, is_pinned, token_count, cost, metadata, created_at
        )
        select
            v_tenant, p_conversation_id, coalesce(p_branch, v_conversation.branch), v_conversation.last_seq + row_number() over (order by r.number),
            coalesce(r.message_id, llm._message_id()), v_conversation.user_id, r.role, r.content,
            coalesce(r.status, 'complete'), coalesce(r.is_pinned, false), r.token_count, r.cost, r.metadata,
            coalesce(r.created_at, clock_timestamp())
        from rows from (jsonb_to_recordset(p_messages) as (
            message_id uuid, role text, content jsonb, status text, is_pinned boolean, token_count integer, cost numeric, metadata jsonb,
            created_at timestamptz
        )) with ordinality r (message_id, role, content, status, is_pinned, token_count, cost, metadata, created_at, number)
        where r.message_id is null
            or not exists (select from llm.messages o where o.tenant_id = v_tenant and o.message_id = r.message_id)
        returning token_count, cost
    )
    select count(*) as messages, coalesce(sum(i.token_count), 0) as tokens, coalesce(sum(i.cost), 0) as cost into v_new from i;

    if v_new.messages < jsonb_array_length(p_messages) then
        perform llm._refuse_other_messages(v_tenant, p_conversation_id, p_messages);
    end if;
    if v_new.messages > 0 then
        update llm.conversations c
        set last_seq = c.last_seq + v_new.messages,
            message_count = c.message_count + v_new.messages,
            token_count = c.token_count + v_new.tokens,
            cost = c.cost + v_new.cost,
            updated_at = clock_timestamp()
        where c.tenant_id = v_tenant
            and c.conversation_id = p_conversation_id;
        if v_conversation.indexed_seq = v_conversation.last_seq then
            insert into llm.message_queue (tenant_id, conversation_id) values (v_tenant, p_conversation_id) on conflict do nothing;
        end if;
    end if;
    return v_new.messages;
exception
    when check_violation or not_null_violation or invalid_text_representation or numeric_value_out_of_range or invalid_datetime_format
        or datetime_field_overflow
    then
        perform llm._refuse_messages(p_messages);
        raise;
end
$$;

alter function llm._append_messages(uuid, jsonb, bigint) owner to llm_owner;

comment on function llm._append_messages(uuid, jsonb, bigint) is
'llm.append_messages() of messages that are clean.';


-- security definer: as llm.create_conversation().
create function llm._refuse_other_messages(
    p_tenant          text,
    p_conversation_id uuid,
    p_messages        jsonb
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm._appended_before(p_tenant, p_conversation_id, (e.value ->> 'message_id')::uuid, e.value ->> 'role', e.value -> 'content')
    from jsonb_array_elements(p_messages) e
    where e.value ->> 'message_id' is not null;
end
$$;

alter function llm._refuse_other_messages(text, uuid, jsonb) owner to llm_owner;

comment on function llm._refuse_other_messages(text, uuid, jsonb) is
'Raises unique_violation when one of these messages has the id of another.';


select llm._grant_execute(
    array['llm_owner'],
    '_refuse_other_messages'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    'append_messages', '_append_messages'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'append_and_read'
);
