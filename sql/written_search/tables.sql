-- Searches are written when the transaction that changes a collection ends: until then there is none for its new form, and it is searched as planned.

drop trigger if exists write_searches on llm.collections;
create constraint trigger write_searches
    after insert or update or delete on llm.collections
    deferrable initially deferred
    for each row execute function llm._collections_changed();

select llm._write_searches();
