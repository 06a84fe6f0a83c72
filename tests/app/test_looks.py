"""Both tabs by keys alone, on a phone, and in light and dark."""

import re

import pytest
from browsing import needs_browser
from playwright.sync_api import expect
from visiting import PHONE, visitor

pytest.importorskip("gradio", reason="the extra `app` is not installed")
from tango.app import served

pytestmark = needs_browser


@pytest.fixture(scope="module")
def at(checkpoint):
    with served(checkpoint, 8) as address:
        yield address


def focus(page, name, role=None):
    """Press Tab until an element is in focus; fails when all had their turn."""
    for _ in range(80):
        page.keyboard.press("Tab")
        here = page.evaluate(
            "() => { const at = document.activeElement; const label = at.labels?.[0] ?? at.closest('label');"
            " return [at.getAttribute('role') ?? at.type ?? at.tagName,"
            " at.getAttribute('aria-label') ?? label?.textContent ?? at.textContent] }"
        )
        if re.fullmatch(name, (here[1] or "").strip()) and role in (None, here[0]):
            return
    raise AssertionError(f"no {name} is reached by Tab")


def wait_for_frames(page):
    page.locator(".frames img").first.wait_for()


def test_a_question_by_keys_alone(browser, at):
    with visitor(browser, at) as page:
        focus(page, "Sample", "combobox")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.locator("video").wait_for()
        expect(page.get_by_label("Question")).not_to_have_value("")
        focus(page, "Ask")
        page.keyboard.press("Enter")
        wait_for_frames(page)
        expect(page.get_by_label("Pruned", exact=True)).not_to_have_value("")
        before = page.locator(".numbers th").last.text_content()
        focus(page, "range slider for Retention ratio")
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "before => ![before, undefined]"
            ".includes([...document.querySelectorAll('.numbers th')].at(-1)?.textContent)",
            arg=before,
        )
        assert page.locator(".numbers th").last.text_content() == "tango 0.11"


def test_the_live_tab_by_keys_alone(browser, at):
    with visitor(browser, at) as page:
        focus(page, "Live", "tab")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Watch").wait_for()
        focus(page, "Sample to watch", "combobox")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.locator("video").wait_for()
        focus(page, "Watch")
        page.keyboard.press("Enter")
        page.locator(".held").filter(has_text=re.compile("[1-8] frames in")).wait_for()
        focus(page, "Ask now")
        page.keyboard.press("Space")
        page.wait_for_function("[...document.querySelectorAll('textarea')].at(-1).value")
        focus(page, "Stop")
        page.keyboard.press("Enter")
        page.locator(".held").filter(has_text="stopped").wait_for()


def sideways(page):
    """Pixels that the page is wider than the window, and elements that stick out of it."""
    return page.evaluate(
        "() => [document.documentElement.scrollWidth - innerWidth,"
        " [...document.querySelectorAll('.gradio-container *')]"
        ".filter(one => { const box = one.getBoundingClientRect();"
        " return box.width && box.height && (box.right > innerWidth + 1 || box.left < -1)"
        " && getComputedStyle(one).visibility !== 'hidden' })"
        ".map(one => `${one.tagName}.${one.className}`)]"
    )


def test_a_phone_shows_it_without_moving_sideways(browser, at):
    with visitor(browser, at, viewport=PHONE, has_touch=True) as page:
        page.get_by_label("Sample").click()
        page.get_by_role("option").first.click()
        page.locator("video").wait_for()
        page.get_by_role("button", name="Ask").click()
        wait_for_frames(page)
        assert sideways(page) == [0, []]
        page.get_by_role("tab", name="Live").click()
        page.get_by_label("Sample to watch").click()
        page.get_by_role("option").first.click()
        page.locator("video").last.wait_for()
        page.get_by_role("button", name="Watch").click()
        page.locator(".held").filter(has_text="frames in").wait_for()
        assert sideways(page) == [0, []]


LUMINANCE = """element => {
    const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
    const light = colour => {
        paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1)
        const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map(part => part / 255)
            .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    const ink = light(getComputedStyle(element).color)
    let under = element, colour = 'rgba(0, 0, 0, 0)'
    while (under && /^(rgba\\(.*, 0\\)|transparent)$/.test(colour)) {
        colour = getComputedStyle(under).backgroundColor
        under = under.parentElement
    }
    return [ink, light(colour)]
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_can_be_read(scheme, browser, at):
    """By WCAG's contrast of 4.5 for text."""
    with visitor(browser, at, color_scheme=scheme) as page:
        page.get_by_label("Sample").click()
        page.get_by_role("option").first.click()
        page.locator("video").wait_for()
        page.get_by_role("button", name="Ask").click()
        wait_for_frames(page)
        texts = ["h1", "textarea", ".numbers td", ".frames figcaption"]
        for tab in ("Video", "Live"):
            page.get_by_role("tab", name=tab).click()
            if tab == "Live":
                page.get_by_role("button", name="Watch").click()
                page.get_by_role("alert").wait_for()  # there is no video yet
                texts = ["h1", "textarea", ".refused"]
            for text in texts:
                ink, paper = page.locator(f"{text} >> visible=true").first.evaluate(LUMINANCE)
                assert (paper < 0.2) == (scheme == "dark"), text
                assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5, text
