"""Whole models for images, of a few thousand random weights, with the processors that families of them have."""

from __future__ import annotations

import io
import random
from pathlib import Path

import torch
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from llmws.engine_api import ImageInput, ModelRef

VOCABULARY = 400
POSITIONS = 512

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "eos_token_id": 0,
    "bos_token_id": 1,
    "pad_token_id": 2,
    # Larger weights than usual: the logits differ enough for answers that do not repeat one token.
    "initializer_range": 0.4,
}
_EYES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.4,
}

_PARTS_ONLY = """{% for message in messages %}{{ message.role.upper() + ': ' -}}
{% for part in message.content | selectattr('type', 'equalto', 'image') %}<image>{% endfor -%}
{% for part in message.content | selectattr('type', 'equalto', 'text') %}{{ part.text }} {% endfor -%}
{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""

_TEXT_OR_PARTS = """<bos>{% for message in messages %}{{ message.role }}:
{%- if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


def save(family: str, folder: Path) -> tuple[ModelRef, transformers.ProcessorMixin]:
    """Writes a model, always with the same weights, as it would lie in a models folder.

    `llava` takes the same number of tokens for every image, and its template leaves the BOS to the processor;
    `idefics3` cuts an image into tiles, as many as its shape asks for; `qwen2-vl` gives tokens positions in rows and
    columns, as many as the image's size asks for, and its processor has a part for videos that cannot be loaded here.
    """
    torch.manual_seed(7)
    network, processor = {"llava": _llava, "idefics3": _idefics3, "qwen2-vl": _qwen2_vl}[family]()
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    ref = ModelRef(name=folder.name, path=f"models/{folder.name}", location=str(folder), size_bytes=size, source="var")
    return ref, processor


def picture(seed: int, *, width: int = 40, height: int = 30) -> Image.Image:
    """Noise, another for each seed."""
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> ImageInput:
    """The image as a file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return ImageInput(mime=f"image/{kind.lower()}", data=file.getvalue())


def _llava() -> tuple[transformers.PreTrainedModel, transformers.ProcessorMixin]:
    tokenizer = _tokenizer("<image>")
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_EYES, image_size=30, patch_size=10),
        text_config=transformers.LlamaConfig(**_TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}),
        tokenizer,
        patch_size=10,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_PARTS_ONLY,
    )
    return transformers.LlavaForConditionalGeneration(config).eval(), processor


def _idefics3() -> tuple[transformers.PreTrainedModel, transformers.ProcessorMixin]:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3)]
    tokenizer = _tokenizer("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *tiles)
    config = transformers.Idefics3Config(
        vision_config={**_EYES, "image_size": 32, "patch_size": 8},
        text_config=transformers.LlamaConfig(**_TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    processor = transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        tokenizer,
        image_seq_len=4,
        chat_template=_TEXT_OR_PARTS,
    )
    return transformers.Idefics3ForConditionalGeneration(config).eval(), processor


class _ForImages(transformers.Qwen2VLProcessor):
    """Without the part for videos, which takes torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def _qwen2_vl() -> tuple[transformers.PreTrainedModel, transformers.ProcessorMixin]:
    special = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer = _tokenizer(*special)
    image, video, start, end = (tokenizer.convert_tokens_to_ids(token) for token in special)
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "mlp_ratio": 2},
        text_config={**_TEXT, "rope_parameters": rotary},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    images = transformers.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024)
    template = _TEXT_OR_PARTS.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    _ForImages.__name__ = "Qwen2VLProcessor"  # what the folder says
    processor = _ForImages(images, tokenizer, chat_template=template.replace("<end_of_utterance>", "<eos>"))
    return transformers.Qwen2VLForConditionalGeneration(config).eval(), processor


def _tokenizer(*special: str) -> transformers.PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in ("<eos>", "<bos>", "<pad>", *special)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["what is in this picture? the quick brown fox jumps over the lazy dog."] * 3, trainer)
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<eos>", bos_token="<bos>", pad_token="<pad>"
    )
