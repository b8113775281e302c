create type llm.metric_summary as (
    begins_at    timestamptz,
    ends_at      timestamptz,
    count        bigint,
    min          double precision,
    max          double precision,
    avg          double precision,
    sum          double precision,
    percentiles  double precision[],
    is_whole     boolean
);

comment on type llm.metric_summary is
'What a metric measured from begins_at until before ends_at: how often, the least, the most, mean and sum, and the percentiles that were asked
for, interpolated; is_whole: nothing of that time was trimmed.';


create function llm._refuse_metric(
    p_metric text,
    p_value  double precision
)
    returns void
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_metric is null or octet_length(p_metric) not between 1 and 192 then
        raise exception 'a metric has a name of % bytes', coalesce(octet_length(p_metric)::text, 'no')
            using errcode = 'invalid_parameter_value',
                  hint = 'Names have 1 to 192 bytes.';
    end if;
    if (p_value > '-infinity' and p_value < 'infinity') is not true then
        raise exception '% cannot be a value of metric %', coalesce(p_value::text, 'null'), p_metric
            using errcode = 'invalid_parameter_value',
                  hint = 'A value is a finite number.';
    end if;
end
$$;

comment on function llm._refuse_metric(text, double precision) is
'Raises invalid_parameter_value when this cannot be a metric or its value.';


-- security definer: as llm.stream_append().
create function llm.metric_record(
    p_metric text,
    p_value  double precision,
    p_labels text default null
)
    returns text
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant   text := llm._stream_tenant();
    v_position text;
begin
    if (octet_length(p_metric) between 1 and 192 and p_value > '-infinity' and p_value < 'infinity') is not true then
        perform llm._refuse_metric(p_metric, p_value);
    end if;
    insert into llm.stream_entries as e (tenant_id, stream, era, value, payload)
    values (v_tenant, 'metrics:' || p_metric, (select n.era from llm.stream_era n), p_value,
            case when p_labels is not null then llm._clean_json(p_labels) end)
    returning concat_ws('-', e.era, e.transaction_id, e.number)
    into v_position;
    return v_position;
end
$$;

alter function llm.metric_record(text, double precision, text) owner to llm_owner;

comment on function llm.metric_record(text, double precision, text) is
'Records a value of a metric, as an entry of stream metrics:name, and returns its position. p_metric: 1 to 192 bytes; p_value: a finite number;
p_labels: JSON text that tells of what. Kept are 10,000 values and 24 hours, unless llm.set_stream_policy() said otherwise.
Errors: invalid_parameter_value; invalid_text_representation when labels are not JSON; object_not_in_prerequisite_state.';


