"""Layers of extras add up by precedence, and what wins is valid or refused."""

from __future__ import annotations

import enum
from datetime import UTC, date, datetime, time
from decimal import Decimal
from http import HTTPStatus
from types import MappingProxyType
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import Extras, Layer, merge, resolve


class Kind(str, enum.Enum):  # noqa: UP042 - a StrEnum's str() would hide the difference
    WELCOME = "welcome"


def refusal(layer: Layer) -> str:
    with pytest.raises(LettermintInvalidMessage) as caught:
        resolve(layer)
    return str(caught.value)


# -- Precedence ----------------------------------------------------------------------------

BAD = {"tag": "a.b", "metadata": {"k": "a\nb"}}


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ([], Extras()),
        ([{"route": "a", "tag": "a"}, {"tag": "b"}], Extras(route="a", tag="b")),
        (
            [{"metadata": {"a": 1, "b": 1}}, {"metadata": {"b": 2, "B": 3}}],
            Extras(metadata={"a": "1", "b": "2", "B": "3"}),
        ),
        ([{"route": "a"}, {"route": None}], Extras()),
        (
            [{"metadata": {"a": 1}}, {"metadata": None}, {"metadata": {"b": 2}}],
            Extras(metadata={"b": "2"}),
        ),
        (
            [BAD, {"tag": "ok", "metadata": {"k": "fine"}}],
            Extras(tag="ok", metadata={"k": "fine"}),
        ),
        (
            [{"metadata": {"welcome": 1}}, {"metadata": {Kind.WELCOME: 2}}],
            Extras(metadata={"welcome": "2"}),
        ),
        ([{"metadata": MappingProxyType({"k": 1})}], Extras(metadata={"k": "1"})),
        ([{"tag": Kind.WELCOME}], Extras(tag="welcome")),
    ],
)
def test_the_last_layer_wins_for_each_field_and_key(
    layers: list[Layer], found: Extras
) -> None:
    assert resolve(*layers) == found


fields = st.none() | st.sampled_from(["a", "b"])
metadata = st.none() | st.dictionaries(st.sampled_from("kK"), st.sampled_from("12"))
layers = st.fixed_dictionaries(
    {},
    optional={
        "route": fields,
        "tag": fields,
        "metadata": metadata,
        "idempotency_key": fields,
    },
)


@given(layers, layers, layers)
def test_layers_can_be_merged_in_any_grouping(a: Layer, b: Layer, c: Layer) -> None:
    before = repr([a, b, c])
    assert resolve(merge(a, b), c) == resolve(a, b, c) == resolve(a, merge(b, c))
    assert repr([a, b, c]) == before


# -- Values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        (Kind.WELCOME, "welcome"),
        (7, "7"),
        (HTTPStatus.OK, "200"),
        (-2.5, "-2.5"),
        (float("inf"), "inf"),
        (True, "true"),
        (False, "false"),
        (Decimal("9.90"), "9.90"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (date(2001, 2, 3), "2001-02-03"),
        (datetime(2001, 2, 3, 4, 5, tzinfo=UTC), "2001-02-03T04:05:00+00:00"),
    ],
)
def test_a_metadata_value_becomes_text(value: object, text: str) -> None:
    (found,) = resolve({"metadata": {"k": value}}).metadata.values()
    assert (found, type(found)) == (text, str)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("tag", tag) for tag in ("a", "A_b-9", "two words here", "a" * 255)),
        *(("route", route) for route in ("transactional", "9-a_B", "a" * 255)),
        *(("idempotency_key", key) for key in ("!", "order 7/2", "~" * 255)),
        *(("metadata", {key: "1"}) for key in ("order_id", "UserID", "!", "a" * 300)),
    ],
)
def test_a_valid_value_is_kept_as_it_is(field: str, value: object) -> None:
    assert getattr(resolve({field: value}), field) == value


TAG_RULE = "at most 255 ASCII letters, digits, '_', '-' and single inner spaces"
CONTROL_RULE = "no line breaks, control characters or lone surrogates"
KEY_RULE = "printable ASCII characters without space and colon"


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        # The published pattern of tags, used as it stands, accepts the first six.
        *(("tag", tag, TAG_RULE) for tag in ("a\n", "a\nb", "a\rb", "a\vb", "a\fb")),
        *(("tag", tag, TAG_RULE) for tag in ("a\u00a0b", "", " a", "a ", "a  b", "²")),
        *(("tag", tag, TAG_RULE) for tag in ("a.b", "é", "a" * 256, "\ud800")),
        *(("route", route, "a route slug has") for route in ("", "-a", "_a", "a b")),
        *(("route", route, "a route slug has") for route in ("a\n", "é", "a" * 256)),
        *(
            ("idempotency_key", key, "1 to 255 printable ASCII characters")
            for key in ("", " a", "a ", "a\nb", "a\n", "\x7f", "é", "a" * 256)
        ),
        *(
            (field, value, "it must be a str, or None")
            for field in ("route", "tag", "idempotency_key")
            for value in (5, True, ["a"], b"a")
        ),
        *(("metadata", value, "use a mapping") for value in (["a"], "a", 5)),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused(
    field: str, value: object, rule: str
) -> None:
    text = refusal({field: value})
    assert text.startswith(f"{field}: ")
    assert rule in text


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        *((value, CONTROL_RULE) for value in ("a\r\nBcc: x", "a\nb", "\0", "a\tb")),
        *((value, CONTROL_RULE) for value in ("\x7f", "\x85", "\u2028", "\ud800")),
        *((value, "no blanks at its ends") for value in ("", " ", " a", "a ", "a\xa0")),
        *((value, "use str, int") for value in (None, [1], b"x", time(1))),
        pytest.param("\0" * 100_000, CONTROL_RULE, id="long"),
    ],
)
def test_a_metadata_value_that_breaks_a_rule_is_refused(
    value: object, rule: str
) -> None:
    text = refusal({"metadata": {"order_id": value}})
    assert text.startswith("metadata['order_id']: ")
    assert rule in text
    assert len(text) < 300


@pytest.mark.parametrize(
    "key", ["", "a b", "a:b", "a\r\nBcc", "a\n", "\x00", "\x7f", "é", 5, None]
)
def test_a_metadata_key_that_is_no_header_name_is_refused(key: object) -> None:
    text = refusal({"metadata": {key: "v"}})
    assert text.startswith(f"metadata key: {key!r}")
    assert KEY_RULE in text
