"""Ids to text, piece by piece: the pieces join to the whole, and nothing half-said leaves."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from llmws.engine.text import Completion, Detokenizer, StopStrings
from llmws.engine_api import GenerationRequest
from llmws.errors import ModelInvalidError
from llmws.protocol.messages import Sampling

EOS = 0


def word_level(tokens, decoder):
    """A tokenizer whose id i is tokens[i]; id 0 is the special end token."""
    vocabulary = {token: i for i, token in enumerate(("<eos>", *tokens))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    tokenizer.decoder = decoder
    return tokenizer


def byte_characters():
    """The character that byte-level BPE writes for each byte. Source: GPT-2's bytes_to_unicode."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTE = byte_characters()


def in_bytes(data):
    return "".join(BYTE[byte] for byte in data)


# Every single byte, and longer tokens that end inside a character.
BYTE_TOKENS = [in_bytes([byte]) for byte in range(256)]
BYTE_TOKENS += [in_bytes(s.encode()) for s in (" the", "hello", "é", "日本", "👍")]
BYTE_TOKENS += [in_bytes(b" " + "日".encode()[:2]), in_bytes("日".encode()[2:] + "👍".encode()[:3])]

METASPACE_TOKENS = ["▁", "▁Hello", "Hello", "▁world", "ing", ".", "▁▁", *(f"<0x{byte:02X}>" for byte in range(256))]

TOKENIZERS = {
    "byte-level": word_level(BYTE_TOKENS, decoders.ByteLevel()),
    # As in Llama 2: spaces as ▁, bytes as <0xNN>, and the first space stripped.
    "sentencepiece": word_level(
        METASPACE_TOKENS,
        decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(content=" ", left=1, right=0),
            ]
        ),
    ),
    "metaspace": word_level(METASPACE_TOKENS[:7], decoders.Metaspace()),
    "wordpiece": word_level(["play", "##ing", "##s", "it", ".", ",", "'", "n't", "un"], decoders.WordPiece()),
    "bpe-suffix": word_level(["low", "er</w>", "new</w>", "the</w>", "x"], decoders.BPEDecoder()),
}


def decode_with(tokenizer):
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)


def pieces(tokenizer, ids):
    detokenizer = Detokenizer(decode_with(tokenizer))
    return [detokenizer.push(i) for i in ids] + [detokenizer.flush()]


def ids_of(tokenizer):
    return st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=60)


@pytest.mark.parametrize("name", ["byte-level", "metaspace", "wordpiece", "bpe-suffix"])
@given(data=st.data())
def test_the_pieces_join_to_the_whole(name, data):
    """Any ids at all, noise and special tokens included.

    Kills: characters cut in half going out; a window that keeps one token, or none, of what is out.
    """
    tokenizer = TOKENIZERS[name]
    ids = data.draw(ids_of(tokenizer))

    assert "".join(pieces(tokenizer, ids)) == decode_with(tokenizer)(ids)


WORDS = st.lists(st.sampled_from(["▁", "▁Hello", "Hello", "ing", ".", "日", "é", "👍", "<eos>"]), max_size=40)


@given(words=WORDS)
def test_the_pieces_of_byte_fallback_join_to_the_whole(words):
    """Whole characters as bytes: of a run of bytes that is no UTF-8, this decoder takes back what it said before."""
    tokenizer = TOKENIZERS["sentencepiece"]
    tokens = [[w] if w.isascii() or "▁" in w else [f"<0x{b:02X}>" for b in w.encode()] for w in words]
    ids = [tokenizer.token_to_id(token) for group in tokens for token in group]

    assert "".join(pieces(tokenizer, ids)) == decode_with(tokenizer)(ids)


@given(ids=ids_of(TOKENIZERS["sentencepiece"]))
def test_byte_fallback_noise_is_bounded_and_replayed_alike(ids):
    tokenizer = TOKENIZERS["sentencepiece"]

    assert pieces(tokenizer, ids) == pieces(tokenizer, ids)


@given(text=st.text(max_size=20), cut=st.integers(1, 4))
def test_no_piece_ends_inside_a_character(text, cut):
    tokenizer = TOKENIZERS["byte-level"]
    ids = [tokenizer.token_to_id(BYTE[byte]) for byte in text.replace("\ufffd", "").encode()]

    assert all("\ufffd" not in piece for piece in pieces(tokenizer, ids))


def test_a_character_comes_with_its_last_token():
    tokenizer = TOKENIZERS["byte-level"]
    ids = [tokenizer.token_to_id(token) for token in BYTE_TOKENS[-2:]]
    ids += [tokenizer.token_to_id(BYTE["👍".encode()[3]])]

    assert pieces(tokenizer, ids) == [" ", "日", "👍", ""]


def test_the_first_word_loses_its_space_and_no_other_does():
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = [tokenizer.token_to_id(token) for token in ("▁Hello", "▁world", "▁", "▁world")]

    assert pieces(tokenizer, ids) == ["Hello", " world", " ", " world", ""]


def test_a_word_after_many_silent_tokens_keeps_its_space():
    tokenizer = TOKENIZERS["sentencepiece"]
    hello, world = (tokenizer.token_to_id(token) for token in ("▁Hello", "▁world"))

    assert "".join(pieces(tokenizer, [EOS] * 100 + [hello] + [EOS] * 100 + [world])) == "Hello world"


