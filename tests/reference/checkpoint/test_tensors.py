"""Files of weights that are broken, in every way that a file can be: one clear error each, and nothing is started."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.checkpoint.load import load_checkpoint
from gnomon.reference.checkpoint.tensors import (
    ALIGNMENT,
    FORMATS,
    MOST_PROBLEMS,
    WEIGHTS_AT_ONCE,
    TensorFiles,
    read_json,
)
from gnomon.reference.tokenizer import load_tokenizer
from helpers.models import tiny_llama

COMMAND = (sys.executable, "-c", "from gnomon.http.cli.main import main; main()")
SMALL = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(3, ml_dtypes.bfloat16)}


def nobody(name: str) -> bool:
    return False


def written(directory: Path, header: object, data: bytes, length: int | None = None) -> Path:
    """model.safetensors with that header, which may be any text or JSON."""
    directory.mkdir(exist_ok=True)
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    size = struct.pack("<Q", len(text) if length is None else length)
    (directory / "model.safetensors").write_bytes(size + text + data)
    return directory


def about(start: int, end: int, shape: object = (1,), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def read(directory: Path) -> dict[str, NDArray[Any]]:
    files = TensorFiles.open(directory)
    return {name: files.read(name) for name in files.entries}


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(directory)
    message = str(caught.value)
    assert message.startswith(str(directory))
    assert "\n" not in message
    assert message.isprintable()
    return message


# ---- what is read


@pytest.mark.parametrize("name", FORMATS)
def test_a_tensor_is_read_as_it_is_stored(tmp_path: Path, name: str) -> None:
    dtype = FORMATS[name].dtype
    stored = {"x": np.array([[1 / 3, -2], [0, 6e-5]]).astype(dtype), "y": np.array(7).astype(dtype)}
    save_file(stored, tmp_path / "model.safetensors")
    files = TensorFiles.open(tmp_path)
    files.check({"x": (2, 2), "y": ()}, nobody)
    for key, array in stored.items():
        got = files.read(key)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, array)
        assert got.ctypes.data % ALIGNMENT == 0
        assert files.size(key) == array.nbytes


def cache(tmp_path: Path) -> Path:
    """A snapshot as the hub's cache has it: every file is a link to a blob elsewhere."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(tiny_llama(tmp_path / "plain").iterdir())):
        path.rename(blobs / f"{i:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{i:040x}")
    return snapshot


def test_a_directory_of_links_as_in_the_hubs_cache_loads(tmp_path: Path) -> None:
    snapshot = cache(tmp_path)
    assert load_checkpoint(snapshot).params["embed_tokens"].any()
    index = {"weight_map": dict.fromkeys(load_file(snapshot / "model.safetensors"), "shard.safetensors")}
    (snapshot / "model.safetensors").rename(snapshot / "shard.safetensors")
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_checkpoint(snapshot).params["embed_tokens"].any()


# ---- files that are not there, or are no files


def test_a_link_to_nothing_and_a_circle_of_links_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.symlink_to("../blobs/gone")
    assert refusal(tmp_path) == f"{file}: No such file or directory"
    file.unlink()
    file.symlink_to("other")
    (tmp_path / "other").symlink_to("model.safetensors")
    assert refusal(tmp_path) == f"{file}: Too many levels of symbolic links"
    file.unlink()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))
    (tmp_path / "a.safetensors").symlink_to("a.safetensors")
    assert refusal(tmp_path) == f"{index} names 'a.safetensors': Too many levels of symbolic links"
    index.unlink()
    index.symlink_to(index.name)
    assert refusal(tmp_path) == f"{index}: Too many levels of symbolic links"


def test_a_config_that_is_a_circle_of_links_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        path = tiny_llama(tmp_path / name)
        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to(name)
        with pytest.raises(CheckpointError, match=f"{name}: Too many levels of symbolic links"):
            load_checkpoint(path)


def test_a_pipe_or_a_directory_is_not_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    os.mkfifo(file)
    assert refusal(tmp_path) == f"{file}: not a regular file"
    file.unlink()
    file.mkdir()
    assert refusal(tmp_path) == f"{file}: not a regular file"


@pytest.mark.parametrize("name", ["x" * 5000 + ".safetensors", "a\0b.safetensors", "missing.safetensors"])
def test_an_index_that_names_what_cannot_be_is_one_short_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    message = refusal(tmp_path)
    assert f"index.json names {name[:10]!r}"[:-1] in message
    assert len(message) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("name", [None, 1, [], {}, "a\\b.safetensors", "../a.safetensors", "/a.safetensors", "a/.."])
