"""The page: self-contained, safe with any text, and alive in a real browser: sliders, keys and mouse change it."""

import contextlib
import json
import re
from dataclasses import replace

import pytest
import small_picture
from browsing import WAIT, needs_browser, problems_of
from small_picture import ALONE, CONTEXT, SALIENT, TOKENS

from tango.visualize.page import page_data, write_page

NASTY = "</script><script>console.error(1)</script><!-- <img src=x onerror=alert(1)> {{data}} \u2028 \" ' &amp; é.mp4"


def example():
    """Two methods at two ratios, with texts that try to get out."""
    rows = (
        (small_picture.panel(answer=NASTY), small_picture.twice(ratio=0.5, after=5, answer="b")),
        (
            small_picture.kept_only("topk k=<b>", 0.25),
            small_picture.kept_only("topk k=<b>", 0.5, kept=tuple(range(12))),
        ),
    )
    return small_picture.picture(rows, video=NASTY, question="What is it?", unpruned="a", command="tango visualize x")


def test_the_page_is_one_file_of_plain_data(tmp_path):
    picture = example()
    write_page(picture, tmp_path / "page.html")
    write_page(replace(picture, video="caf\udce9{{title}}.mp4"), tmp_path / "other.html")  # a name that is no UTF-8
    named = (tmp_path / "other.html").read_text(encoding="utf-8")
    assert "<title>caf\\udce9{{title}}.mp4: tokens kept</title>" in named
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?(https?:)?//", page)
    assert page.count(json.dumps(picture.command)) == 1 and "{{data}}" in page.split("</title>")[0]
    assert page.count("<script") == page.count("</script") == 2
    assert "Content-Security-Policy" in page and "default-src 'none'" in page
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert json.loads(data) == json.loads(json.dumps(page_data(picture)))
    (title,) = re.findall(r"<title>(.*?)</title>", page, re.S)
    assert "<" not in title


@pytest.fixture(params=["light", "dark"])
def page(browser, tmp_path, request):
    """example() in a browser. Anything in the console, any error and any request to another host fails the test."""
    write_page(example(), tmp_path / "page.html")
    with contextlib.closing(
        browser.new_context(color_scheme=request.param, viewport={"width": 1100, "height": 900}, offline=True)
    ) as context:
        context.set_default_timeout(WAIT)
        page = context.new_page()
        problems = problems_of(page)
        page.goto((tmp_path / "page.html").as_uri())
        page.locator("body[data-ready=yes]").wait_for()
        yield page
    assert problems == []


def pixels(page):
    return page.evaluate("[...document.querySelectorAll('canvas.view')].map(canvas => canvas.toDataURL())")


def point(page, token, view=0):
    """Move the mouse to the middle of a token."""
    canvas = page.locator("canvas.view").nth(view)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    (row, column), (rows, columns) = divmod(token % TOKENS, small_picture.GRID[1]), small_picture.GRID
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / columns, box["y"] + (row + 0.5) * box["height"] / rows)


@needs_browser
def test_texts_are_shown_as_they_are(page):
    assert page.locator("h1").text_content() == NASTY
    assert page.locator("h2").all_text_contents() == ["tango", "topk k=<b>"]
    assert NASTY in page.locator("section").first.text_content()
    assert page.locator("main :is(img, b, script)").count() == 0


@needs_browser
def test_colours_follow_the_system(page, request):
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(value) for value in re.findall(r"\d+", paper)) < 200) is ("dark" in request.node.name)


@needs_browser
def test_sliders_move_by_keys_and_change_the_pictures(page):
    frame, ratio = page.locator("#frame"), page.locator("#ratio")
    assert page.locator("canvas.view").count() == 2
    assert (frame.get_attribute("max"), ratio.get_attribute("max")) == ("3", "1")
    first = pixels(page)
    frame.press("ArrowRight")
    assert frame.input_value() == "1" and "1.00 s" in page.locator("#frame-says").text_content()
    second = pixels(page)
    ratio.press("ArrowRight")
    assert page.locator("#ratio-says").text_content() == "0.5"
    assert "5 of 24" in page.locator("section").first.text_content()
    assert first[0] != second[0] and first[1] != second[1] and pixels(page)[1] != second[1]
    ratio.press("ArrowLeft")
    assert pixels(page) == second
    page.locator("#heat").click()
    assert pixels(page)[0] != second[0]
    page.locator("#heat").click()
    assert pixels(page) == second


@needs_browser
def test_pointing_at_a_token_shows_what_it_is_part_of(page):
    words, other = (page.locator("section").nth(number).locator(".words") for number in (0, 1))
    page.evaluate("goTo(1)")
    dark = pixels(page)[0]
    point(page, CONTEXT)
    assert "frame 1, row 0, column 1: kept, merged. It stands for 4 tokens of frames 0 to 2." in words.text_content()
    assert pixels(page)[0] != dark
    point(page, CONTEXT, view=1)
    assert words.text_content() == "" and pixels(page)[0] == dark
    assert other.text_content().endswith("column 1: dropped.")
    point(page, CONTEXT + 1)
    assert (
        "column 2: merged. The token that stands at frame 1, row 0, column 1, stands for 4 tokens"
        in words.text_content()
    )

    # A token that is merged of itself alone, and a salient one, say no number.
    page.evaluate("goTo(2)")
    point(page, ALONE)
    assert words.text_content().endswith("kept, merged.")
    page.evaluate("goTo(0)")
    point(page, SALIENT + 1)
    point(page, SALIENT)
    assert words.text_content().endswith("kept, salient.")

    # A token of two kept ones is shown with the nearer one, and lights up with both.
    page.locator("#ratio").press("ArrowRight")
    point(page, 1)
    assert words.text_content().endswith("stands for 4 tokens of frames 0 to 2. It is part of 1 more kept token.")
    page.evaluate("goTo(2)")
    point(page, ALONE)
    assert words.text_content().endswith("kept, merged. It stands for 2 tokens of frames 0 to 2.")


@needs_browser
def test_the_same_by_keys_alone(page):
    """From the first token of the last frame but one to a member, and on to where its token stands."""
    words, view = page.locator("section").first.locator(".words"), page.locator("canvas.view").first
    page.evaluate("goTo(1)")
    dark = pixels(page)[0]
    page.evaluate("goTo(2)")
    view.press("ArrowRight")
    assert "frame 2, row 0, column 0: dropped" in words.text_content()
    view.press("ArrowRight")
    assert "frame 2, row 0, column 1: merged" in words.text_content()
    view.press("Enter")
    assert page.locator("#frame").input_value() == "1"
    assert "It stands for 4 tokens" in words.text_content()
    view.press("Escape")
    assert words.text_content() == "" and pixels(page)[0] == dark


@needs_browser
def test_the_strip_goes_to_a_frame(page):
    strip = page.locator(".strip").first
    strip.click(position={"x": strip.bounding_box()["width"] * 0.6, "y": 20})
    assert page.locator("#frame").input_value() == "2"
