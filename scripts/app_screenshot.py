"""Makes docs/figures/app.png: `tango app` in Debian's Chromium, after a sample's question was answered.

python scripts/app_screenshot.py [--output docs/figures/app.png]
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from tango.app import served
from tango.inference.checkpoints import load
from tango.motionqa.shipped import FRAMES, MODEL, shipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/figures/app.png"))
    args = parser.parse_args()
    chromium = shutil.which("chromium") or parser.error("no chromium here (Debian: apt-get install chromium)")
    with served(load(shipped(MODEL)), FRAMES) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
        page.goto(address)
        page.get_by_label("Sample").click()
        page.get_by_role("option").first.click()
        page.locator("video").wait_for()
        page.get_by_role("button", name="Ask").click()
        page.locator(".frames img").first.wait_for()
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)  # what moves has come to rest
        page.screenshot(path=args.output, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
