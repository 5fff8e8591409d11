from __future__ import annotations

import asyncio
import contextvars
import copy
import enum
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest
from anymail.exceptions import AnymailUnsupportedFeature
from anymail.message import AnymailMessage, AnymailRecipientStatus, AnymailStatus
from asgiref.sync import sync_to_async
from django.core.mail import EmailMessage
from django.test import override_settings
from django.utils.functional import SimpleLazyObject, lazystr
from django.utils.translation import gettext_lazy
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


class Kind(str, enum.Enum):  # noqa: UP042 - a StrEnum's str() would hide the difference
    WELCOME = "welcome"


def make(headers: dict[str, Any] | None = None, **attributes: Any) -> EmailMessage:
    message = EmailMessage("s", "b", "from@x.test", ["to@x.test"], headers=headers)
    vars(message).update(attributes)
    return message


def make_anymail(**attributes: Any) -> EmailMessage:
    cls: type[EmailMessage] = AnymailMessage
    message = cls("s", "b", "from@x.test", ["to@x.test"])
    vars(message).update(attributes)
    return message


def effective(message: EmailMessage) -> Extras:
    """Resolve as the payload does, without send defaults."""
    layer, _ = extract_extras(message.extra_headers)
    return resolve(active_extras(), layer, attribute_layer(message))


# LettermintMessage


def test_extras_are_set_by_keyword() -> None:
    message = LettermintMessage(
        "s", route="r", tag="t", metadata={"k": 1}, idempotency_key="i"
    )
    assert effective(message) == Extras(
        route="r", tag="t", metadata={"k": "1"}, idempotency_key="i"
    )


def test_what_is_not_given_is_no_attribute() -> None:
    message = LettermintMessage("s", tag="t")
    assert "route" not in vars(message)
    assert attribute_layer(message) == {"tag": "t"}


def test_none_is_an_attribute_that_hides_lower_layers() -> None:
    message = LettermintMessage("s", tag=None, headers={"X-LM-Tag": "raw"})
    assert attribute_layer(message) == {"tag": None}
    assert effective(message).tag is None


def test_djangos_arguments_keep_their_places() -> None:
    message = LettermintMessage("s", "b", "f@x.test", ["t@x.test"], cc=["c@x.test"])
    message.attach_alternative("<b>b</b>", "text/html")
    assert (message.subject, message.body, message.from_email) == ("s", "b", "f@x.test")
    assert message.recipients() == ["t@x.test", "c@x.test"]


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_message_can_be_copied_and_pickled(duplicate: Callable[[Any], Any]) -> None:
    message = LettermintMessage("s", tag="t", metadata={"k": 1})
    assert effective(duplicate(message)) == effective(message)


def test_a_message_has_a_status_of_its_own_from_the_start() -> None:
    one, other = LettermintMessage(), LettermintMessage()

    status: AnymailStatus = one.anymail_status
    assert isinstance(status, AnymailStatus)
    assert (status.status, status.message_id, status.recipients) == (None, None, {})
    assert other.anymail_status is not status


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), freeze],
)
def test_the_status_survives_copies_pickles_and_freezing(
    duplicate: Callable[[Any], Any],
) -> None:
    message = LettermintMessage(to=["ann@example.com"], tag="t")
    assert duplicate(message).anymail_status.status is None

    message.anymail_status.set_recipient_status(
        {"ann@example.com": AnymailRecipientStatus("id", "queued")}
    )
    assert duplicate(message).anymail_status.status == {"queued"}


@pytest.mark.parametrize("backend", ["locmem", "console", "dummy"])
def test_a_message_sent_by_another_backend_has_a_status(backend: str) -> None:
    path = f"django.core.mail.backends.{backend}.EmailBackend"
    message = LettermintMessage("s", "b", "us@example.com", ["ann@example.com"])
    with override_settings(EMAIL_BACKEND=path):
        message.send()

    assert message.anymail_status.status is None


# What `extras` does


def test_no_block_is_active_outside() -> None:
    assert active_extras() == {}


def test_a_block_holds_for_every_message_inside() -> None:
    with extras(route="r", tag="t", metadata={"k": 1}):
        assert effective(make()) == Extras(route="r", tag="t", metadata={"k": "1"})
    assert effective(make()) == Extras()


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


