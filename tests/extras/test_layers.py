from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import CONTROL, Extras, Layer, merge, resolve

layers = st.fixed_dictionaries(
    {},
    optional={
        "route": st.none() | st.sampled_from(["a", "b"]),
        "tag": st.none() | st.sampled_from(["a", "b"]),
        "metadata": st.none()
        | st.dictionaries(st.sampled_from("kK"), st.sampled_from(["1", "2"])),
        "idempotency_key": st.none() | st.sampled_from(["a", "b"]),
    },
)


class Kind(str, enum.Enum):  # noqa: UP042 - a StrEnum's str() would hide the difference
    WELCOME = "welcome"


class Level(int, enum.Enum):
    HIGH = 3


def refusal(layer: Layer) -> str:
    with pytest.raises(LettermintInvalidMessage) as caught:
        resolve(layer)
    return str(caught.value)


# Precedence


def test_no_layer_gives_nothing() -> None:
    assert resolve() == Extras()


def test_the_last_layer_that_has_a_field_wins() -> None:
    low = {"route": "low", "tag": "low"}
    assert resolve(low, {"tag": "high"}) == Extras(route="low", tag="high")


def test_metadata_is_merged_key_by_key() -> None:
    merged = resolve({"metadata": {"a": 1, "b": 1}}, {"metadata": {"b": 2, "c": 2}})
    assert merged.metadata == {"a": "1", "b": "2", "c": "2"}


def test_two_keys_that_differ_in_case_are_two_keys() -> None:
    merged = resolve({"metadata": {"id": 1}}, {"metadata": {"ID": 2}})
    assert merged.metadata == {"id": "1", "ID": "2"}


@pytest.mark.parametrize("field", ["route", "tag", "idempotency_key"])
def test_none_hides_a_field_of_the_lower_layers(field: str) -> None:
    assert resolve({field: "low"}, {field: None}) == Extras()


def test_none_hides_the_metadata_of_all_lower_layers() -> None:
    low = {"metadata": {"a": 1}}
    assert resolve(low, {"metadata": None}, {"metadata": {"b": 2}}) == Extras(
        metadata={"b": "2"}
    )


def test_a_bad_value_that_a_higher_layer_replaces_does_no_harm() -> None:
    low = {"tag": "a.b", "metadata": {"k": "a\nb"}}
    high = {"tag": "ok", "metadata": {"k": "fine"}}
    assert resolve(low, high) == Extras(tag="ok", metadata={"k": "fine"})


def test_layers_are_not_changed() -> None:
    low, high = {"metadata": {"a": 1}}, {"metadata": {"b": 2}}
    resolve(low, high)
    assert (low, high) == ({"metadata": {"a": 1}}, {"metadata": {"b": 2}})


def test_merged_metadata_over_a_none_goes_on_hiding() -> None:
    block = merge({"metadata": None}, {"metadata": {"b": 2}})
    assert resolve({"metadata": {"a": 1}}, block).metadata == {"b": "2"}


@given(layers, layers, layers)
def test_layers_can_be_merged_in_any_grouping(a: Layer, b: Layer, c: Layer) -> None:
    assert resolve(merge(a, b), c) == resolve(a, b, c) == resolve(a, merge(b, c))


# Metadata values


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        (Kind.WELCOME, "welcome"),
        (7, "7"),
        (Level.HIGH, "3"),
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


@pytest.mark.parametrize("value", [None, [1], {}, b"x", time(1), object()])
def test_a_metadata_value_of_another_type_is_refused(value: object) -> None:
    text = refusal({"metadata": {"order_id": value}})
    assert "metadata['order_id']" in text
    assert "use str, int, float, bool, Decimal, UUID, date or datetime" in text


def test_an_int_of_thousands_of_digits_is_refused() -> None:
    assert "metadata['k']: <int> cannot be sent" in refusal(
        {"metadata": {"k": 10**5000}}
    )


@pytest.mark.parametrize(
    "value", ["a\r\nBcc: x", "a\nb", "\x00", "a\tb", "\x7f", "\x85", "\u2028", "\ud800"]
)
def test_a_metadata_value_with_a_control_character_is_refused(value: str) -> None:
    text = refusal({"metadata": {"k": value}})
    assert "metadata['k']" in text
    assert "no line breaks, control characters or lone surrogates" in text


@pytest.mark.parametrize("value", ["", " ", " a", "a ", "a\u00a0"])
def test_an_empty_or_padded_metadata_value_is_refused(value: str) -> None:
    text = refusal({"metadata": {"k": value}})
    assert "metadata['k']" in text
    assert "not empty and has no blanks at its ends" in text


@given(st.text() | st.integers() | st.floats() | st.decimals() | st.datetimes())
def test_a_metadata_value_is_clean_text_or_refused(value: object) -> None:
    try:
        (text,) = resolve({"metadata": {"k": value}}).metadata.values()
    except LettermintInvalidMessage:
        assert isinstance(value, str)
    else:
        assert text == text.strip() != ""
        assert not CONTROL.search(text)


