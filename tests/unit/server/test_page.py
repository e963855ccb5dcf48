"""The web page's policy names the page's own script and style, and nothing else."""

import pytest

from llmws.errors import ConfigError
from llmws.places import page_path
from llmws.server.page import load_page


def test_the_policy_holds_the_hashes_of_what_is_in_the_file(tmp_path):
    path = tmp_path / "page.html"
    path.write_bytes(b"<style>\np {}\n</style><p>text</p><script>run()</script>")
    page = load_page(path)
    assert page.html == path.read_bytes()
    assert page.policy.split("; ") == [
        "default-src 'none'",
        "script-src 'sha256-AvyuiL0SD1mVY3NNxR+V2uo+lhk6RMFrytWmRt6CrJQ='",
        "style-src 'sha256-V5i3HfNMY6na5UUBK5kiCDR/vie+o/ohM9UXAoezoi0='",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]


@pytest.mark.parametrize(
    ("html", "message"),
    [
        (b"<script>1</script>", "0 elements style"),
        (b"<style></style>", "0 elements script"),
        (b"<style></style><script>1</script><script>2</script>", "2 elements script"),
    ],
)
def test_a_page_of_another_shape_is_not_served(tmp_path, html, message):
    path = tmp_path / "page.html"
    path.write_bytes(html)
    with pytest.raises(ConfigError, match=message):
        load_page(path)


def test_a_page_that_is_missing_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\); install llmws again"):
        load_page(tmp_path / "page.html")


def test_the_page_makes_no_markup_from_text():
    html = page_path().read_text(encoding="utf-8")
    ways = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "createElement", "eval(")
    assert [way for way in ways if way in html] == []
