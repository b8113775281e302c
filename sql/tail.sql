-- Nothing is executable by PUBLIC, also not what functions.sql grants to nobody.

do $privileges$
declare
    v_function regprocedure;
begin
    for v_function in select oid from pg_proc where pronamespace = 'llm'::regnamespace and proacl is null loop
        execute format('revoke all on routine %s from public', v_function);
    end loop;
end
$privileges$;
