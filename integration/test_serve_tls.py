"""`waterspout serve --tls-cert`: each door, the command's own clients, and a certificate that is renewed meanwhile."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from playwright.sync_api import expect

from integration.browsers import TIMEOUT, launched
from integration.clients import DEADLINE
from integration.conftest import Command, Serve, ServerProcess
from waterspout_redis.testing import run

HERE: Final = "127.0.0.1"

LOOPS: Final = ["auto", "asyncio"]

StartCommand = Callable[..., Command]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """The context of a client who trusts the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


class Files:
    """The files of a certificate for this machine."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        self.cert, self.key, self.both = folder / "cert.pem", folder / "key.pem", folder / "both.pem"
        self.authority = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self._authority = authority
        self.issue()

    def issue(self, key_type: trustme.KeyType = trustme.KeyType.ECDSA) -> bytes:
        """Write a new certificate; what the peers of a server see of it (DER)."""
        issued = self._authority.issue_cert(HERE, "localhost", key_type=key_type)
        chain = issued.cert_chain_pems
        self.cert.write_bytes(b"".join(pem.bytes() for pem in chain))
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.both.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        return ssl.PEM_cert_to_DER_cert(chain[0].bytes().decode())


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    return Files(tmp_path, authority)


@pytest.fixture
def server(serve: Serve, files: Files) -> ServerProcess:
    return serve("--tcp-port", "0", "--tls-cert", str(files.both))


@pytest.fixture
def trusted(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Subcommands are told whom to trust as every program of Python is."""
    monkeypatch.setenv("SSL_CERT_FILE", str(files.authority))


def line_port(server: ServerProcess) -> int:
    return int(server.wait_for_output(r"tls://\S+:(\d+)")[1])


def shown(port: int, trusting: ssl.SSLContext) -> bytes | None:
    """The certificate that is shown there (DER)."""
    plain = socket.create_connection((HERE, port), DEADLINE)
    with trusting.wrap_socket(plain, server_hostname=HERE) as sock:
        return sock.getpeercert(binary_form=True)


# The doors


@pytest.mark.parametrize("loop", LOOPS)
def test_every_door_speaks_tls_and_says_goodbye_in_its_protocol(
    serve: Serve, files: Files, trusting: ssl.SSLContext, loop: str
) -> None:
    options = ("--tls-cert", str(files.cert), "--tls-key", str(files.key), "--loop", loop)
    server = serve("--tcp-port", "0", *options, "--grace", "4")
    assert server.url.startswith("https://")

    async def use() -> None:
        connector = aiohttp.TCPConnector(ssl=trusting)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"{server.url}/events?channel=news") as events,
            session.ws_connect(f"{server.url}/ws?channel=news") as web_socket,
            session.get(f"{server.url}/poll?channel=news&timeout=30&last_event_id=earliest") as poll,
        ):
            reader, writer = await asyncio.open_connection(HERE, line_port(server), ssl=trusting)
            writer.write(b"SUBSCRIBE\r\nPUBLISH news by line\r\n")
            assert await reader.readline() == b"CONFIRMED\r\n"
            assert (await reader.readline()).startswith(b"CONFIRMED news ")
            async with session.post(f"{server.url}/channels/news", data="by POST") as answer:
                assert answer.status == 200
            await web_socket.send_json({"publish": "news", "data": "by WebSocket"})
            published = ["by line", "by POST", "by WebSocket"]
            assert [message["data"] for message in (await poll.json())["messages"]] == published[:1]
            got = []
            while len(got) < len(published):
                message = await web_socket.receive_json(timeout=DEADLINE)
                if "data" in message:
                    got.append(message["data"])
            assert got == published
            server.process.send_signal(signal.SIGTERM)
            said = (await events.content.read()).decode()
            assert re.findall(r"^data: (.*)$", said, re.MULTILINE) == published
            assert said.rstrip().rpartition("\n")[2].startswith("retry: ")
            assert (await web_socket.receive(timeout=DEADLINE)).type is aiohttp.WSMsgType.CLOSE
            assert web_socket.close_code == 1012
            assert (await reader.read()).startswith(b"GOAWAY ")
            writer.close()
        assert await asyncio.to_thread(server.process.wait, DEADLINE) == 0

    run(use())
    # A client that goes in good order is nothing to warn of.
    assert "WARNING" not in server.output()


