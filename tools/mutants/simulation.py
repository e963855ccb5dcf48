"""Faults that only the whole system shows, with time and bytes."""

from mutants.planted import Mutant

CLIENT = "tests/unit/client/test_session.py"
TESTS = "tests/faults/simulation/test_simulation.py -k whatever_fails"

MUTANTS = [
    Mutant("what is open is collected before what ended earlier, so a paused answer waits for ever", "llmws/client/session.py",
           "            if request_id in self._answers:\n                self._answers[request_id].is_accepted = True\n",
           "            self._answer(request_id).is_accepted = True\n", CLIENT),
    Mutant("at the level `disk` nothing is synced that does not ask for it", "llmws/store/writer.py",
           "            if self._sync_all:\n", "            if False:\n", f"{TESTS} --simulation-seeds 60"),
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
    Mutant("a program's position counts what has arrived and was not read", "llmws/client/session.py",
           "return self._cursor.position(self._consumed())", "return self._cursor.resume", TESTS),
    Mutant("a program's position counts the event that it is about to read", "llmws/client/session.py",
           "return min(unconsumed) - 1 if", "return min(unconsumed) if", TESTS),
    Mutant("after a restart the newest request is the first", "llmws/session/recovery.py",
           "for request in fold.open.values():", "for request in reversed(fold.open.values()):", TESTS),
    Mutant("the conversation keeps another answer than was told", "llmws/session/conversation.py",
           "                    content=request.text,", "                    content=request.text[1:],", TESTS),
]  # fmt: skip