def test_an_index_whose_file_is_no_name_is_refused(tmp_path: Path, name: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    assert "no plain file name" in refusal(tmp_path)


def test_an_index_that_names_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "pytorch_model.bin"}}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "'pytorch_model.bin' is no safetensors file" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_pickle_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    assert f"{name} is a pickle, which can run code when read, and is refused" in refusal(tmp_path)


def test_a_pointer_of_git_lfs_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "a pointer of Git LFS" in refusal(tmp_path)


# ---- headers


@pytest.mark.parametrize(
    "header",
    [
        "", "{", "[]", "1", "null", '{"x": 1}', '{"x": {}}', "\0" * 8, "[" * 5000, '{"x":' * 500 + "1" + "}" * 500,
        {"x": about(0, 4, dtype="F99")}, {"x": about(0, 4, dtype=3)}, {"x": about(0, 4, shape=[-1])},
        {"x": about(0, 4, shape=[1.0])}, {"x": about(0, 4, shape=[True])}, {"x": about(0, 4, shape="1")},
        {"x": about(0, 4, shape=[2])}, {"x": about(0, 4, shape=[2**63, 2])}, {"x": about(0, 4, shape=[2**64])},
        {"x": about(4, 8)}, {"x": about(0, 5)}, {"x": about(4, 0)}, {"x": about(-4, 0)}, {"x": about(0, 2**64)},
        {"x": about(0, 4), "y": about(0, 4)}, {"x": about(0, 4), "y": about(2, 6)},
        {"x": about(0, 4), "y": about(8, 12)}, {"x": about(0, 400, shape=[100])},
        {"__metadata__": {"a": 1}, "x": about(0, 4)},
        '{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"x":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    ],
    ids=lambda header: str(header)[:40],
)  # fmt: skip
def test_an_unsound_header_is_refused_by_the_files_name(tmp_path: Path, header: object) -> None:
    message = refusal(written(tmp_path, header, bytes(4)))
    assert message.startswith(f"{tmp_path / 'model.safetensors'}: not a sound safetensors file: ")


@pytest.mark.parametrize("length", [0, 1, 7, 10**6, 2**40, 2**63, 2**64 - 1])
def test_a_header_longer_or_shorter_than_it_says_is_refused(tmp_path: Path, length: int) -> None:
    assert "not a sound safetensors file" in refusal(written(tmp_path, {"x": about(0, 4)}, bytes(4), length))


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    save_file(SMALL, tmp_path / "model.safetensors")
    sound = (tmp_path / "model.safetensors").read_bytes()
    for end in range(len(sound)):
        (tmp_path / "model.safetensors").write_bytes(sound[:end])
        assert "not a sound safetensors file" in refusal(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(sound + b"\0")
    assert "not a sound safetensors file" in refusal(tmp_path)


@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), min_size=1, max_size=4),
    cut=st.integers(0, 3),
    junk=st.binary(max_size=4),
)
def test_flipped_bits_are_refused_or_read_as_the_library_reads_them(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int, junk: bytes
) -> None:
    """Of 400 broken files none raises anything else. Flips favour the header: it is most of this file."""
    directory = tmp_path_factory.getbasetemp() / "flipped"
    directory.mkdir(exist_ok=True)
    file = directory / "model.safetensors"
    save_file(SMALL, file)
    broken = bytearray(file.read_bytes())
    for where, bit in flips:
        broken[where % len(broken)] ^= 1 << bit
    file.write_bytes(bytes(broken[: len(broken) - cut]) + junk)
    try:
        files = TensorFiles.open(directory)
        files.check({name: array.shape for name, array in SMALL.items()}, nobody)
        ours = {name: files.read(name) for name in SMALL}
    except CheckpointError:
        return
    for name, array in load_file(file).items():
        assert ours[name].dtype == array.dtype
        assert ours[name].tobytes() == array.tobytes()


