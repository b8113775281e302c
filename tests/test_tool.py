"""Tools that models may call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from psycopg.errors import InvalidParameterValue, ObjectNotInPrerequisiteState, ProgramLimitExceeded
from psycopg.types.json import Jsonb

from tests.support import Client, Database, at_once, raises

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "pattern": "^\\p{L}[\\w -]*$"},
        "unit": {"enum": ["C", "F"], "default": "C"},
        "days": {"$ref": "#/$defs/days"},
        "at": {"anyOf": [{"type": ["string", "null"], "format": "date-time"}, {"$ref": "#/properties/days"}]},
        "a/b~c": {"$ref": "#/properties/at/anyOf/0"},
        "tree": {"$ref": "#"},
    },
    "required": ["city"],
    "additionalProperties": False,
    "patternProperties": {"^x-": True},
    "dependentRequired": {"at": ["days"]},
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 16.0, "multipleOf": 1}},
}

REGISTER = "select llm.register_tool('weather', %s, %s)"


@pytest.fixture
def acme(app: Client) -> Iterator[Client]:
    """An application's client in a transaction for tenant acme."""
    with app.tenant("acme"):
        yield app


def test_a_changed_definition_is_another_version(acme: Client) -> None:
    assert acme.one(REGISTER, Jsonb(WEATHER), "Weather of a city") == 1
    assert acme.one(REGISTER, Jsonb(WEATHER), "Weather of a city") == 1
    assert acme.one(REGISTER, Jsonb(WEATHER), "The weather of a city") == 2
    assert acme.row("select version, description, arguments, retired_at from llm.get_tool('weather')") == (2, "The weather of a city", WEATHER, None)
    assert acme.one("select (llm.get_tool('weather', 1)).description") == "Weather of a city"
    assert acme.one("select (llm.get_tool('wether')).name") is None


def test_a_retired_tool_is_not_called_any_more(acme: Client) -> None:
    for description in ("a", "b"):
        acme.run(REGISTER, Jsonb(WEATHER), description)
    assert acme.one("select llm.tool_exists('weather')") is True
    assert acme.one("select llm.retire_tool('weather', 2)") == 1
    assert acme.one("select (llm.get_tool('weather')).version") == 1
    assert acme.one("select llm.retire_tool('weather')") == 1
    assert acme.one("select llm.retire_tool('weather')") == 0
    assert acme.one("select llm.tool_exists('weather')") is False
    assert acme.one("select llm.tool_definitions()") == []
    assert acme.one(REGISTER, Jsonb(WEATHER), "b") == 3


def test_tools_are_registered_and_listed_together(acme: Client) -> None:
    nothing = {"type": "object", "properties": {}}
    tools = [{"name": name, "arguments": nothing, "metadata": {"n": name}} for name in ("zip", "add", "mul", "add_all")]
    assert acme.column("select name from llm.register_tools(%s)", Jsonb(tools)) == ["add", "add_all", "mul", "zip"]
    assert acme.column("select name from llm.list_tools(p_limit => 2, p_after => 'add')") == ["add_all", "mul"]
    assert acme.column("select name from llm.list_tools('add')") == ["add", "add_all"]
    assert acme.one("select llm.count_tools('add')") == 2
    assert acme.one("select (llm.get_tool('zip')).metadata") == {"n": "zip"}
    for bad in ("3", "[1]", '{"name": "x"}', None):
        with raises(InvalidParameterValue, match="these are not tools", hint="array of objects"), acme.transaction():
            acme.run("select llm.register_tools(%s)", bad)


def test_tools_are_told_in_the_shape_of_each_api(acme: Client) -> None:
    acme.run("select llm.register_tool('weather', %s, 'Weather', '{\"type\": \"number\"}')", Jsonb(WEATHER))
    acme.run("select llm.register_tool('other', '{\"type\": \"object\"}')")
    shapes = {shape: acme.one("select llm.tool_definitions('{weather}', %s)", shape) for shape in ("openai", "anthropic", "mcp")}
    assert shapes == {
        "openai": [{"type": "function", "function": {"name": "weather", "description": "Weather", "parameters": WEATHER}}],
        "anthropic": [{"name": "weather", "description": "Weather", "input_schema": WEATHER}],
        "mcp": [{"name": "weather", "description": "Weather", "inputSchema": WEATHER, "outputSchema": {"type": "number"}}],
    }
    assert [tool["name"] for tool in acme.one("select llm.tool_definitions(p_shape => 'mcp')")] == ["other", "weather"]
    with raises(InvalidParameterValue, match="tools have no shape 'xml'", hint="openai, anthropic and mcp"):
        acme.run("select llm.tool_definitions(null, 'xml')")


@pytest.mark.parametrize("name", [None, "", "a b", "a.b", "é", "x" * 65, "a\n"])
def test_a_tool_has_a_name_that_models_take(acme: Client, name: str | None) -> None:
    with raises(InvalidParameterValue, match="a tool cannot be called", hint="1 to 64 letters"):
        acme.run("select llm.register_tool(%s, %s)", name, Jsonb(WEATHER))


