"""What the codec takes, what it refuses and in which words."""

from __future__ import annotations

import contextlib
import json
import string
import time
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import msgspec.inspect as mi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmws.protocol import ErrorCode, FrameError, decode, decode_server, encode
from llmws.protocol import messages as m
from llmws.protocol.codec import MAX_DEPTH

CLIENT = get_args(m.ClientMessage)
SERVER = get_args(m.ServerMessage)


def refusal(frame: str | bytes, *, first: bool = False) -> FrameError:
    with pytest.raises(FrameError) as caught:
        decode(frame, first=first)
    return caught.value


def code(frame: str | bytes) -> str:
    return refusal(frame).code.value


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_a_message_is_decoded_to_its_type() -> None:
    frame = (
        '{"type":"inference","request_id":"r-9","prompt":{"user":"hi"},"config":{"temperature":1,"stop":"x"},"new":[1]}'
    )
    expected = m.Inference(request_id="r-9", prompt=m.Prompt(user="hi"), config=m.Sampling(temperature=1.0, stop="x"))
    assert decode(frame) == expected


@pytest.mark.parametrize("frame", ["{}", " \r\n\t{ } ", '{"new":1}', '{"session_id":null}', '{"type":"hello"}'])
def test_the_first_frame_may_leave_its_type_out(frame: str) -> None:
    assert decode(frame, first=True) == m.Hello()


def test_a_first_frame_without_type_keeps_its_fields() -> None:
    frame = '\n {"resume": {"epoch": 3, "last_seq": 4711}, "session_id": "S"}'
    assert decode(frame, first=True) == m.Hello(session_id="S", resume=m.Position(epoch=3, last_seq=4711))


@pytest.mark.parametrize("field", ["request_id", "model", "prompt", "messages", "config", "ttl_s", "input_ids"])
def test_null_is_the_same_as_absent(field: str) -> None:
    assert decode(f'{{"type":"inference","{field}":null}}') == m.Inference()


def test_of_a_repeated_field_the_last_value_counts_and_all_must_be_valid() -> None:
    assert decode('{"type":"ack","seq":1,"seq":2}') == m.Ack(seq=2)
    assert refusal('{"type":"ack","seq":-1,"seq":2}').field == "seq"


@pytest.mark.parametrize("types", [("ping", "hello"), ("hello", "ping"), ("ping", "nonsense"), ("ack", "cancel")])
def test_two_different_types_are_refused(types: tuple[str, str]) -> None:
    assert code('{{"type":"{}","type":"{}"}}'.format(*types)) in {"bad_message", "bad_request", "unknown_type"}


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ("", "the frame is not a JSON object"),
        ("hello", "the frame is not a JSON object"),
        ("[]", "the frame is not a JSON object"),
        ("null", "the frame is not a JSON object"),
        ('{"type":"ping"', "the frame is not a JSON object"),
        ('{"type":"ping"} {}', "the frame is not a JSON object"),
        ('{"type":"ping","t":NaN}', "the frame is not a JSON object"),
        ('{"type":"ping","new":NaN}', "the frame is not a JSON object"),
        ('{"type":"ping","new":Infinity}', "the frame is not a JSON object"),
        ('{"type":"ping","new":01}', "the frame is not a JSON object"),
        ('{"type":"ping","new":"\\ud800"}', "the frame is not a JSON object"),
        ('{"type":"ping","new":"\\q"}', "the frame is not a JSON object"),
        ('{"type":"ping","new":"a\nb"}', "the frame is not a JSON object"),
        ("{'type':'ping'}", "the frame is not a JSON object"),
        ("\ufeff{}", "the frame is not a JSON object"),
        ('{"type":"ping","new":"\ud800"}', "the frame is not valid UTF-8"),
        (b'{"type":"ping"}', "binary frames are not part of the protocol; send JSON text"),
        ("{}", "the message has no `type`"),
        ('{"type":null}', "the message has no `type`"),
        ('{"type":5}', "`type` must be a string"),
        ('{"type":["ping"]}', "`type` must be a string"),
    ],
)
def test_what_is_no_message_is_a_bad_message(frame: str | bytes, message: str) -> None:
    error = refusal(frame)
    assert (error.code, error.message, error.field) == (ErrorCode.BAD_MESSAGE, message, None)
    if frame != "{}":
        assert refusal(frame, first=True).code == ErrorCode.BAD_MESSAGE


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        ('{"type":"hello","protocol":1}', "protocol"),
        ('{"type":"hello","resume":{"epoch":1}}', "resume.last_seq"),
        ('{"type":"hello","mode":"steal"}', "mode"),
        ('{"session_id":7}', "session_id"),
        ('{"type":null}', "type"),
    ],
)
def test_a_bad_hello_is_a_bad_message_that_names_the_field(frame: str, field: str) -> None:
    error = refusal(frame, first=True)
    assert (error.code, error.field) == (ErrorCode.BAD_MESSAGE, field)


