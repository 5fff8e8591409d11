from __future__ import annotations

import copy
import pickle

import pytest

from django_lettermint.conf import Hidden, Secret


def test_a_secret_shows_its_text_on_request_only() -> None:
    secret = Secret("lm_token")

    assert secret.reveal() == "lm_token"
    assert {repr(secret), str(secret), f"{secret}"} == {"Secret('***')"}
    assert repr(Hidden(["lm_token"])) == "Hidden('***')"


def test_secrets_are_equal_by_value_and_to_no_text() -> None:
    assert Secret("one") == Secret("one")
    assert hash(Secret("one")) == hash(Secret("one"))
    assert Secret("one") != Secret("two")
    assert Secret("one") != "one"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_not_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(Secret("one"), protocol)


def test_a_copy_of_a_secret_is_the_secret() -> None:
    secret = Secret("one")

    assert copy.copy(secret) is copy.deepcopy(secret) is secret
