-- What collections there are, and how their points are stored, indexed and searched.

create table if not exists llm.collections (
    name                 text primary key check (name ~ '^[a-z][a-z0-9_]{0,39}$'),
    dimensions           integer not null check (dimensions between 1 and 16000),
    distance             text not null check (distance in ('cosine', 'l2', 'inner_product', 'l1')),
    element              text not null check (element in ('vector', 'halfvec', 'bit')),
    index_kind           text not null check (index_kind in ('hnsw', 'ivfflat', 'none')),
    m                    integer not null check (m between 2 and 100),
    ef_construction      integer not null check (ef_construction between 4 and 1000),
    lists                integer check (lists between 1 and 32768),
    ef_search            integer not null check (ef_search between 1 and 1000),
    full_scan_threshold  bigint not null check (full_scan_threshold >= 0),
    indexing_threshold   bigint not null check (indexing_threshold >= 1),
    max_segment_size     bigint not null check (max_segment_size >= 1),
    deleted_threshold    double precision not null check (deleted_threshold > 0 and deleted_threshold <= 1),
    payload_indexes      jsonb not null default '{}' check (jsonb_typeof(payload_indexes) = 'object'),
    on_disk              boolean not null,
    model                text,
    language             text not null,
    text_indexed         boolean not null,
    version              bigint not null default 1,
    created_at           timestamptz not null default now(),
    updated_at           timestamptz not null default now(),

    constraint collections_ef_check check (ef_construction >= 2 * m)
);

comment on table llm.collections is
'Collections of points, one row each, for all tenants. Points are in llm.points_<name>. dimensions, distance and element say what a vector is;
index_kind, m, ef_construction and lists how it is indexed, ef_search how it is searched; the thresholds are counts of points, deleted_threshold is a
share; payload_indexes: fields of the payload that are indexed, each with its type; model: the model whose vectors are searched; language: text search
configuration; version: raised by whatever changes how a search is to be written.';

alter table llm.collections owner to llm_owner;
grant select on llm.collections to llm_admin, llm_app, llm_reader, llm_auditor;

create or replace trigger coherence
    before insert or update or delete on llm.collections
    for each row execute function llm._collections_coherence();
alter table llm.collections enable always trigger coherence;

create or replace trigger coherence_truncate
    before truncate on llm.collections
    for each statement execute function llm._coherence_truncate();
alter table llm.collections enable always trigger coherence_truncate;

-- The policies and defaults of points went with the extension, if it was dropped.
select llm._protect_points(p.points)
from llm.collections c
cross join lateral to_regclass(format('llm.%I', 'points_' || c.name)) p (points)
where p.points is not null;
