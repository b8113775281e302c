create type llm.collection as (
    name                 text,
    dimensions           integer,
    distance             text,
    element              text,
    index_kind           text,
    m                    integer,
    ef_construction      integer,
    lists                integer,
    ef_search            integer,
    full_scan_threshold  bigint,
    indexing_threshold   bigint,
    max_segment_size     bigint,
    deleted_threshold    double precision,
    payload_indexes      jsonb,
    on_disk              boolean,
    model                text,
    language             text,
    text_indexed         boolean,
    version              bigint,
    created_at           timestamptz,
    updated_at           timestamptz
);

comment on type llm.collection is
'A collection of points with its settings: as the arguments of llm.create_collection(). version: raised by whatever changes how a search is to be
written.';


-- security definer: writers of the table must not be able to raise words as they please.
create function llm._collections_coherence()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op <> 'INSERT' then
        perform llm._coherence_raise('collections'::text, array[old.name], pg_current_xact_id());
    end if;
    if tg_op = 'DELETE' then
        return old;
    end if;
    perform llm._coherence_raise('collections'::text, array[new.name], pg_current_xact_id());
    return new;
end
$$;

alter function llm._collections_coherence() owner to llm_owner;

comment on function llm._collections_coherence() is
'Trigger of llm.collections: what backends keep of a collection is no longer valid.';


create function llm._find_collection(
    p_name text
)
    returns llm.collection
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready   boolean := llm._require_storage();
    v_collection llm.collection;
    v_target     text;
begin
    select
        c.name, c.dimensions, c.distance, c.element, c.index_kind, c.m, c.ef_construction, c.lists, c.ef_search, c.full_scan_threshold,
        c.indexing_threshold, c.max_segment_size, c.deleted_threshold, c.payload_indexes, c.on_disk, c.model, c.language, c.text_indexed, c.version,
        c.created_at, c.updated_at
    into v_collection
    from llm.collections c
    where c.name = p_name;
    if not found then
        select a.collection into v_target from llm.collection_aliases a where a.alias = p_name;
        if found then
            return llm._find_collection(v_target);
        end if;
        raise exception 'collection % does not exist', coalesce(quote_literal(left(p_name, 100)), 'null')
            using errcode = 'undefined_object',
                  hint = 'llm.list_collections() lists those that there are; llm.create_collection() makes one.';
    end if;
    return v_collection;
end
$$;

comment on function llm._find_collection(text) is
'The settings of a collection, by its name or an alias. Errors: undefined_object when there is no such collection.';


create function llm._check_collection(
    p_collection llm.collection
)
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    c        llm.collection := p_collection;
    v_wrong  text;
    v_hint   text;
    v_widest integer := case c.element when 'halfvec' then 4000 when 'bit' then 16000 else 2000 end;
