"""Makes the picture in docs/results.md, of the page of MotionQA's results: python scripts/make_results_figure.py

Needs Debian's Chromium (apt-get install chromium) and no network. Run it again when the page or the results change.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tango.site import write_site

FIGURE, SITE = Path("docs/figures/results.png"), Path("build/results")
SIZE = {"width": 1280, "height": 960}
# The table on the left; on the right, samples that pruning gets wrong, with the tokens that it kept.
PLACES = ("light", "#"), ("dark", "#run/1/0?show=lost&kind=count")


def draw(chromium: str) -> None:
    both = Image.new("RGB", (2 * SIZE["width"], SIZE["height"]))
    with (
        sync_playwright() as playwright,
        contextlib.closing(
            playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        ) as browser,
    ):
        for number, (scheme, where) in enumerate(PLACES):
            page = browser.new_page(color_scheme=scheme, viewport=SIZE)
            page.goto((SITE / "index.html").absolute().as_uri() + where)
            page.locator("body[data-ready]").wait_for(timeout=120_000)
            if page.locator("article canvas").count():
                page.locator("h3").first.evaluate("one => one.scrollIntoView()")
            page.wait_for_timeout(1000)  # pictures are read as they come into view
            shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            both.paste(shot, (number * SIZE["width"], 0))
    small = both.resize((SIZE["width"] * 3 // 2, SIZE["height"] * 3 // 4))
    small.quantize(256, Image.Quantize.MAXCOVERAGE).save(FIGURE, optimize=True)


def main() -> int:
    if (chromium := shutil.which("chromium")) is None:
        print("chromium is missing (Debian: apt-get install chromium)", file=sys.stderr)
        return 2
    write_site(["results/motionqa"], SITE, None, Path("data/motionqa"), "checkpoints/tango-tiny")
    draw(chromium)
    print(f"written: {FIGURE} ({FIGURE.stat().st_size / 1000:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
