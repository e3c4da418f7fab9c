"""What clients can be made with, and what is said about anything else."""

import inspect
import ssl
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import pytest

from waterspout_redis import Client, ClientPool, PubSubClient
from waterspout_redis._options import _REDIS_PYS, _TYPES, ConnectionKeywords
from waterspout_redis.commands import ClientKeywords, Redis

KINDS: list[Callable[..., Any]] = [Client, ClientPool, PubSubClient, Redis]


class Mine(Client):
    """A subclass is what its user calls it."""


@pytest.mark.parametrize("make", [*KINDS, Mine, Redis.from_url])
def test_an_unknown_option_is_named_with_the_class_that_was_called(make: Callable[..., Any]) -> None:
    name = "Redis" if make == Redis.from_url else make.__name__
    with pytest.raises(TypeError) as caught:
        make("redis://cache", hots="cache")
    assert str(caught.value) == f"{name} has no option 'hots'"


@pytest.mark.parametrize(
    ("make", "name", "said"),
    [
        (Client, "socket_timeout", "; redis-py's is timeout here"),
        (Client, "socket_connect_timeout", "; redis-py's is connect_timeout here"),
        (Client, "decode_responses", '; redis-py\'s is decode="utf-8" here'),
        (Client, "max_connections", "; redis-py's is max_leases here"),
        (Client, "ssl_ca_certs", "; redis-py's is ssl=ssl.create_default_context(cafile=...) here"),
        (Client, "retry_on_timeout", "; redis-py's is retry here"),
        (Redis, "socket_timeout", "; redis-py's is timeout here"),
        (ClientPool, "socket_timeout", "; redis-py's is timeout here"),
        (PubSubClient, "socket_connect_timeout", "; redis-py's is connect_timeout here"),
        # A hint at what this class has not would lead nowhere.
        (PubSubClient, "socket_timeout", ""),
        (PubSubClient, "decode_responses", ""),
    ],
)
def test_an_option_of_redis_py_is_answered_with_ours(make: Callable[..., Any], name: str, said: str) -> None:
    with pytest.raises(TypeError) as caught:
        make(**{name: 1})
    assert str(caught.value) == f"{make.__name__} has no option {name!r}{said}"


def test_every_hint_names_an_option_that_a_client_takes() -> None:
    assert {hint.partition("=")[0] for hint in _REDIS_PYS.values()} <= ClientKeywords.__annotations__.keys()


class Number(IntEnum):
    FIVE = 5


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("port", "7711", "an int, not '7711'"),
        ("port", True, "an int, not True"),
        ("port", 7711.0, "an int, not 7711.0"),
        ("db", "1", "an int, not '1'"),
        ("host", b"cache", "a str, not bytes"),
        ("username", 5, "a str, not 5"),
        ("client_name", b"me", "a str, not bytes"),
        ("protocol", "3", "an int, not '3'"),
        ("protocol", None, "an int, not None"),
        ("connect_timeout", "5", "a number of seconds, not '5'"),
        ("connect_timeout", True, "a number of seconds, not True"),
        ("health_check_interval", None, "a number of seconds, not None"),
        ("keepalive", "on", "a number of seconds, or None, not 'on'"),
        ("max_reply_bytes", 1e9, "an int, not 1000000000.0"),
        ("ssl", "x", "True, False or an ssl.SSLContext, not 'x'"),
        ("ssl", 1, "True, False or an ssl.SSLContext, not 1"),
    ],
)
@pytest.mark.parametrize("make", KINDS)
def test_a_value_of_a_wrong_type_is_shown_with_what_it_must_be(
    make: Callable[..., Any], name: str, value: object, said: str
) -> None:
    with pytest.raises(TypeError) as caught:
        make(**{name: value})
    assert str(caught.value) == f"{name} must be {said}"


@pytest.mark.parametrize(
    ("make", "name", "value", "said"),
    [
        (Client, "timeout", "5", "a number of seconds, or None, not '5'"),
        (Client, "retry", 1.5, "an int, not 1.5"),
        (Client, "retry", False, "an int, not False"),
        (Client, "max_in_flight", "many", "an int, not 'many'"),
        (Client, "max_in_flight_bytes", 1e6, "an int, not 1000000.0"),
        (Client, "max_leases", None, "an int, not None"),
        (Client, "on_command", 5, "a function, not 5"),
        (Client, "on_connection", [], "a function, not list"),
        (Redis, "on_command", 5, "a function, not 5"),
        (Redis, "decode_responses", "utf-8", "True or False, not 'utf-8'"),
        (ClientPool, "max_size", "10", "an int, or None, not '10'"),
        (ClientPool, "client_timeout", "5", "a number of seconds, or None, not '5'"),
        (ClientPool, "wait_timeout", "5", "a number of seconds, or None, not '5'"),
        (ClientPool, "timeout", "5", "a number of seconds, or None, not '5'"),
        (ClientPool, "autoclose", 1, "True or False, not 1"),
        (PubSubClient, "max_messages", 1e5, "an int, not 100000.0"),
        (PubSubClient, "max_bytes", None, "an int, not None"),
        (PubSubClient, "on_state", "f", "a function, not 'f'"),
    ],
)
def test_so_are_those_of_one_class(make: Callable[..., Any], name: str, value: object, said: str) -> None:
    with pytest.raises(TypeError) as caught:
        make(**{name: value})
    assert str(caught.value) == f"{name} must be {said}"


@pytest.mark.parametrize("make", KINDS)
def test_what_may_hold_a_password_is_not_shown(make: Callable[..., Any]) -> None:
    for password in (123456, b"123456", 123456.0):
        with pytest.raises(TypeError) as caught:
            make(username="app", password=password)
        assert str(caught.value) == f"password must be a str, not {type(password).__name__}"
    with pytest.raises(TypeError) as caught:
        make(b"redis://:123456@cache")
    assert str(caught.value) == "url must be a str, not bytes"


def test_a_long_value_is_shown_in_part() -> None:
    with pytest.raises(TypeError) as caught:
        Client(port="7" * 1000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("make", [Client, ClientPool, Redis])
def test_an_encoding_is_checked_where_a_client_is_made(make: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match='such as "utf-8", or None; not True'):
        make(decode=True)
    for name in ("utf-88", "hex"):
        with pytest.raises(LookupError, match=f"no encoding of text named '{name}'"):
            make(decode=name)


def test_right_values_of_every_kind_are_taken() -> None:
    context = ssl.create_default_context()
    client = Client(port=7711, db=Number.FIVE, timeout=5, keepalive=None, ssl=context, on_command=print)
    assert str(client.address) == "rediss://127.0.0.1:7711/5"
    client = Client(host="cache", password="p", timeout=None, connect_timeout=0.5, ssl=True)
    assert str(client.address) == "rediss://:***@cache:6379"
    client = Client(None, host=None, port=None, db=None, username=None, password=None, ssl=None, client_name=None)
    assert str(client.address) == "redis://127.0.0.1:6379"


def test_there_is_a_type_for_every_option_and_none_besides() -> None:
    options = set(ConnectionKeywords.__annotations__)
    for kind in KINDS:
        options |= inspect.signature(kind).parameters.keys()
    # The encoding has a check of its own; the rest are no options.
    assert set(_TYPES) == options - {"connection", "options", "client", "legacy_responses", "decode"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_client_is_made_with_by_default_is_of_the_right_types(kind: Callable[..., Any]) -> None:
    for name, option in inspect.signature(kind).parameters.items():
        if name in _TYPES:
            assert isinstance(option.default, _TYPES[name][1])
