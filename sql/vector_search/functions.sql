create type llm.batch_hit as (
    query     integer,
    id        text,
    score     double precision,
    distance  double precision,
    content   text,
    payload   jsonb,
    user_id   uuid
);

comment on type llm.batch_hit is
'As llm.search_hit. query: which of the queries found it, from 1 on.';

create type llm.group_hit as (
    group_value  jsonb,
    rank         integer,
    id           text,
    score        double precision,
    distance     double precision,
    content      text,
    payload      jsonb,
    user_id      uuid
);

comment on type llm.group_hit is
'As llm.search_hit. group_value: what the group has in common; rank: in the group, from 1 on.';

create type llm.search_outcome as (
    collection         text,
    requested          integer,
    returned           integer,
    matching           bigint,
    matching_is_exact  boolean,
    plan               text,
    ef                 integer,
    segments           integer,
    unindexed          bigint,
    reason             text
);

comment on type llm.search_outcome is
'How a search was done. matching: how many points match, exactly, now, or else at least so many then; plan: exact (all points were compared),
filtered_exact (all that match), hnsw or ivfflat, these with _iterative (an index, asked for more until enough matched), bit_rerank (an index of
signs, then vectors), none (p_k was 0); ef: candidates of an index, for ivfflat its probes; segments: indexes that were asked; unindexed: points with
a vector that no index has, now; reason: why fewer were returned than requested.';


create function llm._planned_search(
    p_collection      text,
    p_query           @extschema:vector@.vector,
    p_k               integer,
    p_filter          jsonb,
    p_score_threshold double precision,
    p_ef              integer,
    p_exact           boolean,
    p_with_payload    boolean,
    p_tenant          text,
    p_user_id         uuid
)
    returns llm.search_hit[]
    language plpython3u
    stable
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import vector_search
return vector_search.search(
    p_collection, p_query, p_k, p_filter, p_score_threshold, p_ef, p_exact, p_with_payload, p_tenant, p_user_id
)
$$;

comment on function llm._planned_search(
    text, @extschema:vector@.vector, integer, jsonb, double precision, integer, boolean, boolean, text, uuid
) is
'llm._vector_search(), whatever is asked for.';


-- As an array: settings would be set anew for each row of a set.
-- security definer: row-level security would keep the server from using indexes; tenant and user are asked for here.
create function llm._vector_search(
    p_collection      text,
    p_query           @extschema:vector@.vector,
    p_k               integer,
    p_filter          jsonb,
    p_score_threshold double precision,
    p_ef              integer,
    p_exact           boolean,
    p_with_payload    boolean,
    p_tenant          text,
    p_user_id         uuid
)
    returns llm.search_hit[]
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set enable_sort = off
    set jit = off
    set hnsw.iterative_scan = off
    set hnsw.max_scan_tuples = 1000
    set hnsw.ef_search = 40
    set ivfflat.iterative_scan = off
    set ivfflat.probes = 1
as $$
declare
    v_search text;
    v_hits   llm.search_hit[];
begin
    if p_filter is null and p_user_id is null and p_score_threshold is null and p_exact is not true and p_with_payload is not false
        and @extschema:vector@.vector_norm(p_query) between 1e-3 and 1e15
    then
        v_search := llm._written_search(p_collection, @extschema:vector@.vector_dims(p_query), p_k, p_ef, p_tenant);
        if v_search is not null then
            v_hits := llm._nearest(p_query, p_tenant, p_k::bigint, v_search);
            if cardinality(v_hits) = p_k then
                return v_hits;
            end if;
        end if;
    end if;
    return llm._planned_search(p_collection, p_query, p_k, p_filter, p_score_threshold, p_ef, p_exact, p_with_payload, p_tenant, p_user_id);
end
$$;

alter function llm._vector_search(
    text, @extschema:vector@.vector, integer, jsonb, double precision, integer, boolean, boolean, text, uuid
) owner to llm_owner;

comment on function llm._vector_search(
    text, @extschema:vector@.vector, integer, jsonb, double precision, integer, boolean, boolean, text, uuid
) is
'llm.vector_search(), told whose points are searched: p_tenant is believed as far as any role may set it.';


create function llm.vector_search(
    p_collection      text,
    p_query           @extschema:vector@.vector,
    p_k               integer default 10,
    p_filter          jsonb default null,
    p_score_threshold double precision default null,
    p_ef              integer default null,
    p_exact           boolean default false,
    p_with_payload    boolean default true
)
    returns setof llm.search_hit
    language sql
    stable
    rows 10
as $$
    select h.id, h.score, h.distance, h.content, h.payload, h.user_id
    from pg_catalog.unnest((select llm._vector_search(
        p_collection, p_query, p_k, p_filter, p_score_threshold, p_ef, p_exact, p_with_payload, llm._claimed_tenant(), llm.current_user_id()
    ))) h
