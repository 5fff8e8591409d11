"""Extras and tenants on messages and in blocks, and what freeze() makes of them."""

from __future__ import annotations

import asyncio
import copy
import enum
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from anymail.exceptions import AnymailUnsupportedFeature
from anymail.message import AnymailMessage, AnymailRecipientStatus
from asgiref.sync import sync_to_async
from django.core.mail import EmailMessage
from django.core.mail.backends.locmem import EmailBackend
from django.utils.functional import SimpleLazyObject, lazystr
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import Extras, extract_extras, resolve
from django_lettermint.message import (
    LettermintMessage,
    active_extras,
    attribute_layer,
    default_layer,
    extras,
    freeze,
    tenant_of,
)

LAZY: Any = lazystr("v")
LAZY_NONE: Any = SimpleLazyObject(lambda: None)


class Kind(str, enum.Enum):  # noqa: UP042 - a StrEnum's str() would hide the difference
    WELCOME = "welcome"


def make(headers: dict[str, Any] | None = None, **attributes: Any) -> EmailMessage:
    message = EmailMessage("s", "b", "from@x.test", ["to@x.test"], headers=headers)
    vars(message).update(attributes)
    return message


def effective(message: EmailMessage) -> Extras:
    """Resolve as the payload does, without send defaults."""
    layer, _ = extract_extras(message.extra_headers)
    return resolve(active_extras(), layer, attribute_layer(message))


# -- LettermintMessage ---------------------------------------------------------------------


def test_extras_are_keywords_beside_djangos_arguments() -> None:
    message = LettermintMessage(
        *("s", "b", "f@x.test", ["t@x.test"]),
        cc=["c@x.test"],
        route="r",
        tag="t",
        metadata={"k": 1},
        idempotency_key="i",
    )
    message.attach_alternative("<b>b</b>", "text/html")
    assert effective(message) == Extras(
        route="r", tag="t", metadata={"k": "1"}, idempotency_key="i"
    )
    assert (message.subject, message.body, message.from_email) == ("s", "b", "f@x.test")
    assert message.recipients() == ["t@x.test", "c@x.test"]


def test_what_is_not_given_is_no_attribute() -> None:
    message = LettermintMessage("s", tag="t")
    assert attribute_layer(message) == {"tag": "t"}
    assert {"route", "tenant"}.isdisjoint(vars(message))


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), freeze],
)
def test_extras_and_status_survive_copies_pickles_and_freezing(
    duplicate: Callable[[Any], Any],
) -> None:
    message = LettermintMessage(to=["ann@example.com"], tag="t", metadata={"k": 1})
    assert message.anymail_status is not LettermintMessage().anymail_status
    assert duplicate(message).anymail_status.status is None
    assert effective(duplicate(message)) == effective(message)
    message.anymail_status.set_recipient_status(
        {"ann@example.com": AnymailRecipientStatus("id", "queued")}
    )
    assert duplicate(message).anymail_status.status == {"queued"}


def test_a_message_sent_by_another_backend_has_a_status() -> None:
    message = LettermintMessage("s", "b", "us@example.com", ["ann@example.com"])
    EmailBackend().send_messages([message])
    assert message.anymail_status.status is None


# -- extras() ------------------------------------------------------------------------------


def test_a_block_holds_for_every_message_inside_until_it_ends_or_fails() -> None:
    block = extras(route="r", tag="t", metadata={"k": 1})
    for _ in range(2):
        with suppress(ZeroDivisionError), block, block:
            assert effective(make()) == Extras(route="r", tag="t", metadata={"k": "1"})
            raise ZeroDivisionError
        assert active_extras() == {}


def test_an_inner_block_wins_for_each_field_and_key() -> None:
    with extras(route="outer", tag="outer", metadata={"a": 1, "b": 1}):
        with extras(tag="inner", metadata={"b": 2}):
            assert effective(make()) == Extras(
                route="outer", tag="inner", metadata={"a": "1", "b": "2"}
            )
        assert effective(make()).tag == "outer"


