-- Checkpoints of threads, and the writes that are pending on them. Without checks: functions alone write here and look before they do, while each
-- check is parsed anew by every insertion, and took a quarter of its time.

create table if not exists llm.checkpoints (
    tenant_id             text not null,
    thread_no             bigint not null,
    checkpoint_ns         text collate "C" not null,
    checkpoint_id         text collate "C" not null,
    parent_checkpoint_id  text collate "C",
    checkpoint            jsonb not null,
    metadata              jsonb not null,
    channels              jsonb not null,

    primary key (tenant_id, thread_no, checkpoint_ns, checkpoint_id),
    foreign key (tenant_id, thread_no) references llm.checkpoint_threads (tenant_id, thread_no) on delete cascade
);

comment on table llm.checkpoints is
'Checkpoints: checkpoint is LangGraph''s without the values of channels; channels has these, by name: [type, base64] of a small one, else
[type, log_id, number, head, digest]: a head (base64) and the pieces of a log up to that number, whose digest that is (hexadecimal).';

-- "what did this run leave"; checkpoints of no run take no room
create index if not exists checkpoints_by_run on llm.checkpoints (tenant_id, (metadata ->> 'run_id')) where metadata ? 'run_id';

create table if not exists llm.checkpoint_writes (
    tenant_id      text not null,
    thread_no      bigint not null,
    checkpoint_ns  text collate "C" not null,
    checkpoint_id  text collate "C" not null,
    task_id        text collate "C" not null,
    idx            integer not null,
    task_path      text collate "C" not null,
    channel        text not null,
    type           text not null,
    hash           bytea,
    content        bytea,

    primary key (tenant_id, thread_no, checkpoint_ns, checkpoint_id, task_id, idx),
    foreign key (tenant_id, thread_no) references llm.checkpoint_threads (tenant_id, thread_no) on delete cascade,
    foreign key (tenant_id, hash) references llm.checkpoint_blobs
);

comment on table llm.checkpoint_writes is
'Pending writes: what tasks of a checkpoint''s next step wrote before that step ended; idx is negative for errors, interrupts and the like. They may
come before their checkpoint does.';

-- "what has this content": asked by the foreign key when it goes
create index if not exists checkpoint_writes_by_hash on llm.checkpoint_writes (tenant_id, hash) where hash is not null;

-- As llm.checkpoint_pieces: whose a row is, its thread knows.
select llm._protect_tenant_table('llm.checkpoints'::regclass, 'select'::text);
drop policy if exists written_by_function on llm.checkpoints;
create policy written_by_function on llm.checkpoints to llm_owner using (true) with check (true);
drop policy if exists by_function_for_users on llm.checkpoints;
create policy by_function_for_users on llm.checkpoints as restrictive to llm_admin, llm_app, llm_reader
    using ((select llm.current_user_id()) is null);

select llm._protect_tenant_table('llm.checkpoint_writes'::regclass, 'select'::text);
drop policy if exists written_by_function on llm.checkpoint_writes;
create policy written_by_function on llm.checkpoint_writes to llm_owner using (true) with check (true);
drop policy if exists by_function_for_users on llm.checkpoint_writes;
create policy by_function_for_users on llm.checkpoint_writes as restrictive to llm_admin, llm_app, llm_reader
    using ((select llm.current_user_id()) is null);

create or replace trigger references_gone
    after delete on llm.checkpoint_writes
    referencing old table as gone
    for each statement execute function llm._checkpoint_references_gone();

select llm.register_personal_data(
    'llm.checkpoints'::regclass, null::text, 'delete'::text, 'llm.checkpoint_threads'::regclass, null::text[], null::text
);
select llm.register_personal_data(
    'llm.checkpoint_writes'::regclass, null::text, 'delete'::text, 'llm.checkpoint_threads'::regclass, null::text[], null::text
);
