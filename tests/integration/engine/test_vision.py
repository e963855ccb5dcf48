"""Images in a prompt: the answer is that of `generate()` with the model's own processor, and bad files harm nobody."""

import json
import struct
import weakref
import zlib
from pathlib import Path

import msgspec
import pytest
import transformers
from PIL import Image

from llmws.catalog.inspection import examine
from llmws.engine.fallback import Context, find_increments
from llmws.engine.image_files import read_images
from llmws.engine.measure import measured_footprint
from llmws.engine.processors import load_processor
from llmws.engine.vision import load_vision
from llmws.engine_api import MAX_IMAGES, GenerationRequest, ImageInput, ModelLoaded, Turn
from llmws.errors import BadRequestError, ModelInvalidError
from llmws.prompt import model_text
from llmws.prompt.render import tokenize
from llmws.protocol import ErrorCode
from llmws.protocol.messages import Sampling
from tests.support.seeing_models import POSITIONS, VOCABULARY, encoded, picture, save

FAMILIES = ("llava", "idefics3", "qwen2-vl")
LENGTH = 12
WIDE = {"width": 60, "height": 20}


class Seeing:
    """A model with everything that is known of it, loaded into the engine of the tests."""

    def __init__(self, folder, processor, ear):
        self.ear = ear
        self.folder = Path(folder.location)
        self.ref = folder
        self.text = model_text.load(self.folder)
        self.processor = processor
        self.network = transformers.AutoModelForImageTextToText.from_pretrained(self.folder).eval()
        self.asked = 0

    def load(self):
        event = self.ear.load(self.ref)
        assert isinstance(event, ModelLoaded), event
        self.info = event.info
        return self

    def ask(self, *turns, images=(), **changes):
        """What the engine answers, as one chunk."""
        self.asked += 1
        key = f"{self.ref.name}-{self.asked}"
        fields = {"sampling": Sampling(do_sample=False), "max_new_tokens": LENGTH, "prompt_ids": self.ids(*turns)}
        self.ear.engine.submit(GenerationRequest(key=key, model=self.ref, images=tuple(images), **(fields | changes)))
        (answer,) = self.ear.answer(key)
        return answer

    def ids(self, *turns):
        return tuple(tokenize(turns, self.text))

    def generated(self, *turns, images=()):
        """What transformers itself makes of the conversation."""
        left = iter(images)
        conversation = [
            {
                "role": turn.role,
                "content": [{"type": "image", "image": next(left)} for _ in range(turn.images)]
                + [{"type": "text", "text": turn.content}],
            }
            for turn in turns
        ]
        inputs = self.processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        made = self.network.generate(**inputs, do_sample=False, max_new_tokens=LENGTH)
        return tuple(made[0, inputs["input_ids"].shape[1] :].tolist())


@pytest.fixture(scope="module")
def seeing(tmp_path_factory, ear):
    """The model of a family, which the engine has loaded."""
    made = {family: Seeing(*save(family, tmp_path_factory.mktemp(family)), ear) for family in FAMILIES}
    return lambda family: made[family].load()


def question(images=1):
    return Turn(role="user", content="what is in this picture?", images=images)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_greedy_answer_equals_generate(family, seeing):
    """For pictures of two shapes, which one family cuts into different numbers of tiles, and for both in one prompt."""
    model = seeing(family)
    square, wide = picture(1), picture(2, **WIDE)
    answers = []
    for images in ([square], [wide], [square, wide], [wide, square]):
        answer = model.ask(question(len(images)), images=map(encoded, images))
        assert answer.ids == model.generated(question(len(images)), images=images)
        answers.append(answer.ids)

    assert model.info.vision
    assert len(set(answers)) == 4
    assert all(len(set(ids)) > 3 for ids in answers), "a constant answer would prove little"


@pytest.mark.parametrize("family", FAMILIES)
def test_text_alone_equals_generate_too(family, seeing):
    model = seeing(family)
    turns = (Turn(role="system", content="be brief"), question(0))
    assert model.ask(*turns).ids == model.generated(*turns)


@pytest.mark.parametrize("family", FAMILIES)
def test_earlier_turns_still_show_their_images(family, seeing):
    model = seeing(family)
    first, second = picture(1), picture(2, **WIDE)
    turns = (question(), Turn(role="assistant", content="a fox"), Turn(role="user", content="and this?", images=1))
    answer = model.ask(*turns, images=map(encoded, (first, second)))
    assert answer.ids == model.generated(*turns, images=(first, second))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_changes_nothing(family, seeing):
    model = seeing(family)
    images = (encoded(picture(3, **WIDE)),)
    sampling = Sampling(do_sample=True, temperature=1.0, seed=5)
    whole = model.ask(question(), images=images, sampling=sampling)
    for cut in range(0, len(whole.ids), 3):
        rest = model.ask(question(), images=images, sampling=sampling, emitted_ids=whole.ids[:cut])
        assert (rest.index, rest.ids) == (cut, whole.ids[cut:])