def test_none_in_a_block_hides_outer_blocks_and_defaults() -> None:
    with extras(tag="outer", metadata={"a": 1}), extras(tag=None, metadata=None):
        assert active_extras() == {"tag": None, "metadata": None}
        with extras(metadata={"b": 1}):
            defaults = {"metadata": {"default": 1}}
            assert resolve(defaults, active_extras()).metadata == {"b": "1"}


@pytest.mark.parametrize(
    "bad",
    [
        {"tag": "a.b"},
        {"metadata": {"k": LAZY_NONE}},
        {"metadata": {"k": "x" * 1000}},
        {"tenant": ""},
    ],
)
def test_a_bad_value_fails_at_the_block(bad: dict[str, Any]) -> None:
    entered = False
    with pytest.raises(LettermintInvalidMessage), extras(**bad):
        entered = True
    assert not entered


def test_a_block_takes_no_idempotency_key() -> None:
    with pytest.raises(TypeError, match="idempotency_key"):
        extras(idempotency_key="k")  # type: ignore[call-arg] # that is the test


def test_lazy_values_in_a_block_are_made_values() -> None:
    with extras(tag=LAZY, metadata={"k": LAZY}, route=LAZY_NONE, tenant=LAZY):
        assert active_extras() == {
            "tag": "v",
            "metadata": {"k": "v"},
            "route": None,
            "tenant": "v",
        }


def test_a_block_can_be_a_decorator() -> None:
    @extras(tag="t")
    def tag() -> str | None:
        return effective(make()).tag

    assert [tag(), tag()] == ["t", "t"]
    assert tag.__name__ == "tag"


async def _coroutine() -> None: ...


def _generator() -> Iterator[None]:
    yield


async def _async_generator() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    "function", [_coroutine, _generator, _async_generator, sync_to_async(len)]
)
def test_what_runs_when_the_block_has_ended_is_not_decorated(
    function: Callable[..., object],
) -> None:
    with pytest.raises(TypeError, match="inside of it"):
        extras(tenant="acme")(function)


def test_a_decorated_function_that_returns_a_coroutine_is_refused() -> None:
    @extras(tenant="acme")
    def dispatch() -> object:
        return _coroutine()

    with pytest.raises(TypeError, match="inside of it"):
        dispatch()


def test_tasks_of_asyncio_and_their_threads_have_their_own_blocks() -> None:
    async def tag(name: str, barrier: asyncio.Barrier) -> str | None:
        with extras(tag=name):
            await barrier.wait()
            return (await asyncio.to_thread(lambda: effective(make()))).tag

    async def both() -> list[str | None]:
        barrier = asyncio.Barrier(2)
        return list(await asyncio.gather(tag("a", barrier), tag("b", barrier)))

    assert asyncio.run(both()) == ["a", "b"]


# -- Attributes and defaults -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "layer"),
    [
        ({}, {}),
        ({"route": "r", "metadata": {"k": 1}}, {"route": "r", "metadata": {"k": 1}}),
        ({"tag": LAZY, "route": LAZY_NONE}, {"tag": "v", "route": None}),
        (
            {"metadata": {LAZY: LAZY, "o": SimpleLazyObject(lambda: "w"), "n": 1}},
            {"metadata": {"v": "v", "o": "w", "n": 1}},
        ),
        ({"tags": ["t"]}, {"tag": "t"}),
        ({"tags": (LAZY,)}, {"tag": "v"}),
        ({"tags": []}, {}),
        ({"tags": None}, {"tag": None}),
        (
            {"esp_extra": {"route": "r", "tag": LAZY, "idempotency_key": "i"}},
            {"route": "r", "tag": "v", "idempotency_key": "i"},
        ),
        ({"esp_extra": None}, {}),
        ({"tag": "v", "tags": [LAZY], "esp_extra": {"tag": "v"}}, {"tag": "v"}),
        ({"tag": None, "tags": ["a"]}, {"tag": "a"}),
    ],
)
def test_attributes_of_any_message_are_read(
    attributes: dict[str, Any], layer: dict[str, Any]
) -> None:
    found = attribute_layer(make(**attributes))
    assert found == layer
    assert all(type(each) in (str, dict, type(None)) for each in found.values())


