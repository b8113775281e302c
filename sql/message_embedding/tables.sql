-- Vectors of messages are points of a collection; nothing is stored here but that they go with their messages.

create or replace trigger message_embedding
    after delete on llm.messages
    for each row execute function llm._drop_message_embedding();

create or replace trigger message_embedding_soft
    after update of deleted_at on llm.messages
    for each row when (old.deleted_at is null and new.deleted_at is not null) execute function llm._drop_message_embedding();
