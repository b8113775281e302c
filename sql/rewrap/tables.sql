-- Where ciphertext is, so that old versions of keys can be retired, and how far encrypting it anew has got.

create table if not exists llm.encrypted_columns (
    table_name   text not null,
    column_name  text not null,
    row_column   text not null,
    place        text not null,
    created_at   timestamptz not null default now(),

    primary key (table_name, column_name)
);

comment on table llm.encrypted_columns is
'Columns with values of llm.encrypt_data(): schema.table, the column, the column whose text was given as p_row, and what was given as p_table.';

alter table llm.encrypted_columns owner to llm_owner;
grant select on llm.encrypted_columns to llm_admin, llm_app, llm_reader, llm_auditor;
grant insert, update, delete on llm.encrypted_columns to llm_admin;

create table if not exists llm.rewraps (
    tenant_id    text not null,
    table_name   text not null,
    column_name  text not null,
    rewrapped    bigint not null default 0,
    last_row     text,
    started_at   timestamptz not null default now(),
    advanced_at  timestamptz not null default clock_timestamp(),
    finished_at  timestamptz,

    primary key (tenant_id, table_name, column_name)
) with (fillfactor = 50);

comment on table llm.rewraps is
'How far the last llm.rewrap() of a column has got: values encrypted anew, the last row, and when it finished.';

select llm._protect_tenant_table('llm.rewraps'::regclass, 'select'::text);
drop policy if exists key_functions on llm.rewraps;
create policy key_functions on llm.rewraps to llm_owner using (true) with check (true);