def test_a_long_answer_is_decoded_in_short_windows():
    """The cost of a token does not grow with the text, nor with special tokens, nor with noise."""
    tokenizer = TOKENIZERS["byte-level"]
    lengths = []

    def decode(ids):
        lengths.append(len(ids))
        return decode_with(tokenizer)(ids)

    detokenizer = Detokenizer(decode)
    half = tokenizer.token_to_id(BYTE["日".encode()[0]])
    hello = tokenizer.token_to_id("hello")
    for token in [hello, EOS] * 300 + [half] * 300 + [hello] * 300:
        detokenizer.push(token)

    assert max(lengths) <= 2 * 65


# --- stop strings ----------------------------------------------------------------------------------------------------


def stopped(stop, *texts):
    strings = StopStrings(stop)
    said = []
    for text in texts:
        said.append(strings.push(text))
        if strings.found:
            return said, True
    return [*said, strings.flush()], False


def test_a_stop_string_is_held_back_while_it_may_still_come():
    assert stopped(["STOP"], "a S", "TO", "P b") == (["a ", "", ""], True)
    assert stopped(["STOP"], "a S", "TO", "NE") == (["a ", "", "STONE", ""], False)


def test_the_stop_string_that_is_complete_first_counts():
    assert stopped(["world", "lo"], "hello world") == (["hel"], True)
    assert stopped(["a\na", "\n"], "a\na") == (["a"], True)
    assert stopped(["c", "abc"], "abc") == ([""], True)


def test_what_was_held_back_is_said_at_the_end():
    assert stopped(["\n\n"], "done.\n") == (["done.", "\n"], False)


@given(
    text=st.text("ab\n", max_size=30),
    stop=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=10),
)
def test_pieces_do_not_matter(text, stop, cuts):
    """However the text is cut, what is said ends where the stop string that is complete first begins.

    Kills: holding back a character too few; the last stop string in place of the first; not saying what was held back.
    """
    _, at = min(((text.find(s) + len(s), text.find(s)) for s in stop if s in text), default=(0, -1))
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[start:end] for start, end in pairwise(bounds)]

    said, found = stopped(stop, *parts)

    assert "".join(said) == (text if at < 0 else text[:at])
    assert found == (at >= 0)


# --- completions -----------------------------------------------------------------------------------------------------


def request(**changes):
    fields = {"key": "a", "prompt_ids": (1,), "sampling": Sampling(), "max_new_tokens": 100}
    return GenerationRequest(**(fields | changes))


def completion(tokenizer, request):
    return Completion(request, decode=decode_with(tokenizer), eos_ids={EOS})


def complete(tokenizer, request, ids):
    """The text and the finish of a request that samples these ids after its emitted ones."""
    state = completion(tokenizer, request)
    text = ""
    for token in ids:
        if state.finish is not None:
            break
        state.push(token)
        text += state.take()
    return text + state.take(), state.finish


@given(
    ids=ids_of(TOKENIZERS["byte-level"]),
    stop=st.lists(st.sampled_from(["hello", "he", "日", "\ufffd", " the"]), max_size=2),
    max_new_tokens=st.integers(1, 70),
)
def test_a_cut_anywhere_changes_nothing(ids, stop, max_new_tokens):
    """Text and finish are those of the stream that was not cut, at every cut.

    Kills: forgetting text that was not sent; half a character lost at the end; a stop string in it overlooked.
    """
    tokenizer = TOKENIZERS["byte-level"]
    whole = request(sampling=Sampling(stop=stop), max_new_tokens=max_new_tokens)
    expected = complete(tokenizer, whole, ids)
    state = completion(tokenizer, whole)
    sent = ""
    for cut, token in enumerate(ids, start=1):
        state.push(token)
        sent += state.take()
        rest = request(
            sampling=whole.sampling, max_new_tokens=max_new_tokens, emitted_ids=tuple(ids[:cut]), emitted_text=sent
        )
        text, finish = complete(tokenizer, rest, ids[cut:])
        assert (sent + text, finish) == expected
        if state.finish is not None:
            break


def test_the_end_token_has_no_text_and_ends():
    tokenizer = TOKENIZERS["byte-level"]
    hello = tokenizer.token_to_id("hello")

    assert complete(tokenizer, request(), [hello, EOS, hello]) == ("hello", "stop")


def test_the_end_token_can_be_ignored():
    tokenizer = TOKENIZERS["byte-level"]
    hello = tokenizer.token_to_id("hello")
    ignoring = request(sampling=Sampling(ignore_eos=True), max_new_tokens=3)

    assert complete(tokenizer, ignoring, [hello, EOS, hello]) == ("hellohello", "length")


def test_a_stream_that_was_complete_is_not_sampled_further():
    """A server that dies between the last token and the end finds the end again, and the text that was still owed."""
    tokenizer = TOKENIZERS["byte-level"]
    hello = tokenizer.token_to_id("hello")
    stop = Sampling(stop=["hellohellohello"])

    state = completion(tokenizer, request(sampling=stop, emitted_ids=(hello, hello), emitted_text="", max_new_tokens=2))

    assert (state.finish, state.take(), state.count) == ("length", "hellohello", 2)


def test_another_tokenizers_text_is_refused():
    tokenizer = TOKENIZERS["byte-level"]
    hello = tokenizer.token_to_id("hello")

    with pytest.raises(ModelInvalidError, match="not what the model's tokenizer makes"):
        completion(tokenizer, request(emitted_ids=(hello,), emitted_text="HELLO"))
