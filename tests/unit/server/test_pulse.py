"""Who is alive: each beat as (bytes written so far, bytes unsent, a sign since the last) and the verdict."""

import pytest

from llmws.server.pulse import Pulse


@pytest.mark.parametrize(
    ("beats", "expected"),
    [
        pytest.param([(100, 0, False)], [True], id="the first beat asks, it does not judge"),
        pytest.param([(100, 0, False), (102, 0, False)], [True, False], id="no answer to a ping"),
        pytest.param([(0, 0, False), (2, 0, True), (4, 0, True)], [True, True, True], id="an answer to every ping"),
        pytest.param([(0, 0, False), (2, 0, True), (4, 0, False)], [True, True, False], id="one answer does not last"),
        pytest.param([(90, 50, False), (92, 20, False)], [True, True], id="a full socket takes more"),
        pytest.param([(90, 50, False), (92, 0, False), (94, 0, False)], [True, True, False], id="and once more only"),
        pytest.param([(90, 50, False), (290, 80, False)], [True, True], id="it took more and was filled again"),
        pytest.param([(90, 50, False), (92, 52, False)], [True, False], id="a full socket stands still"),
        pytest.param([(90, 0, False), (92, 0, False)], [True, False], id="an empty socket proves nothing"),
        pytest.param([(90, 0, False), (5000, 0, False)], [True, False], id="the kernel takes data for a dead client"),
    ],
)
def test_beats(beats: list[tuple[int, int, bool]], expected: list[bool]) -> None:
    pulse, actual = Pulse(), []
    for written_bytes, unsent_bytes, sign in beats:
        if sign:
            pulse.sign()
        actual.append(pulse.beat(written_bytes=written_bytes, unsent_bytes=unsent_bytes))
    assert actual == expected
