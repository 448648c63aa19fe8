"""`gnomon verify URL`, from its options to its exit code.

    1. what can be refused without the server is: the address, the key, the groups, the files, the baseline
    2. the server is found: its model, and one plain request that must be answered
    3. the cases run, then the sections; a bar on standard error says how far they are
    4. the report is printed, written and compared; also what there is of it when the server dies or the user has enough

Exit code: 0 all honoured, refused or unclear; 1 findings; 2 the run could not begin, or not come to its end.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gnomon.http.verify.ask.answer import Refused, Unclear, UnsoundAnswer, whole
from gnomon.http.verify.ask.client import Budget, Busy, CannotReach, Client, OutOfBudget
from gnomon.http.verify.ask.exchange import Exchange
from gnomon.http.verify.ask.probe import PROMPT, Subject
from gnomon.http.verify.ask.safe import Secret, line
from gnomon.http.verify.options import Options, file_name
from gnomon.http.verify.report import baseline
from gnomon.http.verify.report.junit import junit
from gnomon.http.verify.report.page import page
from gnomon.http.verify.report.report import (
    Cost,
    Law,
    MakeSection,
    NoSuchCase,
    Report,
    ReportedFinding,
    Section,
    chosen,
    part,
    with_needs,
)
from gnomon.http.verify.report.terminal import list_cases, show_report
from gnomon.http.verify.roots import rooted
from gnomon.http.verify.run import judge_all
from gnomon.http.verify.verdict import Case, Finding
from gnomon.reference.checkpoint.network import proxy_note
from gnomon.reference.system.files import check_writable

FIRST_COST = 64
"""Tokens that the plain request before the cases may cost."""


class CannotRun(Exception):
    """Why there is no run, in one line for the user."""


class CutShort(Exception):
    """Why a run did not come to its end, in one line for the user."""


@dataclass(slots=True)
class RunState:
    """What a run has come to so far, kept where an exception does not take it along. cases: those to be reported."""

    cases: Sequence[Case]
    all_cases: Sequence[Case]
    base: str = ""
    model: str = ""
    began: float = field(default_factory=time.monotonic)
    findings: list[Finding] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    client: Client | None = None
    judging: bool = False

    def in_order(self) -> list[Finding]:
        """The findings so far, in the order of all cases that run."""
        places = {case.name: place for place, case in enumerate(self.all_cases)}
        return sorted(self.findings, key=lambda finding: places[finding.case.name])

    def cost(self) -> Cost:
        seconds = round(time.monotonic() - self.began, 1)
        if self.client is None:
            return Cost(0, 0, seconds)
        return Cost(self.client.requests, self.client.budget.spent, seconds)


def run_verify(
    options: Options,
    cases: Sequence[Case],
    sections: Sequence[MakeSection] = (),
    transport: httpx.AsyncBaseTransport | None = None,
) -> int:
    """The exit code. transport: for tests."""
    secret = Secret(options.api_key)
    try:
        prepared = _prepare(options, cases)
        with _files(options) as files:
            return _verify(options, prepared, sections, transport, secret, files)
    except CannotRun as reason:
        return _complain(str(reason), secret)
    except KeyboardInterrupt:
        return _complain("interrupted", secret)


def show_list(only: Sequence[str], cases: Sequence[Case]) -> int:
    try:
        list_cases(chosen(cases, only), Law.read(), Console())
    except NoSuchCase as reason:
        return _complain(str(reason), Secret(None))
    return 0


def _complain(words: str, secret: Secret) -> int:
    print(f"gnomon verify: {line(words, secret)}", file=sys.stderr)
    return 2


# ---- before the server is asked


class Prepared(NamedTuple):
    bases: tuple[str, ...]
    chosen: tuple[Case, ...]
    run: tuple[Case, ...]
    earlier: baseline.Earlier | None


def _prepare(options: Options, cases: Sequence[Case]) -> Prepared:
    """Raises CannotRun."""
    assert options.url is not None
    key = options.api_key
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise CannotRun("the key is empty, or has a character that no header can have; it is not shown here")
    try:
        some = chosen(cases, options.only)
        earlier = None if options.baseline is None else baseline.read_report(options.baseline)
    except (NoSuchCase, baseline.NoReport) as reason:
        raise CannotRun(str(reason)) from None
    return Prepared(bases(options.url), some, with_needs(some, cases), earlier)


def bases(url: str) -> tuple[str, ...]:
    """The addresses before /completions that may be meant, the likelier first. Raises CannotRun."""
    url = url.strip()
    shown = "what was given" if "@" in url else repr(url[:200])  # before an @ there is a password
    none = CannotRun(f"{shown} is no address of http or https; give one such as http://127.0.0.1:8000")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError, TypeError):
        raise none from None
    if parsed.userinfo:
        raise CannotRun("the address has a user or password in it; give the key in the variable GNOMON_KEY instead")
    if parsed.scheme not in ("http", "https") or not parsed.host or not all("!" <= char <= "~" for char in url):
        raise none
    if "%" in parsed.host or (parsed.port or 0) > 65535:
        raise none
    if parsed.query or parsed.fragment or "?" in url or "#" in url:
        raise CannotRun(
            f"the address has a query or fragment; give it as far as /v1: {url.split('?')[0].split('#')[0]!r}"
        )
    path = parsed.path.rstrip("/").removesuffix("/completions").rstrip("/")
    plain = str(parsed.copy_with(path=path or "/")).rstrip("/")
    if re.search(r"/v\d+$", path):
        return (plain,)
    return (f"{plain}/v1", plain) if path else (f"{plain}/v1",)


class ReportFiles(NamedTuple):
    """Where the forms of the report go, by option."""

    paths: dict[str, Path]

    def write(self, name: str, content: bytes) -> None:
        if name in self.paths:
            try:
                self.paths[name].write_bytes(content)
            except OSError as error:
                raise CannotRun(f"--{name}: {file_name(self.paths[name])!r}: {error.strerror}") from None


@contextmanager
def _files(options: Options) -> Iterator[ReportFiles]:
    """The files, once each is known to be writable: the end of a run is a bad time to find that one is not. Those that
    were made for that are removed if nothing came to be written."""
    given = {name: getattr(options, name) for name in ("json", "junit", "html")}
    paths = {name: Path(file) for name, file in given.items() if file is not None and (name, file) != ("json", "-")}
    if _are_one(paths.values()):
        raise CannotRun("two of --json, --junit and --html name the same file")
    made: list[Path] = []
    for name, path in paths.items():
        new = not os.path.exists(path)
        try:
            check_writable(path)
        except OSError as error:
            raise CannotRun(f"--{name}: {file_name(given[name])!r}: {error.strerror}") from None
        if new:
            made.append(path)
    try:
        yield ReportFiles(paths)
    finally:
        for path in made:
            if path.exists() and path.stat().st_size == 0:
                path.unlink()


def _are_one(paths: Collection[Path]) -> bool:
    """Whether two of them lead to the same file."""
    try:
        return len({os.path.realpath(path) for path in paths}) < len(paths)
    except OSError:  # relative to a directory that has been removed: none of them can be written
        return False


# ---- the run


def _verify(
    options: Options,
    prepared: Prepared,
    sections: Sequence[MakeSection],
    transport: httpx.AsyncBaseTransport | None,
    secret: Secret,
    files: ReportFiles,
) -> int:
    run, ended = RunState(prepared.chosen, prepared.run), None
    out = Console(file=sys.stderr if options.json == "-" else sys.stdout)
    try:
        asyncio.run(_judge(options, prepared, sections, transport, run))
    except CutShort as reason:
        ended = str(reason)
    except CannotReach as reason:
        if not run.judging:
            raise CannotRun(_unreachable(str(reason))) from None
        ended = str(reason)
    except KeyboardInterrupt:
        if not run.judging:
            raise
        ended = "interrupted"
    report = _report(options, run, secret, ended)
    if prepared.earlier is not None:
        names = [case.name for case in prepared.chosen]
        report = replace(report, changes=baseline.changes_since(prepared.earlier, report, names))
    show_report(report, out, options.verbose, options.findings)
    if options.json == "-":
        sys.stdout.write(report.text())
    files.write("json", report.text().encode())
    files.write("junit", junit(report))
    files.write("html", page(report).encode())
    if ended is not None:
        _complain(f"the run did not come to its end: {ended}", secret)
    return report.status


def _report(options: Options, run: RunState, secret: Secret, ended: str | None) -> Report:
    by_name = {finding.case.name: finding for finding in rooted(run.in_order())}
    found = [by_name[case.name] for case in run.cases if case.name in by_name]
    return Report(
        line(run.base, secret),
        line(run.model, secret),
        datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        Law.read(),
        options.shown(),
        tuple(ReportedFinding.of(finding, secret, options.profile) for finding in found),
        tuple(part(section, secret, options.profile) for section in run.sections),
        run.cost(),
        None if ended is None else line(ended, secret),
        len(run.cases) - len(found),
    )


async def _judge(
    options: Options,
    prepared: Prepared,
    sections: Sequence[MakeSection],
    transport: httpx.AsyncBaseTransport | None,
    run: RunState,
) -> None:
    """Fills `run`. Raises CannotRun, CannotReach, CutShort."""
    budget = Budget(options.budget_tokens)
    for number, base in enumerate(prepared.bases, 1):
        client = Client(base, options.api_key, budget, options.concurrency, options.timeout, transport)
        try:
            model = await _first_answer(client, options, last=number == len(prepared.bases))
            if model is None:
                continue
            run.base, run.model, run.client, run.judging = base, model, client, True
            subject = Subject(client, model)
            try:
                with _bar(len(prepared.run)) as advance:

                    def done(finding: Finding) -> None:
                        run.findings.append(finding)
                        advance(finding)

                    await judge_all(prepared.run, subject, done)
                for make in sections:
                    run.sections.append(await _section(make, subject))
            finally:
                await subject.close()
            return
        finally:
            await client.close()


async def _section(make: MakeSection, subject: Subject) -> Section:
    try:
        return await make(subject)
    except (CannotReach, CutShort):
        raise
    except OutOfBudget:
        raise CutShort("the budget of tokens is spent, and a section of the report is missing") from None
    except (Busy, Unclear, Refused, UnsoundAnswer) as reason:
        raise CutShort(f"a section of the report is missing: {reason}") from None
    except Exception as fault:  # an answer of a form that nobody thought of
        words = f"{type(fault).__name__}: {fault}"
        raise CutShort(
            f"a section of the report is missing: an answer has a form that it cannot read: {words}"
        ) from None


@contextmanager
def _bar(total: int) -> Iterator[Any]:
    """A bar on standard error, if that is a terminal."""
    console = Console(stderr=True)
    columns = (
        BarColumn(24, complete_style="cyan", finished_style="cyan"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)

        def advance(finding: Finding) -> None:
            progress.update(task, advance=1, description=f"{finding.case.name}: {finding.judgement.verdict}")

        yield advance


# ---- the first answer


async def _first_answer(client: Client, options: Options, last: bool) -> str | None:
    """The model's name, once it has answered a plain request; None if there is no such path here and another address
    is left to try. Raises CannotRun, CannotReach."""
    try:
        model = options.model
        if model is None:
            exchange = await client.send("GET", "/models")
            if exchange.status == 404 and not last:
                return None
            model = _first_model(exchange)
        body = {"model": model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
        plain = json.dumps(body).encode()
        exchange = await client.send("POST", "/completions", plain, cost=FIRST_COST)
        if exchange.status == 404 and not exchange.error and not last:
            return None
        _check_plain(exchange)
    except OutOfBudget:
        raise CannotRun(f"--budget-tokens {options.budget_tokens} is too little even for the first request") from None
    except Busy as reason:
        raise CannotRun(str(reason)) from None
    client.plain = plain
    return model


def _first_model(exchange: Exchange) -> str:
    """The name of the first model of a list; says which was taken where there are several."""
    if exchange.status != 200 or exchange.trouble is not None:
        hint = "; if the server has no such list, give the model's name with --model"
        raise CannotRun(_why_not(exchange) + (hint if exchange.status in (200, 404, 405, 501) else ""))
    value = exchange.json
    data = value.get("data") if isinstance(value, dict) else None
    models = data if isinstance(data, list) else []
    names = [model["id"] for model in models if isinstance(model, dict) and isinstance(model.get("id"), str)]
    if not names or not names[0]:
        raise CannotRun(f"GET {exchange.url} names no model; give the model's name with --model")
    if len(names) > 1:
        others = ", ".join(names[1:4]) + (", …" if len(names) > 4 else "")
        words = f"{len(names)} models; judging the first, {names[0]!r}; --model takes another: {others}"
        print(f"gnomon verify: {line(words, Secret(None))}", file=sys.stderr)
    return str(names[0])


def _check_plain(exchange: Exchange) -> None:
    """Raises CannotRun if a plain request was not answered with a completion."""
    try:
        whole(exchange)
    except Refused:
        raise CannotRun(f"a plain request is refused: {_why_not(exchange)}") from None
    except UnsoundAnswer as broken:
        reason = broken.reason if exchange.trouble is None else _why_not(exchange)
        raise CannotRun(f"a plain request has no sound answer: {reason}") from None


def _why_not(exchange: Exchange) -> str:
    """What stands in the way, in one line, with what to do about it."""
    asked = f"{exchange.method} {exchange.url}"
    said = f": {exchange.message}" if exchange.message and exchange.json is not None else ""
    match exchange.status:
        case 401 | 403 | 407 if exchange.json is None and (through := proxy_note(exchange.url)):
            return f"{asked}: {exchange.trouble}{through}"
        case 401 | 403 if not exchange.with_key:
            return f"{asked}: HTTP {exchange.status}; the server wants a key: set GNOMON_KEY{said}"
        case 401 | 403:
            return f"{asked}: HTTP {exchange.status}; the server does not take this key{said}"
        case int() as status if 300 <= status < 400:
            return f"{asked}: {exchange.trouble}; if that is where the server is, give that address"
        case int() as status if 400 <= status < 500:
            return f"{asked}: HTTP {status}{said}"
        case _:
            words = f"{asked}: {exchange.trouble}{said if exchange.status is not None else ''}"
            return words + proxy_note(exchange.url)


def _unreachable(words: str) -> str:
    """What to do about a connection that could not be made, where that is known."""
    if "CERTIFICATE_VERIFY_FAILED" in words:
        return f"{words}; to trust an authority of your own, name its file in the variable SSL_CERT_FILE"
    if "WRONG_VERSION_NUMBER" in words or "RECORD_LAYER_FAILURE" in words:
        return f"{words}; the server seems not to speak TLS: try http:// instead"
    return words
