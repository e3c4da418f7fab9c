"""The certificate of `waterspout serve`: its options, its files, and how it is renewed while the server runs."""

from __future__ import annotations

import logging
import os
import ssl
from typing import Final, NoReturn

from ..server import Server
from ._options import F, option

MISFITS: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""What OpenSSL calls a key that is not the certificate's: one of the same kind, or of another."""

logger: Final = logging.getLogger("waterspout.server")


def tls_options(function: F) -> F:
    """`--tls-cert FILE` and `--tls-key FILE`."""
    for each in (
        option("--tls-key", metavar="FILE", help="Its private key (PEM), where that is in a file of its own."),
        option("--tls-cert", metavar="FILE", help="Speak TLS only, with the certificate of this file (PEM), and behind "
               "it those that lead to its authority. SIGHUP reads the files again."),
    ):  # fmt: skip
        function = each(function)
    return function


class Certificate:
    """A certificate and its key, in PEM files that may be replaced at any time. Raises ValueError as `load` does."""

    def __init__(self, cert: str, key: str | None = None) -> None:
        self._cert, self._key = cert, cert if key is None else key
        self._cert_name = f"--tls-cert {cert}"
        self._key_name = self._cert_name if key is None else f"--tls-key {key}"
        self.context = self.load()
        """As the files were at first."""

    def load(self) -> ssl.SSLContext:
        """What the files hold now, for a server. Raises ValueError, in one line for the user."""
        _expect("certificate", b"CERTIFICATE-----", self._cert, self._cert_name)
        _expect("private key", b"PRIVATE KEY-----", self._key, self._key_name)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self._cert, self._key, password=self._refuse)
        except ssl.SSLError as error:
            if error.reason in MISFITS:
                raise ValueError(f"{self._key_name}: the private key is not that of the certificate") from None
            names = " with ".join(dict.fromkeys((self._cert_name, self._key_name)))
            raise ValueError(f"{names} is of no use: {error.reason or 'its PEM is broken'}") from None
        except OSError as error:  # it has gone meanwhile
            raise ValueError(f"{self._cert_name} cannot be read: {error.strerror}") from None
        return context

    def _refuse(self) -> NoReturn:
        # OpenSSL would ask at the terminal.
        raise ValueError(f"{self._key_name}: the private key is encrypted; nobody is there to say its pass phrase")

    def renew(self, server: Server) -> None:
        """Let `server` use what the files hold now; if that is of no use, what it has."""
        try:
            server.renew(self.load())
        except ValueError as error:
            logger.error("the certificate stays as it was: %s", error)
        else:
            logger.info("the certificate has been read again from %s", self._cert)


def find_certificate(cert: str | None, key: str | None) -> Certificate | None:
    """What the options name. Raises ValueError, in one line for the user."""
    # An empty variable is none at all to click. Where it was not filled in, nothing shall be said in the clear.
    if cert == "" or (cert is None and os.environ.get("WATERSPOUT_TLS_CERT") == ""):
        raise ValueError("--tls-cert (or WATERSPOUT_TLS_CERT) is empty: to do without TLS, leave it out")
    if cert is not None:
        return Certificate(cert, key)
    if key is not None:
        raise ValueError("--tls-key is of no use without --tls-cert")
    return None


def _expect(thing: str, mark: bytes, path: str, name: str) -> None:
    """Raises ValueError if the file at `path`, which is `name` to the user, holds no such `thing`."""
    try:
        with open(path, "rb") as file:
            found = mark in file.read()
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None
    if not found:
        raise ValueError(f"{name} holds no {thing} in PEM")
