"""helpers/hlo.py counts what is there, in HLO written for it: of a GPU's forms those that matter."""

from __future__ import annotations

import pytest

from helpers import hlo

# a program of two layers: the first with a loop of known length, the second with one of unknown length and a branch
PROGRAM = r"""HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,576]{1,0})->(f32[8,576]{1,0})}

FileNames
1 "somewhere/{odd}.py"

StackFrames
1 {file_location_id=1 parent_frame_id=1}


%add.1 (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[] parameter(0)
  %y.1 = f32[] parameter(1)
  ROOT %add.2 = f32[] add(%x.1, %y.1)
}

%fused_sort (param_0: f32[8,64]) -> f32[8,64] {
  %param_0 = f32[8,64]{1,0} parameter(0)
  ROOT %sort.1 = f32[8,64]{1,0} sort(%param_0), dimensions={1}, to_apply=%add.1, metadata={op_name="jit(step)/sort"}
}

%fused_unnamed (param_0.1: f32[8,576]) -> f32[8,576] {
  %param_0.1 = f32[8,576]{1,0} parameter(0)
  %exp.1 = f32[8,576]{1,0} exponential(%param_0.1), metadata={op_name="jit(step)/layer_1/exp"}
  ROOT %copy.1 = f32[8,576]{1,0} copy(%exp.1)
}

%fused_plain (param_0.2: f32[8,576]) -> f32[8,576] {
  ROOT %param_0.2 = f32[8,576]{1,0} parameter(0)
}

%known_body (p.1: (s32[], f32[8,576])) -> (s32[], f32[8,576]) {
  %p.1 = (s32[], f32[8,576]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %v.1 = f32[8,576]{1,0} get-tuple-element(%p.1), index=1
  %loop_fusion.1 = f32[8,576]{1,0} fusion(%v.1), kind=kLoop, calls=%fused_unnamed
  ROOT %tuple.1 = (s32[], f32[8,576]{1,0}) tuple(%i.1, %loop_fusion.1)
}

%known_condition (p.2: (s32[], f32[8,576])) -> pred[] {
  %p.2 = (s32[], f32[8,576]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %constant.2 = s32[] constant(4)
  ROOT %compare.2 = pred[] compare(%i.2, %constant.2), direction=LT
}

%unknown_body (p.3: f32[8,576]) -> f32[8,576] {
  %p.3 = f32[8,576]{1,0} parameter(0)
  %all-reduce.3 = f32[8,576]{1,0} all-reduce(%p.3), replica_groups={{0,1}}, to_apply=%add.1
  ROOT %loop_fusion.3 = f32[8,576]{1,0} fusion(%all-reduce.3), kind=kLoop, calls=%fused_unnamed
}

%unknown_condition (p.4: f32[8,576]) -> pred[] {
  %p.4 = f32[8,576]{1,0} parameter(0)
  ROOT %wrapped_compare = pred[] fusion(%p.4), kind=kLoop, calls=%fused_unnamed
}

%short_branch (p.5: f32[8,576]) -> f32[8,576] {
  ROOT %p.5 = f32[8,576]{1,0} parameter(0)
}

%long_branch (p.6: f32[8,576]) -> f32[8,576] {
  %p.6 = f32[8,576]{1,0} parameter(0)
  %copy.6 = f32[8,576]{1,0} copy(%p.6)
  ROOT %copy.7 = f32[8,576]{1,0} copy(%copy.6)
}

%command_buffer (p.7: f32[8,576]) -> f32[8,576] {
  %p.7 = f32[8,576]{1,0} parameter(0)
  %gemm.7 = f32[8,576]{1,0} custom-call(%p.7, %p.7), custom_call_target="__cublas$gemm", metadata={op_name="jit(step)/layer_0/dot_general" stack_frame_id=3}
  ROOT %fusion.7 = f32[8,576]{1,0} fusion(%gemm.7), kind=kLoop, calls=%fused_unnamed, metadata={op_name="jit(step)/layer_0/add"}
}

%async_wrapped (p.8: f32[8,576]) -> f32[1,576] {
  %p.8 = f32[8,576]{1,0} parameter(0)
  ROOT %reduce-scatter.8 = f32[1,576]{1,0} reduce-scatter(%p.8), dimensions={0}, to_apply=%add.1, metadata={op_name="jit(step)/head"}
}, execution_thread="parallel"

ENTRY %main.9 (params__embed__.1: bf16[512,576], cache_0__0_.1: f32[9,32,3,64], slots_tables.1: s32[8,5]) -> (f32[8,576], /*index=1*/f32[1,576]) {
  %params__embed__.1 = bf16[512,576]{1,0} parameter(0), metadata={op_name="params[\'embed\']"}
  %cache_0__0_.1 = f32[9,32,3,64]{3,2,1,0} parameter(1), metadata={op_name="cache[0][0]"}
  %slots_tables.1 = s32[8,5]{1,0} parameter(2), metadata={op_name="slots.tables"}
  %gather.9 = f32[8,576]{1,0} fusion(%params__embed__.1, %slots_tables.1), kind=kLoop, calls=%fused_unnamed, metadata={op_name="jit(step)/gather"}
  %call.9 = f32[8,576]{1,0} call(%gather.9), to_apply=%command_buffer
  %all-reduce-start.9 = f32[8,576]{1,0} all-reduce-start(%call.9), replica_groups={{0,1}}, to_apply=%add.1, metadata={op_name="jit(step)/layer_0/psum"}
  %all-reduce-done.9 = f32[8,576]{1,0} all-reduce-done(%all-reduce-start.9), metadata={op_name="jit(step)/layer_0/psum"}
  %constant.9 = s32[] constant(0)
  %tuple.9 = (s32[], f32[8,576]{1,0}) tuple(%constant.9, %all-reduce-done.9)
  %while.9 = (s32[], f32[8,576]{1,0}) while(%tuple.9), condition=%known_condition, body=%known_body, metadata={op_name="jit(step)/layer_0/while"}, backend_config={"known_trip_count":{"n":"4"},"known_init_step":{"init":"0","step":"1"}}
  %value.9 = f32[8,576]{1,0} get-tuple-element(%while.9), index=1
  %while.10 = f32[8,576]{1,0} while(%value.9), condition=%unknown_condition, body=%unknown_body, metadata={op_name="jit(step)/layer_10/while"}
  %pred.9 = pred[] constant(true)
  %conditional.9 = f32[8,576]{1,0} conditional(%pred.9, %while.10, %while.10), true_computation=%short_branch, false_computation=%long_branch, metadata={op_name="jit(step)/draw/cond"}
  %sort_fusion.9 = f32[8,64]{1,0} fusion(%conditional.9), kind=kInput, calls=%fused_sort, metadata={op_name="jit(step)/layered/sort"}
  %top.9 = (f32[8,20]{1,0}, s32[8,20]{1,0}) custom-call(%sort_fusion.9), custom_call_target="__gpu$TopK", called_computations={%add.1}
  %scatter-start.9 = ((f32[8,576]{1,0}), f32[1,576]{1,0}) async-start(%conditional.9), calls=%async_wrapped
  %scatter-done.9 = f32[1,576]{1,0} async-done(%scatter-start.9)
  %bitcast.9 = f32[8,576]{1,0} bitcast(%conditional.9)
  ROOT %tuple.10 = (f32[8,576]{1,0}, /*index=1*/f32[1,576]{1,0}) tuple(%bitcast.9, %scatter-done.9)
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def module() -> hlo.Module:
    return hlo.parse(PROGRAM)


def test_every_instruction_is_read_with_what_is_counted_of_it(module: hlo.Module) -> None:
    assert module.entry == "main.9"
    assert len(module.computations) == 13
    entry = {instruction.name: instruction for instruction in module.computations["main.9"]}
    assert len(entry) == 20
    loop = entry["while.9"]
    assert (loop.opcode, loop.operands, loop.trip_count, loop.layer) == ("while", ("tuple.9",), 4, 0)
    assert loop.calls == {"condition": ("known_condition",), "body": ("known_body",)}
    assert entry["params__embed__.1"].op_name == "params['embed']"
    assert entry["top.9"].target == "__gpu$TopK"
    assert entry["tuple.10"].shape == "(f32[8,576]{1,0}, f32[1,576]{1,0})"
    assert entry["while.10"].layer == 10
    assert entry["sort_fusion.9"].layer is None


def test_kernels_are_counted_where_they_are_launched(module: hlo.Module) -> None:
    counts = hlo.count(module)
    # layer 10: the loop's condition, and in its body a sum and a fusion, once
    assert counts.layer_kernels == 1 + 2
    # layer 0: two in the command buffer, a sum, and four times what the loop has: its condition and its body
    first = 2 + 1 + 4 * 2
    # outside: the gather, the longer branch, the sort, the top 20, the scatter, and what the first layer has more
    assert counts.outer_kernels == 1 + 2 + 1 + 1 + 1 + (first - 3)
    assert counts.kernels == 3 + first + 6


def test_what_the_first_layer_has_more_than_the_others_is_for_all_of_them() -> None:
    again = PROGRAM.replace('op_name="jit(step)/draw/cond"', 'op_name="jit(step)/layer_10/cond"')
    counts = hlo.count(hlo.parse(again))
    assert (counts.layer_kernels, counts.outer_kernels, counts.kernels) == (3 + 2, 4 + (11 - 5), 20)


def test_a_command_buffer_is_of_several_layers() -> None:
    again = PROGRAM.replace('op_name="jit(step)/layer_0/add"', 'op_name="jit(step)/layer_10/add"')
    assert hlo.count(hlo.parse(again)).layer_kernels == 3 + 1


def test_what_has_no_name_is_of_the_layer_of_its_users() -> None:
    def outer(name: str) -> int:
        unnamed = PROGRAM.replace(', metadata={op_name="jit(step)/gather"}', name)
        return hlo.count(hlo.parse(unnamed.replace("jit(step)/layer_10/", "jit(step)/"))).outer_kernels

    assert outer("") == outer(', metadata={op_name="jit(step)/layer_0/gather"}')
    assert outer("") == outer(', metadata={op_name="jit(step)/gather"}') - 1


def test_loops_branches_and_sorts_are_counted_wherever_they_are(module: hlo.Module) -> None:
    counts = hlo.count(module)
    assert (counts.loops, counts.unknown_loops, counts.conditionals) == (2, 1, 1)
    assert counts.sorts == 2, "one in a fusion, one in a library"
    assert counts.custom_calls == {"__cublas$gemm": 1, "__gpu$TopK": 1}


def test_what_devices_exchange_is_counted_by_layer_and_outside(module: hlo.Module) -> None:
    counts = hlo.count(module)
    assert counts.layer_collectives == {"all-reduce": 1}
    assert counts.outer_collectives == {"reduce-scatter": 1}
    assert counts.exchanged == 2 * 4 * 8 * 576 + 4 * 576, "both sums, and the scattered one"


def test_a_gather_that_is_begun_gives_what_it_was_given_too() -> None:
    text = """ENTRY %main (w: bf16[16,32]) -> bf16[128,32] {
  %w = bf16[16,32]{1,0} parameter(0)
  %start = (bf16[16,32]{1,0}, bf16[128,32]{1,0}) all-gather-start(%w), dimensions={0}
  ROOT %done = bf16[128,32]{1,0} all-gather-done(%start)
}"""
    counts = hlo.count(hlo.parse(text))
    assert (counts.outer_collectives, counts.exchanged) == ({"all-gather": 1}, 2 * 128 * 32)


def test_the_size_of_a_shape_is_that_of_all_its_arrays() -> None:
    assert hlo.byte_size("f32[8,576]{1,0}") == 4 * 8 * 576
    assert hlo.byte_size("(bf16[2,3]{1,0:T(8,128)}, pred[], s4[3]{0}, u8[0]{0}, f8e4m3fn[5]{0})") == 12 + 1 + 2 + 0 + 5
    assert hlo.dimensions("s32[8,65]{1,0}") == [8, 65]
    assert hlo.dimensions("f32[]") == []


# a product, a page written in place, a gather of pages, and a weight that is transposed and then multiplied
MOVED = """HloModule jit_step

