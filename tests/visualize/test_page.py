"""The page: self-contained, safe with any text, and alive in a real browser: sliders, keys and mouse change it."""

import json
import re

import pytest
import small_picture
from browser import executable, started
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
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?(https?:)?//", page)
    assert page.count("<script") == page.count("</script") == 2
    assert "Content-Security-Policy" in page and "default-src 'none'" in page
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert json.loads(data) == json.loads(json.dumps(page_data(picture)))
    (title,) = re.findall(r"<title>(.*?)</title>", page, re.S)
    assert "<" not in title


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if executable() is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with started(tmp_path_factory.mktemp("chromium") / "profile") as running:
        yield running


PIXELS = "[...document.querySelectorAll('canvas.view')].map(c => c.toDataURL())"
WORDS = "[...document.querySelectorAll('section')].map(s => s.querySelector('.told').textContent)"


def place(browser, token, view=0):
    """Where a token is on the screen."""
    row, column = divmod(token % TOKENS, small_picture.GRID[1])
    left, top, width, height = browser.js(
        f"(() => {{ const c = document.querySelectorAll('canvas.view')[{view}]; c.scrollIntoView({{block: 'center'}});"
        " const b = c.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
    )
    return left + (column + 0.5) * width / small_picture.GRID[1], top + (row + 0.5) * height / small_picture.GRID[0]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_works_in_a_browser(browser, tmp_path, dark):
    write_page(example(), tmp_path / "page.html")
    browser.problems.clear()
    browser.open(tmp_path / "page.html", dark)

    # What is there: the texts as texts, one picture a method, sliders over frames and ratios.
    assert browser.js("document.querySelector('h1').textContent") == NASTY
    assert browser.js("[...document.querySelectorAll('h2')].map(h => h.textContent)") == ["tango", "topk k=<b>"]
    assert NASTY in browser.js("document.querySelector('section').textContent")
    assert browser.js("document.querySelectorAll('main img, main b, main script').length") == 0
    assert browser.js("document.querySelectorAll('canvas.view').length") == 2
    assert browser.js("['frame', 'ratio'].map(id => +document.getElementById(id).max)") == [3, 1]
    paper = browser.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(v) for v in re.findall(r"\d+", paper)) < 200) is dark

    # The sliders move by keys, as everywhere, and change the pictures.
    shown = [browser.js(PIXELS)]
    browser.js("document.getElementById('frame').focus()")
    browser.press("ArrowRight", 39)
    assert browser.js("document.getElementById('frame').value") == "1"
    assert "1.00 s" in browser.js("document.getElementById('frame-says').textContent")
    shown.append(browser.js(PIXELS))
    browser.js("document.getElementById('ratio').focus()")
    browser.press("ArrowRight", 39)
    assert browser.js("document.getElementById('ratio-says').textContent") == "0.5"
    assert "5 of 24" in browser.js("document.querySelector('section').textContent")
    shown.append(browser.js(PIXELS))
    assert shown[0][0] != shown[1][0] and shown[0][1] != shown[1][1] and shown[1][1] != shown[2][1]
    browser.press("ArrowLeft", 37)
    assert browser.js(PIXELS) == shown[1]
    browser.js("document.getElementById('heat').click()")
    heat = browser.js(PIXELS)
    assert heat[0] != shown[1][0]
    browser.js("document.getElementById('heat').click()")

    # Pointing at a merged token, or at one of its members, shows its members.
    browser.point(*place(browser, CONTEXT))
    assert "frame 1, row 0, column 1: kept, merged. It stands for 4 tokens of frames 0 to 2." in browser.js(WORDS)[0]
    lit = browser.js(PIXELS)[0]
    assert lit != shown[1][0]
    browser.point(*place(browser, CONTEXT, view=1))
    assert browser.js(WORDS)[0] == "" and browser.js(PIXELS)[0] == shown[1][0]
    assert browser.js(WORDS)[1].endswith("column 1: dropped.")
    browser.point(*place(browser, CONTEXT + 1))
    text = browser.js(WORDS)[0]
    assert "column 2: merged. The token that stands at frame 1, row 0, column 1, stands for 4 tokens" in text
    browser.point(1, 1)

    # The same by keys alone: from the first token of the last frame but one to a member, and on to where it stands.
    browser.js("goTo(2)")
    browser.js("document.querySelector('canvas.view').focus()")
    browser.press("ArrowRight", 39)
    assert "frame 2, row 0, column 0: dropped" in browser.js(WORDS)[0]
    browser.press("ArrowRight", 39)
    assert "frame 2, row 0, column 1: merged" in browser.js(WORDS)[0]
    browser.press("Enter", 13)
    assert browser.js("document.getElementById('frame').value") == "1"
    assert "It stands for 4 tokens" in browser.js(WORDS)[0]
    browser.press("Escape", 27)
    assert browser.js(WORDS)[0] == "" and browser.js(PIXELS)[0] == shown[1][0]

    # The strip goes to a frame; a token that is merged of itself alone, and a salient one, say no number.
    browser.js("document.querySelector('.strip').scrollIntoView({block: 'center'})")
    x, y, width = browser.js(
        "(({left, top, width}) => [left, top, width])(document.querySelector('.strip').getBoundingClientRect())"
    )
    for kind in ("mousePressed", "mouseReleased"):
        at = {"x": x + width * 0.6, "y": y + 20, "button": "left", "clickCount": 1}
        browser.call("Input.dispatchMouseEvent", type=kind, **at)
    assert browser.js("document.getElementById('frame').value") == "2"
    browser.point(*place(browser, ALONE))
    assert browser.js(WORDS)[0].endswith("kept, merged.")
    browser.js("goTo(0)")
    browser.point(*place(browser, SALIENT + 1))
    browser.point(*place(browser, SALIENT))
    assert browser.js(WORDS)[0].endswith("kept, salient.")

    # A token of two kept ones is shown with the nearer one, and lights up with both.
    browser.js("(state.ratio = 1, draw())")
    browser.point(*place(browser, 1))
    assert browser.js(WORDS)[0].endswith("stands for 4 tokens of frames 0 to 2. It is part of 1 more kept token.")
    browser.js("goTo(2)")
    browser.point(*place(browser, ALONE))
    assert browser.js(WORDS)[0].endswith("kept, merged. It stands for 2 tokens of frames 0 to 2.")
    assert browser.problems == []