@pytest.mark.parametrize("schema", [None, True, {}, {"type": "array"}, {"type": ["object"]}, [], "object"])
def test_arguments_are_an_object(acme: Client, schema: object) -> None:
    with raises(InvalidParameterValue, match="the arguments of tool weather are not an object", hint='"type": "object"'):
        acme.run("select llm.register_tool('weather', %s)", None if schema is None else Jsonb(schema))


@pytest.mark.parametrize(
    ("inner", "place", "problem"),
    [
        ({"type": "strin"}, "/properties/x/type", '"strin" is no type'),
        ({"type": []}, "/properties/x/type", "no type is left"),
        ({"type": {}}, "/properties/x/type", "is no type"),
        (3, "/properties/x", "a schema is an object, true or false"),
        ({"properties": []}, "/properties/x/properties", "an object of schemas"),
        ({"items": {"not": 1}}, "/properties/x/items/not", "a schema is"),
        ({"items": [{"type": "x"}]}, "/properties/x/items/0/type", "no type"),
        ({"anyOf": []}, "/properties/x/anyOf", "at least one schema"),
        ({"allOf": [True, {"oneOf": {}}]}, "/properties/x/allOf/1/oneOf", "at least one schema"),
        ({"properties": {"a/b~": {"minimum": "1"}}}, "/properties/x/properties/a~1b~0/minimum", "minimum is a number"),
        ({"multipleOf": 0}, "/properties/x/multipleOf", "a number above 0"),
        ({"maximum": True}, "/properties/x/maximum", "maximum is a number"),
        ({"minLength": -1}, "/properties/x/minLength", "a whole number from 0"),
        ({"maxItems": 1.5}, "/properties/x/maxItems", "a whole number from 0"),
        ({"required": "y"}, "/properties/x/required", "an array of names"),
        ({"required": ["y", "y"]}, "/properties/x/required", "each once"),
        ({"dependentRequired": {"a": "b"}}, "/properties/x/dependentRequired", "arrays of names"),
        ({"uniqueItems": 1}, "/properties/x/uniqueItems", "true or false"),
        ({"enum": "a"}, "/properties/x/enum", "an array"),
        ({"title": 1}, "/properties/x/title", "a string"),
        ({"pattern": "("}, "/properties/x/pattern", "no regular expression"),
        ({"patternProperties": {"[": True}}, "/properties/x/patternProperties", "no regular expression"),
        ({"patternProperties": 1}, "/properties/x/patternProperties", "is an object"),
        ({"$ref": "#/$defs/nothing"}, "/properties/x/\\$ref", "#/\\$defs/nothing leads nowhere"),
        ({"$ref": "#/properties/x/enum/3", "enum": []}, "/properties/x/\\$ref", "leads nowhere"),
        ({"$ref": "#thing"}, "/properties/x/\\$ref", "#thing leads nowhere"),
        ({"$ref": "https://example.org/s"}, "/properties/x/\\$ref", "outside of this schema"),
    ],
)
def test_what_is_no_json_schema_is_refused_with_the_place(acme: Client, inner: object, place: str, problem: str) -> None:
    with raises(InvalidParameterValue, match="what tool t takes is no JSON Schema", hint="json-schema.org", detail=f"At {place}: .*{problem}"):
        acme.run("select llm.register_tool('t', %s)", Jsonb({"type": "object", "properties": {"x": inner}}))


def test_what_a_tool_returns_is_a_json_schema_too(acme: Client) -> None:
    with raises(InvalidParameterValue, match="what tool t returns is no JSON Schema", detail="At the top: a schema is an object"):
        acme.run("select llm.register_tool('t', %s, p_result => '3')", Jsonb(WEATHER))


def test_a_schema_that_is_nested_too_deep_is_refused(acme: Client) -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(110):
        schema = {"type": "object", "properties": {"x": schema}}
    with raises(ProgramLimitExceeded, match="a JSON Schema of more than 100 levels", hint=r"\$defs"):
        acme.run("select llm.register_tool('t', %s)", Jsonb(schema))


def test_one_definition_registered_at_once_by_many_clients_is_one_version(database: Database) -> None:
    """Q-16"""
    clients = database.clients(8, "app")
    database.client().run("select llm.bind_role('app', 'acme')")
    assert at_once(clients, REGISTER, Jsonb(WEATHER), "same") == [1] * 8
    statement = "select llm.register_tool('weather', %s, pg_backend_pid()::text)"
    assert sorted(at_once(clients, statement, Jsonb(WEATHER))) == list(range(2, 10))


def test_without_a_tenant_no_tool_is_registered(app: Client) -> None:
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
        app.run(REGISTER, Jsonb(WEATHER), "")


def test_a_tenants_tools_are_nobody_elses(app: Client) -> None:
    """RLS-02, RLS-04"""
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            assert app.one(REGISTER, Jsonb(WEATHER), f"of {tenant}") == 1
    with app.tenant("acme"):
        answers = [app.rows(f"select {call}::text") for call in ("llm.get_tool('weather')", "llm.list_tools()", "llm.tool_definitions()")]
        assert "globex" not in str(answers)
        assert app.one("select llm.retire_tool('weather')") == 1
    with app.tenant("globex"):
        assert app.one("select (llm.get_tool('weather')).description") == "of globex"
