-- Consumer groups: how far each has been read, and which entries were delivered and not acknowledged.

create table if not exists llm.consumer_groups (
    tenant_id       text collate "C" not null check (tenant_id <> '*'),
    stream          text collate "C" not null,
    group_name      text collate "C" not null,
    position        text,
    created_at      timestamptz not null default clock_timestamp(),

    primary key (tenant_id, stream, group_name)
-- The position changes with each read: on the page (HOT).
) with (fillfactor = 20);

comment on table llm.consumer_groups is
'Groups of consumers of a stream: position is that of the last entry that was delivered, null before the first. Written by functions alone.';

create table if not exists llm.group_deliveries (
    tenant_id       text collate "C" not null check (tenant_id <> '*'),
    stream          text collate "C" not null,
    group_name      text collate "C" not null,
    era             bigint not null,
    transaction_id  xid8 not null,
    number          bigint not null,
    at              timestamptz not null,
    consumer        text collate "C" not null,
    delivered_at    timestamptz not null default clock_timestamp(),
    delivery_count  bigint not null default 1,

    primary key (tenant_id, stream, group_name, era, transaction_id, number)
-- No foreign key: its check would take longer than the row. Who delivers holds the group's row anyway, and llm.group_drop() deletes what a key would.
) with (
    fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0
);

comment on table llm.group_deliveries is
'Entries that were delivered to a consumer of a group, and not acknowledged: era, transaction_id, number and at are the entry''s; delivered_at when
that was last, delivery_count how often. Written by functions alone.';

select llm._protect_tenant_table('llm.consumer_groups'::regclass, 'select'::text);
drop policy if exists written_by_function on llm.consumer_groups;
create policy written_by_function on llm.consumer_groups to llm_owner using (true) with check (true);
select llm._protect_tenant_table('llm.group_deliveries'::regclass, 'select'::text);
drop policy if exists written_by_function on llm.group_deliveries;
create policy written_by_function on llm.group_deliveries to llm_owner using (true) with check (true);
