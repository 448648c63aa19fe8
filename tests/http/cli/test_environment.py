"""What Kubernetes puts into a pod for a Service of our name is no option; what is misspelt stays an error."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from gnomon.http.cli.environment import service_links
from helpers.command import Gnomon, Result


def links(service: str, address: str = "10.0.0.1", port: int = 8000, protocol: str = "tcp") -> dict[str, str]:
    """The variables of a Service with one port that is named http, as the kubelet makes them."""
    name = "GNOMON" + service
    url = f"{protocol}://[{address}]:{port}" if ":" in address else f"{protocol}://{address}:{port}"
    one = f"{name}_PORT_{port}_{protocol.upper()}"
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP": str(port),
        f"{name}_PORT": url,
        one: url,
        f"{one}_PROTO": protocol,
        f"{one}_PORT": str(port),
        f"{one}_ADDR": address,
    }


@pytest.mark.parametrize("service", ["", "_AUTH", "_HOST", "_2", "_MODEL_A"])
@pytest.mark.parametrize(("address", "protocol"), [("10.0.0.1", "tcp"), ("fd00::1", "tcp"), ("10.0.0.1", "udp")])
def test_all_that_stands_for_a_service_is_recognised(service: str, address: str, protocol: str) -> None:
    variables = links(service, address, protocol=protocol)
    assert service_links(variables) == sorted(variables)


@pytest.mark.parametrize(
    "others",
    [
        {"GNOMON_PORT": "8080"},  # set in the pod's spec, where it replaces the Service's
        {"GNOMON_HOST": "10.0.0.1", "GNOMON_PORT": "8000"},
        {"GNOMON_AUTH_PORT": "tcp://10.0.0.2:80"},  # alone: nothing that Kubernetes makes
        {"GNOMON_AUTH_SERVICE_HOST": "identity.example.org", "GNOMON_AUTH_SERVICE_PORT": "443"},
        {"GNOMON_AUTH_SERVICE_HOST": "10.0.0.2"},
        {"GNOMON_SERVICE_NAME": "gnomon", "GNOMON_AUTH_ORGANISATIONS": "acme"},
        {"GNOMON_PORT_8000_TCP": "on", "GNOMON_SERVICE_PORT_x": "8000"},
    ],
)
def test_nothing_else_is_taken_for_a_service(others: dict[str, str]) -> None:
    assert service_links(others) == []
    beside = {**links(""), **others}
    assert service_links(beside) == sorted(set(links("")) - set(others))


Started = Callable[..., Result]


@pytest.fixture
def started(gnomon: Gnomon, monkeypatch: pytest.MonkeyPatch) -> Started:
    """The command among these variables, and no others of ours."""

    def run(variables: dict[str, str], *arguments: str) -> Result:
        for name in [name for name in os.environ if name.startswith("GNOMON_")]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return gnomon(*(arguments or ("serve", "--print-config")))

    return run


def test_a_pod_beside_services_of_our_name_starts_and_says_so_in_one_line(started: Started) -> None:
    variables = links("") | links("_AUTH", "10.0.0.2", 80)
    done = started(variables)
    assert done.code == 0
    [line] = done.err.splitlines()
    assert line.startswith("gnomon: warning: ignored, since they stand for a Kubernetes Service and not for options: ")
    assert all(name in line for name in variables)
    assert line.endswith("enableServiceLinks: false in the pod's spec leaves them out")
    assert any(line.startswith("port = 8000 ") and line.endswith("# default") for line in done.out.splitlines())
    own = started(variables | {"GNOMON_PORT": "8080"})
    assert "# environment GNOMON_PORT" in own.out
    assert "GNOMON_PORT," not in own.err


def test_a_misspelt_variable_beside_a_service_is_still_refused(started: Started) -> None:
    done = started(links("_AUTH") | {"GNOMON_AUTH_ORGANISATIONS": "acme"})
    assert done.code == 2
    assert "GNOMON_AUTH_ORGANISATIONS is no option's variable" in done.err
    alone = started({"GNOMON_AUTH_PORT": "tcp://10.0.0.2:80"})
    assert (alone.code, alone.err.count("\n")) == (2, 1)


def test_other_commands_are_not_disturbed_by_a_service(started: Started) -> None:
    for command in (("complete", "a", "--max-tokens", "0"), ("verify", "--list")):
        done = started(links(""), *command)
        assert (done.code, done.err) == (0, "")
