"""Every target over its committed corpus, and over what hypothesis makes of it."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutation import mutated
from tests.fuzz.target import CORPUS, corpus_of
from tests.fuzz.targets import TARGETS

MAX_FILES = 500
MAX_CORPUS_BYTES = 2**20


@pytest.mark.parametrize("name", TARGETS)
def test_no_known_input_breaks_a_promise(name):
    for data in corpus_of(name):
        TARGETS[name].run(data)


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_that_is_nearly_right_breaks_a_promise(name):
    target, corpus = TARGETS[name], corpus_of(name)
    seeds = st.sampled_from(range(len(corpus)))  # by number: what hypothesis prints is then short

    @given(one=seeds, other=seeds, seed=st.integers(0, 2**32))
    def check(one: int, other: int, seed: int) -> None:
        target.run(mutated(corpus[one], corpus[other], Random(seed), max_bytes=target.max_bytes))

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_no_bytes_break_a_promise(name):
    @given(data=st.binary(max_size=256))
    def check(data: bytes) -> None:
        TARGETS[name].run(data)

    check()


def test_the_corpus_is_small_and_every_part_of_it_has_a_target():
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert len(files) <= MAX_FILES
    assert sum(path.stat().st_size for path in files) <= MAX_CORPUS_BYTES
