"""Faults that only the whole system shows, with time and bytes."""

from mutants.planted import Mutant

CLIENT = "tests/unit/client/test_session.py"
TESTS = "tests/faults/simulation/test_simulation.py -k whatever_fails"

MUTANTS = [
    Mutant("what is open is collected before what ended earlier, so a paused answer waits for ever", "llmws/client/session.py",
           "            if request_id in self._answers:\n                self._answers[request_id].is_accepted = True\n",
           "            self._answer(request_id).is_accepted = True\n", CLIENT),
    Mutant("at the level `disk` nothing is synced that does not ask for it", "llmws/store/writer.py",
           "            if self._sync_all:\n", "            if False:\n", TESTS),
    Mutant("what was written counts as unwritten for ever", "llmws/runtime/driver.py",
           "            self._backlog.answered(event)\n", "", TESTS),
    Mutant("a client that is gone without a word is never noticed", "llmws/server/websocket.py",
           "            self.close(CloseCode.HEARTBEAT, \"no sign of life\")\n            return\n", "            pass\n", TESTS),
    Mutant("a lost connection stays attached", "llmws/server/websocket.py",
           "            self._entrance.sessions.detach(self._number)\n", "            pass\n", TESTS),
    Mutant("what expired leaves a tombstone", "llmws/session/shelf.py",
           "Delete(session_id=session.id, keep_tombstone=False)", "Delete(session_id=session.id)", TESTS),
    Mutant("a clock that was set back brings an old epoch again", "llmws/store/folder.py",
           "    epoch = max(*(epoch + 1 for epoch, _ in ends), site.now_ms())\n", "    epoch = site.now_ms()\n", TESTS),
]  # fmt: skip
