-- security definer: writers of the table must not be able to raise words as they please.
create function llm._collection_aliases_coherence()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op <> 'INSERT' then
        perform llm._coherence_raise('collection_alias'::text, array[old.alias], pg_current_xact_id());
    end if;
    if tg_op = 'DELETE' then
        return old;
    end if;
    perform llm._coherence_raise('collection_alias'::text, array[new.alias], pg_current_xact_id());
    return new;
end
$$;

alter function llm._collection_aliases_coherence() owner to llm_owner;

comment on function llm._collection_aliases_coherence() is
'Trigger of llm.collection_aliases: what backends keep of an alias is no longer valid.';


create function llm._refuse_alias_as_name()
    returns trigger
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from llm.collection_aliases a where a.alias = new.name) then
        raise exception 'a collection cannot be called %, which is an alias', new.name
            using errcode = 'duplicate_object',
                  hint = 'Choose another name, or take the alias away: select llm.set_collection_alias(…, null);';
    end if;
    return new;
end
$$;

comment on function llm._refuse_alias_as_name() is
'Trigger of llm.collections: a name is a collection''s or an alias.';


-- security definer: the table is written by functions alone.
create function llm.set_collection_alias(
    p_alias      text,
    p_collection text
)
    returns text
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready   boolean := llm._require_storage();
    v_collection llm.collection;
    v_before     text := (select a.collection from llm.collection_aliases a where a.alias = p_alias);
begin
    if p_collection is null then
        delete from llm.collection_aliases a where a.alias = p_alias;
        return v_before;
    end if;
    v_collection := llm._find_collection(p_collection);
    if p_alias is null or p_alias !~ '^[a-z][a-z0-9_]{0,39}$' then
        raise exception 'an alias cannot be called %', coalesce(quote_literal(left(p_alias, 100)), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'A name is 1 to 40 lower-case letters, digits and underscores, and begins with a letter.';
    end if;
    -- Nobody makes a collection of this name meanwhile.
    lock table llm.collections in share row exclusive mode;
    if exists (select from llm.collections c where c.name = p_alias) then
        raise exception 'alias % is the name of a collection', p_alias
            using errcode = 'duplicate_object',
                  hint = 'Choose a name that no collection has; applications use it instead of the collection''s.';
    end if;
    insert into llm.collection_aliases as a (alias, collection)
    values (p_alias, v_collection.name)
    on conflict (alias) do update
        set collection = excluded.collection,
            set_at = now();
    return v_before;
end
$$;

alter function llm.set_collection_alias(text, text) owner to llm_owner;

comment on function llm.set_collection_alias(text, text) is
'Lets a name lead to a collection, wherever points are written, read and searched: when the transaction commits, for everybody at once. p_alias: a
name that no collection has; p_collection: a collection or another alias, which is followed now; null takes the alias away. Returns where it led
before, null if it is new. Errors: undefined_object when there is no such collection; invalid_parameter_value; duplicate_object.';


select llm._grant_execute(
    array['llm_admin'],
    'set_collection_alias'
);