def test_metadata_in_a_block_within_none_still_hides_defaults() -> None:
    defaults = {"metadata": {"default": 1}}
    with extras(metadata=None), extras(metadata={"a": 1}):
        assert resolve(defaults, active_extras()).metadata == {"a": "1"}


def test_a_block_ends_with_an_error_too() -> None:
    with pytest.raises(ZeroDivisionError), extras(tag="t"):
        raise ZeroDivisionError
    assert active_extras() == {}


@pytest.mark.parametrize(
    "bad",
    [
        {"tag": "a.b"},
        {"route": "a b"},
        {"metadata": {"a b": 1}},
        {"metadata": {"k": None}},
        {"metadata": {"k": "x" * 1000}},
        {"metadata": ["k"]},
    ],
)
def test_a_bad_value_fails_at_the_block(bad: dict[str, Any]) -> None:
    entered = False
    with pytest.raises(LettermintInvalidMessage), extras(**bad):
        entered = True
    assert not entered


def test_a_block_takes_no_idempotency_key() -> None:
    with pytest.raises(TypeError, match="idempotency_key"):
        extras(idempotency_key="k")  # type: ignore[call-arg]


def test_a_block_can_be_a_decorator() -> None:
    @extras(tag="t")
    def tag() -> str | None:
        return effective(make()).tag

    assert [tag(), tag()] == ["t", "t"]
    assert tag.__name__ == "tag"


def test_a_block_can_be_entered_again() -> None:
    block = extras(tag="t")
    with block, block:
        assert active_extras() == {"tag": "t"}
    assert active_extras() == {}


async def _coroutine() -> None: ...


def _generator() -> Iterator[None]:
    yield


async def _async_generator() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    "function",
    [_coroutine, _generator, _async_generator, sync_to_async(len)],
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


def test_lazy_text_in_a_block_is_made_text() -> None:
    lazy: Any = gettext_lazy("t")
    with extras(tag=lazy, metadata={"k": gettext_lazy("v")}):
        assert active_extras() == {"tag": "t", "metadata": {"k": "v"}}


def test_a_lazy_none_is_none() -> None:
    lazy: Any = SimpleLazyObject(lambda: None)
    with extras(tag="t", tenant="acme"), extras(tag=lazy, tenant=lazy):
        assert active_extras() == {"tag": None, "tenant": None}
    assert effective(make(route=lazy)).route is None
    with pytest.raises(LettermintInvalidMessage, match="None cannot be sent"):
        effective(make(metadata={"k": lazy}))


def test_tasks_of_asyncio_have_their_own_blocks() -> None:
    async def tag(name: str, barrier: asyncio.Barrier) -> str | None:
        with extras(tag=name):
            await barrier.wait()
            return effective(make()).tag

    async def both() -> list[str | None]:
        barrier = asyncio.Barrier(2)
        return list(await asyncio.gather(tag("a", barrier), tag("b", barrier)))

    assert asyncio.run(both()) == ["a", "b"]


def test_a_block_reaches_asyncio_to_thread() -> None:
    async def tag() -> str | None:
        with extras(tag="t"):
            return (await asyncio.to_thread(lambda: effective(make()))).tag

    assert asyncio.run(tag()) == "t"


def test_a_thread_run_in_the_callers_context_sees_its_block() -> None:
    seen: list[str | None] = []

    def read() -> None:
        seen.append(effective(make()).tag)

    with extras(tag="t"):
        context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=[read])
    thread.start()
    thread.join()
    assert seen == ["t"]


# What `attribute_layer` does


def test_attributes_of_any_message_are_read() -> None:
    message = make(route="r", tag="t", metadata={"k": 1}, idempotency_key="i")
    assert attribute_layer(message) == {
        "route": "r",
        "tag": "t",
        "metadata": {"k": 1},
        "idempotency_key": "i",
    }


def test_a_plain_message_has_no_attributes() -> None:
    assert attribute_layer(make()) == {}


def test_what_an_anymail_message_leaves_unset_is_skipped() -> None:
    assert attribute_layer(make_anymail()) == {}


def test_lazy_text_is_made_text() -> None:
    lazy = gettext_lazy("v")
    message = make(
        tag=lazy,
        metadata={gettext_lazy("k"): lazy, "o": SimpleLazyObject(lambda: "w"), "n": 1},
    )
    layer = attribute_layer(message)
    assert layer == {"tag": "v", "metadata": {"k": "v", "o": "w", "n": 1}}
    assert isinstance(layer["tag"], str)


