"""The pages of one pool: who refers to them, and what is still in those that nobody refers to.

Knows neither streams nor tensors: a page is a number, its content a name. Invariant: a page is plain (nothing worth
keeping), referred to, or idle (named, and referred to by nobody), and exactly one of these.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Hashable, Sequence

NULL_PAGE = 0
"""Never handed out: writes that nobody reads go there, and tables hold it where a page slid out of the window."""

_DIGEST_BYTES = 16


class PagePool:
    """Reference-counted pages, the contents of some of which can be found by name.

    Args:
        pages: how many; their ids are 1 to this.
    """

    def __init__(self, pages: int) -> None:
        self._plain = list(range(pages, NULL_PAGE, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self._references = [0] * (pages + 1)
        self._names: list[Hashable | None] = [None] * (pages + 1)
        self._named: dict[Hashable, int] = {}

    @property
    def free_pages(self) -> int:
        """Pages that `allocate` can hand out, idle ones included."""
        return len(self._plain) + len(self._idle)

    def allocate(self) -> int:
        """A page with one reference, its content arbitrary. An idle one is forgotten only where none is plain.

        Raises:
            RuntimeError: every page is referred to.
        """
        if self._plain:
            page = self._plain.pop()
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            del self._named[self._names[page]]
            self._names[page] = None
        else:
            raise RuntimeError("no page is free")
        self._references[page] = 1
        return page

    def retain(self, page: int) -> None:
        """Adds a reference to a page that was found.

        Raises:
            ValueError: it is plain, so nobody knows what is in it.
        """
        if not self._references[page] and self._names[page] is None:
            raise ValueError(f"page {page} holds nothing")
        self._idle.pop(page, None)
        self._references[page] += 1

    def release(self, page: int) -> None:
        """Takes a reference away; after the last one a named page is idle, any other one plain.

        Raises:
            ValueError: nobody refers to it.
        """
        if not self._references[page]:
            raise ValueError(f"nobody refers to page {page}")
        self._references[page] -= 1
        if not self._references[page]:
            if self._names[page] is None:
                self._plain.append(page)
            else:
                self._idle[page] = None

    def references(self, page: int) -> int:
        """How many refer to it."""
        return self._references[page]

    def remember(self, page: int, name: Hashable) -> None:
        """Makes the content of a page findable, which must not change from now on.

        Where another page has the same content already, that one goes on being found.
        """
        if name not in self._named and self._names[page] is None:
            self._named[name] = page
            self._names[page] = name

    def find(self, name: Hashable) -> int | None:
        """The page with that content; it stays there for sure only once it is retained."""
        return self._named.get(name)


def root(owner: str) -> bytes:
    """What an owner's chains begin with: the same tokens have other digests for everybody else."""
    return hashlib.blake2b(owner.encode(), digest_size=_DIGEST_BYTES).digest()


def chain(parent: bytes, ids: Sequence[int]) -> bytes:
    """Names a page by all tokens up to its last one.

    Source: PagedAttention (arXiv:2309.06180), 4.4, as a chain: what is before the page comes in as one digest.

    Args:
        parent: digest of the page before, of the first one `root`.
        ids: the page's tokens.
    """
    return hashlib.blake2b(array("q", ids).tobytes(), key=parent, digest_size=_DIGEST_BYTES).digest()
