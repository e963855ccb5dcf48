"""The pages of a pool: a page is plain, referred to, or idle and findable."""

import pytest

from llmws.engine.pages import PagePool, chain, root


def test_every_page_is_handed_out_once_and_the_null_page_never():
    pool = PagePool(3)

    assert [pool.allocate() for _ in range(3)] == [1, 2, 3]
    assert pool.free_pages == 0
    with pytest.raises(RuntimeError, match="no page is free"):
        pool.allocate()


def test_a_page_without_a_name_is_plain_again_once_nobody_refers_to_it():
    pool = PagePool(2)
    page = pool.allocate()

    pool.release(page)

    assert pool.free_pages == 2
    with pytest.raises(ValueError, match="nobody refers to page 1"):
        pool.release(page)
    with pytest.raises(ValueError, match="page 1 holds nothing"):
        pool.retain(page)


def test_a_named_page_is_found_after_the_last_reference_went():
    pool = PagePool(2)
    page = pool.allocate()
    pool.remember(page, "once upon")
    pool.release(page)
    assert pool.free_pages == 2

    assert pool.find("once upon") == page
    pool.retain(page)

    assert pool.references(page) == 1
    assert pool.free_pages == 1


def test_a_shared_page_is_free_when_the_last_one_lets_go():
    pool = PagePool(1)
    page = pool.allocate()
    pool.remember(page, "shared")
    pool.retain(page)

    pool.release(page)
    assert pool.free_pages == 0
    pool.release(page)
    assert pool.free_pages == 1


def test_plain_pages_go_before_idle_ones_and_those_in_order_of_their_release():
    pool = PagePool(4)
    pages = [pool.allocate() for _ in range(4)]
    for page in pages[:3]:
        pool.remember(page, f"text {page}")
    for page in (2, 4, 1, 3):
        pool.release(page)

    assert [pool.allocate() for _ in range(3)] == [4, 2, 1]
    assert [pool.find(f"text {page}") for page in (1, 2, 3)] == [None, None, 3]


def test_use_makes_an_idle_page_recent():
    pool = PagePool(2)
    for page in (pool.allocate(), pool.allocate()):
        pool.remember(page, f"text {page}")
        pool.release(page)

    pool.retain(1)
    pool.release(1)

    assert pool.allocate() == 2
    assert pool.find("text 1") == 1


def test_an_evicted_page_can_get_another_name():
    pool = PagePool(1)
    pool.remember(pool.allocate(), "old")
    pool.release(1)

    pool.remember(pool.allocate(), "new")

    assert (pool.find("old"), pool.find("new")) == (None, 1)


def test_the_first_of_two_equal_pages_goes_on_being_found():
    pool = PagePool(2)
    one, other = pool.allocate(), pool.allocate()
    pool.remember(one, "twice")
    pool.remember(other, "twice")

    pool.release(other)

    assert pool.find("twice") == one
    assert pool.allocate() == other, "it is plain"


def test_a_page_keeps_its_first_name():
    pool = PagePool(1)
    page = pool.allocate()
    pool.remember(page, "first")
    pool.remember(page, "second")

    assert (pool.find("first"), pool.find("second")) == (page, None)


def test_a_page_is_named_by_owner_and_all_tokens_up_to_its_last():
    names = {
        chain(root("ann"), [1, 2]),
        chain(root("bob"), [1, 2]),
        chain(root("ann"), [2, 1]),
        chain(chain(root("ann"), [1, 2]), [1, 2]),
        chain(chain(root("ann"), [3, 2]), [1, 2]),
        chain(root("ann"), [2**32 + 1, 2]),
    }

    assert len(names) == 6
    assert chain(root("ann"), (1, 2)) == chain(root("ann"), [1, 2])
