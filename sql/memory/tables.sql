-- What is remembered: facts with the time in which they hold and the time in which they were believed.

create table if not exists llm.memories (
    tenant_id  text collate "C" not null check (tenant_id <> '*'),
    memory_id  uuid not null,
    scope      text collate "C" not null check (scope in ('user', 'agent', 'conversation')),
    owner      text collate "C" not null check (octet_length(owner) between 1 and 200),
    user_id    uuid,
    subject    text collate "C" not null default '' check (octet_length(subject) <= 200),
    predicate  text collate "C" not null check (octet_length(predicate) between 1 and 200),
    value      jsonb not null,
    content    text not null check (octet_length(content) <= 65536),
    many       boolean not null default false,
    metadata   jsonb,
    source     jsonb,
    valid      tstzrange not null default tstzrange(clock_timestamp(), null),
    known      tstzrange not null default tstzrange(clock_timestamp(), null),
    words      tsvector not null generated always as (to_tsvector('simple'::regconfig, content)) stored,
    -- What has one value at any time; or, each with a slot of its own, many values: one that fills all slots goes with none of them.
    fact       uuid not null generated always as (encode(substr(sha256(
        replace(
            octet_length(owner)::text || ':' || octet_length(subject)::text || ':' || octet_length(predicate)::text || ':'
            || scope || owner || subject || predicate,
            e'\\', e'\\\\'
        )::bytea
    ), 1, 16), 'hex')::uuid) stored,
    slot       int8range not null generated always as (case when many then
                   int8range(jsonb_hash_extended(value, 0) / 2, jsonb_hash_extended(value, 0) / 2, '[]')
               else '(,)' end) stored,

    primary key (tenant_id, memory_id),
    constraint memories_of_user_check check (scope <> 'user' or owner = user_id::text),
    constraint memories_times_check check (
        lower_inc(valid) <> lower_inf(valid) and not upper_inc(valid) and isfinite(coalesce(lower(valid), upper(valid), '2000-01-01Z'))
        and isfinite(coalesce(upper(valid), '2000-01-01Z')) and lower_inc(known) and not upper_inc(known) and isfinite(lower(known))
    ),
    constraint memories_contradiction exclude using gist (tenant_id with =, fact with =, slot with &&, valid with &&, known with &&)
);

comment on table llm.memories is
'Facts: what predicate of subject is, for an owner (a user, an agent, a conversation); user_id is whom it concerns. valid is when it holds, known when
that was believed; at no time are two values of one predicate believed to hold at one time. Rows are added, and known is ended; nothing else changes.
many: the predicate has many values at a time.';

-- "what is known of this owner"
create index if not exists memories_known on llm.memories (tenant_id, scope, owner, subject, predicate) where upper(known) is null;
-- "what was known then", "all that was ever known of this"
create index if not exists memories_history on llm.memories (tenant_id, scope, owner, subject, predicate);
-- "all that concerns this user"
create index if not exists memories_by_user on llm.memories (tenant_id, user_id) where user_id is not null;

alter table llm.memories alter column memory_id set default llm.uuid_v7();
select llm._protect_tenant_table('llm.memories'::regclass, 'select, insert, update (known), delete'::text);
select llm._protect_user_rows('llm.memories'::regclass);
select llm.register_personal_data('llm.memories'::regclass, 'user_id'::text, 'delete'::text, null::regclass, null::text[], null::text);

create or replace view llm.memory_facts with (security_invoker = true) as
select
    m.tenant_id,
    m.memory_id,
    m.scope,
    m.owner,
    m.user_id,
    m.subject,
    m.predicate,
    m.value,
    m.content,
    m.many,
    m.metadata,
    m.source,
    lower(m.valid) as valid_from,
    upper(m.valid) as valid_to,
    lower(m.known) as known_from,
    upper(m.known) as known_to
from llm.memories m;

comment on view llm.memory_facts is
'llm.memories as llm.memory: a fact held from valid_from until before valid_to, believed from known_from until before known_to; null: no beginning or
end.';

alter view llm.memory_facts owner to llm_owner;
grant select on llm.memory_facts to llm_admin, llm_app, llm_reader;
