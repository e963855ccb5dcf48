"""How `llmws` begins, and what it says of the configuration's file."""

import os
import sys
from pathlib import Path

import pytest

from llmws.cli.main import main


def test_ctrl_c_while_it_begins_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[main.__module__], "_serve", interrupted)
    assert main(["serve"]) == 130


def test_a_configuration_that_is_made_is_told_by_its_plain_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody who mistypes the file's name would think that the settings in it are in force."""
    (tmp_path / "elsewhere").mkdir()
    named = tmp_path / "elsewhere" / ".." / "config.json"
    arguments = ["token", "list", "--config", str(named), "--state-dir", str(tmp_path / "state")]
    plain = tmp_path.resolve() / "config.json"
    assert main(arguments) == 0
    assert capsys.readouterr().err == f"llmws: made {plain} with the defaults\n"
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    plain.write_text("{")
    assert main(arguments) == os.EX_CONFIG
    assert capsys.readouterr().err.startswith(f"llmws: {plain}: not valid JSON")
