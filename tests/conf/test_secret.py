from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import pytest

from django_lettermint.conf import Secret
from django_lettermint.conf.secret import Hidden

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_secret_is_told_only_on_request() -> None:
    assert Secret("lm_token").reveal() == "lm_token"


def test_a_secret_shows_no_character_of_itself() -> None:
    secret = Secret("lm_token")

    assert (repr(secret), str(secret), f"{secret}") == ("Secret('***')",) * 3


def test_secrets_are_equal_by_value() -> None:
    assert Secret("one") == Secret("one")
    assert Secret("one") != Secret("two")
    assert hash(Secret("one")) == hash(Secret("one"))


def test_a_secret_never_equals_its_text() -> None:
    assert Secret("one") != "one"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_not_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(Secret("one"), protocol)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_secret_is_the_secret(
    duplicate: Callable[[object], object],
) -> None:
    secret = Secret("one")

    assert duplicate(secret) is secret


def test_whatever_is_hidden_shows_nothing_of_itself() -> None:
    assert repr(Hidden(["lm_token"])) == "Hidden('***')"
    assert Hidden(["lm_token"]).value == ["lm_token"]
