"""Faults that the lanes of storage and process faults must notice."""

from mutants.planted import Mutant

STORE = "llmws/store/"
TAMPERING = "tests/faults/test_tampering.py"
CLOCK = "tests/faults/test_clock.py"
DISK_FAILS = "tests/faults/test_disk_fails.py"
OLD_COPY = "tests/faults/test_old_copy.py"

MUTANTS = [
    Mutant("a header may be repeated", STORE + "recovery.py",
           "ciphers.get(cipher) != segment.base", "ciphers.get(cipher, segment.base) != segment.base", TAMPERING + "::test_lines_in_any_other_order_leave_a_true_prefix"),
    Mutant("a record may follow any other", STORE + "recovery.py",
           "record.n == last_n + 1", "record.n > last_n", TAMPERING + "::test_lines_in_any_other_order_leave_a_true_prefix"),
    Mutant("a record is not bound to its segment", STORE + "record.py",
           'salt=segment.salt, info=self._place)', 'salt=bytes(SALT_BYTES), info=self._place)', TAMPERING + "::test_lines_from_elsewhere_leave_a_true_prefix"),
    Mutant("a header's tag is not looked at", STORE + "record.py",
           "not hmac.compare_digest(cipher.header, line)", "cipher.header[:-30] != line[:-30]", TAMPERING + "::test_every_flipped_bit_of_a_log_leaves_a_true_prefix"),
    Mutant("what is authentic after a bad line is not looked for", STORE + "recovery.py",
           "corrupt=bool(rest) and _holds_record(rest, keys, first_n, known)", "corrupt=False", TAMPERING + "::test_every_flipped_bit_of_a_log_leaves_a_true_prefix"),
    Mutant("a durable end that is gone is not missed", STORE + "folder.py",
           "if found[log].corrupt or found[log].last_n < getattr(old, log).durable_n}", "if found[log].corrupt}", TAMPERING + "::test_a_clean_end_that_lacks_what_was_on_the_disk_for_certain_is_told"),
    Mutant("meta is believed without its MAC", STORE + "meta.py",
           "    if not hmac.compare_digest(_mac(form[3], kid, session, keys), form[2]):\n", "    if False:\n", TAMPERING + "::test_every_flipped_bit_of_meta_is_refused"),
    Mutant("an epoch is the wall clock's time, whatever it was before", STORE + "folder.py",
           "epoch = max(*(epoch + 1 for epoch, _ in ends), site.now_ms())", "epoch = site.now_ms()", CLOCK),
    Mutant("a position beyond its epoch's end is gone on from", "llmws/session/session.py",
           "        if position.last_seq > ends[position.epoch]:\n", "        if False:\n", OLD_COPY),
    Mutant("a position of an epoch that never was is gone on from", "llmws/session/session.py",
           "        if position.epoch not in ends:\n", "        ends.setdefault(position.epoch, position.last_seq)\n        if False:\n", OLD_COPY),
    Mutant("a client is not told that its log was tampered with", "llmws/session/session.py",
           "        if position.epoch < self.corrupt_epoch:\n", "        if False:\n", TAMPERING + "::test_a_client_whose_log_was_tampered_with_is_told"),
    Mutant("a short write is taken for a whole one", STORE + "log.py",
           '        if self._disk.write(self._open(create=True), data) != len(data):\n            raise OSError(errno.ENOSPC, "the disk is full")\n',
           "        self._disk.write(self._open(create=True), data)\n", DISK_FAILS + "::test_a_server_that_can_write_nothing_at_all_lives_and_goes_on_when_it_can"),
    Mutant("a client is sent away from a failed disk without a reason", "llmws/session/state.py",
           "        self.reject(connection, ErrorCode.STORAGE_FAILED, message)\n", "", DISK_FAILS),
    Mutant("the tokens of a killed process are not taken up", "llmws/session/recovery.py",
           "                request.add(event.ids, event.data, now_s=self._now_s)\n", "                pass\n", "tests/faults/test_kill_moments.py::test_killed_again_and_again_in_one_request"),
    Mutant("a key is retired that meta names", STORE + "rotation.py",
           "        if count := references(site)[kid]:\n", "        if count := 0:\n", "tests/faults/test_rotation.py"),
]  # fmt: skip
