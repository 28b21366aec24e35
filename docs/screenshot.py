"""Write docs/images/report.png (and MLflow's pages by arm and of trials) with a headless Chromium.

    python docs/screenshot.py STUDY_LEDGER OUT_DIR [--mlflow] [--height PX] [--dark]

STUDY_LEDGER is the folder of one study, the one that holds ``report/index.html``. With ``--mlflow`` MLflow is started
over its ``mlflow.db``, and the pages that ``robustsweep ui`` links are photographed, for which chromedriver is needed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

#: Width of the panel of MLflow's assistant.
ASSISTANT_PX = 480
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str:
    """Return the path of a Chromium on PATH.

    Raises:
        SystemExit: there is none; the message says what to install.
    """
    for name in BROWSERS:
        path = shutil.which(name)
        if path is not None:
            return path
    sys.exit(f"looked for one of {', '.join(BROWSERS)} on PATH and found none; install Chromium and try again")


def take_screenshot(url: str, target: Path, *, size: tuple[int, int], wait_seconds: float, dark: bool = False) -> None:
    """Write a PNG of ``url`` as a window of ``size`` (px) shows it after ``wait_seconds``.

    Raises:
        SystemExit: the browser wrote no image; its last words are in the message.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        command = [
            find_browser(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
            f"--virtual-time-budget={int(1000 * wait_seconds)}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--screenshot={target}",
            url,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=wait_seconds + 120, check=False)
    if not target.exists():
        sys.exit(f"tried to photograph {url} and {command[0]} wrote no {target}: {done.stderr.strip()[-500:]}")


def main() -> None:
    """Parse the command line and write the images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ledger", type=Path, help="folder of the study, which holds report/index.html")
    parser.add_argument("out", type=Path, help="folder for the images, e.g. docs/images")
    parser.add_argument("--mlflow", action="store_true", help="also mlflow-by-arm.png and mlflow-trials.png")
    parser.add_argument("--height", type=int, default=1280, help="of the report's window in px (default 1280)")
    parser.add_argument("--dark", action="store_true", help="dark colour scheme")
    arguments = parser.parse_args()
    page = arguments.ledger / "report" / "index.html"
    if not page.is_file():
        sys.exit(f"looked for {page} and found none; run `robustsweep report STUDY` first, or name the study's folder")
    target = arguments.out / "report.png"
    take_screenshot(
        page.absolute().as_uri(), target, size=(1200, arguments.height), wait_seconds=6, dark=arguments.dark
    )
    print(f"wrote {target}")
    if arguments.mlflow:
        photograph_mlflow(arguments.ledger, arguments.out)


def photograph_mlflow(ledger: Path, out: Path) -> None:
    """Write pictures of MLflow's pages of a study, as a window of 1400 × 900 px shows them without the assistant."""
    sys.path.insert(0, str(Path(__file__).parents[1]))  # the browser of the tests
    from orchestrator.tracking.server import serve_ui
    from tests.support.browser import open_browser

    uri = f"sqlite:///{(ledger / 'mlflow.db').absolute()}"
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        serve_ui(uri, ledger.absolute().name) as server,
        # The assistant opens at the right of a fresh profile; it is cut off.
        open_browser(Path(profile), width=1400 + ASSISTANT_PX, height=900) as browser,
    ):
        pages = {
            "by-arm": (server.links.by_arm, "document.querySelectorAll('.js-plotly-plot .main-svg').length >= 8"),
            "trials": (server.links.trials, "document.querySelectorAll('.ag-center-cols-container .ag-row').length"),
        }
        for name, (url, is_drawn) in pages.items():
            if url is None:
                sys.exit(f"asked for MLflow's page {name} and found no view: {server.links.problem}")
            target = out / f"mlflow-{name}.png"
            browser.open(url)
            browser.wait_for(is_drawn)
            time.sleep(3)  # colours and curves come one after the other
            browser.save_picture(target)
            _cut_assistant(target)
            print(f"wrote {target}")


def _cut_assistant(target: Path) -> None:
    """Cut off the panel that MLflow opens at the right, and write the picture with few colours."""
    from PIL import Image

    with Image.open(target) as image:
        cut = image.convert("RGB").crop((0, 0, image.width - ASSISTANT_PX, image.height))
    cut.quantize(128).save(target, optimize=True)


if __name__ == "__main__":
    main()
