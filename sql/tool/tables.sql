-- Tools that models may call, each definition a version of its own.

create table if not exists llm.tools (
    tenant_id    text collate "C" not null check (tenant_id <> '*'),
    name         text collate "C" not null check (name ~ '^[A-Za-z0-9_-]{1,64}$'),
    version      bigint not null check (version > 0),
    description  text not null default '',
    arguments    jsonb not null check (jsonb_typeof(arguments) = 'object'),
    result       jsonb,
    metadata     jsonb not null default '{}',
    created_at   timestamptz not null default now(),
    retired_at   timestamptz,

    primary key (tenant_id, name, version)
);

comment on table llm.tools is
'Tools that models may call: arguments and result are JSON Schemas. A version never changes but to be retired (retired_at); the newest that is not is
what models are told of.';

select llm._protect_tenant_table('llm.tools'::regclass, 'select, insert, update (retired_at), delete'::text);
