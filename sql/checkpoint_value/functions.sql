-- Threads

create function llm._checkpoint_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_tenant   text := llm.current_tenant();
begin
    if v_tenant is null then
        raise exception 'checkpoints are a tenant''s, and no tenant is set'
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Run: select llm.set_tenant(''…''); as the first statement of the transaction, or llm.bind_role() for the role.';
    end if;
    return v_tenant;
end
$$;

comment on function llm._checkpoint_tenant() is
'The tenant of this transaction. Errors: object_not_in_prerequisite_state when there is none.';


create function llm._require_thread_id(
    p_thread_id text
)
    returns void
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if (octet_length(p_thread_id) between 1 and 1000) is not true then
        raise exception 'a thread_id of % bytes', coalesce(octet_length(p_thread_id)::text, 'no')
            using errcode = 'invalid_parameter_value',
                  hint = 'It has 1 to 1000 bytes.';
    end if;
end
$$;

comment on function llm._require_thread_id(text) is
'Refuses what cannot be the id of a thread. Errors: invalid_parameter_value.';


create function llm._begin_thread(
    p_tenant    text,
    p_thread_id text
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_thread bigint;
begin
    perform llm._require_thread_id(p_thread_id);
    insert into llm.checkpoint_threads (tenant_id, thread_id, user_id)
    values (p_tenant, p_thread_id, llm.current_user_id())
    on conflict (tenant_id, thread_id) do nothing;
    select t.thread_no
    into v_thread
    from llm.checkpoint_threads t
    where t.tenant_id = p_tenant
        and t.thread_id = p_thread_id
    for no key update;
    if not found then
        raise exception 'thread % is not this user''s', p_thread_id
            using errcode = 'insufficient_privilege',
                  hint = 'A user''s checkpoints are in threads that were begun for him. Choose another thread_id.';
    end if;
    return v_thread;
end
$$;

comment on function llm._begin_thread(text, text) is
'The number of a thread that was not found, made if it does not exist. Errors: insufficient_privilege when it is another user''s;
invalid_parameter_value for a bad id.';


-- Values

create function llm._checkpoint_content(
    p_tenant text,
    p_thread bigint,
    p_log    uuid,
    p_number integer
)
    returns bytea
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_content bytea;
    v_log     uuid := p_log;
    v_number  integer := p_number;
    v_size    bigint;
    v_first   integer;
    v_base    uuid;
    v_part    bytea;
    v_end     bigint;
begin
    loop
        select string_agg(coalesce(p.content, b.content), ''::bytea order by p.number), max(p.ends_at), min(p.number)
        into v_part, v_end, v_first
        from llm.checkpoint_pieces p
        left join llm.checkpoint_blobs b on b.tenant_id = p.tenant_id and b.hash = p.hash
        where p.tenant_id = p_tenant
            and p.thread_no = p_thread
            and p.log_id = v_log
            and p.number <= v_number;
        v_content := coalesce(v_part, ''::bytea) || coalesce(v_content, ''::bytea);
        v_size := coalesce(v_size, v_end);
        exit when v_first = 1 or v_first is null;
        select p.base_log
        into v_base
        from llm.checkpoint_pieces p
        where p.tenant_id = p_tenant
            and p.thread_no = p_thread
            and p.log_id = v_log
            and p.number = v_first;
        v_log := v_base;
        v_number := v_first - 1;
    end loop;
    if octet_length(v_content) is distinct from v_size then
        raise exception 'a checkpoint''s value is not whole: it has % of % bytes', octet_length(v_content), coalesce(v_size, 0)
            using errcode = 'data_corrupted',
                  detail = format('Tenant %s, thread number %s, log %s, piece %s.', p_tenant, p_thread, p_log, p_number),
                  hint = 'Rows of llm.checkpoint_pieces are gone: restore them from a backup, or use another checkpoint of the thread.';
    end if;
    return v_content;
end
$$;

comment on function llm._checkpoint_content(text, bigint, uuid, integer) is
'The value that the pieces of a log are, up to a number. Errors: data_corrupted when pieces are missing.';


create function llm._cut_log(
    p_tenant text,
    p_thread bigint,
    p_log    uuid,
    p_number integer,
    p_keep   bigint
)
    returns table (kept_log uuid, kept_number integer, kept_digest bytea, rest bytea)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_log    uuid := p_log;
    v_number integer := p_number;
    v_piece  record;
begin
    loop
        select p.number, p.base_log, p.ends_at - octet_length(coalesce(p.content, b.content)) as starts_at, coalesce(p.content, b.content) as content
        into v_piece
        from llm.checkpoint_pieces p
        left join llm.checkpoint_blobs b on b.tenant_id = p.tenant_id and b.hash = p.hash
        where p.tenant_id = p_tenant
            and p.thread_no = p_thread
            and p.log_id = v_log
            and p.number <= v_number
            and p.ends_at > p_keep
        order by p.number
        limit 1;
        if not found then
            raise exception 'log % of a checkpoint ends before byte %', p_log, p_keep
                using errcode = 'data_corrupted',
                      hint = 'Rows of llm.checkpoint_pieces are gone: restore them from a backup, or put the whole value.';
        end if;
        exit when v_piece.starts_at <= p_keep;
        v_log := v_piece.base_log;
        v_number := v_piece.number - 1;
    end loop;
    kept_number := v_piece.number - 1;
    kept_log := case
        when kept_number = 0 then null
        else coalesce(v_piece.base_log, v_log)
    end;
    select p.digest
    into kept_digest
    from llm.checkpoint_pieces p
    where p.tenant_id = p_tenant
        and p.thread_no = p_thread
        and p.log_id = kept_log
        and p.number = kept_number;
    rest := substring(v_piece.content from 1 for (p_keep - v_piece.starts_at)::integer);
    return next;
end
$$;

comment on function llm._cut_log(text, bigint, uuid, integer, bigint) is
'Where a log is to be cut so that the first p_keep bytes of its value stay: the last piece that stays whole (none: number 0) with its digest, and what
stays of the next. Errors: data_corrupted when pieces are missing.';


create function llm._put_channel(
    p_tenant  text,
    p_thread  bigint,
    p_value   jsonb,
    p_content bytea
)
    returns jsonb
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_log     uuid := p_value ->> 1;
    v_number  integer := coalesce((p_value ->> 2)::integer, 0);
    v_digest  bytea := decode(p_value ->> 6, 'hex');
    v_keep    bigint := coalesce((p_value ->> 4)::bigint, 0);
    v_content bytea := p_content;
    v_ends_at bigint := v_keep + octet_length(p_content);
    v_end     bigint;
    v_next    uuid;
    v_base    uuid;
begin
    if v_log is not null then
        select p.ends_at
        into v_end
        from llm.checkpoint_pieces p
        where p.tenant_id = p_tenant
            and p.thread_no = p_thread
            and p.log_id = v_log
            and p.number = v_number
            and p.digest = v_digest;
    end if;
    if p_content is null or p_value -> 6 is null or v_keep < 0 or v_log is null and v_keep > 0 then
        raise exception 'the value % is not given as it should be', p_value
            using errcode = 'invalid_parameter_value',
                  hint = 'It is [type, base64], or [type, log, number, head, keep, content, digest] where content counts p_contents from 1.';
    elsif v_log is not null and coalesce(v_end < v_keep, true) then
        return null;
    elsif v_end > v_keep then
        select c.kept_log, c.kept_number, c.kept_digest, c.rest || p_content
        into v_log, v_number, v_digest, v_content
        from llm._cut_log(p_tenant, p_thread, v_log, v_number, v_keep) c;
    end if;

    if v_content <> ''::bytea or v_log is null then
        v_number := v_number + 1;
        v_digest := substring(sha256(coalesce(v_digest, ''::bytea) || v_content) from 1 for 16);
        -- The usual case: the next piece of the log. Where that is taken, another checkpoint went on from the same one.
        v_next := coalesce(v_log, gen_random_uuid());
        loop
            v_base := nullif(v_log, v_next);
            if octet_length(v_content) < 2000 then
                insert into llm.checkpoint_pieces (tenant_id, thread_no, log_id, number, base_log, ends_at, digest, content)
                values (p_tenant, p_thread, v_next, v_number, v_base, v_ends_at, v_digest, v_content)
                on conflict do nothing;
            else
                with piece as (
                    insert into llm.checkpoint_pieces (tenant_id, thread_no, log_id, number, base_log, ends_at, digest, hash)
                    values (p_tenant, p_thread, v_next, v_number, v_base, v_ends_at, v_digest, sha256(v_content))
                    on conflict do nothing
                    returning hash
                )
                insert into llm.checkpoint_blobs as b (tenant_id, hash, refs, content)
                select p_tenant, p.hash, 1, v_content
                from piece p
                on conflict (tenant_id, hash) do update set refs = b.refs + 1;
            end if;
            exit when found;
            perform
            from llm.checkpoint_pieces p
            where p.tenant_id = p_tenant
                and p.thread_no = p_thread
                and p.log_id = v_next
                and p.number = v_number
                and p.digest = v_digest;
            exit when found;
            v_next := gen_random_uuid();
        end loop;
        v_log := v_next;
    end if;
    return jsonb_build_array(p_value -> 0, v_log, v_number, p_value -> 3, encode(v_digest, 'hex'));
end
$$;

comment on function llm._put_channel(text, bigint, jsonb, bytea) is
'Stores a value as llm.put_checkpoint() takes it, and returns it as llm.checkpoints has it; null when what it goes on from is not there.
Errors: invalid_parameter_value for a malformed value.';


-- security definer: who deletes rows, by hand or through a cascade, need not be able to write the contents.
create function llm._checkpoint_references_gone()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_each record;
    v_refs bigint;
begin
    for v_each in
        select g.tenant_id, g.hash, count(*) as refs
        from gone g
        where g.hash is not null
        group by g.tenant_id, g.hash
        order by g.tenant_id, g.hash
    loop
        select b.refs
        into v_refs
        from llm.checkpoint_blobs b
        where b.tenant_id = v_each.tenant_id
            and b.hash = v_each.hash
        for update;
        if v_refs > v_each.refs then
            update llm.checkpoint_blobs b
            set refs = b.refs - v_each.refs
            where b.tenant_id = v_each.tenant_id
                and b.hash = v_each.hash;
        else
            delete from llm.checkpoint_blobs b where b.tenant_id = v_each.tenant_id and b.hash = v_each.hash;
        end if;
    end loop;
    return null;
end
$$;

alter function llm._checkpoint_references_gone() owner to llm_owner;

comment on function llm._checkpoint_references_gone() is
'Trigger of the tables that refer to llm.checkpoint_blobs: counts what is deleted, in order of hashes, and deletes what nothing refers to any more.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_checkpoint_tenant'
);

select llm._grant_execute(
    array['llm_owner'],
    '_require_thread_id', '_begin_thread', '_checkpoint_content', '_cut_log', '_put_channel'
);
