"""WebSocket frames: what clients say, however it is cut, and what we say (RFC 6455 and RFC 7692)."""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterspout_core import Gap, Log, Message
from waterspout_handlers import _deflate, _frames
from waterspout_handlers._frames import (
    WEBSOCKET_DEFLATED,
    WEBSOCKET_TEXT,
    BadFrame,
    Binary,
    Close,
    FrameReader,
    Ping,
    Pong,
    Text,
    close_frame,
    frame,
    message_frame,
)
from waterspout_handlers._goodbye import RESTART

KEY = b"\x37\xfa\x21\x3d"  # that of the examples in RFC 6455, 5.7
MAX_SIZE = 1000


def masked(first: int, payload: bytes = b"", key: bytes = KEY, size: int | None = None) -> bytes:
    """A frame as a client sends it, byte by byte as 5.3 has it; it may lie about the size of its payload."""
    size = len(payload) if size is None else size
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return bytes([first]) + length + key + bytes(byte ^ key[place % 4] for place, byte in enumerate(payload))


def read(*pieces: bytes, max_size: int = MAX_SIZE, deflate: bool = False) -> list[Any]:
    """The events in `pieces`, and behind them the code of the close frame that they earn, if they do."""
    reader = FrameReader(max_size=max_size, deflate=deflate)
    events: list[Any] = []
    try:
        for piece in pieces:
            reader.receive(piece)
            events += reader.events()
    except BadFrame as error:
        assert reader.over
        assert list(reader.events()) == []
        return [*events, error.code]
    return events


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