@pytest.mark.parametrize("tags", [["t"], ("t",), {"t"}, [gettext_lazy("t")]])
def test_anymails_tags_with_one_entry_are_the_tag(tags: object) -> None:
    assert attribute_layer(make(tags=tags)) == {"tag": "t"}


def test_no_tags_are_no_tag() -> None:
    assert attribute_layer(make(tags=[])) == {}


def test_tags_of_none_hide_lower_layers() -> None:
    assert attribute_layer(make(tags=None)) == {"tag": None}


@pytest.mark.parametrize(
    "tags", ["t", gettext_lazy("lazy"), b"bytes", 5, {"t": 1}, iter("t")]
)
def test_tags_that_are_no_list_are_refused(tags: object) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"tags: .* use a list"):
        attribute_layer(make(tags=tags))


def test_several_tags_are_not_supported() -> None:
    with pytest.raises(
        AnymailUnsupportedFeature, match=r"multiple tags \(\['a', 'b'\]"
    ):
        attribute_layer(make(tags=["a", "b"]))


def test_esp_extra_counts_as_attributes() -> None:
    esp_extra = {"route": "r", "tag": gettext_lazy("t"), "idempotency_key": "i"}
    layer = attribute_layer(make(esp_extra=esp_extra))
    assert layer == {"route": "r", "tag": "t", "idempotency_key": "i"}


def test_esp_extra_of_none_says_nothing() -> None:
    assert attribute_layer(make(esp_extra=None)) == {}


@pytest.mark.parametrize("key", ["metadata", "Route", 5])
def test_an_unknown_esp_extra_is_not_supported(key: object) -> None:
    with pytest.raises(AnymailUnsupportedFeature, match=r"esp_extra.*route, tag, idem"):
        attribute_layer(make(esp_extra={key: {}}))


def test_esp_extra_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(LettermintInvalidMessage, match="esp_extra"):
        attribute_layer(make(esp_extra=["route"]))


def test_the_caller_may_let_unsupported_features_pass() -> None:
    told: list[str] = []
    message = make(tags=["a", "b"], esp_extra={"other": 1, "route": "r"})
    assert attribute_layer(message, told.append) == {"tag": "a", "route": "r"}
    assert len(told) == 2


@pytest.mark.parametrize(
    "attributes",
    [
        {"tag": "a", "tags": ["b"]},
        {"tag": "a", "esp_extra": {"tag": "b"}},
        {"route": "a", "esp_extra": {"route": "b"}},
        {"idempotency_key": "a", "esp_extra": {"idempotency_key": "b"}},
    ],
)
def test_attributes_that_contradict_each_other_are_refused(
    attributes: dict[str, Any],
) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"'b' .* also has 'a'"):
        attribute_layer(make(**attributes))


def test_attributes_that_agree_are_accepted() -> None:
    message = make(tag="a", tags=[gettext_lazy("a")], esp_extra={"tag": "a"})
    assert attribute_layer(message) == {"tag": "a"}


@pytest.mark.parametrize(
    "attributes", [{"tag": None, "tags": ["a"]}, {"tag": "a", "tags": None}]
)
def test_none_and_a_value_do_not_contradict(attributes: dict[str, Any]) -> None:
    assert attribute_layer(make(**attributes)) == {"tag": "a"}


@pytest.mark.parametrize(
    "attributes", [{"tag": 5}, {"metadata": ["k"]}, {"route": ["r"]}, {"tag": ""}]
)
def test_bad_attributes_are_refused_by_name(attributes: dict[str, Any]) -> None:
    (name,) = attributes
    with pytest.raises(LettermintInvalidMessage, match=f"^{name}: "):
        effective(make(**attributes))


# What `default_layer` does


@pytest.mark.parametrize(
    "defaults",
    [
        {"tag": "ours", "tags": ["site"]},
        {"tag": "ours", "esp_extra": {"tag": "site"}},
        {"esp_extra": {"tag": "ours"}, "tags": ["site"]},
        {"tag": "ours", "tags": ["several", "others"]},
    ],
)
def test_defaults_in_our_own_words_win(defaults: dict[str, Any]) -> None:
    assert default_layer(defaults) == {"tag": "ours"}


def test_a_default_of_none_wins_too() -> None:
    assert default_layer({"tag": None, "tags": ["site"]}) == {"tag": None}


