"""Makes the picture of the results page in docs/results.md from MotionQA's samples: python scripts/make_results_figure.py

Needs Debian's Chromium (apt-get install chromium) and no network. Run it again when the page or the results change.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tango.site import write_site

FIGURE = Path("docs/figures/results.png")
SIZE = {"width": 1280, "height": 960}
# The table on the left; on the right, samples that pruning gets wrong, with the tokens that it kept.
PLACES = ("light", "#"), ("dark", "#run/1/0?show=lost&kind=count")


def main() -> int:
    if (chromium := shutil.which("chromium")) is None:
        print("chromium is missing (Debian: apt-get install chromium)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as room:
        site = Path(room, "site")
        write_site(["results/motionqa"], site, None, Path("data/motionqa"), "checkpoints/tango-tiny")
        shots = []
        with (
            sync_playwright() as playwright,
            contextlib.closing(
                playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            ) as browser,
        ):
            for scheme, where in PLACES:
                page = browser.new_page(color_scheme=scheme, viewport=SIZE)
                page.goto((site / "index.html").absolute().as_uri() + where)
                page.locator("body[data-ready]").wait_for(timeout=120_000)
                if page.locator("article canvas").count():
                    page.locator("article").first.scroll_into_view_if_needed()
                    page.locator("h3").first.evaluate("one => one.scrollIntoView()")
                page.wait_for_timeout(1000)  # pictures are read as they come into view
                page.screenshot(path=Path(room, f"{scheme}.png"))
                shots.append(Image.open(Path(room, f"{scheme}.png")).convert("RGB"))
        both = Image.new("RGB", (2 * SIZE["width"], SIZE["height"]))
        for place, shot in enumerate(shots):
            both.paste(shot, (place * SIZE["width"], 0))
        both.resize((SIZE["width"] * 3 // 2, SIZE["height"] * 3 // 4)).quantize(128).save(FIGURE, optimize=True)
    print(f"written: {FIGURE} ({FIGURE.stat().st_size / 1000:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
