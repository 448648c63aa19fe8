"""What a compiled program does, counted in the text of its optimised HLO (`compiled.as_text()`).

    parse     text → Module: computations of instructions, as far as they are counted here
    launched  what one run of the program launches, each with the layer that it belongs to and how often
    count     Module → Counts
    traffic   Module → bytes that its kernels read and write
    copied    Module → bytes that are written by kernels that compute nothing

An instruction that is launched is one that stands in the entry computation, or in a computation that the entry calls,
branches to, or runs in a loop: a loop of known length as often as it runs (its condition too), one of unknown length
once, of a conditional the branch that launches most. What is inside a fusion is one kernel with it.

The layer is jax's named scope `layer_N`: that of the loop or branch which an instruction is in, else its own, and of
what XLA adds without a name that of its users, if they are of one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

# what is launched and is no kernel: it names, groups or waits; a loop, a branch or a call is what is in it
NO_KERNELS = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency", "domain"),
    *("opt-barrier", "optimization-barrier", "partition-id", "replica-id", "get-dimension-size"),
    *("while", "conditional", "call", "async-start", "async-update", "async-done"),
}
COLLECTIVES = {
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
}
SORTS = {"sort", "topk"}
SORTING_CALL = re.compile(r"sort|top_?k", re.IGNORECASE)  # a library's, by its name
LAYER = re.compile(r"(?:^|/)layer_(\d+)(?:/|$)")
ITEM_BITS = {"pred": 8, "token": 0, "c64": 64, "c128": 128}  # of other types the name says it: f32, bf16, f8e4m3fn, s4


class Instruction(NamedTuple):
    name: str
    opcode: str
    shape: str  # as written: f32[8,576]{1,0}, or several in brackets
    operands: tuple[str, ...]
    calls: Mapping[str, tuple[str, ...]]  # calls, to_apply, condition, body, branch_computations → computations
    op_name: str  # jax's name of what it comes from; of a parameter the argument's
    target: str  # of a custom call
    trip_count: int | None  # of a while loop, where XLA knows it

    @property
    def layer(self) -> int | None:
        named = LAYER.search(self.op_name)
        return None if named is None else int(named[1])


class Module(NamedTuple):
    computations: Mapping[str, list[Instruction]]
    entry: str


class Launch(NamedTuple):
    instruction: Instruction
    layer: int | None  # None: it belongs to none
    times: int  # in one run of the program
    computation: str  # where it stands

    @property
    def is_kernel(self) -> bool:
        opcode = self.instruction.opcode
        return opcode not in NO_KERNELS and not opcode.endswith(("-done", "-update"))

    @property
    def collective(self) -> str | None:
        opcode = self.instruction.opcode.removesuffix("-start")
        return opcode if opcode in COLLECTIVES else None


class Counts(NamedTuple):
    kernels: int  # launched in one run
    layer_kernels: int  # of these in a layer, the most of any but the first, which may compute what all of them use
    outer_kernels: int  # in no layer, and what the first has more than that
    loops: int
    unknown_loops: int  # of a length that XLA does not know: the host reads the condition at each iteration
    conditionals: int
    sorts: int  # wherever they are: in a fusion, in a computation that is called, as a call into a library
    custom_calls: Mapping[str, int]  # target → how many
    layer_collectives: Mapping[str, int]  # opcode → how many are launched in a layer, the most of any
    outer_collectives: Mapping[str, int]  # in no layer
    exchanged: int  # bytes that one device has from the collectives of one run


# ---- the text

HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+)(?: \(.*\) -> .*)? \{$")
LINE = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
OPCODE = re.compile(r"\s*([a-z][a-z0-9\-]*)\(")
METADATA = re.compile(r'metadata=\{((?:"(?:[^"\\]|\\.)*"|[^"}])*)\}')
OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
CALLED = re.compile(r"\b(calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)")
CALLED_SEVERAL = re.compile(r"\b(branch_computations|called_computations|calls)=\{([^}]*)\}")
TARGET = re.compile(r'custom_call_target="([^"]*)"')
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
REFERENCE = re.compile(r"%([\w.\-]+)")
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")


def parse(text: str) -> Module:
    """The text of an HLO module. Raises ValueError where a line is none of HLO's."""
    computations: dict[str, list[Instruction]] = {}
    entry, inside = "", False
    for line in text.splitlines():
        if not inside:
            head = HEAD.fullmatch(line)
            if head is not None and not line.startswith("HloModule"):
                inside, name = True, head[2]
                computations[name] = []
                entry = name if head[1] else entry
        elif line.startswith("}"):
            inside = False
        elif line.strip():
            computations[name].append(_instruction(line))
    if not entry:
        raise ValueError("no entry computation")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    whole = LINE.fullmatch(line)
    if whole is None:
        raise ValueError(f"no HLO instruction: {line}")
    name, rest = whole[1], re.sub(r"/\*.*?\*/", "", whole[2])
    end = _closing(rest, 0) + 1 if rest[0] == "(" else rest.index(" ")
    opcode = OPCODE.match(rest, end)
    if opcode is None:
        raise ValueError(f"no HLO instruction: {line}")
    closing = _closing(rest, opcode.end() - 1)
    operands = tuple(REFERENCE.findall(rest[opcode.end() : closing]))
    metadata = METADATA.search(rest, closing)
    op_name = OP_NAME.search(metadata[1]) if metadata else None
    attributes = METADATA.sub("", rest[closing:])
    calls = {key: (called,) for key, called in CALLED.findall(attributes)}
    for key, several in CALLED_SEVERAL.findall(attributes):
        calls[key] = tuple(called.strip().removeprefix("%") for called in several.split(","))
    target, trips = TARGET.search(attributes), TRIP_COUNT.search(attributes)
    return Instruction(
        name,
        opcode[1],
        rest[:end],
        operands,
        calls,
        op_name[1].replace("\\'", "'") if op_name else "",
        target[1] if target else "",
        int(trips[1]) if trips else None,
    )


