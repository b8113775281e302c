create type llm.message as (
    conversation_id  uuid,
    message_id       uuid,
    branch           bigint,
    seq              bigint,
    role             text,
    content          jsonb,
    status           text,
    is_pinned        boolean,
    token_count      integer,
    cost             numeric,
    rating           smallint,
    feedback         text,
    metadata         jsonb,
    created_at       timestamptz,
    updated_at       timestamptz
);

comment on type llm.message is
'A message: seq numbers those of its conversation, branch is the one that it was appended to; content is a string or an array of parts; token_count
and cost are null when unknown; rating is -1, 0 or 1; updated_at is when the content last changed, null if never.';


create type llm.appended_message as (
    message_id  uuid,
    branch      bigint,
    seq         bigint,
    is_new      boolean
);

comment on type llm.appended_message is
'Where a message was appended; is_new is false when it had been appended before, under the same id.';


-- Content

create function llm._message_text(
    p_content jsonb
)
    returns text
    language plpgsql
    immutable
    parallel safe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(p_content) = 'string' then
        return p_content #>> '{}';
    end if;
    return (
        select coalesce(string_agg(t.value #>> '{}', e'\n' order by t.number), '')
        from jsonb_path_query(
            p_content, '$[*].keyvalue() ? (@.key == "text" || @.key == "content").value ? (@.type() == "string")'
        ) with ordinality t (value, number)
    );
end
$$;

comment on function llm._message_text(jsonb) is
'The text in the content of a message: the string, or the texts of its parts and the results of its tools, a line each.';


create function llm._clean_json(
    p_json text
)
    returns jsonb
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- Most text has no escape that would have to be looked at in Python.
    if strpos(p_json, '\u') = 0 and strpos(p_json, '␛') = 0 then
        return p_json::jsonb;
    end if;
    return llm.clean_jsonb(p_json);
exception
    when invalid_text_representation then
        raise exception 'this is not JSON: %', quote_literal(left(p_json, 100))
            using errcode = 'invalid_text_representation',
                  detail = sqlerrm,
                  hint = 'Give JSON text: a string in it stands in double quotes.';
end
$$;

comment on function llm._clean_json(text) is
'llm.clean_jsonb(), faster where there is nothing to clean.';


create function llm._is_content(
    p_content jsonb
)
    returns boolean
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(
        jsonb_typeof(p_content) = 'string'
        -- Strict, or an array in the array would be looked into; lax, or an object without a type would be an error that is no answer.
        or jsonb_typeof(p_content) = 'array'
        and not p_content @? 'strict $[*] ? (@.type() != "object")'
        and not p_content @? 'lax $[*] ? (!(@."type".type() == "string"))',
        false
    );
end
$$;

comment on function llm._is_content(jsonb) is
'Whether this can be the content of a message: a string, or an array of objects with a type.';


create function llm._refuse_message(
    p_what    text,
    p_role    text,
    p_content jsonb,
    p_status  text
)
    returns void
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_role is null or p_role not in ('user', 'assistant', 'system', 'tool') then
        raise exception '% has role %', p_what, coalesce(quote_literal(left(p_role, 50)), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Roles are user, assistant, system and tool.';
    end if;
    if not llm._is_content(p_content) then
        raise exception '% has content that is neither text nor parts', p_what
            using errcode = 'invalid_parameter_value',
                  detail = format('It is %s.', left(coalesce(p_content::text, 'null'), 100)),
                  hint = 'Content is a string, or an array of objects with a type: [{"type": "text", "text": "…"}].';
    end if;
    if p_status not in ('streaming', 'complete', 'failed', 'cancelled') then
        raise exception '% has status %', p_what, quote_literal(left(p_status, 50))
            using errcode = 'invalid_parameter_value',
                  hint = 'A message is streaming, complete, failed or cancelled.';
    end if;
end
$$;

comment on function llm._refuse_message(text, text, jsonb, text) is
'Raises invalid_parameter_value when a message is not one, in the user''s words. p_what: how it is called there.';


create function llm._refuse_messages(
    p_messages jsonb
)
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_message record;
    v_field   record;
begin
    for v_message in
        select 'message ' || e.number - 1 as name, e.value
        from jsonb_array_elements(p_messages) with ordinality e (value, number)
        order by e.number
    loop
        for v_field in
            select f.name, f.type
            from (values
                ('message_id', 'uuid'), ('token_count', 'integer'), ('cost', 'numeric'), ('is_pinned', 'boolean'), ('created_at', 'timestamptz')
            ) f (name, type)
            where not pg_input_is_valid(v_message.value ->> f.name, f.type)
        loop
            raise exception '% has % %', v_message.name, v_field.name, left((v_message.value -> v_field.name)::text, 50)
                using errcode = 'invalid_parameter_value',
                      hint = format('That is of type %s.', v_field.type);
        end loop;
        perform
            llm._refuse_message(
                v_message.name, v_message.value ->> 'role', v_message.value -> 'content', coalesce(v_message.value ->> 'status', 'complete')
            ),
            llm._refuse_amounts(
                v_message.name, (v_message.value ->> 'token_count')::integer, (v_message.value ->> 'cost')::double precision
            );
    end loop;
end
$$;

comment on function llm._refuse_messages(jsonb) is
'Raises invalid_parameter_value for the first of these messages that is not one, by its index from 0.';


-- Appending

create function llm._message_id()
    returns uuid
    language sql
    volatile
    parallel safe
as $$
    -- The milliseconds in 48 bits, the version, the fraction of the millisecond in 12 bits, the variant and what is random.
    select (
        overlay(
            pg_catalog.lpad(
                pg_catalog.to_hex(
                    (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) operator(pg_catalog.*) 4096000)::pg_catalog.int8
                ), 15, '0'
            )
            placing '7' from 13 for 0
        )
        operator(pg_catalog.||) pg_catalog.right(pg_catalog.gen_random_uuid()::pg_catalog.text, 17)
    )::pg_catalog.uuid
$$;

comment on function llm._message_id() is
'llm.uuid_v7() in an expression that is inlined: called as a function, it would take a tenth of the time of llm.append_message().';


create function llm._refuse_conversation(
    p_conversation_id uuid
)
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'conversation % does not exist', coalesce(p_conversation_id::text, 'null')
        using errcode = 'no_data_found',
              hint = 'It may be deleted, or another user''s: llm.list_conversations() lists those that there are.';
end
$$;

comment on function llm._refuse_conversation(uuid) is
'Raises no_data_found: there is no such conversation.';


create function llm._create_unless_there(
    p_tenant          text,
    p_conversation_id uuid
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform from llm.conversations c where c.tenant_id = p_tenant and c.conversation_id = p_conversation_id and c.deleted_at is null;
    if not found then
        perform llm.create_conversation(
            null::text, null::uuid, null::uuid, '{}'::text[], '{}'::jsonb, '{}'::jsonb, '{}'::jsonb, p_conversation_id
        );
    end if;
end
$$;

comment on function llm._create_unless_there(text, uuid) is
'Begins a conversation of this id when there is none. Errors: as llm.create_conversation().';


create function llm._append_message(
    p_tenant          text,
    p_conversation_id uuid,
    p_role            text,
    p_content         text,
    p_parts           text,
    p_message_id      uuid,
    p_token_count     integer,
    p_cost            double precision,
    p_status          text,
    p_metadata        jsonb,
    p_is_pinned       boolean,
    p_branch          bigint
)
    returns llm.appended_message
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_content      jsonb := case when p_parts is null then to_jsonb(p_content) else llm._clean_json(p_parts) end;
    v_conversation record;
    v_appended     llm.appended_message;
begin
    if (p_role in ('user', 'assistant', 'system', 'tool') and p_content is not null and p_parts is null and p_status = 'complete'
        and coalesce(p_token_count, 0) >= 0 and coalesce(p_cost, 0) >= 0 and coalesce(p_cost, 0) < 'Infinity') is not true
    then
        if p_content is not null and p_parts is not null then
            raise exception 'the message has both p_content and p_parts'
                using errcode = 'invalid_parameter_value',
                      hint = 'Give plain text in p_content, or JSON in p_parts.';
        end if;
        perform llm._refuse_message('the message'::text, p_role, v_content, p_status);
        perform llm._refuse_amounts('the message'::text, p_token_count, p_cost);
    end if;

    if p_message_id is not null then
        v_appended := llm._appended_before(p_tenant, p_conversation_id, p_message_id, p_role, v_content);
        if v_appended.seq is not null then
            return v_appended;
        end if;
    end if;

    -- The row's lock lasts until the end of the transaction: that is what leaves no gap when one rolls back.
    update llm.conversations c
    set last_seq = c.last_seq + 1,
        message_count = c.message_count + 1,
        token_count = c.token_count + coalesce(p_token_count, 0),
        cost = c.cost + coalesce(p_cost::numeric, 0),
        updated_at = clock_timestamp()
    where c.tenant_id = p_tenant
        and c.conversation_id = p_conversation_id
        and c.deleted_at is null
    returning c.last_seq, c.branch, c.last_branch, c.user_id, c.indexed_seq
    into v_conversation;
    if not found then
        perform llm._refuse_conversation(p_conversation_id);
    end if;
    if p_branch not between 0 and v_conversation.last_branch then
        perform llm._refuse_branch(p_conversation_id, p_branch);
    end if;

    insert into llm.messages (
        tenant_id, conversation_id, branch, seq, message_id, user_id, role, content, status, is_pinned, token_count, cost, metadata
    )
    values (
        p_tenant, p_conversation_id, coalesce(p_branch, v_conversation.branch), v_conversation.last_seq, coalesce(p_message_id, llm._message_id()),
        v_conversation.user_id, p_role, v_content, coalesce(p_status, 'complete'), coalesce(p_is_pinned, false), p_token_count, p_cost::numeric,
        p_metadata
    )
    returning message_id, branch, seq, true
    into v_appended;
    if v_conversation.indexed_seq = v_conversation.last_seq - 1 then
        insert into llm.message_queue (tenant_id, conversation_id) values (p_tenant, p_conversation_id) on conflict do nothing;
    end if;
    return v_appended;
end
$$;

comment on function llm._append_message(text, uuid, text, text, text, uuid, integer, double precision, text, jsonb, boolean, bigint) is
'llm.append_message() for a tenant.';


-- security definer: as llm.create_conversation().
create function llm.append_message(
    p_conversation_id uuid,
    p_role            text,
    p_content         text default null,
    p_parts           text default null,
    p_message_id      uuid default null,
    p_token_count     integer default null,
    p_cost            double precision default null,
    p_status          text default 'complete',
    p_metadata        jsonb default null,
    p_is_pinned       boolean default false,
    p_branch          bigint default null,
    p_create          boolean default false
)
    returns llm.appended_message
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._conversation_tenant();
begin
    if p_create then
        perform llm._create_unless_there(v_tenant, p_conversation_id);
    end if;
    return llm._append_message(
        v_tenant, p_conversation_id, p_role, p_content, p_parts, p_message_id, p_token_count, p_cost, p_status, p_metadata,
        p_is_pinned, p_branch
    );
end
$$;

alter function llm.append_message(uuid, text, text, text, uuid, integer, double precision, text, jsonb, boolean, bigint, boolean) owner to llm_owner;

comment on function llm.append_message(uuid, text, text, text, uuid, integer, double precision, text, jsonb, boolean, bigint, boolean) is
'Appends a message and returns its id and number. p_conversation_id; p_role: user, assistant, system or tool; p_content: text, as llm.clean_text()
gives it where it may be odd; or p_parts: JSON text, a string or an array of parts, cleaned as by llm.clean_jsonb(); p_message_id: chosen by the
client, so that a repeated call appends nothing; p_token_count and p_cost: null when unknown; p_status: streaming for an answer that
llm.update_message() goes on with; p_metadata; p_is_pinned: always part of llm.context_window(); p_branch: by default that of the conversation;
p_create: whether a conversation of this id is begun when there is none, as by llm.create_conversation().
Errors: no_data_found for an unknown conversation or branch; invalid_parameter_value; unique_violation when the id is another message''s.';


-- security definer: as llm.create_conversation().
create function llm._appended_before(
    p_tenant          text,
    p_conversation_id uuid,
    p_message_id      uuid,
    p_role            text,
    p_content         jsonb
)
    returns llm.appended_message
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_message record;
begin
    -- Locked first, so that who appends it just now is waited for.
    perform from llm.conversations c
    where c.tenant_id = p_tenant
        and c.conversation_id = p_conversation_id
        and c.deleted_at is null
    for no key update;
    if not found then
        perform llm._refuse_conversation(p_conversation_id);
    end if;

    select m.conversation_id, m.branch, m.seq, m.role, m.content, m.updated_at
    into v_message
    from llm.messages m
    where m.tenant_id = p_tenant
        and m.message_id = p_message_id;
    if not found then
        return null;
    end if;
    if v_message.conversation_id <> p_conversation_id or v_message.role <> p_role
        or v_message.updated_at is null and v_message.content <> p_content
    then
        raise exception 'message % is not the one that was appended before', p_message_id
            using errcode = 'unique_violation',
                  hint = 'Give each message an id of its own; a repeated call repeats conversation, role and content.';
    end if;
    return (p_message_id, v_message.branch, v_message.seq, false)::llm.appended_message;
end
$$;

alter function llm._appended_before(text, uuid, uuid, text, jsonb) owner to llm_owner;

comment on function llm._appended_before(text, uuid, uuid, text, jsonb) is
'Locks a conversation and returns where the message of that id is, null when it is new. Errors: no_data_found; unique_violation when it is another.';


-- security definer: nobody else may delete messages for good.
create function llm._delete_messages()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    delete from llm.messages m where m.tenant_id = old.tenant_id and m.conversation_id = old.conversation_id;
    return null;
end
$$;

alter function llm._delete_messages() owner to llm_owner;

comment on function llm._delete_messages() is
'Trigger of llm.conversations: what is deleted for good takes its messages along.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_message_text', '_refuse_conversation'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    '_clean_json', '_create_unless_there'
);

select llm._grant_execute(
    array['llm_owner'],
    '_message_id', '_append_message', '_is_content', '_refuse_message', '_refuse_messages', '_appended_before'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    'append_message'
);