def test_the_console_page_is_live_over_tls(server: ServerProcess) -> None:
    # It ends here: while it is there, other tests could not run an event loop.
    with launched() as browser, browser.new_context(ignore_https_errors=True) as context:
        context.set_default_timeout(TIMEOUT)
        page = context.new_page()
        page.goto(f"{server.url}/?channel=news")
        expect(page.locator("#status")).to_have_text("Live")


@pytest.mark.parametrize("loop", LOOPS)
def test_who_does_not_speak_tls_is_not_answered_and_harms_nobody(
    serve: Serve, files: Files, trusting: ssl.SSLContext, loop: str
) -> None:
    server = serve("--tcp-port", "0", "--tls-cert", str(files.both), "--loop", loop, "--grace", "30")
    for port in (server.address[1], line_port(server)):
        with socket.create_connection((HERE, port), DEADLINE) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            try:
                answer = sock.recv(4096)
            except ConnectionResetError:
                answer = b""
            # An alert of TLS, at most (RFC 8446, 5.1).
            assert answer[:1] in (b"", b"\x15")
        # Gone before it is accepted, with and without a word.
        server.process.send_signal(signal.SIGSTOP)
        for said in (b"", b"\x16\x03\x01"):
            sock = socket.create_connection((HERE, port), DEADLINE)
            sock.sendall(said)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        server.process.send_signal(signal.SIGCONT)
        assert shown(port, trusting)
    with socket.create_connection(server.address), socket.create_connection((HERE, line_port(server))):
        assert shown(line_port(server), trusting)
        assert server.stop() == 0  # long before the grace is over


# The command's own clients


def test_publish_tail_and_connect_trust_an_authority_of_ones_own(
    server: ServerProcess, command: StartCommand, trusted: None
) -> None:
    assert command("publish", "news", "by publish", "--url", server.url).wait() == 0
    typed = subprocess.run(
        [sys.executable, "-m", "waterspout", "connect", f"tls://localhost:{line_port(server)}"],
        input="PUBLISH news by connect\nEXIT\n",
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    assert re.fullmatch(r"CONFIRMED news \S+\nBYE\n", typed.stdout)
    tail = command("tail", "news", "--url", server.url, "--last-event-id", "earliest")
    tail.until(lambda: tail.out == "by publish\nby connect\n", "printing both")
    assert "WARNING" not in server.output()


def test_who_does_not_trust_the_server_says_so_once_and_sends_nothing(
    server: ServerProcess, command: StartCommand, trusting: ssl.SSLContext
) -> None:
    publishing = command("publish", "news", "secret", "--url", server.url, "--retry-for", "0.5")
    tail = command("tail", "news", "--url", server.url)
    assert publishing.wait() == 1
    assert "given up" in publishing.err
    tried = server.output().count("SSL Error")
    tail.until(lambda: server.output().count("SSL Error") > tried, "trying once more")
    for each in (publishing, tail):
        assert each.err.count("; keeping the messages and trying again\n") + each.err.count("; trying again\n") == 1
        assert "certificate verify failed" in each.err
        assert all(line.startswith("waterspout: ") for line in each.err.splitlines())
    with urllib.request.urlopen(f"{server.url}/channels/news", timeout=DEADLINE, context=trusting) as answer:
        assert json.load(answer)["messages"] == 0


# Renewal


@pytest.mark.parametrize("loop", LOOPS)
def test_a_renewed_certificate_is_shown_from_sighup_on_and_nobody_is_disconnected(
    serve: Serve, files: Files, trusting: ssl.SSLContext, loop: str
) -> None:
    """Also if the key is of another kind: OpenSSL would keep, and prefer, the certificate for the one before."""
    server = serve("--tcp-port", "0", "--tls-cert", str(files.cert), "--tls-key", str(files.key), "--loop", loop)
    ports = server.address[1], line_port(server)
    before = {shown(port, trusting) for port in ports}

    plain = socket.create_connection((HERE, ports[1]), DEADLINE)
    with trusting.wrap_socket(plain, server_hostname=HERE) as connected:
        connected.sendall(b"PING before\r\n")
        assert connected.recv(64) == b"PONG before\r\n"
        renewed = files.issue(trustme.KeyType.RSA)
        assert {shown(port, trusting) for port in ports} == before
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_output(f"INFO waterspout.server: the certificate has been read again from {files.cert}\n")
        assert {shown(port, trusting) for port in ports} == {renewed} != before
        connected.sendall(b"PING after\r\n")
        assert connected.recv(64) == b"PONG after\r\n"
    assert server.stop() == 0


def test_a_renewal_that_is_broken_is_an_error_and_the_certificate_stays(
    serve: Serve, files: Files, trusting: ssl.SSLContext
) -> None:
    server = serve("--tls-cert", str(files.cert), "--tls-key", str(files.key))
    before = shown(server.address[1], trusting)
    key = files.key.read_bytes()
    files.issue()
    renewed = files.key.read_bytes()
    files.key.write_bytes(key)  # of two files one has been written
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_output(r"ERROR waterspout.server: the certificate stays as it was: --tls-key .* is not that of")
    assert shown(server.address[1], trusting) == before
    files.key.write_bytes(renewed)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_output("has been read again")
    assert shown(server.address[1], trusting) != before
    assert len(re.findall("waterspout.server", server.output())) == 2


def test_without_tls_sighup_ends_it_as_ever(serve: Serve) -> None:
    assert serve().stop(signal.SIGHUP) == -signal.SIGHUP


# Mistakes


def encrypted(key: bytes, form: PrivateFormat) -> bytes:
    return load_pem_private_key(key, None).private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"phrase"))