# Metadata keys


@pytest.mark.parametrize("key", ["order_id", "UserID", "X-Listmonk-Id", "!", "a" * 300])
def test_a_metadata_key_keeps_its_spelling(key: str) -> None:
    assert list(resolve({"metadata": {key: 1}}).metadata) == [key]


@pytest.mark.parametrize(
    "key", ["", "a b", "a:b", "a\r\nBcc", "a\n", "\x00", "\x7f", "é", 5, None]
)
def test_a_metadata_key_that_is_no_header_name_is_refused(key: object) -> None:
    text = refusal({"metadata": {key: "v"}})
    assert f"metadata key: {key!r}" in text
    assert "printable ASCII characters without space and colon" in text


def test_a_metadata_key_of_an_enum_is_its_text() -> None:
    merged = resolve({"metadata": {"welcome": 1}}, {"metadata": {Kind.WELCOME: 2}})
    assert merged.metadata == {"welcome": "2"}


@pytest.mark.parametrize("value", [["a"], "a", 5])
def test_metadata_that_is_no_mapping_is_refused(value: object) -> None:
    assert "metadata: " in refusal({"metadata": value})


def test_any_mapping_is_metadata() -> None:
    class Lookup(Mapping[str, object]):
        def __getitem__(self, key: str) -> object:
            return {"k": 1}[key]

        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(["k"])

        def __len__(self) -> int:
            return 1

    assert resolve({"metadata": Lookup()}).metadata == {"k": "1"}


# Route, tag, idempotency key


@pytest.mark.parametrize("tag", ["a", "A_b-9", "two words here", "a" * 255])
def test_a_tag_of_words_is_accepted(tag: str) -> None:
    assert resolve({"tag": tag}).tag == tag


@pytest.mark.parametrize(
    "tag",
    # The published pattern, used as it stands, accepts the first six.
    [
        *("a\n", "a\nBcc", "a\rb", "a\vb", "a\fb", "a\u00a0b"),
        *("", " a", "a ", "a  b", "a.b", "é", "²", "a" * 256, "\ud800"),
    ],
)
def test_a_tag_that_breaks_the_pattern_is_refused(tag: str) -> None:
    text = refusal({"tag": tag})
    assert text.startswith("tag: ")
    assert "at most 255 ASCII letters, digits, '_', '-' and single inner spaces" in text


@pytest.mark.parametrize("route", ["transactional", "9-a_B", "a" * 255])
def test_a_route_slug_is_accepted(route: str) -> None:
    assert resolve({"route": route}).route == route


@pytest.mark.parametrize("route", ["", "-a", "_a", "a b", "a.b", "a\n", "é", "a" * 256])
def test_a_route_that_is_no_slug_is_refused(route: str) -> None:
    text = refusal({"route": route})
    assert text.startswith("route: ")
    assert "a route slug has" in text


@pytest.mark.parametrize("key", ["!", "order 7/2", "~" * 255])
def test_a_printable_idempotency_key_is_accepted(key: str) -> None:
    assert resolve({"idempotency_key": key}).idempotency_key == key


@pytest.mark.parametrize("key", ["", " a", "a ", "a\nb", "a\n", "\x7f", "é", "a" * 256])
def test_an_idempotency_key_that_breaks_the_rule_is_refused(key: str) -> None:
    text = refusal({"idempotency_key": key})
    assert text.startswith("idempotency_key: ")
    assert "1 to 255 printable ASCII characters" in text


@pytest.mark.parametrize("field", ["route", "tag", "idempotency_key"])
@pytest.mark.parametrize("value", [5, True, ["a"], b"a"])
def test_a_field_that_is_no_text_is_refused(field: str, value: object) -> None:
    text = refusal({field: value})
    assert text.startswith(f"{field}: {value!r} cannot be sent: it must be a str")


def test_a_field_of_an_enum_is_its_text() -> None:
    tag = resolve({"tag": Kind.WELCOME}).tag
    assert (tag, type(tag)) == ("welcome", str)


def test_extras_cannot_be_made_with_a_bad_value() -> None:
    with pytest.raises(LettermintInvalidMessage):
        Extras(tag="a\r\nBcc: x")


@given(st.text(), st.text(), st.text())
def test_any_text_is_kept_as_it_is_or_refused(route: str, tag: str, key: str) -> None:
    try:
        extras = resolve({"route": route, "tag": tag, "idempotency_key": key})
    except LettermintInvalidMessage:
        return
    assert (extras.route, extras.tag, extras.idempotency_key) == (route, tag, key)
    assert (route + tag + key).isascii()


def test_the_error_shows_a_long_value_shortened() -> None:
    assert len(refusal({"tag": "." * 100_000})) < 300
