"""Faults of what keeps a crowd, a flood or a deaf client from everybody else."""

from mutants.planted import Mutant

WEBSOCKET = "llmws/server/websocket.py"
LISTEN = "llmws/server/listen.py"
DOOR = "tests/unit/server/test_websocket.py"
CROWD = "tests/integration/server/test_crowd.py"

MUTANTS = [
    Mutant(
        "all that was read is parsed at once",
        WEBSOCKET,
        "        piece = self._unread[:SLICE_BYTES]\n        del self._unread[:SLICE_BYTES]\n",
        "        piece = self._unread[:]\n        self._unread.clear()\n",
        DOOR,
    ),
    Mutant(
        "frames are read as fast as they come",
        WEBSOCKET,
        "        wait_s = self._budget.wait_s(self._entrance.clock())\n",
        "        wait_s = 0.0\n",
        DOOR,
    ),
    Mutant(
        "frames are not counted",
        WEBSOCKET,
        "        self._budget.spend(1 + len(self._frames))\n",
        "        self._budget.spend(0)\n",
        DOOR,
    ),
    Mutant(
        "all messages of a slice go to the session before it can answer one",
        WEBSOCKET,
        "            while self._frames and not self._on_event(self._frames.popleft()):\n                pass\n",
        "            while self._frames:\n                self._on_event(self._frames.popleft())\n",
        DOOR,
    ),
    Mutant(
        "messages are taken although the answers are not read",
        WEBSOCKET,
        "        if not self._is_clogged:\n            if self._unread",
        "        if True:\n            if self._unread",
        DOOR,
    ),
    Mutant(
        "a client that has read its answers is not heard again",
        WEBSOCKET,
        "        self._congested = False\n        self._pulse.sign()\n        self._go_on()\n",
        "        self._congested = False\n        self._pulse.sign()\n",
        DOOR,
    ),
    Mutant(
        "while a slice waits for its turn more is read",
        WEBSOCKET,
        "        elif self._unread or self._frames or wait_s:\n            self._transport.pause_reading()\n",
        "        elif self._unread or self._frames or wait_s:\n",
        DOOR,
    ),
    Mutant(
        "the rate holds only for what came together",
        WEBSOCKET,
        "        elif self._unread or self._frames or wait_s:\n",
        "        elif self._unread or self._frames:\n",
        DOOR,
    ),
    Mutant(
        "pings are answered after the close frame",
        WEBSOCKET,
        "        if any(pieces) and not self._closing:",
        "        if any(pieces):",
        DOOR,
    ),
    Mutant(
        "a crowd at the door is let in at one go",
        LISTEN,
        "        backlog=ACCEPTED_AT_ONCE,",
        "        backlog=BACKLOG,",
        CROWD,
    ),
    Mutant(
        "a crowd finds no room to wait in",
        LISTEN,
        "            listener.listen(BACKLOG)\n",
        "            listener.listen(ACCEPTED_AT_ONCE)\n",
        CROWD,
    ),
    Mutant(
        "an upgraded connection is watched on",
        "llmws/server/http.py",
        "        self._timer.cancel()\n        super().handle_websocket_upgrade(event)\n",
        "        super().handle_websocket_upgrade(event)\n",
        CROWD,
    ),
    Mutant(
        "an HTTP client that does not read is kept",
        "llmws/server/http.py",
        " or self.flow.write_paused):",
        "):",
        "tests/integration/server/test_flow.py",
    ),
    Mutant(
        "an upgraded connection does not know that it is congested",
        "llmws/server/http.py",
        "        if self.flow.write_paused:\n            # The",
        "        if False:\n            # The",
        DOOR,
    ),
    Mutant(
        "what a lost connection has brought is thrown away",
        WEBSOCKET,
        "        if self._closing or self._number is None:\n            self._leave()",
        "        if True:\n            self._leave()",
        DOOR,
    ),
    Mutant(
        "what came before a cut is taken after it",
        WEBSOCKET,
        "        self._closing = True\n        self._transport.abort()\n        if self._lost:\n            self._leave()\n",
        "        self._transport.abort()\n",
        DOOR,
    ),
    Mutant(
        "detached sessions stay in memory however many they are",
        "llmws/session/shelf.py",
        "            is_crowded = len(state.detached_s) > MAX_DETACHED\n",
        "            is_crowded = False\n",
        "tests/unit/session/test_sessions.py",
    ),
]
