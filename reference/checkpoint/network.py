"""The variables that decide how a request leaves this machine: which proxy it goes through, and who is trusted.

HTTP clients read them by themselves (http_proxy, https_proxy, all_proxy and no_proxy in either case, SSL_CERT_FILE,
SSL_CERT_DIR), and say nothing of them where a request fails: the server is blamed for its user's proxy. The sentences
here name the variable. Its value is not shown, since that of a proxy may have a password.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable, Mapping
from urllib import request
from urllib.parse import urlsplit

TRUST = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # the first that is set counts


def _set(names: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    return [name for name in names if environment.get(name)]


def _either(name: str) -> tuple[str, str]:
    return name, name.upper()


def _left_out(host: str, names: str) -> bool:
    bypassed: Callable[[str, Mapping[str, str]], object] = request.proxy_bypass_environment  # type: ignore[attr-defined]
    return bool(bypassed(host, {"no": names}))


def proxy_note(url: str, environment: Mapping[str, str] | None = None) -> str:
    """What to add to words about a server at the URL that does not answer; empty where no proxy is in between."""
    environment = os.environ if environment is None else environment
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
    except ValueError:
        return ""
    found = _set((*_either(f"{scheme}_proxy"), *_either("all_proxy")), environment)
    left_out = next(iter(_set(_either("no_proxy"), environment)), None)
    if not found or (left_out and _left_out(host, environment[left_out])):
        return ""
    return f"; it was asked through the proxy in the variable {found[0]}; NO_PROXY={host} asks it without one"


def has_trust(environment: Mapping[str, str] | None = None) -> bool:
    """Whether the certificates that the variables name can be read."""
    environment = os.environ if environment is None else environment
    file = environment.get("SSL_CERT_FILE")
    try:
        if file:
            ssl.create_default_context(cafile=file)
    except OSError:  # ssl.SSLError is one
        return False
    return True


def unusable(error: BaseException, environment: Mapping[str, str] | None = None) -> str:
    """Which variable is to blame where an HTTP client cannot even be made, and what is wrong with it."""
    environment = os.environ if environment is None else environment
    proxies = _set((name for kind in ("http", "https", "all") for name in _either(f"{kind}_proxy")), environment)
    if isinstance(error, ImportError):  # socksio
        socks = [name for name in proxies if environment[name].lower().startswith("socks")] or proxies
        return f"{' and '.join(socks)}: a SOCKS proxy needs the package socksio: pip install socksio; or unset it"
    if isinstance(error, OSError):  # ssl.SSLError too
        why = error.strerror or " ".join(str(error).split()) or type(error).__name__
        return f"{next(iter(_set(TRUST, environment)), 'the trusted certificates')}: {why}"
    names = proxies + _set(_either("no_proxy"), environment)
    return f"{' and '.join(names) or 'the proxies of this machine'}: no value that an HTTP client can use"
