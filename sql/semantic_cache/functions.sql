create type llm.semantic_answer as (
    answer         jsonb,
    similarity     double precision,
    prompt         text,
    entry_id       bigint,
    created_at     timestamptz,
    lookup_id      bigint,
    shadow_answer  jsonb
);

comment on type llm.semantic_answer is
'An answer from the semantic cache: what was answered to prompt, how similar that is (1: the same), and when. In shadow mode answer is null: ask the
model, compare with shadow_answer, and tell llm.semantic_cache_judge() of lookup_id.';


create function llm._add_semantic_embedding()
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
as $$
begin
    execute format('alter table %s add column if not exists embedding @extschema:vector@.vector storage main', 'llm.semantic_entries'::regclass);
end
$$;

comment on function llm._add_semantic_embedding() is
'Gives llm.semantic_entries its column of pgvector''s type, kept in the row where that fits.';


create function llm._semantic_scope(
    p_model      text,
    p_system     text,
    p_parameters jsonb,
    p_user_id    uuid
)
    returns bytea
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_model is null or octet_length(p_model) not between 1 and 200 then
        raise exception 'the name of a model has % bytes', coalesce(octet_length(p_model)::text, 'no')
            using errcode = 'invalid_parameter_value',
                  hint = 'It has 1 to 200. Answers of one model are not given for another''s.';
    end if;
    return sha256(convert_to(jsonb_build_array(p_model, coalesce(p_system, ''), coalesce(p_parameters, '{}'), p_user_id)::text, 'UTF8'));
end
$$;

comment on function llm._semantic_scope(text, text, jsonb, uuid) is
'A hash of what must be the same for an answer to be given again. p_user_id: null for what is shared. Errors: invalid_parameter_value.';