begin
    if c.name is null or c.name !~ '^[a-z][a-z0-9_]{0,39}$' then
        v_wrong := format('be called %s', coalesce(quote_literal(left(c.name, 100)), 'null'));
        v_hint := 'A name is 1 to 40 lower-case letters, digits and underscores, and begins with a letter.';
    elsif c.dimensions is null or c.dimensions not between 1 and 16000 then
        v_wrong := format('have %s dimensions', coalesce(c.dimensions::text, 'null'));
        v_hint := 'A vector has 1 to 16,000 dimensions.';
    elsif c.distance is null or c.distance not in ('cosine', 'l2', 'inner_product', 'l1') then
        v_wrong := format('have distance %s', coalesce(quote_literal(left(c.distance, 100)), 'null'));
        v_hint := 'Distances are cosine, l2, inner_product and l1.';
    elsif c.element is null or c.element not in ('vector', 'halfvec', 'bit') then
        v_wrong := format('have element %s', coalesce(quote_literal(left(c.element, 100)), 'null'));
        v_hint := 'Elements are vector (4 bytes a dimension), halfvec (2 bytes), and bit (stored as vector, indexed by sign).';
    elsif c.index_kind is null or c.index_kind not in ('hnsw', 'ivfflat', 'none') then
        v_wrong := format('have index kind %s', coalesce(quote_literal(left(c.index_kind, 100)), 'null'));
        v_hint := 'Kinds of index are hnsw, ivfflat and none.';
    elsif c.index_kind <> 'none' and c.dimensions > v_widest then
        v_wrong := format('index %s dimensions of %s', c.dimensions, c.element);
        v_hint := 'An index takes up to 2,000 dimensions of vector, 4,000 of halfvec, and any number of bit; p_index_kind => none needs no index.';
    elsif c.index_kind = 'ivfflat' and (c.distance = 'l1' or c.element = 'bit') then
        v_wrong := format('use ivfflat for distance %s and element %s', c.distance, c.element);
        v_hint := 'ivfflat knows cosine, l2 and inner_product of vector and halfvec. Use hnsw.';
    elsif c.m is null or c.m not between 2 and 100 or c.ef_construction is null or c.ef_construction not between 4 and 1000
        or c.ef_construction < 2 * c.m
    then
        v_wrong := format('have m %s and ef_construction %s', coalesce(c.m::text, 'null'), coalesce(c.ef_construction::text, 'null'));
        v_hint := 'm is 2 to 100, ef_construction 4 to 1,000 and at least twice m.';
    elsif c.lists not between 1 and 32768 then
        v_wrong := format('have %s lists', c.lists);
        v_hint := 'lists is 1 to 32,768, or null for a number that fits the points.';
    elsif c.ef_search is null or c.ef_search not between 1 and 1000 then
        v_wrong := format('be searched with ef_search %s', coalesce(c.ef_search::text, 'null'));
        v_hint := 'ef_search is 1 to 1,000.';
    elsif c.full_scan_threshold is null or c.full_scan_threshold < 0 or c.indexing_threshold is null or c.indexing_threshold < 1
        or c.max_segment_size is null or c.max_segment_size < 1
    then
        v_wrong := format('have full_scan_threshold %s, indexing_threshold %s, max_segment_size %s', coalesce(c.full_scan_threshold::text, 'null'),
                          coalesce(c.indexing_threshold::text, 'null'), coalesce(c.max_segment_size::text, 'null'));
        v_hint := 'They are counts of points: at least 0, 1 and 1.';
    elsif c.deleted_threshold is null or not (c.deleted_threshold > 0 and c.deleted_threshold <= 1) then
        v_wrong := format('have deleted_threshold %s', coalesce(c.deleted_threshold::text, 'null'));
        v_hint := 'It is a share of a segment''s points: more than 0, at most 1.';
    elsif jsonb_typeof(c.payload_indexes) is distinct from 'object'
        or exists (
            select
            from jsonb_each(c.payload_indexes) f
            where octet_length(f.key) not between 1 and 200
                or f.value not in ('"keyword"', '"integer"', '"float"', '"bool"', '"datetime"', '"uuid"', '"text"', '"geo"')
        )
    then
        v_wrong := format('index payload fields %s', left(coalesce(c.payload_indexes::text, 'null'), 100));
        v_hint := 'Give an object: fields with their types, which are keyword, integer, float, bool, datetime, uuid, text and geo.';
    elsif c.on_disk is null or c.text_indexed is null then
        v_wrong := 'leave on_disk or text_indexed null';
        v_hint := 'They are true or false.';
    elsif length(c.model) not between 1 and 200 then
        v_wrong := format('be of model %L', left(c.model, 100));
        v_hint := 'The name of a model has 1 to 200 characters; null is for any.';
    elsif c.language is null
        or not exists (select from pg_ts_config t where t.cfgname = c.language and t.cfgnamespace = 'pg_catalog'::regnamespace)
    then
        v_wrong := format('be of language %s', coalesce(quote_literal(left(c.language, 100)), 'null'));
        v_hint := 'It is a text search configuration of pg_catalog, such as english, or simple for any language.';
    else
        return;
    end if;
    raise exception 'a collection cannot %', v_wrong using errcode = 'invalid_parameter_value', hint = v_hint;
