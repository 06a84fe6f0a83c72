"""The results page in a real browser, from disk: sort, filter, follow a number to its samples, compare, by mouse and by
keys, on a desk and on a phone, light and dark; no request leaves, and texts are texts.
"""

import contextlib
import hashlib
import json
import re

import av
import numpy as np
import pytest
from browsing import WAIT, needs_browser, problems_of
from made_up import made_up
from made_up_runs import NASTY, example, write_runs

from tango.inference.chat import Chat
from tango.inference.checkpoints import load
from tango.pruners import Tango
from tango.site import write_site

pytestmark = needs_browser
DESK, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 800}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    write_runs(folder / "sweep", example(), question=NASTY, reply=NASTY)
    write_site([folder / "sweep"], folder / "site")
    return folder / "site"


@pytest.fixture
def opened(browser):
    """Opens a site. Anything in the console, any error and any request to another host fails the test."""
    problems, contexts = [], contextlib.ExitStack()  # a list of problems a page

    def open_page(site, where="", viewport=DESK, scheme="light"):
        context = browser.new_context(color_scheme=scheme, viewport=viewport, offline=True)
        contexts.enter_context(contextlib.closing(context))
        context.set_default_timeout(WAIT)
        page = context.new_page()
        problems.append(problems_of(page))
        page.goto((site / "index.html").as_uri() + where)
        ready(page)
        return page

    with contexts:
        yield open_page
    assert not any(problems), problems


def ready(page, where=None):
    """Wait until what the address says is shown."""
    page.wait_for_function(
        "where => document.body.dataset.ready === (location.hash || '#')"
        " && (!where || location.hash.startsWith(where))",
        arg=where,
    )


def until(page, condition):
    """As a function: a page that forbids eval() takes no other condition."""
    page.wait_for_function(f"() => {condition}")


def names(page):
    """Of the runs in the table, and the methods that are drawn."""
    drawn = page.evaluate("byId('plot').data.filter(one => one.mode === 'markers').flatMap(one => one.x).length")
    shown = page.locator("#runs tbody tr td:first-child").all_text_contents()
    assert drawn == len(shown)
    return shown


def test_the_table_sorts_by_each_column(opened, site):
    page = opened(site)
    first = names(page)
    assert len(first) == 7 and first[1:3] == ["Tango 30 %", "unpruned"]  # models by name
    heading = page.get_by_role("columnheader", name="accuracy (%)")
    heading.get_by_role("button").click()
    ready(page)
    assert heading.get_attribute("aria-sort") == "descending"
    right = [float(text.split()[0]) for text in page.locator("#runs tbody tr td:nth-child(6)").all_text_contents()]
    assert right == sorted(right, reverse=True) == [80, 75, 70, 70, 50, 35, 5]
    heading.get_by_role("button").click()
    ready(page)
    assert heading.get_attribute("aria-sort") == "ascending" and names(page)[-1] == "unpruned"
    for column in ("difference (points)", "TTFT speed-up"):  # what has none comes last, either way round
        for _ in "ab":
            page.get_by_role("columnheader", name=column).get_by_role("button").click()
            ready(page)
            cells = page.get_by_role("columnheader", name=column).evaluate(
                "head => [...byId('runs').tBodies[0].rows].map(row => row.cells[head.cellIndex].textContent)"
            )
            given = [float(re.match(r"[-+]?[\d.]+", text)[0]) for text in cells if text != "-"]
            assert cells[len(given) :] == ["-"] * (7 - len(given)) and given in (sorted(given), sorted(given)[::-1])


def test_filters_hold_for_table_and_plot(opened, site):
    page = opened(site)
    for label, choice, left in (
        ("model", "other, 8 frames, float32", ["Tango 30 %"]),
        ("benchmark", "MotionQA", ["unpruned", "Tango 10 %", "Tango 20 %", "random 10 %", "Tango 10 %"]),
        ("framework", "VLMEvalKit", ["Tango 10 %"]),
        ("method", "random", ["random 10 %"]),
        ("retention ratio", "20 %", ["Tango 20 %"]),
        ("retention ratio", "all tokens", ["unpruned"]),
    ):
        page.get_by_label(label).select_option(choice)
        until(page, f"document.body.dataset.ready && byId('runs').tBodies[0].rows.length === {len(left)}")
        assert names(page) == left
        page.get_by_role("button", name="show all").click()
        until(page, "document.body.dataset.ready && byId('runs').tBodies[0].rows.length === 7")
    page.get_by_label("framework").select_option("lmms-eval")
    page.get_by_label("retention ratio").select_option("10 %")
    page.reload()  # what was chosen stands in the address
    ready(page)
    assert (
        names(page)[1:] == ["Tango 10 %", "random 10 %"] and page.get_by_label("framework").input_value() == "lmms-eval"
    )


