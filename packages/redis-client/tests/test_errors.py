import pickle

import pytest

import waterspout_redis
from waterspout_redis import (
    CallTimeout,
    ConnectionLost,
    RedisError,
    ResponseError,
    WrongPasswordError,
    WrongTypeError,
)
from waterspout_redis._errors import response_error


def test_an_error_reply_has_the_type_of_its_code() -> None:
    error = response_error("WRONGTYPE Operation against a key holding the wrong kind of value")
    assert type(error) is WrongTypeError
    assert error.code == "WRONGTYPE"
    assert type(response_error("WRONGPASS no")) is WrongPasswordError


def test_an_unknown_code_is_a_plain_response_error() -> None:
    assert type(response_error("NEWCODE something")) is ResponseError
    assert response_error("").code == ""


def test_one_tree_holds_every_error() -> None:
    errors = [thing for thing in vars(waterspout_redis).values() if isinstance(thing, type)]
    errors = [error for error in errors if issubclass(error, Exception)]
    assert len(errors) > 20
    assert all(issubclass(error, RedisError) for error in errors)


@pytest.mark.parametrize("sent", [True, False])
def test_an_error_tells_whether_the_command_may_have_been_executed(sent: bool) -> None:
    assert ConnectionLost("gone", maybe_executed=sent).maybe_executed is sent
    assert ("may have been executed" in str(CallTimeout(1, maybe_executed=sent))) is sent


def test_a_time_out_is_a_timeout_error_too() -> None:
    assert issubclass(CallTimeout, TimeoutError)


def test_an_error_reply_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(response_error("OOM no"))).code == "OOM"