end
$$;

comment on function llm._check_collection(llm.collection) is
'Refuses settings that make no sense. Errors: invalid_parameter_value.';


create function llm._vector_type(
    p_collection llm.collection
)
    returns text
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return format(
        '%s(%s)',
        case p_collection.element when 'halfvec' then '@extschema:vector@.halfvec' else '@extschema:vector@.vector' end,
        p_collection.dimensions
    );
end
$$;

comment on function llm._vector_type(llm.collection) is
'The type of a collection''s vectors, as SQL.';


create function llm._protect_points(
    p_table regclass
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm._protect_tenant_table(p_table, 'select'::text);
    perform llm._protect_user_rows(p_table);
    -- Row-level security keeps the server from using an index for what is not leakproof: nearness, words, payload. So functions of llm_owner are
    -- exempt, and name tenant and user in each statement.
    execute format('drop policy if exists used_by_function on %s', p_table);
    execute format('create policy used_by_function on %s to llm_owner using (true) with check (true)', p_table);
    execute format('alter policy user_isolation on %s to llm_admin, llm_app, llm_reader, llm_auditor', p_table);
end
$$;

comment on function llm._protect_points(regclass) is
'What the table of a collection''s points gets: as llm._protect_tenant_table() and llm._protect_user_rows(), but not for functions of llm_owner.';


-- security definer: tables of points are llm_owner''s, who alone may create in schema llm.
create function llm.create_collection(
    p_name                text,
    p_dimensions          integer,
    p_distance            text default 'cosine',
    p_element             text default 'vector',
    p_index_kind          text default 'hnsw',
    p_m                   integer default 16,
    p_ef_construction     integer default 100,
    p_lists               integer default null,
    p_ef_search           integer default 40,
    p_full_scan_threshold bigint default 10000,
    p_indexing_threshold  bigint default 20000,
    p_max_segment_size    bigint default 200000,
    p_deleted_threshold   double precision default 0.2,
    p_payload_indexes     jsonb default '{}',
    p_on_disk             boolean default false,
    p_model               text default null,
    p_language            text default 'english',
    p_text_indexed        boolean default true
)
    returns llm.collection
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
as $$
declare
    v_is_ready   boolean := llm._require_storage();
    v_table      text := format('llm.%I', 'points_' || coalesce(p_name, ''));
    v_definition text;
    v_collection llm.collection := row(
        p_name, p_dimensions, p_distance, p_element, p_index_kind, p_m, p_ef_construction, p_lists, p_ef_search, p_full_scan_threshold,
        p_indexing_threshold, p_max_segment_size, p_deleted_threshold, p_payload_indexes, p_on_disk, p_model, p_language, p_text_indexed, 1,
        now(), now()
    )::llm.collection;
begin
    perform llm._check_collection(v_collection);
    if to_regclass(v_table) is not null and not exists (select from llm.collections c where c.name = p_name) then
        raise exception 'a collection cannot be called %, which is an index or a sequence of another one', p_name
            using errcode = 'duplicate_object',
                  hint = 'Choose another name.';
    end if;
    begin
        insert into llm.collections select (v_collection).*;
    exception
        when unique_violation then
            raise exception 'collection % exists already', p_name
                using errcode = 'duplicate_object',
                      hint = 'Choose another name, or change it: llm.alter_collection(), llm.drop_collection().';
    end;

    -- A row stays in one piece, so that reading a vector is reading its page; texts are compressed only where they would not fit.
    execute format(
        $table$
        create table %s (
            tenant_id     text collate "C" not null,
            id            text collate "C" not null check (octet_length(id) between 1 and 500),
            number        bigint generated by default as identity,
            user_id       uuid,
            content       text,
            content_hash  bytea,
            model         text,
            embedding     %s storage main,
            payload       jsonb not null default '{}' check (jsonb_typeof(payload) = 'object'),
            words         tsvector,
            created_at    timestamptz not null default now(),
            updated_at    timestamptz not null default now(),

            primary key (tenant_id, id)
        ) with (toast_tuple_target = 8160%s)
        $table$,
        v_table, llm._vector_type(v_collection), case when not llm._parallel_builds_are_safe() then ', parallel_workers = 0' end
    );
    execute format('comment on table %s is %L', v_table, format('The points of collection %s; see llm.collections.', p_name));
    execute format('create index on %s (tenant_id, number)', v_table);
    execute format('create index on %s (tenant_id, user_id) where user_id is not null', v_table);
    if p_text_indexed then
        execute format('create index on %s using gin (words) where words is not null', v_table);
        -- "what has no words yet"
        execute format('create index on %s (tenant_id, number) where words is null and content is not null', v_table);
    end if;
    for v_definition in select i.definition from llm._payload_indexes(p_name, p_payload_indexes) i loop
        execute format('create index %s', v_definition);
    end loop;
    perform llm._protect_points(v_table::regclass);
    perform llm.register_personal_data(v_table::regclass, 'user_id'::text, 'delete'::text, null::regclass, null::text[], null::text);
    return v_collection;
end
$$;

alter function llm.create_collection(
    text, integer, text, text, text, integer, integer, integer, integer, bigint, bigint, bigint, double precision, jsonb, boolean, text, text, boolean
) owner to llm_owner;

comment on function llm.create_collection(
    text, integer, text, text, text, integer, integer, integer, integer, bigint, bigint, bigint, double precision, jsonb, boolean, text, text, boolean
) is
'Makes a collection for points of all tenants, and returns it. p_name: lower-case letters, digits, underscores; p_dimensions: of its vectors;
p_distance: cosine, l2, inner_product or l1; p_element: vector, halfvec (half the bytes), or bit (indexed by sign, ranked by the whole vector);
p_index_kind: hnsw, ivfflat or none; p_m, p_ef_construction: of hnsw; p_lists: of ivfflat, null for what fits; p_ef_search: candidates that a search
looks at; p_full_scan_threshold: up to so many points that match, a search compares them all; p_indexing_threshold: from so many points on there is an
index; p_max_segment_size: points that one index holds at most; p_deleted_threshold: share of them that may go before it is built again;
p_payload_indexes: fields to filter by, with their types (keyword, integer, float, bool, datetime, uuid, text, geo); p_on_disk: recorded, since
PostgreSQL keeps in memory what is used; p_model: whose vectors these are, no others, null for whatever
they are said to be; p_language: text search configuration; p_text_indexed: whether words are
searched. Errors: invalid_parameter_value; duplicate_object.';


create function llm._refuse_other_model(
    p_collection text,
    p_model      text
)
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_other text;
begin
    execute format('select p.model from llm.%I p where p.embedding is not null and p.model <> $1 limit 1', 'points_' || p_collection)
    into v_other
    using p_model;
    if v_other is not null then
        raise exception 'collection % has vectors of model %', p_collection, quote_literal(v_other)
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Vectors of two models cannot be compared. Make a collection for the other one: llm.copy_for_model().';
    end if;
end
$$;

comment on function llm._refuse_other_model(text, text) is
'Sees to it that no vector of a collection is said to be of another model. Errors: object_not_in_prerequisite_state.';


-- security definer: as llm.create_collection().
create function llm.alter_collection(
    p_name                text,
    p_index_kind          text default null,
    p_m                   integer default null,
    p_ef_construction     integer default null,
    p_lists               integer default null,
    p_ef_search           integer default null,
    p_full_scan_threshold bigint default null,
    p_indexing_threshold  bigint default null,
    p_max_segment_size    bigint default null,
    p_deleted_threshold   double precision default null,
    p_payload_indexes     jsonb default null,
    p_on_disk             boolean default null,
    p_model               text default null
)
    returns llm.collection
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_old llm.collection := llm._find_collection(p_name);
    v_new record;
begin
    -- Who alters it at the same time is waited for, and not undone.
    perform from llm.collections c where c.name = v_old.name for no key update;
    v_old := llm._find_collection(v_old.name);
    select
        coalesce(p_index_kind, o.index_kind) as index_kind, coalesce(p_m, o.m) as m,
        coalesce(p_ef_construction, o.ef_construction) as ef_construction, coalesce(p_lists, o.lists) as lists,
        coalesce(p_ef_search, o.ef_search) as ef_search,
        coalesce(p_full_scan_threshold, o.full_scan_threshold) as full_scan_threshold,
        coalesce(p_indexing_threshold, o.indexing_threshold) as indexing_threshold,
        coalesce(p_max_segment_size, o.max_segment_size) as max_segment_size,
        coalesce(p_deleted_threshold, o.deleted_threshold) as deleted_threshold,
        coalesce(p_payload_indexes, o.payload_indexes) as payload_indexes, coalesce(p_on_disk, o.on_disk) as on_disk,
        coalesce(p_model, o.model) as model
    into v_new
    from (select (v_old).*) o;
    perform llm._check_collection(row(
        p_name, o.dimensions, o.distance, o.element, v_new.index_kind, v_new.m, v_new.ef_construction, v_new.lists, v_new.ef_search,
        v_new.full_scan_threshold, v_new.indexing_threshold, v_new.max_segment_size, v_new.deleted_threshold, v_new.payload_indexes, v_new.on_disk,
        v_new.model, o.language, o.text_indexed, o.version, o.created_at, o.updated_at
    )::llm.collection)
    from (select (v_old).*) o;
    if p_model is distinct from v_old.model and p_model is not null then
        perform llm._refuse_other_model(v_old.name, p_model);
    end if;
    update llm.collections c
    set index_kind = v_new.index_kind,
        m = v_new.m,
        ef_construction = v_new.ef_construction,
        lists = v_new.lists,
        ef_search = v_new.ef_search,
        full_scan_threshold = v_new.full_scan_threshold,
        indexing_threshold = v_new.indexing_threshold,
        max_segment_size = v_new.max_segment_size,
        deleted_threshold = v_new.deleted_threshold,
        payload_indexes = v_new.payload_indexes,
        on_disk = v_new.on_disk,
        model = v_new.model,
        version = c.version + 1,
        updated_at = clock_timestamp()
    where c.name = v_old.name;
    return llm._find_collection(v_old.name);
end
$$;

alter function llm.alter_collection(
    text, text, integer, integer, integer, integer, bigint, bigint, bigint, double precision, jsonb, boolean, text
) owner to llm_owner;

comment on function llm.alter_collection(
    text, text, integer, integer, integer, integer, bigint, bigint, bigint, double precision, jsonb, boolean, text
) is
'Changes a collection and returns it. Arguments: as of llm.create_collection(); what is null stays as it is. What concerns indexes is done by
llm.maintain(): until then searches use those that are there. What its points are (dimensions, distance, element, language) stays: make another
collection for others. Errors: undefined_object when there is no such collection; invalid_parameter_value; object_not_in_prerequisite_state when it
has vectors of another model than p_model.';


-- security definer: as llm.create_collection().
create function llm.drop_collection(
    p_name text
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_table    text := format('llm.%I', 'points_' || coalesce(p_name, ''));
begin
    delete from llm.collections c where c.name = p_name;
    if not found then
        return false;
    end if;
    delete from llm.personal_data d where d.relation = v_table;
    execute format('drop table %s', v_table);
    return true;
end
$$;

alter function llm.drop_collection(text) owner to llm_owner;

comment on function llm.drop_collection(text) is
'Removes a collection with its points of all tenants, for good. Returns false when there is none.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader', 'llm_auditor'],
    '_find_collection'
);

select llm._grant_execute(
    array['llm_owner'],
    '_check_collection', '_vector_type', '_protect_points', '_refuse_other_model'
);

select llm._grant_execute(
    array['llm_admin'],
    'create_collection', 'alter_collection', 'drop_collection'
);
