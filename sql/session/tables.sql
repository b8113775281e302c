-- Sessions of users: what they are logged in by, and what their conversations belong to.

create table if not exists llm.sessions (
    tenant_id     text not null,
    session_id    uuid not null,
    user_id       uuid not null,
    created_at    timestamptz not null default now(),
    last_active   timestamptz not null default now(),
    expires_at    timestamptz not null default now() + interval '24 hours',
    -- Hours, not days: those of a time zone with summer time differ.
    idle_timeout  interval not null default '1 hour' check (idle_timeout > '0' and (
                      not isfinite(idle_timeout)
                      or date_part('day', idle_timeout) = 0 and date_part('month', idle_timeout) = 0 and date_part('year', idle_timeout) = 0
                  )),
    token_prefix  text collate "C" check (length(token_prefix) = 16),
    token_salt    bytea check (octet_length(token_salt) = 16),
    token_hash    bytea check (octet_length(token_hash) = 32),
    device        text check (length(device) between 1 and 500),
    ip_address    inet,
    metadata      jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object'),
    context       jsonb not null default '{}' check (jsonb_typeof(context) = 'object'),
    ended_at      timestamptz,
    end_reason    text check (end_reason in ('logout', 'revoked', 'expired', 'idle', 'user_deleted')),
    -- Kept, because a look-up by token would take longer to compute them than to find the row. By way of UTC, which makes the sum immutable.
    live_until    timestamptz generated always as (case when ended_at is null then
                      least(expires_at, (last_active at time zone 'UTC' + idle_timeout) at time zone 'UTC')
                  end) stored,
    touch_due_at  timestamptz not null generated always as (
                      (last_active at time zone 'UTC' + least(interval '1 minute', idle_timeout / 10)) at time zone 'UTC'
                  ) stored,

    primary key (tenant_id, session_id),
    foreign key (tenant_id, user_id) references llm.users on delete cascade,
    constraint sessions_token_check check (num_nulls(token_prefix, token_salt, token_hash) in (0, 3)),
    constraint sessions_end_check check ((ended_at is null) = (end_reason is null))
) with (fillfactor = 70);

comment on table llm.sessions is
'Sessions: live until ended_at, expires_at, or idle_timeout after last_active, which is right to a minute or a tenth of idle_timeout: live_until, null
once ended; from touch_due_at on, a use is noted in last_active. token_prefix is the public part of its token, token_hash the SHA-256 of token_salt
and the whole token, which is nowhere; a session without a token is not logged in. device: a fingerprint; metadata: the application''s;
context: what the conversation is about just now.';

-- No index has last_active, so that touching a session is a HOT update.
-- "whose token is this", before its tenant is known
create index if not exists sessions_by_token on llm.sessions (token_prefix) where token_prefix is not null;
-- "the sessions of this user, newest first"
create index if not exists sessions_by_user on llm.sessions (tenant_id, user_id, created_at desc);
-- "which must be ended"
create index if not exists sessions_live on llm.sessions (tenant_id, expires_at) where ended_at is null;
-- "which can be purged"
create index if not exists sessions_ended on llm.sessions (tenant_id, ended_at) where ended_at is not null;

alter table llm.sessions alter column session_id set default llm.uuid_v7();
select llm._protect_tenant_table('llm.sessions'::regclass, 'select, insert, update, delete'::text);
select llm._protect_user_rows('llm.sessions'::regclass);
-- llm.resume_session() finds the tenant by the token; llm.expire_sessions() works for all tenants when none is set.
drop policy if exists read_by_function on llm.sessions;
create policy read_by_function on llm.sessions for select to llm_owner using (true);
drop policy if exists written_by_function on llm.sessions;
create policy written_by_function on llm.sessions for update to llm_owner using (true) with check (true);

create or replace trigger sessions
    after update of deleted_at on llm.users
    for each row when (old.deleted_at is null and new.deleted_at is not null) execute function llm._end_sessions_of_user();

select llm.register_personal_data('llm.sessions'::regclass, 'user_id'::text, 'delete'::text, null::regclass, null::text[], null::text);
