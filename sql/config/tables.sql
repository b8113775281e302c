-- Configuration: a tenant's values, and the global ones (tenant *) that they override.

create table if not exists llm.config (
    tenant_id    text not null,
    key          text not null check (octet_length(key) between 1 and 1000),
    value        jsonb not null,
    description  text,
    version      bigint not null default 1,
    created_at   timestamptz not null default now(),
    updated_at   timestamptz not null default now(),

    primary key (tenant_id, key)
) with (fillfactor = 80);

comment on table llm.config is
'Configuration values by tenant and key; tenant * is global. version counts the changes of the key. Written through llm.save_config() or directly:
triggers keep version, times, history and caches right.';

select llm._protect_tenant_table('llm.config'::regclass, 'select, insert, update, delete'::text);
drop policy if exists global_values on llm.config;
create policy global_values on llm.config for select using (tenant_id = '*');
drop policy if exists global_administration on llm.config;
create policy global_administration on llm.config to llm_admin
    using (tenant_id = '*' and (select llm._may_write_global()))
    with check (tenant_id = '*' and (select llm._may_write_global()));

-- llm.save_config() asks for the tenant itself; a trigger reads what TRUNCATE removes.
drop policy if exists written_by_function on llm.config;
create policy written_by_function on llm.config to llm_owner using (true) with check (true);

create or replace trigger coherence
    before insert or update or delete on llm.config
    for each row execute function llm._config_coherence();
alter table llm.config enable always trigger coherence;

create or replace trigger coherence_truncate
    before truncate on llm.config
    for each statement execute function llm._coherence_truncate();
alter table llm.config enable always trigger coherence_truncate;
