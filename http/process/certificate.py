"""A certificate chain and its key in two files of PEM: whether a TLS library will take them, and if not, why not.

OpenSSL says `[SSL] PEM lib` of most of what can be wrong; here the reason is told, and which of the two files has it.
Nothing of a key is ever shown.
"""

from __future__ import annotations

import codecs
import os
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from gnomon.reference.system.files import read_regular

MOST_PEM_BYTES = 16 * 2**20  # of a file of certificates: a hundred times those that browsers trust
LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
ENCODINGS = (  # how text begins that OpenSSL does not read
    (codecs.BOM_UTF8, "begins with a byte order mark; save it without one"),
    (codecs.BOM_UTF16_LE, "is text in UTF-16; save it as ASCII or UTF-8"),
    (codecs.BOM_UTF16_BE, "is text in UTF-16; save it as ASCII or UTF-8"),
)


class BadFile(Exception):
    """The line: which option's file, and what is wrong with it."""

    def __init__(self, option: str, why: str) -> None:
        super().__init__(f"{option}: {why}")
        self.option, self.why = option, why


class Pem(NamedTuple):
    """A file, and what it says it holds."""

    option: str
    path: Path
    data: bytes
    labels: tuple[str, ...]

    @property
    def has_certificate(self) -> bool:
        return any(label.endswith("CERTIFICATE") for label in self.labels)

    @property
    def has_key(self) -> bool:
        return any(label.endswith("PRIVATE KEY") for label in self.labels)

    def bad(self, why: str) -> BadFile:
        return BadFile(self.option, f"{self.path} {why}")


def read_pem(option: str, path: Path) -> Pem:
    """Raises BadFile if it is no PEM at all, or a pipe, such as a shell's <(...): what is in it can be read once, and
    whoever reads it again, as OpenSSL does, finds nothing or waits for ever."""
    try:
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            raise BadFile(option, f"{path}: not a regular file, so it cannot be read again")
        data = read_regular(path, MOST_PEM_BYTES)
    except OSError as error:
        raise BadFile(option, f"{path}: {error.strerror}") from None
    pem = Pem(option, path, data, tuple(label.decode() for label in LABEL.findall(data)))
    if not data.strip():
        raise pem.bad("is empty")
    for mark, why in ENCODINGS:
        if data.startswith(mark):
            raise pem.bad(why)
    if not pem.labels:
        der = data[:1] == b"\x30"  # of a SEQUENCE, which certificates and keys are
        raise pem.bad(
            "is in DER; PEM is needed, which openssl x509 or openssl pkey writes with -inform der" if der
            else "is no PEM: it has no line -----BEGIN ...-----"
        )  # fmt: skip
    return pem


def check_pair(certificate_option: str, certificate: Path, key_option: str, key: Path) -> None:
    """Raises BadFile if the two cannot be used together."""
    chain, private = read_pem(certificate_option, certificate), read_pem(key_option, key)
    if not chain.has_certificate and chain.has_key and private.has_certificate and not private.has_key:
        why = f"{chain.path} holds a private key, and {key_option} {private.path} a certificate: they are swapped"
        raise BadFile(chain.option, why)
    certificates, public = _certificates(chain), _public_key(private)
    _check_leaf(chain, certificates, private, public)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise chain.bad(f"and {key_option} {private.path}: {reason}") from None


def check_authorities(option: str, path: Path) -> None:
    """Raises BadFile if the file holds no certificates to trust."""
    _certificates(read_pem(option, path))


def _certificates(pem: Pem) -> list[x509.Certificate]:
    if not pem.has_certificate:
        what = "a private key" if pem.has_key else pem.labels[0].lower()
        raise pem.bad(f"holds {what}, and no certificate")
    try:
        return x509.load_pem_x509_certificates(pem.data)
    except ValueError:
        raise pem.bad("holds a certificate that is damaged: it cannot be decoded") from None


def _public_key(pem: Pem) -> bytes:
    """That of the private key in the file."""
    if not pem.has_key:
        what = "a certificate" if pem.has_certificate else pem.labels[0].lower()
        raise pem.bad(f"holds {what}, and no private key")
    if "ENCRYPTED PRIVATE KEY" in pem.labels or b"Proc-Type: 4,ENCRYPTED" in pem.data:
        raise pem.bad("holds an encrypted key, whose password nobody can be asked for; openssl pkey decrypts it")
    begin = next(found.start() for found in LABEL.finditer(pem.data) if found[1].endswith(b"PRIVATE KEY"))
    try:
        return _encoded(load_pem_private_key(pem.data[begin:], None).public_key())
    except Exception:  # each kind of key has errors of its own
        raise pem.bad("holds a private key that is damaged, or of a kind that is not known here") from None


def _check_leaf(chain: Pem, certificates: Sequence[x509.Certificate], private: Pem, public: bytes) -> None:
    """The first certificate must be the key's."""
    theirs = [_encoded(one.public_key()) == public for one in certificates]
    if theirs[0]:
        return
    if any(theirs):
        at = theirs.index(True) + 1
        raise chain.bad(f"has the certificate of {private.option} as its number {at}; it must be the first")
    subject = certificates[0].subject.rfc4514_string() or "no subject"
    hint = ""
    if _is_authority(certificates[0]):  # so is one that is signed by itself
        hint = ", and can sign others: if it is an authority's, the server's own certificate must be before it"
    raise chain.bad(
        f"has no certificate of {private.option} {private.path}: its first is another key's ({subject}){hint}"
    )


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _encoded(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded
