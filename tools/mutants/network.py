"""Faults that bad networks, slow clients and killed clients bring to light."""

from mutants.planted import Mutant

NETWORK = "tests/faults/test_network.py::test_every_token_comes_once_whatever_the_network_does"
BLACK_HOLE = "tests/faults/test_network.py::test_a_black_hole_is_left_although_nothing_ever_tells_of_it"
SLOW = "tests/faults/test_slow_clients.py"
LLM_KILLS = "tests/faults/test_client_kills.py::test_llm_shows_what_is_missing_and_no_more"
PROGRAM_KILLS = "tests/faults/test_client_kills.py::test_a_program_goes_on_from_its_journal"
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
    Mutant("a request of a known id runs again", "llmws/session/desk.py",
           "        waiting = next((each for each in session.queue if each.id == request_id), None)\n", "        return False\n", NETWORK),
    Mutant("what a client has got is acknowledged before its caller has read it", "llmws/client/acks.py",
           "        while self._marks and self._marks[0] <= consumed:\n            self._floor = max(self._floor, self._marks.popleft())\n", "        self._floor = applied\n", PROGRAM_KILLS),
    Mutant("llm forgets how much of a token it had shown", "llm_cli/show.py",
           "        self._skip_chars = shown.chars\n", "        self._skip_chars = 0\n", LLM_KILLS),
    Mutant("an answer ends with its client's connection", "llmws/session/turns.py",
           '            if request.message.on_disconnect == "cancel":\n', "            if True:\n", NETWORK),
    Mutant("a client believes in a silent connection for ever", "llmws/client/link.py",
           "            ping_timeout=heartbeat_s,\n", "            ping_timeout=None,\n", BLACK_HOLE),
    Mutant("a restarted server does not tell the engine what was said already", "llmws/session/request.py",
           "            emitted_ids=tuple(self.ids),\n", "            emitted_ids=(),\n", CHAOS),
]  # fmt: skip
