-- A queue as pgmq publishes its own: a table a queue, a visibility timeout, statements built in PL/pgSQL, and the same names. Written from its
-- documentation (github.com/pgmq/pgmq, docs/api/sql/functions.md), because the extension is not packaged by Debian.

create schema pgmq;

create type pgmq.message_record as (msg_id bigint, read_ct integer, enqueued_at timestamptz, vt timestamptz, message jsonb);

create function pgmq.create(queue_name text) returns void language plpgsql as $$
begin
    execute format(
        'create table pgmq.%I (msg_id bigint primary key generated always as identity, read_ct int not null default 0,'
        ' enqueued_at timestamptz not null default now(), vt timestamptz not null, message jsonb)',
        'q_' || queue_name
    );
    execute format('create index %I on pgmq.%I (vt asc)', 'q_' || queue_name || '_vt_idx', 'q_' || queue_name);
    execute format(
        'create table pgmq.%I (msg_id bigint primary key, read_ct int not null default 0, enqueued_at timestamptz not null default now(),'
        ' archived_at timestamptz not null default now(), vt timestamptz not null, message jsonb)',
        'a_' || queue_name
    );
    execute format('create index %I on pgmq.%I (archived_at)', 'archived_at_idx_' || queue_name, 'a_' || queue_name);
end
$$;

create function pgmq.send(queue_name text, msg jsonb, delay integer default 0) returns setof bigint language plpgsql as $$
begin
    return query execute format(
        'insert into pgmq.%I (vt, message) values (clock_timestamp() + $2 * interval ''1 second'', $1) returning msg_id', 'q_' || queue_name
    ) using msg, delay;
end
$$;

create function pgmq.send_batch(queue_name text, msgs jsonb[], delay integer default 0) returns setof bigint language plpgsql as $$
begin
    return query execute format(
        'insert into pgmq.%I (vt, message) select clock_timestamp() + $2 * interval ''1 second'', unnest($1) returning msg_id', 'q_' || queue_name
    ) using msgs, delay;
end
$$;

create function pgmq.read(queue_name text, vt integer, qty integer) returns setof pgmq.message_record language plpgsql as $$
begin
    return query execute format(
        $read$
        with cte as (
            select msg_id from pgmq.%1$I where vt <= clock_timestamp() order by msg_id asc limit $2 for update skip locked
        )
        update pgmq.%1$I m
        set vt = clock_timestamp() + $1 * interval '1 second', read_ct = read_ct + 1
        from cte
        where m.msg_id = cte.msg_id
        returning m.msg_id, m.read_ct, m.enqueued_at, m.vt, m.message
        $read$,
        'q_' || queue_name
    ) using vt, qty;
end
$$;

create function pgmq.delete(queue_name text, msg_id bigint) returns boolean language plpgsql as $$
declare
    result bigint;
begin
    execute format('delete from pgmq.%I where msg_id = $1 returning msg_id', 'q_' || queue_name) into result using msg_id;
    return result is not null;
end
$$;

create function pgmq.delete(queue_name text, msg_ids bigint[]) returns setof bigint language plpgsql as $$
begin
    return query execute format('delete from pgmq.%I where msg_id = any ($1) returning msg_id', 'q_' || queue_name) using msg_ids;
end
$$;

create function pgmq.archive(queue_name text, msg_id bigint) returns boolean language plpgsql as $$
declare
    result bigint;
begin
    execute format(
        $archive$
        with archived as (
            delete from pgmq.%I where msg_id = $1 returning msg_id, vt, read_ct, enqueued_at, message
        )
        insert into pgmq.%I (msg_id, vt, read_ct, enqueued_at, message)
        select msg_id, vt, read_ct, enqueued_at, message from archived
        returning msg_id
        $archive$,
        'q_' || queue_name, 'a_' || queue_name
    ) into result using msg_id;
    return result is not null;
end
$$;

create function pgmq.pop(queue_name text) returns setof pgmq.message_record language plpgsql as $$
begin
    return query execute format(
        $pop$
        with cte as (
            select msg_id from pgmq.%1$I where vt <= clock_timestamp() order by msg_id asc limit 1 for update skip locked
        )
        delete from pgmq.%1$I where msg_id = (select msg_id from cte)
        returning msg_id, read_ct, enqueued_at, vt, message
        $pop$,
        'q_' || queue_name
    );
end
$$;

grant usage on schema pgmq to app;
