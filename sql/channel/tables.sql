-- Who subscribes to which channels, how far he has read, and when he was last there.

create table if not exists llm.channel_subscribers (
    tenant_id     text collate "C" not null check (tenant_id <> '*'),
    subscriber    text collate "C" not null,
    user_id       uuid,
    patterns      text[] not null,
    position      text,
    presence      interval not null,
    seen_at       timestamptz not null default clock_timestamp(),
    is_signalled  boolean not null default false,

    primary key (tenant_id, subscriber)
-- It is changed by each read: on the page (HOT).
) with (fillfactor = 50);

comment on table llm.channel_subscribers is
'Subscribers of channels: patterns of their names; position is that of the last entry of stream channels that was looked at; who was seen within
presence is there; is_signalled: a NOTIFY was sent since he last read. user_id is who subscribed. Written by functions alone.';

select llm._protect_tenant_table('llm.channel_subscribers'::regclass, 'select'::text);
-- Everybody of the tenant sees who is there; a user reads for himself.
drop policy if exists user_isolation on llm.channel_subscribers;
create policy user_isolation on llm.channel_subscribers as restrictive for update
    using ((select llm.current_user_id()) is null or user_id = (select llm.current_user_id()))
    with check ((select llm.current_user_id()) is null or user_id = (select llm.current_user_id()));
drop policy if exists user_isolation_of_others on llm.channel_subscribers;
create policy user_isolation_of_others on llm.channel_subscribers as restrictive for delete
    using ((select llm.current_user_id()) is null or user_id = (select llm.current_user_id()));
drop policy if exists written_by_function on llm.channel_subscribers;
create policy written_by_function on llm.channel_subscribers to llm_owner using (true) with check (true);
select llm.register_personal_data('llm.channel_subscribers'::regclass, 'user_id'::text, 'delete'::text, null::regclass, null::text[], null::text);
