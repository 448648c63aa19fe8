"""The manifest that http/README.md prints: valid, accepted by our own command line, its times and routes right."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from gnomon.http.settings import Settings
from helpers.live import eventually
from helpers.models import tiny_llama
from helpers.readme import OPERATING

[PRINTED] = re.findall(r"```yaml\n(.*?)```", OPERATING.read_text(encoding="utf-8"), re.DOTALL)
DEPLOYMENT, SERVICE = yaml.safe_load_all(PRINTED)
POD = DEPLOYMENT["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
KEY = "k" * 20


@pytest.mark.slow
@pytest.mark.parametrize("resource", [DEPLOYMENT, SERVICE], ids=["deployment", "service"])
def test_the_manifest_is_valid_and_says_nothing_that_kubernetes_does_not_know(resource: dict[str, Any]) -> None:
    import kubernetes_validate  # type: ignore[import-untyped]  # three seconds, which are not to be spent on collecting

    versions = [one for one in kubernetes_validate.utils.all_versions() if int(one.split(".")[1]) >= 30]
    for version in (versions[0], versions[-1]):
        kubernetes_validate.validate(resource, version, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate({**resource, "spec": {**resource["spec"], "replica": 2}}, version, strict=True)


def test_what_its_parts_say_of_each_other_is_so() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == SERVICE["spec"]["selector"] == labels
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}
    [port] = CONTAINER["ports"]
    assert SERVICE["spec"]["ports"][0]["targetPort"] == port["name"]
    assert f"--port={port['containerPort']}" in CONTAINER["command"]
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert f"--auth-api-key-file={mounts['keys']}/keys.txt" in CONTAINER["command"]
    assert {"name": "XDG_CACHE_HOME", "value": mounts["cache"]} in CONTAINER["env"]


def test_no_variable_of_a_service_looks_like_an_option() -> None:
    assert POD["enableServiceLinks"] is False
    assert not SERVICE["metadata"]["name"].upper().replace("-", "_").startswith("GNOMON")


def test_draining_fits_the_grace_period_here_and_by_default() -> None:
    """Twice the time to close: connections, then the last spans to a collector."""
    settings = Settings()
    draining = settings.drain_seconds + 2 * settings.shutdown_seconds
    assert draining < 30  # of Kubernetes, where nobody says otherwise
    before = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before + draining < POD["terminationGracePeriodSeconds"]
    assert f"{before} below, then {draining} to drain" in PRINTED


@pytest.mark.slow
def test_a_server_by_its_command_answers_its_probes_and_ends_in_time(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text(KEY + "\n")
    changed = {
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=8000": "--port=0",
        "--auth-api-key-file=/etc/gnomon/keys.txt": f"--auth-api-key-file={tmp_path / 'keys.txt'}",
    }
    assert set(changed) < set(CONTAINER["command"])
    program, command, *options = CONTAINER["command"]
    assert (program, command) == ("gnomon", "serve")
    model = tiny_llama(tmp_path / "tiny")
    arguments = [command, str(model), "--engine=reference", *(changed.get(one, one) for one in options)]
    out, cache = tmp_path / "out.txt", tmp_path / "cache"
    # as a container has it: no home, and the variables of the manifest
    environment = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(cache)}
    with out.open("wb") as to_out:
        process = subprocess.Popen(
            [sys.executable, "-c", "from gnomon.http.cli.main import main; main()", *arguments],
            env=environment,
            stdout=to_out,
            stderr=subprocess.DEVNULL,
        )
    try:
        assert eventually(lambda: "http://" in out.read_text() or process.poll() is not None, 60)
        base = re.findall(r"http://127\.0\.0\.1:\d+", out.read_text())[0]
        probes = [CONTAINER[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
        scraped = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"]
        assert [httpx.get(base + path).status_code for path in (*probes, scraped)] == [200] * 4
        assert httpx.get(f"{base}/v1/models").status_code == 401
        assert httpx.get(f"{base}/v1/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(POD["terminationGracePeriodSeconds"]) == 0
        assert time.monotonic() - begun < 10  # with nothing to finish there is nothing to wait for
    finally:
        process.kill()
        process.wait()