$$;

comment on function llm.vector_search(
    text, @extschema:vector@.vector, integer, jsonb, double precision, integer, boolean, boolean
) is
'The points of the current tenant, and of the user if one is set, that are nearest to a vector, nearest first: as many as were asked for whenever so
many match; llm.search_report() says how they were found, and why there are fewer. p_query: of the collection''s dimensions; p_k: how many, up to
10,000; p_filter: which, see llm.matches_filter(); p_score_threshold: only those with at least this score; p_ef: candidates of an HNSW index, 1 to
1,000, by default ef_search of the collection: more find more of the nearest, and take longer; p_exact: true compares all; p_with_payload: false
leaves content and payload out. Errors: undefined_object, invalid_parameter_value, object_not_in_prerequisite_state when no tenant is set.';


-- security definer: as llm._vector_search().
create function llm._search_batch(
    p_collection      text,
    p_queries         @extschema:vector@.vector[],
    p_k               integer,
    p_filter          jsonb,
    p_score_threshold double precision,
    p_ef              integer,
    p_exact           boolean,
    p_with_payload    boolean,
    p_tenant          text,
    p_user_id         uuid
)
    returns llm.batch_hit[]
    language plpython3u
    stable
    security definer
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set enable_sort = off
    set jit = off
    set hnsw.iterative_scan = off
    set hnsw.max_scan_tuples = 1000
    set hnsw.ef_search = 40
    set ivfflat.iterative_scan = off
    set ivfflat.probes = 1
as $$
from pg_llm import vector_search
return vector_search.search_batch(
    p_collection, p_queries, p_k, p_filter, p_score_threshold, p_ef, p_exact, p_with_payload, p_tenant, p_user_id
)
$$;

alter function llm._search_batch(
    text, @extschema:vector@.vector[], integer, jsonb, double precision, integer, boolean, boolean, text, uuid
) owner to llm_owner;

comment on function llm._search_batch(
    text, @extschema:vector@.vector[], integer, jsonb, double precision, integer, boolean, boolean, text, uuid
) is
'llm.search_batch(), told whose points are searched.';


create function llm.search_batch(
    p_collection      text,
    p_queries         @extschema:vector@.vector[],
    p_k               integer default 10,
    p_filter          jsonb default null,
    p_score_threshold double precision default null,
    p_ef              integer default null,
    p_exact           boolean default false,
    p_with_payload    boolean default true
)
    returns setof llm.batch_hit
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select h.*
        from unnest((select llm._search_batch(
            p_collection, p_queries, p_k, p_filter, p_score_threshold, p_ef, p_exact, p_with_payload, llm._claimed_tenant(), llm.current_user_id()
        ))) h;
end
$$;

comment on function llm.search_batch(
    text, @extschema:vector@.vector[], integer, jsonb, double precision, integer, boolean, boolean
) is
'llm.vector_search() for several vectors at once. query: which of them, from 1 on. Arguments and errors: as there.';


-- security definer: as llm._vector_search().
create function llm._recommend(
    p_collection      text,
    p_positive        text[],
    p_negative        text[],
    p_k               integer,
    p_filter          jsonb,
    p_score_threshold double precision,
    p_ef              integer,
    p_tenant          text,
    p_user_id         uuid
)
    returns llm.search_hit[]
    language plpython3u
    stable
    security definer
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set enable_sort = off
    set jit = off
    set hnsw.iterative_scan = off
    set hnsw.max_scan_tuples = 1000
    set hnsw.ef_search = 40
    set ivfflat.iterative_scan = off
    set ivfflat.probes = 1
as $$
from pg_llm import vector_search
return vector_search.recommend(
    p_collection, p_positive, p_negative, p_k, p_filter, p_score_threshold, p_ef, p_tenant, p_user_id
)
$$;

alter function llm._recommend(text, text[], text[], integer, jsonb, double precision, integer, text, uuid) owner to llm_owner;

comment on function llm._recommend(text, text[], text[], integer, jsonb, double precision, integer, text, uuid) is
'llm.recommend(), told whose points are searched.';


create function llm.recommend(
    p_collection      text,
    p_positive        text[],
    p_negative        text[] default '{}',
    p_k               integer default 10,
    p_filter          jsonb default null,
    p_score_threshold double precision default null,
    p_ef              integer default null
)
    returns setof llm.search_hit
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select h.*
        from unnest((select llm._recommend(
            p_collection, p_positive, p_negative, p_k, p_filter, p_score_threshold, p_ef, llm._claimed_tenant(), llm.current_user_id()
        ))) h;
end
$$;

