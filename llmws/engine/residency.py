"""Which models may be in memory side by side, which must go, and whose memory for streams is given back.

Integers and names only: knows neither torch nor runners. A model's weights stay while it is resident; its *pool*, the
memory for its streams, opens with a request and is closed when another model needs it. Invariant: the weights of the
residents of a device and the largest need of any of them are within the budget, so that each can serve its longest
context once the others are idle: a promised context is never taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes of its devices.

    Attributes:
        name: of the model.
        devices: where it is.
        budget_bytes: of these devices, for all models together.
        held_bytes: its weights.
        need_bytes: beside them, for one stream of its longest context.
        pool_bytes: set aside for its streams now.
        is_busy: whether any are on.
    """

    name: str
    devices: tuple[str, ...]
    budget_bytes: int
    held_bytes: int
    need_bytes: int
    pool_bytes: int = 0
    is_busy: bool = False


class Room(msgspec.Struct, frozen=True):
    """What makes room.

    Attributes:
        unload: models that go.
        close: models that stay and give their pools back.
        waits: whether any of these is busy: nothing is done before they have drained.
    """

    unload: tuple[str, ...] = ()
    close: tuple[str, ...] = ()
    waits: bool = False


def room_for_model(newcomer: Claim, others: Sequence[Claim]) -> Room:
    """What makes room for a model's weights.

    Idle models go before busy ones, and the least recently used first.

    Args:
        newcomer: the model; its budget counts.
        others: the residents, the least recently used first.
    """
    staying = _neighbours(newcomer, others)
    leaving: list[Claim] = []
    for other in _idle_first(staying):
        if _may_share(newcomer, staying):
            break
        staying.remove(other)
        leaving.append(other)
    closing = _closing(staying, newcomer.budget_bytes - newcomer.held_bytes - _held(staying))
    return _room(leaving, closing)


def room_for_streams(model: Claim, others: Sequence[Claim]) -> Room:
    """What makes room for the pool of a resident model.

    Args:
        model: whose pool is closed.
        others: the other residents, the least recently used first.
    """
    neighbours = _neighbours(model, others)
    return _room([], _closing(neighbours, model.budget_bytes - _held([model, *neighbours]) - model.need_bytes))


def pool_budget(model: Claim, others: Sequence[Claim]) -> int:
    """Bytes that a model's pool may take once there is room: what is free, at least its need.

    Where that leaves enough, the needs of neighbours whose pools are closed are spared, so that their requests need not
    wait until this model is idle.
    """
    neighbours = _neighbours(model, others)
    free = model.budget_bytes - _held([model, *neighbours]) - sum(each.pool_bytes for each in neighbours)
    spared = sum(each.need_bytes for each in neighbours if not each.pool_bytes)
    return max(model.need_bytes, free - spared)


def _neighbours(model: Claim, others: Iterable[Claim]) -> list[Claim]:
    return [other for other in others if set(other.devices) & set(model.devices)]


def _may_share(newcomer: Claim, staying: Sequence[Claim]) -> bool:
    """Whether these can live together. One that is spread over devices shares them with nobody."""
    if not staying:
        return True
    if any(len(each.devices) > 1 for each in (newcomer, *staying)):
        return False
    together = [newcomer, *staying]
    return _held(together) + max(each.need_bytes for each in together) <= newcomer.budget_bytes


def _closing(neighbours: Sequence[Claim], available_bytes: int) -> list[Claim]:
    """Whose pools close so that all open ones are within these bytes."""
    excess = sum(each.pool_bytes for each in neighbours) - available_bytes
    closing: list[Claim] = []
    for each in _idle_first([each for each in neighbours if each.pool_bytes]):
        if excess <= 0:
            break
        closing.append(each)
        excess -= each.pool_bytes
    return closing


def _room(leaving: Sequence[Claim], closing: Sequence[Claim]) -> Room:
    return Room(
        unload=tuple(each.name for each in leaving),
        close=tuple(each.name for each in closing),
        waits=any(each.is_busy for each in (*leaving, *closing)),
    )


def _idle_first(claims: Iterable[Claim]) -> list[Claim]:
    return sorted(claims, key=lambda each: each.is_busy)


def _held(claims: Iterable[Claim]) -> int:
    return sum(each.held_bytes for each in claims)
