"""How does a report look? Its first screen as a picture, by headless Chromium: `docs/report.png` of the README.

    make demo && .venv/bin/python scripts/screenshot.py runs/demo/report.html -o docs/report.png

Takes the extra `browser`, and a Chromium on the PATH.
"""

import argparse
import shutil
import sys
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1040, "height": 1100}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/report.png"))
    options = parser.parse_args()
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        sys.exit(f"screenshot: none of {', '.join(BROWSERS)} is on the PATH. Install one.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(options.report.resolve().as_uri())
        page.screenshot(path=options.output)
        browser.close()


if __name__ == "__main__":
    main()
