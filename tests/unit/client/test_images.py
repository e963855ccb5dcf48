"""Images as a prompt carries them."""

import pytest

from llmws.client import RequestRejectedError, image, image_file
from llmws.client.images import MAX_IMAGES
from llmws.client.requests import check, prompt
from llmws.protocol import messages as m


@pytest.mark.parametrize(
    ("data", "mime"),
    [
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"RIFF\0\0\0\0WEBP", "image/webp"),
    ],
)
def test_the_type_is_known_from_the_first_bytes(data, mime):
    assert image(data).mime == mime


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"RIFF\0\0\0\0WAVE", b"BM"])
def test_another_type_is_refused(data):
    with pytest.raises(ValueError, match=r"^not an image that can be sent"):
        image(data)


def test_an_image_that_the_server_would_not_take_is_refused_before_it_is_sent():
    request = m.Inference(prompt=m.Prompt(user="x", images=[image(b"GIF89a" + bytes(2000))]))
    with pytest.raises(RequestRejectedError, match=r"the server takes 1024; .* raise limits.max_message_bytes there"):
        check(request, m.Limits(max_message_bytes=1024, max_queue=1))


def test_more_images_than_a_prompt_takes_are_refused_before_they_are_sent():
    images = [image(b"GIF89a")] * MAX_IMAGES
    assert prompt("x", None, images) == m.Prompt(user="x", images=images)
    with pytest.raises(ValueError, match=r"^17 images; a prompt takes 16$"):
        prompt("x", None, [*images, images[0]])


def test_what_is_no_plain_file_is_not_read(tmp_path):
    with pytest.raises(ValueError, match=f"^{tmp_path}: this is not a plain file$"):
        image_file(tmp_path)
    with pytest.raises(ValueError, match=r"/missing: there is no such file$"):
        image_file(tmp_path / "missing")
