create type llm.search_hit as (
    id        text,
    score     double precision,
    distance  double precision,
    content   text,
    payload   jsonb,
    user_id   uuid
);

comment on type llm.search_hit is
'A point that a search found. score: cosine similarity, dot product, or the negative distance by l2 and l1: the higher the nearer; distance: as
pgvector''s operator gives it, of inner_product the negative dot product.';


-- security definer: as llm._vector_search(), which alone calls it; llm_owner must own what it writes anew.
create function llm._nearest(
    p_query  @extschema:vector@.vector,
    p_tenant text,
    p_k      bigint,
    p_search text
)
    returns llm.search_hit[]
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    return null;
end
$$;

alter function llm._nearest(@extschema:vector@.vector, text, bigint, text) owner to llm_owner;

comment on function llm._nearest(@extschema:vector@.vector, text, bigint, text) is
'The search that most ask for, of a tenant''s points without a filter, in a branch for each collection: PL/pgSQL keeps its plans, and values need not
go through Python. llm._write_searches() writes it whenever collections change. p_search: the name of a branch, a digest of its statement. Null when
there is no such branch: then llm._planned_search() does it.';


create function llm._searches()
    returns text
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import search_plan
return search_plan.all_written()
$$;

comment on function llm._searches() is
'The branches of llm._nearest().';


create function llm._write_searches()
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_nearest  regprocedure := 'llm._nearest(@extschema:vector@.vector, text, bigint, text)'::regprocedure;
    v_branches text;
    v_body     text;
begin
    -- One writes at a time, and the last one sees what all others have written.
    perform pg_advisory_xact_lock(hashtextextended('llm._write_searches', 0));
    v_branches := llm._searches();
    v_body := case
        when v_branches = '' then E'\nbegin\n    return null;\nend\n'
        else format(E'\nbegin\n    case p_search\n%s        else\n            return null;\n    end case;\nend\n', v_branches)
    end;
    if v_body <> (select p.prosrc from pg_proc p where p.oid = v_nearest) then
        execute format(
            'create or replace function llm._nearest(p_query %s, p_tenant text, p_k bigint, p_search text) returns llm.search_hit[] '
            'language plpgsql stable security definer set search_path = pg_catalog, pg_temp as %L',
            '@extschema:vector@.vector'::regtype, v_body
        );
    end if;
end
$$;

comment on function llm._write_searches() is
'Writes llm._nearest() anew, if collections have changed.';


-- security definer: who may change collections need not own the function that is written.
create function llm._collections_changed()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm._write_searches();
    return null;
end
$$;

alter function llm._collections_changed() owner to llm_owner;

comment on function llm._collections_changed() is
'Trigger: has searches written anew.';


create function llm._written_search(
    p_collection text,
    p_dimensions integer,
    p_k          integer,
    p_ef         integer,
    p_tenant     text
)
    returns text
    language plpython3u
    stable
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import vector_search
return vector_search.written(p_collection, p_dimensions, p_k, p_ef, p_tenant)
$$;

comment on function llm._written_search(text, integer, integer, integer, text) is
'Which branch of llm._nearest() to take, or null if none.';


select llm._grant_execute(
    array['llm_owner'],
    '_searches', '_write_searches', '_written_search'
);
