-- Which tables llm.manage_partitions() looks after, and how its last run went.

create table if not exists llm.partition_sets (
    parent              text primary key,
    partition_column    text not null,
    partition_interval  interval not null,
    retention_days      integer check (retention_days > 0),
    before_drop         text,
    created_at          timestamptz not null default now(),
    last_run_at         timestamptz,
    last_ok_at          timestamptz,
    last_error          text,
    last_actions        text[] not null default '{}'
);

comment on table llm.partition_sets is
'Tables in partitions, one row a table, as llm.create_partitions() was told: parent (as pg_partman names it: schema.table, unquoted), the column,
the length of a partition, retention_days (null: keep for ever), before_drop (a function of schema llm that must agree before a partition is
dropped); and of llm.manage_partitions(): when it last began, when it last did all that was due, what failed since, and what it did.';

alter table llm.partition_sets owner to llm_owner;
grant select on llm.partition_sets to llm_admin, llm_auditor;
grant select (parent, partition_interval, retention_days) on llm.partition_sets to llm_app;
