-- Which tables hold what concerns a user, and what becomes of it when the user is forgotten.

create table if not exists llm.personal_data (
    relation     text not null,
    user_column  text not null,
    via          text not null,
    action       text not null check (action in ('delete', 'anonymize', 'shred', 'release', 'keep')),
    columns      text[] not null default '{}',
    reason       text,
    created_at   timestamptz not null default now(),

    primary key (relation, user_column, via),
    constraint personal_data_path_check check (
        case action when 'release' then user_column = '' and via = '' else (user_column = '') <> (via = '') end
    )
);

comment on table llm.personal_data is
'Tables with rows of users, as llm.register_personal_data() was told: relation (schema.table); how its rows are a user''s: user_column holds his id,
or the foreign key to via leads to a row of his there, or, to be released, no rows but his refer to it; action: what llm.forget_user() does with them;
columns: those that action concerns.';

alter table llm.personal_data owner to llm_owner;
grant select on llm.personal_data to llm_admin, llm_auditor;