-- security definer: as llm.stream_append().
create function llm.metric_record_all(
    p_metrics text[],
    p_values  double precision[],
    p_at      timestamptz[] default null,
    p_labels  text[] default null
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._stream_tenant();
    v_count  bigint := cardinality(p_values);
begin
    if cardinality(p_metrics) is distinct from v_count or cardinality(p_at) <> v_count or cardinality(p_labels) <> v_count then
        raise exception 'there are % metrics, % values, % times and % labels', cardinality(p_metrics), v_count, cardinality(p_at),
            cardinality(p_labels)
            using errcode = 'invalid_parameter_value',
                  hint = 'Give as many of each; times and labels may be null altogether.';
    end if;
    perform llm._refuse_metric(m.metric, m.value)
    from unnest(p_metrics, p_values) m (metric, value)
    where (octet_length(m.metric) between 1 and 192 and m.value > '-infinity' and m.value < 'infinity') is not true;
    perform llm._check_partition_time('llm.stream_entries'::regclass, t.at)
    from (select min(u.at), max(u.at) from unnest(p_at) u (at)) b (first_at, last_at)
    cross join unnest(array[b.first_at, b.last_at]) t (at);

    insert into llm.stream_entries (tenant_id, stream, era, at, value, payload)
    select v_tenant, 'metrics:' || m.metric, s.era, coalesce(m.at, clock_timestamp()), m.value,
        case when m.labels is not null then llm._clean_json(m.labels) end
    from unnest(p_metrics, p_values, p_at, p_labels) with ordinality m (metric, value, at, labels, ordinal)
    cross join llm.stream_era s
    order by m.ordinal;
    return v_count;
end
$$;

alter function llm.metric_record_all(text[], double precision[], timestamptz[], text[]) owner to llm_owner;

comment on function llm.metric_record_all(text[], double precision[], timestamptz[], text[]) is
'llm.metric_record() for many values at once, all or none. p_metrics, p_values; p_at: when each was measured, null for now; p_labels: JSON texts or
null. Returns how many. Errors: as there; datetime_field_overflow for times that no partition is kept for.';


-- security definer: as llm.stream_read().
create function llm.metric_window(
    p_metric      text,
    p_window      interval default '5 minutes',
    p_step        interval default null,
    p_until       timestamptz default null,
    p_percentiles double precision[] default '{0.5,0.95,0.99}',
    p_labels      jsonb default null
)
    returns setof llm.metric_summary
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._stream_tenant();
    v_stream text := 'metrics:' || p_metric;
    v_until  timestamptz := coalesce(p_until, clock_timestamp() + interval '1 microsecond');
    v_window interval := make_interval(secs => extract(epoch from p_window));
    v_step   interval := make_interval(secs => extract(epoch from coalesce(p_step, p_window)));
    v_from   timestamptz := v_until - v_window;
    v_kept   timestamptz;
begin
    if (v_window > '0' and v_step > '0' and v_window <= 10000 * v_step) is not true
        or 0 > any (p_percentiles)
        or 1 < any (p_percentiles)
    then
        raise exception 'a metric cannot be summed up over % in steps of %, with percentiles %', coalesce(p_window::text, 'null'),
            coalesce(p_step::text, 'the whole'), coalesce(p_percentiles::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give a window, at most 10,000 steps that fit in it, and percentiles from 0 to 1.';
    end if;
    select greatest(s.trimmed_at, now() - s.max_age)
    into v_kept
    from llm.streams s
    where s.tenant_id = v_tenant
        and s.stream = v_stream;
    if not found then
        v_kept := now() - llm._default_max_age(v_stream);
    end if;

    return query
        select
            s.begins_at,
            least(s.begins_at + v_step, v_until),
            count(e.value),
            min(e.value),
            max(e.value),
            avg(e.value),
            sum(e.value),
            percentile_cont(p_percentiles) within group (order by e.value),
            s.begins_at > v_kept
        from generate_series(v_from, v_until - interval '1 microsecond', v_step) s (begins_at)
        left join (
            select e.value, date_bin(v_step, e.at, v_from) as begins_at
            from llm.stream_entries e
            where e.tenant_id = v_tenant
                and e.stream = v_stream
                and e.value is not null
                and e.at >= v_from
                and e.at < v_until
                and e.at > v_kept
                and (p_labels is null or e.payload @> p_labels)
        ) e on e.begins_at = s.begins_at
        group by s.begins_at
        order by s.begins_at;
end
$$;

alter function llm.metric_window(text, interval, interval, timestamptz, double precision[], jsonb) owner to llm_owner;

comment on function llm.metric_window(text, interval, interval, timestamptz, double precision[], jsonb) is
'Sums up what a metric measured in a window of time, whatever has committed. p_metric; p_window: how long, days count 24 hours; p_step: a row each so
long, null for one row; p_until: the end (exclusive), null for now; p_percentiles: from 0 to 1; p_labels: values with these alone. A step without
values is a row with count 0. Errors: invalid_parameter_value; object_not_in_prerequisite_state.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    'metric_window'
);
select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    '_refuse_metric', 'metric_record', 'metric_record_all'
);
