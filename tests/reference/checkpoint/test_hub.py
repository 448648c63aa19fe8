"""Models by their id on the hub: what is fetched, what the cache answers, what is never asked, and every failure.

huggingface_hub reads its variables when it is imported, so whoever asks is a process of its own, as a user's is.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.checkpoint.hub import is_hub_id, locate
from helpers.hub import COMMIT, TOKEN, FakeHub
from helpers.loopback import Loopback, closed_port, loopback
from helpers.models import tiny_llama

pytestmark = pytest.mark.slow

GNOMON = "from gnomon.http.cli.main import main; main()"
LOCATE = "import sys; from gnomon.reference.checkpoint.hub import locate; print(locate(sys.argv[1], *sys.argv[2:]))"
NOT_HERE = "gnomon: maker/tiny: no such directory on this machine, and asked of the hub: "
COMPLETE = ("complete", "the", "--max-tokens", "2", "--model", "maker/tiny")


@pytest.fixture(scope="module")
def address() -> Iterator[Loopback]:
    with loopback() as served:
        yield served


@pytest.fixture
def hub(address: Loopback, tmp_path: Path) -> FakeHub:
    """A hub with one tiny model, and beside what is needed all that is not."""
    hub = FakeHub.of(tiny_llama(tmp_path / "made"))
    hub.files |= dict.fromkeys(("pytorch_model.bin", "consolidated.safetensors", "README.md"), b"\x80\x04.")
    hub.files |= {"onnx/model.onnx": b"o", "fp16/model.safetensors": b"f", "modeling_tiny.py": b"import os"}
    address.app = hub
    return hub


Ask = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def variables(address: Loopback, tmp_path: Path) -> dict[str, str]:
    """Those of a user who has this hub and an empty cache, and none of another test's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_", "TQDM_"))}
    own = {"HF_ENDPOINT": address.base, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**kept, **own}


