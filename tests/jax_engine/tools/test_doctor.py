"""`gnomon doctor`: it finds nothing on a sound engine, and names the section where a broken one is found."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gnomon.http.cli.main import main
from gnomon.jax_engine import device, model, sampler
from gnomon.jax_engine.tools import doctor, same_bytes, speed
from gnomon.jax_engine.tools.examined import FULL_EXTENT, QUICK_EXTENT, Examination, ExaminedModel, SayLine
from gnomon.jax_engine.tools.lines import without_names
from gnomon.reference.checkpoint.load import default_model_path, load_checkpoint
from gnomon.reference.completion import prepare
from gnomon.reference.engine import Failed, PromptScored, ReferenceEngine, Token
from gnomon.reference.parity import Recording, RecordingEngine, Tally, judge_recording
from gnomon.reference.request import CompletionRequest
from gnomon.reference.tokenizer import load_tokenizer
from helpers.models import tiny_llama

pytestmark = pytest.mark.slow


class Examined(NamedTuple):
    report: dict[str, Any]
    lines: list[str]

    def line(self, beginning: str) -> str:
        return next(line for line in self.lines if line.strip().startswith(beginning))


def examine(path: Path) -> Examined:
    checkpoint, lines = load_checkpoint(path), list[str]()
    tokenizer = load_tokenizer(path, checkpoint.config.vocab_size)
    return Examined(doctor.examine(checkpoint, tokenizer, lines.append, quick=True), lines)


@pytest.fixture(scope="module")
def examined() -> Examined:
    return examine(default_model_path())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


Only = Callable[..., None]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Only:
    """Leaves out all sections but some, and sets others in."""

    def choose(*names: str, **others: doctor.ExaminationSection) -> None:
        kept = {name: doctor.SECTIONS[name] for name in names}
        monkeypatch.setattr(doctor, "SECTIONS", {**others, **kept})
        for section in (same_bytes, speed):
            monkeypatch.setattr(section, "DTYPES", ("float32",))

    return choose


# ---- a sound engine


def test_a_sound_engine_is_found_sound(examined: Examined) -> None:
    report = examined.report
    assert report["verdict"] == "sound", report["reasons"]
    assert report["reasons"] == []
    assert report["quick"]
    assert report["parity"]["faults"] == report["parity"]["excused"] == 0
    assert report["parity"]["tokens"] > 100
    for dtype in ("float32", "bfloat16"):
        compared = report["same_bytes"][dtype]
        for way in ("under_load", "backwards", "second_engine"):
            assert compared[way]["differing"] == 0
            assert compared[way]["answers"] >= 12
        assert compared["under_load"]["neighbours"] > 0
        assert compared["backwards"]["cached_tokens"] > 0
        assert compared["second_engine"]["fingerprint"] == compared["fingerprint"]
    assert report["same_bytes"]["float32"]["fingerprint"] != report["same_bytes"]["bfloat16"]["fingerprint"]
    assert report["environment"]["fingerprint"] == report["same_bytes"]["float32"]["fingerprint"]


def test_the_report_is_json_and_has_what_the_lines_say(examined: Examined) -> None:
    report = examined.report
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    environment, parity, speed = report["environment"], report["parity"], report["speed"]
    assert environment["versions"]["jax"] in examined.line("libraries")
    assert f"{environment['device']['count']} x {environment['device']['kind']}" in examined.line("device")
    assert environment["fingerprint"] in examined.line("fingerprint")
    assert f"{environment['model']['parameters']:,}" in examined.line("model")
    assert examined.line("sampled tokens").split()[2] == f"{parity['tokens']:,},"
    assert f"{parity['worst_logprob']:.1e}" in examined.line("log-probabilities")
    load = report["same_bytes"]["bfloat16"]["under_load"]
    assert f"{load['differing']} of {load['answers']}" in examined.line("bfloat16")
    assert f"{speed['bandwidth']['bytes_per_second'] / 1e9:.1f} GB/s" in examined.line("read bandwidth")
    assert [d["dtype"] for d in speed["decode"]] == ["float32", "bfloat16"]
    for d in speed["decode"]:
        assert d["floor_ms"] == pytest.approx(1e3 * d["step_bytes"] / speed["bandwidth"]["bytes_per_second"])
        assert d["share"] == pytest.approx(d["floor_ms"] / d["step_ms"])
        assert f"{d['step_ms']:,.2f}" in examined.line(f"embedded, {d['dtype']}")
    assert examined.line("verdict").startswith("verdict: sound")


def test_a_step_reads_every_weight_once_and_the_live_keys_and_values(examined: Examined) -> None:
    d = examined.report["speed"]["decode"][0]
    matrices_and_norms = 4 * examined.report["environment"]["model"]["parameters"]  # float32; the embedding is the head
    per_position = 2 * 4 * 2 * 32 * 4  # keys and values of 4 layers, 2 heads of 32, float32
    assert d["step_bytes"] == matrices_and_norms + d["slots"] * d["live_positions"] * per_position


def test_it_fits_a_screen_or_two(examined: Examined) -> None:
    assert len(examined.lines) <= 60
    assert all(len(line) <= 120 and line.isascii() for line in examined.lines)


def test_the_report_names_no_path_and_no_host(examined: Examined) -> None:
    text = json.dumps(examined.report) + "\n".join(examined.lines)
    assert socket.gethostname() not in text
    assert str(Path.home()) + "/" not in text
    assert str(default_model_path()) not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot open '/home/ann/models/x.json'", "cannot open '<path>'"),
        ("--xla_dump_to=/data/ann --xla_gpu_ftz=true", "--xla_dump_to=<path> --xla_gpu_ftz=true"),
        ("8 GB/s and/or 1/2", "8 GB/s and/or 1/2"),
    ],
)
def test_names_of_paths_are_left_out(text: str, shown: str) -> None:
    assert without_names(text) == shown


def test_the_home_and_the_host_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann of it")
    monkeypatch.setattr(socket, "gethostname", lambda: "ann-pc")
    assert without_names("/home/ann of it/x on ann-pc:80") == "<path> on <host>:80"


def test_the_set_has_every_kind_of_request(tiny: Path) -> None:
    checkpoint = load_checkpoint(default_model_path())
    examined_model = ExaminedModel(checkpoint, load_tokenizer(checkpoint.path, 2048), FULL_EXTENT)
    bodies = examined_model.bodies(FULL_EXTENT.rounds)
    assert bodies == examined_model.bodies(FULL_EXTENT.rounds)
    for kind in ("frequency_penalty", "presence_penalty", "logit_bias", "best_of", "stop", "echo", "suffix"):
        assert any(body.get(kind) for body in bodies), kind
    assert any(body["temperature"] == 0 for body in bodies if "temperature" in body)
    assert any(0 < body.get("top_p", 1) < 1 for body in bodies)
    assert max(len(body["prompt"]) + body["max_tokens"] for body in bodies if isinstance(body["prompt"], list)) == 512


# ---- a broken one


@pytest.mark.parametrize("broken", ["rope", "noise", "nucleus"])
def test_a_wrong_engine_is_unsound_in_parity(
    broken: str, tiny: Path, only: Only, monkeypatch: pytest.MonkeyPatch
) -> None:
    only("parity")
    rotate, noise = model.rotate, sampler.noise
    match broken:
        case "rope":
            monkeypatch.setattr(
                model, "rotate", lambda x, rope, positions, *how: rotate(x, rope, 1.01 * positions, *how)
            )
        case "noise":
            monkeypatch.setattr(sampler, "noise", lambda rows, V: noise(rows._replace(step=rows.step + 1), V))
        case "nucleus":
            monkeypatch.setattr(sampler, "nucleus", lambda z, *_: jnp.ones_like(z, bool))
    examined = examine(tiny)
    assert examined.report["verdict"] == "unsound"
    assert examined.report["parity"]["faults"] > 0
    [reason] = examined.report["reasons"]
    assert reason.startswith(f"parity: {examined.report['parity']['faults']} faults, the first: ")
    assert examined.lines[-1].strip().startswith("parity: ")


def test_logits_that_are_not_finite_are_faults_and_not_the_end(
    tiny: Path, only: Only, monkeypatch: pytest.MonkeyPatch
) -> None:
    only("parity")
    right = device.decode

    def decode(*arguments: Any) -> Any:
        hidden, cache = right(*arguments)
        return hidden * jnp.nan, cache

    monkeypatch.setattr(device, "decode", decode)
    examined = examine(tiny)
    assert examined.report["verdict"] == "unsound"
    assert examined.report["parity"]["requests"] >= 11
    assert "the engine failed: the model produced logits that are not finite" in examined.report["reasons"][0]


def test_answers_that_depend_on_load_are_unsound_in_same_bytes(
    tiny: Path, only: Only, monkeypatch: pytest.MonkeyPatch
) -> None:
    only("parity", "same_bytes")
    right = device.decode

    def decode(*arguments: Any) -> Any:
        hidden, cache = right(*arguments)
        live = arguments[-1]
        return hidden * (1 + 2.0**-20 * live.sum()), cache  # too little for any tolerance

    monkeypatch.setattr(device, "decode", decode)
    report = examine(tiny).report
    assert report["verdict"] == "unsound"
    assert report["parity"]["faults"] == 0
    assert report["same_bytes"]["float32"]["under_load"]["differing"] > 0
    assert all(reason.startswith("same bytes: ") for reason in report["reasons"])
    assert re.fullmatch(r"same bytes: float32: [1-9]\d* of 12 answers differ \(under load\)", report["reasons"][0])


def test_a_section_that_raises_is_reported_and_the_others_run(tiny: Path, only: Only) -> None:
    def broken(*_: object) -> list[str]:
        raise RuntimeError("cannot read /home/ann/secret.txt")

    only("environment", parity=broken)
    report, lines = examine(tiny)
    assert report["parity"]["error"] == "RuntimeError: cannot read <path>"
    assert report["environment"]["fingerprint"].startswith("gnomon-jax-")
    assert report["verdict"] == "unsound"
    assert report["reasons"] == ["parity: RuntimeError: cannot read <path>"]
    assert lines[-1] == "  parity: RuntimeError: cannot read <path>"


def test_programs_are_compiled_here_and_not_taken_from_a_cache(tiny: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom gnomon.jax_engine.tools import doctor\n"
        "from gnomon.reference import load_checkpoint, load_tokenizer\n"
        "doctor.SECTIONS = {'environment': doctor.environment}\n"
        "checkpoint = load_checkpoint(sys.argv[1])\n"
        "tokenizer = load_tokenizer(checkpoint.path, checkpoint.config.vocab_size)\n"
        "print(doctor.examine(checkpoint, tokenizer, quick=True)['verdict'])\n"
    )
    cache = tmp_path / "cache"
    cache.mkdir()
    asked = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", script, str(tiny)]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "sound"
    assert not list(cache.iterdir())


# ---- what judges


@pytest.mark.parametrize("changed", ["nothing", "token", "logprob", "ranking", "score", "shape", "failure"])
def test_what_is_changed_in_a_recording_is_a_fault(tiny: Path, changed: str) -> None:
    checkpoint = load_checkpoint(tiny)
    reference = ReferenceEngine(checkpoint)
    recorder = RecordingEngine(reference)
    fields = {"model": "m", "prompt": "the old house", "temperature": 0, "max_tokens": 4, "logprobs": 3, "echo": True}
    tokenizer = load_tokenizer(tiny, checkpoint.config.vocab_size)
    prepare(CompletionRequest.from_fields(fields), recorder, tokenizer, "m").whole()
    [recording] = recorder.recordings
    change(recording, changed)
    tally = Tally()
    judge_recording(reference, recording, tally, 1e-6, 1e-6)
    assert (tally.requests, tally.tokens) == (1, 4)
    assert bool(tally.faults) == (changed != "nothing")


def change(recording: Recording, what: str) -> None:
    events = recording.events
    scored, token = events[0], events[-2]  # the last one is Done
    assert isinstance(scored, PromptScored)
    assert isinstance(token, Token)
    match what:
        case "token":
            events[-2] = replace(token, id=token.top[2][0], logprob=token.top[2][1])
        case "logprob":
            events[-2] = replace(token, logprob=token.logprob + 1e-4)
        case "ranking":
            events[-2] = replace(token, top=token.top[:2])
        case "score":
            events[0] = replace(scored, logprobs=(None, None, *scored.logprobs[2:]))
        case "shape":
            events[0] = replace(scored, logprobs=scored.logprobs[:-1])
        case "failure":
            events.append(Failed("no more"))


# ---- the command


class Result(NamedTuple):
    code: int
    out: str
    err: str


Gnomon = Callable[..., Result]


@pytest.fixture
def gnomon(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Gnomon:
    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["gnomon", "doctor", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        with pytest.raises(SystemExit) as exit:
            main()
        return Result(int(exit.value.code or 0), *capsys.readouterr())

    return run


def looked(examined_model: ExaminedModel, found: Examination, say: SayLine) -> list[str]:
    cache = examined_model.settings("float32").compilation_cache
    found.update(embedded=examined_model.embedded, tokens=examined_model.extent.tokens, cache=str(cache))
    say("looked")
    return []


def missed(*_: object) -> list[str]:
    return ["it is not there"]


def test_the_command_prints_lines_and_writes_the_report(gnomon: Gnomon, only: Only, tmp_path: Path) -> None:
    only(glance=looked)
    result = gnomon("--quick", "--json", tmp_path / "report.json")
    assert result.code == 0
    assert result.err == "starting the examination: importing jax\n"
    assert "looked\n" in result.out
    assert "\nverdict: sound, " in result.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"] == "sound"
    assert (report["glance"]["embedded"], report["glance"]["tokens"]) == (True, QUICK_EXTENT.tokens)


def test_the_command_examines_a_directory_in_full(gnomon: Gnomon, only: Only, tiny: Path, tmp_path: Path) -> None:
    only(glance=looked)
    assert gnomon(tiny, "--json", tmp_path / "report.json").code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["glance"]["embedded"], report["glance"]["tokens"]) == (False, FULL_EXTENT.tokens)
    assert not report["quick"]


def test_the_command_examines_what_serve_would_build(
    gnomon: Gnomon, only: Only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(glance=looked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    report = json.loads(gnomon("--json", "-").out)
    assert report["glance"]["cache"] == str(tmp_path / "gnomon" / "jax")


def test_the_status_is_1_if_unsound(gnomon: Gnomon, only: Only, tmp_path: Path) -> None:
    only(glance=missed)
    result = gnomon("--json", tmp_path / "report.json")
    assert result.code == 1
    assert result.out.endswith("  glance: it is not there\n")
    assert json.loads((tmp_path / "report.json").read_text())["reasons"] == ["glance: it is not there"]


def test_a_dash_puts_the_report_on_standard_output_and_the_lines_elsewhere(gnomon: Gnomon, only: Only) -> None:
    only(glance=looked)
    result = gnomon("--json", "-")
    assert json.loads(result.out)["verdict"] == "sound"
    assert "looked\n" in result.err


def test_what_cannot_be_read_or_written_is_one_line_before_anything_is_examined(
    gnomon: Gnomon, only: Only, tmp_path: Path
) -> None:
    only(glance=looked)
    for arguments, beginning in (
        ([tmp_path / "no"], f"gnomon: {tmp_path / 'no'}: no such directory"),
        ([""], "gnomon: the model's directory is an empty string"),
        (["--json", tmp_path / "no" / "report.json"], "gnomon: --json: "),
        (["--json", ""], "gnomon: --json: '': "),
    ):
        result = gnomon(*arguments)
        assert result.code == 1
        assert result.out == ""
        assert result.err.startswith(beginning)
        assert result.err.count("\n") == 1


def test_the_command_examines_a_shorter_context(gnomon: Gnomon, only: Only, tiny: Path) -> None:
    def context(examined_model: ExaminedModel, found: Examination, say: SayLine) -> list[str]:
        say(f"context {examined_model.config.max_position_embeddings}")
        return []

    only(glance=context)
    assert "context 24\n" in gnomon(tiny, "--max-model-len", 24).out
    result = gnomon(tiny, "--revision", "v1")
    assert (result.code, result.out) == (1, "")
    assert result.err == f"gnomon: {tiny}: a directory has no revision 'v1'; only a hub id has\n"


def test_weights_that_are_not_finite_are_refused_before_anything_is_examined(
    gnomon: Gnomon, only: Only, tmp_path: Path
) -> None:
    only(glance=looked)
    path = tiny_llama(tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"][1] = np.inf
    save_file(tensors, path / "model.safetensors")
    result = gnomon(path)
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith("model.norm.weight has weights that are NaN or infinite\n")


def test_its_help_needs_no_jax() -> None:
    script = (
        "import sys\nfrom gnomon.http.cli.main import main\nsys.argv[1:] = ['doctor', '--help']\n"
        "try: main()\nexcept SystemExit as exit: assert exit.code == 0\nprint('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "--quick" in done.stdout
