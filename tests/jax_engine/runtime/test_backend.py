"""What jax runs on: each way in which it has no device is one line that says what to do, before anything is loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

STARTS = "from gnomon.jax_engine.runtime.backend import NoDevice, require_devices\n"
STARTS += "try: require_devices(lambda line: print('warned:', line)); print('has devices')\n"
STARTS += "except NoDevice as error: print(error)"
COMPLETE = "from gnomon.http.cli.main import main; main()", "complete", "--engine", "jax", "a"
HINT = "; here: cpu; to install it, in the clone: pip install"
NO_SUCH = "jax has no platform 'nonsense'; here: cpu; with a plugin also: rocm, cuda"

# a plugin's package, and what the platform's factory does
BROKEN = "def initialize(): raise ValueError('no AMD GPU was found')"
DRIVERLESS = """
def initialize():
    from jax._src import xla_bridge
    def factory(): raise RuntimeError("libamdhip64.so.7: no such file")
    xla_bridge.register_backend_factory("rocm", factory, priority=400, fail_quietly={quietly})
"""


def run(*command: str, **variables: str) -> tuple[int, str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, "-c", *command], env=environment | variables, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def started(variables: Mapping[str, str]) -> str:
    """The one line that a start says."""
    code, out, err = run(STARTS, **variables)
    assert (code, err) == (0, "")
    assert out.count("\n") == 1, out
    return out.rstrip()


def plugin(folder: Path, code: str) -> str:
    """A folder for PYTHONPATH in which a plugin for ROCm is installed."""
    (folder / "jax_plugins" / "xla_rocm7").mkdir(parents=True)
    (folder / "jax_plugins" / "xla_rocm7" / "__init__.py").write_text(code)
    return str(folder)


@pytest.mark.slow
def test_a_platform_without_its_plugin_is_one_line_and_status_1() -> None:
    code, out, err = run(*COMPLETE, JAX_PLATFORMS="rocm")
    assert (code, out) == (1, "")
    line = err.removeprefix("importing jax\n")  # where nothing was compiled yet
    assert line == f"gnomon: JAX_PLATFORMS='rocm': its plugin is not installed{HINT} '.[rocm]'\n"


SAID = {
    ("JAX_PLATFORMS", "cuda"): f"its plugin is not installed{HINT} '.[cuda]'",
    ("JAX_PLATFORMS", "gpu"): f"its plugin is not installed{HINT} '.[rocm]' or '.[cuda]'",
    ("JAX_PLATFORMS", "rocm,cpu"): f"its plugin is not installed{HINT} '.[rocm]'",
    ("JAX_PLATFORMS", "cpu,rocm"): f"its plugin is not installed{HINT} '.[rocm]'",
    ("JAX_PLATFORMS", "nonsense"): NO_SUCH,
    ("JAX_PLATFORMS", "cpu,nonsense"): NO_SUCH,
    ("JAX_PLATFORM_NAME", "nonsense"): NO_SUCH,
    ("JAX_PLATFORM_NAME", "rocm"): f"its plugin is not installed{HINT} '.[rocm]'",
}
FEW = {("JAX_PLATFORMS", "cuda"), ("JAX_PLATFORMS", "cpu,rocm")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(*key, marks=() if key in FEW else pytest.mark.slow) for key in SAID]
)
def test_the_line_names_the_variable_what_is_here_and_what_to_install(name: str, value: str) -> None:
    assert started({name: value}) == f"{name}={value!r}: {SAID[name, value]}"


@pytest.mark.slow
@pytest.mark.parametrize("value", ["", "cpu"])
def test_a_platform_that_is_here_starts_without_a_word(value: str) -> None:
    assert started({"JAX_PLATFORMS": value}) == "has devices"


@pytest.mark.slow
@pytest.mark.parametrize("quietly", [pytest.param(None), pytest.param(False, marks=pytest.mark.slow)])
def test_a_plugin_that_does_not_start_is_named_with_its_reason(tmp_path: Path, quietly: bool | None) -> None:
    code = BROKEN if quietly is None else DRIVERLESS.format(quietly=quietly)
    reason = "no AMD GPU was found" if quietly is None else "libamdhip64.so.7: no such file"
    line = started({"JAX_PLATFORMS": "rocm", "PYTHONPATH": plugin(tmp_path, code)})
    assert line.startswith("JAX_PLATFORMS='rocm': the plugin jax_plugins.xla_rocm7 is installed, but cannot be used: ")
    assert line.endswith(f"{reason}; here: cpu")


@pytest.mark.slow
@pytest.mark.parametrize("code", [BROKEN, DRIVERLESS.format(quietly=True)])
def test_going_on_without_a_plugin_that_is_installed_is_said(tmp_path: Path, code: str) -> None:
    status, out, err = run(STARTS, PYTHONPATH=plugin(tmp_path, code))
    assert (status, err) == (0, "")
    warned, last = out.splitlines()
    assert warned.startswith("warned: jax goes on without ")
    assert "xla_rocm7" in warned
    assert last == "has devices"


@pytest.mark.slow
def test_a_plugin_that_lets_nothing_start_is_named_with_the_way_round_it(tmp_path: Path) -> None:
    line = started({"PYTHONPATH": plugin(tmp_path, DRIVERLESS.format(quietly=False))})
    assert line == "jax has no device: libamdhip64.so.7: no such file; JAX_PLATFORMS=cpu leaves plugins out"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--xla_nonsense=1", "Unknown flag in XLA_FLAGS: --xla_nonsense=1"),
        pytest.param(
            "--xla_backend_optimization_level=abc",
            "Couldn't interpret value abc for flag xla_backend_optimization_level",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_flag_that_xla_would_end_the_process_for_is_one_line(flags: str, reason: str) -> None:
    line = started({"XLA_FLAGS": flags})
    assert line == f"XLA_FLAGS={flags!r}: {reason}; correct the flag, or unset the variable"


@pytest.mark.slow
def test_flags_that_xla_knows_are_its_own_affair() -> None:
    assert started({"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=true"}) == "has devices"


@pytest.mark.parametrize(("name", "value"), [("JAX_ENABLE_X64", "maybe"), ("JAX_DEFAULT_MATMUL_PRECISION", "nonsense")])
def test_a_value_that_jax_does_not_know_is_one_line_that_names_it(name: str, value: str) -> None:
    line = started({name: value})
    assert line.startswith("jax does not start: ")
    assert name in line
    assert value in line


@pytest.mark.slow
@pytest.mark.parametrize("module", ["tools.bench", "training.__main__"])
def test_the_tools_say_the_same_line(module: str, tmp_path: Path) -> None:
    arguments = ["--quick"] if module == "tools.bench" else ["evaluate", str(tmp_path)]
    code = f"import sys; from gnomon.jax_engine.{module} import main; sys.exit(main(sys.argv[1:]))"
    status, out, err = run(code, *arguments, JAX_PLATFORMS="rocm")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert f"JAX_PLATFORMS='rocm': its plugin is not installed{HINT} '.[rocm]'" in err


@pytest.mark.parametrize("version", ["0.4.1", "99.0.0"])
def test_a_jaxlib_that_does_not_fit_is_one_line_with_what_to_install(tmp_path: Path, version: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"import jaxlib.version as v\nv.__version__ = v._version = {version!r}\n"
    )
    line = started({"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])})
    assert line.startswith(f"jax cannot be imported: jaxlib {'is ' if version < '9' else ''}version {version}")
    assert "(here: jax " in line
    assert re.search(r"must fit together: \S+ -m pip install --upgrade 'jax[<>]\S+' jaxlib", line), line