@pytest.fixture
def ask(variables: dict[str, str], tmp_path: Path) -> Ask:
    """Runs a line of Python as that user would, in an empty directory. Variables may be replaced."""
    (tmp_path / "elsewhere").mkdir()

    def run(code: str, *arguments: str, **replaced: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(
            command, env={**variables, **replaced}, capture_output=True, text=True, timeout=120,
            cwd=tmp_path / "elsewhere",
        )  # fmt: skip

    return run


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a failed command, without what the hub's library said before."""
    assert (done.returncode, done.stdout) == (1, ""), done
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stderr
    *_, line = done.stderr.splitlines()
    assert line.startswith(NOT_HERE), done.stderr
    return line.removeprefix(NOT_HERE)


# ---- what is fetched


def test_a_hub_id_is_fetched_into_the_hubs_own_cache_and_runs(hub: FakeHub, ask: Ask, tmp_path: Path) -> None:
    here = ask(GNOMON, *COMPLETE[:-1], str(tmp_path / "made"), "--seed", "1")
    done = ask(GNOMON, *COMPLETE, "--seed", "1")
    assert (done.returncode, done.stdout) == (0, here.stdout), done.stderr
    assert hub.fetched == {path.name for path in (tmp_path / "made").iterdir()}
    snapshot = tmp_path / "home" / "hub" / "models--maker--tiny" / "snapshots" / COMMIT
    assert {path.name for path in snapshot.iterdir()} == hub.fetched
    assert (snapshot / "config.json").is_symlink()


def test_files_that_name_tokens_beside_tokenizer_json_are_fetched(hub: FakeHub, ask: Ask) -> None:
    names = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
    hub.files |= {name: b"{}" + b" " * i for i, name in enumerate(names)}  # the hub's cache keeps equal files once
    done = ask(GNOMON, *COMPLETE)
    assert done.returncode == 0, done.stderr
    assert names < hub.fetched


def test_what_is_in_the_cache_is_not_fetched_again_and_serves_offline(hub: FakeHub, ask: Ask) -> None:
    first = ask(LOCATE, "maker/tiny")
    hub.asked.clear()
    assert ask(LOCATE, "maker/tiny").stdout == first.stdout
    assert hub.fetched == set()
    hub.asked.clear()
    assert ask(LOCATE, "maker/tiny", HF_HUB_OFFLINE="1").stdout == first.stdout
    assert hub.asked == []
    assert ask(LOCATE, "maker/tiny", HF_ENDPOINT=closed_port()).stdout == first.stdout
    assert first.stdout.strip().endswith(COMMIT)


def test_a_cache_filled_by_another_program_serves_offline(hub: FakeHub, ask: Ask, tmp_path: Path) -> None:
    """Blobs, refs and links laid down by hand, in a cache that HF_HUB_CACHE names."""
    cache = tmp_path / "filled"
    model = cache / "models--maker--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for path in (tmp_path / "made").iterdir():
        blob = FakeHub.tag(path.read_bytes())
        path.rename(model / "blobs" / blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    done = ask(GNOMON, *COMPLETE, "--json", HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "maker/tiny"
    assert done.stderr == ""
    assert hub.asked == []


@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_a_revision_is_asked_for(hub: FakeHub, ask: Ask, revision: str) -> None:
    done = ask(GNOMON, *COMPLETE, "--revision", revision)
    assert done.returncode == 0, done.stderr
    assert all(f"revision/{revision}" in line for line in hub.asked if "/revision/" in line)
    assert any(f"/{revision}" in line for line in hub.asked)


def test_the_token_of_the_environment_opens_a_private_model(hub: FakeHub, ask: Ask) -> None:
    hub.private = True
    done = ask(GNOMON, *COMPLETE, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stderr


def test_progress_bars_are_the_hubs_and_obey_its_switch(hub: FakeHub, ask: Ask, tmp_path: Path) -> None:
    assert "Fetching" in ask(LOCATE, "maker/tiny").stderr
    off = ask(LOCATE, "maker/tiny", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HOME=str(tmp_path / "second"))
    assert "Fetching" not in off.stderr


# ---- what cannot be


def test_what_the_hub_does_not_know_is_one_line(hub: FakeHub, ask: Ask, address: Loopback) -> None:
    hub.name = "maker/other"
    line = refused(ask(GNOMON, *COMPLETE))
    assert line.startswith(f"{address.base} shows no such model")


def test_a_private_model_without_its_token_is_one_line(hub: FakeHub, ask: Ask, address: Loopback) -> None:
    hub.private = True
    assert "if it is private, set HF_TOKEN" in refused(ask(GNOMON, *COMPLETE))
    line = refused(ask(GNOMON, *COMPLETE, HF_TOKEN="hf_wrong"))
    assert line.startswith(f"{address.base} refused the token, or the lack of one, with 401")
    assert "hf_wrong" not in line


def test_a_gated_model_is_one_line(hub: FakeHub, ask: Ask) -> None:
    hub.gated = True
    assert refused(ask(GNOMON, *COMPLETE)).startswith("gated: ask its owners for access at ")


def test_a_revision_that_is_not_there_is_one_line(hub: FakeHub, ask: Ask, address: Loopback) -> None:
    assert refused(ask(GNOMON, *COMPLETE, "--revision", "v9")) == f"{address.base} has no revision 'v9' of it"


def test_offline_without_a_copy_is_one_line(hub: FakeHub, ask: Ask, tmp_path: Path) -> None:
    line = refused(ask(GNOMON, *COMPLETE, HF_HUB_OFFLINE="1"))
    assert line == f"HF_HUB_OFFLINE is set, and the cache {tmp_path / 'home' / 'hub'} has no copy of this revision"
    ask(LOCATE, "maker/tiny")
    [weights] = (tmp_path / "home").rglob("snapshots/*/model.safetensors")
    weights.unlink()
    assert "has an incomplete copy" in refused(ask(GNOMON, *COMPLETE, HF_HUB_OFFLINE="1"))


def test_a_hub_that_cannot_be_reached_is_one_line(ask: Ask) -> None:
    endpoint = closed_port()
    line = refused(ask(GNOMON, *COMPLETE, HF_ENDPOINT=endpoint))
    assert line == f"{endpoint} cannot be reached, and the cache has no complete copy (ConnectError)"


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"HF_ENDPOINT": "hf-mirror.com"}, "HF_ENDPOINT='hf-mirror.com' does not begin with https:// or http://"),
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "ALL_PROXY: a SOCKS proxy needs the package socksio"),
        ({"SSL_CERT_FILE": "/nowhere/cacert.pem"}, "SSL_CERT_FILE: No such file or directory"),
        (
            {"HF_HUB_ETAG_TIMEOUT": "soon"},
            "one of the variables HF_… has a wrong value: invalid literal",
        ),
    ],
)
def test_a_variable_that_the_hub_cannot_use_is_named(ask: Ask, replaced: dict[str, str], said: str) -> None:
    done = ask(GNOMON, *COMPLETE, **replaced)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(NOT_HERE + said)
    assert "Traceback" not in done.stderr