%fused_write (p.1: bf16[9,32], p.2: bf16[1,32], p.3: s32[1]) -> bf16[9,32] {
  %p.1 = bf16[9,32]{1,0} parameter(0)
  %p.2 = bf16[1,32]{1,0} parameter(1)
  %p.3 = s32[1]{0} parameter(2)
  ROOT %scatter.1 = bf16[9,32]{1,0} scatter(%p.1, %p.3, %p.2), to_apply=%replace
}

%fused_gather (p.4: bf16[9,32], p.5: s32[2]) -> f32[2,32] {
  %p.4 = bf16[9,32]{1,0} parameter(0)
  %bitcast.4 = bf16[9,32]{1,0} bitcast(%p.4)
  %p.5 = s32[2]{0} parameter(1)
  %gather.4 = bf16[2,32]{1,0} gather(%bitcast.4, %p.5), offset_dims={1}
  ROOT %convert.4 = f32[2,32]{1,0} convert(%gather.4)
}

%fused_transpose (p.6: f32[32,16]) -> f32[16,32] {
  %p.6 = f32[32,16]{1,0} parameter(0)
  ROOT %transpose.6 = f32[16,32]{1,0} transpose(%p.6), dimensions={1,0}
}

%fused_product (p.7: f32[2,32], p.8: f32[16,32]) -> (f32[2,16], f32[2]) {
  %p.7 = f32[2,32]{1,0} parameter(0)
  %p.8 = f32[16,32]{1,0} parameter(1)
  %dot.7 = f32[2,16]{1,0} dot(%p.7, %p.8), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %slice.7 = f32[2,1]{1,0} slice(%p.7), slice={[0:2], [0:1]}
  %bitcast.7 = f32[2]{0} bitcast(%slice.7)
  ROOT %tuple.7 = (f32[2,16]{1,0}, f32[2]{0}) tuple(%dot.7, %bitcast.7)
}

