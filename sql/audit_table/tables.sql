-- Which tables' changes are written to the audit log.

create table if not exists llm.audited_tables (
    table_schema      name not null,
    table_name        name not null,
    key_columns       text[] not null,
    excluded_columns  text[] not null,
    masked_columns    text[] not null,
    created_at        timestamptz not null default now(),
    created_by        text not null default session_user,

    primary key (table_schema, table_name)
);

comment on table llm.audited_tables is
'Tables of which llm.audit_table() was told, and how; from here llm.setup() makes their triggers again, should they have gone with the extension.';

alter table llm.audited_tables owner to llm_owner;
grant select on llm.audited_tables to llm_auditor;
grant select, insert, update, delete on llm.audited_tables to llm_admin;

select llm._restore_auditing();
