-- What users prove by who they are.

create table if not exists llm.user_credentials (
    tenant_id            text not null,
    user_id              uuid not null,
    password_hash        text,
    password_changed_at  timestamptz,
    failed_logins        integer not null default 0 check (failed_logins >= 0),
    last_failed_at       timestamptz,
    locked_until         timestamptz,
    last_login_at        timestamptz,
    mfa_secret           bytea,
    mfa_enrolled_at      timestamptz,
    mfa_last_step        bigint,

    primary key (tenant_id, user_id),
    foreign key (tenant_id, user_id) references llm.users on delete cascade,
    constraint user_credentials_mfa_check check (mfa_enrolled_at is null or mfa_secret is not null)
) with (fillfactor = 80);

comment on table llm.user_credentials is
'Password (bcrypt), second factor (the secret of RFC 6238, encrypted; in force since mfa_enrolled_at; mfa_last_step is the last time step used) and
failed log-ins of users. Only functions of pg_llm read it.';

select llm._protect_tenant_table('llm.user_credentials'::regclass, 'select'::text);
select llm._protect_user_rows('llm.user_credentials'::regclass);
revoke all on llm.user_credentials from llm_admin, llm_app, llm_reader;

select llm.register_personal_data(
    'llm.user_credentials'::regclass, 'user_id'::text, 'delete'::text, null::regclass, null::text[], null::text
);
