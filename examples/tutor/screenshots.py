"""The README's pictures of the tutor: ``python screenshots.py http://127.0.0.1:8080 FOLDER``.

Needs the extra ``browser`` and a Chromium; what it shows is what the running tutor answers.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

LINES = ("3x + 7 - 7 = 22 + 7", "3x = 15", "x = 5")
WIDE = {"width": 1440, "height": 1000}
PHONE = {"width": 360, "height": 780}


def write(page: Any) -> None:
    """Type a solution, a line at a time."""
    for count, line in enumerate(LINES, 1):
        page.get_by_label("Next line").fill(line)
        page.get_by_label("Next line").press("Enter")
        page.locator(f"#lines > li:nth-child({count}):not(.waiting)").wait_for()


def main(url: str, folder: Path) -> None:
    """Take every picture."""
    chromium = os.environ.get("PRM_EDGE_CHROMIUM") or shutil.which("chromium")
    root = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=root)

        def opened(viewport: dict[str, int], scheme: str) -> Any:
            page = browser.new_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
            page.goto(url)
            page.locator("body[data-ready]").wait_for()
            write(page)
            return page

        page = opened(WIDE, "light")
        page.get_by_role("button", name="Choose the soundest").click()
        page.locator("#ranked > li").first.wait_for()
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=folder / "wide.png", full_page=True)
        page = opened(PHONE, "light")
        page.evaluate("document.querySelector('#write-title').scrollIntoView()")
        page.screenshot(path=folder / "phone.png")
        page = opened(PHONE, "dark")
        page.get_by_role("switch", name="Teacher").click()
        page.locator("#lines > li").first.get_by_label("right").check()
        page.evaluate("document.querySelector('#write-title').scrollIntoView()")
        page.screenshot(path=folder / "phone-dark.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
