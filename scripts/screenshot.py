"""How does a report look? Its first screen as a picture, by headless Chromium: `docs/report.png` of the README.

    make demo && .venv/bin/python scripts/screenshot.py runs/demo/report.html -o docs/report.png

Takes the extra `browser`, and a Chromium on the PATH. A page that complains, or asks for anything but itself, is
told of and ends with exit code 1.
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
        address, complaints = options.report.resolve().as_uri(), []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url != address else None)
        page.goto(address)
        page.screenshot(path=options.output)
        browser.close()
    if complaints:
        sys.exit("\n".join(f"screenshot: {complaint}" for complaint in complaints))
    print(f"{options.report}: {options.report.stat().st_size:,} bytes, no request, no complaint; {options.output}")


if __name__ == "__main__":
    main()