def test_a_proxy_on_the_way_to_the_hub_is_named(hub: FakeHub, ask: Ask) -> None:
    line = refused(ask(GNOMON, *COMPLETE, http_proxy=closed_port(), no_proxy="", NO_PROXY=""))
    assert line.endswith(
        "it was asked through the proxy in the variable http_proxy; NO_PROXY=127.0.0.1 asks it without one"
    )


def test_a_hub_that_is_broken_is_one_line(hub: FakeHub, ask: Ask, address: Loopback) -> None:
    hub.broken = 418
    assert refused(ask(GNOMON, *COMPLETE)).startswith(f"{address.base} answered 418")
    hub.broken = 403
    assert refused(ask(GNOMON, *COMPLETE)).startswith(f"{address.base} refused the token, or the lack of one, with 403")


def test_a_model_of_pickles_only_is_refused_and_not_fetched(hub: FakeHub, ask: Ask) -> None:
    del hub.files["model.safetensors"]
    line = refused(ask(GNOMON, *COMPLETE))
    assert line == "it has no safetensors weights; a pickle (.bin) can run code when read, and is refused"
    assert "pytorch_model.bin" not in hub.fetched


def test_a_repository_of_an_adapter_is_called_what_it_is(hub: FakeHub, ask: Ask) -> None:
    hub.files |= {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}
    del hub.files["config.json"]
    assert refused(ask(GNOMON, *COMPLETE)).startswith("adapter_config.json is of an adapter, which is not applied here")


def test_a_gguf_file_is_called_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=rf"{file} is a GGUF file, which is not read here"):
        locate(str(file))


def test_a_repository_without_a_config_is_one_line(hub: FakeHub, ask: Ask) -> None:
    del hub.files["config.json"]
    assert refused(ask(GNOMON, *COMPLETE)).startswith("it has no config.json")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"no space left for it in the cache .+; HF_HOME moves it"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), r"no space left for it in the cache .+; HF_HOME moves it"),
        (PermissionError(errno.EACCES, "Permission denied"), r"the cache .+: Permission denied"),
        (RuntimeError("at https://x.example/?signature=secret"), r".+ cannot be reached, .+ \(RuntimeError\)"),
    ],
)
def test_a_disk_that_does_not_take_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", failing)
    with pytest.raises(CheckpointError) as caught:
        locate("maker/tiny")
    assert re.fullmatch(NOT_HERE.removeprefix("gnomon: ") + message, str(caught.value))
    assert "secret" not in str(caught.value)


# ---- what is never asked