def test_a_number_leads_to_its_command_and_samples(opened, site):
    page = opened(site)
    page.get_by_role("link", name=re.compile(r"^70\.0 \[")).first.click()
    ready(page, "#run")
    assert page.locator("h2").text_content() == "Tango 10 % on MotionQA in lmms-eval"
    facts = page.locator("dl.facts").first.inner_text()
    for part in (
        "WRAPPER=tango python -m lmms_eval --tasks motionqa",
        "A processor (cpu, 2 threads)",
        "torch 2.11.0",
        "0123456789ab",
    ):
        assert part in facts
    assert page.locator("article").count() == 20 and page.locator("#found").text_content() == "40 of 40 questions"
    article = page.locator("article").first
    assert NASTY in article.locator(".question").text_content() and article.locator(".gold").text_content() == "A"
    assert article.locator("tbody tr").all_inner_texts()[0].split("\t")[0] == "Tango 10 %"
    assert [cells[-1] for cells in (row.split("\t") for row in article.locator("tbody tr").all_inner_texts())] == [
        "52 of 512",
        "512 of 512",
    ]
    page.go_back()
    ready(page)
    assert page.locator("#all").is_visible() and not page.locator("#one").is_visible()


def test_where_two_methods_differ(opened, site):
    """Tango has 28 to 31 wrong, which the unpruned model has right: -10 points."""
    page = opened(site)
    page.get_by_role("link", name="Tango 10 %").first.click()
    ready(page, "#run")
    said = page.locator("#compared").inner_text()
    found = json.loads((site / "data" / "index.js").read_text().partition(" = ")[2].rstrip(";\n"))
    places = {run["place"].rsplit("/")[-1]: number for number, run in enumerate(found["runs"])}
    low, high = found["pairs"][f"{places['tango-0.1']},{places['vanilla']}"][1:]
    assert f"Difference: -10.0 [{low:+.1f}, {high:+.1f}] points (paired bootstrap, 95 %, n = 40)" in said
    assert "4 answers are not the same: right in Tango 10 % alone 0, right in unpruned alone 4, wrong in both 8" in said
    page.get_by_label("show", exact=True).select_option("lost")
    ready(page)
    shown = page.locator("article").evaluate_all("all => all.map(one => one.dataset.id)")
    assert shown == ["q28", "q29", "q30", "q31"]
    marks = page.locator("article").first.locator("tbody tr td:nth-child(2)").all_text_contents()
    assert marks == ["B ✗ wrong", "A ✓ right"]
    page.get_by_label("kind of question").select_option("count")
    ready(page)
    assert page.locator("article header strong").all_text_contents()[0:2] == ["q29", "q31"]
    page.get_by_label("other run").select_option("none")
    ready(page, f"#run/{places['tango-0.1']}/none")
    assert (
        page.locator("#compared").count() == 0
        and page.locator("article tbody tr").count() == page.locator("article").count()
    )
    page.get_by_label("other run").select_option(str(places["vlmeval-tango-0.1"]))
    until(page, "document.body.dataset.ready && document.querySelector('#compared')")
    assert (
        "0 answers are not the same: right in Tango 10 %, lmms-eval alone 0" in page.locator("#compared").inner_text()
    )
    page.get_by_label("id contains").fill("q3")
    page.get_by_label("id contains").press("Enter")
    until(page, "byId('found').textContent.startsWith('6 of')")  # of kind count: q3, 31, 33, 35, 37, 39


def test_the_page_opens_with_two_runs_that_are_compared(opened, tmp_path):
    write_runs(tmp_path / "sweep", example())
    write_site([tmp_path / "sweep"], tmp_path / "site", compare=("random-0.1", "tango-0.1"))
    page = opened(tmp_path / "site")
    assert page.locator("h2").text_content() == "random 10 % on MotionQA in lmms-eval"
    assert "right in random 10 % alone 0, right in Tango 10 % alone 14" in page.locator("#compared").inner_text()
    assert page.locator("#found").text_content() == "14 of 40 questions"  # whose answers differ
    page.get_by_role("link", name="all runs").click()
    until(page, "!byId('all').hidden && byId('one').hidden")


