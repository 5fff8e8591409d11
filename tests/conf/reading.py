"""Options for the tests in this folder, and what they are read into."""

from __future__ import annotations

from typing import Any

import pytest
from anymail.exceptions import AnymailConfigurationError

from django_lettermint.conf import BackendConfig, RelayConfig, backend_config

TOKEN = "lm_5f0c1e9a7b"


def config(**options: Any) -> BackendConfig:
    return backend_config({"api_token": TOKEN, **options})


def relay(**options: Any) -> RelayConfig:
    return config(**options).relay


def refusal(**options: Any) -> str:
    with pytest.raises(AnymailConfigurationError) as raised:
        config(**options)
    return str(raised.value)


def merged(options: dict[str, Any], **keywords: Any) -> dict[str, Any]:
    """Return what a backend gets from `get_connection(**keywords)` on Django 6.1."""
    ignored = {"_ignore_unknown_kwargs": {*keywords}} if keywords else {}
    return {"alias": "default", **options, **keywords, **ignored}
