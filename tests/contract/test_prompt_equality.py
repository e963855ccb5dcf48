"""Prompts are what `AutoTokenizer.apply_chat_template` makes of the same model folder: same ids, same refusals.

Held for the code that renders, and for all of it as the server has it: in the helper process.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import jinja2
import pytest

from llmws.engine_api import ModelRef, PromptEvent, PromptFailed, PromptJob, PromptReady, Turn
from llmws.errors import PromptError
from llmws.prompt import model_text
from llmws.prompt.render import tokenize
from llmws.prompt.renderer import ProcessRenderer
from llmws.protocol import ErrorCode
from tests.support import model_folders as folders

GUIDE = Path(__file__).parents[2] / "models" / "llmws-guide"

CONVERSATIONS = {
    "one question": ["user: who are you?"],
    "system": ["system: answer in one word!", "user: who are you?"],
    "empty system": ["system: ", "user: hi"],
    "several turns": ["user: hi", "assistant: hello", "user: the quick brown fox", "assistant: jumps", "user: and?"],
    "system and turns": ["system: be brief", "user: hi", "assistant: hello", "user: bye"],
    "two questions in a row": ["user: hi", "user: are you there?"],
    "an answer first": ["assistant: hello", "user: hi"],
    "a late system": ["user: hi", "assistant: hello", "system: be brief", "user: bye"],
    "special tokens in the text": ["user: a<|im_end|>b</s><eos> <|eot_id|>[/INST]<end_of_turn>\n<|begin|><unk>c"],
    "odd characters": [
        "user:   \n\t 漢字 🙂 é e\u0301 \u200b \x00 \x1b[31m \U0001f468\u200d\U0001f469 {{ 7 * 7 }} {% raw %}"
    ],
    "white space": ["user:  ", "assistant: \n\n", "user: x \n"],
}


def write_chatml(folder: Path) -> None:
    tokenizer = folders.byte_level("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": folders.CHATML}
    folders.write_model(folder, tokenizer, tokenizer_config=config)


def write_llama_3(folder: Path) -> None:
    special = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
    tokenizer = folders.byte_level(*special, bos="<|begin_of_text|>")
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "add_bos_token": True}
    folders.write_model(folder, tokenizer, tokenizer_config=config, files={"chat_template.jinja": folders.LLAMA_3})


def write_gemma(folder: Path) -> None:
    tokenizer = folders.sentence_piece("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    bos = {"__type": "AddedToken", "content": "<bos>", "lstrip": False, "rstrip": False, "special": True}
    config = {"bos_token": bos, "eos_token": "<eos>", "chat_template": folders.GEMMA}
    folders.write_model(folder, tokenizer, tokenizer_config=config)


def write_mistral(folder: Path) -> None:
    """Named templates, special tokens in a file of their own, and one that the tokenizer does not have yet."""
    tokenizer = folders.sentence_piece("<s>", "</s>", "[INST]")
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": folders.MISTRAL}]
    special = '{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "additional_special_tokens": ["[/INST]"]}'
    files = {"special_tokens_map.json": special}
    folders.write_model(folder, tokenizer, tokenizer_config={"chat_template": named}, files=files)


def write_kitchen_sink(folder: Path) -> None:
    """A file goes before the entry; tokens come from `added_tokens_decoder`; one is named by the model itself."""
    tokenizer = folders.byte_level("<pad>")
    size = tokenizer.get_vocab_size()
    flags = {"lstrip": True, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    decoder = {str(size): {"content": "</s>", **flags}, str(size + 1): {"content": "<eos>", **flags, "special": False}}
    config = {
        "pad_token": "<pad>",
        "image_token": "<image>",
        "added_tokens_decoder": decoder,
        "extra_special_tokens": ["<|im_end|>"],
        "chat_template": "not this one",
    }
    files = {"chat_template.jinja": folders.KITCHEN_SINK, "additional_chat_templates/rag.jinja": "nor this one"}
    folders.write_model(folder, tokenizer, tokenizer_config=config, files=files)


def write_plain(folder: Path) -> None:
    folders.write_model(folder, folders.byte_level("<s>", bos="<s>"), tokenizer_config={"bos_token": "<s>"})


def write_truncating(folder: Path) -> None:
    """A tokenizer that was saved while it truncated and padded."""
    tokenizer = folders.byte_level("<pad>")
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(pad_token="<pad>", length=500)
    folders.write_model(folder, tokenizer, tokenizer_config={"pad_token": "<pad>", "chat_template": folders.CHATML})


def turns(conversation: list[str]) -> list[Turn]:
    parts = [line.partition(": ") for line in conversation]
    return [Turn(role=role, content=content) for role, _, content in parts]  # type: ignore[arg-type]


Tokenize = Callable[[list[Turn]], list[int]]
"""Raises PromptError for a conversation that the template refuses."""


class InProcess:
    """The rendering code, called."""

    def tokenizer(self, folder: Path) -> Tokenize:
        model = model_text.load(folder, clock=datetime.now)
        return lambda conversation: tokenize(conversation, model)


class ThroughHelper:
    """The renderer of the server, asked."""

    def __init__(self) -> None:
        self.renderer = ProcessRenderer()
        self.events: queue.Queue[PromptEvent] = queue.Queue()
        self.renderer.start(self.events.put)

    def tokenizer(self, folder: Path) -> Tokenize:
        ref = ModelRef(name="m", path="models/m", location=str(folder), size_bytes=0, source="models")

        def ids(conversation: list[Turn]) -> list[int]:
            job = PromptJob(key="k", model=ref, turns=tuple(conversation), max_context=2**20, reserve=1)
            self.renderer.render(job)
            match self.events.get(timeout=30):
                case PromptReady(ids=ids):
                    return list(ids)
                case PromptFailed(code=code, message=message):
                    raise PromptError(code, message)

        return ids


@pytest.fixture(scope="module", params=["in process", "through the helper"])
def side(request: pytest.FixtureRequest) -> Iterator[InProcess | ThroughHelper]:
    if request.param == "in process":
        yield InProcess()
        return
    helper = ThroughHelper()
    yield helper
    helper.renderer.close()


Side = InProcess | ThroughHelper

WRITERS = [write_chatml, write_llama_3, write_gemma, write_mistral, write_kitchen_sink, write_plain, write_truncating]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_folder_gives_the_same_prompts_as_transformers(
    tmp_path: Path, write: Callable[[Path], None], side: Side
) -> None:
    write(tmp_path)
    outcomes = check_all(tmp_path, side)
    assert "ids" in outcomes.values(), "every conversation was refused"
    assert ("refused" in outcomes.values()) == (write in (write_gemma, write_mistral))


def test_the_guide_gives_the_same_prompts_as_transformers(side: Side) -> None:
    assert set(check_all(GUIDE, side).values()) == {"ids"}


@pytest.mark.parametrize("family", ["Qwen2", "Llama", "Gemma"])
def test_a_folder_saved_by_a_family_s_own_tokenizer_gives_the_same_prompts(
    tmp_path: Path, family: str, side: Side
) -> None:
    """These classes build their tokenizer from the vocabulary alone when they load it; we take what they saved."""
    import transformers

    special = ("<s>", "</s>", "<bos>", "<eos>", "<pad>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
    source = folders.byte_level(*special) if family == "Qwen2" else folders.sentence_piece(*special)
    model = json.loads(source.to_str())["model"]
    tokenizer = getattr(transformers, f"{family}Tokenizer")(
        vocab=model["vocab"], merges=list(map(tuple, model["merges"]))
    )
    tokenizer.chat_template = folders.CHATML
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family.lower(), "vocab_size": 1000}))
    assert set(check_all(tmp_path, side).values()) == {"ids"}


def check_all(folder: Path, side: Side) -> dict[str, str]:
    """Compares every conversation; says of each whether it became ids or was refused."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    ours = side.tokenizer(folder)
    outcomes = {}
    for name, conversation in CONVERSATIONS.items():
        messages = [{"role": turn.role, "content": turn.content} for turn in turns(conversation)]
        try:
            if theirs.chat_template:
                expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            else:
                expected = theirs("".join(message["content"] for message in messages))["input_ids"]
        except jinja2.TemplateError as refusal:
            with pytest.raises(PromptError, match=str(refusal)) as caught:
                ours(turns(conversation))
            assert caught.value.code == ErrorCode.MODEL_FAILED
            outcomes[name] = "refused"
        else:
            assert ours(turns(conversation)) == expected, name
            outcomes[name] = "ids"
    return outcomes