def test_what_an_anymail_message_leaves_unset_is_skipped() -> None:
    assert attribute_layer(AnymailMessage("s", "b", "f@x.test", ["t@x.test"])) == {}


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        *(
            ({"tags": tags}, "tags: .* use a list")
            for tags in ("t", LAZY, b"bytes", 5, {"t": 1})
        ),
        ({"esp_extra": ["route"]}, "^esp_extra: "),
        ({"tag": "a", "tags": ["b"]}, "'b' .* also has 'a'"),
        ({"tag": "a", "esp_extra": {"tag": "b"}}, "'b' .* also has 'a'"),
        ({"metadata": {"k": LAZY_NONE}}, "None cannot be sent"),
    ],
)
def test_bad_attributes_are_refused_by_name(
    attributes: dict[str, Any], text: str
) -> None:
    with pytest.raises(LettermintInvalidMessage, match=text):
        effective(make(**attributes))


@pytest.mark.parametrize(
    ("attributes", "text", "layer"),
    [
        ({"tags": ["a", "b"]}, r"multiple tags \(\['a', 'b'\]", {"tag": "a"}),
        *(
            ({"esp_extra": {key: {}, "route": "r"}}, "route, tag, idem", {"route": "r"})
            for key in ("metadata", "Route", 5)
        ),
    ],
)
def test_what_has_no_header_is_refused_or_left_out(
    attributes: dict[str, Any], text: str, layer: dict[str, Any]
) -> None:
    for read in (
        lambda: attribute_layer(make(**attributes)),
        lambda: default_layer(attributes),
    ):
        with pytest.raises(AnymailUnsupportedFeature, match=text):
            read()
    told: list[str] = []
    assert attribute_layer(make(**attributes), told.append) == layer
    assert len(told) == 1


@pytest.mark.parametrize(
    ("defaults", "layer"),
    [
        ({}, {}),
        ({"tag": "ours", "tags": ["site"]}, {"tag": "ours"}),
        ({"tag": "ours", "esp_extra": {"tag": "site"}}, {"tag": "ours"}),
        ({"esp_extra": {"tag": "ours"}, "tags": ["site"]}, {"tag": "ours"}),
        ({"tag": None, "tags": ["site"]}, {"tag": None}),
    ],
)
def test_defaults_in_our_own_words_win(
    defaults: dict[str, Any], layer: dict[str, Any]
) -> None:
    assert default_layer(defaults) == layer


# -- freeze() ------------------------------------------------------------------------------


def test_freeze_turns_what_holds_now_into_headers() -> None:
    given = {"X-A": 1, "x-metadata-K": "v"}
    message = make(given, tags=["t"], metadata={"UserID": "é"}, idempotency_key="i")
    message.metadata["k"] = Kind.WELCOME  # type: ignore[attr-defined] # set above
    with extras(tag="block", route="block"):
        assert freeze(message) is message
    assert message.extra_headers == {
        "X-A": "1",
        "X-Lettermint-Route": "block",
        "X-LM-Tag": "t",
        "X-LM-Metadata-K": "v",
        "X-LM-Metadata-UserID": "=?utf-8?b?w6k=?=",
        "X-LM-Metadata-k": "welcome",
        "Idempotency-Key": "i",
    }
    assert given == {"X-A": 1, "x-metadata-K": "v"}
    assert attribute_layer(message) == {}
    assert message.message()["X-LM-Tag"] == "t"


def test_freeze_leaves_no_sentinel_behind() -> None:
    message = AnymailMessage("s", "b", "f@x.test", ["t@x.test"], tags=["t"])
    freeze(message)
    assert {"tags", "metadata", "esp_extra"}.isdisjoint(vars(message))


