-- API keys of users.

create table if not exists llm.user_api_keys (
    tenant_id     text not null,
    key_id        uuid not null,
    user_id       uuid not null,
    name          text not null check (length(name) between 1 and 200),
    scopes        text[] not null default '{}',
    key_prefix    text collate "C" not null check (length(key_prefix) = 16),
    key_salt      bytea not null check (octet_length(key_salt) = 16),
    key_hash      bytea not null check (octet_length(key_hash) = 32),
    created_at    timestamptz not null default now(),
    expires_at    timestamptz,
    last_used_at  timestamptz,
    revoked_at    timestamptz,

    primary key (tenant_id, key_id),
    foreign key (tenant_id, user_id) references llm.users on delete cascade
) with (fillfactor = 80);

comment on table llm.user_api_keys is
'API keys by which programs act for users: key_prefix is its public part, key_hash the SHA-256 of key_salt and the whole key, which is nowhere.
last_used_at is right to the minute.';

-- "whose key is this", before its tenant is known
create index if not exists user_api_keys_by_prefix on llm.user_api_keys (key_prefix);
-- "all keys of this user"
create index if not exists user_api_keys_by_user on llm.user_api_keys (tenant_id, user_id);

alter table llm.user_api_keys alter column key_id set default llm.uuid_v7();
select llm._protect_tenant_table('llm.user_api_keys'::regclass, 'select, insert, update, delete'::text);
select llm._protect_user_rows('llm.user_api_keys'::regclass);
-- llm.verify_user_api_key() finds the tenant by the key.
drop policy if exists read_by_function on llm.user_api_keys;
create policy read_by_function on llm.user_api_keys for select to llm_owner using (true);

create or replace trigger user_api_keys
    after update of deleted_at on llm.users
    for each row when (old.deleted_at is null and new.deleted_at is not null) execute function llm._revoke_user_api_keys();

select llm.register_personal_data('llm.user_api_keys'::regclass, 'user_id'::text, 'delete'::text, null::regclass, null::text[], null::text);
