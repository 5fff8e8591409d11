"""What the example's forms make of what a visitor typed and uploaded."""

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


def rows(forms: Any, *entries: tuple[str, str]) -> Any:
    data = {"metadata-TOTAL_FORMS": str(len(entries)), "metadata-INITIAL_FORMS": "0"}
    for number, (key, value) in enumerate(entries):
        data |= {f"metadata-{number}-key": key, f"metadata-{number}-value": value}
    return forms.MetadataFormSet(data, prefix="metadata")


@pytest.mark.parametrize(
    ("said", "attached"),
    [
        ("text/csv", "text/csv"),
        ("application/vnd.ms-excel", "application/vnd.ms-excel"),
        ("", "application/octet-stream"),
        ("garbage", "application/octet-stream"),
        ("a/b; c", "application/octet-stream"),
        ("multipart/mixed", "application/octet-stream"),
    ],
)
def test_an_upload_of_an_odd_type_is_attached_as_bytes(
    said: str, attached: str, forms: Any
) -> None:
    file = SimpleUploadedFile("mint.csv", b"mint,1.50", said)
    data = {"to": "ok@testing.lettermint.co", "subject": "S", "text": "T"}
    form = forms.ComposeForm(data, {"attachment": file})
    assert form.is_valid()
    [attachment] = form.message({}).attachments
    assert attachment[0] == "mint.csv"
    assert attachment[2] == attached


def test_addresses_are_parted_at_commas_but_not_in_quotes(forms: Any) -> None:
    to = 'ann@example.com, "Lee, Kim" <kim@example.com>,Bo <bo@example.com>'
    form = forms.ComposeForm({"to": to, "subject": "S", "text": "T"})
    assert form.is_valid()
    assert form.message({}).to == [
        "ann@example.com",
        '"Lee, Kim" <kim@example.com>',
        "Bo <bo@example.com>",
    ]


def test_rows_become_metadata_and_empty_ones_do_not_count(forms: Any) -> None:
    filled = rows(forms, ("order", "4711"), ("", ""), ("UserID", "Zoë"))
    assert filled.is_valid()
    assert forms.metadata(filled) == {"order": "4711", "UserID": "Zoë"}


@pytest.mark.parametrize(
    ("entries", "wrong", "rule"),
    [
        ([("a", "1"), ("a", "2")], "id_metadata-1-key", "Another row has this name."),
        ([("a:b", "1")], "id_metadata-0-key", "metadata key"),
        ([("", "1")], "id_metadata-0-key", "metadata key"),
        ([("a", "")], "id_metadata-0-value", "metadata[&#x27;a&#x27;]"),
        ([("a", "1\n2")], "id_metadata-0-value", "metadata[&#x27;a&#x27;]"),
    ],
    ids=str,
)
def test_a_rule_that_a_row_breaks_is_told_at_its_field(
    entries: list[tuple[str, str]], wrong: str, rule: str, forms: Any
) -> None:
    refused = rows(forms, *entries)
    assert not refused.is_valid()
    fields = [field for form in refused for field in form]
    [field] = [field for field in fields if field.errors]
    assert field.auto_id == wrong
    assert rule in str(field.errors)
    assert 'aria-invalid="true"' in str(field)
    assert f'aria-describedby="{wrong}_error"' in str(field)


@pytest.mark.parametrize("tenant", ["north", "south", ""])
def test_the_mail_is_that_of_the_tenant_that_was_chosen(
    tenant: str, forms: Any
) -> None:
    data = {"to": "ok@testing.lettermint.co", "subject": "S", "text": "T"}
    form = forms.ComposeForm({**data, "tenant": tenant})
    assert form.is_valid()
    assert getattr(form.message({}), "tenant", "") == tenant
    assert not forms.ComposeForm({**data, "tenant": "east"}).is_valid()
