"""All targets."""

from __future__ import annotations

from typing import Final

from tests.fuzz.doors import DOORS
from tests.fuzz.models import MODELS
from tests.fuzz.stored import STORED
from tests.fuzz.target import Target
from tests.fuzz.wire import WIRE

TARGETS: Final[dict[str, Target]] = {each.name: each for each in (*WIRE, *DOORS, *STORED, *MODELS)}
