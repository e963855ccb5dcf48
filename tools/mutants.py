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
CASES = "tests/unit/session/test_hard_cases.py"


class Mutant(NamedTuple):
    """A planted fault: what it breaks, where, and which tests must notice."""

    breaks: str
    file: str
    before: str
    after: str
    tests: str


SESSION = "llmws/session/"
INVARIANT = "tests/contract/test_invariants.py::test_invariant_"
ENGINE = "tests/contract/engine/test_engine.py::"
PROMPT = "llmws/prompt/"
RENDERER = "tests/integration/prompt/test_renderer.py"
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
    Mutant("the same request id runs twice while open", SESSION + "desk.py",
           "waiting = next((each for each in session.queue if each.id == request_id), None)", "waiting = None", HUB),
    Mutant("the same request id runs twice after its end", SESSION + "finished.py",
           "if (kept := self.unacknowledged.get(request_id)) is not None:", "if (kept := None) is not None:", HUB),
    Mutant("the ledger of finished requests is lost in a restart", SESSION + "recovery.py",
           "ledger=meta.finished)", "ledger=())", HUB),
    Mutant("a request is sampled again from its beginning after a kill", SESSION + "request.py",
           "emitted_ids=tuple(self.ids),", "emitted_ids=(),", "tests/contract/test_transcripts.py"),
    Mutant("a session's second request starts before the first has ended", SESSION + "turns.py",
           'if not session.queue or session.queue[0].state not in ("queued", "paused"):', "if not session.queue:", HUB),
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
    Mutant("a hello is attached to a session that was just deleted", SESSION + "shelf.py",
           "self._again(each)  # not", "self._state.sessions[session.id] = session; self._again(each)  # not", "tests/unit/session"),
    # Quotas, compaction, branches, expiry.
    Mutant("the quota pauses nothing", SESSION + "turns.py",
           "elif session.is_over_quota():\n            self._pause", "elif False:\n            self._pause", CASES),
    Mutant("what was paused goes on at the next event", SESSION + "session.py",
           "share = 2 if self._is_over_quota else 1", "share = 1", HUB + " " + CASES),
    Mutant("what was paused never goes on", SESSION + "desk.py",
           "            self._turns.acknowledged(session)\n", "", HUB),
    Mutant("what was paused is sampled again from its beginning", SESSION + "turns.py",
           '        request.state = "paused"\n', '        request.state = "paused"\n        request.ids.clear()\n', HUB),
    Mutant("a request waits for the quota for ever", SESSION + "turns.py",
           "if now_s - since_s >= self._state.settings.max_pause_s:", "if False:", CASES),
    Mutant("a paused generation outlives its ttl", SESSION + "turns.py",
           "for each in held if each.queue[0].is_started)]", "for each in held if False)]", CASES),
    Mutant("a compaction drops the record of an open request", SESSION + "session.py",
           "        needed = [each.record_n for each in self.queue]\n", "        needed: list[int] = []\n", HUB),
    Mutant("a compaction forgets a request whose end is not acknowledged", SESSION + "session.py",
           "        needed += [each.record_n for each in self.finished.unacknowledged.values()]\n", "", HUB),
    Mutant("a compaction drops what is not acknowledged", SESSION + "session.py",
           "mark = extent.cut(seq=self.floor, n=", "mark = extent.cut(seq=self.log.sendable, n=", CASES),
    Mutant("a compaction forgets requests without writing them to the ledger", SESSION + "session.py",
           "            finished=self.finished.ledger(),\n", "            finished=(),\n", HUB),
    Mutant("an observer that was overtaken is sent on with a gap", SESSION + "attachment.py",
           "            if seq != self.cursor + 1:\n                return None\n", "", CASES),
    Mutant("a snapshot that was overtaken is sent in part", SESSION + "attachment.py",
           "if next_seq > self.cursor + 1 and next_seq - 1 > snapshot.hole_seq:", "if False:", CASES),
    Mutant("a prompt sees every branch", SESSION + "conversation.py",
           "            leaf_id = message.parent_id\n", "            leaf_id = ([None, *self.messages])[list(self.messages).index(leaf_id)]\n", "tests/unit/session"),
    Mutant("a turn is kept twice after a crash", SESSION + "conversation.py",
           " or request.id in self._requests:", ":", HUB),
    Mutant("a turn that a crash cut off is not kept", SESSION + "shelf.py",
           "            self._turns.keep_turn(session, turn.request, turn.terminal)\n", "            pass\n", CASES),
    Mutant("a session expires while a generation runs", SESSION + "shelf.py",
           "if not waiting and not session.queue:", "if not waiting:", CASES),
    Mutant("a session expires though its client has just come back", SESSION + "shelf.py",
           "if not waiting and not session.queue:", "if not session.queue:", "tests/unit/session"),
    Mutant("a machine that was off lets sessions expire", SESSION + "state.py",
           "return self.settings.uptime_s + self.clock.monotonic() - self.started_s", "return self.clock.time()", "tests/unit/session"),
    Mutant("uptime begins anew with each start", SESSION + "state.py",
           "return self.settings.uptime_s + self.clock", "return self.clock", "tests/unit/session"),
    Mutant("a failed session's generation waits for a hello", SESSION + "shelf.py",
           "            if session.queue:\n                self._retries", "            if False:\n                self._retries", CASES),
    Mutant("the survey brings back a session that was ended meanwhile", SESSION + "directory.py",
           "        if not self.is_complete:\n            self._touched.add(session_id)\n", "", "tests/unit/session"),
    Mutant("an update is confirmed before it is safe", SESSION + "journal.py",
           "while self._replies and self._replies[0][0] <= self.settled:", "while self._replies:", "tests/unit/session"),
    Mutant("a snapshot gives the tail of an answer as its text", SESSION + "session.py",
           "for each in kept if each.start_seq > 0]", "for each in self.queue if each.start_seq > 0]", "tests/unit/session"),
    Mutant("a session is said to be gone before it is", SESSION + "state.py",
           "        if session.is_stored:\n            self.out.append(Delete", "        self.deleted(session.id)\n        if session.is_stored:\n            self.out.append(Delete", "tests/unit/session"),
    Mutant("the file is not read again after a congested pause", SESSION + "hub.py",
           "attachment.is_congested = False\n            self._state", "attachment.is_congested = True\n            self._state", "tests/unit/session"),
    # The process that renders prompts.
    Mutant("a prompt that takes too long is waited for", PROMPT + "process.py",
           "        ends_s = time.monotonic() + time_s\n", "        ends_s = None\n", RENDERER),
    Mutant("a job that ended one process is given to the next", PROMPT + "process.py",
           "raise (BrokenOffError if has_begun else NotBegunError)", "raise (NotBegunError)", RENDERER),
    Mutant("a process that dies while it is idle takes the next job with it", PROMPT + "process.py",
           "raise (BrokenOffError if has_begun else NotBegunError)", "raise (BrokenOffError)", RENDERER),
    Mutant("another job's answer is taken", PROMPT + "process.py", "if event.key != job.key:", "if False:", RENDERER),
    Mutant("more ids than the context holds are taken", PROMPT + "process.py",
           "0 < len(event.ids) < job.max_context", "0 < len(event.ids)", RENDERER),
    Mutant("the process is told the server's secrets", PROMPT + "process.py", "return {**kept,", "return {**os.environ,", RENDERER),
    Mutant("Ctrl-C in the terminal reaches the process", PROMPT + "process.py", "start_new_session=True", "start_new_session=False", RENDERER),
    Mutant("a killed process stays a zombie", PROMPT + "process.py",
           "            self._process.wait(REAP_TIMEOUT_S)\n", "            pass\n", RENDERER),
    Mutant("starts that fail follow each other without a pause", PROMPT + "renderer.py",
           "time.monotonic() + pause_s", "time.monotonic()", RENDERER),
    Mutant("close waits for the running job", PROMPT + "renderer.py",
           "            if self._process is not None:\n                self._process.kill()", "            pass", RENDERER),
    Mutant("any number of jobs may wait", PROMPT + "renderer.py", "queue.Queue(max_jobs)", "queue.Queue()", RENDERER),
    Mutant("a process whose code went wrong is used again", PROMPT + "renderer.py",
           "                    self._drop_process()  # what went wrong", "                    # what went wrong", RENDERER),
    Mutant("a frame of any size is read", PROMPT + "frames.py", "if size > limit_bytes:", "if False:", "tests/unit/prompt/test_frames.py"),
    Mutant("a busy process outlives a server that is killed", PROMPT + "confinement.py",
           "prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)", "prctl(_PR_SET_PDEATHSIG, 0)", RENDERER),
    Mutant("memory has no bound", PROMPT + "confinement.py", "        _lower(resource.RLIMIT_AS, memory_bytes)", "        pass",
           "tests/integration/prompt/test_confinement.py::test_memory_ends_at_the_bound"),
    Mutant("processor time has no bound", PROMPT + "confinement.py", "    signal.setitimer(signal.ITIMER_PROF, more_s)\n", "",
           "tests/integration/prompt/test_confinement.py::test_processor_time_is_given_anew_for_each_job"),
    Mutant("what a long prompt took is kept", PROMPT + "worker.py", "        give_memory_back()\n", "", RENDERER),
    Mutant("what a failed template took is kept", PROMPT + "worker.py", "        gc.collect()", "        # gc.collect()",
           "tests/integration/prompt/test_bombs.py"),
    Mutant("an id that the model does not have is sent to it", PROMPT + "render.py", "if ids and max(ids) >= model.vocab_size:", "if False:",
           "tests/unit/prompt/test_render.py"),
    Mutant("any number of large tokenizers is kept", PROMPT + "worker.py", "+ wanted_bytes > self._kept_bytes", "+ wanted_bytes < 0",
           "tests/unit/prompt/test_worker.py"),
    # The protocol's invariants, by number: the scene of each must notice.
    Mutant("1: a resume repeats an event", SESSION + "hub.py",
           "position = hello.resume.last_seq if", "position = max(session.floor, hello.resume.last_seq - 1) if", INVARIANT + "01_what_a_client_applied_is_a_contiguous_run_of_the_log"),
    Mutant("2: an acknowledgement does not open the window", SESSION + "session.py",
           "        self.send_due(now_s=now_s)\n        self.pump(attachment)\n", "        self.send_due(now_s=now_s)\n", INVARIANT + "02_with_time_enough_a_client_reaches_the_end"),
    Mutant("3: an event may be sent as soon as it is made", SESSION + "journal.py",
           "        self._unsettled.append((n, self.last_seq))\n", "        self.sendable = self.last_seq\n", INVARIANT + "03_nothing_is_sent_before_it_is_written"),
    Mutant("3: only some records are handed to the store", SESSION + "session.py",
           "append = journal.take()\n            if append is not None:", "append = journal.take()\n            if append is not None and append.sync:", INVARIANT + "03_what_was_sent_survives_a_kill"),
    Mutant("4: an opening keeps the epoch", SESSION + "recovery.py",
           "EventLog(opened.session_id, epoch=opened.epoch,", "EventLog(opened.session_id, epoch=opened.ends[-1][0],", INVARIANT + "04_a_name_never_stands_for_two_events"),
    Mutant("5: an older ack takes the floor back", SESSION + "session.py",
           "self.floor = max(self.floor, seq)", "self.floor = seq", INVARIANT + "05_the_floor_never_passes_the_owners_ack"),
    Mutant("5: an ack from beyond what was sent counts", SESSION + "desk.py",
           "if seq > max(attachment.seen, session.floor):", "if False:", INVARIANT + "05_the_floor_never_passes_the_owners_ack"),
    Mutant("6: a prompt that cannot be served has no end", SESSION + "turns.py",
           "if active := self._active.get(event.key):", "if active := None:", INVARIANT + "06_every_request_ends_once"),
    Mutant("6: the hash leaves white space out", SESSION + "request.py",
           "hashlib.sha256(self.text.encode())", "hashlib.sha256(self.text.strip().encode())", INVARIANT + "06_every_request_ends_once"),
    Mutant("7: a newer request overtakes", SESSION + "session.py",
           "self.queue.append(request)", "self.queue.insert(min(1, len(self.queue)), request)", INVARIANT + "07_requests_start_in_order_one_at_a_time"),
    Mutant("8: nobody looks whether an id is known", SESSION + "desk.py",
           "if self._is_known(session, attachment, request_id, digest):", "if False:", INVARIANT + "08_the_same_request_runs_once"),
    Mutant("8: what was acknowledged and dropped is forgotten", SESSION + "recovery.py",
           "FinishedRequests(key=opened.ledger_key, ledger=meta.finished)", "FinishedRequests(key=opened.ledger_key, ledger=())", INVARIANT + "08_the_same_request_runs_once"),
    Mutant("9: text that was sent is said again after a kill", SESSION + "request.py",
           "emitted_text=self.text,", 'emitted_text="",', INVARIANT + "09_kills_do_not_change_the_text"),
    Mutant("10: the window is one event too wide", SESSION + "attachment.py",
           "min(log.sendable, self._window_base + self.window)", "min(log.sendable, self._window_base + self.window + 1)", INVARIANT + "10_no_more_is_in_flight_than_the_window"),
    Mutant("10: every frame stays in memory", SESSION + "session.py",
           "self.log.trim(keep_bytes=TAIL_BYTES if self.attachment or self.observers else 0)", "self.log.trim(keep_bytes=2**40)", INVARIANT + "10_a_client_that_takes_nothing_costs_no_memory"),
    Mutant("11: the older connection goes on listening", SESSION + "session.py",
           'self._outbox.append(Disconnect(self.attachment.connection, CloseCode.TAKEN_OVER, "taken over"))', "self.observers[self.attachment.connection] = self.attachment", INVARIANT + "11_a_connection_that_was_taken_over_hears_and_does_nothing_more"),
    Mutant("12: any token will do", "llmws/server/door.py",
           "if isinstance(identity, Denied):", "if hello.auth is None:", INVARIANT + "12_a_stranger_hears_a_pong_one_error_and_a_close"),
    Mutant("12: any page may come in", "llmws/server/hosts.py",
           'if origin == f"http://{host}" or', "if origin or", INVARIANT + "12_a_foreign_page_hears_an_http_error"),
    Mutant("13: records are encoded and not encrypted", "llmws/store/record.py",
           "_base64(self._encrypt(_RECORD_NONCE + number, text, self._place + number))", "_base64(text)", INVARIANT + "13_the_disk_holds_no_word_of_prompt_or_answer"),
    Mutant("14: a line that was lost is passed over", "llmws/store/recovery.py",
           "else record.n == last_n + 1", "else record.n > last_n", INVARIANT + "14_whatever_the_bytes_a_log_opens_as_a_true_prefix"),
    Mutant("14: any damage is taken for a torn end", "llmws/store/recovery.py",
           "corrupt=bool(rest) and _holds_record(rest, keys, first_n, known)", "corrupt=False", INVARIANT + "14_whatever_the_bytes_a_log_opens_as_a_true_prefix"),
    Mutant("15: an expired session's id is kept", SESSION + "shelf.py",
           "Delete(session_id=session.id, keep_tombstone=False)", "Delete(session_id=session.id)", INVARIANT + "15_an_expired_session_leaves_nothing"),
    Mutant("15: nobody looks for what has expired", SESSION + "shelf.py",
           "            self._unasked.extend(fresh)\n", "", INVARIANT + "15_an_expired_session_leaves_nothing"),
    # What every engine promises.
    Mutant("an engine runs ahead of whoever listens", "llmws/engine/mailbox.py",
           "self._closed or len(self._steps) < self._capacity", "True", ENGINE + "test_an_engine_that_nobody_listens_to_stops"),
    Mutant("a take tells a request's steps one by one", "llmws/engine/mailbox.py",
           "            if at == len(merged):", "            if True:", ENGINE + "test_a_take_holds_one_chunk_of_a_request"),
    Mutant("a cancel is not heard", "llmws/engine/worker.py",
           "if self._running.pop(key, None) is not None and", "if self._running.get(key) is None and", ENGINE + "test_a_cancelled_stream_falls_silent_within_one_step"),
    Mutant("a failed load takes the old model with it", "llmws/engine/worker.py",
           "        if self._runner is not None or old is None or self._loader is None:\n            return old", "        return None", ENGINE + "test_a_failed_load_says_what_is_kept_and_that_goes_on"),
    Mutant("a load does not wait for what came before", "llmws/engine/worker.py",
           "if not self._running and not events:", "if True:", ENGINE + "test_loads_and_requests_keep_their_order"),
    Mutant("a continuation counts its tokens from zero", "llmws/engine/worker.py",
           "self._index = len(request.emitted_ids)", "self._index = 0", ENGINE + "test_a_stream_that_is_cut_at_any_token_goes_on_alike"),
]  # fmt: skip


