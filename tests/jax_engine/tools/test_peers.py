"""Peers that are installed are started as their scripts want it, and those that are not are told apart."""

from __future__ import annotations

import os
import sys
import urllib.request
from pathlib import Path

import pytest

from gnomon.jax_engine.tools import peers
from gnomon.jax_engine.tools.clients import ClientError
from gnomon.jax_engine.tools.measure import LLAMA_135M, RandomModel, cores, make_checkpoint
from gnomon.jax_engine.tools.peer_rows import works
from gnomon.jax_engine.tools.workbench import BenchPlan
from gnomon.reference.checkpoint.load import Checkpoint, load_checkpoint

SERVER = f"""#!/bin/sh
echo "$@" > "$PEERS_DIR/arguments"
env > "$PEERS_DIR/environment"
ls "$PEERS_DIR/ckpt/$1/" > "$PEERS_DIR/files"
mkdir -p "$PEERS_DIR/www/v1" && touch "$PEERS_DIR/www/v1/models" && cd "$PEERS_DIR/www"
exec {sys.executable} -m http.server --bind 127.0.0.1 "$2"
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return load_checkpoint(
        make_checkpoint(tmp_path / "model", RandomModel((300, 32, 48, 1, 2, 1), LLAMA_135M.entries), 64)
    )


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of peers and one of scripts, both empty."""
    for name in ("FOLDER", "SCRIPTS"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(peers, name, tmp_path / name)
    return tmp_path


def script(folder: Path, text: str) -> None:
    (folder / "FOLDER" / "venvB.installed").touch()
    file = folder / "SCRIPTS" / "start_vllm.sh"
    file.write_text(text)
    file.chmod(0o755)


def test_what_is_missing_of_a_peer_is_named(installed: Path) -> None:
    assert peers.missing("vllm") == f"venvB not installed in {installed / 'FOLDER'}: see tests/peer_run.py"
    (installed / "FOLDER" / "venvB.installed").touch()
    assert peers.missing("vllm") == f"there is no start_vllm.sh in {installed / 'SCRIPTS'}"
    script(installed, SERVER)
    assert peers.missing("vllm") is None


def test_a_peer_gets_the_model_a_port_all_cores_and_the_length(installed: Path, checkpoint: Checkpoint) -> None:
    script(installed, SERVER)
    with peers.started("vllm", checkpoint, "bfloat16", installed, 1024) as client:
        place = installed / "peers-bfloat16"
        assert client.url.startswith("http://127.0.0.1:")
        port = client.url.rpartition(":")[2]
        assert (place / "arguments").read_text().split() == [client.model, port, "bfloat16"]
        said = dict(line.partition("=")[::2] for line in (place / "environment").read_text().splitlines())
        assert (said["THREADS"], said["SLOTS"], said["MAX_LEN"]) == (str(cores()), "32", "1024")
        assert said["VLLM_BIND"] == peers.processors()
        assert "model.safetensors" in (place / "files").read_text()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(client.url, timeout=5)


@pytest.mark.parametrize(("usable", "text"), [({0, 1}, "0-1"), ({3, 2, 4}, "2-4"), ({0, 2}, "0,2"), ({5}, "5")])
def test_processors_are_listed_as_linux_lists_them(
    usable: set[int], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: usable)
    assert peers.processors() == text


def test_a_peer_that_ends_says_what_it_said_last(installed: Path, checkpoint: Checkpoint) -> None:
    script(installed, "#!/bin/sh\necho no such instruction\nexit 3\n")
    with (
        pytest.raises(ClientError, match=r"no server: .*\n.*no such instruction"),
        peers.started("vllm", checkpoint, "float32", installed, 1024),
    ):
        pass


def test_the_targets_against_peers_are_those_that_were_set() -> None:
    found = [
        (work.peer, work.target(work.peer, "float32"), work.target(work.peer, "bfloat16"))
        for work in works(BenchPlan())
    ]
    assert found == [
        ("llama-server", 1.2, 1.1), ("vllm", 1.5, 1.2), ("vllm", 1.2, 1.2),
        ("vllm", 1.1, 1.0), ("llama-server", 1.0, 1.0), ("vllm", 1.0, 1.0),
    ]  # fmt: skip
    assert [work.target("transformers", "float32") for work in works(BenchPlan())] == [None] * 6
