create type llm.audit_analysis as (
    user_id           text,
    event_count       bigint,
    frequent_actions  text[],
    time_range        tstzrange,
    summary           jsonb
);

comment on type llm.audit_analysis is
'What llm.analyze_audit_logs() says of a user''s events, or of everybody''s (user_id null): how many, the actions by how often they occur, from the
first to the last, and the rest in summary: window, counts by action, user, object type and address, activity over time and by hour of the day
(UTC).';


create type llm.audit_anomaly as (
    tenant_id  text,
    user_id    text,
    kind       text,
    at         timestamptz,
    score      double precision,
    evidence   jsonb
);

comment on type llm.audit_anomaly is
'Something unusual in the audit log: who, what (first action, first address, first object, rate), when it began, how unusual (score: for a first,
events for each that was new before; for a rate, standard deviations above the user''s own pattern), and the numbers that say so.';


create function llm.analyze_audit_logs(
    p_user_id text default null,
    p_from    timestamptz default null,
    p_to      timestamptz default null
)
    returns llm.audit_analysis
    language plpython3u
    stable
    set search_path = pg_catalog, pg_temp
    set work_mem = '32MB'
as $$
from pg_llm import audit_report
return audit_report.analyze(p_user_id, p_from, p_to)
$$;

comment on function llm.analyze_audit_logs(text, timestamptz, timestamptz) is
'Analyzes the events of the audit log that the caller may read. p_user_id: whose, null for everybody''s; p_from (inclusive), p_to (exclusive): null
for all. Memory does not grow with the number of events. Errors: object_not_in_prerequisite_state when the storage is not set up.';


create function llm.audit_anomalies(
    p_from    timestamptz default now() - interval '1 day',
    p_to      timestamptz default now(),
    p_history interval default '30 days'
)
    returns setof llm.audit_anomaly
    language plpython3u
    stable
    set search_path = pg_catalog, pg_temp
    set work_mem = '32MB'
as $$
from pg_llm import audit_anomaly
return audit_anomaly.anomalies(p_from, p_to, p_history)
$$;

comment on function llm.audit_anomalies(timestamptz, timestamptz, interval) is
'What users did from p_from to p_to that they did not do in the time before, p_history long: an action, an address or an object that is their first
although new ones are rare with them (by Good and Turing''s estimate, at most 1 in 20); hours with far more events than the same hour of other days
(4 standard deviations, and at least 10). Users with less than 20 events before are not judged. Of the rows that the caller may read, most unusual
first. Errors: invalid_parameter_value unless p_from < p_to and p_history is positive.';


create function llm.generate_audit_report(
    p_analysis llm.audit_analysis default null,
    p_format   text default 'json',
    p_from     timestamptz default now() - interval '30 days',
    p_to       timestamptz default now()
)
    returns text
    language plpython3u
    stable
    set search_path = pg_catalog, pg_temp
    set work_mem = '32MB'
as $$
from pg_llm import audit_report
return audit_report.report(p_analysis, p_format, p_from, p_to)
$$;

comment on function llm.generate_audit_report(llm.audit_analysis, text, timestamptz, timestamptz) is
'A report: activity over time, by action, by user, and anomalies as findings. p_analysis: of llm.analyze_audit_logs(), null for one of everybody from
p_from to p_to; p_format: json, text, or html (a page with charts that needs nothing else). Errors: invalid_parameter_value for another format.';


select llm._grant_execute(
    array['llm_admin', 'llm_auditor'],
    'analyze_audit_logs', 'audit_anomalies', 'generate_audit_report'
);
