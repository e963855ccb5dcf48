"""Faults that bad networks, slow clients and killed clients bring to light."""

from mutants.planted import Mutant

NETWORK = "tests/faults/test_network.py::test_every_token_comes_once_whatever_the_network_does"
SLOW = "tests/faults/test_slow_clients.py"
KILLS = "tests/faults/test_client_kills.py"
CHAOS = "tests/faults/test_chaos.py"

MUTANTS = [
    Mutant("a slow client is not told what is no longer in memory", "llmws/session/attachment.py",
           "            if frame is None or size_bytes >= self._burst_bytes:\n",
           "            if frame is None:\n                self.cursor += 1\n                continue\n            if size_bytes >= self._burst_bytes:\n", SLOW),
    Mutant("what was read from the log for a slow client is sent from its beginning", "llmws/session/attachment.py",
           "session_id=self._session_id, ticket=self._ticket, after_seq=self.cursor, limit", "session_id=self._session_id, ticket=self._ticket, after_seq=0, limit", SLOW),
    Mutant("a resumed client is sent one event less", "llmws/session/attachment.py",
           "        self.cursor = self.seen = self._window_base = position\n", "        self.cursor = self.seen = self._window_base = position + (position > 0)\n", NETWORK),
    Mutant("after a cut the client begins another session", "llmws/client/session.py",
           "            session_id=self.session_id,\n            resume", "            session_id=None,\n            resume", NETWORK),
    Mutant("a client that was cut off asks for everything again and believes it", "llmws/client/cursor.py",
           "            return Verdict.DROP\n", "            return Verdict.APPLY\n", NETWORK),
    Mutant("a request of a known id runs again", "llmws/session/desk.py",
           "        waiting = next((each for each in session.queue if each.id == request_id), None)\n", "        return False\n", NETWORK),
    Mutant("the late death of a connection that was taken over detaches its successor", "llmws/session/session.py",
           "        if self.attachment and self.attachment.connection == connection:\n            self.attachment = None", "        if self.attachment:\n            self.attachment = None", NETWORK),
    Mutant("what a client has got is acknowledged before its caller has read it", "llmws/client/acks.py",
           "        while self._marks and self._marks[0] <= consumed:\n            self._floor = max(self._floor, self._marks.popleft())\n", "        self._floor = applied\n", KILLS),
    Mutant("llm forgets how much of a token it had shown", "llm_cli/show.py",
           "        self._skip_chars = shown.chars\n", "        self._skip_chars = 0\n", KILLS),
    Mutant("llm records what it hands over, not what was written", "llm_cli/scribe.py",
           "                _write(1, piece.text.encode(encoding, errors=\"replace\"))\n", "                bookmarks.save(piece.record)\n                _write(1, piece.text[1:].encode(encoding, errors=\"replace\"))\n", KILLS),
    Mutant("a restarted server does not tell the engine what was said already", "llmws/session/request.py",
           "            emitted_ids=tuple(self.ids),\n", "            emitted_ids=(),\n", CHAOS),
    Mutant("a client that finds another epoch than its own begins at the floor", "llmws/client/session.py",
           "            resume=self._cursor.resume if self.session_id is not None else None,\n", "            resume=None,\n", NETWORK),
]  # fmt: skip
