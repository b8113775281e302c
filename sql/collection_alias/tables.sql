-- Other names of collections, which lead elsewhere in one transaction.

create table if not exists llm.collection_aliases (
    alias       text primary key check (alias ~ '^[a-z][a-z0-9_]{0,39}$'),
    collection  text not null references llm.collections on delete cascade,
    set_at      timestamptz not null default now()
);

comment on table llm.collection_aliases is
'Names that lead to a collection, wherever points are written, read and searched; see llm.set_collection_alias().';

create index if not exists collection_aliases_by_collection on llm.collection_aliases (collection);

alter table llm.collection_aliases owner to llm_owner;
grant select on llm.collection_aliases to llm_admin, llm_app, llm_reader, llm_auditor;

create or replace trigger coherence
    before insert or update or delete on llm.collection_aliases
    for each row execute function llm._collection_aliases_coherence();
alter table llm.collection_aliases enable always trigger coherence;

create or replace trigger coherence_truncate
    before truncate on llm.collection_aliases
    for each statement execute function llm._coherence_truncate();
alter table llm.collection_aliases enable always trigger coherence_truncate;

create or replace trigger refuse_alias
    before insert on llm.collections
    for each row execute function llm._refuse_alias_as_name();
