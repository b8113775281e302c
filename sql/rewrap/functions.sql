create type llm.rewrap_step as (
    outcome    text,
    rewrapped  bigint,
    last_row   text
);

comment on type llm.rewrap_step is
'A batch of llm.rewrap(): outcome busy (another session holds the column), more, end (of a pass) or done; how many values were encrypted anew; the
last row.';


create function llm._key_chain_to_rewrap(
    p_tenant text,
    p_head   bytea,
    p_table  text,
    p_column text,
    p_row    text
)
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.chain_to_rewrap(p_tenant, p_head, p_table, p_column, p_row)
$$;

comment on function llm._key_chain_to_rewrap(text, bytea, text, text, text) is
'As llm._key_chain_to_encrypt(), for the newest version of the key of a ciphertext that begins with p_head.';


-- security definer: an application encrypts anew, and must not get at keys.
create function llm.rewrap_value(
    p_encrypted_data bytea,
    p_table          text default '',
    p_column         text default '',
    p_row            text default ''
)
    returns bytea
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_chain bytea;
begin
    if p_encrypted_data is null then
        return null;
    end if;
    v_chain := llm._key_chain_to_rewrap(llm._claimed_tenant(), substr(p_encrypted_data, 1, 38), p_table, p_column, p_row);
    return llm._sealed(
        v_chain,
        llm._unsealed(
            llm._key_chain_to_decrypt(
                llm._claimed_tenant(), substr(p_encrypted_data, 1, 38), null::text, false, p_table, p_column, p_row
            ),
            p_encrypted_data, false
        )
    );
end
$$;

alter function llm.rewrap_value(bytea, text, text, text) owner to llm_owner;

comment on function llm.rewrap_value(bytea, text, text, text) is
'The same text encrypted with the newest version of its key; the text does not leave the function. p_table, p_column, p_row: as it was encrypted with.
Errors: as llm.decrypt_data and llm.encrypt_data.';


-- security definer: nobody writes the tables of keys himself.
create function llm._key_heads()
    returns table (keys bytea[], heads bytea[])
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._writable_tenant();
begin
    return query
        select array_agg(uuid_send(k.key_id)), array_agg(uuid_send(k.key_id) || int4send(k.version))
        from llm.data_keys k
        join llm.tenant_keys t on t.tenant_id = k.tenant_id and t.id = k.tenant_key_id
        where k.tenant_id = v_tenant
            and k.revoked_at is null
            and t.shredded_at is null;
end
$$;

alter function llm._key_heads() owner to llm_owner;

comment on function llm._key_heads() is
'What ciphertexts of the tenant''s usable keys have at bytes 3 to 18, and those of their newest versions at 3 to 22.';


