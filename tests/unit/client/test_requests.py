"""Requests from what a caller gives."""

import pytest

from llmws.client.requests import prompt, sampling
from llmws.protocol import decode, encode
from llmws.protocol import messages as m


def test_sampling_is_laid_over_other_sampling():
    assert sampling({"top_k": 3}, over=m.Sampling(top_k=1, seed=2)) == m.Sampling(top_k=3, seed=2)


def test_sampling_goes_over_the_wire_like_any_other():
    assert decode(encode(m.Config(data=sampling({"top_k": 3}))).decode()) == m.Config(data=m.Sampling(top_k=3))


@pytest.mark.parametrize(
    ("fields", "message"), [({"temprature": 1}, "temprature"), ({"top_p": 2.0}, "top_p: Expected")]
)
def test_wrong_sampling_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        sampling(fields)


def test_the_prompt_takes_its_shortest_form():
    assert prompt("hi", None, None) == "hi"
    assert prompt("hi", "", None) == m.Prompt(user="hi", system="")