def test_freeze_keeps_a_none_as_an_attribute() -> None:
    with extras(route=None, tenant="globex"):
        message = freeze(
            make({"X-LM-Tag": "raw"}, tag=None, tags=None, metadata=None, tenant=None)
        )
    assert message.extra_headers == {}
    assert attribute_layer(message) == {"route": None, "tag": None, "metadata": None}
    assert vars(message)["tenant"] is None


@pytest.mark.parametrize(
    ("given", "headers"),
    [({}, {"From": "from@x.test"}), ({"from": "h@x.test"}, {"from": "h@x.test"})],
)
def test_freeze_expresses_an_envelope_sender_as_django_does(
    given: dict[str, str], headers: dict[str, str]
) -> None:
    message = freeze(make(given, envelope_sender="bounces@x.test"))
    assert message.extra_headers == headers
    assert message.from_email == "bounces@x.test"
    assert "envelope_sender" not in vars(message)


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"merge_metadata": {"to@x.test": {"k": "v"}}}, AnymailUnsupportedFeature),
        ({"merge_headers": {"to@x.test": {"k": "v"}}}, AnymailUnsupportedFeature),
        ({"envelope_sender": ""}, AnymailUnsupportedFeature),
        ({"tag": "a.b"}, LettermintInvalidMessage),
        ({"metadata": {"k": "x" * 1000}}, LettermintInvalidMessage),
        ({"tenant": ""}, LettermintInvalidMessage),
        ({"tenant": 5}, LettermintInvalidMessage),
    ],
)
def test_freeze_refuses_what_headers_cannot_hold_and_changes_nothing(
    attributes: dict[str, Any], kind: type[Exception]
) -> None:
    message = make({"X-Tag": "t"}, **{"envelope_sender": "b@x.test"} | attributes)
    before = copy.deepcopy(vars(message))
    with pytest.raises(kind):
        freeze(message)
    assert vars(message) == before


@given(
    tag=st.none() | st.just("t"),
    metadata=st.dictionaries(st.sampled_from("kK"), st.text()),
    key=st.sampled_from(["i", "=?utf-8?q?x?=", "a =?utf-8?b?eA==?= b"]),
    esp_extra=st.just({}) | st.just({"route": "r"}),
)
def test_a_frozen_message_says_the_same_again_and_again(
    key: str, **attributes: Any
) -> None:
    message = make(idempotency_key=key, **attributes)
    try:
        before = effective(message)
        once = copy.deepcopy(vars(freeze(message)))
    except LettermintInvalidMessage:
        return
    assert effective(message) == before
    assert vars(freeze(message)) == once


# -- Tenants -------------------------------------------------------------------------------


def test_the_attribute_wins_over_the_block_and_the_block_over_all_else() -> None:
    assert tenant_of(LettermintMessage(), "usual") == "usual"
    with extras(tenant="block"):
        assert tenant_of(LettermintMessage(), "usual") == "block"
        assert tenant_of(LettermintMessage(tenant=LAZY), "usual") == "v"
        assert tenant_of(LettermintMessage(tenant=None), "usual") is None
        with extras(tenant=None, tag="a"):
            assert tenant_of(LettermintMessage(), "usual") is None


def test_headers_that_are_no_mapping_name_no_tenant() -> None:
    message: Any = LettermintMessage()
    message.extra_headers = ["X-Lettermint-Tenant"]
    assert tenant_of(message, "usual") == "usual"


def test_freeze_signs_the_tenant() -> None:
    message = LettermintMessage("Hi", "a\nb", "ann@x.com", ["b@x.com"])
    message.envelope_sender = "bounces@example.com"  # type: ignore[attr-defined] # Anymail's
    with extras(tenant="globex"):
        freeze(message)
    assert message.extra_headers["X-Lettermint-Tenant"].startswith("globex:")
    first = dict(message.extra_headers)
    with extras(tenant="acme"):
        assert freeze(message).extra_headers == first
    message.body = "a\r\nb"  # line endings may change on the way
    assert tenant_of(message, None) == "globex"
    assert "tenant" not in vars(message)
    message.subject = "Other"
    with pytest.raises(LettermintInvalidMessage, match="does not match this message"):
        tenant_of(message, None)
