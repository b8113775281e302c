create type llm.data_key as (
    tenant_id      text,
    key_id         uuid,
    tenant_key_id  uuid,
    version        integer
);

comment on type llm.data_key is
'A key, the tenant''s key that wraps it, and the version that encrypts.';


create function llm._new_key()
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.new_key()
$$;

comment on function llm._new_key() is
'A new key, not wrapped.';


create function llm._key_start(
    p_key     uuid,
    p_version integer,
    p_tenant  text,
    p_table   text,
    p_row     text
)
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.key_start(p_key, p_version, p_tenant, p_table, p_row)
$$;

comment on function llm._key_start(uuid, integer, text, text, text) is
'What a newly wrapped key begins with and is bound to. p_key, p_version: the wrapping key; p_table, p_row: where it will be.';


create function llm._start_of_key(
    p_wrapped bytea,
    p_tenant  text,
    p_table   text,
    p_row     text
)
    returns bytea
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import crypto
return crypto.start_of_key(p_wrapped, p_tenant, p_table, p_row)
$$;

comment on function llm._start_of_key(bytea, text, text, text) is
'What a wrapped key begins with and must be bound to.';


create function llm._add_tenant_secret(
    p_master_version integer,
    p_tenant_key     uuid
)
    returns void
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import key_store
key_store.add_tenant_secret(p_master_version, p_tenant_key)
$$;

comment on function llm._add_tenant_secret(integer, uuid) is
'Makes the secret of a new tenant key in the key store, where there is one.';


create function llm._key_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
begin
    perform llm._require_storage();
    v_tenant := llm.current_tenant();
    -- Asked from within security definer functions, where the current role is llm_owner.
    if v_tenant is null
        and not pg_has_role(coalesce(nullif(current_setting('role'), 'none'), session_user)::name, 'llm_admin'::name, 'usage'::text)
    then
        raise exception 'no tenant is set'
            using errcode = 'object_not_in_prerequisite_state',
                  detail = 'Without a tenant only llm_admin may use keys: the global ones.',
                  hint = 'Run: select llm.set_tenant(''…''); as the first statement of the transaction, or llm.bind_role() for the role.';
    end if;
    return coalesce(v_tenant, '*');
end
$$;

comment on function llm._key_tenant() is
'The tenant whose keys this transaction may use; * (global) for llm_admin without a tenant. Errors: object_not_in_prerequisite_state.';


create function llm._key_to_cache(
    p_tenant text,
    p_key    text
)
    returns table (
        key_id                 text,
        version                integer,
        min_decryption_version integer,
        soft_limit             bigint,
        revoked                boolean,
        expires                double precision,
        tenant_key_id          text,
        tenant_key             bytea,
        versions               integer[],
        wrapped                bytea[]
    )
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm._require_storage();
    return query
        select
            k.key_id::text,
            k.version,
            k.min_decryption_version,
            k.soft_limit,
            k.revoked_at is not null,
            extract(epoch from k.expires_at)::double precision,
            t.id::text,
            t.wrapped,
            array(select v.version from llm.data_key_versions v where v.tenant_id = k.tenant_id and v.key_id = k.key_id order by v.version),
            array(select v.wrapped from llm.data_key_versions v where v.tenant_id = k.tenant_id and v.key_id = k.key_id order by v.version)
        from llm.data_keys k
        join llm.tenant_keys t on t.tenant_id = k.tenant_id and t.id = k.tenant_key_id
        where k.tenant_id = p_tenant
            and case
                when p_key in ('default', 'index') then k.kind = p_key and t.shredded_at is null
                else replace(k.key_id::text, '-', '') = replace(p_key, '-', '')
            end;
end
$$;

comment on function llm._key_to_cache(text, text) is
'A key of a tenant with all its versions as they are wrapped. p_key: its id,
with or without hyphens, or default or index for the tenant''s key of that kind.';


create function llm._tenant_key(
    p_tenant text
)
    returns uuid
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_id      uuid;
    v_master  integer;
    v_start   bytea;
    v_wrapped bytea;
begin
    select t.id into v_id from llm.tenant_keys t where t.tenant_id = p_tenant and t.shredded_at is null;
    if found then
        return v_id;
    end if;
    -- One at a time, lest a secret be made for a key that loses.
    perform pg_advisory_xact_lock(hashtext('llm.tenant_keys'::text), hashtext(p_tenant));
    select t.id into v_id from llm.tenant_keys t where t.tenant_id = p_tenant and t.shredded_at is null;
    if found then
        return v_id;
    end if;
    select max(m.version) into v_master from llm.master_keys m;
    if v_master is null then
        raise exception 'no master key is configured'
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'As a superuser run: select llm.add_master_key(''/a/directory/outside/the/data/directory'');';
    end if;
    v_id := gen_random_uuid();
    perform llm._add_tenant_secret(v_master, v_id);
    v_start := llm._key_start(v_id, v_master, p_tenant, 'llm.tenant_keys'::text, v_id::text);
    v_wrapped := llm._seal(llm._wrapping_keys(v_start), llm._new_key(), v_start);
    insert into llm.tenant_keys (tenant_id, id, master_version, wrapped) values (p_tenant, v_id, v_master, v_wrapped);
    return v_id;
