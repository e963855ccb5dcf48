"""Sampling in layers, identity of requests, and what a continued request asks of the engine."""

import hashlib

from llmws.engine.scripted import model_info
from llmws.protocol import messages as m
from llmws.session.records import PromptBody, request_digest
from llmws.session.request import Request, merge, resolve
from tests.support.stages import GUIDE


def test_the_first_layer_that_sets_a_field_wins():
    session = m.Sampling(temperature=0.5, top_k=10)
    defaults = m.Sampling(temperature=0.7, top_p=0.9, max_new_tokens=100)
    assert merge(m.Sampling(temperature=0.0), session, defaults) == m.Sampling(
        temperature=0.0, top_k=10, top_p=0.9, max_new_tokens=100
    )


def test_resolved_sampling_has_a_seed_and_a_list_of_stops():
    assert resolve(m.Sampling(stop="x"), None, seed=3) == m.Sampling(stop=["x"], seed=3)
    assert resolve(m.Sampling(seed=0), None, seed=3) == m.Sampling(stop=[], seed=0)


def test_the_same_question_has_the_same_digest_whatever_its_id():
    one = m.Inference(request_id="a", prompt="hi")
    assert request_digest(one) == request_digest(m.Inference(request_id="b", prompt="hi"))
    assert request_digest(one) != request_digest(m.Inference(request_id="a", prompt="ho"))


def test_a_continued_request_brings_its_tokens_and_its_text():
    request = Request(
        message=m.Inference(prompt="hi"),
        request_id="a",
        digest=b"",
        sampling=m.Sampling(seed=1),
        accepted_s=0.0,
        accepted_unix_s=7.0,
    )
    request.prompt = PromptBody(
        request_id="a",
        ids=[5, 6],
        max_tokens=9,
        model="m",
        model_digest="d",
        tokenizer_digest="t",
        engine="e/1",
        device="cpu",
        dtype="float32",
    )
    request.add((1, 2), "Hé", now_s=1.0)
    request.add((3,), "", now_s=2.0)
    request.submitted(now_s=2.0)
    generation = request.generation(model_info(GUIDE), owner="ann")
    assert (generation.prompt_ids, generation.emitted_ids, generation.emitted_text) == ((5, 6), (1, 2, 3), "Hé")
    assert (generation.model, generation.owner, generation.max_new_tokens) == (GUIDE, "ann", 9)
    assert request.done("stop", now_s=3.0).text_sha256 == hashlib.sha256("Hé".encode()).hexdigest()
