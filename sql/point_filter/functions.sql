create function llm.matches_filter(
    p_payload    jsonb,
    p_filter     jsonb,
    p_id         text default null,
    p_has_vector boolean default null
)
    returns boolean
    language plpython3u
    stable
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
as $$
from pg_llm import point_filter
return point_filter.matches(p_payload, p_filter, p_id, p_has_vector)
$$;

comment on function llm.matches_filter(jsonb, jsonb, text, boolean) is
'Whether a payload matches a filter, as in llm.vector_search(). p_payload: an object; p_filter: must, should, must_not, min_should with conditions
match, range, geo_bounding_box, geo_radius, geo_polygon, values_count, is_empty, is_null, has_id, has_vector, nested (docs/point_filter.md), null
matches all; p_id: the id that has_id is about; p_has_vector: what has_vector is about, null is no. Errors: invalid_parameter_value names the place
in the filter that is wrong; program_limit_exceeded.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    'matches_filter'
);
