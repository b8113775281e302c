create function llm._coherence_raise(
    p_namespace   text,
    p_key         text[],
    p_transaction xid8
)
    returns boolean
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import coherence
return coherence.raise_word(p_namespace, p_key, int(p_transaction))
$$;

comment on function llm._coherence_raise(text, text[], xid8) is
'Tells every backend that a cached row is about to change. For triggers: see docs/coherence.md. p_namespace: the cache; p_key: the row''s
key there; p_transaction: the writer, pg_current_xact_id(). Returns true: to assign that costs a third of perform.';


create function llm._coherence_raise_all()
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm._coherence_raise_every_word(pg_current_xact_id());
end
$$;

comment on function llm._coherence_raise_all() is
'Tells every backend that anything cached may change.';


create function llm._coherence_raise_every_word(
    p_transaction xid8
)
    returns void
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import coherence
coherence.raise_every_word(int(p_transaction))
$$;

comment on function llm._coherence_raise_every_word(xid8) is
'The Python side of llm._coherence_raise_all().';


create function llm._newest_transaction()
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- Volatile, so that in READ COMMITTED the snapshot is a new one; in other modes it can be old, but an id just assigned is the newest.
    if current_setting('transaction_isolation') = 'read committed' then
        return pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1;
    end if;
    if pg_current_xact_id_if_assigned() is null then
        return pg_current_xact_id()::text::bigint - 1;
    end if;
    return null;
end
$$;

comment on function llm._newest_transaction() is
'The newest transaction id of other transactions at this moment, or null when this transaction cannot know it: it is not in READ COMMITTED and
has written already.';


-- security definer: writers of a cached table must not be able to raise words as they please.
create function llm._coherence_truncate()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm._coherence_raise_all();
    return null;
end
$$;

alter function llm._coherence_truncate() owner to llm_owner;

comment on function llm._coherence_truncate() is
'Trigger for TRUNCATE of a cached table.';


create function llm.coherence_stats()
    returns table (
        namespace  text,
        backends   bigint,
        entries    bigint,
        bytes      bigint,
        hits       bigint,
        misses     bigint,
        evictions  bigint,
        hit_ratio  double precision
    )
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import coherence
return coherence.statistics()
$$;

comment on function llm.coherence_stats() is
'The coherent caches of all backends of this server, one row a namespace: backends that hold it now, their entries and bytes; hits, misses and
evictions since the server''s shared file was made; hits / (hits + misses), null before the first read.';


select llm._grant_execute(
    array['llm_owner'],
    '_coherence_raise', '_coherence_raise_all', '_coherence_raise_every_word'
);
select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader', 'llm_auditor'],
    'coherence_stats'
);
select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader', 'llm_auditor'],
    '_newest_transaction'
);
