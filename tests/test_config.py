"""Configuration: what its users notice."""

from __future__ import annotations

from tests.support import Client


def test_a_saved_value_is_loaded(app: Client) -> None:
    with app.tenant("acme"):
        assert app.one("select llm.save_config('model', '\"gpt\"')") is True
        assert app.one("select llm.load_config('model')") == "gpt"
