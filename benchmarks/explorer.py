"""The explorer's page in a headless Chromium that draws WebGL without a graphics card, and the memory of its server.

    python benchmarks/explorer.py                    # 20,000, 100,000 and 500,000 points, three minutes
    python benchmarks/explorer.py --points 20000

- *paint*: from the start of loading the page until all points are drawn and read back (bars: 1 s at 20,000, 3 s above).
- *lasso*: from its release, around half of the points, until counts and gallery stand on the page and the map is drawn
  with its selection: at most 50,000 points, a random part, as while it moves; all of them follow (bar: .25 s).
- *served*: peak resident memory of the server after all of that and 300 thumbnails (bar: 500 MiB).

The study is synthetic: one prepared trial on this disk, its images a memory-mapped file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from common import Line, environment

from orchestrator.explorer.images import encode_png
from orchestrator.explorer.jobs import Job
from orchestrator.explorer.prepared import Index, Prepared, ScoreIndex, SetIndex
from orchestrator.explorer.serve import serve
from orchestrator.explorer.study import ExploredStudy
from tests.support.chromium import Page, browser_path, open_browser
from tests.support.synthetic_ledger import make_fake_ledger

POINTS = (20_000, 100_000, 500_000)
#: Most images in a set; more points are more shifts of them.
MOST_IMAGES = 100_000
SIDE_PX = 32
LASSO_SECONDS, SERVED_MIB = 0.25, 500.0
#: Repetitions, of which the median is reported.
REPEATS = 3
#: Notes when the map has been drawn: reading a pixel waits for the drawing.
WATCH = """
new MutationObserver(() => {
  if (!document.documentElement.dataset.ready || window.painted) return;
  const { scatter } = explorer.stage.panes[0];
  scatter.draw(false);
  scatter.gl.readPixels(0, 0, 1, 1, scatter.gl.RGBA, scatter.gl.UNSIGNED_BYTE, new Uint8Array(4));
  window.painted = performance.now();
}).observe(document, { attributes: true, subtree: true });
"""
#: Draws a lasso of 60 corners around half of the points; returns milliseconds and the number of selected points.
LASSO = """
(async () => {
  const outline = new Float32Array(120);
  for (let k = 0; k < 60; k++) {
    outline[2 * k] = 1.18 * Math.cos(k * Math.PI / 30);
    outline[2 * k + 1] = 1.18 * Math.sin(k * Math.PI / 30);
  }
  await explorer.change({ picked: null, outline: null, origin: null });
  await new Promise((done) => setTimeout(done, 2000));
  const started = performance.now();
  await explorer.lasso(outline);
  await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  const { scatter } = explorer.stage.panes[0];
  scatter.gl.readPixels(0, 0, 1, 1, scatter.gl.RGBA, scatter.gl.UNSIGNED_BYTE, new Uint8Array(4));
  if (!document.querySelector('.numbers') || !document.querySelector('.gallery .tile')) throw new Error('no counts');
  return [performance.now() - started, explorer.state.picked.length];
})()
"""


def write_trial(folder: Path, num_points: int) -> None:
    """Write a prepared trial of two classes, its points normally distributed."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    count = min(num_points, MOST_IMAGES)
    shifts = ("identity/0", *(f"noise/{k}" for k in range(1, -(-num_points // count))))
    n = count * len(shifts)
    np.save(folder / "labels.npy", np.tile(random.integers(0, 2, count), len(shifts)).astype(np.uint16))
    np.save(folder / "predicted.npy", random.integers(0, 2, n).astype(np.uint16))
    np.save(folder / "score-0.npy", random.gamma(2.0, 2.0, n).astype(np.float32))
    np.save(folder / "pca.npy", random.normal(size=(n, 2)).astype(np.float32))
    np.save(folder / "images.npy", random.integers(0, 256, (count, 3, SIDE_PX, SIDE_PX), dtype=np.uint8))
    (folder / "ids.json").write_text(json.dumps([f"patient-{k:06d}" for k in range(count)]))
    index = Index(
        key="benchmark",
        signature="benchmark",
        name="base",
        replicate=0,
        classes=("normal", "diseased"),
        sets=(SetIndex(0, "test", count, shifts, 0, 0, shifts),),
        scores=(ScoreIndex("msr", "maximum softmax response", "max p", "log odds"),),
        columns=(),
        fitted_on="test",
        explained=(0.5, 0.3),
    )
    (folder / "index.json").write_text(json.dumps(index.as_json()))


class _Prepared:
    """In place of ``Jobs``: everything is there."""

    def __init__(self, folder: Path) -> None:
        self._job = Job(1.0, is_done=True, result=str(folder))

    def find(self, request: Any) -> Job:
        return self._job

    def close(self) -> None:
        pass


class _Images:
    """In place of ``Images``: one memory-mapped file."""

    def __init__(self, folder: Path) -> None:
        self._images = np.load(folder / "images.npy", mmap_mode="r")

    def read(self, signature: str, name: str, row: int) -> np.ndarray:
        return np.asarray(self._images[row])


class _Painter:
    """In place of ``Painter``: shifted images are the unshifted ones, without a process that draws them."""

    def __init__(self, images: _Images) -> None:
        self._images = images

    def paint(self, request: dict[str, Any]) -> bytes:
        return encode_png(self._images.read("", request["set"], request["row"]), request["side"])

    def close(self) -> None:
        pass


def serve_trial(folder: Path) -> None:
    """Serve a prepared trial; print the address, and at each line of standard input the peak memory in MiB."""
    explored = ExploredStudy(make_fake_ledger(folder.parent / "ledger", replicates=1), folder)
    explored.jobs, explored.images = _Prepared(folder), _Images(folder)  # type: ignore[assignment]
    explored._painter = _Painter(explored.images)  # type: ignore[assignment,arg-type]
    with serve(explored) as served:
        print(served.url, flush=True)
        for _ in sys.stdin:
            status = Path("/proc/self/status").read_text()
            print(int(status.partition("VmHWM:")[2].split()[0]) / 1024, flush=True)


def measure(folder: Path, num_points: int) -> dict[str, float]:
    """Return seconds of paint and lasso (medians), MiB of the server and the number of points."""
    write_trial(folder / "trial", num_points)
    words = [sys.executable, __file__, "--serve", str(folder / "trial")]
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    assert server.stdin is not None
    assert server.stdout is not None
    with server:
        try:
            url = server.stdout.readline().strip()
            (folder / "profile").mkdir()
            with open_browser(folder / "profile") as page:
                paints, lassos = _measure_page(page, f"{url}#b={_list_blocks(folder / 'trial')}")
            for point in range(0, 300):
                urllib.request.urlopen(f"{url}api/trials/0/images/{point * 7}?side=96").read()
            server.stdin.write("\n")
            server.stdin.flush()
            served = float(server.stdout.readline())
        finally:
            server.kill()
    found = Prepared(folder / "trial").index.num_points
    return {
        "points": found,
        "paint": statistics.median(paints),
        "lasso": statistics.median(lassos),
        "served_mib": served,
    }


def _list_blocks(folder: Path) -> str:
    return ".".join(map(str, range(len(Prepared(folder).index.sets[0].shifts))))


def _measure_page(page: Page, url: str) -> tuple[list[float], list[float]]:
    page.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
    paints, lassos = [], []
    for _ in range(REPEATS):
        page.call("Page.navigate", url="about:blank")
        page.visit(url, width=1400, height=900)
        page.wait_for("window.painted")
        paints.append(page.evaluate("window.painted") / 1000)
    time.sleep(1)
    for _ in range(REPEATS):
        milliseconds, selected = page.evaluate(LASSO)
        if not selected:
            raise RuntimeError("the lasso selected nothing")
        lassos.append(milliseconds / 1000)
    return paints, lassos


def main() -> None:
    """Measure and print the JSON lines, or be the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="*", default=POINTS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve is not None:
        serve_trial(asked.serve)
        return
    if browser_path is None:
        parser.error("found neither Chromium nor Chrome; install one")
    for num_points in asked.points:
        with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as scratch:
            found = measure(Path(scratch), num_points)
        name, bar = f"explorer.{num_points}", 1.0 if num_points <= 20_000 else 3.0
        Line(f"{name}.paint", bar / found["paint"], 1.0, found).emit()
        Line(f"{name}.lasso", LASSO_SECONDS / found["lasso"], 1.0, found).emit()
        Line(f"{name}.served", SERVED_MIB / found["served_mib"], 1.0, found).emit()


if __name__ == "__main__":
    main()