def test_what_an_image_takes_counts_for_the_context(seeing):
    model = seeing("llava")
    free = POSITIONS - LENGTH - len(model.ids(question())) + 1 - model.info.image_tokens

    def answer(more, **changes):
        turn = Turn(role="user", content=question().content + "7" * (free + more), images=1)
        return model.ask(turn, images=[encoded(picture(1))], **changes)

    fits, longer, longest, too_long = map(answer, (0, 1, LENGTH - 1, LENGTH))
    assert [each.finish for each in (fits, longer, longest)] == ["length"] * 3
    assert [len(each.ids) for each in (fits, longer, longest)] == [LENGTH, LENGTH - 1, 1]
    assert too_long.error_code == ErrorCode.CONTEXT_TOO_LONG
    text = "with its images the prompt has 512 tokens; the model's context is 512, of which one is for the answer"
    assert too_long.error_message == text

    rest = answer(1, emitted_ids=longer.ids[:5])
    assert (rest.ids, rest.finish) == (longer.ids[5:], "length")


def test_a_model_for_images_promises_memory_for_prompts_that_are_one_forward(seeing):
    """What a prompt is worked with grows with it; text is still taken in parts, and no pixels are kept."""
    model = seeing("llava")
    network = transformers.AutoModelForImageTextToText.from_pretrained(model.folder).eval()
    increments = find_increments(network, VOCABULARY)
    text, images = (measured_footprint(network, increments, sees=sees) for sees in (False, True))
    assert text.workspace_bytes(POSITIONS) < images.workspace_bytes(POSITIONS)

    request, sight = load_vision(model.folder, network, max_pixels=10_000).sample(upright=True)
    context = Context(network, request.prompt_ids, sight=sight)
    pixels = weakref.ref(sight.tensors["pixel_values"])
    del sight
    context.forward(len(request.prompt_ids))
    assert pixels() is None


@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_says_the_placeholder_shows_no_image(family, images, seeing):
    """Nor does an answer, as one that explains how images are written."""
    model = seeing(family)
    spelled = model.processor.image_token
    turns = (
        Turn(role="user", content=f"what does {spelled} mean?", images=images),
        Turn(role="assistant", content=f"{spelled * 2} are two images"),
        Turn(role="user", content="and here?", images=images),
    )
    answer = model.ask(*turns, images=[encoded(picture(seed)) for seed in range(2 * images)])
    assert answer.finish == "length"


def test_a_prompt_that_has_no_place_for_its_image_is_refused(seeing):
    """As of a model whose template shows none."""
    model = seeing("idefics3")
    answer = model.ask(question(0), images=[encoded(picture(1))])
    assert answer.error_code == ErrorCode.BAD_REQUEST
    assert answer.error_message.startswith("the prompt has 0 places for 1 images; ")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_for_images_is_offered_as_transformers_saves_it(family, seeing):
    folder = seeing(family).folder
    assert examine(folder) == sum(path.stat().st_size for path in folder.iterdir())


def test_a_model_whose_processor_cannot_be_loaded_is_one_for_text(tmp_path, ear, caplog):
    ref, processor = save("llava", tmp_path / "blind")
    config = tmp_path / "blind" / "processor_config.json"
    config.write_text(config.read_text().replace("CLIPImageProcessor", "UnheardOfImageProcessor"))
    model = Seeing(ref, processor, ear).load()
    answers = [model.ask(question(0)), model.ask(question(), images=[encoded(picture(1))])]

    assert (model.info.vision, model.info.image_tokens) == (False, 0)
    assert "blind takes no images: " in caplog.text
    assert [answer.error_code for answer in answers] == [None, ErrorCode.BAD_REQUEST]
    assert answers[1].error_message == "this model takes no images"


def edited(folder, name, change):
    path = folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


GROWING = {"type": "Replace", "pattern": {"String": "i"}, "content": "ii"}
RULES = {
    "a text that doubles forty times": {"normalizer": {"type": "Sequence", "normalizers": [GROWING] * 40}},
    "a pattern that takes for ever": {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "(?:(?:a|b|.)*)*Z"},
            "behavior": "Isolated",
            "invert": False,
        }
    },
}


