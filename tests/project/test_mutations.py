"""The mutations cannot rot: their patches apply, their tests exist; and with `-m weekly` every one is noticed."""

from __future__ import annotations

import ast
import subprocess
import sys

import numpy as np
import pytest
from mutate import MUTATIONS, ROOT, copied, named_test_exists, part_of, patched, with_those_besides
from mutations.mutation import Mutation

from gnomon.reference.engine import JobRequest, Token
from gnomon.reference.prng import DrawKey
from gnomon.reference.sampler import SamplingParams, sample
from helpers.fake import FakeEngine, hashed_logits

by_name = pytest.mark.parametrize("entry", MUTATIONS, ids=[entry.name for entry in MUTATIONS])


def test_there_are_many_mutations_and_no_two_are_alike() -> None:
    assert len(MUTATIONS) >= 16
    assert len({entry.name for entry in MUTATIONS}) == len(MUTATIONS)
    assert len({(entry.file, entry.old, entry.new) for entry in MUTATIONS}) == len(MUTATIONS)


@by_name
def test_its_patch_applies_exactly_once(entry: Mutation) -> None:
    whole = (ROOT / entry.file).read_text(encoding="utf-8")
    assert patched(entry.name, whole, entry.old, entry.new) != whole


@pytest.mark.slow
@pytest.mark.parametrize("entry", [entry for entry in MUTATIONS if entry.file.endswith(".py")], ids=lambda e: e.name)
def test_its_patch_leaves_python_that_is_valid_and_another_program(entry: Mutation) -> None:
    whole = (ROOT / entry.file).read_text(encoding="utf-8")
    result = patched(entry.name, whole, entry.old, entry.new)
    assert ast.dump(ast.parse(result)) != ast.dump(ast.parse(whole))


@by_name
def test_the_test_it_names_exists(entry: Mutation) -> None:
    assert named_test_exists(entry.test), entry.test


def test_a_patch_that_does_not_apply_once_is_an_error() -> None:
    for text in ("nothing of it", "twice: x = 1, x = 1"):
        with pytest.raises(SystemExit, match="not once"):
            patched("name", text, "x = 1", "x = 2")


def test_the_engine_draws_with_its_prompts_seed_the_candidates_number_and_the_step_from_0() -> None:
    """Steps counted from the prompt's start would pass every test that compares one answer with another."""
    prompts, seeds, params = [[1], [5, 6, 7]], [3, -4], SamplingParams(max_tokens=5)
    job = FakeEngine(hashed_logits).submit(JobRequest(prompts, seeds, params, candidates=3, top=0, score=False))
    sampled: dict[tuple[int, int], list[int]] = {(j, c): [] for j in range(2) for c in range(3)}
    for event in job.events():
        if isinstance(event, Token):
            so_far = sampled[event.prompt, event.candidate]
            logits = hashed_logits([*prompts[event.prompt], *so_far])
            counts = np.bincount(np.array(so_far, np.int64), minlength=len(logits))
            expected, _ = sample(logits, counts, params, DrawKey(seeds[event.prompt], event.candidate, len(so_far)))
            assert event.id == expected
            so_far.append(event.id)
    assert [len(ids) for ids in sampled.values()] == [5] * 6


def test_the_parts_of_a_rotation_are_all_of_it_and_today_has_one_of_them() -> None:
    parts = [part_of(MUTATIONS, f"{k}/6") for k in range(1, 7)]
    assert sorted(one.name for part in parts for one in part) == sorted(one.name for one in MUTATIONS)
    assert part_of(MUTATIONS, "/6") in parts


def test_a_part_is_whole_whatever_the_most_and_only_what_comes_besides_is_cut() -> None:
    named = MUTATIONS[:12]
    part, besides = list(named[::3]), list(named[1::3])
    for most, kept in ((1, named[::3]), (4, named[::3]), (6, [*named[::3], *besides[:2]]), (99, [*part, *besides])):
        assert sorted(one.name for one in with_those_besides(named, part, besides, most)) == sorted(
            one.name for one in kept
        )


@pytest.mark.slow
def test_only_a_failed_assertion_of_the_named_test_is_red() -> None:
    test = "reference/test_sampler.py::test_greedy_takes_the_largest_and_the_lowest_id_on_a_tie"
    old = "return int(np.argmax(z))"
    words = {}
    with copied() as copy:
        for new in ("return int(np.argmin(z))", "return 0 + int(np.argmax(z))", "return 1 / 0", "return ("):
            with copy.mutated("trial", "reference/sampler.py", old, new):
                words[new] = copy.run([test])[test].word
    crash = "ERROR (call: ZeroDivisionError: division by zero)"
    *told, unread = words.values()
    assert told == ["red", "green", crash]
    assert unread in ("ERROR (cannot be collected)", "NOT RUN")  # the second where conftest.py imports it too


@pytest.mark.slow
def test_a_text_of_the_same_length_is_read_anew_and_not_from_its_bytecode() -> None:
    test = "reference/test_sampler.py::test_greedy_takes_the_largest_and_the_lowest_id_on_a_tie"
    words = []
    with copied() as copy:
        for new in ("return int(np.argmax(z))", "return int(np.argmin(z))") * 2:
            with copy.mutated("trial", "reference/sampler.py", "return int(np.argmax(z))", new):
                words.append(copy.run([test])[test].word)
    assert words == ["green", "red"] * 2


@pytest.mark.weekly
def test_every_mutation_turns_its_test_red() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "mutate.py")], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
