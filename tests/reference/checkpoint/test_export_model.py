"""`gnomon export-model`: the embedded model in a directory, and nothing of anybody's overwritten."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from gnomon.http.cli.main import main
from gnomon.reference import ReferenceEngine, default_model_path, load_checkpoint, load_tokenizer

NAMES = {
    "MODEL_CARD.md", "config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json",
    "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


class Result(NamedTuple):
    code: Any
    out: str
    err: str


class Gnomon:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, directory: Path | str) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["gnomon", "export-model", str(directory)])
        with pytest.raises(SystemExit) as exit:
            main()
        return Result(exit.value.code or 0, *self._capsys.readouterr())


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Gnomon:
    return Gnomon(monkeypatch, capsys)


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_every_file_of_the_model_is_written_and_named(export: Gnomon, tmp_path: Path) -> None:
    directory = tmp_path / "new" / "model"
    result = export(directory)
    assert (result.code, result.err) == (0, "")
    assert contents(directory) == contents(default_model_path())
    assert set(contents(directory)) == NAMES
    assert not any(file.is_symlink() for file in directory.iterdir())
    for name in NAMES:
        assert f"  {directory / name}\n" in result.out
    assert result.out.endswith("7 files, written\n")


def test_an_empty_directory_is_filled_and_stays_the_same_directory(export: Gnomon, tmp_path: Path) -> None:
    before = tmp_path.stat().st_ino
    assert export(tmp_path).code == 0
    assert tmp_path.stat().st_ino == before
    assert set(contents(tmp_path)) == NAMES


def test_the_same_files_are_left_as_they_are(export: Gnomon, tmp_path: Path) -> None:
    export(tmp_path)
    times = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    result = export(tmp_path)
    assert result.code == 0
    assert result.out.endswith("7 files, already there\n")
    assert times == {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}


def refused(export: Gnomon, directory: Path | str, *words: str) -> None:
    result = export(directory)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("gnomon: ")
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err


def test_a_directory_with_anything_else_is_refused_by_name_and_not_touched(export: Gnomon, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused(export, tmp_path, str(tmp_path), "'notes.txt'")
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_model_with_one_file_more_less_or_changed_is_refused(export: Gnomon, tmp_path: Path) -> None:
    export(tmp_path)
    config = (tmp_path / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(config[:-1] + b" ")
    refused(export, tmp_path, "config.json in it differs")
    (tmp_path / "config.json").unlink()
    refused(export, tmp_path, "config.json in it is missing")
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / "more").mkdir()
    refused(export, tmp_path, "'more'")


def test_what_is_no_directory_is_one_line(export: Gnomon, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(export, tmp_path / "file", str(tmp_path / "file"), "exists")
    refused(export, tmp_path / "file" / "below", "file/below", "ot a directory")
    refused(export, "", "empty string")


def test_a_full_disk_leaves_nothing_behind(export: Gnomon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(reader: Any, writer: Any) -> None:
        writer.write(reader.read(10))
        if "tokenizer.json" in writer.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", copy)
    refused(export, tmp_path, str(tmp_path), "No space left")
    assert list(tmp_path.iterdir()) == []


def test_it_is_served_from_there_with_the_same_weights(export: Gnomon, tmp_path: Path) -> None:
    export(tmp_path)
    checkpoint, own = load_checkpoint(tmp_path), load_checkpoint(default_model_path())
    assert checkpoint.config == own.config
    assert load_tokenizer(tmp_path, own.config.vocab_size).labels == load_tokenizer(own.path, 2048).labels
    ids = [429, 439, 262, 400]
    assert (ReferenceEngine(checkpoint).last_logits(ids) == ReferenceEngine(own).last_logits(ids)).all()


def test_transformers_loads_it_and_tells_the_same_story(
    export: Gnomon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = "the extra `parity` is not installed: pip install 'gnomon[parity]'"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch: Any = pytest.importorskip("torch", reason=needs)
    transformers: Any = pytest.importorskip("transformers", reason=needs)
    export(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    engine = ReferenceEngine(load_checkpoint(default_model_path()))
    with torch.inference_mode():
        theirs = model(ids).logits[0].double().numpy()
        made = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert np.abs(theirs - engine.all_logits(ids[0].tolist())).max() < 1e-4
    assert tokenizer.decode(made) == ", there was a little girl named Lily. She loved to"
