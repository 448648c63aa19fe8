"""What SIGHUP reads again while everything goes on: keys, and certificates with theirs.

Each file that was read at the start is read again by itself, in a thread. What was read is in force for the next
connection or request; what has begun is not asked again. What cannot be read leaves everything as it was, and a line
says why. No line has a key or a part of one.

Which signals there are is decided in run.py, what a key file may hold in identity/options.py.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from cryptography import x509
from starlette.concurrency import run_in_threadpool

from gnomon.http.identity.options import ConfigError
from gnomon.http.process.certificate import BadFile, check_pair

log = logging.getLogger("gnomon.http")


class Renewal(NamedTuple):
    """What was read: a line that tells of it, and the call, on the server's own thread, that puts it in force."""

    told: str
    use: Callable[[], None]


Renew: TypeAlias = Callable[[], Renewal]
"""Reads files again. Raises ConfigError."""


async def reload(readers: Sequence[Renew]) -> None:
    if not readers:
        log.info("SIGHUP: nothing to read again: no file of keys or certificates was given; the server goes on")
    for read in readers:
        try:
            told, use = await run_in_threadpool(read)
            use()
            log.info("SIGHUP: %s", told)
        except ConfigError as error:
            log.error("SIGHUP: %s; what was read before stays in force", error)
        except Exception:  # nobody awaits this to see it
            log.exception("SIGHUP: reading again failed; what was read before stays in force")


def check_file(flag: str, path: Path) -> None:
    """A pipe gives what is in it once, and whoever reads it again waits for ever."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ConfigError(f"{flag}: {path}: not a regular file, so it cannot be read again")


def owner(certificate: Path) -> str:
    """Whose certificate it is and how long it holds: the first one in the file."""
    try:
        first = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
        names = first.subject.rfc4514_string() or "no subject"
    except (OSError, ValueError):  # TLS may take what this reader does not
        return "a certificate whose subject cannot be shown"
    return f"{names}, valid until {first.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"


class ServerCertificate:
    """The certificate of HTTPS. A handshake gets the one that was read last; a connection keeps the one it has."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.certificate, self.key = certificate, key
        self.latest: ssl.SSLContext | None = None  # None: the one that the server was started with

    def choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        """For `SSLContext.sni_callback`, which is called in every handshake, whether or not the client names a host."""
        if self.latest is not None:
            connection.context = self.latest

    def read(self) -> Renewal:
        """A pair of its own, so that a certificate without its key never takes the place of a sound pair."""
        check_file("--tls-certificate", self.certificate)
        check_file("--tls-key", self.key)
        try:
            check_pair("--tls-certificate", self.certificate, "--tls-key", self.key)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        except (BadFile, OSError, ValueError) as error:  # the latter two: a file was replaced since it was checked
            raise ConfigError(str(error)) from None

        def use() -> None:
            self.latest = context

        return Renewal(f"--tls-certificate {self.certificate} read: {owner(self.certificate)}", use)
