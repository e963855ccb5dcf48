"""How `make bench-engine` asks and compares, without asking anybody."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.engines import comparing, model
from bench.engines.contestants import GENERATE, LLAMA, LLMWS, SERVE, SERVER
from bench.engines.gguf_file import interleaved
from bench.engines.remote import Answer
from bench.engines.workload import FULL, TINY, prompts
from bench.figures import Figure, Report


def answer(cpu_s: float, *, tokens: int = 100) -> Answer:
    return Answer(value=[list(range(tokens))], cpu_s=cpu_s, wall_s=0.0)


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    return {each.name: each for each in figures}


def test_ratios_pair_the_runs_of_one_round() -> None:
    found = comparing.figures(
        {
            (GENERATE, 1): [answer(5.0), answer(10.0), answer(2.0)],
            (LLMWS, 1): [answer(4.0), answer(5.0), answer(4.0)],
        }
    )
    assert by_name(found)["llmws, 1 stream, over generate() one after another"] == Figure(
        name="llmws, 1 stream, over generate() one after another",
        unit="x",
        value=1.25,
        low=0.5,
        high=2.0,
        runs=3,
        bound=">=",
        target=1.0,
        met=True,
    )


def test_many_streams_are_compared_with_one_after_another_and_with_one_batch() -> None:
    found = comparing.figures({(GENERATE, 1): [answer(8.0)], (GENERATE, 8): [answer(2.0)], (LLMWS, 8): [answer(1.0)]})
    assert {name: each.value for name, each in by_name(found).items() if each.unit == "x"} == {
        "llmws, 8 streams, over generate() one after another": 8.0,
        "llmws, 8 streams, over generate() of one batch": 2.0,
    }


def test_the_server_has_a_tenth_for_itself() -> None:
    found = comparing.figures({(LLMWS, 1): [answer(0.8)], (SERVER, 1): [answer(1.0)]})
    assert by_name(found)["llmws serve, 1 stream, over the bare engine"].met is False


def test_who_is_asked_once_is_compared_with_the_first_round() -> None:
    found = by_name(comparing.figures({(SERVE, 1): [answer(3.0)], (SERVER, 1): [answer(1.0), answer(9.0)]}))
    ratio = found["llmws serve, 1 stream, over transformers serve"]
    assert (ratio.value, ratio.runs) == (3.0, 1)


def test_one_stream_with_other_tokens_is_a_target_missed() -> None:
    wrong = Answer(value=[[1, 2], [1, 3]], cpu_s=1.0, wall_s=0.0)
    right = Answer(value=[[1, 2], [1, 2]], cpu_s=1.0, wall_s=0.0)
    found = by_name(comparing.figures({(GENERATE, 2): [right, right], (LLMWS, 2): [right, wrong]}))
    equality = found["streams with every token of generate(): llmws"]
    assert (equality.value, equality.met) == (0.75, False)


def test_an_absent_llama_is_the_last_one_that_was_kept_and_the_name_says_so(tmp_path: Path) -> None:
    for date, rate in (("2026-01-02", 50.0), ("2026-01-03", 40.0)):
        figures = [Figure(name="llama.cpp, 1 stream", unit="", value=rate, low=rate, high=rate, runs=1)]
        (tmp_path / f"{date}-some-host-engine.json").write_bytes(msgspec.json.encode(report(date, figures)))
    (tmp_path / "2026-01-04-some-host-engine.json").write_bytes(msgspec.json.encode(report("2026-01-04", [])))

    kept = comparing.kept(LLAMA, tmp_path)
    found = comparing.figures({(LLMWS, 1): [answer(5.0)]}, kept_llama=kept)

    assert kept == comparing.Kept("2026-01-03", {1: 40.0})
    assert by_name(found)["llmws, 1 stream, over llama.cpp as kept from 2026-01-03"].value == 0.5


def test_nothing_was_kept(tmp_path: Path) -> None:
    assert comparing.kept(LLAMA, tmp_path) is None


def report(date: str, figures: list[Figure]) -> Report:
    return Report(
        at=f"{date}T00:00:00+00:00",
        host="some-host",
        llmws="0",
        commit=None,
        versions={},
        load_average_before=(0.0, 0.0, 0.0),
        took_s=1.0,
        figures=figures,
    )


def test_prompts_are_the_same_for_all_who_ask_by_one_name_and_come_once() -> None:
    asked = [tuple(each) for name in ("round 0", "round 1") for each in prompts(FULL, name=name, streams=8, tokens=128)]
    assert prompts(FULL, name="round 0", streams=8, tokens=128) == [list(each) for each in asked[:8]]
    assert len(set(asked)) == 16


def test_the_model_has_a_hundred_and_seven_million_parameters() -> None:
    assert round(model.parameters(FULL.shape) / 1e6) == 107


def test_the_weights_are_those_of_the_shape(tmp_path: Path) -> None:
    model.write(tmp_path / "model", TINY.shape)
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert size == pytest.approx(4 * model.parameters(TINY.shape), rel=0.01)


def test_rotating_neighbours_of_interleaved_rows_is_rotating_halves() -> None:
    heads, dim, columns = 2, 6, 4
    chance = np.random.default_rng(0)
    weight, vector = chance.standard_normal((heads * dim, columns)), chance.standard_normal(columns)
    cosine, sine = np.cos([0.3, 0.7, 1.1]), np.sin([0.3, 0.7, 1.1])

    halves = (weight @ vector).reshape(heads, 2, dim // 2)
    first, second = halves[:, 0], halves[:, 1]
    by_halves = np.stack([first * cosine - second * sine, second * cosine + first * sine], axis=1)
    pairs = (interleaved(weight, heads) @ vector).reshape(heads, dim // 2, 2)
    first, second = pairs[:, :, 0], pairs[:, :, 1]
    by_neighbours = np.stack([first * cosine - second * sine, second * cosine + first * sine], axis=1)

    np.testing.assert_allclose(by_neighbours, by_halves)