@pytest.mark.parametrize(
    "name", ["./tiny", "../tiny", "/maker/tiny", "~/tiny", "~", ".", "..", "a/b/c", "maker/", "/", "tiny ", "a\\b", "é",
             "a:b", "https://a.example/b", "-x", ".x", "a/.x"],
)  # fmt: skip
def test_what_looks_like_a_path_is_never_sent_to_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail(f"asked for {name}"))
    assert not is_hub_id(name)
    if not Path(name).is_dir():
        with pytest.raises(CheckpointError, match="no such directory on this machine"):
            locate(name)
    with pytest.raises(CheckpointError):
        locate(Path("maker/tiny"))


def test_what_is_on_this_machine_is_never_sent_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    assert is_hub_id("maker/tiny")
    (tmp_path / "maker" / "tiny").mkdir(parents=True)
    assert locate("maker/tiny") == Path("maker/tiny")
    Path("file").touch()
    with pytest.raises(CheckpointError, match="file: a file; give the directory that it is in"):
        locate("file")
    Path("circle").symlink_to("circle")
    with pytest.raises(CheckpointError, match="circle: no such directory"):
        locate("circle")


def test_a_revision_of_a_directory_is_refused_and_so_is_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no revision 'v1'; only a hub id has"):
        locate(tmp_path, "v1")
    with pytest.raises(CheckpointError, match="the revision is an empty string"):
        locate("maker/tiny", "")


@pytest.mark.parametrize(
    ("name", "there", "hint"),
    [
        ("tiny/", ["Tiny", "other"], " (is Tiny meant?)"),
        ("./smollm2-135M", ["SmolLM2-135M"], " (is SmolLM2-135M meant?)"),
        ("a/b/modle", ["a/b/model"], " (is a/b/model meant?)"),
        ("./tiny", ["tiny-a", "tiny-b"], ""),  # which of the two nobody knows
        ("./tiny", ["large"], ""),
        ("nowhere/at/all", [], ""),
    ],
)
def test_the_one_directory_with_nearly_that_name_is_pointed_out(
    name: str, there: list[str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for directory in there:
        Path(directory).mkdir(parents=True)
    with pytest.raises(CheckpointError) as caught:
        locate(name)
    assert str(caught.value) == f"{Path(name).absolute()}: no such directory on this machine{hint}"


def test_that_no_directory_is_here_is_said_before_the_hub_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Nope").mkdir()
    monkeypatch.chdir(tmp_path)
    said: list[str] = []

    def failing(*_: object, **__: object) -> None:
        said.append("asked")
        raise RuntimeError

    monkeypatch.setattr("huggingface_hub.snapshot_download", failing)
    hint = "nope: no such directory on this machine (is Nope meant?)"
    with pytest.raises(CheckpointError) as caught:
        locate("nope", say=said.append)
    assert str(caught.value).startswith(f"{hint}, and asked of the hub: ")
    assert said == [f"{hint}; looking for it in the hub's cache and on the hub", "asked"]


# ---- served


def test_a_hub_id_is_served_under_its_own_name(hub: FakeHub, variables: dict[str, str]) -> None:
    environment = {**variables, "GNOMON_REVISION": "v1", "GNOMON_MODEL": "maker/tiny"}
    command = [sys.executable, "-c", GNOMON, "serve", "--engine", "reference", "--port", "0", "--max-model-len", "40"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.match(r"maker/tiny is served at (\S+)/v1 ", process.stdout.readline())
        assert found is not None, process.communicate()[1]
        [model] = httpx.get(f"{found[1]}/v1/models").json()["data"]
        assert (model["id"], model["max_model_len"]) == ("maker/tiny", 40)
        body = {"model": "maker/tiny", "prompt": "a", "max_tokens": 2}
        assert httpx.post(f"{found[1]}/v1/completions", json=body).status_code == 200
        assert httpx.post(f"{found[1]}/v1/completions", json={**body, "max_tokens": 40}).status_code == 400
    finally:
        process.kill()
        process.communicate()
    assert f"GET /api/models/{hub.name}/revision/v1" in hub.asked