def test_an_unknown_type_is_said_back_harmlessly() -> None:
    error = refusal('{"type":"non\\u001b[31msense' + "x" * 1000 + '"}')
    assert error.code == ErrorCode.UNKNOWN_TYPE
    assert error.message.startswith("unknown message type 'non\\x1b[31msensexxx")
    assert error.message.isprintable()
    assert len(error.message) < 120


@pytest.mark.parametrize(
    ("frame", "field", "request_id"),
    [
        ('{"type":"inference","request_id":"a","config":{"temperature":-1}}', "config.temperature", "a"),
        ('{"type":"inference","request_id":"a","config":{"temperature":1e999}}', "config.temperature", "a"),
        ('{"type":"inference","request_id":"a","config":{"stop":["ok",""]}}', "config.stop[1]", "a"),
        ('{"type":"inference","config":{"logit_bias":{"x":1}}}', "config.logit_bias", None),
        ('{"type":"inference","config":{"logit_bias":{"1":101}}}', "config.logit_bias", None),
        ('{"type":"inference","messages":[{"role":"user","content":"x"},{"role":"tool"}]}', "messages[1].role", None),
        ('{"type":"inference","messages":[{"role":"user"}]}', "messages[0].content", None),
        ('{"type":"inference","messages":[]}', "messages", None),
        ('{"type":"inference","prompt":5}', "prompt", None),
        ('{"type":"inference","prompt":{"images":[{"data":"","mime":"text/html"}]}}', "prompt.images[0].mime", None),
        ('{"type":"inference","input_ids":[1,"2"]}', "input_ids[1]", None),
        ('{"type":"inference","request_id":"a b"}', "request_id", None),
        ('{"type":"inference","request_id":"a\\n"}', "request_id", None),
        ('{"type":"inference","request_id":"' + "a" * 65 + '"}', "request_id", None),
        ('{"type":"inference","request_id":""}', "request_id", None),
        ('{"type":"inference","on_disconnect":"explode"}', "on_disconnect", None),
        ('{"type":"cancel"}', "request_id", None),
        ('{"type":"cancel","request_id":7}', "request_id", None),
        ('{"type":"config"}', "data", None),
        ('{"type":"config","data":{"do_sample":1}}', "data.do_sample", None),
        ('{"type":"config","data":{"seed":1.5}}', "data.seed", None),
        ('{"type":"ack","seq":"4"}', "seq", None),
        ('{"type":"ack","seq":true}', "seq", None),
        ('{"type":"history","limit":201}', "limit", None),
        ('{"type":"delete_model","model_name":""}', "model_name", None),
        ('{"type":"end_session","session_id":"' + "x" * 65 + '"}', "session_id", None),
        ('{"type":"ping","t":{}}', "t", None),
    ],
)
def test_a_field_that_does_not_fit_is_named(frame: str, field: str, request_id: str | None) -> None:
    error = refusal(frame)
    assert (error.code, error.field, error.request_id) == (ErrorCode.BAD_REQUEST, field, request_id)
    assert "`$" not in error.message
    answer = m.Error(code="bad_request", message=error.message, retryable=False, field=field, request_id=request_id)
    assert error.to_message() == answer


