-- Keys of users: what is encrypted with one is lost for good when its user is forgotten.

create table if not exists llm.personal_keys (
    tenant_id   text not null check (tenant_id <> '*'),
    user_id     uuid not null,
    key_id      uuid not null,
    created_at  timestamptz not null default now(),

    primary key (tenant_id, user_id),
    foreign key (tenant_id, key_id) references llm.data_keys
);

comment on table llm.personal_keys is
'The data key of each user who has one; sensitive details of the audit log whose user_id is a UUID are encrypted with it.';

-- "whose key is that"
create unique index if not exists personal_keys_by_key on llm.personal_keys (tenant_id, key_id);

select llm._protect_tenant_table('llm.personal_keys'::regclass, 'select'::text);
-- The log's own function works for users other than the transaction's.
drop policy if exists user_isolation on llm.personal_keys;
create policy user_isolation on llm.personal_keys as restrictive to llm_admin, llm_app, llm_reader
    using ((select llm.current_user_id()) is null or user_id = (select llm.current_user_id()));

select llm.register_personal_data('llm.personal_keys'::regclass, 'user_id'::text, 'shred'::text, null::regclass, '{key_id}'::text[], null::text);
