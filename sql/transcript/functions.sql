create function llm._read_transcript(
    p_elements text,
    p_shape    text
)
    returns jsonb
    language plpython3u
    immutable
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import transcript
return transcript.read(p_elements, p_shape)
$$;

comment on function llm._read_transcript(text, text) is
'The messages of a transcript: role, content, and keep: whether the element says more than they do. p_elements: a JSON array; p_shape: openai,
anthropic or langchain. Errors: invalid_parameter_value, with the index of the element that is malformed.';


create function llm._write_transcript(
    p_messages text,
    p_shape    text
)
    returns jsonb
    language plpython3u
    immutable
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import transcript
return transcript.write(p_messages, p_shape)
$$;

comment on function llm._write_transcript(text, text) is
'For each message, an array of what it is in a shape. p_messages: a JSON array of objects with role and content. Errors: invalid_parameter_value.';


create function llm.import_conversation(
    p_transcript      text,
    p_shape           text default 'openai',
    p_title           text default null,
    p_user_id         uuid default null,
    p_session_id      uuid default null,
    p_conversation_id uuid default null
)
    returns uuid
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_document jsonb := llm._clean_json(p_transcript);
    v_elements jsonb := v_document;
    v_frame    jsonb;
    v_system   jsonb := '[]';
    v_messages jsonb;
    v_id       uuid;
begin
    if jsonb_typeof(v_document) = 'object' then
        v_elements := v_document -> 'messages';
        v_frame := v_document - 'messages';
    end if;
    if jsonb_typeof(v_elements) is distinct from 'array' then
        raise exception 'the transcript has no array of messages'
            using errcode = 'invalid_parameter_value',
                  detail = format('It begins with %s.', left(coalesce(v_document::text, 'null'), 100)),
                  hint = 'Give an array of messages, or an object with one under messages.';
    end if;
    -- Anthropic's system prompt stands apart; among the messages it is the first.
    if p_shape = 'anthropic' and v_frame ? 'system' then
        v_system := jsonb_build_array(jsonb_build_object('role', 'system', 'content', v_frame -> 'system'));
        v_frame := v_frame - 'system';
    end if;
    v_messages := v_system || llm._read_transcript(v_elements::text, p_shape);

    v_id := llm.create_conversation(
        p_title, p_user_id, p_session_id, '{}'::text[], '{}'::jsonb, '{}'::jsonb,
        jsonb_build_object('transcript', jsonb_build_object('shape', p_shape, 'frame', v_frame)),
        p_conversation_id
    );
    if (llm.get_conversation(v_id)).last_seq > 0 then
        raise exception 'conversation % has messages already', v_id
            using errcode = 'unique_violation',
                  hint = 'A transcript becomes a conversation of its own: give another p_conversation_id, or none.';
    end if;
    perform llm._append_messages(
        v_id,
        (
            select coalesce(jsonb_agg(
                m.value - 'keep' || case
                    when (m.value -> 'keep')::boolean
                        then jsonb_build_object('metadata', jsonb_build_object('original', jsonb_build_object(
                            'shape', p_shape, 'element', v_elements -> (m.number - 1)::integer - jsonb_array_length(v_system)
                        )))
                    else '{}'
                end
                order by m.number
            ), '[]')
            from jsonb_array_elements(v_messages) with ordinality m (value, number)
        ),
        null::bigint
    );
    return v_id;
end
$$;

comment on function llm.import_conversation(text, text, text, uuid, uuid, uuid) is
'Makes a conversation of a transcript, and returns its id. p_transcript: JSON text, cleaned as by llm.clean_jsonb(): an array of messages, or an
object that has one under messages; p_shape: openai (chat completions), anthropic (messages, with system) or langchain (messages_to_dict());
p_title, p_user_id, p_session_id, p_conversation_id: as for llm.create_conversation(). Exported in the same shape it is the same document.
Errors: invalid_parameter_value, with the index of the element at fault, from 0: nothing is stored then; as llm.create_conversation().';


create function llm.export_conversation(
    p_conversation_id uuid,
    p_shape           text default 'openai',
    p_branch          bigint default null
)
    returns jsonb
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_frame    jsonb := (llm.get_conversation(p_conversation_id)).metadata -> 'transcript';
    v_messages jsonb;
    v_written  jsonb;
    v_system   jsonb;
begin
    select coalesce(jsonb_agg(
        jsonb_build_object('role', m.role, 'content', m.content, 'original', m.metadata -> 'original') order by m.seq
    ), '[]')
    into v_messages
    from llm.get_messages(p_conversation_id, null::bigint, null::bigint, null::bigint, p_branch) m;
    v_written := llm._write_transcript(v_messages::text, p_shape);

    -- What was imported in this shape and says more than the message stands for itself, digit by digit.
    select coalesce(jsonb_agg(e.value order by m.number, e.number), '[]')
    into v_written
    from jsonb_array_elements(v_messages) with ordinality m (value, number)
    cross join lateral jsonb_array_elements(case
        when m.value #>> '{original,shape}' = p_shape then jsonb_build_array(m.value #> '{original,element}')
        else v_written -> (m.number - 1)::integer
    end) with ordinality e (value, number);

    v_frame := case when v_frame ->> 'shape' = p_shape then v_frame -> 'frame' when p_shape = 'anthropic' then '{}' end;
    if p_shape = 'anthropic' and jsonb_typeof(v_frame) = 'object' then
        select
            case
                when count(*) = 1 then jsonb_agg(e.value -> 'content') -> 0
                else jsonb_path_query_array(jsonb_agg(case jsonb_typeof(e.value -> 'content')
                    when 'string' then jsonb_build_array(jsonb_build_object('type', 'text', 'text', e.value -> 'content'))
                    else e.value -> 'content'
                end), '$[*][*]')
            end
        into v_system
        from jsonb_array_elements(v_written) e
        where e.value ->> 'role' = 'system'
        having count(*) > 0;
        v_written := jsonb_path_query_array(v_written, '$[*] ? (@.role != "system")');
        v_frame := v_frame || case when v_system is null then '{}' else jsonb_build_object('system', v_system) end;
    end if;
    return case when jsonb_typeof(v_frame) = 'object' then v_frame || jsonb_build_object('messages', v_written) else v_written end;
end
$$;

comment on function llm.export_conversation(uuid, text, bigint) is
'A conversation as a transcript. p_shape: openai, anthropic or langchain; p_branch: by default that of the conversation. The result is an array of
messages, an object with system and messages for anthropic; what was imported in that shape comes back as it was. Where shapes differ: one message
with several results of tools is several in openai and langchain; anthropic has all system messages in system.
Errors: invalid_parameter_value for another shape; no_data_found for an unknown conversation or branch.';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'export_conversation', '_write_transcript'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'import_conversation', '_read_transcript'
);
