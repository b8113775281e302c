-- Collections that have the same contents, each with the vectors of its own model.

create table if not exists llm.collection_copies (
    copy        text primary key references llm.collections on delete cascade,
    collection  text not null references llm.collections on delete cascade,
    created_at  timestamptz not null default now(),

    constraint collection_copies_other_check check (copy <> collection)
);

comment on table llm.collection_copies is
'Collections made by llm.copy_for_model(), and of which. What is written to the one is written to the other.';

create index if not exists collection_copies_by_collection on llm.collection_copies (collection);

alter table llm.collection_copies owner to llm_owner;
grant select on llm.collection_copies to llm_admin, llm_app, llm_reader, llm_auditor;

create or replace trigger part
    before delete on llm.collection_copies
    for each row execute function llm._part_copies();

-- The triggers of points went with the extension, if it was dropped.
select llm._mirror_points(c.collection, c.copy), llm._mirror_points(c.copy, c.collection) from llm.collection_copies c;
