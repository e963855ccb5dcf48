"""Plants faults in a copy of the product, one at a time, and says which of them the property tests notice.

A property test that notices nothing proves nothing. Each mutant is one replacement of text; it counts as killed when the tests named
with it fail. Writes the table of docs/mutants.md; exits 1 when one survives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
HUB = "tests/property/test_hub.py"


class Mutant(NamedTuple):
    """A planted fault: what it breaks, where, and which tests must notice."""

    breaks: str
    file: str
    before: str
    after: str
    tests: str


SESSION = "llmws/session/"
MUTANTS = [
    Mutant("an event is sendable before it is written", SESSION + "journal.py",
           "while self._unsettled and self._unsettled[0][0] <= settled:", "while self._unsettled:", "tests/unit/session"),
    Mutant("a resume starts one event too late", SESSION + "hub.py",
           "position = hello.resume.last_seq if", "position = hello.resume.last_seq + 1 if", HUB),
    Mutant("a resume starts one event too early", SESSION + "hub.py",
           "position = hello.resume.last_seq if", "position = max(session.floor, hello.resume.last_seq - 1) if", HUB),
    Mutant("the window is one event too wide", SESSION + "attachment.py",
           "else min(log.sendable, self._window_base + self.window)", "else min(log.sendable, self._window_base + self.window + 1)", HUB),
    Mutant("what is read from the file ignores the window", SESSION + "attachment.py",
           "            if seq > limit:\n                break\n", "", HUB),
    Mutant("an observer's ack moves the floor", SESSION + "session.py",
           'if attachment.mode == "takeover":\n            self.floor', "if True:\n            self.floor", "tests/unit/session"),
    Mutant("after a takeover the old connection is not closed", SESSION + "session.py",
           "        if self.attachment is not None:\n            self._outbox", "        if False:\n            self._outbox", "tests/contract/test_transcripts.py"),
    Mutant("a needless reset after every restart", SESSION + "recovery.py",
           "    session.ends = opened.ends\n", "", HUB),
    Mutant("a foreign position is taken for a good one", SESSION + "session.py",
           '            return "client_ahead"\n', "            return None\n", "tests/contract/test_transcripts.py"),
    Mutant("an observer may ask", SESSION + "desk.py",
           'if attachment.mode == "observe" and not', "if False and not", "tests/contract/test_transcripts.py"),
    Mutant("a user may switch the model", SESSION + "desk.py",
           'elif attachment.role != "admin" and', "elif False and", "tests/unit/session"),
    Mutant("a poison request is resumed for ever", SESSION + "turns.py",
           "elif request.fruitless_resumes >= MAX_RESUMES:", "elif False:", "tests/unit/session"),
    Mutant("the buffer is dropped while a request is open", SESSION + "session.py",
           "            and not self.queue\n", "", "tests/unit/session"),
    Mutant("the buffer is dropped before everything is acknowledged", SESSION + "session.py",
           "            and self.floor == self.log.last_seq\n", "", HUB),
    Mutant("the same request id runs twice while open", SESSION + "session.py",
           "            if each.id == request_id:\n", "            if False:\n", HUB),
    Mutant("the same request id runs twice after its end", SESSION + "session.py",
           "        if ended is not None:\n            if ended.digest", "        if False:\n            if ended.digest", HUB),
    Mutant("the ledger of finished requests is lost in a restart", SESSION + "recovery.py",
           "session.ledger = {each.id_mac: each for each in meta.finished}", "session.ledger = {}", HUB),
    Mutant("a request is sampled again from its beginning after a kill", SESSION + "request.py",
           "emitted_ids=tuple(self.ids),", "emitted_ids=(),", "tests/contract/test_transcripts.py"),
    Mutant("a session's second request starts before the first has ended", SESSION + "turns.py",
           'if session.queue and session.queue[0].state == "queued":', "if session.queue:", HUB),
    Mutant("a cancelled request's tokens still come", SESSION + "turns.py",
           "if self._active.pop(request.key, None) is not None and", "if self._active.get(request.key) is not None and", "tests/unit/session"),
    Mutant("seq starts again after a restart", SESSION + "recovery.py",
           "next_n=opened.next_n, last_seq=last_seq)", "next_n=opened.next_n, last_seq=0)", HUB),
    Mutant("a session goes to whoever names it", SESSION + "hub.py",
           "if session.owner != event.principal:", "if False:", HUB),
    Mutant("the hash of the text leaves out what came before a restart", SESSION + "recovery.py",
           "request.add(event.ids, event.data, now_s=self._now_s)", 'request.add(event.ids, "", now_s=self._now_s)', "tests/contract/test_transcripts.py"),
    Mutant("the queue is taken from the wrong end", SESSION + "turns.py",
           "            request = session.queue[0]\n            ref =", "            request = session.queue[-1]\n            ref =", "tests/unit/session"),
    Mutant("a hello is attached to a session that was just deleted", SESSION + "hub.py",
           "self._attach(each)  # not", "self._attach_known(session, each)  # not", "tests/unit/session"),
    Mutant("a snapshot gives the tail of an answer as its text", SESSION + "session.py",
           "for each in kept if each.start_seq > 0]", "for each in self.queue if each.start_seq > 0]", "tests/unit/session"),
    Mutant("a session is said to be gone before it is", SESSION + "state.py",
           "        if session.is_stored:\n            self.out.append(Delete", "        self.deleted(session.id)\n        if session.is_stored:\n            self.out.append(Delete", "tests/unit/session"),
    Mutant("the file is not read again after a congested pause", SESSION + "hub.py",
           "attachment.is_congested = False\n            self._state", "attachment.is_congested = True\n            self._state", "tests/unit/session"),
]  # fmt: skip


def main() -> int:
    """Runs every mutant and returns 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/mutants.md")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="llmws-mutants-") as name:
        copy = Path(name)
        for part in ("llmws", "llm_cli", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for mutant in MUTANTS:
            outcome = try_mutant(mutant, copy)
            print(f"{outcome:10}{mutant.breaks}", flush=True)
            rows.append((mutant, outcome))
    if options.write:
        write_table(rows)
    survivors = [mutant for mutant, outcome in rows if outcome != "killed"]
    print(f"{len(rows) - len(survivors)} of {len(rows)} killed")
    return 1 if survivors else 0


def try_mutant(mutant: Mutant, copy: Path) -> str:
    """Plants one mutant, runs its tests, takes it out again."""
    path = copy / mutant.file
    text = path.read_text()
    if text.count(mutant.before) != 1:
        return "misplaced"
    path.write_text(text.replace(mutant.before, mutant.after))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=hunt",
        *mutant.tests.split(),
    ]
    if "tests/contract" in mutant.tests:
        command += ["-k", "not socket"]
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            capture_output=True,
            check=False,
            timeout=300,
            env={**os.environ, "PYTHONPATH": str(copy)},
        )
        return "survived" if done.returncode == 0 else "killed"
    except subprocess.TimeoutExpired:
        return "killed"
    finally:
        path.write_text(text)


def write_table(rows: list[tuple[Mutant, str]]) -> None:
    """Writes what was found to docs/mutants.md."""
    lines = [
        "# Planted mutants",
        "",
        "A property test is trusted when it notices faults. `make mutants` plants each of these in a copy of the product and runs",
        "the tests beside it; this table is its output.",
        "",
        "| the mutant | in | tests | outcome |",
        "|---|---|---|---|",
        *(f"| {each.breaks} | `{each.file}` | `{each.tests}` | {outcome} |" for each, outcome in rows),
        "",
    ]
    (ROOT / "docs" / "mutants.md").write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