@pytest.mark.parametrize("rule", RULES)
def test_a_processor_encodes_by_no_rule_of_the_folder(rule, tmp_path):
    """The ids are those of the placeholders all the same."""
    save("llava", tmp_path)
    edited(tmp_path, "tokenizer.json", lambda content: content.update(RULES[rule]))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    tokenizer = load_processor(tmp_path, config).tokenizer
    assert tokenizer.backend_tokenizer.normalizer is None
    assert set(tokenizer("<image>" * 3, add_special_tokens=False)["input_ids"]) == {config.image_token_id}
    assert len(tokenizer("i" * 40, add_special_tokens=False)["input_ids"]) <= 40


SIZES = {
    "a side": ("llava", {"size": {"height": 6000, "width": 6000}}, "a size of 6000"),
    "a crop": ("llava", {"crop_size": {"height": 10**9, "width": 1}}, "a size of 1000000000"),
    "a tile": ("idefics3", {"max_image_size": {"longest_edge": 10**6}}, "a size of 1000000"),
    "an area": ("qwen2-vl", {"size": {"shortest_edge": 64, "longest_edge": 2**24 + 1}}, "a size of 16777217"),
    "a patch": (
        "qwen2-vl",
        {"patch_size": 1, "size": {"shortest_edge": 64, "longest_edge": 2**24}},
        "16777216 patches",
    ),
    "the largest area": (
        "qwen2-vl",
        {"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "patch_size": 14},
        None,
    ),
}


@pytest.mark.parametrize("size", SIZES)
def test_a_processor_makes_no_picture_beyond_a_bound(size, tmp_path):
    family, changes, why = SIZES[size]
    save(family, tmp_path)
    edited(tmp_path, "processor_config.json", lambda content: content["image_processor"].update(changes))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    if why is None:
        assert load_processor(tmp_path, config) is not None
    else:
        with pytest.raises(ModelInvalidError, match=f"its processor .*{why}"):
            load_processor(tmp_path, config)


@pytest.mark.parametrize("mark", ["<image>" * 2, "a" * 40, "<" * 10**6])
def test_a_processor_s_placeholder_is_a_token(mark, tmp_path):
    save("llava", tmp_path)
    edited(tmp_path, "processor_config.json", lambda content: content.update(image_token=mark))
    with pytest.raises(ModelInvalidError, match="a placeholder that is no token"):
        load_processor(tmp_path, transformers.AutoConfig.from_pretrained(tmp_path))


# --- files ---------------------------------------------------------------------------------------------------------


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_that_claims(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000)))


def webp_that_claims(width, height):
    """Source: WebP lossless bitstream: after the signature byte, width and height less one, 14 bits each."""
    data = encoded(Image.new("RGB", (2, 2)), "WEBP", lossless=True).data
    return data[:21] + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + data[25:]


def gif_of_frames(count):
    frame = b"\x21\xf9\x04\x00\x00\x00\x00\x00,\x00\x00\x00\x00\x02\x00\x02\x00\x00\x02\x03\x04\x12\x05\x00"
    screen = struct.pack("<HHBBB", 2, 2, 0x80, 0, 0) + b"\xff\x00\x00\x00\xff\x00"
    return b"GIF89a" + screen + frame * count + b";"


WHOLE = encoded(picture(1, width=200, height=100))
JPEG = encoded(picture(1, width=200, height=100), "JPEG")

