create type llm.search_recall as (
    collection      text,
    measured_at     timestamptz,
    source          text,
    is_filtered     boolean,
    queries         bigint,
    k               integer,
    ef              integer,
    plan            text,
    recall          double precision,
    standard_error  double precision,
    p50_ms          double precision,
    p95_ms          double precision,
    exact_p50_ms    double precision
);

comment on type llm.search_recall is
'How much of what is really nearest searches have found. source: what was searched for: queries, shifted, points; queries: how many; k: points that
each was to find; ef: as p_ef of llm.vector_search(); plan: as in llm.search_outcome, of the last one; recall: share of the k nearest that were found,
from 0 to 1, on average; standard_error: of that average, null for a single query; p50_ms, p95_ms: median and 95th percentile of a search''s time in
the server, exact_p50_ms: median when all points are compared.';

create type llm.search_tuning as (
    collection      text,
    target_recall   double precision,
    k               integer,
    ef_before       integer,
    ef_search       integer,
    recall          double precision,
    standard_error  double precision,
    p50_ms          double precision,
    p95_ms          double precision,
    measured        integer,
    is_met          boolean,
    reason          text
);

comment on type llm.search_tuning is
'What llm.tune_collection() came to. ef_before, ef_search: the collection''s setting before and now; recall and times: as in llm.search_recall, with
the ef that was found; measured: how many were tried; is_met: whether the target was met; reason: why ef_search stays, if it does.';

create type llm.search_evaluation as (
    collection   text,
    measured_at  timestamptz,
    method       text,
    queries      bigint,
    k            integer,
    hit_rate     double precision,
    mrr          double precision,
    ndcg         double precision,
    missing      bigint,
    p50_ms       double precision,
    p95_ms       double precision
);

comment on type llm.search_evaluation is
'How well labelled queries were answered by a method: vector, text or hybrid. hit_rate: share of queries with a relevant point among the first k; mrr:
mean of 1 / rank of the first relevant one, 0 where there is none; ndcg: mean of the discounted cumulative gain, sum of grade / log2(rank + 1), as a
share of the best possible; missing: relevant points that the collection does not have; p50_ms, p95_ms: median and 95th percentile of a search''s time
in the server.';


-- What is wanted

-- security definer: writers of the table must not be able to raise words as they please.
create function llm._search_quality_coherence()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op <> 'INSERT' then
        perform llm._coherence_raise('collections'::text, array[old.collection], pg_current_xact_id());
    end if;
    if tg_op = 'DELETE' then
        return old;
    end if;
    perform llm._coherence_raise('collections'::text, array[new.collection], pg_current_xact_id());
    return new;
end
$$;

alter function llm._search_quality_coherence() owner to llm_owner;

comment on function llm._search_quality_coherence() is
'Trigger of llm.search_quality: what backends keep of a collection is no longer valid.';


-- security definer: the table is llm_owner''s.
create function llm.set_search_quality(
    p_collection    text,
    p_target_recall double precision default null,
    p_k             integer default null,
    p_logged_share  double precision default null
)
    returns table (target_recall double precision, k integer, logged_share double precision)
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_collection llm.collection := llm._find_collection(p_collection);
    v_old        record;
begin
    if not (coalesce(p_target_recall, 0) between 0 and 1 and coalesce(p_k, 1) between 1 and 1000 and coalesce(p_logged_share, 0) between 0 and 1) then
        raise exception 'searches cannot be measured by target_recall %, k %, logged_share %', p_target_recall, p_k, p_logged_share
            using errcode = 'invalid_parameter_value',
                  hint = 'Recall and share are 0 to 1, k is 1 to 1,000; what is null stays as it is.';
    end if;
    insert into llm.search_quality (collection) values (v_collection.name) on conflict do nothing;
    select q.target_recall, q.k, q.logged_share into v_old from llm.search_quality q where q.collection = v_collection.name for no key update;
    target_recall := coalesce(p_target_recall, v_old.target_recall);
    k := coalesce(p_k, v_old.k);
    logged_share := coalesce(p_logged_share, v_old.logged_share);
    if row(target_recall, k, logged_share) is distinct from row(v_old.target_recall, v_old.k, v_old.logged_share) then
        update llm.search_quality q
        set target_recall = set_search_quality.target_recall,
            k = set_search_quality.k,
            logged_share = set_search_quality.logged_share,
            updated_at = clock_timestamp()
        where q.collection = v_collection.name;
        perform llm.log_audit_event(
            'set_search_quality'::text, 'collection'::text, v_collection.name, null::jsonb, session_user::text, null::jsonb, to_jsonb(v_old),
            jsonb_build_object('target_recall', target_recall, 'k', k, 'logged_share', logged_share), null::text, 'llm_auditor'::text
        );
    end if;
    return next;
end
$$;

alter function llm.set_search_quality(text, double precision, integer, double precision) owner to llm_owner;

comment on function llm.set_search_quality(text, double precision, integer, double precision) is
'Says what is wanted of a collection''s searches; what is null stays. p_target_recall: the recall of p_k points below which llm.doctor() complains, 0
for none; p_logged_share: of the queries'' vectors, kept for llm.vector_recall(), 0 for none. Returns what holds now; a change is an audit event.
Errors: undefined_object when there is no such collection; invalid_parameter_value.';


