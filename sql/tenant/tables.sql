-- Which role works for which tenant.

create table if not exists llm.tenant_roles (
    role_name   name primary key,
    tenant_id   text not null check (length(tenant_id) between 1 and 100 and tenant_id <> '*'),
    created_at  timestamptz not null default now()
);

comment on table llm.tenant_roles is
'Roles that work for one tenant only, whatever they set; see llm.bind_role(). A role sees its own row.';

alter table llm.tenant_roles owner to llm_owner;
alter table llm.tenant_roles enable row level security;
alter table llm.tenant_roles force row level security;

-- A role may learn its own tenant only, also after SET ROLE.
drop policy if exists own_binding on llm.tenant_roles;
create policy own_binding on llm.tenant_roles for select using (role_name in (session_user, current_user));
drop policy if exists any_binding on llm.tenant_roles;
create policy any_binding on llm.tenant_roles for select to llm_owner, llm_auditor using (true);
drop policy if exists administration on llm.tenant_roles;
create policy administration on llm.tenant_roles to llm_admin using (true) with check (true);

grant select on llm.tenant_roles to llm_owner, llm_app, llm_reader, llm_auditor;
grant select, insert, update, delete on llm.tenant_roles to llm_admin;

create or replace trigger coherence
    before insert or update or delete on llm.tenant_roles
    for each row execute function llm._tenant_roles_coherence();
alter table llm.tenant_roles enable always trigger coherence;

create or replace trigger coherence_truncate
    before truncate on llm.tenant_roles
    for each statement execute function llm._coherence_truncate();
alter table llm.tenant_roles enable always trigger coherence_truncate;
