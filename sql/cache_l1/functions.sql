-- Not pinned: inlined into the caller's query, fully qualified.
create function llm.cache_get_l1(
    p_key       text,
    p_namespace text default 'default'
)
    returns jsonb
    language sql
    volatile
as $$
    select coalesce(llm._cached_entry(p_key, p_namespace, llm._claimed_tenant()), llm.cache_get(p_key, p_namespace))
$$;

comment on function llm.cache_get_l1(text, text) is
'llm.cache_get(), answered from this backend''s own memory where that holds the entry, and never with less than what had committed before: for
namespaces that are read much more often than written. Backends keep what was set while the policy of the namespace had p_l1, unless it depends on
anything or may be idle. Reads that a backend answers itself do not count as uses.';


create function llm._cached_entry(
    p_key       text,
    p_namespace text,
    p_tenant    text
)
    returns jsonb
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import cache_l1
return cache_l1.get(p_key, p_namespace, p_tenant)
$$;

comment on function llm._cached_entry(text, text, text) is
'An entry of the cache by this backend''s own, filled if need be; null when the table is to be asked. p_tenant: llm._claimed_tenant().';


-- security definer: entries are read by functions only.
create function llm._cache_entry_to_keep(
    p_key       text,
    p_namespace text,
    out tenant_id  text,
    out value      text,
    out expires_at double precision
)
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    tenant_id := llm._owners_tenant();
    if not pg_is_in_recovery() then
        -- What is longer is parsed more slowly than it is read. The size as stored first: the text of a huge value is never made.
        select c.value::text, extract(epoch from c.expires_at)::double precision
        into value, expires_at
        from llm.cache_live c
        where c.namespace = p_namespace
            and c.key = p_key
            and c.l1
            and pg_column_size(c.value) <= 4000
            and octet_length(c.value::text) <= 4000;
    end if;
end
$$;

alter function llm._cache_entry_to_keep(text, text) owner to llm_owner;

comment on function llm._cache_entry_to_keep(text, text) is
'What a backend may keep of an entry: the tenant that it was read for, its JSON, and when it expires, in seconds since 1970; null when it may keep
nothing.';


-- security definer: writers of a cached table must not be able to raise words as they please.
create function llm._cache_coherence()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_row record := coalesce(new, old);
begin
    perform llm._coherence_raise('cache'::text, array[v_row.tenant_id, v_row.namespace, v_row.key], pg_current_xact_id());
    return v_row;
end
$$;

alter function llm._cache_coherence() owner to llm_owner;

comment on function llm._cache_coherence() is
'Trigger of llm.cache_entries: tells backends that an entry changes which they may keep.';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'cache_get_l1', '_cached_entry', '_cache_entry_to_keep'
);
