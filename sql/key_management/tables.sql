-- Keys as their users see them.

create or replace view llm.key_management with (security_invoker = true) as
select
    k.tenant_id,
    k.key_id::text as key_id,
    k.created_at,
    k.expires_at,
    k.revoked_at is null and t.shredded_at is null and exists (select from llm.data_key_versions v where v.tenant_id = k.tenant_id
                                                               and v.key_id = k.key_id) as active,
    k.kind,
    k.key_size,
    k.version,
    k.min_decryption_version,
    k.rotated_at,
    k.revoked_at
from llm.data_keys k
join llm.tenant_keys t on t.tenant_id = k.tenant_id and t.id = k.tenant_key_id;

comment on view llm.key_management is
'Keys with their lives: active until revoked or shredded; never their material. One row a key of the tenant.';

alter view llm.key_management owner to llm_owner;
grant select on llm.key_management to llm_admin, llm_app, llm_reader;
