"""What vendors say themselves about where their servers depart from the law: `gnomon verify URL --profile NAME`.

A profile changes no verdict. It marks a finding as documented, with the vendor's reason and the place where it is said,
so that a reader can tell a choice from a fault. An entry is for one case and for the verdicts that the document speaks
of: a field that is said to be ignored is not excused for being wrong. Only what a vendor's own document says is here;
what was merely observed is in the reports. All were read in November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from gnomon.http.verify.options import ProfileName
from gnomon.http.verify.verdict import Verdict


class Documented(NamedTuple):
    """Why a server departs from the law here, in its vendor's words made short, and where the vendor says so."""

    profile: str
    reason: str
    source: str


class Deviation(NamedTuple):
    cases: tuple[str, ...]
    reason: str
    source: str
    verdicts: tuple[Verdict, ...] = (Verdict.refused, Verdict.ignored, Verdict.wrong)


OPENAI_REFERENCE = "OpenAI API reference, “Create completion” (legacy)"
VLLM_SERVER = "vLLM documentation, “OpenAI-Compatible Server”, Supported APIs"
VLLM_V1 = "vLLM documentation, “vLLM V1” user guide, Deprecated Features; RFC #13361"
VLLM_SAMPLING = "vLLM documentation, API reference, SamplingParams"
VLLM_REPRODUCIBILITY = "vLLM documentation, “Reproducibility”; “Frequently Asked Questions”, on varying outputs"
LLAMA_README = "llama.cpp, tools/server/README.md, POST /completion (whose options /v1/completions shares)"
TRANSFORMERS_FIELDS = (
    "transformers, source of `transformers serve`, cli/serving/completion.py, UNUSED_LEGACY_COMPLETION_FIELDS"
)
TRANSFORMERS_PAGE = "transformers documentation, “Serve CLI”, v1/completions"

UNSUPPORTED = "accepted as a field of the API and not yet supported; the server logs that it ignores it"
NOT_REPRODUCIBLE = "results are not guaranteed to be reproducible by default, for the sake of speed"
CACHED_PROMPT = "with cache_prompt, which is on by default, logits and so results may differ from one time to the next"

PROFILES: Mapping[ProfileName, tuple[Deviation, ...]] = MappingProxyType(
    {
        ProfileName.openai: (
            Deviation(
                ("seed.repeats", "load.seeded", "prompt.list_seeded", "stream.seeded"),
                "a seed is a best effort; determinism is not guaranteed",
                f"{OPENAI_REFERENCE}, seed",
            ),
            Deviation(("stream.best_of",), "results of best_of cannot be streamed", f"{OPENAI_REFERENCE}, best_of"),
            Deviation(
                ("suffix.honoured_or_refused", "suffix.empty"),
                "suffix is supported for gpt-3.5-turbo-instruct only",
                f"{OPENAI_REFERENCE}, suffix",
            ),
        ),
        ProfileName.vllm: (
            Deviation(
                ("suffix.honoured_or_refused", "suffix.empty", "suffix.type", "suffix.not_with_echo"),
                "suffix is not supported",
                VLLM_SERVER,
            ),
            Deviation(
                ("best_of.accepted", "best_of.returns_the_best", "best_of.range", "best_of.type", "stream.best_of"),
                "best_of is no longer supported",
                VLLM_V1,
                (Verdict.refused, Verdict.ignored),
            ),
            Deviation(("top_p.zero",), "top_p must be above 0", f"{VLLM_SAMPLING}, top_p", (Verdict.refused,)),
            Deviation(
                ("n.range",),
                "n may be as large as VLLM_MAX_N_SEQUENCES, 16,384 by default",
                f"{VLLM_SAMPLING}, n",
                (Verdict.ignored,),
            ),
            Deviation(
                ("logprobs.range",),
                "logprobs −1 asks for the whole vocabulary",
                f"{VLLM_SAMPLING}, logprobs",
                (Verdict.ignored,),
            ),
            Deviation(
                ("load.greedy", "load.seeded", "seed.repeats", "logprobs.repeats", "echo.repeats"),
                f"{NOT_REPRODUCIBLE}; batch invariance has to be switched on",
                VLLM_REPRODUCIBILITY,
            ),
        ),
        ProfileName.llama_cpp: (
            Deviation(("seed.every_integer",), "seed −1 asks for a random seed", f"{LLAMA_README}, seed"),
            Deviation(
                ("load.greedy", "load.seeded", "seed.repeats", "temperature.greedy", "logprobs.repeats"),
                CACHED_PROMPT,
                f"{LLAMA_README}, cache_prompt",
            ),
            Deviation(
                ("prompt.type",),
                "a prompt may mix tokens and strings, and may be an object with a prompt_string",
                f"{LLAMA_README}, prompt",
                (Verdict.ignored,),
            ),
            Deviation(
                ("max_tokens.range",),
                "−1 sets no limit to the number of tokens",
                f"{LLAMA_README}, n_predict",
                (Verdict.ignored,),
            ),
            Deviation(
                ("stop.counts_the_cut", "max_tokens.exact"),
                "the limit may be exceeded slightly where the last token is part of a multi-byte character",
                f"{LLAMA_README}, n_predict",
                (Verdict.wrong,),
            ),
        ),
        ProfileName.transformers: (
            Deviation(
                (
                    "best_of.returns_the_best",
                    "echo.text",
                    "logprobs.lists",
                    "n.count",
                    "presence_penalty.once",
                    "stream_options.include_usage",
                ),
                UNSUPPORTED,
                TRANSFORMERS_FIELDS,
                (Verdict.ignored,),
            ),
            Deviation(
                ("prompt.ids", "prompt.list", "prompt.list_of_ids"),
                "the prompt is one freeform text",
                TRANSFORMERS_PAGE,
                (Verdict.refused, Verdict.wrong),
            ),
        ),
    }
)


def documented(profile: ProfileName | None, case: str, verdict: Verdict) -> Documented | None:
    """What the vendor says about this finding, if a profile was chosen and it is said."""
    for deviation in PROFILES[profile] if profile is not None else ():
        if case in deviation.cases and verdict in deviation.verdicts:
            return Documented(str(profile), deviation.reason, deviation.source)
    return None