ENTRY %main (w: f32[32,16], cache: bf16[9,32], new: bf16[1,32], at: s32[1], pages: s32[2]) -> f32[2,16] {
  %w = f32[32,16]{1,0} parameter(0)
  %cache = bf16[9,32]{1,0} parameter(1)
  %new = bf16[1,32]{1,0} parameter(2)
  %at = s32[1]{0} parameter(3)
  %pages = s32[2]{0} parameter(4)
  %written = bf16[9,32]{1,0} fusion(%cache, %new, %at), kind=kInput, calls=%fused_write
  %taken = f32[2,32]{1,0} fusion(%written, %pages), kind=kLoop, calls=%fused_gather
  %turned = f32[16,32]{1,0} fusion(%w), kind=kInput, calls=%fused_transpose
  %product = (f32[2,16]{1,0}, f32[2]{0}) fusion(%taken, %turned), kind=kCustom, calls=%fused_product
  ROOT %result = f32[2,16]{1,0} get-tuple-element(%product), index=0
}
"""


def test_bytes_are_those_that_a_kernel_touches() -> None:
    written, taken = 2 * 32 + 4 + 2 * 32, 2 * 2 * 32 + 2 * 4 + 4 * 2 * 32
    turned, product = 2 * 4 * 32 * 16, 4 * (2 * 32 + 16 * 32) + 4 * (2 * 16 + 2)
    assert hlo.traffic(hlo.parse(MOVED)) == written + taken + turned + product


def test_what_is_copied_is_what_kernels_write_that_compute_nothing() -> None:
    assert hlo.copied(hlo.parse(MOVED)) == 4 * 32 * 16
    assert hlo.copied(hlo.parse(MOVED.replace("transpose(", "negate("))) == 0


@pytest.mark.parametrize(
    "text",
    ["", "HloModule empty", "ENTRY %m () -> f32[] {\n  nothing\n}", "ENTRY %m () -> f32[] {\n  %a = f32[] add(\n}"],
)
def test_what_is_no_hlo_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"entry|instruction|bracket"):
        hlo.parse(text)