comment on function llm.recommend(text, text[], text[], integer, jsonb, double precision, integer) is
'Points like some, and unlike others: nearest to the mean vector of p_positive, moved away from that of p_negative by their difference. p_positive,
p_negative: ids of points, which are not among those returned; the rest and errors as llm.vector_search(), and no_data_found for an example that
does not exist or has no vector.';


-- security definer: as llm._vector_search().
create function llm._search_groups(
    p_collection text,
    p_query      @extschema:vector@.vector,
    p_group_by   text,
    p_groups     integer,
    p_group_size integer,
    p_filter     jsonb,
    p_tenant     text,
    p_user_id    uuid
)
    returns llm.group_hit[]
    language plpython3u
    stable
    security definer
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set enable_sort = off
    set jit = off
    set hnsw.iterative_scan = off
    set hnsw.max_scan_tuples = 1000
    set hnsw.ef_search = 40
    set ivfflat.iterative_scan = off
    set ivfflat.probes = 1
as $$
from pg_llm import vector_search
return vector_search.search_groups(p_collection, p_query, p_group_by, p_groups, p_group_size, p_filter, p_tenant, p_user_id)
$$;

alter function llm._search_groups(text, @extschema:vector@.vector, text, integer, integer, jsonb, text, uuid) owner to llm_owner;

comment on function llm._search_groups(text, @extschema:vector@.vector, text, integer, integer, jsonb, text, uuid) is
'llm.search_groups(), told whose points are searched.';


create function llm.search_groups(
    p_collection text,
    p_query      @extschema:vector@.vector,
    p_group_by   text,
    p_groups     integer default 10,
    p_group_size integer default 3,
    p_filter     jsonb default null
)
    returns setof llm.group_hit
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select h.*
        from unnest((select llm._search_groups(
            p_collection, p_query, p_group_by, p_groups, p_group_size, p_filter, llm._claimed_tenant(), llm.current_user_id()
        ))) h;
end
$$;

comment on function llm.search_groups(text, @extschema:vector@.vector, text, integer, integer, jsonb) is
'The nearest points of each of the groups with the nearest points, as of the documents whose chunks are points. p_group_by: key of the payload whose
value, a string, a number, true or false, is the group; a point with several is in each; p_groups, p_group_size: how many at most, up to 100. Groups
are looked for among the 10,000 nearest points. Groups come by their nearest point; rank: of a point in its group, from 1 on. The rest and errors:
as llm.vector_search().';


-- security definer: as llm._vector_search().
create function llm._search_report(
    p_tenant  text,
    p_user_id uuid
)
    returns setof llm.search_outcome
    language plpython3u
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import vector_search
return vector_search.report(p_tenant, p_user_id)
$$;

alter function llm._search_report(text, uuid) owner to llm_owner;

comment on function llm._search_report(text, uuid) is
'llm.search_report(), told whose search it was.';


create function llm.search_report()
    returns setof llm.search_outcome
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query select r.* from llm._search_report(llm._claimed_tenant(), llm.current_user_id()) r;
end
$$;

comment on function llm.search_report() is
'How the last search of this session was done, and why it returned fewer points than were asked for, if it did. No row when the tenant or the user has
not searched since, or another did.';


-- security definer: as llm._vector_search().
create function llm._matching_points(
    p_collection text,
    p_filter     jsonb,
    p_after      text,
    p_limit      bigint,
    p_tenant     text,
    p_user_id    uuid
)
    returns text[]
    language plpython3u
    stable
    security definer
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    set enable_seqscan = off
    set jit = off
as $$
from pg_llm import vector_search
return vector_search.matching_points(p_collection, p_filter, p_after, p_limit, p_tenant, p_user_id)
$$;

alter function llm._matching_points(text, jsonb, text, bigint, text, uuid) owner to llm_owner;

comment on function llm._matching_points(text, jsonb, text, bigint, text, uuid) is
'The ids of points that match a filter, in their order. p_after: those after this one; p_limit: at most so many, null for all.';


-- security definer: as llm._vector_search().
create function llm._count_matching(
    p_collection text,
    p_filter     jsonb,
    p_tenant     text,
    p_user_id    uuid
)
    returns bigint
    language plpython3u
    stable
    security definer
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    set enable_seqscan = off
    set jit = off
as $$
from pg_llm import vector_search
return vector_search.count_points(p_collection, p_filter, p_tenant, p_user_id)
$$;

alter function llm._count_matching(text, jsonb, text, uuid) owner to llm_owner;

comment on function llm._count_matching(text, jsonb, text, uuid) is
'How many points match a filter.';


select llm._grant_execute(
    array['llm_owner'],
    '_planned_search'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_vector_search', 'vector_search', '_search_batch', '_recommend', '_search_groups', '_search_report', '_matching_points', '_count_matching'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'search_batch', 'recommend', 'search_groups', 'search_report'
);