def _closing(text: str, opening: int) -> int:
    """Where the bracket that opens there is closed."""
    depth = 0
    for at in range(opening, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at
    raise ValueError(f"a bracket is not closed: {text}")


def byte_size(shape: str) -> int:
    """Of all arrays of a shape as it is written."""
    size = 0
    for kind, sides in ARRAY.findall(shape):
        number = re.search(r"\d+", kind)
        bits = ITEM_BITS[kind] if number is None or kind in ITEM_BITS else int(number[0])
        size += math.ceil(math.prod(int(d) for d in sides.split(",") if d) * bits / 8)
    return size


def dimensions(shape: str) -> list[int]:
    """Of an array."""
    found = ARRAY.search(shape)
    return [] if found is None else [int(d) for d in found[2].split(",") if d]


# ---- counting


def launched(module: Module) -> Iterator[Launch]:
    """What one run launches, kernels or not."""
    yield from _launched(module, module.entry, None, 1)


def _launched(module: Module, computation: str, around: int | None, times: int) -> Iterator[Launch]:
    """around: the layer of the loop or branch that the computation is of; one that several layers share has the names
    of the first."""
    body = module.computations[computation]
    users = users_of(body)
    for instruction in body:
        layer = around
        if around is None:
            layers = _layers(instruction, users)
            layer = layers.pop() if len(layers) == 1 else None
        yield Launch(instruction, layer, times, computation)
        calls = instruction.calls
        match instruction.opcode:
            case "while":
                runs = times * (1 if instruction.trip_count is None else instruction.trip_count)
                for name in (*calls["condition"], *calls["body"]):
                    yield from _launched(module, name, layer, runs)
            case "conditional":
                branches = [list(_launched(module, name, layer, times)) for names in calls.values() for name in names]
                yield from max(branches, key=_kernels)
            case "call" | "async-start":
                for names in calls.values():
                    for name in names:
                        yield from _launched(module, name, around, times)


def users_of(body: Sequence[Instruction]) -> Mapping[str, list[Instruction]]:
    """Name → the instructions that take its result."""
    users: dict[str, list[Instruction]] = {}
    for instruction in body:
        for operand in dict.fromkeys(instruction.operands):
            users.setdefault(operand, []).append(instruction)
    return users


def _layers(instruction: Instruction, users: Mapping[str, list[Instruction]]) -> set[int | None]:
    if instruction.op_name or instruction.name not in users:
        return {instruction.layer}
    return set().union(*(_layers(user, users) for user in users[instruction.name]))


def _kernels(launches: list[Launch]) -> int:
    return sum(launch.times for launch in launches if launch.is_kernel)


def count(module: Module) -> Counts:
    launches = list(launched(module))
    everything = [instruction for part in module.computations.values() for instruction in part]
    loops = [instruction for instruction in everything if instruction.opcode == "while"]
    targets = Counter(instruction.target for instruction in everything if instruction.opcode == "custom-call")
    by_layer: Counter[int | None] = Counter()
    collectives: dict[int | None, Counter[str]] = {None: Counter()}
    exchanged = 0
    for launch in launches:
        by_layer[launch.layer] += launch.times if launch.is_kernel else 0
        if launch.collective is not None:
            collectives.setdefault(launch.layer, Counter())[launch.collective] += launch.times
            exchanged += launch.times * _received(module, launch)
    outer_kernels, outer_collectives = by_layer.pop(None, 0), collectives.pop(None)
    if len(by_layer) > 1:
        first = by_layer.pop(min(layer for layer in by_layer if layer is not None))
        outer_kernels += max(0, first - max(by_layer.values()))
    most: Counter[str] = Counter()
    for of_layer in collectives.values():
        most |= of_layer
    sorting = sum(number for target, number in targets.items() if SORTING_CALL.search(target))
    return Counts(
        kernels=_kernels(launches),
        layer_kernels=max(by_layer.values(), default=0),
        outer_kernels=outer_kernels,
        loops=len(loops),
        unknown_loops=sum(loop.trip_count is None for loop in loops),
        conditionals=sum(instruction.opcode == "conditional" for instruction in everything),
        sorts=sorting + sum(instruction.opcode in SORTS for instruction in everything),
        custom_calls=targets,
        layer_collectives=most,
        outer_collectives=outer_collectives,
        exchanged=exchanged,
    )


WITH_OPERANDS = ("all-gather-start", "collective-permute-start")  # their results begin with what they are given


def _received(module: Module, launch: Launch) -> int:
    kernel = launch.instruction
    given = 0
    if kernel.opcode in WITH_OPERANDS:
        body = module.computations[launch.computation]
        given = sum(byte_size(part.shape) for part in body if part.name in kernel.operands)
    return byte_size(kernel.shape) - given


# ---- bytes

READ_IN_PART = ("slice", "dynamic-slice", "gather")  # of its first operand, as much as the result
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # of its first operand it writes as much as this operand has
SAME_BYTES = ("bitcast", "get-tuple-element")


def traffic(module: Module) -> int:
    """What the kernels of one run read and write, as their shapes say: every operand once, of one that is only sliced
    or gathered from the parts that are taken, of a result that is an operand with something written into it that alone.
    """
    total = 0
    for launch in launched(module):
        if launch.is_kernel and launch.times:
            body = module.computations[launch.computation]
            total += launch.times * _traffic(module, launch.instruction, {part.name: part for part in body})
    return total


MOVES = {"parameter", "tuple", "copy", "copy-start", "transpose", "reshape", "convert", *SAME_BYTES}


def copied(module: Module) -> int:
    """What is written by kernels that only copy, transpose or convert what is there already."""
    total = 0
    for kernel, _, times, _ in (launch for launch in launched(module) if launch.is_kernel):
        inside = [part.opcode for name in kernel.calls.get("calls", ()) for part in module.computations[name]]
        if MOVES.issuperset(inside if kernel.opcode == "fusion" else [kernel.opcode]):
            total += times * byte_size(kernel.shape)
    return total


def _traffic(module: Module, kernel: Instruction, around: Mapping[str, Instruction]) -> int:
    if kernel.opcode == "fusion":
        [name] = kernel.calls["calls"]
        body = {part.name: part for part in module.computations[name]}
        inputs, root = [part for part in body.values() if part.opcode == "parameter"], list(body.values())[-1]
    else:
        inputs, root = [around[name] for name in dict.fromkeys(kernel.operands)], kernel
        body = {**{part.name: part for part in inputs}, kernel.name: kernel}
    users = users_of([part for part in body.values() if kernel.opcode == "fusion" or part is kernel])
    return sum(_read(part, users) for part in inputs) + _written(root, body)


def _read(part: Instruction, users: Mapping[str, list[Instruction]]) -> int:
    """Of the bytes of one array, by all in the kernel that use it."""
    whole, taken = byte_size(part.shape), 0
    for user in users.get(part.name, []):
        is_first = user.operands[0] == part.name and part.name not in user.operands[1:]
        if user.opcode in SAME_BYTES:
            taken += _read(user, users)
        elif user.opcode in READ_IN_PART and is_first:
            taken += byte_size(user.shape)
        elif not (user.opcode in UPDATES and is_first):
            return whole
    return min(whole, taken)


def _written(result: Instruction, body: Mapping[str, Instruction]) -> int:
    if result.opcode == "tuple":
        return sum(_written(body[name], body) for name in result.operands)
    while result.opcode in SAME_BYTES and result.operands[0] in body:
        result = body[result.operands[0]]
    if result.opcode in UPDATES and not result.shape.startswith("("):
        result = body[result.operands[UPDATES[result.opcode]]]
    return byte_size(result.shape)