def test_all_of_it_by_keys(opened, site):
    page = opened(site)

    def tab_to(text):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent").startswith(text):
                return
        raise AssertionError(f"Tab does not lead to {text}")

    tab_to("accuracy (%)")
    page.keyboard.press("Enter")
    ready(page)
    assert names(page)[0] == "unpruned"
    assert page.evaluate("document.activeElement.textContent").startswith("accuracy (%)")  # it stays where it was
    tab_to("Tango 20 %")
    page.keyboard.press("Enter")
    ready(page, "#run")
    assert page.evaluate("document.activeElement.tagName") == "H2"  # a screen reader goes on there
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "show":
            break
    for key, show in (("End", "neither"), ("ArrowUp", "lost")):
        page.keyboard.press(key)
        until(page, f"location.hash.includes('show={show}') && document.body.dataset.ready")
    assert page.locator("article").count() == 2
    assert page.evaluate("document.activeElement.name") == "show"
    page.evaluate("choose({show: null})")
    ready(page)
    tab_to("next")
    page.keyboard.press("Enter")
    until(page, "location.hash.includes('page=2') && document.body.dataset.ready")
    assert page.locator("article header strong").first.text_content() == sorted(f"q{n}" for n in range(40))[20]


@pytest.mark.parametrize("where", ["", "#run/1"])
def test_a_phone_shows_it_without_moving_sideways(where, opened, site):
    page = opened(site, where, PHONE)
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1] == 390
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system(scheme, opened, site):
    page = opened(site, scheme=scheme)

    def brightness(colour):
        return sum(int(value) for value in re.findall(r"\d+", colour)[:3])

    paper, ink = page.evaluate("(style => [style.backgroundColor, style.color])(getComputedStyle(document.body))")
    assert (brightness(paper) < 200, brightness(ink) > 600) == ((scheme == "dark"),) * 2
    text = page.locator("#plot .xtitle").evaluate("one => getComputedStyle(one).fill")
    assert brightness(text) == brightness(ink)


def test_texts_are_shown_as_they_are(opened, site):
    page = opened(site, "#?method=topk")
    assert NASTY in page.locator("#runs tbody").text_content()
    page.locator("#plot .points path").first.hover(force=True)
    hover = page.locator("#plot .hovertext").first
    hover.wait_for()
    assert "<img src=x onerror=alert(1)>" in hover.text_content() and "&amp; <b>" in hover.text_content()
    page.locator("#runs tbody a").first.click()
    ready(page, "#run")
    assert page.locator("dl.facts pre").first.text_content() == NASTY
    article = page.locator("article").first
    assert article.locator(".question").text_content() == NASTY and article.locator(".gold").text_content() == NASTY
    assert article.locator("td.text").first.text_content() == NASTY
    assert page.locator(":is(main, header) :is(img, b, script)").count() == 0
    assert page.locator("article header strong").first.text_content() == f"{NASTY}0"


def test_the_plot_shows_a_run_and_leads_to_it(opened, site):
    page = opened(site, "#?method=random")
    assert page.evaluate("byId('plot').data[0].error_y.array[0]") > 0
    page.locator("#plot .points path").first.hover(force=True)
    hover = page.locator("#plot .hovertext").first
    hover.wait_for()
    for part in (
        "random 10 %",
        "tiny, 8 frames, float32",
        "MotionQA, lmms-eval",
        "accuracy 35.0 [",
        "n = 40",
        "10.2 %",
    ):
        assert part in hover.text_content()
    page.locator("#plot .nsewdrag").click(position=page.evaluate(
        "(([x, y, layout]) => ({x: layout.xaxis.d2p(x), y: layout.yaxis.d2p(y)}))"
        "([byId('plot').data[0].x[0], byId('plot').data[0].y[0], byId('plot')._fullLayout])"
    ))  # fmt: skip
    ready(page, "#run")
    assert page.locator("h2").text_content().startswith("random 10 %")


def test_the_pareto_line_is_of_what_nothing_betters(opened, site):
    page = opened(site, "#?benchmark=MotionQA&framework=lmms-eval")
    line = page.evaluate("(one => [one.x, one.y])(byId('plot').data.find(one => one.mode === 'lines'))")
    assert line[1] == [70, 75, 80]  # random has as few tokens as Tango 10 %, and fewer right
    page.get_by_label("plot against").select_option("time to first token (ms)")
    until(page, "document.body.dataset.ready && byId('plot').layout.xaxis.title.text.startsWith('time')")
    line = page.evaluate("(one => [one.x, one.y])(byId('plot').data.find(one => one.mode === 'lines'))")
    assert line == [[8, 10, 12, 20], [35, 70, 75, 80]]


