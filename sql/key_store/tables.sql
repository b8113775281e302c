-- Where the master keys are, which lie outside the database.

create table if not exists llm.master_keys (
    version      bigint primary key check (version between 1 and 2147483647),
    provider     text not null check (provider in ('file', 'command')),
    location     text check ((provider = 'file') = (location is not null)),
    command      text[] check ((provider = 'command') = (command is not null)),
    fingerprint  bytea not null,
    created_at   timestamptz not null default now()
);

comment on table llm.master_keys is
'Where each version of the master key is to be found, never the key: a directory (provider file), or a program and its arguments (provider command).
fingerprint tells a wrong key from the right one. What stands here makes the server read files and run programs: only superusers write it.';

alter table llm.master_keys owner to llm_owner;
alter table llm.master_keys enable row level security;
alter table llm.master_keys force row level security;
drop policy if exists key_functions on llm.master_keys;
create policy key_functions on llm.master_keys for select to llm_owner using (true);
drop policy if exists examination on llm.master_keys;
create policy examination on llm.master_keys for select to llm_admin, llm_auditor using (true);
grant select on llm.master_keys to llm_admin, llm_auditor;

create or replace trigger superusers_only
    before insert or update or delete on llm.master_keys
    for each row execute function llm._master_keys_guard();

create or replace trigger coherence
    before insert or update or delete on llm.master_keys
    for each row execute function llm._master_keys_coherence();
alter table llm.master_keys enable always trigger coherence;

create or replace trigger coherence_truncate
    before truncate on llm.master_keys
    for each statement execute function llm._coherence_truncate();
alter table llm.master_keys enable always trigger coherence_truncate;
