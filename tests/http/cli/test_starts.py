"""Starts with wrong values, files and surroundings: a line that says what is wrong, a status of 1 or 2, and no wait."""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gnomon.http.cli.serve import SERVE_ROWS
from gnomon.http.cli.toml import fitting
from gnomon.http.identity import options as identity_options
from gnomon.http.observe.text import as_utf8
from helpers.command import COMMAND, Gnomon, Result
from helpers.models import tiny_llama
from helpers.odd_files import broken_link, device, link_loop, unix_socket

ASCII: dict[str, Any] = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def process(*arguments: object, cwd: Path | None = None, **variables: Any) -> Result:
    """The command by itself, with its bytes as they are."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], env=os.environ | variables, cwd=cwd, stdin=subprocess.DEVNULL,
        capture_output=True, timeout=120,
    )  # fmt: skip
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


# ---- numbers

NUMBERS = ("10000000000000000000", "-1", "nan", "inf", "-inf", "1e400", "", " ", "1 2", "٣x", "0x10", "9" * 5000, "1,5")
NUMERIC = {  # one of each kind: options.py makes all of a kind alike
    (row.type, row.min, row.max, row.metavar): row for row in SERVE_ROWS if row.type in (int, int | None, float)
}


@pytest.mark.slow
@pytest.mark.parametrize("row", NUMERIC.values(), ids=[row.name for row in NUMERIC.values()])
def test_a_number_of_the_server_is_taken_as_it_is_or_refused_by_its_flag(gnomon: Gnomon, row: Any) -> None:
    flag = "--" + row.name.replace("_", "-")
    for text in NUMBERS:
        result = gnomon("serve", f"{flag}={text}", "--print-config")
        if result.code == 0:
            taken = tomllib.loads(result.out)[row.name]
            assert (taken, type(taken)) == ((float if row.type is float else int)(text), type(taken))
            assert taken >= (row.min or 0)
        else:
            assert (result.code, flag in result.err, result.out) == (2, True, ""), (text, result)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "flags"),
    [("verify http://127.0.0.1:1", ("--concurrency", "--budget-tokens", "--timeout")),
     ("complete a", ("--max-model-len",)), ("doctor", ("--max-model-len",))],
)  # fmt: skip
def test_a_number_of_another_command_is_refused_by_its_flag(
    gnomon: Gnomon, command: str, flags: tuple[str, ...]
) -> None:
    for flag in flags:
        for text in NUMBERS:
            if (flag, text) == ("--budget-tokens", NUMBERS[0]):
                continue  # a budget may be as large as one likes
            result = gnomon(*command.split(), f"{flag}={text}")
            assert (result.code in (1, 2), flag[2:] in result.err, result.out) == (True, True, ""), (text, result)


# ---- files


def binary(path: Path) -> None:
    path.write_bytes(b"\0\xff")


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**34)  # without a block on the disk


KINDS: dict[str, Callable[[Path], None]] = {
    "loop": link_loop, "broken link": broken_link, "directory": Path.mkdir, "pipe": os.mkfifo, "device": device,
    "socket": unix_socket, "empty": Path.touch, "binary": binary, "16 GiB": large,
}  # fmt: skip
SERVE = ("serve", "--port", "0", "--engine", "reference")
TLS = ("--tls-certificate", "{}", "--tls-key", "{}")
IDENTITY = ("--auth-mode", "userinfo", "--auth-issuer", "https://127.0.0.1:1")
READ: dict[str, tuple[str, ...]] = {
    "--model": ("complete", "a", "--model", "{}"),
    "MODEL": (*SERVE, "{}"),
    "--auth-api-key-file": (*SERVE, "--auth-mode", "api-key", "--auth-api-key-file", "{}"),
    "--tls-certificate": (*SERVE, *TLS),
    "--auth-ca-file": (*SERVE, *IDENTITY, "--auth-ca-file", "{}"),
    "--auth-client-certificate": (*SERVE, *IDENTITY, "--auth-client-certificate", "{}", "--auth-client-key", "{}"),
    "--baseline": ("verify", "http://127.0.0.1:1", "--baseline", "{}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", READ)
def test_what_is_no_file_of_that_kind_is_one_line_with_its_name(
    gnomon: Gnomon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, kind: str
) -> None:
    monkeypatch.setattr(identity_options, "PIPE_SECONDS", 0.1)
    KINDS[kind](tmp_path / "x")
    result = gnomon(*(argument.format(tmp_path / "x") for argument in READ[option]))
    assert (result.code in (1, 2), result.out, result.err.count("\n")) == (True, "", 1), result.err
    assert str(tmp_path / "x") in result.err
    assert option in result.err or option in ("MODEL", "--model")


WRITTEN = {
    "verify --json": ("verify", "http://127.0.0.1:1", "--json", "{}"),
    "verify --junit": ("verify", "http://127.0.0.1:1", "--junit", "{}"),
    "verify --html": ("verify", "http://127.0.0.1:1", "--html", "{}"),
    "doctor --json": ("doctor", "--json", "{}"),
    "export-model": ("export-model", "{}"),
}


@pytest.mark.parametrize("kind", ["loop", "directory", "pipe", "socket"])
@pytest.mark.parametrize("what", WRITTEN)
def test_what_cannot_be_written_is_one_line_before_the_work(
    gnomon: Gnomon, tmp_path: Path, what: str, kind: str
) -> None:
    KINDS[kind](tmp_path / "x")
    if (what, kind) == ("export-model", "directory"):
        (tmp_path / "x" / "file").touch()
    result = gnomon(*(argument.format(tmp_path / "x") for argument in WRITTEN[what]))
    assert (result.code in (1, 2), result.out, result.err.count("\n")) == (True, "", 1), result.err
    assert str(tmp_path / "x") in result.err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                                  "model.safetensors", "model.safetensors.index.json"])  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_a_model_that_is_none_is_one_line_with_its_name(
    gnomon: Gnomon, tmp_path: Path, name: str, kind: str
) -> None:
    directory = tiny_llama(tmp_path / "model")
    (directory / name).unlink(missing_ok=True)
    if name.endswith(".index.json"):
        (directory / "model.safetensors").unlink()
    KINDS[kind](directory / name)
    result = gnomon("complete", "a", "--model", directory)
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1), result.err
    assert str(directory / name) in result.err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "\udcff", "x" * 300, "é"])
@pytest.mark.parametrize("option", READ)
def test_a_name_of_any_characters_is_one_printable_line(gnomon: Gnomon, tmp_path: Path, option: str, name: str) -> None:
    result = gnomon(*(argument.format(f"{tmp_path}/{name}") for argument in READ[option]))
    assert (result.code in (1, 2), result.out) == (True, "")
    assert result.err.endswith("\n")
    assert result.err[:-1].isprintable(), result.err


def test_keys_come_through_a_pipe_however_slowly_and_a_silent_one_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    os.write(write, b"a-key-of-")
    os.write(write, b"sixteen\n")
    os.close(write)
    assert identity_options.read_keys(Path(f"/dev/fd/{read}")) == b"a-key-of-sixteen\n"
    os.close(read)
    monkeypatch.setattr(identity_options, "PIPE_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"a pipe that was not written to its end in 0\.1 seconds"):
        identity_options.read_keys(tmp_path / "pipe")


# ---- a directory that is gone

GONE = {
    "complete": (("complete", "a", "--max-tokens", "0"), 0, ""),
    "a directory": (("complete", "a", "--model", "./x"), 1, "x: no such directory on this machine"),
    "the directory itself": (("serve", ".", *SERVE[1:]), 1, "config.json: no such file"),
    "serve": (("serve", "./x", *SERVE[1:]), 1, "x: no such directory on this machine"),
    "--print-config": (("serve", "--print-config"), 0, ""),
    "doctor": (("doctor", "./x"), 1, "x: no such directory on this machine"),
    "export-model": (("export-model", "x"), 1, "x: No such file or directory"),
    "verify": (("verify", "http://127.0.0.1:1", "--json", "x", "--html", "y"), 2, "--json: 'x': No such file"),
    "--baseline": (("verify", "http://127.0.0.1:1", "--baseline", "x"), 2, "--baseline: 'x': No such file"),
    "--list": (("verify", "--list", "--only", "stop"), 0, ""),
    "TLS": ((*SERVE, "--tls-certificate", "c", "--tls-key", "k"), 2, "--tls-certificate: c: No such file"),
}


@pytest.mark.parametrize("what", GONE)
def test_every_command_says_what_it_lacks_where_the_directory_was_removed(
    gnomon: Gnomon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    arguments, code, words = GONE[what]
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = gnomon(*arguments)
    assert result.code == code, result.err
    assert words in result.err
    assert result.err.count("\n") == (code != 0)


# ---- an ASCII locale


@pytest.mark.slow
def test_texts_of_an_ascii_locale_are_read_as_utf8(model: Path) -> None:
    """The prompt, a stop string and the user; the same bytes as in a locale of UTF-8."""
    arguments = ("complete", "é the", "--stop", "ü", "--user", "ö", "--seed", "1", "--echo", "--json", "--model", model)
    plain, there = process(*arguments, PYTHONUTF8="1"), process(*arguments, **ASCII)
    assert (there.code, there.err) == (plain.code, plain.err) == (0, "")
    assert there.out.partition('"choices"')[2] == plain.out.partition('"choices"')[2]
    assert '"text":"\\u00e9 the' in there.out


@pytest.mark.slow
def test_bytes_that_are_no_utf8_are_refused_in_any_locale(model: Path) -> None:
    utf8: dict[str, Any] = {"PYTHONUTF8": "1"}
    for variables in (ASCII, utf8):
        result = process("complete", b"a\xff".decode(errors="surrogateescape"), "--model", model, **variables)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert result.err.startswith('gnomon: prompt: "a\\udcff" is not allowed')


@pytest.mark.slow
def test_a_name_in_an_ascii_locale_is_the_models_and_shown_in_escapes_that_toml_has(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "modèle")
    result = process("serve", "modèle", "--print-config", cwd=tmp_path, GNOMON_FIM_PREFIX="«", GNOMON_FIM_SUFFIX="»",
                     GNOMON_FIM_MIDDLE="|", **ASCII)  # fmt: skip
    assert (result.code, result.err, result.out.isascii()) == (0, "", True)
    shown = tomllib.loads(result.out)
    assert (shown["served_model_name"], shown["model"]) == ("modèle", "modèle")
    assert (shown["fim_prefix"], shown["fim_suffix"]) == ("«", "»")


@pytest.mark.slow
def test_a_model_is_opened_by_its_name_in_an_ascii_locale(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "modèle")
    result = process("complete", "a", "--json", "--model", "modèle", cwd=tmp_path, **ASCII)
    assert (result.code, result.err) == (0, "")
    assert '"model":"mod\\u00e8le"' in result.out
    missing = process("complete", "a", "--model", "./modèlx", cwd=tmp_path, **ASCII)
    assert (missing.code, missing.out) == (1, "")
    assert "mod\\xe8lx: no such directory on this machine (is mod\\xe8le meant?)" in missing.err


def slowly(*names: str) -> list[Any]:
    return [name if name == "verify --list" else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", slowly("verify --list", "--help", "complete --help", "serve --help", "verify --help", "doctor --help",
                      "export-model --help", "serve --served-model-name é --print-config", "export-model é"),
)  # fmt: skip
def test_what_every_command_prints_fits_an_ascii_output(tmp_path: Path, command: str) -> None:
    for variables in ({"PYTHONIOENCODING": "ascii"}, ASCII):
        result = process(*command.replace("é", f"é{len(variables)}").split(), cwd=tmp_path, **variables)
        assert (result.code, result.err) == (0, "")
        assert result.out
        assert result.out.isascii()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é", "plain é"),
        ("\udcc3\udca9", "é"),
        ("a\udce2\udc82\udcacb", "a€b"),
        ("\udcff", "\udcff"),
        ("a\udcc3", "a\udcc3"),
        ("b\ud800", "b\ud800"),
        ("\udcc3\udca9\udcff", "é\udcff"),
    ],
)
def test_only_bytes_that_are_utf8_are_read_as_such(text: str, expected: str) -> None:
    assert as_utf8(text) == expected
    assert as_utf8(as_utf8(text)) == expected


def test_a_line_of_toml_fits_any_encoding_and_says_the_same() -> None:
    line = 'a = "é€😀x"  # é'
    assert fitting(line, "utf-8") == line
    assert fitting(line, "latin-1").encode("latin-1").decode("latin-1") == 'a = "é\\u20AC\\U0001F600x"  # é'
    assert tomllib.loads(fitting(line, "ascii")) == tomllib.loads(line)