def test_everything_that_does_not_fit_is_in_one_error(tmp_path: Path) -> None:
    one = np.ones(2, np.float32)
    save_file({"twice": one, "extra\n": one, "int": one.astype(np.int8), "wide": one}, tmp_path / "a.safetensors")
    save_file({"twice": one, "let go": one}, tmp_path / "b.safetensors")
    weight_map = {"x": "a.safetensors", "y": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    expected = {"twice": (2,), "int": (2,), "wide": (2, 1), "gone": (1,)}
    with pytest.raises(CheckpointError) as caught:
        TensorFiles.open(tmp_path).check(expected, lambda name: name == "let go")
    assert str(caught.value).removeprefix(f"{tmp_path}: ").split("; ") == [
        "'extra\\n' is not part of this architecture",
        "gone is missing",
        "int has dtype I8, not one of F64, F32, F16, BF16",
        "twice is in a.safetensors and in b.safetensors",
        "wide has shape [2], not [2, 1]",
    ]


def test_of_thousands_that_do_not_fit_twenty_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    save_file(
        {f"layer.{i}": np.ones(1, np.float32) for i in range(MOST_PROBLEMS + 500)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(CheckpointError) as caught:
        TensorFiles.open(tmp_path).check({}, nobody)
    *first, last = str(caught.value).split("; ")
    assert (len(first), last) == (MOST_PROBLEMS, "and 500 more")


@pytest.mark.parametrize("end", ["qweight", "scales", "weight_scale_inv", "weight_packed", "weight.absmax"])
def test_quantised_weights_are_called_that_before_all_that_does_not_fit(tmp_path: Path, end: str) -> None:
    extra = {f"model.layers.0.mlp.up_proj.{end}": np.ones(1, np.float32), "aside": np.ones(1, np.float32)}
    save_file(extra, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        TensorFiles.open(tmp_path).check({}, nobody)
    cause = f"{tmp_path}: quantised weights (model.layers.0.mlp.up_proj.{end}) are not supported: aside is not part"
    assert str(caught.value).startswith(cause)


# ---- which files


def both_sets(directory: Path, shard: str) -> None:
    save_file(SMALL, directory / "model.safetensors")
    index = {"weight_map": dict.fromkeys(SMALL, shard)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_of_two_sets_of_weights_neither_is_guessed_at(tmp_path: Path) -> None:
    both_sets(tmp_path, "model-00001-of-00001.safetensors")
    save_file({name: array + 1 for name, array in SMALL.items()}, tmp_path / "model-00001-of-00001.safetensors")
    message = refusal(tmp_path)
    assert "two sets of weights, model.safetensors and what model.safetensors.index.json names" in message
    assert "model-00001-of-00001.safetensors" in message


def test_an_index_of_files_that_are_not_here_is_passed_over_with_a_line(tmp_path: Path) -> None:
    both_sets(tmp_path, "model-00001-of-00001.safetensors")
    lines: list[str] = []
    assert TensorFiles.open(tmp_path, lines.append).entries.keys() == SMALL.keys()
    [line] = lines
    assert line.startswith("model.safetensors.index.json names files that are not here (model-00001-of-00001")


def test_an_index_of_the_single_file_is_followed_without_a_line(tmp_path: Path) -> None:
    both_sets(tmp_path, "model.safetensors")
    lines: list[str] = []
    assert TensorFiles.open(tmp_path, lines.append).entries.keys() == SMALL.keys()
    assert not lines


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("adapter_config.json", "is of an adapter, which is not applied here; merge it"),
        ("tiny-Q4_K_M.gguf", "is a GGUF file, which is not read here"),
        ("consolidated.safetensors", "is the model in its makers' own form"),
        ("model-00001-of-00002.safetensors", "is a shard, and model.safetensors.index.json, .* is missing"),
        ("pytorch_model-00001-of-00002.bin", "is a pickle"),
    ],
)
def test_what_a_directory_holds_instead_of_weights_is_called_what_it_is(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    assert re.search(rf"neither model\.safetensors nor .*; {re.escape(name)} {what}", refusal(tmp_path))


def test_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        (path / name).write_text("\ufeff" + (path / name).read_text(), encoding="utf-8")
    assert load_tokenizer(path, load_checkpoint(path).config.vocab_size).vocab_size


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_json_that_is_a_pointer_of_git_lfs_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match=f"{name}: a pointer of Git LFS; fetch the file itself"):
        read_json(tmp_path / name)


# ---- values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("where", [0, WEIGHTS_AT_ONCE - 1, WEIGHTS_AT_ONCE, WEIGHTS_AT_ONCE + 6])
def test_one_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path, name: str, value: float, where: int) -> None:
    array = np.full(WEIGHTS_AT_ONCE + 7, -1.5, FORMATS[name].dtype)
    save_file({"fine": array, "bad": array}, tmp_path / "model.safetensors")
    files = TensorFiles.open(tmp_path)
    files.read("bad")
    array[where] = value
    save_file({"fine": np.ones(3, np.float32), "bad": array}, tmp_path / "model.safetensors")
    assert refusal(tmp_path).endswith("model.safetensors: bad has weights that are NaN or infinite")


@pytest.mark.parametrize("name", FORMATS)
def test_the_largest_and_the_smallest_finite_weights_are_read(tmp_path: Path, name: str) -> None:
    limits = ml_dtypes.finfo(FORMATS[name].dtype)  # type: ignore[no-untyped-call]
    array = np.array([limits.max, limits.min, limits.smallest_subnormal, 0, -0.0], FORMATS[name].dtype)
    save_file({"x": array}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(TensorFiles.open(tmp_path).read("x"), array)


def test_a_file_that_is_replaced_or_removed_is_read_as_it_was(tmp_path: Path) -> None:
    """The file stays open from its header on: of the same size, with other values, nothing else would tell."""
    file, files = tmp_path / "model.safetensors", []
    for value in (1.0, 2.0):
        save_file({"x": np.full(3, value, np.float32)}, tmp_path / "new")
        os.replace(tmp_path / "new", file)
        files.append(TensorFiles.open(tmp_path))
    file.unlink()
    assert [one.read("x").tolist() for one in files] == [[1.0] * 3, [2.0] * 3]
    assert [one.changed for one in files] == [None, None]


@pytest.mark.parametrize("harm", ["other bytes", "cut", "longer"])
def test_a_file_that_is_written_to_after_its_header_was_read_is_refused(tmp_path: Path, harm: str) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"x": np.ones(3, np.float32)}, file)
    files, size = TensorFiles.open(tmp_path), file.stat().st_size
    with file.open("r+b") as opened:
        if harm == "cut":
            opened.truncate(size - 4)
        else:
            opened.seek(size - 4 if harm == "other bytes" else size)
            opened.write(b"\0\0\0\0")
    os.utime(file, ns=(1, 1))  # whatever the clock's grain
    with pytest.raises(CheckpointError, match="was written to since its header was read"):
        files.read("x")
    assert files.changed == f"{file}: was written to since its header was read"


# ---- memory


def test_a_tensor_costs_its_own_bytes_and_no_more(tmp_path: Path) -> None:
    """Sixteen tensors of 4 MiB: with one of them held, the peak is that one and less than a MiB."""
    arrays = {f"x{i}": np.full((1024, 1024), i, np.float32) for i in range(16)}
    save_file(arrays, tmp_path / "model.safetensors")
    del arrays
    tracemalloc.start()
    try:
        files = TensorFiles.open(tmp_path)
        for name in files.entries:
            files.read(name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * 2**20


# ---- nothing is started


def corrupt(path: Path, how: str) -> None:
    file = path / "model.safetensors"
    tensors: dict[str, NDArray[Any]] = load_file(file)
    if how == "truncated":
        os.truncate(file, file.stat().st_size - 100)
    elif how == "header":
        file.write_bytes(b"\xff" * 64)
    elif how == "shape":
        save_file({**tensors, "model.norm.weight": np.ones(7, np.float32)}, file)
    elif how == "nan":
        tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = np.nan
        save_file(tensors, file)
    else:
        file.rename(path / "a.safetensors")
        names = {"shard": "b.safetensors", "traversal": "../m/a.safetensors"}
        weight_map = {**dict.fromkeys(tensors, "a.safetensors"), "lm_head.weight": names[how]}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["reference", "jax"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "model.safetensors: not a sound safetensors file: "),
        ("header", "model.safetensors: not a sound safetensors file: "),
        ("shape", ": model.norm.weight has shape [7], not [32]"),
        ("nan", "model.safetensors: model.layers.1.mlp.up_proj.weight has weights that are NaN or infinite"),
        ("shard", "model.safetensors.index.json names 'b.safetensors': No such file"),
        ("traversal", "model.safetensors.index.json: '../m/a.safetensors' is no plain file name"),
    ],
)
def test_a_corrupt_checkpoint_is_one_line_and_no_server(
    tmp_path: Path, native_cache: Path, engine: str, how: str, message: str
) -> None:
    path = tiny_llama(tmp_path / "m")
    corrupt(path, how)
    command = [*COMMAND, "serve", str(path), "--engine", engine, "--port", "0"]
    environment = {**os.environ, **({"GNOMON_CACHE_DIR": str(native_cache.parent)} if engine == "jax" else {})}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    lines = [line for line in done.stderr.splitlines() if not re.match(r"\S+ INFO ", line)]  # the steps before it
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"gnomon: {path}")
    assert message in lines[0]