create function llm._log_query(
    p_collection text,
    p_embedding  text,
    p_tenant     text,
    p_user_id    uuid
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_read_only')::boolean then
        return;
    end if;
    insert into llm.search_queries (tenant_id, collection, user_id, embedding)
    values (p_tenant, p_collection, p_user_id, p_embedding);
    if random() < 0.01 then
        delete from llm.search_queries d
        where d.tenant_id = p_tenant
            and d.collection = p_collection
            and d.query_id = any (array(
                select q.query_id
                from llm.search_queries q
                where q.tenant_id = p_tenant
                    and q.collection = p_collection
                order by q.query_id desc
                offset 1000
                for update skip locked
            ));
    end if;
end
$$;

comment on function llm._log_query(text, text, text, uuid) is
'Keeps a query''s vector, unless the transaction is read-only; and now and then drops all but the newest 1,000.';


-- Recall

-- security definer: the measurements are written by functions alone. Tenant and user are asked for as by llm._vector_search().
create function llm._vector_recall(
    p_collection text,
    p_sample     integer,
    p_k          integer,
    p_ef         integer,
    p_filter     jsonb,
    p_source     text,
    p_tenant     text,
    p_user_id    uuid
)
    returns setof llm.search_recall
    language plpython3u
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import search_quality
return search_quality.recall(p_collection, p_sample, p_k, p_ef, p_filter, p_source, p_tenant, p_user_id)
$$;

alter function llm._vector_recall(text, integer, integer, integer, jsonb, text, text, uuid) owner to llm_owner;

comment on function llm._vector_recall(text, integer, integer, integer, jsonb, text, text, uuid) is
'llm.vector_recall(), told whose points are searched.';


create function llm.vector_recall(
    p_collection text,
    p_sample     integer default 100,
    p_k          integer default 10,
    p_ef         integer default null,
    p_filter     jsonb default null,
    p_source     text default null
)
    returns setof llm.search_recall
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select r.*
        from llm._vector_recall(p_collection, p_sample, p_k, p_ef, p_filter, p_source, llm._claimed_tenant(), llm.current_user_id()) r;
end
$$;

comment on function llm.vector_recall(text, integer, integer, integer, jsonb, text) is
'Measures what searches of the current tenant, and of the user if one is set, find of what is really nearest: searches for a sample of vectors, then
compares all points with each. Returns one row, and keeps it: llm.recall_history. p_sample: how many vectors, up to 10,000; p_k: points to find,
up to 1,000; p_ef: as in llm.vector_search(), by default ef_search of the collection; p_filter: as there; p_source: queries, those that were logged
(llm.set_search_quality()); shifted, vectors of points chosen at random, moved as far as their p_k-th neighbour is; points, these vectors as they
are, where a point does not count itself; null for queries if there are p_sample, else shifted. Errors: as llm.vector_search(); no_data_found when
there is nothing to measure with.';


-- security definer: as llm._vector_recall().
create function llm._measure_tuning(
    p_collection    text,
    p_target_recall double precision,
    p_sample        integer,
    p_k             integer,
    p_source        text,
    p_tenant        text,
    p_user_id       uuid
)
    returns setof llm.search_tuning
    language plpython3u
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import search_quality
return search_quality.tuning(p_collection, p_target_recall, p_sample, p_k, p_source, p_tenant, p_user_id)
$$;

alter function llm._measure_tuning(text, double precision, integer, integer, text, text, uuid) owner to llm_owner;

comment on function llm._measure_tuning(text, double precision, integer, integer, text, text, uuid) is
'Finds the ef_search that llm.tune_collection() stores.';


create function llm.tune_collection(
    p_collection    text,
    p_target_recall double precision default 0.95,
    p_sample        integer default 200,
    p_k             integer default 10,
    p_source        text default null
)
    returns setof llm.search_tuning
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tuning llm.search_tuning;
begin
    select t.*
    into strict v_tuning
    from llm._measure_tuning(p_collection, p_target_recall, p_sample, p_k, p_source, llm._claimed_tenant(), llm.current_user_id()) t;
    perform llm.set_search_quality(p_collection, p_target_recall, p_k, null::double precision);
    if v_tuning.ef_search <> v_tuning.ef_before then
        perform llm.alter_collection(
            p_collection, null::text, null::integer, null::integer, null::integer, v_tuning.ef_search, null::bigint, null::bigint, null::bigint,
            null::double precision, null::jsonb, null::boolean, null::text
        );
        perform llm.log_audit_event(
            'tune'::text, 'collection'::text, p_collection, to_jsonb(v_tuning), session_user::text, null::jsonb,
            jsonb_build_object('ef_search', v_tuning.ef_before), jsonb_build_object('ef_search', v_tuning.ef_search), null::text, 'llm_auditor'::text
        );
    end if;
    return next v_tuning;
end
$$;

comment on function llm.tune_collection(text, double precision, integer, integer, text) is
'Finds the smallest ef_search with which recall is at least p_target_recall, less one standard error, by measuring as llm.vector_recall() does, for
the current tenant: choose one with many points. Stores it in the collection, for all tenants (its version is raised, an audit event tells of it), and
p_target_recall as the collection''s target. Where it cannot be had, ef_search stays and reason says why. p_target_recall: more than 0, up to 1; the
rest and errors as llm.vector_recall(). For llm_admin.';


-- Labelled queries

-- security definer: as llm._vector_recall().
create function llm._evaluate_search(
    p_collection text,
    p_labelled   jsonb,
    p_k          integer,
    p_fusion     text,
    p_rrf_k      double precision,
    p_weights    double precision[],
    p_ef         integer,
    p_note       text,
    p_tenant     text,
    p_user_id    uuid
)
    returns setof llm.search_evaluation
    language plpython3u
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import search_quality
return search_quality.evaluate(p_collection, p_labelled, p_k, p_fusion, p_rrf_k, p_weights, p_ef, p_note, p_tenant, p_user_id)
$$;

alter function llm._evaluate_search(
    text, jsonb, integer, text, double precision, double precision[], integer, text, text, uuid
) owner to llm_owner;

comment on function llm._evaluate_search(text, jsonb, integer, text, double precision, double precision[], integer, text, text, uuid) is
'llm.evaluate_search(), told whose points are searched.';


create function llm.evaluate_search(
    p_collection text,
    p_labelled   jsonb default null,
    p_k          integer default 10,
    p_table      regclass default null,
    p_fusion     text default 'rrf',
    p_rrf_k      double precision default 2,
    p_weights    double precision[] default '{1,1,1}',
    p_ef         integer default null,
    p_note       text default null
)
    returns setof llm.search_evaluation
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_labelled jsonb := p_labelled;
begin
    if (p_labelled is null) = (p_table is null) then
        raise exception 'labelled queries are given neither as an array nor as a table, or as both'
            using errcode = 'invalid_parameter_value',
                  hint = 'Give p_labelled, or p_table.';
    end if;
    if p_table is not null then
        execute format('select coalesce(jsonb_agg(to_jsonb(labelled.*)), ''[]'') from %s labelled', p_table) into v_labelled;
    end if;
    return query
        select e.*
        from llm._evaluate_search(
            p_collection, v_labelled, p_k, p_fusion, p_rrf_k, p_weights, p_ef, p_note, llm._claimed_tenant(), llm.current_user_id()
        ) e;
end
$$;

comment on function llm.evaluate_search(text, jsonb, integer, regclass, text, double precision, double precision[], integer, text) is
'Answers queries whose relevant points are known, by vector, by text (llm.hybrid_search() without a vector) and by both, as far as the queries have
text and vectors; returns a row for each method, best nDCG first, and keeps it in llm.search_evaluations. p_labelled: an array of objects with query
(text), vector (numbers, or as the type vector is written), relevant (an array of ids; or an object of ids with grades from 0, for not relevant);
or p_table: a table with such columns. p_k: how many of the found points count, up to 1,000; p_fusion, p_rrf_k, p_weights, p_ef: as in
llm.hybrid_search(); p_note: kept with it. Errors: invalid_parameter_value names the element that is wrong, and nothing is kept; else as
llm.hybrid_search().';


-- security definer: collections are looked at whosever points they have.
create function llm._doctor_search_quality()
    returns table (name text, ok boolean, detail text, hint text)
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_wrong text;
begin
    if to_regclass('llm.search_quality') is null then
        return;
    end if;
    select string_agg(
        format('%s for tenant %s: %s of %s with ef_search %s', l.collection, l.tenant_id, round(l.recall::numeric, 3), l.target_recall, l.ef), ', '
        order by l.collection, l.tenant_id
    )
    into v_wrong
    from (
        select distinct on (m.collection, m.tenant_id)
            m.collection, m.tenant_id, m.recall, m.standard_error, m.ef, q.target_recall
        from llm.search_quality q
        join llm.collections c on c.name = q.collection
        join llm.recall_measurements m on m.collection = q.collection and m.k = q.k and m.ef = c.ef_search and not m.is_filtered
        order by m.collection, m.tenant_id, m.measurement_id desc
    ) l
    where l.recall + coalesce(l.standard_error, 0) < l.target_recall;
    return query select
        'searches find what they should',
        v_wrong is null,
        coalesce(v_wrong, 'recall is not below its target where it was measured'),
        'Run for that tenant: select * from llm.tune_collection(collection, target); if it cannot be met, raise m and ef_construction.';
end
$$;

alter function llm._doctor_search_quality() owner to llm_owner;

comment on function llm._doctor_search_quality() is
'The part of llm.doctor() about the recall of searches.';


select llm._grant_execute(
    array['llm_owner'],
    '_log_query'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    '_vector_recall', 'vector_recall', '_evaluate_search', 'evaluate_search'
);

select llm._grant_execute(
    array['llm_admin'],
    'set_search_quality', '_measure_tuning', 'tune_collection'
);

select llm._grant_execute(
    array['llm_admin', 'llm_auditor'],
    '_doctor_search_quality'
);
