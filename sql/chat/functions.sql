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
        from jsonb_path_query(p_content, '$[*].keyvalue() ? (@.key == "text" || @.key == "content").value ? (@.type() == "string")') with ordinality t (value, number)
    );
end
$$;

comment on function llm._message_text(jsonb) is
'The text in the content of a message: the string, or the texts of its parts and the results of its tools, a line each.';


-- security definer: nobody else may delete messages.
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
    '_message_text'
);
