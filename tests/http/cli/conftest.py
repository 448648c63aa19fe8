"""What the tests of the command share."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from gnomon.http.cli.main import main
from helpers.command import Gnomon, Result
from helpers.models import tiny_llama


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Serves under the name `tiny`; a context of 4,096."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096)


@pytest.fixture
def gnomon(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Gnomon:
    def run(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["gnomon", *map(str, arguments)])
        monkeypatch.setattr("logging.config.dictConfig", lambda config: None)  # this process logs to pytest
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as exit:
            main()
        return Result(exit.value.code or 0, *capsys.readouterr())  # type: ignore[arg-type]

    return run
