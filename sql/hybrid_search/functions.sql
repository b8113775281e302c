create type llm.hybrid_hit as (
    id              text,
    score           double precision,
    vector_rank     integer,
    vector_score    double precision,
    words_rank      integer,
    words_score     double precision,
    spelling_rank   integer,
    spelling_score  double precision,
    content         text,
    payload         jsonb,
    user_id         uuid
);

comment on type llm.hybrid_hit is
'A point that llm.hybrid_search() found. score: what the fusion gave it; of each leg its rank there, from 1 on, and its score, null where that leg has
not found it. vector_score: as in llm.search_hit; words_score: the sum over the query''s words of how rare a word is, times ts_rank; spelling_score:
word_similarity of pg_trgm.';


-- security definer: only who may read a table may ask what is estimated of it. Volatile, because EXPLAIN is allowed in no other function.
create function llm._estimated_rows(
    p_collection text,
    p_words      text[]
)
    returns double precision[]
    language plpython3u
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    set max_parallel_workers_per_gather = 0
as $$
from pg_llm import hybrid_search
return hybrid_search.estimated_rows(p_collection, p_words)
$$;

alter function llm._estimated_rows(text, text[]) owner to llm_owner;

comment on function llm._estimated_rows(text, text[]) is
'About how many points a collection has, of all tenants, and how many of them have each word, by the server''s statistics.';


-- security definer: as llm._vector_search().
create function llm._hybrid_search(
    p_collection text,
    p_query      text,
    p_vector     @extschema:vector@.vector,
    p_k          integer,
    p_filter     jsonb,
    p_fusion     text,
    p_rrf_k      double precision,
    p_weights    double precision[],
    p_candidates integer,
    p_ef         integer,
    p_tenant     text,
    p_user_id    uuid
)
    returns llm.hybrid_hit[]
    language plpython3u
    stable
    security definer
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set enable_sort = off
    set jit = off
    set hnsw.iterative_scan = relaxed_order
    set hnsw.max_scan_tuples = 1000
    set hnsw.ef_search = 40
    set ivfflat.iterative_scan = relaxed_order
    set ivfflat.probes = 1
as $$
from pg_llm import hybrid_search
return hybrid_search.search(
    p_collection, p_query, p_vector, p_k, p_filter, p_fusion, p_rrf_k, p_weights, p_candidates, p_ef, p_tenant, p_user_id
)
$$;

alter function llm._hybrid_search(
    text, text, @extschema:vector@.vector, integer, jsonb, text, double precision, double precision[], integer, integer, text, uuid
) owner to llm_owner;

comment on function llm._hybrid_search(
    text, text, @extschema:vector@.vector, integer, jsonb, text, double precision, double precision[], integer, integer, text, uuid
) is
'llm.hybrid_search(), told whose points are searched.';


create function llm.hybrid_search(
    p_collection text,
    p_query      text,
    p_vector     @extschema:vector@.vector default null,
    p_k          integer default 10,
    p_filter     jsonb default null,
    p_fusion     text default 'rrf',
    p_rrf_k      double precision default 2,
    p_weights    double precision[] default '{1,1,1}',
    p_candidates integer default 50,
    p_ef         integer default null
)
    returns setof llm.hybrid_hit
    language plpgsql
    stable
    rows 10
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select h.*
        from unnest((select llm._hybrid_search(
            p_collection, p_query, p_vector, p_k, p_filter, p_fusion, p_rrf_k, p_weights, p_candidates, p_ef, llm._claimed_tenant(),
            llm.current_user_id()
        ))) h;
end
$$;

comment on function llm.hybrid_search(
    text, text, @extschema:vector@.vector, integer, jsonb, text, double precision, double precision[], integer, integer
) is
'The points of the current tenant, and of the user if one is set, that are best by three legs together: nearest to a vector; with the query''s words,
the rare ones above all; and, of those found so, spelled like the query. p_query: text, null for the vector alone; p_vector: the embedded text, null
for the words alone; p_k: how many, up to 1,000; p_filter: as in llm.vector_search(); p_fusion: rrf adds 1 / (p_rrf_k + rank) of each leg, dbsf
their scores, brought to the same mean and deviation; p_weights: of vector, words and spelling, 0 leaves one out; p_candidates: points that each leg
brings, up to 1,000; p_ef: as in llm.vector_search(). Words are found in collections with text_indexed. Errors: as llm.vector_search().';


select llm._grant_execute(
    array['llm_owner'],
    '_estimated_rows'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_hybrid_search'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    'hybrid_search'
);
