"""The variables that an orchestrator puts beside ours: those of a Kubernetes Service whose name begins with `gnomon`.

For a Service `gnomon` every pod of the namespace gets `GNOMON_PORT=tcp://10.0.0.1:8000`, `GNOMON_SERVICE_HOST` and
their like, unless it says `enableServiceLinks: false`; for `gnomon-auth` they begin with `GNOMON_AUTH_`. They are no
options. A variable is one of them if its name, its value and its siblings are those that Kubernetes makes together:
so a misspelt option is never taken for one, and `GNOMON_PORT=8000` stays an option beside them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

HOST, PORT = "_SERVICE_HOST", "_SERVICE_PORT"
URL = r"(?:tcp|udp|sctp)://(?:[0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}"
PROTOCOL, NUMBER, ADDRESS = r"tcp|udp|sctp", r"[0-9]{1,5}", r"[0-9A-Fa-f:.]+"
LINKS = (  # what follows the Service's name, and the values it can have
    (HOST, ADDRESS),
    (r"_SERVICE_PORT(?:_[A-Z0-9_]+)?", NUMBER),
    (r"_PORT", URL),
    (r"_PORT_[0-9]+_(?:TCP|UDP|SCTP)", URL),
    (r"_PORT_[0-9]+_(?:TCP|UDP|SCTP)_PROTO", PROTOCOL),
    (r"_PORT_[0-9]+_(?:TCP|UDP|SCTP)_PORT", NUMBER),
    (r"_PORT_[0-9]+_(?:TCP|UDP|SCTP)_ADDR", ADDRESS),
)


def service_links(environment: Mapping[str, str]) -> list[str]:
    """The names of the variables, in order, that stand for Services."""
    services = [name.removesuffix(HOST) for name in environment if _is_host(name, environment)]
    return sorted(name for name, value in environment.items() if any(_links(s, name, value) for s in services))


def _is_host(name: str, environment: Mapping[str, str]) -> bool:
    """Whether the variable tells a Service's address, with its port beside it."""
    if not (name.startswith("GNOMON_") and name.endswith(HOST)):
        return False
    try:
        ipaddress.ip_address(environment[name])
    except ValueError:
        return False
    return re.fullmatch(NUMBER, environment.get(name.removesuffix(HOST) + PORT, "")) is not None


def _links(service: str, name: str, value: str) -> bool:
    return any(re.fullmatch(re.escape(service) + rest, name) and re.fullmatch(form, value) for rest, form in LINKS)