HOSTILE = {
    "a bomb": (ImageInput(mime="image/png", data=png_that_claims(60_000, 60_000)), "has 60000 x 60000 pixels"),
    "a bomb in WebP": (
        ImageInput(mime="image/webp", data=webp_that_claims(16_000, 16_000)),
        "has 16000 x 16000 pixels",
    ),
    "a PNG cut short": (ImageInput(mime="image/png", data=WHOLE.data[:5_000]), "is broken or cut short"),
    "a JPEG cut short": (ImageInput(mime="image/jpeg", data=JPEG.data[:2_000]), "is broken or cut short"),
    "pixels that lie": (ImageInput(mime="image/png", data=png_that_claims(100, 100)), "is broken or cut short"),
    "another type": (ImageInput(mime="image/jpeg", data=WHOLE.data), "is not a JPEG file"),
    "a type that is not taken": (ImageInput(mime="image/png", data=b"BM" + bytes(100)), "is not a PNG file"),
    "no image": (ImageInput(mime="image/png", data=b"what?" * 100), "is not a PNG file"),
    "SVG": (ImageInput(mime="image/png", data=b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "is not a PNG file"),
    "nothing": (ImageInput(mime="image/gif", data=b""), "is not a GIF file"),
}


@pytest.mark.parametrize("image", HOSTILE)
def test_a_bad_file_is_that_requests_error_and_nobody_elses(image, seeing):
    model = seeing("llava")
    bad, why = HOSTILE[image]
    answer = model.ask(question(2), images=[WHOLE, msgspec.structs.replace(bad, name="image 2")])
    after = model.ask(question(), images=[WHOLE])

    assert answer.error_code == ErrorCode.BAD_REQUEST
    assert answer.error_message.startswith(f"image 2 {why}"), answer.error_message
    assert after.finish == "length"


def read(image):
    [pixels] = read_images([image], max_pixels=10_000)
    return pixels


def test_of_an_animation_the_first_frame_counts():
    seen = read(ImageInput(mime="image/gif", data=gif_of_frames(10_000)))
    assert (seen.mode, seen.size) == ("RGB", (2, 2))


def test_an_image_is_turned_upright():
    picture = Image.new("RGB", (2, 1), "red")
    turned = Image.Exif()
    turned[0x0112] = 6  # Orientation: rotated by 90 degrees
    assert read(encoded(picture, "JPEG", exif=turned)).size == (1, 2)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(mode):
    clear = Image.new("RGBA", (3, 3), (9, 9, 9, 0)).convert(mode)
    assert read(encoded(clear)).getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_every_type_of_the_protocol_is_read(kind):
    assert read(encoded(Image.new("RGB", (5, 4), "blue"), kind)).getpixel((2, 2))[2] > 200


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_bound_on_pixels_is_exact(kind):
    read(encoded(Image.new("RGB", (100, 100)), kind))
    with pytest.raises(BadRequestError, match=r"^the image has 101 x 100 pixels; at most 10000 are taken$"):
        read(encoded(Image.new("RGB", (101, 100)), kind))


def test_the_bound_on_pixels_is_one_of_all_images_together():
    half, rest = (encoded(Image.new("L", size)) for size in ((100, 50), (50, 101)))
    read_images([half, half], max_pixels=10_000)
    with pytest.raises(BadRequestError, match=r"earlier turns included, have 10050 pixels together; .* \(/new\)$"):
        read_images([half, rest], max_pixels=10_000)


def test_a_jpeg_of_countless_scans_is_refused():
    image = encoded(picture(1), "JPEG", progressive=True)
    read(image)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"
    bomb = msgspec.structs.replace(image, data=image.data[:-2] + scan * 101 + image.data[-2:])
    with pytest.raises(BadRequestError, match=r"^the image is a JPEG of more than 100 scans"):
        read(bomb)


def test_greys_of_16_bits_are_seen():
    greys = Image.new("I;16", (3, 1))
    for x, value in enumerate((0, 0x8000, 0xFFFF)):
        greys.putpixel((x, 0), value)
    seen = read(encoded(greys))
    assert [seen.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_the_grey_that_stands_for_nothing_is_white(mode):
    seen = read(encoded(Image.new(mode, (1, 1), 9), transparency=9))
    assert seen.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_is_reduced_where_no_more_can_be_seen(kind):
    [seen] = read_images([encoded(Image.new("RGB", (100, 40), "blue"), kind)], max_pixels=10_000, enough=10)
    assert seen.size == (25, 10)
    assert seen.getpixel((20, 5))[2] > 200


def test_a_model_that_sees_one_size_gets_about_that_of_a_large_image(seeing):
    """What is reduced first is to the model about what it would be without."""
    model = seeing("llava")
    large = Image.radial_gradient("L").resize((900, 700))
    assert model.ask(question(), images=[encoded(large)]).ids == model.generated(question(), images=[large])


def test_a_thin_line_is_refused():
    read(encoded(Image.new("L", (64, 1))))
    with pytest.raises(
        BadRequestError, match=r"^the image has 1 x 65 pixels; one side may be 64 times the other at most$"
    ):
        read(encoded(Image.new("L", (1, 65))))


@pytest.mark.parametrize("family", FAMILIES)
def test_images_as_small_and_as_thin_as_may_be_are_served(family, seeing):
    model = seeing(family)
    for shape in ({"width": 1, "height": 1}, {"width": 64, "height": 1}):
        image = picture(1, **shape)
        assert model.ask(question(), images=[encoded(image)]).ids == model.generated(question(), images=[image])


def test_as_many_images_as_a_prompt_may_hold_are_served(seeing):
    model = seeing("llava")
    images = [picture(seed) for seed in range(MAX_IMAGES)]
    assert model.ask(question(16), images=map(encoded, images)).ids == model.generated(question(16), images=images)
