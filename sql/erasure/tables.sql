-- What is kept when a user is forgotten, and why. Nothing is stored here but that.

select llm.register_personal_data(
    'llm.audit_log'::regclass, 'user_id'::text, 'keep'::text, null::regclass, null::text[],
    'The audit log is only ever added to. It names users by their ids; sensitive details of a user are encrypted with his key.'::text
);
select llm.register_personal_data(
    'llm.audit_events'::regclass, 'user_id'::text, 'keep'::text, null::regclass, null::text[],
    'It passes rows on to the audit log, and holds none.'::text
);