-- security definer: nobody writes the tables of keys himself.
create function llm._note_rewrap(
    p_table_name  text,
    p_column_name text,
    p_rewrapped   bigint,
    p_last_row    text,
    p_is_first    boolean,
    p_is_finished boolean
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    insert into llm.rewraps as r (tenant_id, table_name, column_name, rewrapped, last_row)
    values (llm._writable_tenant(), p_table_name, p_column_name, p_rewrapped, p_last_row)
    on conflict (tenant_id, table_name, column_name) do update
        set rewrapped = excluded.rewrapped + case when p_is_first then 0 else r.rewrapped end,
            last_row = coalesce(excluded.last_row, r.last_row),
            started_at = case when p_is_first then now() else r.started_at end,
            advanced_at = clock_timestamp(),
            finished_at = case when p_is_finished then clock_timestamp() end;
end
$$;

alter function llm._note_rewrap(text, text, bigint, text, boolean, boolean) owner to llm_owner;

comment on function llm._note_rewrap(text, text, bigint, text, boolean, boolean) is
'Keeps how far llm.rewrap() has got.';


create function llm.register_encrypted_column(
    p_table      regclass,
    p_column     name,
    p_row_column name,
    p_place      text default null
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_table text := llm._qualified(p_table);
begin
    if (select count(*) from pg_attribute a
        where a.attrelid = p_table and a.attname in (p_column, p_row_column) and a.attnum > 0 and not a.attisdropped
            and (a.attname <> p_column or a.atttypid = 'bytea'::regtype)) < 2
    then
        raise exception 'table % has no column % of type bytea, or no column %', v_table, p_column, p_row_column
            using errcode = 'undefined_object',
                  hint = 'Name the column with values of llm.encrypt_data(), and the one whose text was its p_row.';
    end if;
    insert into llm.encrypted_columns as c (table_name, column_name, row_column, place)
    values (v_table, p_column, p_row_column, coalesce(p_place, v_table))
    on conflict (table_name, column_name) do update
        set row_column = excluded.row_column,
            place = excluded.place
        where (c.row_column, c.place) <> (excluded.row_column, excluded.place);
    return found;
end
$$;

comment on function llm.register_encrypted_column(regclass, name, name, text) is
'Writes down where ciphertext is, for llm.rewrap() and llm.set_min_decryption_version(). p_column: of type bytea; p_row_column: a unique column,
whose text was given to llm.encrypt_data() as p_row; p_place: what was given as p_table, null for schema.table. For llm_admin. Returns whether that
was new. Errors: undefined_object.';


create function llm._qualified(
    p_table regclass
)
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select format('%I.%I', c.relnamespace::regnamespace::text, c.relname) from pg_class c where c.oid = p_table);
end
$$;

comment on function llm._qualified(regclass) is
'A table''s name with its schema, whatever the search_path.';


create function llm._rewrap_batch(
    p_table    regclass,
    p_column   text,
    p_batch    integer,
    p_after    text,
    p_is_first boolean,
    p_waits    boolean
)
    returns llm.rewrap_step
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_where     llm.encrypted_columns;
    v_table     text := llm._qualified(p_table);
    v_type      text;
    v_keys      bytea[];
    v_heads     bytea[];
    v_outcome   text;
    v_rewrapped bigint;
    v_last_row  text;
begin
    select * into v_where from llm.encrypted_columns c where c.table_name = v_table and c.column_name = p_column;
    if v_where.table_name is null then
        raise exception 'column % of % is not registered', p_column, v_table
            using errcode = 'undefined_object',
                  hint = 'First call llm.register_encrypted_column().';
    end if;
    if not pg_try_advisory_xact_lock(hashtext('llm.rewrap'::text), hashtext(concat_ws('/', v_table, p_column, llm.current_tenant()))) then
        return ('busy', 0, null)::llm.rewrap_step;
    end if;
    select format_type(a.atttypid, a.atttypmod) into v_type from pg_attribute a where a.attrelid = p_table and a.attname = v_where.row_column;
    select h.keys, h.heads into v_keys, v_heads from llm._key_heads() h;

    execute format(
        'with todo as materialized (
            select t.%2$I as id
            from %1$s t
            where substr(t.%3$I, 3, 16) = any ($1) and substr(t.%3$I, 3, 20) <> all ($2)
                and ($3 is null or t.%2$I > $3::%4$s)
            order by t.%2$I
            limit $4
            for update %5$s
        ),
        done as (
            update %1$s u
            set %3$I = llm.rewrap_value(u.%3$I, %6$L::text, %7$L::text, u.%2$I::text)
            from todo
            where u.%2$I = todo.id
                and substr(u.%3$I, 3, 16) = any ($1) and substr(u.%3$I, 3, 20) <> all ($2)
            returning u.%2$I as id
        )
        select count(*), (array_agg(done.id order by done.id desc))[1]::text from done',
        p_table, v_where.row_column, p_column, v_type, case when p_waits then '' else 'skip locked' end, v_where.place, p_column
    )
    into v_rewrapped, v_last_row
    using v_keys, v_heads, p_after, p_batch;
    v_outcome := case
        when v_rewrapped >= p_batch then 'more'
        when v_rewrapped = 0 and p_waits and p_after is null then 'done'
        else 'end'
    end;
    perform llm._note_rewrap(v_table, p_column, v_rewrapped, v_last_row, p_is_first, v_outcome = 'done');
    return (v_outcome, v_rewrapped, v_last_row)::llm.rewrap_step;
end
$$;

comment on function llm._rewrap_batch(regclass, text, integer, text, boolean, boolean) is
'Encrypts the next p_batch values behind row p_after anew. p_waits: for locked rows too. Errors: undefined_object for an unregistered column.';


-- Not pinned: a procedure with a SET clause cannot commit. All that it says is qualified.
create procedure llm.rewrap(
    p_table           regclass,
    p_column          name,
    p_tenant          text default null,
    p_batch           integer default 1000,
    inout p_outcome   text default null,
    inout p_rewrapped bigint default null
)
    language plpgsql
as $$
declare
    v_step     llm.rewrap_step;
    v_after    pg_catalog.text;
    v_is_first pg_catalog.bool := true;
    v_waits    pg_catalog.bool := false;
begin
    p_rewrapped := 0;
    loop
        if p_tenant is not null then
            perform llm.set_tenant(p_tenant);
        end if;
        v_step := llm._rewrap_batch(p_table, p_column::pg_catalog.text, p_batch, v_after, v_is_first, v_waits);
        commit;
        p_outcome := v_step.outcome;
        exit when v_step.outcome operator(pg_catalog.=) 'busy' or v_step.outcome operator(pg_catalog.=) 'done';
        p_rewrapped := p_rewrapped operator(pg_catalog.+) v_step.rewrapped;
        v_after := v_step.last_row;
        v_is_first := false;
        -- What writers had locked, or have added behind the reader, is for another pass, which waits.
        if v_step.outcome operator(pg_catalog.=) 'end' then
            v_after := null;
            v_waits := true;
        end if;
    end loop;