end
$$;

comment on function llm._tenant_key(text) is
'The key in use that wraps a tenant''s data keys; made if there is none. Errors: object_not_in_prerequisite_state without a master key.';


create function llm._add_key_version(
    p_tenant  text,
    p_key     uuid,
    p_version integer
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant_key       uuid;
    v_tenant_key_blob  bytea;
    v_tenant_key_start bytea;
    v_start            bytea;
    v_wrapped          bytea;
begin
    select t.id, t.wrapped
    into strict v_tenant_key, v_tenant_key_blob
    from llm.data_keys k
    join llm.tenant_keys t on t.tenant_id = k.tenant_id and t.id = k.tenant_key_id
    where k.tenant_id = p_tenant
        and k.key_id = p_key;
    v_tenant_key_start := llm._start_of_key(v_tenant_key_blob, p_tenant, 'llm.tenant_keys'::text, v_tenant_key::text);
    v_start := llm._key_start(v_tenant_key, p_version, p_tenant, 'llm.data_key_versions'::text, p_key::text);
    v_wrapped := llm._seal(
        llm._tenant_keys(v_tenant_key_blob, v_tenant_key_start), llm._new_key(), v_start
    );
    insert into llm.data_key_versions (tenant_id, key_id, version, wrapped) values (p_tenant, p_key, p_version, v_wrapped);
end
$$;

comment on function llm._add_key_version(text, uuid, integer) is
'Makes a version of a data key.';


create function llm._note_key_event(
    p_tenant  text,
    p_key     uuid,
    p_event   text,
    p_details jsonb default null
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_id bigint;
begin
    insert into llm.key_events (tenant_id, key_id, event, details) values (p_tenant, p_key, p_event, p_details) returning id into v_id;
    if p_event not in ('made', 'rotated') then
        perform llm.log_audit_event(
            p_event, 'key'::text, coalesce(p_key::text, ''), p_details, session_user::text, null::jsonb, null::jsonb, null::jsonb, null::text,
            'llm_auditor'::text
        );
    end if;
    return v_id;
end
$$;

comment on function llm._note_key_event(text, uuid, text, jsonb) is
'Keeps what happened to a key: everything that is done with keys, but encrypting and decrypting, comes through here. Returns the id in
llm.key_events.';


create function llm._make_key(
    p_tenant     text,
    p_kind       text,
    p_expires_at timestamptz default null,
    p_max_uses   bigint default 1073741824
)
    returns uuid
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant_key uuid := llm._tenant_key(p_tenant);
    v_key        uuid := llm.uuid_v7();
begin
    insert into llm.data_keys (tenant_id, key_id, tenant_key_id, kind, expires_at, soft_limit, hard_limit)
    values (p_tenant, v_key, v_tenant_key, p_kind, p_expires_at, p_max_uses, 2 * p_max_uses)
    on conflict do nothing;
    if found then
        perform llm._add_key_version(p_tenant, v_key, 1);
        perform llm._note_key_event(p_tenant, v_key, 'made'::text, jsonb_build_object('kind', p_kind, 'expires_at', p_expires_at));
    end if;
    return v_key;
end
$$;

comment on function llm._make_key(text, text, timestamptz, bigint) is
'Makes a key; of the kinds default and index a tenant has one.';


create function llm._key_of(
    p_key_id text
)
    returns llm.data_key
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._key_tenant();
    v_key    llm.data_key;
begin
    select k.tenant_id, k.key_id, k.tenant_key_id, k.version
    into v_key
    from llm.data_keys k
    join llm.tenant_keys t on t.tenant_id = k.tenant_id and t.id = k.tenant_key_id
    where k.tenant_id = v_tenant
        and case when p_key_id is null then k.kind = 'default' and t.shredded_at is null else k.key_id::text = p_key_id end;
    if v_key.key_id is null then
        raise exception 'key % does not exist', coalesce(p_key_id, 'default')
            using errcode = 'undefined_object',
                  hint = 'llm.key_management lists the keys of the tenant.';
    end if;
    return v_key;
end
$$;

comment on function llm._key_of(text) is
'A key of the current tenant; null for its default key. Errors: undefined_object.';


create function llm._next_version(
    p_tenant  text,
    p_key     uuid,
    p_version integer,
    p_reason  text
)
    returns integer
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- Whoever finds the row locked leaves the work to its holder.
    perform from llm.data_keys k where k.tenant_id = p_tenant and k.key_id = p_key and k.version = p_version for no key update skip locked;
    if not found then
        return null;
    end if;
    perform llm._add_key_version(p_tenant, p_key, p_version + 1);
    update llm.data_keys k
    set version = p_version + 1,
        rotated_at = now()
    where k.tenant_id = p_tenant
        and k.key_id = p_key;
    perform llm._note_key_event(p_tenant, p_key, 'rotated'::text, jsonb_build_object('version', p_version + 1, 'reason', p_reason));
    return p_version + 1;
end
$$;

comment on function llm._next_version(text, uuid, integer, text) is
'Makes the version after p_version the current one; null when another session is doing that or has done it.';


create function llm._reserve_uses(
    p_tenant        text,
    p_key           uuid,
    p_version       integer,
    p_uses          bigint,
    p_previous      bigint,
    p_previous_uses bigint
)
    returns table (id bigint, version integer)
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_uses  bigint := p_uses;
    v_used  bigint;
    v_rows  bigint;
    v_soft  bigint;
    v_hard  bigint;
begin
    version := p_version;
    if current_setting('transaction_read_only')::boolean then
        return next;
        return;
    end if;
    -- What was reserved in a transaction or savepoint that was rolled back has been used all the same.
    if p_previous is not null and not exists (select from llm.key_usage u where u.tenant_id = p_tenant and u.id = p_previous) then
        v_uses := v_uses + p_previous_uses;
    end if;
    select coalesce(sum(u.uses), 0), count(*)
    into v_used, v_rows
    from llm.key_usage u
    where u.tenant_id = p_tenant
        and u.key_id = p_key
        and u.version = p_version;
    select k.soft_limit, k.hard_limit into v_soft, v_hard from llm.data_keys k where k.tenant_id = p_tenant and k.key_id = p_key;

    if v_used + v_uses > v_soft then
        version := coalesce(llm._next_version(p_tenant, p_key, p_version, 'used up'::text), p_version);
        if version = p_version and v_used + v_uses > v_hard then
            raise exception 'version % of key % is used up', p_version, p_key
                using errcode = 'program_limit_exceeded',
                      detail = format('%s uses of at most %s.', v_used, v_hard),
                      hint = 'Another session holds it to make the next version: try again when that has committed, or call llm.rotate_key().';
        end if;
    end if;
    if v_rows > 500 then
        with counted as (
            delete from llm.key_usage u
            where (u.tenant_id, u.id) in (
                select o.tenant_id, o.id
                from llm.key_usage o
                where o.tenant_id = p_tenant and o.key_id = p_key and o.version = p_version
                order by o.id
                for update skip locked
            )
            returning u.uses
        )
        insert into llm.key_usage (tenant_id, key_id, version, uses)
        select p_tenant, p_key, p_version, sum(c.uses) from counted c having count(*) > 0;
    end if;
    insert into llm.key_usage as u (tenant_id, key_id, version, uses) values (p_tenant, p_key, version, v_uses) returning u.id into id;
    return next;
end
$$;

comment on function llm._reserve_uses(text, uuid, integer, bigint, bigint, bigint) is
'Counts uses of a key ahead. p_previous: the last such row of this backend, counted again with p_previous_uses if it is gone. Returns its row, and the
version to encrypt with: the next one when p_version is used up. Errors: program_limit_exceeded.';


-- security definer: raising words is not for those who write.
create function llm._tenant_keys_coherence()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op <> 'INSERT' then
        perform llm._coherence_raise('data_keys'::text, array[old.tenant_id], pg_current_xact_id());
    end if;
    if tg_op <> 'DELETE' then
        perform llm._coherence_raise('data_keys'::text, array[new.tenant_id], pg_current_xact_id());
    end if;
    return coalesce(new, old);
end
$$;

alter function llm._tenant_keys_coherence() owner to llm_owner;

comment on function llm._tenant_keys_coherence() is
'Trigger of the tables with keys: caches forget what they know of the tenant''s keys.';


select llm._grant_execute(
    array['llm_owner'],
    '_new_key', '_key_start', '_start_of_key', '_add_tenant_secret', '_key_tenant', '_key_to_cache', '_tenant_key', '_add_key_version',
    '_note_key_event', '_make_key', '_key_of', '_next_version', '_reserve_uses'
);