def numbers(kind: type, path: str = "") -> Iterator[tuple[str, mi.IntType | mi.FloatType]]:
    """Every numeric field of a type as (dotted path, type), those of nested values and lists included."""
    for field in mi.type_info(kind).fields:  # type: ignore[attr-defined]
        yield from _numbers(field.type, f"{path}{field.encode_name}")


def _numbers(kind: mi.Type, path: str) -> Iterator[tuple[str, mi.IntType | mi.FloatType]]:
    match kind:
        case mi.IntType() | mi.FloatType():
            yield path, kind
        case mi.UnionType():
            for option in kind.types:
                yield from _numbers(option, path)
        case mi.ListType():
            yield from _numbers(kind.item_type, f"{path}[]")
        case mi.DictType():
            yield from _numbers(kind.value_type, f"{path}{{}}")
        case mi.StructType():
            yield from numbers(kind.cls, f"{path}.")


NUMBERS = [(t.__struct_config__.tag, path, kind) for t in CLIENT for path, kind in numbers(t)]


def frame_with(tag: str, path: str, value: str) -> str:
    """A message of type `tag` whose number at `path` is the JSON text `value`; required neighbours are there too."""
    for part in reversed(path.split(".")):
        name = part.rstrip("[]{}")
        value = f"[{value}]" if part.endswith("[]") else f'{{"1":{value}}}' if part.endswith("{}") else value
        value = f'{{"{name}":{value}}}'
    neighbours = '"epoch":1,"last_seq":1,'
    value = value.replace('"resume":{', '"resume":{' + neighbours)
    return f'{{"type":"{tag}",{value[1:]}'


