"""The example's forms turn fields and uploads into messages and errors."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

FORMS = Path(__file__).parents[2] / "example_project" / "outbox" / "forms.py"


@pytest.fixture(scope="module")
def forms() -> Any:
    spec = importlib.util.spec_from_file_location("example_forms", FORMS)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def composed(forms: Any, file: SimpleUploadedFile | None = None, **fields: str) -> Any:
    """Return the message of a form."""
    data = {"to": "ok@testing.lettermint.co", "subject": "S", "text": "T", **fields}
    form = forms.ComposeForm(data, {"attachment": file} if file else {})
    assert form.is_valid(), form.errors
    return form.message({})


def rows(forms: Any, *entries: tuple[str, str]) -> Any:
    data = {"metadata-TOTAL_FORMS": str(len(entries)), "metadata-INITIAL_FORMS": "0"}
    for number, (key, value) in enumerate(entries):
        data |= {f"metadata-{number}-key": key, f"metadata-{number}-value": value}
    return forms.MetadataFormSet(data, prefix="metadata")


@pytest.mark.parametrize(
    ("claimed", "attached"),
    [
        ("text/csv", "text/csv"),
        ("", "application/octet-stream"),
        ("a/b; c", "application/octet-stream"),
        ("multipart/mixed", "application/octet-stream"),
    ],
)
def test_an_upload_of_an_invalid_type_is_attached_as_bytes(
    claimed: str, attached: str, forms: Any
) -> None:
    file = SimpleUploadedFile("mint.csv", b"mint,1.50", claimed)

    [attachment] = composed(forms, file).attachments

    assert (attachment[0], attachment[2]) == ("mint.csv", attached)


def test_addresses_are_split_at_commas_outside_of_quotes(forms: Any) -> None:
    to = 'ann@example.com, "Lee, Kim" <kim@example.com>,Bo <bo@example.com>'

    assert composed(forms, to=to).to == [
        "ann@example.com",
        '"Lee, Kim" <kim@example.com>',
        "Bo <bo@example.com>",
    ]


@pytest.mark.parametrize("tenant", ["north", ""])
def test_a_message_has_the_tenant_that_was_chosen(tenant: str, forms: Any) -> None:
    assert getattr(composed(forms, tenant=tenant), "tenant", "") == tenant


def test_rows_become_metadata_and_empty_ones_are_ignored(forms: Any) -> None:
    filled = rows(forms, ("order", "4711"), ("", ""), ("UserID", "Zoë"))

    assert filled.is_valid()
    assert forms.metadata(filled) == {"order": "4711", "UserID": "Zoë"}


@pytest.mark.parametrize(
    ("entries", "wrong", "rule"),
    [
        ([("a", "1"), ("a", "2")], "id_metadata-1-key", "Another row has this name."),
        ([("a:b", "1")], "id_metadata-0-key", "metadata key"),
        ([("", "1")], "id_metadata-0-key", "metadata key"),
        ([("a", "1\n2")], "id_metadata-0-value", "metadata[&#x27;a&#x27;]"),
    ],
    ids=str,
)
def test_the_field_of_a_row_shows_the_rule_it_breaks(
    entries: list[tuple[str, str]], wrong: str, rule: str, forms: Any
) -> None:
    refused = rows(forms, *entries)

    assert not refused.is_valid()
    [field] = [field for form in refused for field in form if field.errors]
    assert field.auto_id == wrong
    assert rule in str(field.errors)
    assert f'aria-describedby="{wrong}_error"' in str(field)