def test_several_default_tags_are_not_supported() -> None:
    with pytest.raises(AnymailUnsupportedFeature, match="multiple tags"):
        default_layer({"tags": ["a", "b"]})


# Precedence


def test_attributes_win_over_headers_and_headers_over_blocks() -> None:
    headers = {"X-LM-Tag": "header", "X-Lettermint-Route": "header"}
    message = make(headers, tag="attribute")
    with extras(tag="block", route="block", metadata={"k": "block"}):
        assert effective(message) == Extras(
            tag="attribute", route="header", metadata={"k": "block"}
        )


def test_a_raw_alias_wins_over_a_block() -> None:
    message = make({"X-Tag": "raw", "X-Metadata-k": "raw"})
    with extras(tag="block", metadata={"k": "block"}):
        assert effective(message) == Extras(tag="raw", metadata={"k": "raw"})


# What `freeze` does


def test_freeze_turns_attributes_into_headers() -> None:
    message = make({"X-A": 1}, route="r", tags=["t"], metadata={"UserID": "é"})
    message.idempotency_key = "i"  # type: ignore[attr-defined]
    assert freeze(message) is message
    assert message.extra_headers == {
        "X-A": "1",
        "X-Lettermint-Route": "r",
        "X-LM-Tag": "t",
        "X-LM-Metadata-UserID": "=?utf-8?b?w6k=?=",
        "Idempotency-Key": "i",
    }
    assert attribute_layer(message) == {}


def test_freeze_writes_the_blocks_around_it() -> None:
    with extras(tag="block", route="block"):
        message = freeze(make(tag="own"))
    assert effective(message) == Extras(tag="own", route="block")


def test_freeze_gives_aliases_their_official_names() -> None:
    message = freeze(make({"x-tag": "t", "x-metadata-K": "v"}))
    assert message.extra_headers == {"X-LM-Tag": "t", "X-LM-Metadata-K": "v"}


def test_freeze_leaves_the_dict_it_was_given_alone() -> None:
    headers = {"X-A": "1"}
    freeze(make(headers, tag="t"))
    assert headers == {"X-A": "1"}


def test_freeze_leaves_no_sentinel_behind() -> None:
    message = freeze(make_anymail(tags=["t"]))
    assert {"tags", "metadata", "esp_extra"}.isdisjoint(vars(message))


def test_freeze_keeps_a_none_as_an_attribute() -> None:
    with extras(route=None):
        message = freeze(make({"X-LM-Tag": "raw"}, tag=None, tags=None, metadata=None))
    assert message.extra_headers == {}
    assert attribute_layer(message) == {"route": None, "tag": None, "metadata": None}


def test_freeze_expresses_an_envelope_sender_as_django_does() -> None:
    message = freeze(make(envelope_sender="bounces@x.test"))
    assert message.extra_headers == {"From": "from@x.test"}
    assert message.from_email == "bounces@x.test"
    assert "envelope_sender" not in vars(message)


@pytest.mark.parametrize("sender", ["", "<>"])
def test_freeze_refuses_an_empty_envelope_sender(sender: str) -> None:
    message = LettermintMessage(to=["ann@example.com"])
    message.envelope_sender = sender  # type: ignore[attr-defined]
    with pytest.raises(AnymailUnsupportedFeature, match="envelope_sender"):
        freeze(message)


def test_freeze_keeps_a_from_header_beside_an_envelope_sender() -> None:
    message = freeze(make({"from": "head@x.test"}, envelope_sender="bounces@x.test"))
    assert message.extra_headers == {"from": "head@x.test"}
    assert message.from_email == "bounces@x.test"


@pytest.mark.parametrize("name", ["merge_metadata", "merge_headers"])
def test_freeze_refuses_values_for_each_recipient(name: str) -> None:
    message = make(**{name: {"to@x.test": {"k": "v"}}})
    with pytest.raises(AnymailUnsupportedFeature, match=name):
        freeze(message)


@pytest.mark.parametrize("bad", [{"tag": "a.b"}, {"metadata": {"k": "x" * 1000}}])
def test_freeze_changes_nothing_when_it_refuses(bad: dict[str, Any]) -> None:
    message = make({"X-Tag": "t"}, **bad, envelope_sender="bounces@x.test")
    before = copy.deepcopy(vars(message))
    with pytest.raises(LettermintInvalidMessage):
        freeze(message)
    assert vars(message) == before


