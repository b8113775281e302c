create type llm.memory as (
    tenant_id   text,
    memory_id   uuid,
    scope       text,
    owner       text,
    user_id     uuid,
    subject     text,
    predicate   text,
    value       jsonb,
    content     text,
    many        boolean,
    metadata    jsonb,
    source      jsonb,
    valid_from  timestamptz,
    valid_to    timestamptz,
    known_from  timestamptz,
    known_to    timestamptz
);

comment on type llm.memory is
'A fact: predicate of subject is value, for the owner of a scope (user, agent, conversation); content says it in words; many: the predicate has many
values at a time. It holds from valid_from until before valid_to, and that was believed from known_from until before known_to; null: without beginning
or end.';


-- Writing

create function llm._check_memory(
    p_fact llm.memory
)
    returns void
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_fact.scope is null or p_fact.scope not in ('user', 'agent', 'conversation') then
        raise exception 'a fact cannot be remembered for scope %', coalesce(quote_literal(p_fact.scope), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Scopes are user, agent and conversation.';
    end if;
    if p_fact.owner is null or octet_length(p_fact.owner) not between 1 and 200
        or p_fact.predicate is null or octet_length(p_fact.predicate) not between 1 and 200
        or octet_length(p_fact.subject) > 200
    then
        raise exception 'owner, subject and predicate of a fact have %, % and % bytes', coalesce(octet_length(p_fact.owner)::text, 'no'),
            coalesce(octet_length(p_fact.subject)::text, 'no'), coalesce(octet_length(p_fact.predicate)::text, 'no')
            using errcode = 'invalid_parameter_value',
                  hint = 'Owner and predicate have 1 to 200 bytes, the subject at most 200.';
    end if;
    if p_fact.scope = 'user' and p_fact.user_id::text is distinct from p_fact.owner then
        raise exception 'the owner of a user''s fact is %, not the user''s id', quote_literal(p_fact.owner)
            using errcode = 'invalid_parameter_value',
                  hint = 'For scope user the owner is the id of the user, a UUID in lower case with hyphens.';
    end if;
    if p_fact.value is null then
        raise exception 'the value of % is null', p_fact.predicate
            using errcode = 'null_value_not_allowed',
                  hint = 'To say that a fact no longer holds call llm.end_memory(). The JSON null is ''null''.';
    end if;
    if octet_length(p_fact.content) > 65536 then
        raise exception 'the content of a fact has % bytes', octet_length(p_fact.content)
            using errcode = 'program_limit_exceeded',
                  hint = 'A fact has at most 65536: what is longer belongs to a message or a document, which p_source can name.';
    end if;
end
$$;

comment on function llm._check_memory(llm.memory) is
'Refuses what the constraints of llm.memories would, in the user''s words. Errors: invalid_parameter_value, null_value_not_allowed,
program_limit_exceeded.';


create function llm._supersede_memory(
    p_tenant text,
    p_old    uuid,
    p_valid  tstzrange,
    p_at     timestamptz
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    update llm.memories m
    set known = tstzrange(lower(m.known), p_at)
    where m.tenant_id = p_tenant
        and m.memory_id = p_old;
    insert into llm.memories (tenant_id, scope, owner, user_id, subject, predicate, value, content, many, metadata, source, valid, known)
    select
        m.tenant_id, m.scope, m.owner, m.user_id, m.subject, m.predicate, m.value, m.content, m.many, m.metadata, m.source, r.valid,
        tstzrange(p_at, null)
    from llm.memories m
    cross join lateral unnest(tstzmultirange(m.valid) - tstzmultirange(p_valid)) r (valid)
    where m.tenant_id = p_tenant
        and m.memory_id = p_old;
end
$$;

comment on function llm._supersede_memory(text, uuid, tstzrange, timestamptz) is
'Ends at p_at that a fact is believed to hold within p_valid; that it holds outside of it is believed on.';


create function llm._known_after(
    p_tenant text,
    p_fact   llm.memory
)
    returns timestamptz
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- Two clocks, of a server and of the standby that took over, may differ.
    return greatest(
        clock_timestamp(),
        (
            select max(coalesce(upper(m.known), lower(m.known) + interval '1 microsecond'))
            from llm.memories m
            where m.tenant_id = p_tenant
                and m.scope = p_fact.scope
                and m.owner = p_fact.owner
                and m.subject = p_fact.subject
                and m.predicate = p_fact.predicate
        )
    );
end
$$;

comment on function llm._known_after(text, llm.memory) is
'Now, but after all that was ever believed of a predicate.';


create function llm._remember(
    p_tenant  text,
    p_fact    llm.memory,
    p_replace boolean
)
    returns llm.memory
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_valid  tstzrange;
    v_is_cut boolean := false;
    v_at     timestamptz;
    v_old    record;
    v_new    uuid;
    v_fact   llm.memory;
begin
    p_fact.subject := coalesce(p_fact.subject, '');
    p_fact.many := coalesce(p_fact.many, false);
    p_fact.user_id := case
        when p_fact.user_id is not null then p_fact.user_id
        when p_fact.scope is distinct from 'user' then llm.current_user_id()
        when p_fact.owner ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then p_fact.owner::uuid
    end;
    p_fact.content := coalesce(p_fact.content, p_fact.predicate || ': ' || coalesce(p_fact.value #>> '{}', 'null'));
    perform llm._check_memory(p_fact);
    if coalesce(p_fact.valid_from, clock_timestamp()) >= coalesce(p_fact.valid_to, 'infinity') then
        raise exception 'a fact cannot hold from % until %', coalesce(p_fact.valid_from::text, 'now'), coalesce(p_fact.valid_to::text, 'ever')
            using errcode = 'invalid_parameter_value',
                  hint = 'It ends after it begins; without p_valid_from it begins now.';
    end if;

    for v_try in 1 .. 100 loop
        -- Where an old fact was cut already, the new one begins, or there would be a gap.
        if not v_is_cut then
            v_valid := tstzrange(nullif(coalesce(p_fact.valid_from, clock_timestamp()), '-infinity'), nullif(p_fact.valid_to, 'infinity'));
        end if;
        v_at := null;
        for v_old in
            select m.memory_id, m.valid, m.value, m.content, m.many, m.user_id, m.metadata, m.source
            from llm.memories m
            where m.tenant_id = p_tenant
                and m.scope = p_fact.scope
                and m.owner = p_fact.owner
                and m.subject = p_fact.subject
                and m.predicate = p_fact.predicate
                and upper(m.known) is null
                and m.valid && v_valid
                and not (m.many and p_fact.many and m.value <> p_fact.value)
            order by m.memory_id
            for update
        loop
            if v_old.many <> p_fact.many then
                raise exception 'predicate % has % at a time', p_fact.predicate, case when v_old.many then 'many values' else 'one value' end
                    using errcode = 'invalid_parameter_value',
                          detail = format('Memory %s says so.', v_old.memory_id),
                          hint = 'Say so in p_many, or forget what is known of it.';
            end if;
            if v_old.valid @> v_valid
                and (v_old.value, v_old.content) = (p_fact.value, p_fact.content)
                and (v_old.user_id, v_old.metadata, v_old.source) is not distinct from (
                    coalesce(p_fact.user_id, v_old.user_id), coalesce(p_fact.metadata, v_old.metadata), coalesce(p_fact.source, v_old.source)
                )
            then
                v_new := v_old.memory_id;
                exit;
            end if;
            if not coalesce(p_replace, true) then
                raise exception '% is known already', p_fact.predicate
                    using errcode = 'exclusion_violation',
                          detail = format('Memory %s says otherwise, or at another time.', v_old.memory_id),
                          hint = 'Leave p_replace true to have the new value take its place.';
            end if;
            v_at := coalesce(v_at, llm._known_after(p_tenant, p_fact));
            perform llm._supersede_memory(p_tenant, v_old.memory_id, v_valid, v_at);
            v_is_cut := true;
        end loop;
        exit when v_new is not null;

        insert into llm.memories (tenant_id, scope, owner, user_id, subject, predicate, value, content, many, metadata, source, valid, known)
        values (
            p_tenant, p_fact.scope, p_fact.owner, p_fact.user_id, p_fact.subject, p_fact.predicate, p_fact.value, p_fact.content, p_fact.many,
            p_fact.metadata, p_fact.source, v_valid, tstzrange(coalesce(v_at, llm._known_after(p_tenant, p_fact)), null)
        )
        on conflict do nothing
        returning memory_id into v_new;
        -- None when another session has just remembered some of it: now that can be seen, unless it is of a user who is hidden from this one.
        exit when v_new is not null;
    end loop;
    if v_new is null then
        raise exception '% is known already, of another user', p_fact.predicate
            using errcode = 'exclusion_violation',
                  hint = 'Give each user a p_subject or an owner of his own, or work for nobody: select llm.set_user(null).';
    end if;

    select f.* into v_fact from llm.memory_facts f where f.tenant_id = p_tenant and f.memory_id = v_new;
    return v_fact;
end
$$;

comment on function llm._remember(text, llm.memory, boolean) is
'The part of llm.remember() that writes.';


create function llm.remember(
    p_scope      text,
    p_owner      text,
    p_predicate  text,
    p_value      jsonb,
    p_subject    text default '',
    p_content    text default null,
    p_user_id    uuid default null,
    p_valid_from timestamptz default null,
    p_valid_to   timestamptz default null,
    p_many       boolean default false,
    p_replace    boolean default true,
    p_metadata   jsonb default null,
    p_source     jsonb default null
)
    returns llm.memory
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._writable_tenant();
begin
    return llm._remember(
        v_tenant,
        row(v_tenant, null::uuid, p_scope, p_owner, p_user_id, p_subject, p_predicate, p_value, p_content, p_many,
            p_metadata, p_source, p_valid_from, p_valid_to, null::timestamptz, null::timestamptz)::llm.memory,
        p_replace
    );
end
$$;

comment on function llm.remember(text, text, text, jsonb, text, text, uuid, timestamptz, timestamptz, boolean, boolean, jsonb, jsonb) is
'Remembers a fact, in place of what contradicts it. p_scope: user, agent or conversation; p_owner: the id of that; p_predicate: which property,
p_subject: of what, '''' for the owner; p_value: what it is; p_content: the same in words, for search; p_user_id: whom it concerns, by default the
user who owns it or whom llm.set_user() told; p_valid_from, p_valid_to: when it holds (inclusive, exclusive), null for now and for ever, -infinity for
always; p_many: whether the predicate has many values at a time; p_replace: false refuses what contradicts; p_metadata, p_source: anything else, and
where it is from. What is known already is not written again. Returns the fact. Errors: exclusion_violation without p_replace, or for what is known of
another user than llm.set_user() told; invalid_parameter_value, null_value_not_allowed, program_limit_exceeded; object_not_in_prerequisite_state.';


create function llm.remember_all(
    p_facts   jsonb,
    p_replace boolean default true
)
    returns setof llm.memory
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._writable_tenant();
    v_fact   record;
    v_done   llm.memory[] := '{}';
begin
    if jsonb_typeof(p_facts) is distinct from 'array' or p_facts @? 'strict $[*] ? (@.type() != "object")' then
        raise exception 'these are not facts: %', left(coalesce(p_facts::text, 'null'), 40)
            using errcode = 'invalid_parameter_value',
                  hint = 'Give an array of objects with the names of llm.remember()''s arguments, without p_.';
    end if;
    -- In the order of their keys, so that two batches wait for each other instead of deadlocking.
    for v_fact in
        select
            e.position,
            row(v_tenant, null, f.scope, f.owner, f.user_id, f.subject, f.predicate, e.fact -> 'value', f.content,
                f.many, nullif(e.fact -> 'metadata', 'null'), nullif(e.fact -> 'source', 'null'), f.valid_from, f.valid_to, null, null
            )::llm.memory as fact
        from jsonb_array_elements(p_facts) with ordinality e (fact, position)
        cross join lateral jsonb_to_record(e.fact) f (
            scope text, owner text, user_id uuid, subject text, predicate text, content text, many boolean, valid_from timestamptz,
            valid_to timestamptz
        )
        order by f.scope collate "C", f.owner collate "C", coalesce(f.subject, '') collate "C", f.predicate collate "C", e.position
    loop
        v_done[v_fact.position] := llm._remember(v_tenant, v_fact.fact, p_replace);
    end loop;
    return query select d.* from unnest(v_done) d;
end
$$;

comment on function llm.remember_all(jsonb, boolean) is
'Remembers many facts at once, all or none. p_facts: an array of objects with the names of llm.remember()''s arguments, without p_; p_replace: as
there. Returns the facts, in the order of the array. Errors: as llm.remember().';


create function llm._memory_to_change(
    p_tenant    text,
    p_memory_id uuid
)
    returns llm.memory
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_fact llm.memory;
begin
    perform from llm.memories m where m.tenant_id = p_tenant and m.memory_id = p_memory_id for update;
    select f.* into v_fact from llm.memory_facts f where f.tenant_id = p_tenant and f.memory_id = p_memory_id;
    if v_fact.memory_id is null then
        raise exception 'memory % does not exist', coalesce(p_memory_id::text, 'null')
            using errcode = 'no_data_found',
                  hint = 'llm.list_memories() lists what is known.';
    end if;
    return v_fact;
end
$$;

comment on function llm._memory_to_change(text, uuid) is
'A fact, locked. Errors: no_data_found.';


create function llm.update_memory(
    p_memory_id uuid,
    p_value     jsonb,
    p_content   text default null,
    p_metadata  jsonb default null,
    p_source    jsonb default null
)
    returns llm.memory
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._writable_tenant();
    v_fact   llm.memory := llm._memory_to_change(v_tenant, p_memory_id);
    v_from   timestamptz;
begin
    if v_fact.known_to is not null or v_fact.valid_to <= clock_timestamp() then
        raise exception 'memory % is a thing of the past', p_memory_id
            using errcode = 'serialization_failure',
                  hint = 'Another change came first. See llm.memory_history(), decide again, and update what is known now.';
    end if;
    v_from := greatest(clock_timestamp(), v_fact.valid_from);
    if v_fact.many and v_fact.value <> p_value then
        perform llm._supersede_memory(v_tenant, p_memory_id, tstzrange(v_from, v_fact.valid_to), llm._known_after(v_tenant, v_fact));
    end if;
    return llm._remember(
        v_tenant,
        row(v_tenant, null::uuid, v_fact.scope, v_fact.owner, v_fact.user_id, v_fact.subject, v_fact.predicate, p_value, p_content, v_fact.many,
            coalesce(p_metadata, v_fact.metadata), coalesce(p_source, v_fact.source), v_from, v_fact.valid_to, null::timestamptz, null::timestamptz
        )::llm.memory,
        true
    );
end
$$;

comment on function llm.update_memory(uuid, jsonb, text, jsonb, jsonb) is
'Gives a fact another value from now on. p_memory_id: the fact as it was seen; p_value, p_content: the new value, also in words; p_metadata, p_source:
null keeps the present ones. Returns the new fact, which has an id of its own. Errors: serialization_failure when the fact is no longer what is known;
no_data_found when there is none; as llm.remember().';


create function llm.end_memory(
    p_memory_id uuid,
    p_at        timestamptz default null
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._writable_tenant();
    v_fact   llm.memory := llm._memory_to_change(v_tenant, p_memory_id);
    v_end    timestamptz := coalesce(p_at, clock_timestamp());
begin
    if v_fact.known_to is not null or coalesce(v_fact.valid_to, 'infinity') <= v_end then
        return false;
    end if;
    perform llm._supersede_memory(v_tenant, p_memory_id, tstzrange(v_end, null), llm._known_after(v_tenant, v_fact));
    return true;
end
$$;

comment on function llm.end_memory(uuid, timestamptz) is
'Says that a fact no longer holds, though it did. p_memory_id: the fact; p_at: since when, null for now. Returns false when that was known.
Errors: no_data_found when there is none.';


create function llm.forget_memory(
    p_memory_id uuid,
    p_erase     boolean default false
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._writable_tenant();
    v_fact   llm.memory := llm._memory_to_change(v_tenant, p_memory_id);
begin
    if p_erase then
        delete from llm.memories m where m.tenant_id = v_tenant and m.memory_id = p_memory_id;
        return true;
    end if;
    if v_fact.known_to is not null then
        return false;
    end if;
    perform llm._supersede_memory(v_tenant, p_memory_id, tstzrange(null, null), llm._known_after(v_tenant, v_fact));
    return true;
end
$$;

comment on function llm.forget_memory(uuid, boolean) is
'Takes a fact back: from now on it is not believed to have ever held. p_memory_id: the fact; p_erase: true deletes this row of it, so that not even
history tells. Returns false when it was taken back before. Errors: no_data_found when there is none.';


create function llm.forget_memories(
    p_scope     text,
    p_owner     text,
    p_subject   text default null,
    p_predicate text default null,
    p_erase     boolean default false
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._writable_tenant();
    v_count  bigint := 0;
    v_fact   record;
begin
    if p_scope is null or p_owner is null then
        raise exception 'it is not said whose memories are to be forgotten'
            using errcode = 'invalid_parameter_value',
                  hint = 'Give p_scope and p_owner. llm.forget_user() forgets all that concerns a user.';
    end if;
    for v_fact in
        select m.memory_id
        from llm.memories m
        where m.tenant_id = v_tenant
            and m.scope = p_scope
            and m.owner = p_owner
            and (p_subject is null or m.subject = p_subject)
            and (p_predicate is null or m.predicate = p_predicate)
            and (p_erase or upper(m.known) is null)
        order by m.subject, m.predicate, m.memory_id
        for update
    loop
        v_count := v_count + llm.forget_memory(v_fact.memory_id, p_erase)::integer;
    end loop;
    return v_count;
end
$$;

comment on function llm.forget_memories(text, text, text, text, boolean) is
'llm.forget_memory() for all facts of an owner. p_scope, p_owner: whose; p_subject, p_predicate: which, null for all; p_erase: true deletes them with
their history. Returns how many rows. Errors: invalid_parameter_value without an owner.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    '_check_memory', '_supersede_memory', '_known_after', '_remember', '_memory_to_change', 'remember', 'remember_all',
    'update_memory', 'end_memory', 'forget_memory', 'forget_memories'
);
