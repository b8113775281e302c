create function llm.register_personal_data(
    p_table       regclass,
    p_user_column text,
    p_action      text,
    p_via         regclass default null,
    p_columns     text[] default null,
    p_reason      text default null
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_missing   text;
    v_referring record;
begin
    if p_action is null or p_action not in ('delete', 'anonymize', 'shred', 'release', 'keep') then
        raise exception 'personal data cannot be forgotten by %', coalesce(quote_literal(p_action), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Actions are delete, anonymize, shred, release and keep.';
    end if;
    if p_table is null or num_nonnulls(p_user_column, p_via) <> (p_action <> 'release')::integer then
        raise exception 'it is not clear which rows of % are a user''s', coalesce(p_table::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give p_user_column, the column with the user''s id, or p_via, the table that a foreign key of this one leads to; for'
                         ' release neither: they are those that only rows of the user refer to.';
    end if;
    if p_action = 'shred' and cardinality(p_columns) is distinct from 1
        or p_action = 'keep' and coalesce(btrim(p_reason), '') = ''
        or p_action = 'anonymize' and p_user_column is null and p_columns is null
    then
        raise exception 'action % for % lacks its %', p_action, p_table, case p_action when 'keep' then 'reason' else 'columns' end
            using errcode = 'invalid_parameter_value',
                  hint = 'shred takes in p_columns the one column with ids of keys, anonymize those to be set null, keep says why in p_reason.';
    end if;
    select c.name
    into v_missing
    from unnest(array_append(p_columns, p_user_column)) c (name)
    where c.name is not null
        and not exists (select from pg_attribute a where a.attrelid = p_table and a.attname = c.name and a.attnum > 0 and not a.attisdropped)
    limit 1;
    if found then
        raise exception 'table % has no column %', p_table, v_missing
            using errcode = 'undefined_column',
                  hint = 'Names of columns are as the catalogue has them, without quotes.';
    end if;
    if p_via is not null and (select count(*) from pg_constraint k where k.contype = 'f' and k.conrelid = p_table and k.confrelid = p_via) <> 1 then
        raise exception 'table % has not exactly one foreign key to %', p_table, p_via
            using errcode = 'invalid_parameter_value',
                  hint = 'Its rows are found through that key. Register the table by p_user_column instead.';
    end if;
    if (select c.relowner from pg_class c where c.oid = p_table) <> 'llm_owner'::regrole then
        if exists (select from pg_class c where c.oid = p_table and c.relrowsecurity)
            and not exists (select from pg_policy p where p.polrelid = p_table and p.polroles && array[0::oid, 'llm_owner'::regrole::oid])
        then
            raise exception 'row-level security hides the rows of % from llm_owner', p_table
                using errcode = 'insufficient_privilege',
                      hint = 'Create a policy for llm_owner on it: who forgets a user must see his rows.';
        end if;
        execute format('grant usage on schema %s to llm_owner', (select c.relnamespace::regnamespace from pg_class c where c.oid = p_table));
        execute format('grant select, update, delete on %s to llm_owner', p_table);
    end if;

    if p_action = 'release' then
        for v_referring in
            select distinct c.oid::regclass as relation, c.relnamespace::regnamespace as namespace
            from pg_constraint k
            join pg_class c on c.oid = k.conrelid and c.relowner <> 'llm_owner'::regrole
            where k.contype = 'f'
                and k.confrelid = p_table
        loop
            execute format('grant usage on schema %s to llm_owner', v_referring.namespace);
            execute format('grant select on %s to llm_owner', v_referring.relation);
        end loop;
    end if;

    insert into llm.personal_data as d (relation, user_column, via, action, columns, reason)
    values (p_table::text, coalesce(p_user_column, ''), coalesce(p_via::text, ''), p_action, coalesce(p_columns, '{}'), p_reason)
    on conflict (relation, user_column, via) do update
        set action = excluded.action,
            columns = excluded.columns,
            reason = excluded.reason
        where (d.action, d.columns, d.reason) is distinct from (excluded.action, excluded.columns, excluded.reason);
end
$$;

comment on function llm.register_personal_data(regclass, text, text, regclass, text[], text) is
'Tells llm.forget_user() of a table with rows of users; again to tell it otherwise. p_table: the table, the partitioned one if it has partitions;
p_user_column: its column with the user''s id (uuid or text), or null with p_via: the registered table that its one foreign key leads to; p_action:
delete the rows; anonymize: set the user column and p_columns null; shred: destroy the keys that the one column of p_columns names, and delete the
rows; release, without user column and p_via: delete the rows that no rows but the user''s refer to by foreign keys; keep, for p_reason. A table
that is not pg_llm''s is granted to llm_owner, and those that refer to one with released rows are, to be read. For superusers. Errors:
invalid_parameter_value, undefined_column, insufficient_privilege when row-level security would hide the rows.';


select llm._grant_execute(
    array['llm_owner'],
    'register_personal_data'
);