def mistakes(files: Files) -> dict[str, tuple[tuple[Any, ...], str]]:
    """By name, what is given and what is said."""
    folder, cert, key = files.cert.parent, files.cert, files.key
    for name, key_type in (("other", trustme.KeyType.ECDSA), ("rsa", trustme.KeyType.RSA)):
        files.issue(key_type)
        (folder / name).write_bytes(key.read_bytes())
    files.issue()
    (folder / "der").write_bytes(ssl.PEM_cert_to_DER_cert(files.authority.read_text()))
    (folder / "cut").write_bytes(cert.read_bytes()[:200])
    for name, form in (("pkcs8", PrivateFormat.PKCS8), ("openssl", PrivateFormat.TraditionalOpenSSL)):
        (folder / name).write_bytes(encrypted(key.read_bytes(), form))
    return {
        "missing": (("--tls-cert", folder / "none"), f"--tls-cert {folder / 'none'} cannot be read: No such file"),
        "no key file": (("--tls-cert", cert, "--tls-key", folder / "none"), f"--tls-key {folder / 'none'} cannot be"),
        "a folder": (("--tls-cert", folder), f"--tls-cert {folder} cannot be read: Is a directory"),
        "DER": (("--tls-cert", folder / "der", "--tls-key", key), "/der holds no certificate in PEM"),
        "no key": (("--tls-cert", cert), f"--tls-cert {cert} holds no private key in PEM"),
        "swapped": (("--tls-cert", key, "--tls-key", cert), f"--tls-cert {key} holds no certificate in PEM"),
        "cut": (("--tls-cert", folder / "cut", "--tls-key", key), f"/cut with --tls-key {key} is of no use"),
        "another's": (("--tls-cert", cert, "--tls-key", folder / "other"), "/other: the private key is not that of"),
        "of another kind": (("--tls-cert", cert, "--tls-key", folder / "rsa"), "/rsa: the private key is not that of"),
        "encrypted": (("--tls-cert", cert, "--tls-key", folder / "pkcs8"), "/pkcs8: the private key is encrypted"),
        "as openssl did": (("--tls-cert", cert, "--tls-key", folder / "openssl"), "the private key is encrypted"),
        "key alone": (("--tls-key", key), "--tls-key is of no use without --tls-cert"),
        "empty": (("--tls-cert", ""), "--tls-cert (or WATERSPOUT_TLS_CERT) is empty"),
    }


def test_each_mistake_is_one_line_and_status_2(files: Files, command: StartCommand) -> None:
    expected = mistakes(files)
    started = {name: command("serve", "--port", "0", *map(str, args)) for name, (args, _) in expected.items()}
    for name, (_, said) in expected.items():
        assert (name, started[name].wait()) == (name, 2)
        assert said in started[name].err
        assert started[name].err.startswith("waterspout: ")
        assert started[name].err.count("\n") == 1
        assert started[name].out == ""


def test_a_variable_that_was_not_filled_in_is_not_passed_over(
    command: StartCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATERSPOUT_TLS_CERT", "")
    starting = command("serve", "--port", "0")
    assert starting.wait() == 2
    assert "--tls-cert (or WATERSPOUT_TLS_CERT) is empty" in starting.err


def test_the_files_may_be_named_by_variables(serve: Serve, files: Files, trusting: ssl.SSLContext) -> None:
    named = {"WATERSPOUT_TLS_CERT": str(files.cert), "WATERSPOUT_TLS_KEY": str(files.key)}
    assert shown(serve(environment=named).address[1], trusting)
