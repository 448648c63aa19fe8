"""A long text is encoded in a process of its own, since the library cannot be asked to stop: megabytes take it seconds,
and gigabytes that no allocator gives back. A process can be ended, and then all of it is free.

    encode_apart   starts the process, hands it the tokenizer and the text, and reads the encoding
    main           what runs there: this file, by itself; it imports nothing of ours

To it: a line of JSON, the tokenizer.json and the text. From it: a line of JSON, then ids and starts, four bytes each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import tokenizers

if TYPE_CHECKING:
    from gnomon.reference.work import Work

SCRIPT = __file__
PANIC = "pyo3_runtime"  # the module of what the library raises where its Rust code panics; it is no Exception


class Head(TypedDict):
    """The line that comes from it: as in Apart."""

    tokens: int
    refusal: str | None
    panic: str | None


class Apart(NamedTuple):
    """What came of it: how many tokens there are; their ids and starts, if they are no more than were wanted; or the
    library's own words, if it refused the text, or panicked over it."""

    tokens: int
    ids: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    refusal: str | None = None
    panic: str | None = None


def encode_apart(source: str, encode_special_tokens: bool, text: str, most: int | None, work: Work) -> Apart:
    """source: the tokenizer.json, as text · most: tokens that are of any use, None for all. Raises Stopped, or OSError
    where the system starts no process or ends it by itself, as it does when memory is short."""
    spec = source.encode()
    told = {"spec": len(spec), "encode_special_tokens": encode_special_tokens, "most": most}
    sent = b"".join((json.dumps(told).encode(), b"\n", spec, text.encode()))
    command = [sys.executable, "-P", SCRIPT]  # -P: nothing is imported from beside this file
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            with work.ended_by(process.kill):
                answer, _ = process.communicate(sent)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise OSError(f"the process that encodes a long text ended with status {process.returncode}")
    line, _, data = answer.partition(b"\n")
    head: Head = json.loads(line)
    numbers = array("I", data)
    half = len(numbers) // 2
    return Apart(head["tokens"], tuple(numbers[:half]), tuple(numbers[half:]), head["refusal"], head["panic"])


def main() -> None:
    told = json.loads(sys.stdin.buffer.readline())
    tokenizer = tokenizers.Tokenizer.from_str(sys.stdin.buffer.read(told["spec"]).decode())
    tokenizer.encode_special_tokens = told["encode_special_tokens"]
    text = sys.stdin.buffer.read().decode()
    numbers, head = array("I"), Head(tokens=0, refusal=None, panic=None)
    try:
        encoded = tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:  # the library raises a bare Exception
        head["refusal"] = str(error)
    except BaseException as error:
        if type(error).__module__ != PANIC:
            raise
        head["panic"] = str(error)
    else:
        head["tokens"] = len(encoded)
        if told["most"] is None or len(encoded) <= told["most"]:
            numbers.extend(encoded.ids)
            numbers.extend(start for start, _ in encoded.offsets)
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + numbers.tobytes())


if __name__ == "__main__":
    main()
