"""The framing of requests: h11's connection, made stricter, with errors in the API's form.

A head is weighed before h11 sees it. What is refused is left in `Connection.refusal`, not raised: an error in the
framing leaves open where the next request would begin, so nothing more of the connection is read as one.

When a connection is closed, and by which clocks, is decided in wire.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import h11

from gnomon.http.errors import HeadersTooLarge, HttpError, MalformedRequest, UnknownCoding, UnknownVersion
from gnomon.reference.body.shown import shown

MOST_FIELDS = 1000  # of a head: h11, uvicorn and the middleware look at each of them again and again
SLICE = 1024  # chunks of a body that are read before others have their turn: a read may have 40,000 of them

REQUEST_LINE = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+ [\x21-\x7e]+ HTTP/([0-9])\.[0-9]")
# h11 lets pass: a line feed alone as a line's end, a folded line, control characters in a value.
FORBIDDEN = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
BLANK_LINES = re.compile(rb"(?:\r\n)+")
HOST = re.compile(rb"[-A-Za-z0-9._~!$&'()*+,;=%:\[\]]*")
ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]+)([/?][^#]*)?")


LAST_STATES = (h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)  # of a client that has nothing more to say


class Connection(h11.Connection):
    """One connection's framing. `next_event` never raises: an error is left in `refusal`, and no event follows it."""

    def __init__(
        self, max_header_bytes: int, idle_seconds: float = 0, is_ending: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(h11.SERVER, max_header_bytes)
        self.max_header_bytes = max_header_bytes
        self.idle_seconds = idle_seconds
        self.is_ending = is_ending
        self.stays = False  # whether the client keeps the connection after the answer to its last request
        self.refusal: HttpError | None = None
        self.refuse_all: HttpError | None = None  # what every request is answered, if not None
        self.head = bytearray()  # what has come of a head that h11 has not seen yet
        self.scanned = 0  # how much of it was found in order
        self.line_seen = False  # whether its first line was
        self.is_head = False  # whether the last request's method is HEAD
        self.body_bytes = self.body_data = 0  # of the body so far: on the wire, and without its framing
        self.more = False  # whether there is more of the body to read, left for a later turn
        self.following: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED] | None = None  # what came after its data

    def receive_data(self, data: bytes) -> None:
        """Keeps what came. After a request that is the last one by its own word, nothing is."""
        if self.their_state is h11.IDLE:
            self.head += data
        elif self.their_state not in LAST_STATES:
            self.body_bytes += len(data)
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        following, self.following = self.following, None
        if following is not None:
            return following
        if self.refusal is None and self.their_state not in LAST_STATES:
            try:
                return self.next_request() if self.their_state is h11.IDLE else self.next_of_body()
            except HttpError as error:
                self.refusal = error
            except h11.RemoteProtocolError as error:
                self.refusal = refusal_of(error)
        return h11.NEED_DATA

    def next_request(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if blank := BLANK_LINES.match(self.head):  # allowed before a request; nothing else is
            end = blank.end()
            del blank  # it keeps the bytes as they are
            del self.head[:end]
            self.scanned = 0
        end = self.head.find(b"\r\n\r\n", max(0, self.scanned - 3))
        size = len(self.head) if end < 0 else end + 4
        self.is_head = self.head.startswith(b"HEAD ")
        if FORBIDDEN.search(self.head, max(0, self.scanned - 1), min(size, self.max_header_bytes)):
            raise MalformedRequest(
                "the request's head has a control character, a folded line, or a line that does not end in CR LF"
            )
        if not self.line_seen:
            line, found, _ = self.head.partition(b"\r\n")
            if found:
                check_request_line(bytes(line))
                self.line_seen = True
        if size > self.max_header_bytes:
            raise HeadersTooLarge.in_bytes(size, self.max_header_bytes)
        self.scanned = len(self.head)
        if end < 0:
            return h11.NEED_DATA
        fields = self.head.count(b"\r\n", 0, end)
        if fields > MOST_FIELDS:
            raise HeadersTooLarge.in_fields(fields, MOST_FIELDS)
        head, self.head, self.scanned, self.line_seen = bytes(self.head), bytearray(), 0, False
        self.body_bytes, self.body_data = len(head) - size, 0
        super().receive_data(head)
        request = super().next_event()
        assert isinstance(request, h11.Request)
        if self.refuse_all is not None:
            raise self.refuse_all
        self.stays = request.http_version >= b"1.1" and not asks_to_close(request.headers)
        return checked(request)

    def next_of_body(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """What there is of the body as one event, since uvicorn copies all that the application has yet to take for
        each; at most SLICE chunks of it."""
        data, self.more = bytearray(), False
        event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED] = h11.NEED_DATA
        for _ in range(SLICE):
            event = super().next_event()
            if not isinstance(event, h11.Data):
                break
            data += event.data
        else:
            event, self.more = h11.NEED_DATA, True
        self.body_data += len(data)
        if event is h11.NEED_DATA and self.their_state is h11.SEND_BODY and not self.more:
            # Only here, once for what one read gave: a look at each event would copy the buffer each time.
            framing = self.body_bytes - self.body_data - self.unparsed
            if framing > self.max_header_bytes + 16 * self.body_data:
                raise MalformedRequest(
                    f"the chunks of the body have {framing} bytes of framing to {self.body_data} of data"
                )
        if not data:
            return event
        self.following = event
        return h11.Data(data=bytes(data))

    @property
    def unparsed(self) -> int:
        return len(self.head) + len(self.trailing_data[0])

    def start_next_cycle(self) -> None:
        """Begins anew with what is left, so that a pipelined head is weighed like the first."""
        rest, _ = self.trailing_data
        super().start_next_cycle()
        h11.Connection.__init__(self, h11.SERVER, self.max_header_bytes)  # its state alone, not what is ours
        self.receive_data(rest)

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """An answer says whether it is the connection's last one, as it is before the request's body is whole and when
        the server ends; and else for how long the connection stays. h11 keeps none of HTTP/1.0 open."""
        if isinstance(event, h11.Response):
            fields = [(name, value) for name, value in event.headers.raw_items() if name.lower() != b"connection"]
            if self.their_state is h11.SEND_BODY or self.is_ending() or asks_to_close(event.headers):
                fields.append((b"connection", b"close"))
            elif self.stays and self.idle_seconds >= 1:  # whole seconds, and never more than there are
                told = f"timeout={int(self.idle_seconds)}".encode()
                fields += [(b"connection", b"keep-alive"), (b"keep-alive", told)]
            event = h11.Response(status_code=event.status_code, headers=fields, reason=event.reason)
        return super().send_with_data_passthrough(event)


def asks_to_close(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    connection = b",".join(value for name, value in headers if name == b"connection")
    return b"close" in (word.strip().lower() for word in connection.split(b","))


def check_request_line(line: bytes) -> None:
    match = REQUEST_LINE.fullmatch(line)
    if match is None:
        raise MalformedRequest("the request line is malformed; send METHOD SP TARGET SP HTTP/1.1")
    if match[1] != b"1":
        raise UnknownVersion(f"{line[-8:].decode('ascii')} is not served here; use HTTP/1.1")


def checked(request: h11.Request) -> h11.Request:
    """The request if its framing and its target leave no doubt, its target in the form that routes have."""
    names = [name for name, _ in request.headers]
    hosts = [value for name, value in request.headers if name == b"host"]
    if request.http_version >= b"1.1" and not hosts:
        raise MalformedRequest("the request has no Host header")
    if not all(HOST.fullmatch(host) for host in hosts):
        raise MalformedRequest("the Host header is malformed")
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version < b"1.1"):
        raise MalformedRequest("Transfer-Encoding is allowed in HTTP/1.1 only, and not together with Content-Length")
    own = {b"CONNECT": request.target, b"OPTIONS": b"*"}.get(request.method)  # forms of one method
    if request.target.startswith(b"/") or request.target == own:
        return request
    absolute = ABSOLUTE.fullmatch(request.target)
    if absolute is None:
        raise MalformedRequest(f"the request's target is {shown(request.target.decode('ascii'))}; it must begin with /")
    authority, target = absolute.groups()
    if not HOST.fullmatch(authority):
        raise MalformedRequest("the host in the request's target is malformed")
    headers = [(name, value) for name, value in request.headers if name != b"host"]
    return h11.Request(
        method=request.method,
        headers=[(b"host", authority), *headers],
        target=target if target and target.startswith(b"/") else b"/" + (target or b""),
        http_version=request.http_version,
    )


def refusal_of(error: h11.RemoteProtocolError) -> HttpError:
    """h11's words up to what it quotes: that may be a line with a token in it."""
    if error.error_status_hint == 501:
        return UnknownCoding("a Transfer-Encoding other than chunked, given once, is not understood here")
    return MalformedRequest(f"the request is malformed: {str(error).partition(':')[0]}")
