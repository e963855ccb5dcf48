"""One-time codes: once, within ten minutes, and not without bound."""

from llmws.access import Identity
from llmws.server.codes import LIFETIME_S, MAX_CODES, Codes

OWNER = Identity("local", "admin")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_code_lets_in_once() -> None:
    codes = Codes(clock=Clock())
    code = codes.mint(OWNER)
    assert [codes.redeem("another"), codes.redeem(code), codes.redeem(code)] == [None, OWNER, None]


def test_a_code_lasts_ten_minutes() -> None:
    clock = Clock()
    codes = Codes(clock=clock)
    early, late = codes.mint(OWNER), codes.mint(OWNER)
    clock.now_s += LIFETIME_S - 1
    assert codes.redeem(early) == OWNER
    clock.now_s += 1
    assert codes.redeem(late) is None


def test_of_too_many_the_oldest_goes() -> None:
    codes = Codes(clock=Clock())
    minted = [codes.mint(OWNER) for _ in range(MAX_CODES + 1)]
    assert [codes.redeem(code) for code in minted] == [None, *[OWNER] * MAX_CODES]


def test_codes_cannot_be_guessed() -> None:
    codes = Codes(clock=Clock())
    minted = {codes.mint(OWNER) for _ in range(100)}
    assert len(minted) == 100
    assert {len(code) for code in minted} == {43}  # 256 bits
