"""What whoever starts a server may choose: one table, a row an option.

A row is a field: its name, default and meaning. The command line makes a flag of it (`--max-queue`), an environment
variable (`GNOMON_MAX_QUEUE`) and a line of `--help`; `gnomon serve --print-config` shows the value in force. Those of
`AuthSettings` have `auth` before them (`--auth-mode`, `GNOMON_AUTH_MODE`). The application reads the fields and looks
nothing up by itself. What a *request* may ask for is `Limits`, derived here.

Seconds are seconds of a clock on the wall, bytes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from gnomon.reference.request import Limits
from gnomon.reference.system.options import option


class AuthMode(StrEnum):
    """How a caller shows who it is. One is chosen; none falls back to another."""

    exchange = "exchange"  # RFC 8693 token exchange at the identity service, then the passport is verified here
    userinfo = "userinfo"  # the identity service is asked whose token it is
    jwks = "jwks"  # signed JWTs of any OpenID issuer, verified here
    api_key = "api-key"  # keys that the operator hands out
    none = "none"  # nobody is asked


class LogFormat(StrEnum):
    text = "text"
    json = "json"


SERVING, LIMITS, TIMES, OBSERVING, AUTH = "Serving", "Limits", "Times", "Observing", "Authentication"


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Who may call. Unless said otherwise an option is for the modes exchange, userinfo and jwks."""

    mode: AuthMode | None = option(
        None, "How callers show who they are. Default: none, but only on a loopback address.", AUTH
    )
    allow_none_anywhere: bool = option(
        False, "With mode none, serve an address that is not loopback: whoever reaches it may use it.", AUTH
    )
    open_probes: bool = option(False, "Answer /readyz and /health without a token, as /livez is.", AUTH)
    open_metrics: bool = option(False, "Answer /metrics without a token.", AUTH)
    api_keys: tuple[str, ...] = option(
        (),
        "The keys of mode api-key, each of 16 or more visible ASCII characters, separated by white space.",
        AUTH,
        secret=True,
    )
    api_key_file: Path | None = option(
        None,
        "A file with the keys of mode api-key, one a line, each of 16 or more visible ASCII characters; # begins a "
        "comment. Or give them in GNOMON_AUTH_API_KEYS, separated by white space.",
        AUTH,
        metavar="FILE",
    )
    issuer: str | None = option(
        None, "The issuer's URL, exactly as its tokens and its discovery document say it (iss).", AUTH
    )
    audience: str | None = option(
        None, "What a token must be made out for (aud): our identifier at the issuer; for exchange and jwks.", AUTH
    )
    token_url: str | None = option(None, "Instead of the discovered token endpoint; for exchange.", AUTH)
    userinfo_url: str | None = option(None, "Instead of the discovered userinfo endpoint; for userinfo.", AUTH)
    jwks_url: str | None = option(None, "Instead of the discovered key set; for exchange and jwks.", AUTH)
    algorithms: tuple[str, ...] = option(
        ("ES512",), "Signature algorithms allowed, asymmetric ones only; for exchange and jwks.", AUTH
    )
    jws_types: tuple[str, ...] = option(("at+jwt", "JWT"), "Values of a token's header typ allowed; for jwks.", AUTH)
    leeway_seconds: int = option(5, "Tolerance for the clocks' difference; for exchange and jwks.", AUTH, min=0, max=60)
    cache_seconds: int = option(50, "How long a verified token is believed without asking again.", AUTH, min=1, max=300)
    negative_seconds: int = option(5, "How long a refused token is refused without asking again.", AUTH, min=0, max=60)
    cache_size: int = option(4096, "Accepted tokens remembered, and as many refused ones.", AUTH, min=1)
    jwks_seconds: int = option(300, "How long a key set is used without being fetched again.", AUTH, min=1)
    jwks_cooldown_seconds: int = option(30, "The least time between two fetches of the key set.", AUTH, min=1)
    jwks_stale_seconds: int = option(3600, "How long a key set serves on while it cannot be fetched.", AUTH, min=0)
    http_seconds: float = option(3, "How long the identity service may take for one answer.", AUTH, min=0.1)
    max_parallel: int = option(32, "Requests to the identity service at one time.", AUTH, min=1)
    ca_file: Path | None = option(None, "Certificates to trust the identity service by.", AUTH, metavar="FILE")
    client_certificate: Path | None = option(
        None, "Our certificate, where the identity service asks for one.", AUTH, metavar="FILE"
    )
    client_key: Path | None = option(None, "The key of that certificate.", AUTH, metavar="FILE")
    max_token_bytes: int = option(8192, "The longest token or key; in every mode but none.", AUTH, min=16)
    account_types: tuple[str, ...] = option(("user", "service"), "Account types let in; exchange, userinfo.", AUTH)
    organizations: tuple[str, ...] = option(
        (), "Ids of organizations let in; none named: whoever belongs to one. For exchange, userinfo.", AUTH
    )
    required_acl: str | None = option(
        None,
        "A right that the caller must have, as name:operation (create, read, update or delete), such as "
        "compute:instances:read; exchange, userinfo.",
        AUTH,
    )
    require_authz: bool = option(
        True, "Refuse a userinfo answer that does not tell the account's type; for userinfo.", AUTH
    )
    allow_http_issuer: bool = option(False, "Talk to the identity service without TLS; for tests.", AUTH)


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the application and the process around it are told."""

    host: str = option("127.0.0.1", "The address to serve on.", SERVING)
    port: int = option(8000, "The port to serve on; 0 takes any free one.", SERVING, min=0, max=65535)
    served_model_name: str = option(
        "gnomon-stories",
        "The id that requests name. Default: the directory's name; gnomon-stories for the embedded model.",
        SERVING,
    )
    tls_certificate: Path | None = option(None, "Serve HTTPS with this certificate chain.", SERVING, metavar="FILE")
    tls_key: Path | None = option(None, "The key of that certificate.", SERVING, metavar="FILE")
    cors_origins: tuple[str, ...] = option(
        (), "Origins whose pages may call, such as https://example.org; * is every page.", SERVING
    )

    openai_limits: bool = option(False, "Allow no more than the published API: logprobs 5, stop 4.", LIMITS)
    max_candidates: int = option(2048, "Candidates of one request, over all its prompts; else 400.", LIMITS, min=1)
    max_prompts: int = option(2048, "Prompts of one request; else 400.", LIMITS, min=1)
    max_body_bytes: int = option(8 * 2**20, "The longest body of a request; else 413.", LIMITS, min=1)
    max_answer_bytes: int = option(
        Limits().answer_bytes,
        "Bytes that an answer may come to: each token with logprobs k counts 32 (k + 3), in every candidate, and so do "
        "the prompt's with echo; more get a 400.",
        LIMITS,
        min=1,
    )
    max_header_bytes: int = option(32 * 2**10, "Request line and headers together; else 431.", LIMITS, min=1024)
    max_connections: int = option(1024, "Open connections; more get a 503.", LIMITS, min=1)
    max_running: int | None = option(
        None,
        "Requests handed to the engine at one time; the others queue. Default: as many as the engine makes use of.",
        LIMITS,
        min=1,
    )
    max_queue: int = option(512, "Requests that wait for the engine; one more gets a 429.", LIMITS, min=1)
    max_queued_tokens: int = option(
        2_000_000,
        "Tokens that waiting requests may come to, prompts included; more get a 429, one that alone is more a 400.",
        LIMITS,
        min=1,
    )
    max_queued_bytes: int = option(
        256 * 2**20,
        "Bytes of memory that waiting requests may take, bodies that are still arriving included; more get a 429, one "
        "that alone is more a 400 or 413.",
        LIMITS,
        min=4096,  # of which the smallest request takes more than half
    )
    trace_memory: int = option(
        2048,
        "MiB that the reference's weights, in float64, may take for POST /v1/completions/trace; a model that needs "
        "more is served without it, and 0 switches it off. With --engine reference they are there already.",
        LIMITS,
        min=0,
        metavar="MIB",
    )
    trace_tokens: int = option(
        1024, "Tokens of a sequence to trace, prompt and completion together; more get a 400.", LIMITS, min=1
    )

    header_seconds: float = option(10, "Seconds for a request's headers to be whole; else 408.", TIMES, min=0.01)
    body_seconds: float = option(30, "Seconds for a request's body to be whole; else 408.", TIMES, min=0.01)
    queue_seconds: float = option(
        60, "Seconds from a request's whole body until the engine begins with it; else 503.", TIMES, min=0.01
    )
    request_seconds: float = option(
        600, "Seconds for one request, from its head to its last byte; then 503, or an error event.", TIMES, min=0.01
    )
    write_seconds: float = option(
        30, "Seconds for a client that does not read; then its connection is cut.", TIMES, min=0.01
    )
    ping_seconds: float = option(15, "Seconds between comments that keep a silent stream open.", TIMES, min=0.01)
    idle_seconds: float = option(
        75, "Seconds for a connection between two requests; then it is closed.", TIMES, min=0.01
    )
    drain_seconds: float = option(20, "Seconds for running requests to finish after SIGTERM or Ctrl-C.", TIMES, min=0)
    shutdown_seconds: float = option(3, "Seconds for connections to close after that.", TIMES, min=0)

    log_format: LogFormat = option(LogFormat.text, "Lines to read, or JSON objects.", OBSERVING)
    otlp_endpoint: str | None = option(
        None, "Send OpenTelemetry traces here, such as http://127.0.0.1:4318/v1/traces; needs the extra tracing.",
        OBSERVING, metavar="URL",
    )  # fmt: skip

    auth: AuthSettings = field(default_factory=AuthSettings)

    @property
    def limits(self) -> Limits:
        limits = Limits.openai() if self.openai_limits else Limits()
        return replace(
            limits,
            candidates=self.max_candidates,
            prompts=self.max_prompts,
            answer_bytes=self.max_answer_bytes,
        )
