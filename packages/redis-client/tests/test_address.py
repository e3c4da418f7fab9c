import pytest

from waterspout_redis import Address, BadAddress


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://cache", Address(host="cache")),
        ("redis://cache:7000/3", Address(host="cache", port=7000, db=3)),
        ("redis://cache/?db=3", Address(host="cache", db=3)),
        ("redis://:pa%2Fss@cache", Address(host="cache", password="pa/ss")),
        ("redis://app:secret@cache", Address(host="cache", username="app", password="secret")),
        ("rediss://[::1]:7000", Address(host="::1", port=7000, tls=True)),
        ("valkey://app:secret@cache:7000/3", Address("cache", 7000, db=3, username="app", password="secret")),
        ("valkeys://cache", Address(host="cache", tls=True)),
        ("unix:///run/redis.sock?db=2", Address(path="/run/redis.sock", db=2)),
        ("unix://app:secret@/run/redis.sock", Address(path="/run/redis.sock", username="app", password="secret")),
    ],
)
def test_a_url_says_where_and_who(url: str, address: Address) -> None:
    assert Address.parse(url) == address


def test_an_address_is_always_shown_in_the_words_of_redis() -> None:
    assert str(Address.parse("valkey://cache/1")) == "redis://cache:6379/1"
    assert str(Address.parse("VALKEYS://cache")) == "rediss://cache:6379"


def test_options_alone_are_enough_and_nothing_is_the_local_server() -> None:
    assert Address.parse() == Address(host="127.0.0.1", port=6379)
    assert Address.parse(host="cache", port=1, db=2) == Address(host="cache", port=1, db=2)
    assert Address.parse(unix_socket_path="/run/redis.sock") == Address(path="/run/redis.sock")


def test_an_option_wins_over_the_url() -> None:
    assert Address.parse("redis://cache/1", db=2, password="p") == Address(host="cache", db=2, password="p")
    assert Address.parse("unix:///run/redis.sock", host="cache").path is None


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://cache", "must begin with"),
        ("cache:6379", "must begin with"),
        ("redis://", "names no host"),
        ("redis://cache:seven", "the port"),
        ("redis://cache:0", "the port"),
        ("redis://cache:70000", "the port"),
        ("redis://cache/one", "the database must be a number"),
        ("redis://cache/-1", "the database must be a number"),
        ("redis://cache/1?db=1", "twice"),
        ("redis://cache?timeout=3", "may hold db once"),
        ("redis://cache?db=1&db=2", "may hold db once"),
        ("redis://cache#1", "fragment"),
        ("redis://app@cache", "a username needs a password"),
        ("unix://", "names no unix socket"),
        ("unix://host/path", "has no host"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(url: str, what: str) -> None:
    with pytest.raises(BadAddress, match=what):
        Address.parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://app:hun/ter2@cache:7000/1",
        "redis://app:hun?ter2@cache",
        "redis://app:hun#ter2@cache",
        "redis://app:hunter2@cache:seven",
        "redis://app:hunter2@cache/one",
        "http://app:hunter2@cache",
    ],
)
def test_no_error_shows_a_piece_of_the_password(url: str) -> None:
    with pytest.raises(BadAddress) as caught:
        Address.parse(url)
    assert "hun" not in str(caught.value)
    assert "ter2" not in str(caught.value)


def test_the_password_is_hidden_wherever_an_address_is_shown() -> None:
    address = Address.parse("redis://app:hunter2@cache:7000/1")
    assert str(address) == "redis://app:***@cache:7000/1"
    assert "hunter2" not in repr(address)


@pytest.mark.parametrize("options", [{"host": ""}, {"port": 0}, {"port": 65536}, {"db": -1}, {"username": "app"}])
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(BadAddress):
        Address.parse(**options)  # type: ignore[arg-type]


def test_a_bad_address_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="must begin with"):
        Address.parse("cache")
