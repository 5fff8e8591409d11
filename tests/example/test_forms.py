"""The example's forms turn fields and uploads into messages and errors."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

FORMS = Path(__file__).parents[2] / "example_project" / "outbox" / "forms.py"


@pytest.fixture(scope="module")
def forms() -> dict[str, Any]:
    return runpy.run_path(str(FORMS))


def rows(forms: dict[str, Any], *entries: tuple[str, str]) -> Any:
    data = {"metadata-TOTAL_FORMS": str(len(entries)), "metadata-INITIAL_FORMS": "0"}
    for number, (key, value) in enumerate(entries):
        data |= {f"metadata-{number}-key": key, f"metadata-{number}-value": value}
    return forms["MetadataFormSet"](data, prefix="metadata")


@pytest.mark.parametrize(
    ("claimed", "attached"),
    [
        ("text/csv", "text/csv"),
        ("a/b; c", "application/octet-stream"),
        ("multipart/mixed", "application/octet-stream"),
    ],
)
def test_fields_and_an_upload_become_a_message(
    claimed: str, attached: str, forms: dict[str, Any]
) -> None:
    filled = rows(forms, ("order", "4711"), ("", ""), ("UserID", "Zoë"))
    form = forms["ComposeForm"](
        {
            "to": 'ann@example.com, "Lee, Kim" <kim@example.com>,Bo <bo@example.com>',
            "subject": "S",
            "text": "T",
            "tenant": "north",
        },
        {"attachment": SimpleUploadedFile("mint.csv", b"mint,1.50", claimed)},
    )
    assert all([form.is_valid(), filled.is_valid()]), form.errors

    message = form.message(forms["metadata"](filled))

    assert message.to == [
        "ann@example.com",
        '"Lee, Kim" <kim@example.com>',
        "Bo <bo@example.com>",
    ]
    assert message.tenant == "north"
    assert message.metadata == {"order": "4711", "UserID": "Zoë"}
    [attachment] = message.attachments
    assert (attachment[0], attachment[2]) == ("mint.csv", attached)


@pytest.mark.parametrize(
    ("entries", "wrong", "rule"),
    [
        ([("a", "1"), ("a", "2")], "id_metadata-1-key", "Another row has this name."),
        ([("a:b", "1")], "id_metadata-0-key", "metadata key"),
        ([("a", "1\n2")], "id_metadata-0-value", "metadata[&#x27;a&#x27;]"),
    ],
    ids=str,
)
def test_the_field_of_a_row_shows_the_rule_it_breaks(
    entries: list[tuple[str, str]], wrong: str, rule: str, forms: dict[str, Any]
) -> None:
    refused = rows(forms, *entries)

    assert not refused.is_valid()
    [field] = [field for form in refused for field in form if field.errors]
    assert field.auto_id == wrong
    assert rule in str(field.errors)
    assert f'aria-describedby="{wrong}_error"' in str(field)
