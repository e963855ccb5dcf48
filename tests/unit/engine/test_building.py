"""A network that is built without end is not built to its end."""

from __future__ import annotations

import pytest
import torch

from llmws.engine.building import MAX_CPU_S, MAX_MADE_BYTES, MAX_MODULES, bounded_building
from llmws.errors import ModelInvalidError


def test_modules_are_counted() -> None:
    owner, one = torch.nn.Module(), torch.nn.Module()
    with bounded_building():
        for _ in range(MAX_MODULES):
            owner.one = one
        with pytest.raises(ModelInvalidError, match="its network has more than 16384 modules"):
            owner.one = one
    owner.one = one


def test_a_building_takes_so_much_time_at_most() -> None:
    now_s = [5.0]
    owner = torch.nn.Module()
    with bounded_building(clock=lambda: now_s[0]):
        now_s[0] += MAX_CPU_S
        owner.one = torch.nn.Module()
        now_s[0] += 0.1
        with pytest.raises(ModelInvalidError, match="its network takes more than 10 s to build"):
            owner.two = torch.nn.Module()


def test_what_is_made_in_spite_of_the_meta_device_is_counted() -> None:
    """A tensor with a stride of nothing takes no memory here."""
    half = torch.empty(1).expand(MAX_MADE_BYTES // 2 // 4)
    owner = torch.nn.Module()
    with bounded_building():
        owner.register_buffer("meta", torch.empty(MAX_MADE_BYTES, device="meta"))
        owner.register_buffer("one", half)
        owner.register_buffer("two", half)
        with pytest.raises(ModelInvalidError, match="its network takes more than 1073741824 bytes beside its weights"):
            owner.register_buffer("three", half)