create function llm._check_semantic_prompt(
    p_tenant    text,
    p_scope     bytea,
    p_prompt    text,
    p_embedding @extschema:vector@.vector
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_dimensions integer;
begin
    if coalesce(p_prompt, '') = '' or octet_length(p_prompt) > 1048576 then
        raise exception 'the prompt has % bytes', coalesce(octet_length(p_prompt)::text, 'no')
            using errcode = 'invalid_parameter_value',
                  hint = 'A prompt has 1 byte to 1 MB.';
    end if;
    if p_embedding is null then
        return;
    end if;
    if @extschema:vector@.vector_norm(p_embedding) = 0 then
        raise exception 'the embedding of the prompt is zero'
            using errcode = 'invalid_parameter_value',
                  hint = 'It is like nothing. Embed the prompt again, or give null to find the very same prompt only.';
    end if;
    select @extschema:vector@.vector_dims(e.embedding)
    into v_dimensions
    from llm.semantic_entries e
    where e.tenant_id = p_tenant
        and e.scope = p_scope
        and e.embedding is not null
    limit 1;
    if v_dimensions <> @extschema:vector@.vector_dims(p_embedding) then
        raise exception 'the embedding of the prompt has % dimensions, those it is compared with have %',
            @extschema:vector@.vector_dims(p_embedding), v_dimensions
            using errcode = 'invalid_parameter_value',
                  hint = 'Embed with one model; to change it, name it in p_parameters: then its entries are others.';
    end if;
end
$$;

comment on function llm._check_semantic_prompt(text, bytea, text, @extschema:vector@.vector) is
'Refuses prompts and embeddings that cannot be compared. Errors: invalid_parameter_value.';


-- security definer: entries are written by functions alone, and what is shared may be another user's; tenant and scope are in each statement.
create function llm.semantic_cache_get(
    p_prompt     text,
    p_embedding  @extschema:vector@.vector,
    p_threshold  double precision,
    p_model      text,
    p_system     text default '',
    p_parameters jsonb default '{}',
    p_shared     boolean default false,
    p_shadow     boolean default false
)
    returns setof llm.semantic_answer
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._cache_tenant();
    v_scope  bytea := llm._semantic_scope(
        p_model, p_system, p_parameters, case when not coalesce(p_shared, false) then llm.current_user_id() end
    );
    v_found  record;
    v_lookup bigint;
begin
    if p_threshold is null or not (p_threshold > 0 and p_threshold <= 1) then
        raise exception 'answers cannot be found by a similarity of %', coalesce(p_threshold::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'A threshold is more than 0 and at most 1, the very same; llm.semantic_cache_report() tells how wrong each would be.';
    end if;
    if pg_is_in_recovery() then
        if p_shadow then
            raise exception 'a standby records no look-ups'
                using errcode = 'read_only_sql_transaction',
                      hint = 'Ask in shadow mode on the primary.';
        end if;
        return;
    end if;
    perform llm._check_semantic_prompt(v_tenant, v_scope, p_prompt, p_embedding);

    select e.id, e.prompt, e.answer, e.created_at, e.used_at, 1::double precision as similarity
    into v_found
    from llm.semantic_entries e
    where e.tenant_id = v_tenant
        and e.scope = v_scope
        and e.prompt_hash = sha256(convert_to(p_prompt, 'UTF8'))
        and llm._cache_is_live(e.tenant_id, e.expires_at, e.used_at, null::interval, e.depends_on, e.computed_in);
    if not found and p_embedding is not null then
        -- Of all entries that may be given: exact. llm.semantic_cache_set() keeps them few.
        select e.id, e.prompt, e.answer, e.created_at, e.used_at, least(1 - n.distance, 1) as similarity
        into v_found
        from (
            select o.id, o.embedding operator(@extschema:vector@.<=>) p_embedding as distance
            from llm.semantic_entries o
            where o.tenant_id = v_tenant
                and o.scope = v_scope
                and o.embedding is not null
                and llm._cache_is_live(o.tenant_id, o.expires_at, o.used_at, null::interval, o.depends_on, o.computed_in)
            order by distance, o.id
            limit 1
        ) n
        join llm.semantic_entries e
            on e.tenant_id = v_tenant
            and e.id = n.id;
    end if;

    if p_shadow then
        insert into llm.semantic_lookups (tenant_id, model, user_id, prompt, found, similarity)
        values (v_tenant, p_model, llm.current_user_id(), p_prompt, v_found.prompt, v_found.similarity)
        returning id into v_lookup;
        return next (null, v_found.similarity, v_found.prompt, v_found.id, v_found.created_at, v_lookup, v_found.answer)::llm.semantic_answer;
    elsif v_found.similarity >= p_threshold then
        if v_found.used_at < clock_timestamp() - interval '1 hour' and current_setting('transaction_read_only') = 'off' then
            update llm.semantic_entries e
            set used_at = clock_timestamp()
            where e.tenant_id = v_tenant
                and e.id = v_found.id;
        end if;
        return next (v_found.answer, v_found.similarity, v_found.prompt, v_found.id, v_found.created_at, null, null)::llm.semantic_answer;
    end if;
end
$$;

alter function llm.semantic_cache_get(text, @extschema:vector@.vector, double precision, text, text, jsonb, boolean, boolean) owner to llm_owner;

comment on function llm.semantic_cache_get(text, @extschema:vector@.vector, double precision, text, text, jsonb, boolean, boolean) is
'What a model answered to this prompt, or to the most similar one. p_prompt, p_embedding: what is asked; without an embedding only the very same
prompt is found; p_threshold: no answer to what is less similar (cosine similarity, more than 0 to 1); p_model, p_system, p_parameters: which model
is asked and how: answers are given to the very same of these only, of the current tenant, and of the user whom llm.set_user() told; p_shared: true
for answers that concern no user, and are given to all; p_shadow: true answers nothing, and records what it would have answered. Returns one row, or
none; in shadow mode always one. None on a standby. Errors: invalid_parameter_value; read_only_sql_transaction in shadow mode on a standby;
object_not_in_prerequisite_state without a tenant.';


-- security definer: as llm.semantic_cache_get().
create function llm.semantic_cache_set(
    p_prompt     text,
    p_embedding  @extschema:vector@.vector,
    p_answer     jsonb,
    p_model      text,
    p_system     text default '',
    p_parameters jsonb default '{}',
    p_shared     boolean default false,
    p_ttl        double precision default null,
    p_tags       text[] default null,
    p_depends_on text[] default null,
    p_token      text default null
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant   text := llm._cache_tenant();
    v_user_id  uuid := llm.current_user_id();
    v_scope    bytea := llm._semantic_scope(p_model, p_system, p_parameters, case when not coalesce(p_shared, false) then v_user_id end);
    v_words    integer[];
    v_computed pg_snapshot;
    v_id       bigint;
begin
    perform llm._check_semantic_prompt(v_tenant, v_scope, p_prompt, p_embedding);
    if p_answer is null or not coalesce(p_ttl > 0, true) then
        raise exception 'an answer of % cannot be kept for % seconds', coalesce(jsonb_typeof(p_answer), 'no type'), coalesce(p_ttl::text, 'all')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give an answer, and a time of more than 0 seconds, or null for ever. The JSON null is ''null''.';
    end if;
    if p_token is not null or cardinality(p_depends_on) > 0 then
        v_computed := llm._cache_computed_in(p_token);
        v_words := llm._cache_words(coalesce(p_depends_on, '{}'));
        if v_computed is null or not llm._cache_is_current(v_tenant, v_words, v_computed) then
            return null;
        end if;
    end if;
    insert into llm.semantic_entries (
        tenant_id, scope, model, user_id, prompt, prompt_hash, answer, embedding, tags, depends_on, computed_in, expires_at
    )
    values (
        v_tenant, v_scope, p_model, v_user_id, p_prompt, sha256(convert_to(p_prompt, 'UTF8')), p_answer, p_embedding, p_tags, v_words, v_computed,
        case when p_ttl < 1e9 then statement_timestamp() + make_interval(secs => p_ttl) else 'infinity' end
    )
    on conflict (tenant_id, scope, prompt_hash) do update
        set user_id = excluded.user_id,
            answer = excluded.answer,
            embedding = excluded.embedding,
            tags = excluded.tags,
            depends_on = excluded.depends_on,
            computed_in = excluded.computed_in,
            created_at = excluded.created_at,
            used_at = excluded.used_at,
            expires_at = excluded.expires_at
    returning id into v_id;
    if v_id % 16 = 0 then
        perform llm._evict_semantic(v_tenant, v_scope, 10000);
    end if;
    return v_id;
end
$$;

alter function llm.semantic_cache_set(
    text, @extschema:vector@.vector, jsonb, text, text, jsonb, boolean, double precision, text[], text[], text
) owner to llm_owner;

comment on function llm.semantic_cache_set(
    text, @extschema:vector@.vector, jsonb, text, text, jsonb, boolean, double precision, text[], text[], text
) is
'Keeps an answer for llm.semantic_cache_get(), in place of one to the same prompt. p_prompt, p_embedding, p_model, p_system, p_parameters, p_shared:
as there; p_answer: anything; p_ttl: for how many seconds, null for ever; p_tags: for llm.semantic_cache_invalidate(); p_depends_on, p_token: as for
llm.cache_set(): after llm.cache_bump() of one of these it is not given any more, nor kept if it was computed before. Of each model, system prompt
and parameters (and user) about 10,000 are kept, those used last. Returns its id, null when it was outdated already. Errors:
invalid_parameter_value; object_not_in_prerequisite_state without a tenant.';


create function llm._evict_semantic(
    p_tenant text,
    p_scope  bytea,
    p_kept   bigint
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_surplus bigint;
begin
    select count(*) - p_kept into v_surplus from llm.semantic_entries e where e.tenant_id = p_tenant and e.scope = p_scope;
    if v_surplus <= 0 then
        return 0;
    end if;
    -- Who evicts at the same time skips these, and finds them gone the next time. An array, because a join may ask for them several times.
    delete from llm.semantic_entries e
    where e.tenant_id = p_tenant
        and e.id = any (array(
            select o.id
            from llm.semantic_entries o
            where o.tenant_id = p_tenant
                and o.scope = p_scope
            order by o.expires_at < clock_timestamp() desc, o.used_at, o.id
            limit v_surplus
            for update skip locked
        ));
    get diagnostics v_surplus = row_count;
    return v_surplus;
end
$$;

comment on function llm._evict_semantic(text, bytea, bigint) is
'Deletes what is more than p_kept entries of a scope: expired ones, then those used longest ago. Returns how many.';


-- security definer: as llm.semantic_cache_get().
create function llm.semantic_cache_invalidate(
    p_tag   text default null,
    p_model text default null
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._cache_tenant();
    v_count  bigint;
begin
    if p_tag is null and p_model is null then
        raise exception 'it is not said which answers are to be forgotten'
            using errcode = 'invalid_parameter_value',
                  hint = 'Give p_tag, p_model, or both.';
    end if;
    delete from llm.semantic_entries e
    where e.tenant_id = v_tenant
        and (p_tag is null or e.tags @> array[p_tag])
        and (p_model is null or e.model = p_model)
        and (llm.current_user_id() is null or e.user_id = llm.current_user_id());
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

alter function llm.semantic_cache_invalidate(text, text) owner to llm_owner;

comment on function llm.semantic_cache_invalidate(text, text) is
'Forgets answers, of the current tenant, and of the user if one is set. p_tag: those with this tag; p_model: those of this model; both: which are
both. An answer that is being computed can still be put in: where that matters, use p_depends_on and llm.cache_bump(). Returns how many. Errors:
invalid_parameter_value; object_not_in_prerequisite_state without a tenant.';


-- security definer: lookups are written by functions alone; row-level security holds.
create function llm.semantic_cache_judge(
    p_lookup_id bigint,
    p_agreed    boolean
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._cache_tenant();
begin
    update llm.semantic_lookups l
    set agreed = p_agreed
    where l.tenant_id = v_tenant
        and l.id = p_lookup_id
        and l.found is not null;
    return found;
end
$$;

alter function llm.semantic_cache_judge(bigint, boolean) owner to llm_owner;

comment on function llm.semantic_cache_judge(bigint, boolean) is
'Tells whether what the cache would have answered in shadow mode was as good as the real answer. p_lookup_id: from llm.semantic_cache_get();
p_agreed: whether. Returns false when there is no such lookup of the current tenant, or it found nothing. Errors: object_not_in_prerequisite_state
without a tenant.';


create function llm.semantic_cache_report(
    p_model      text default null,
    p_since      interval default '30 days',
    p_thresholds double precision[] default '{0.8,0.85,0.9,0.92,0.94,0.95,0.96,0.97,0.98,0.99,1}'
)
    returns table (
        threshold double precision, lookups bigint, hits bigint, hit_rate double precision, judged bigint, wrong bigint,
        error_rate double precision
    )
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_tenant   text := llm.current_tenant();
begin
    return query
        select
            t.threshold, count(*), count(*) filter (where l.similarity >= t.threshold),
            count(*) filter (where l.similarity >= t.threshold)::double precision / count(*),
            count(l.agreed) filter (where l.similarity >= t.threshold),
            count(*) filter (where l.similarity >= t.threshold and not l.agreed),
            count(*) filter (where l.similarity >= t.threshold and not l.agreed)::double precision
                / nullif(count(l.agreed) filter (where l.similarity >= t.threshold), 0)
        from unnest(p_thresholds) t (threshold)
        cross join llm.semantic_lookups l
        where l.tenant_id = v_tenant
            and l.asked_at >= statement_timestamp() - p_since
            and (p_model is null or l.model = p_model)
        group by t.threshold
        order by t.threshold;
end
$$;

comment on function llm.semantic_cache_report(text, interval, double precision[]) is
'What the semantic cache would have done, by what it recorded in shadow mode: for each threshold how many lookups there were, how many it would have
answered (hits), how many of these were judged, and how many of them were wrong. p_model: only of this model; p_since: not older; p_thresholds:
which. error_rate is of those that were judged, null when none was. No rows when nothing was recorded.';


create procedure llm.expire_semantic_cache()
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    delete from llm.semantic_entries e where e.expires_at < clock_timestamp();
    delete from llm.semantic_lookups l where l.asked_at < clock_timestamp() - interval '90 days';
end
$$;

comment on procedure llm.expire_semantic_cache() is
'Deletes answers that are not given any more, and lookups of more than 90 days ago. Call it every hour: see llm.schedule_maintenance(). For
superusers.';


select llm._grant_execute(
    array['llm_owner'],
    '_add_semantic_embedding', '_semantic_scope', '_check_semantic_prompt', '_evict_semantic'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'semantic_cache_get', 'semantic_cache_set', 'semantic_cache_invalidate', 'semantic_cache_judge'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'semantic_cache_report'
);