@pytest.mark.parametrize(("tag", "path", "kind"), NUMBERS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_number_has_a_least_and_a_greatest_value(tag: str, path: str, kind: mi.IntType | mi.FloatType) -> None:
    least = kind.ge if kind.ge is not None else kind.gt
    assert least is not None
    assert kind.le is not None
    below = least if kind.gt is not None else least - 1 if abs(least) < 1e16 else least * 2
    above = kind.le + 1 if abs(kind.le) < 1e16 else kind.le * 2
    for value in (below, above):
        assert refusal(frame_with(tag, path, json.dumps(value))).code in (ErrorCode.BAD_REQUEST, ErrorCode.BAD_MESSAGE)
    for value in ((least,) if kind.gt is None else ()) + (kind.le,):
        assert decode(frame_with(tag, path, json.dumps(value)))


def test_the_numbers_are_all_there() -> None:
    assert len(NUMBERS) >= 30
    assert {"seq", "window", "config.temperature", "input_ids[]", "resume.last_seq"} <= {path for _, path, _ in NUMBERS}


# --- hostile sizes ---------------------------------------------------------------------------------------------------


def nested(depth: int, inner: str = "1") -> str:
    return '{"type":"ping","new":' + "[" * (depth - 1) + inner + "]" * (depth - 1) + "}"


@pytest.mark.parametrize(
    "frame",
    [
        nested(MAX_DEPTH + 1),
        nested(5000),
        '{"a":' * 5000 + "1" + "}" * 5000,
        "[" * 5000,
        "{" * 5000,
        '{"a":[' * 2500,
        "[[]," * 2500,
        "[" * 500_000 + "]" * 500_000,
        nested(MAX_DEPTH + 1, '"]]]]]]"'),
        nested(MAX_DEPTH + 1, '"\\"]]]]]]"'),
        "[[]]" * 500 + nested(40),
    ],
    ids=lambda frame: frame[:12] + "…",
)
def test_deep_nesting_is_refused_before_anything_recurses(frame: str) -> None:
    assert refusal(frame).message == "the frame is nested deeper than 32 levels"


def test_the_deepest_nesting_that_is_taken_is_exact() -> None:
    """With brackets in one row, and with closed ones between them."""

    def interleaved(depth: int) -> str:
        return '{"type":"ping","new":' + "[[]," * (depth - 2) + "1" + "]" * (depth - 2) + "}"

    for shape in (nested, interleaved):
        assert decode(shape(MAX_DEPTH)) == m.Ping()
        assert code(shape(MAX_DEPTH + 1)) == "bad_message"


@pytest.mark.parametrize(
    "inner",
    ["1", '"' + "[" * 5000 + '"', '"\\"[{' + "[" * 100 + '"', '"\\\\",' + '"[' * 1 + '"', ",".join(["[[]]"] * 1000)],
    ids=lambda inner: inner[:8],
)
def test_brackets_in_strings_and_side_by_side_are_not_nesting(inner: str) -> None:
    assert decode(nested(MAX_DEPTH - 3, inner)) == m.Ping()


@pytest.mark.parametrize(
    "frame",
    [
        "[" * 33 + '"' + '\\"' * 500_000,  # a string that never ends
        "[" * 33 + '"\\' * 300_000,
        '{"type":"ping","new":[' + "[]," * 300_000 + "1]}",
        '{"type":"ping","new":[' + '"",' * 300_000 + "[[[[]]]]," * 20 + "1]}",
        '{"type":"ping","t":' + "1" * 1_000_000 + "}",
        '{"type":"inference","request_id":"' + "a" * 1_000_000 + '"}',
        '{"type":"' + "a" * 1_000_000 + '"}',
        '{"type":"inference","config":{"logit_bias":{' + ",".join(f'"{n}":1' for n in range(90_000)) + "}}}",
        '{"type":"inference","messages":[' + '{"role":"user","content":""},' * 30_000 + "]}",
        '{"type":"inference","input_ids":[' + "1," * 500_000 + "]}",
    ],
    ids=lambda frame: frame[:40] + "…",
)
def test_a_frame_of_a_mebibyte_is_judged_in_linear_time(frame: str) -> None:
    """A quadratic scan would take hours for the first of these; two seconds are ten times what the slowest takes."""
    started_s = time.process_time()
    with contextlib.suppress(FrameError):
        decode(frame)
    assert time.process_time() - started_s < 2


# --- properties ------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TAGS = st.sampled_from([t.__struct_config__.tag for t in CLIENT])
FIELDS = st.sampled_from(sorted({field for t in CLIENT for field in t.__struct_fields__}))


def holds(frame: str, *, first: bool) -> None:
    """The codec's invariant: a client message or a FrameError, and the error can be sent."""
    try:
        message = decode(frame, first=first)
    except FrameError as error:
        answer = error.to_message()
    else:
        assert isinstance(message, CLIENT)
        assert decode(encode(message).decode()) == message
        return
    assert decode_server(encode(answer)) == answer


@given(st.text(), st.booleans())
def test_any_text_becomes_a_message_or_a_frame_error(text: str, first: bool) -> None:
    holds(text, first=first)


@given(st.text(alphabet='{}[]",:\\ntypeing"0123456789.eE+-u/ \n\x00\ud800é'), st.booleans())
def test_any_near_json_becomes_a_message_or_a_frame_error(text: str, first: bool) -> None:
    holds(text, first=first)
    holds('{"type":"ping","t":' + text, first=first)


@given(TAGS, st.dictionaries(FIELDS, JSON), st.booleans(), st.booleans())
def test_any_json_becomes_a_message_or_a_frame_error(
    tag: str, fields: dict[str, Any], first: bool, ascii_only: bool
) -> None:
    holds(json.dumps({"type": tag} | fields, ensure_ascii=ascii_only), first=first)
    holds(json.dumps(fields, ensure_ascii=ascii_only), first=first)


def values_of(kind: mi.Type) -> st.SearchStrategy[Any]:
    """Any value that the type allows."""
    match kind:
        case mi.NoneType():
            return st.none()
        case mi.BoolType():
            return st.booleans()
        case mi.IntType():
            limit = m.MAX_SAFE_INT
            return st.integers(-limit if kind.ge is None else kind.ge, limit if kind.le is None else kind.le)
        case mi.FloatType():
            least = kind.ge if kind.gt is None else kind.gt
            return st.floats(least, kind.le, exclude_min=kind.gt is not None, allow_nan=False, allow_infinity=False)
        case mi.StrType() if kind.pattern:
            return st.from_regex(kind.pattern.replace("^", r"\A"), alphabet=string.printable)
        case mi.StrType():
            return st.text(min_size=kind.min_length or 0, max_size=min(kind.max_length or 40, 40))
        case mi.LiteralType():
            return st.sampled_from(kind.values)
        case mi.UnionType():
            return st.one_of(*map(values_of, kind.types))
        case mi.ListType():
            return st.lists(values_of(kind.item_type), min_size=kind.min_length or 0, max_size=4)
        case mi.DictType():
            return st.dictionaries(values_of(kind.key_type), values_of(kind.value_type), max_size=4)
        case mi.StructType():
            return messages_of(kind.cls)
        case mi.AnyType():
            return st.text(max_size=4) | st.integers(0, 9) | st.none()
    raise AssertionError(kind)


def messages_of(kind: type) -> st.SearchStrategy[Any]:
    fields = mi.type_info(kind).fields  # type: ignore[attr-defined]
    required = {field.name: values_of(field.type) for field in fields if field.required}
    optional = {field.name: values_of(field.type) for field in fields if not field.required}
    return st.fixed_dictionaries(required, optional=optional).map(lambda values: kind(**values))


@pytest.mark.parametrize("kind", CLIENT, ids=lambda kind: kind.__name__)
def test_every_client_message_comes_back_as_it_was(kind: type[m.Message]) -> None:
    @settings(max_examples=50)
    @given(messages_of(kind))
    def check(message: m.ClientMessage) -> None:
        assert decode(encode(message).decode()) == message

    check()


@pytest.mark.parametrize("kind", SERVER, ids=lambda kind: kind.__name__)
def test_every_server_message_comes_back_as_it_was(kind: type[m.Message]) -> None:
    @settings(max_examples=50)
    @given(messages_of(kind))
    def check(message: m.ServerMessage) -> None:
        frame = encode(message)
        assert decode_server(frame) == message
        assert b"\n" not in frame
        assert json.loads(frame)["type"] == kind.__struct_config__.tag

    check()


def test_what_is_absent_is_left_out() -> None:
    assert encode(m.Pong()) == b'{"type":"pong"}'
    log = m.Log(code="caught_up", message="x", head_seq=0)
    assert encode(log) == b'{"type":"log","code":"caught_up","message":"x","head_seq":0}'


def test_a_number_that_json_lacks_becomes_null() -> None:
    timing = m.Timing(queued_ms=1.0, ttft_ms=None, tokens_per_s=float("inf"))
    assert msgspec.json.encode(timing) == b'{"queued_ms":1.0,"ttft_ms":null,"tokens_per_s":null}'


@pytest.mark.parametrize("frame", ["", "{}", '{"type":"hello"}', '{"type":"ack_received","seq":1}', "[" * 9])
def test_what_is_no_server_message_is_an_error(frame: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_server(frame)


@pytest.mark.parametrize(
    ("frame", "field", "expected"),
    [
        ('{"type":"hello","mode":null,"client":{"name":null}}', "mode", "takeover"),
        ('{"type":"history","limit":null}', "limit", 50),
        ('{"type":"inference","prompt":"x","on_disconnect":null}', "on_disconnect", "continue"),
    ],
)
def test_a_field_that_is_null_is_absent(frame, field, expected):
    assert getattr(decode(frame), field) == expected


def test_a_field_that_must_be_there_may_not_be_null():
    with pytest.raises(FrameError):
        decode('{"type":"cancel","request_id":null}')
