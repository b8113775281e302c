-- What has been applied to the storage.

create table if not exists llm.schema_migrations (
    name        text primary key,
    version     text not null,
    checksum    text not null,
    applied_at  timestamptz not null default now(),
    duration    interval not null,
    server_id   bigint not null
);

comment on table llm.schema_migrations is
'What was applied to the storage, one row a step: name (a subsystem''s tables, subsystem/number_title, or pg_llm for the whole), the version
of pg_llm that brought it, the SHA-256 of its text, when it was applied, how long that took, and the server''s system identifier.';

alter table llm.schema_migrations owner to llm_owner;
grant select on llm.schema_migrations to llm_admin, llm_app, llm_reader, llm_auditor;