@given(
    tag=st.none() | st.just("t"),
    metadata=st.dictionaries(st.sampled_from("kK"), st.text()),
    key=st.sampled_from(["i", "=?utf-8?q?x?=", "a =?utf-8?b?eA==?= b"]),
    esp_extra=st.just({}) | st.just({"route": "r"}),
)
def test_a_frozen_message_says_the_same_again_and_again(**attributes: Any) -> None:
    message = make(tag=attributes["tag"], metadata=attributes["metadata"])
    vars(message).update(
        idempotency_key=attributes["key"], esp_extra=attributes["esp_extra"]
    )
    try:
        before = effective(message)
        once = copy.deepcopy(vars(freeze(message)))
    except LettermintInvalidMessage:
        return
    assert effective(message) == before
    assert vars(freeze(message)) == once


def test_a_frozen_message_passes_through_django() -> None:
    message = freeze(make(tag=Kind.WELCOME, metadata={"k": "é" * 50}))
    parsed = message.message()
    assert parsed["X-LM-Tag"] == "welcome"


# -- tenants -----------------------------------------------------------------------------


def test_a_tenant_is_an_attribute() -> None:
    assert LettermintMessage(tenant="acme").tenant == "acme"
    assert not hasattr(LettermintMessage(), "tenant")


def test_the_attribute_wins_over_the_block_and_the_block_over_all_else() -> None:
    assert tenant_of(LettermintMessage(), "usual") == "usual"
    with extras(tenant="block"):
        assert tenant_of(LettermintMessage(), "usual") == "block"
        assert tenant_of(LettermintMessage(tenant="own"), "usual") == "own"
        assert tenant_of(LettermintMessage(tenant=None), "usual") is None
        with extras(tenant=None, tag="a"):
            assert tenant_of(LettermintMessage(), "usual") is None


def test_lazy_text_is_a_tenants_name() -> None:
    message = LettermintMessage(tenant=cast("str", lazystr("acme")))
    with extras(tenant=cast("str", lazystr("globex"))):
        assert tenant_of(LettermintMessage(), None) == "globex"
        assert tenant_of(message, None) == "acme"


def test_freeze_signs_the_tenant() -> None:
    with extras(tenant="globex"):
        message = freeze(LettermintMessage("Hi", "", "ann@example.com", ["b@x.com"]))

    assert tenant_of(message, None) == "globex"
    assert message.extra_headers["X-Lettermint-Tenant"].startswith("globex:")
    assert "tenant" not in vars(message)


def test_freeze_keeps_a_tenant_of_none_as_an_attribute() -> None:
    with extras(tenant="globex"):
        message = freeze(LettermintMessage(tenant=None))

    assert message.tenant is None
    assert message.extra_headers == {}


def test_a_frozen_tenant_can_be_frozen_again() -> None:
    message = LettermintMessage("Hi", "", "ann@example.com", ["b@x.com"], tenant="acme")
    first = dict(freeze(message).extra_headers)
    with extras(tenant="globex"):
        assert freeze(message).extra_headers == first


def test_freeze_signs_what_it_has_made_of_the_sender() -> None:
    message = LettermintMessage("Hi", "", "ann@example.com", ["b@x.com"], tenant="acme")
    message.envelope_sender = "bounces@example.com"  # type: ignore[attr-defined]

    assert tenant_of(freeze(message), None) == "acme"


@pytest.mark.parametrize("tenant", ["", "a\nb", 5])
def test_freeze_refuses_what_is_no_name_and_changes_nothing(tenant: Any) -> None:
    message = LettermintMessage(tag="a", tenant=tenant)
    with pytest.raises(LettermintInvalidMessage):
        freeze(message)
    assert (message.tag, message.extra_headers) == ("a", {})


def test_headers_that_are_no_mapping_name_no_tenant() -> None:
    message = LettermintMessage()
    message.extra_headers = ["X-Lettermint-Tenant"]  # type: ignore[assignment]

    assert tenant_of(message, "usual") == "usual"


def test_line_endings_may_change_on_the_way() -> None:
    message = LettermintMessage("Hi", "a\nb", "ann@x.com", ["b@x.com"], tenant="acme")
    freeze(message).body = "a\r\nb"

    assert tenant_of(message, None) == "acme"