STORE = "llmws/store/"
CRASHES = "tests/unit/store/test_crash_simulation.py"
FOLDER = "tests/unit/store/test_folder.py"
COMPACTION = "tests/unit/store/test_compaction.py"
ROTATION = "tests/unit/store/test_rotation.py"
STORE_MUTANTS = [
    Mutant("a sync that syncs nothing", STORE + "log.py",
           "        self._disk.sync(self._open(create=False))\n        if not", "        if not", CRASHES),
    Mutant("a new file's name is not made durable", STORE + "log.py",
           "            self._disk.sync_folder(self._path.parent)\n            self._name_durable", "            self._name_durable", CRASHES),
    Mutant("a draft is renamed before it is synced", STORE + "disk.py",
           "        disk.sync(handle)\n    finally:", "    finally:", CRASHES),
    Mutant("a rename is not made durable", STORE + "disk.py",
           "    disk.sync_folder(path.parent)\n", "", CRASHES),
    Mutant("the buffer is unlinked before meta says so", STORE + "folder.py",
           "        self.keep(session)\n        self._site.disk.unlink(_log_path(self._path, \"buffer\"))\n",
           "        self._site.disk.unlink(_log_path(self._path, \"buffer\"))\n        self.keep(session)\n", CRASHES),
    Mutant("a log is compacted before meta says so", STORE + "folder.py",
           "        self.keep(session)\n        log.compact()\n", "        log.sync()\n        log.compact()\n        self.keep(session)\n", CRASHES),
    Mutant("meta speaks of what is not durable", STORE + "folder.py",
           '        """Writes meta, and before it what meta speaks of. Raises OSError."""\n        self._sync()\n',
           '        """Writes meta, and before it what meta speaks of. Raises OSError."""\n', CRASHES),
    Mutant("after a short write the same numbers are sealed again under one key", STORE + "log.py",
           "            self._cipher = self._source.begin(self.last_n)\n            lines", "            lines", FOLDER),
    Mutant("every segment has the same salt", STORE + "log.py",
           "salt=self._random(SALT_BYTES)", "salt=bytes(SALT_BYTES)", CRASHES),
    Mutant("what a short write left is not cut off", STORE + "log.py",
           "            self._disk.truncate(self._open(create=True), self._size_bytes)\n", "", CRASHES),
    Mutant("a torn end is not cut off at the opening", STORE + "log.py",
           "            disk.truncate(handle, recovered.good_bytes)\n", "", CRASHES),
    Mutant("the last opening's epoch is used again", STORE + "folder.py",
           "max(*(epoch + 1 for epoch, _ in ends)", "max(*(epoch for epoch, _ in ends)", CRASHES),
    Mutant("meta is written at an opening before the logs are durable", STORE + "folder.py",
           "    try:\n        disk.sync(handle)\n    finally:", "    try:\n        pass\n    finally:", CRASHES),
    Mutant("after a failed sync the next one is believed", STORE + "folder.py",
           "    if had_failed:\n", "    if False:\n", CRASHES),
    Mutant("after a compaction the old file's handle is written to", STORE + "log.py",
           "        self.release()\n        adopt_draft", "        adopt_draft", CRASHES),
    Mutant("after a compaction reads begin where events were before", STORE + "log.py",
           "            self._index.cut(offset, cipher, gone_bytes)\n", "", CRASHES),
    Mutant("the marks of the index move, but not under the right key", STORE + "recovery.py",
           "            self._marks[gone] = (offset, cipher)\n", "            self._marks[gone] = (offset, self._marks[gone][1])\n", COMPACTION),
    Mutant("a log may begin with a record that it does not hold", STORE + "log.py",
           "        if not self.first_n <= first_n <= self.last_n:", "        if not self.first_n <= first_n:", "tests/contract/store"),
    Mutant("dropped records are read as long as they are in the file", STORE + "log.py",
           " or record.seq <= after_seq or record.n < self.first_n:", " or record.seq <= after_seq:", COMPACTION),
    Mutant("a gap before the first kept record is taken for a compaction", STORE + "recovery.py",
           "cipher.segment.base < record.n <= first_n if", "cipher.segment.base < record.n if", "tests/unit/store/test_recovery.py"),
    Mutant("a header whose tag or spelling differs is accepted", STORE + "record.py",
           "        if cipher is None or not hmac.compare_digest(cipher.header, line):", "        if cipher is None:", "tests/unit/store/test_recovery.py"),
    Mutant("a line is accepted in another spelling", STORE + "record.py",
           "        if n > _MAX_U64 or _RECORD % (n, _base64(sealed)) != line:", "        if n > _MAX_U64:", "tests/unit/store/test_record.py"),
    Mutant("a log shorter than what was durable is taken for whole", STORE + "folder.py",
           " or found[log].last_n < getattr(old, log).durable_n}", "}", FOLDER),
    Mutant("a log whose key is missing is cut down to nothing", STORE + "folder.py",
           "        site.keys.require(segment.kid)\n", "        pass\n", FOLDER),
    Mutant("a key is retired while a header names it", STORE + "rotation.py",
           "        kids.update(int(kid) for kid in headers)\n", "        pass\n", ROTATION),
    Mutant("a key is retired while meta names it", STORE + "rotation.py",
           '    kids = named_kids(read_whole(site.disk, folder / META_NAME) or b"")\n', "    kids = set[int]()\n", ROTATION),
    Mutant("a resealed conversation is not announced in meta", STORE + "folder.py",
           "            log.begin_over(kid)\n            self.write_meta(session)\n", "            log.begin_over(kid)\n", ROTATION),
    Mutant("the title stands in meta for all to read", STORE + "meta.py",
           "            session=msgspec.structs.replace(meta.session, title=None),\n        )\n    )", "            session=meta.session,\n        )\n    )", "tests/unit/store/test_meta.py"),
    Mutant("a title's length shows", STORE + "meta.py",
           '    text += b" " * (-len(text) % _BOX_BLOCK_BYTES)\n', "", "tests/unit/store/test_meta.py"),
    Mutant("the tombstone goes before it is certain that the files are gone", STORE + "folder.py",
           "    site.disk.sync_folder(site.sessions)\n    if not keep_tombstone:", "    if not keep_tombstone:", FOLDER),
    Mutant("an interrupted deletion is not finished", STORE + "folder.py",
           "intersection(site.disk.names(site.sessions)):\n        _remove(site, session_id)\n", "intersection(site.disk.names(site.sessions)):\n        pass\n", CRASHES),
    Mutant("at level disk, what is written is told before it is synced", STORE + "writer.py",
           "            if self._sync_all:\n", "            answers.extend(_progress(lane, log) for log in records)\n            if self._sync_all:\n", "tests/contract/store/test_files.py"),
    Mutant("at level disk only what asks for it is synced", STORE + "writer.py",
           'self._sync_all = durability == "disk"', "self._sync_all = False", "tests/contract/store/test_files.py"),
]  # fmt: skip
MUTANTS += STORE_MUTANTS


def main() -> int:
    """Runs every mutant and returns 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/mutants.md")
    parser.add_argument("--only", default="", metavar="TEXT", help="only those whose file's path contains this")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="llmws-mutants-") as name:
        copy = Path(name)
        for part in ("llmws", "llm_cli", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for mutant in (each for each in MUTANTS if options.only in each.file):
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
