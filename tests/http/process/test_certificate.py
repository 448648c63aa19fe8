"""What is wrong with a certificate, its key or the authorities, said in one line, and of which file."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from gnomon.http.identity.options import ConfigError, tls_context
from gnomon.http.process.certificate import BadFile, check_authorities, check_pair
from gnomon.http.settings import AuthMode, AuthSettings
from helpers.certificate import certificate
from helpers.loopback import Tls


class Files:
    """Two pairs of certificate and key, and files that are made of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mine, self.other = (certificate(directory, name, "127.0.0.1") for name in ("mine", "other"))

    def file(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        return path

    def key(self, form: PrivateFormat, password: bytes | None = None, encoding: Encoding = Encoding.PEM) -> Path:
        loaded = serialization.load_pem_private_key(self.mine.key.read_bytes(), None)
        how = BestAvailableEncryption(password) if password else NoEncryption()
        return self.file("made.key", loaded.private_bytes(encoding, form, how))

    def der(self) -> Path:
        return self.file("made.der", ssl.PEM_cert_to_DER_cert(self.mine.certificate.read_text()))

    def chain(self, *pairs: Tls) -> Path:
        return self.file("chain.pem", b"".join(pair.certificate.read_bytes() for pair in pairs))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


Pair = Callable[[Files], tuple[Path, Path]]

END = b"\n-----END CERTIFICATE-----\n"

WRONG: dict[str, tuple[Pair, str]] = {
    "swapped": (
        lambda f: (f.mine.key, f.mine.certificate),
        "-c: {0} holds a private key, and -k {1} a certificate: they are swapped",
    ),
    "another key": (
        lambda f: (f.mine.certificate, f.other.key),
        "-c: {0} has no certificate of -k {1}: its first is another key's (CN=mine), and can sign others: if it is an "
        "authority's, the server's own certificate must be before it",
    ),
    "two certificates": (
        lambda f: (f.mine.certificate, f.other.certificate),
        "-k: {1} holds a certificate, and no private key",
    ),
    "two keys": (lambda f: (f.mine.key, f.other.key), "-c: {0} holds a private key, and no certificate"),
    "the leaf behind": (
        lambda f: (f.chain(f.other, f.mine), f.mine.key),
        "-c: {0} has the certificate of -k as its number 2; it must be the first",
    ),
    "encrypted": (
        lambda f: (f.mine.certificate, f.key(PrivateFormat.PKCS8, b"secret")),
        "-k: {1} holds an encrypted key",
    ),
    "encrypted as of old": (
        lambda f: (f.mine.certificate, f.key(PrivateFormat.TraditionalOpenSSL, b"secret")),
        "-k: {1} holds an encrypted key",
    ),
    "certificate in DER": (lambda f: (f.der(), f.mine.key), "-c: {0} is in DER; PEM is needed"),
    "key in DER": (
        lambda f: (f.mine.certificate, f.key(PrivateFormat.PKCS8, encoding=Encoding.DER)),
        "-k: {1} is in DER; PEM is needed",
    ),
    "no certificate": (lambda f: (f.directory / "nowhere", f.mine.key), "-c: {0}: No such file or directory"),
    "no key": (lambda f: (f.mine.certificate, f.directory / "nowhere"), "-k: {1}: No such file or directory"),
    "a directory": (lambda f: (f.mine.certificate, f.directory), "-k: {1}: Is a directory"),
    "empty": (lambda f: (f.file("empty", b"\n"), f.mine.key), "-c: {0} is empty"),
    "no PEM": (lambda f: (f.file("text", b"hello\n"), f.mine.key), "-c: {0} is no PEM: it has no line -----BEGIN"),
    "a request": (
        lambda f: (f.file("csr", b"-----BEGIN CERTIFICATE REQUEST-----\n"), f.mine.key),
        "-c: {0} holds certificate request, and no certificate",
    ),
    "damaged": (
        lambda f: (f.file("bad", f.mine.certificate.read_bytes()[:200] + END), f.mine.key),
        "-c: {0} holds a certificate that is damaged",
    ),
    "a damaged key": (
        lambda f: (f.mine.certificate, f.file("bad", f.mine.key.read_bytes()[:80])),
        "-k: {1} holds a private key that is damaged",
    ),
    "a byte order mark": (
        lambda f: (f.file("bom", b"\xef\xbb\xbf" + f.mine.certificate.read_bytes()), f.mine.key),
        "-c: {0} begins with a byte order mark; save it without one",
    ),
    "UTF-16": (
        lambda f: (f.mine.certificate, f.file("wide", f.mine.key.read_text().encode("utf-16"))),
        "-k: {1} is text in UTF-16",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_a_pair_is_said_and_in_which_file(files: Files, what: str) -> None:
    make, beginning = WRONG[what]
    certificate, key = make(files)
    with pytest.raises(BadFile) as caught:
        check_pair("-c", certificate, "-k", key)
    message = str(caught.value)
    assert message.startswith(beginning.format(certificate, key)), message
    assert "\n" not in message
    assert "secret" not in message


def test_a_pair_is_taken_with_carriage_returns_and_comments_and_both_in_one_file(files: Files) -> None:
    both = files.file("both", b"a comment\r\n" + files.mine.key.read_bytes() + files.mine.certificate.read_bytes())
    crlf = files.file("crlf", files.mine.certificate.read_bytes().replace(b"\n", b"\r\n"))
    for chosen, key in ((both, both), (crlf, files.mine.key), (files.chain(files.mine, files.other), files.mine.key)):
        check_pair("-c", chosen, "-k", key)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chosen, key)


def test_authorities_that_are_none_are_refused_by_name(files: Files) -> None:
    check_authorities("-a", files.chain(files.mine, files.other))
    for path, why in ((files.mine.key, " holds a private key, and no certificate"), (files.der(), " is in DER")):
        with pytest.raises(BadFile, match=f"^-a: {path}{why}"):
            check_authorities("-a", path)


@pytest.mark.parametrize("option", ["client_certificate", "ca_file"])
def test_the_files_for_the_identity_service_are_told_apart_too(files: Files, option: str) -> None:
    settings = AuthSettings(mode=AuthMode.jwks, client_certificate=files.mine.key, client_key=files.mine.certificate)
    if option == "ca_file":
        settings = AuthSettings(mode=AuthMode.jwks, ca_file=files.mine.key)
    with pytest.raises(ConfigError, match=f"^--auth-{option.replace('_', '-')}: {files.mine.key} holds a private key"):
        tls_context(settings)


def test_a_key_that_needs_a_password_is_an_error_and_no_question_at_the_terminal(files: Files) -> None:
    key = files.key(PrivateFormat.PKCS8, b"secret")
    settings = AuthSettings(mode=AuthMode.jwks, client_certificate=files.mine.certificate, client_key=key)
    with pytest.raises(ConfigError, match=r"^--auth-client-key: .* holds an encrypted key, whose password nobody can"):
        tls_context(settings)


ONCE = "not a regular file, so it cannot be read again"


@contextmanager
def piped(file: Path) -> Iterator[Path]:
    """What is in the file, once: as a shell's <(...) gives it."""
    read, write = os.pipe()
    os.write(write, file.read_bytes())
    os.close(write)
    yield Path(f"/dev/fd/{read}")
    os.close(read)


def test_a_pipe_is_refused_by_name_since_it_can_be_read_once(files: Files) -> None:
    mine = files.mine
    with piped(mine.certificate) as pipe, pytest.raises(BadFile, match=f"^-c: {pipe}: {ONCE}$"):
        check_pair("-c", pipe, "-k", mine.key)
    with piped(mine.key) as pipe, pytest.raises(BadFile, match=f"^-k: {pipe}: {ONCE}$"):
        check_pair("-c", mine.certificate, "-k", pipe)
    with piped(mine.certificate) as pipe, pytest.raises(BadFile, match=f"^-a: {pipe}: {ONCE}$"):
        check_authorities("-a", pipe)
