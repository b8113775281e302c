-- Users of a tenant's application.

create table if not exists llm.users (
    tenant_id     text not null,
    user_id       uuid not null,
    username      text not null check (length(username) between 1 and 320 and username !~ '[[:cntrl:]]'),
    email         text check (length(email) between 3 and 320),
    display_name  text,
    preferences   jsonb not null default '{}' check (jsonb_typeof(preferences) = 'object'),
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now(),
    deleted_at    timestamptz,

    primary key (tenant_id, user_id),
    constraint users_of_a_tenant_check check (tenant_id <> '*')
) with (fillfactor = 90);

comment on table llm.users is
'Users of a tenant: username is what they log in by, one of a kind among those who are not deleted, whatever its case. What is deleted softly
(deleted_at) is seen by llm_admin only, until llm.purge_users() removes it. Passwords and the like are not here.';

create unique index if not exists users_by_username on llm.users (tenant_id, lower(username)) where deleted_at is null;
-- "who has this address"
create index if not exists users_by_email on llm.users (tenant_id, lower(email)) where deleted_at is null;
-- "who can be purged"
create index if not exists users_deleted on llm.users (tenant_id, deleted_at) where deleted_at is not null;

alter table llm.users alter column user_id set default llm.uuid_v7();
select llm._protect_tenant_table('llm.users'::regclass, 'select, insert, update, delete'::text);
select llm._protect_user_rows('llm.users'::regclass);
drop policy if exists not_deleted on llm.users;
create policy not_deleted on llm.users as restrictive to llm_app, llm_reader using (deleted_at is null) with check (deleted_at is null);

select llm.register_personal_data('llm.users'::regclass, 'user_id'::text, 'delete'::text, null::regclass, null::text[], null::text);