end
$$;

comment on procedure llm.rewrap(regclass, name, text, integer, text, bigint) is
'Encrypts all values of a registered column that older versions of a tenant''s keys encrypted anew, in batches that commit: an interrupted call is
simply repeated; llm.rewraps shows how far it has got. p_tenant: null for a bound role''s, or for what is global; p_batch: values a batch. Results:
p_outcome done or busy (another session is at it), p_rewrapped how many. Needs UPDATE on the table. Errors: undefined_object for a column that was
not registered.';


create function llm.encrypted_values(
    p_key_id text default null,
    p_below  integer default null
)
    returns table (table_name text, column_name text, version integer, encrypted bigint)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_column llm.encrypted_columns;
    v_key    bytea;
begin
    select uuid_send(k.key_id::uuid)
    into v_key
    from llm.key_management k
    where k.tenant_id = coalesce(llm.current_tenant(), '*')
        and case when p_key_id is null then k.kind = 'default' and k.active else k.key_id = p_key_id end;
    for v_column in select * from llm.encrypted_columns c order by c.table_name, c.column_name loop
        return query execute format(
            'select %1$L::text, %2$L::text, v.version, count(*)
             from %3$s t
             cross join lateral (select (''x'' || encode(substr(t.%2$I, 19, 4), ''hex''))::bit(32)::integer as version) v
             where substr(t.%2$I, 3, 16) = $1 and ($2 is null or v.version < $2)
             group by v.version
             order by v.version',
            v_column.table_name, v_column.column_name, v_column.table_name::regclass
        )
        using v_key, p_below;
    end loop;
end
$$;

comment on function llm.encrypted_values(text, integer) is
'How many values of each registered column a key has encrypted, by its version; those that the caller may see. p_key_id: null for the tenant''s
default key; p_below: only older versions than this. Reads the columns from end to end.';


-- security definer: nobody writes the tables of keys himself.
create function llm._raise_min_decryption_version(
    p_key_id  text,
    p_version integer
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_key llm.data_key := llm._key_of(p_key_id);
begin
    if p_version is null or p_version not between 1 and v_key.version then
        raise exception 'key % cannot decrypt from version % on', v_key.key_id, coalesce(p_version::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = format('Take 1 to %s, its newest version.', v_key.version);
    end if;
    update llm.data_keys k
    set min_decryption_version = p_version
    where k.tenant_id = v_key.tenant_id
        and k.key_id = v_key.key_id;
    perform llm._note_key_event(
        v_key.tenant_id, v_key.key_id, 'min_decryption_version set'::text, jsonb_build_object('version', p_version)
    );
end
$$;

alter function llm._raise_min_decryption_version(text, integer) owner to llm_owner;

comment on function llm._raise_min_decryption_version(text, integer) is
'The part of llm.set_min_decryption_version() that writes.';


create function llm.set_min_decryption_version(
    p_key_id  text,
    p_version integer
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_counts text;
    v_total  bigint;
begin
    select sum(v.encrypted), string_agg(format('%s in %s.%s with version %s', v.encrypted, v.table_name, v.column_name, v.version), ', ')
    into v_total, v_counts
    from llm.encrypted_values(p_key_id, coalesce(p_version, 0)) v;
    if v_total > 0 then
        raise exception '% values are encrypted with versions before %', v_total, p_version
            using errcode = 'dependent_objects_still_exist',
                  detail = v_counts || '.',
                  hint = 'First encrypt them anew: call llm.rewrap().';
    end if;
    perform llm._raise_min_decryption_version(p_key_id, p_version);
end
$$;

comment on function llm.set_min_decryption_version(text, integer) is
'From which version on a key decrypts; refused while registered columns hold older values. p_key_id: null for the tenant''s default key; p_version: 1
to its newest. For llm_admin. Errors: dependent_objects_still_exist with counts in the DETAIL; invalid_parameter_value; undefined_object.';


select llm._grant_execute(
    array['llm_owner'],
    '_key_chain_to_rewrap'
);
select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'rewrap_value', 'rewrap', 'encrypted_values', '_key_heads', '_note_rewrap', '_rewrap_batch', '_qualified'
);
select llm._grant_execute(
    array['llm_admin'],
    'register_encrypted_column', 'set_min_decryption_version', '_raise_min_decryption_version'
);
