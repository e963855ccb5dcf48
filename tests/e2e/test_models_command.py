"""`llmws models` as a person starts it."""

import json
import os
import subprocess
import sys

from tests.support.paths import ROOT

TIMEOUT_S = 120


def llmws(*arguments):
    command = [sys.executable, "-m", "llmws", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def configured(folder):
    """The options of a command in a folder with a configuration of its own."""
    path = folder / "config.json"
    path.write_text("{}")
    return ("--config", str(path), "--state-dir", str(folder))


def test_the_built_in_model_is_estimated_without_a_gpu(tmp_path):
    places = configured(tmp_path)
    result = llmws("models", "estimate", "llmws-guide", "--vram", "8", "--json", *places)
    found = json.loads(result.stdout)

    assert (result.returncode, result.stderr) == (0, "")
    assert (found["type"], found["tier"], found["device"], found["problem"]) == ("llama", "fast", "cuda", "")
    assert found["max_context"] == found["positions"] == 2048


def test_a_path_that_is_wrong_costs_no_import_of_torch(tmp_path):
    """The answer is there before torch would be."""
    places = configured(tmp_path)
    code = """
import sys
from llmws.cli import main
status = main(sys.argv[1:])
sys.exit("torch was imported" if "torch" in sys.modules else status)
"""
    command = [sys.executable, "-c", code, "models", "estimate", "/nowhere", *places]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "llmws: there is no model /nowhere: neither a folder nor a listed name\n"


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    """`llmws … | head`: as if SIGPIPE had ended it."""
    reader, writer = os.pipe()
    os.close(reader)
    places = configured(tmp_path)
    command = [sys.executable, "-m", "llmws", "token", "create", "--name", "a", "--role", "user", *places]
    try:
        result = subprocess.run(
            command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False
        )
    finally:
        os.close(writer)

    assert (result.returncode, result.stderr) == (141, "")