def deflated(text: bytes) -> bytes:
    """As an independent reading of RFC 7692, 7.2.1."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -9)
    data = deflater.compress(text) + deflater.flush(zlib.Z_SYNC_FLUSH)
    assert data[-4:] == b"\0\0\xff\xff"
    return data[:-4]


# The examples of RFC 6455, 5.7


def test_the_example_of_a_masked_text_message_is_read() -> None:
    assert read(bytes.fromhex("818537fa213d7f9f4d5158")) == [Text("Hello")]


def test_the_example_of_a_masked_pong_is_read() -> None:
    assert read(bytes.fromhex("8a8537fa213d7f9f4d5158")) == [Pong(b"Hello")]


def test_the_example_of_a_fragmented_message_is_read_when_it_is_masked() -> None:
    assert read(masked(0x01, b"Hel"), masked(0x80, b"lo")) == [Text("Hello")]


@pytest.mark.parametrize(
    ("opcode", "payload", "vector"),
    [
        pytest.param(1, b"Hello", "810548656c6c6f", id="text"),
        pytest.param(9, b"Hello", "890548656c6c6f", id="ping"),
        pytest.param(2, bytes(256), "827e0100" + "00" * 256, id="256 bytes"),
        pytest.param(2, bytes(65536), "827f0000000000010000" + "00" * 65536, id="64 KiB"),
    ],
)
def test_what_we_send_is_as_in_the_examples(opcode: int, payload: bytes, vector: str) -> None:
    assert frame(opcode, payload) == bytes.fromhex(vector)


@pytest.mark.parametrize(("size", "head"), [(125, "817d"), (126, "817e007e"), (65535, "817effff")])
def test_a_length_takes_as_few_bytes_as_it_can(size: int, head: str) -> None:
    assert frame(1, bytes(size)) == bytes.fromhex(head) + bytes(size)


# Those of RFC 7692, 7.2.3


@pytest.mark.parametrize(
    "vector",
    [
        pytest.param(["c1", "f248cdc9c90700"], id="one block"),
        pytest.param(["41", "f248cd", "80", "c9c90700"], id="fragmented"),
        pytest.param(["c1", "000500faff48656c6c6f00"], id="a block without compression"),
        pytest.param(["c1", "f348cdc9c9070000"], id="a final block"),
        pytest.param(["c1", "f248050000" + "00ffff" + "cac9c90700"], id="two blocks"),
    ],
)
def test_the_examples_of_compressed_messages_are_read(vector: list[str]) -> None:
    parts = [bytes.fromhex(part) for part in vector]
    data = b"".join(masked(first[0], payload) for first, payload in zip(parts[::2], parts[1::2], strict=True))
    assert read(data, deflate=True) == [Text("Hello")]


def test_an_empty_message_may_be_compressed() -> None:
    assert read(masked(0xC1, b"\0"), deflate=True) == [Text("")]


def test_what_we_compress_is_the_example() -> None:
    assert _deflate.deflate(b"Hello") == bytes.fromhex("f248cdc9c90700")


# Whatever comes, however it is cut

payloads = st.binary(max_size=300)
texts = st.text(max_size=200)
keys = st.binary(min_size=4, max_size=4)
controls = st.tuples(st.sampled_from([0x89, 0x8A]), st.binary(max_size=125))


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[Any]]:
    """Frames of a client that keeps to the protocol, and the events that they are."""
    data, events = b"", []

    def say(first: int, payload: bytes) -> None:
        nonlocal data
        data += masked(first, payload, draw(keys))

    def say_controls() -> None:
        for first, payload in draw(st.lists(controls, max_size=2)):
            say(first, payload)
            events.append(Ping(payload) if first == 0x89 else Pong(payload))

    for content in draw(st.lists(texts | payloads, max_size=5)):
        whole = content.encode() if isinstance(content, str) else content
        first = 0x01 if isinstance(content, str) else 0x02
        if draw(st.booleans()):
            whole, first = deflated(whole), first | 0x40
        fragments = in_pieces(whole, draw(st.lists(st.integers(0, 400), max_size=3)))
        for number, fragment in enumerate(fragments, 1):
            say_controls()
            say(first | (0x80 if number == len(fragments) else 0), fragment)
            first = 0
        events.append(Text(content) if isinstance(content, str) else Binary(content))
    return data, events


cuts = st.lists(st.integers(0, 5000), max_size=20)


@given(conversations(), cuts)
def test_messages_are_the_same_however_they_are_fragmented_compressed_and_cut(
    conversation: tuple[bytes, list[Any]], cuts: list[int]
) -> None:
    data, events = conversation
    assert read(*in_pieces(data, cuts), deflate=True) == events


@given(st.binary(max_size=200), cuts, st.booleans())
def test_noise_earns_the_same_however_it_is_cut(noise: bytes, cuts: list[int], deflate: bool) -> None:
    assert read(*in_pieces(noise, cuts), deflate=deflate) == read(noise, deflate=deflate)


@given(conversations(), cuts, st.integers(0, 5000), st.integers(0, 255))
def test_a_broken_conversation_earns_the_same_however_it_is_cut(
    conversation: tuple[bytes, list[Any]], cuts: list[int], place: int, byte: int
) -> None:
    broken = bytearray(conversation[0] + masked(0x88))
    broken[place % len(broken)] = byte
    outcome = read(bytes(broken), deflate=True)
    assert read(*in_pieces(bytes(broken), cuts), deflate=True) == outcome
    assert outcome[-1:] != [1003]


def test_every_cut_of_one_conversation_gives_the_same() -> None:
    data = (
        masked(0x01, "žlu".encode())
        + masked(0x89, b"?")
        + masked(0x80, b"!")
        + masked(0x82)
        + masked(0x88, b"\x03\xe8")
    )
    events = [Ping(b"?"), Text("žlu!"), Binary(b""), Close(1000, "")]
    for cut in range(len(data)):
        assert read(data[:cut], data[cut:]) == events
    assert read(*(bytes([byte]) for byte in data)) == events


@given(st.binary(max_size=2000), st.booleans(), st.booleans())
def test_what_we_say_reads_back(payload: bytes, binary: bool, compress: bool) -> None:
    said = message_frame(payload, binary=binary, compress=compress)
    first, size = said[0], said[1]
    start = {126: 4, 127: 10}.get(size, 2)
    content = said[start:]
    assert len(content) == (size if size < 126 else int.from_bytes(said[2:start], "big"))
    assert first & 0xBF == (0x82 if binary else 0x81)
    if first & 0x40:
        assert compress
        assert len(payload) >= 256
        content = zlib.decompressobj(-15).decompress(content + b"\0\0\xff\xff")
    assert content == payload


def test_whoever_stops_asking_goes_on_later() -> None:
    reader = FrameReader(max_size=MAX_SIZE)
    reader.receive(masked(0x81, b"one") + masked(0x81, b"two") + masked(0x81, b"three")[:5])
    assert next(reader.events()) == Text("one")
    assert list(reader.events()) == [Text("two")]
    reader.receive(masked(0x81, b"three")[5:])
    assert list(reader.events()) == [Text("three")]


def test_a_reader_between_messages_holds_nothing() -> None:
    reader = FrameReader(max_size=MAX_SIZE)
    data = masked(0x01, b"Hel") + masked(0x00) + masked(0x8A, b"x") + masked(0x80, b"lo")
    assert reader.idle
    for byte in data:
        reader.receive(bytes([byte]))
        events = list(reader.events())
        assert reader.idle == (events == [Text("Hello")])


# What breaks the protocol


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_a_reserved_opcode_is_1002(opcode: int, deflate: bool) -> None:
    assert read(masked(0x80 | opcode), deflate=deflate) == [1002]


@pytest.mark.parametrize("opcode", [0, 1, 2, 8, 9, 10])
@pytest.mark.parametrize("bits", range(0x10, 0x80, 0x10))
def test_a_reserved_bit_is_1002(opcode: int, bits: int) -> None:
    assert read(masked(0x80 | bits | opcode)) == [1002]


@pytest.mark.parametrize("first", [0x99, 0xA1, 0xD1, 0xF1, 0xC8, 0xC9, 0xCA])
def test_only_messages_may_be_compressed_and_no_other_bit_is_known(first: int) -> None:
    assert read(masked(first), deflate=True) == [1002]


def test_only_the_first_frame_of_a_message_says_that_it_is_compressed() -> None:
    assert read(masked(0x41, b"\xf2\x48"), masked(0xC0, b"\xcd"), deflate=True) == [1002]


@pytest.mark.parametrize("first", [0x81, 0x82, 0x88, 0x89, 0x8A])
def test_a_frame_that_is_not_masked_is_1002(first: int) -> None:
    assert read(bytes([first, 0])) == [1002]


@pytest.mark.parametrize("first", [0x08, 0x09, 0x0A])
def test_a_fragmented_control_frame_is_1002(first: int) -> None:
    assert read(masked(first)) == [1002]


@pytest.mark.parametrize("first", [0x88, 0x89, 0x8A])
def test_a_control_frame_of_more_than_125_bytes_is_1002(first: int) -> None:
    assert read(masked(first, b"\x03\xe8" + bytes(124))[:2]) == [1002]
    assert len(read(masked(first, b"\x03\xe8" + bytes(123)))) == 1


def test_a_continuation_of_nothing_is_1002() -> None:
    assert read(masked(0x80, b"x")) == [1002]
    assert read(masked(0x00, b"x")) == [1002]
    assert read(masked(0x01, b"x") + masked(0x80, b"y") + masked(0x80, b"z")) == [Text("xy"), 1002]


@pytest.mark.parametrize("first", [0x81, 0x82, 0x01, 0x02])
def test_a_message_in_a_message_is_1002(first: int) -> None:
    assert read(masked(0x01, b"x") + masked(first, b"y")) == [1002]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param("81fe007d", id="125 in two bytes"),
        pytest.param("81ff000000000000ffff", id="65,535 in eight bytes"),
        pytest.param("81ff8000000000000000", id="the highest bit"),
    ],
)
def test_a_length_that_is_not_in_its_shortest_form_is_1002(head: str) -> None:
    assert read(bytes.fromhex(head)) == [1002]


# UTF-8 (RFC 6455, 8.1)

NOT_UTF8 = [
    pytest.param(b"\xff", id="no byte of it"),
    pytest.param(b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80\x65\x64", id="a surrogate"),
    pytest.param(b"\xc0\xaf", id="too long a form"),
    pytest.param(b"\xf4\x90\x80\x80", id="beyond U+10FFFF"),
    pytest.param(b"\x80", id="a continuation of nothing"),
    pytest.param(b"\xe2\x82 ", id="an unfinished character, then another"),
]


@pytest.mark.parametrize("text", NOT_UTF8)
def test_text_that_is_not_utf8_is_1007(text: bytes) -> None:
    assert read(masked(0x81, text)) == [1007]
    assert read(masked(0xC1, deflated(text)), deflate=True) == [1007]
    assert read(masked(0x82, text)) == [Binary(text)]


@pytest.mark.parametrize("text", NOT_UTF8)
def test_bad_text_is_found_before_all_of_its_frame_has_come(text: bytes) -> None:
    assert read(masked(0x81, b"fine" + text + b"more" * 100)[: 4 + 4 + 4 + len(text)]) == [1007]
    assert read(masked(0x01, b"fine") + masked(0x00, text)) == [1007]


def test_text_that_ends_in_the_middle_of_a_character_is_1007() -> None:
    assert read(masked(0x81, "€".encode()[:2])) == [1007]
    assert read(masked(0x01, "€".encode()[:2]) + masked(0x80, b"")) == [1007]


def test_a_character_may_be_cut_by_fragments() -> None:
    first, *others, last = "€𝄞".encode()
    fragments = [masked(0x01, bytes([first])), *(masked(0x00, bytes([byte])) for byte in others)]
    assert read(*fragments, masked(0x80, bytes([last]))) == [Text("€𝄞")]


# Size


def test_a_message_may_have_just_as_many_bytes_as_it_may() -> None:
    assert read(masked(0x81, b"x" * MAX_SIZE)) == [Text("x" * MAX_SIZE)]


@pytest.mark.parametrize("size", [MAX_SIZE + 1, 65535, 65536, 2**63 - 1])
def test_too_large_a_frame_is_1009_before_any_of_its_bytes_has_come(size: int) -> None:
    head = masked(0x82, size=size)[:-4]
    assert read(head) == [1009]
    assert read(*(bytes([byte]) for byte in head)) == [1009]


def test_a_message_that_grows_too_large_in_fragments_is_1009() -> None:
    assert read(masked(0x01, b"x" * 600), masked(0x00, b"x" * 400), masked(0x80)) == [Text("x" * 1000)]
    assert read(masked(0x01, b"x" * 600), masked(0x00, b"x" * 401)[:4]) == [1009]


def test_a_message_that_is_too_large_when_it_is_inflated_is_1009() -> None:
    assert read(masked(0xC1, deflated(b"x" * MAX_SIZE)), deflate=True) == [Text("x" * MAX_SIZE)]
    assert read(masked(0xC1, deflated(b"x" * (MAX_SIZE + 1))), deflate=True) == [1009]
    bomb = deflated(bytes(10_000_000))
    assert read(masked(0xC2, bomb), deflate=True, max_size=len(bomb)) == [1009]


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\xff\xff\xff", id="a block of no known type"),
        pytest.param(b"\x00\x01\x00\x00\x00", id="a length that contradicts itself"),
        pytest.param(b"\x03\x00" * 400, id="final blocks without end"),
    ],
)
def test_what_cannot_be_inflated_is_1007(payload: bytes) -> None:
    assert read(masked(0xC1, payload), deflate=True) == [1007]


# Goodbye


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999])
def test_a_close_frame_has_a_code_and_a_reason(code: int) -> None:
    assert read(masked(0x88, code.to_bytes(2, "big") + "dál".encode())) == [Close(code, "dál")]
    assert close_frame(code, "dál") == b"\x88\x06" + code.to_bytes(2, "big") + "dál".encode()


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_codes_that_nobody_may_send_are_1002(code: int) -> None:
    assert read(masked(0x88, code.to_bytes(2, "big"))) == [1002]


@pytest.mark.parametrize("code", [0, 999, 1004, 1006, 1015, 2000, 5000])
def test_we_do_not_send_them_either(code: int) -> None:
    with pytest.raises(ValueError, match="no code"):
        close_frame(code)


def test_a_close_frame_may_be_without_a_code() -> None:
    assert read(masked(0x88)) == [Close(1005, "")]
    assert close_frame(1005) == b"\x88\x00"


def test_half_a_code_is_1002() -> None:
    assert read(masked(0x88, b"\x03")) == [1002]


def test_a_reason_that_is_not_utf8_is_1007() -> None:
    assert read(masked(0x88, b"\x03\xe8\xff")) == [1007]


def test_too_long_a_reason_is_cut_between_characters() -> None:
    said = close_frame(1000, "x" + "ž" * 100)
    assert said == b"\x88\x7d\x03\xe8" + b"x" + "ž".encode() * 61


def test_nothing_is_read_behind_a_close_frame() -> None:
    assert read(masked(0x88, b"\x03\xe8") + masked(0x81, b"more"), masked(0x83)) == [Close(1000, "")]


# What is agreed (RFC 7692, 7.1)


@pytest.mark.parametrize(
    ("header", "agrees"),
    [
        ("", False),
        ("permessage-deflate", True),
        ("permessage-deflate; client_max_window_bits", True),  # browsers
        ("permessage-deflate;client_max_window_bits=15", True),
        ('permessage-deflate; client_max_window_bits="8"', True),
        ("Permessage-Deflate; Server_No_Context_Takeover", True),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", True),
        ("permessage-deflate; server_max_window_bits=10", False),
        ("permessage-deflate; server_max_window_bits=10, permessage-deflate", True),
        ("permessage-deflate; client_max_window_bits=7", False),
        ("permessage-deflate; client_max_window_bits=16", False),
        ("permessage-deflate; client_max_window_bits=08", False),
        ("permessage-deflate; server_no_context_takeover=1", False),
        ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", False),
        ("permessage-deflate; unknown", False),
        (", permessage-deflate,, foo ,", True),
        ("x-webkit-deflate-frame", False),
        ("foo; bar=1, x-webkit-deflate-frame, permessage-deflate", True),
    ],
)
def test_compression_is_agreed_where_both_can_do_it(header: str, agrees: bool) -> None:
    assert _deflate.agrees(header) is agrees


@pytest.mark.parametrize(
    "header",
    [";", "a b", ",;", "permessage-deflate; =", "a;", 'a; b="', 'a; b=""', 'a; b="x y"', "ž", "a; b=", "a,,b c"],
)
def test_what_is_no_list_of_extensions_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match="extensions"):
        _deflate.agrees(header)


# The formats


def run_of(form: Any, *entries: Any) -> tuple[Log, bytes]:
    log = Log(channel="news")
    for entry in entries:
        log.append(entry)
    return log, form.run(log, 1, list(entries))


def test_a_message_is_one_text_frame_with_all_there_is_to_know() -> None:
    log, run = run_of(WEBSOCKET_TEXT, Message("ž\n", "goal"), Gap(3))
    first = f'{{"channel":"news","event":"goal","data":"ž\\n","id":"{log.epoch}-1"}}'.encode()
    second = f'{{"channel":"news","event":"gap","data":{{"missed":3}},"id":"{log.epoch}-2"}}'.encode()
    assert run == b"\x81" + bytes([len(first)]) + first + b"\x81" + bytes([len(second)]) + second


def test_small_messages_are_not_compressed_and_large_ones_are() -> None:
    log, run = run_of(WEBSOCKET_DEFLATED, Message("x"))
    assert run[0] == 0x81
    log, run = run_of(WEBSOCKET_DEFLATED, Message("x" * 1000))
    assert run[0] == 0xC1
    assert len(run) < 200
    content = zlib.decompressobj(-15).decompress(run[2 if run[1] < 126 else 4 :] + b"\0\0\xff\xff")
    assert json.loads(content) == {"channel": "news", "data": "x" * 1000, "id": f"{log.epoch}-1"}


def test_what_does_not_shrink_goes_as_it_is() -> None:
    noise = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(32))
    assert message_frame(noise, binary=True, compress=True) == frame(2, noise)


def test_a_message_is_deflated_once_for_all_who_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def deflate(payload: bytes) -> bytes:
        calls.append(payload)
        return _deflate.deflate(payload)

    monkeypatch.setattr(_frames, "deflate", deflate)
    log = Log()
    log.append(Message("x" * 1000))
    runs = {log.encoded(WEBSOCKET_DEFLATED.run, 0) for _ in range(100)}
    assert len(runs) == len(calls) == 1


def test_goodbye_is_a_close_frame_with_code_and_reason() -> None:
    said = WEBSOCKET_TEXT.goodbye(RESTART)
    assert said == bytes([0x88, 2 + len(RESTART.reason)]) + b"\x03\xf4" + RESTART.reason.encode()
    assert WEBSOCKET_DEFLATED.goodbye(RESTART) == said