def test_many_samples_are_read_in_pages(opened, tmp_path):
    """What is shown is what is loaded: 5,000 samples here."""
    count = 5_000
    cells = {name: made_up(method, ratio, []) for name, method, ratio in (("a", "vanilla", None), ("b", "tango", 0.1))}
    for cell, step in zip(cells.values(), (100, 70), strict=True):
        row = cell["samples"][0]
        cell["samples"] = [
            row | {"id": f"{n:06}", "score": float(n % step > 0), "prediction": "AB"[n % step == 0]}
            for n in range(count)
        ]
    write_runs(tmp_path / "sweep", cells)
    write_site([tmp_path / "sweep"], tmp_path / "site")
    assert len(list((tmp_path / "site" / "data").iterdir())) == 3 * count // 250 + 4
    page = opened(tmp_path / "site", "#run/1?page=250")
    assert page.locator("article").last.locator("strong").first.text_content() == "004999"
    loaded = page.locator("script[src^='data/']").count()
    assert loaded == 7  # index, benchmark, two vectors, a page of questions, two of replies
    wrong = {n for n in range(count) if n % 70 == 0} - {n for n in range(count) if n % 100 == 0}
    page.get_by_label("show", exact=True).select_option("lost")
    until(page, "byId('found').textContent.startsWith('64 of')")
    assert len(wrong) == 64 and page.locator("article").count() == 20
    page.get_by_role("spinbutton").first.fill("99")  # beyond the last: the last
    page.get_by_role("spinbutton").first.press("Enter")
    until(page, "document.body.dataset.ready && document.querySelectorAll('article').length === 4")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos") / "videos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        with av.open(str(folder / f"{name}.mp4"), "w") as file:
            stream = file.add_stream("mpeg4", rate=4)
            stream.width, stream.height = 64, 48
            for picture in random.integers(0, 255, (8, 48, 64, 3), dtype=np.uint8):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode())
    return folder.parent


def test_frames_show_the_tokens_that_were_kept(opened, tmp_path, checkpoint, videos):
    """Drawn where the method keeps today what the record's hash says, and nowhere else."""
    pruner, loaded = Tango(retention_ratio=0.25), load(str(checkpoint))
    with Chat(loaded, pruner, max_frames=4).session() as chat:
        content = [{"type": "video", "video": str(videos / "videos" / "a.mp4")}, {"type": "text", "text": "Who?"}]
        (record,) = chat.generate([{"role": "user", "content": content}], {"max_new_tokens": 1}, "x").videos
    cells = {"vanilla": made_up("vanilla", None, [0], 64, model=checkpoint.name),
             "tango": made_up("tango", 0.25, [1], record["tokens_after"], model=checkpoint.name)}  # fmt: skip
    for cell in cells.values():
        cell["provenance"]["model"] |= {"max_frames_num": 4}
        cell["samples"] = cell["samples"][:3]
        for row in cell["samples"]:
            row |= {"kept": [None], "tokens_before": record["tokens_before"], "tokens_after": record["tokens_after"]}
    cells["tango"]["provenance"]["settings"] = pruner.settings()
    kept = (record["kept"], hashlib.sha256(b"another").hexdigest()[:16], record["kept"])
    for row, value in zip(cells["tango"]["samples"], kept, strict=True):
        row["kept"] = [value]
    write_runs(tmp_path / "sweep", cells)
    for name in cells:  # the third question's video is none of the folder
        file = tmp_path / "sweep" / "cells" / name / "run" / "tiny" / "1_samples_motionqa.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line, video in zip(lines, ("videos/a", "videos/a.mp4", "../../secret"), strict=True):
            line["accuracy"]["video"] = video
        file.write_text("\n".join(map(json.dumps, lines)))
    remarks = write_site([tmp_path / "sweep"], tmp_path / "site", None, videos, str(checkpoint))
    assert any("of 1 videos no frames are shown: ../../secret" in remark for remark in remarks)
    assert any("of 1 of 2 videos and methods the kept tokens are not drawn" in remark for remark in remarks)
    assert len(list((tmp_path / "site" / "frames").iterdir())) == 1  # one video, however it is called

    page = opened(tmp_path / "site", "#run/1/0")
    captions = [article.locator("figcaption").all_text_contents() for article in page.locator("article").all()]
    assert captions[0][0].startswith(
        f"Tango 25 %: {record['tokens_after']} of {record['tokens_before']} tokens kept: salient"
    )
    assert captions[0][1] == captions[1][1] == "unpruned: all tokens"
    assert captions[1][0] == "Tango 25 %: which tokens were kept is not known here" and captions[2] == []
    canvas = page.locator("article canvas")
    assert canvas.count() == 1 and page.locator("article img").count() == 4
    rows, columns = record["grid"]
    until(page, "document.querySelector('canvas').width > 300")
    dark = canvas.evaluate(
        """(canvas, [rows, columns]) => {
          const wide = canvas.width / 4 / columns, high = canvas.height / rows;
          const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          let dark = 0;
          for (let x = 0; x < 4 * columns; x++) for (let y = 0; y < rows; y++) {
            dark += pixels[4 * (Math.floor((y + .5) * high) * canvas.width + Math.floor((x + .5) * wide)) + 3] > 0;
          }
          return dark;
        }""",
        [rows, columns],
    )
    assert record["tokens_before"] - dark == record["tokens_after"]  # the dropped ones, counted in pixels
