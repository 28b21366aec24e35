"""How often the images of a study are in memory while its trials run: mapped once a node, or once per process.

    python benchmarks/memory.py                    # 300 MB of images, two trials at once, about two minutes
    python benchmarks/memory.py --images 400       # quick: 60 MB

A real ``robustsweep run`` trains two trials at the same time on phantom images. Meanwhile every process that maps the
decoded images is looked at (Linux, /proc/<pid>/smaps). PSS counts a page that n processes share as 1/n in each, so the
sum over processes is what the images take on this node; over what one process has mapped (its RSS) it is the number of
copies: the median of the looks at which both trials had mapped most of the images. The peer, right after: two processes
that each read the same files into memory, as a data set held by every worker of a plain sweep does. The ratio is the
peer's copies over ours; the bar is two against one, within 5 %.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import Line, Place

SLOTS = 2
#: The images count as being there once up to this many times their size.
ONCE = 1.05
SAMPLE_SECONDS = 0.25
#: Share of the largest mapping from which a look counts: training maps all but the test images.
MOST = 0.7
MIB = 2**20

STUDY = """\
study: memory
question: How much memory do the images take?
data: {kind: phantom, image_size: 224, num_images: IMAGES, num_external_sites: 0}
model: {name: timm/test_resnet, input_size: 32, stem: original}
training: {epochs: EPOCHS, batch_size: 64}
evaluation: {shifts: [brightness_up], severities: [3], store_features: []}
factors:
  regulariser: [none, label_smoothing]
replicates: 1
execution: {cache_dir: CACHE, device: cpu, max_concurrent_trials: SLOTS}
"""


@dataclass(frozen=True)
class Sample:
    """What one process holds at one moment, in MiB."""

    #: Of the images: this process's share, and all that it has mapped.
    images_pss: float
    images_rss: float
    #: Of everything: what no other process has.
    private: float
    rss: float
    #: Whether it runs a trial: a fork of a fork server. The driver maps the images too.
    is_worker: bool


@dataclass
class Watch:
    """All looks at the processes that map the images."""

    looks: list[list[Sample]] = field(default_factory=list)

    @property
    def full(self) -> list[list[Sample]]:
        """The looks at which several trials had, together, mapped most of what they ever did."""
        several = [look for look in self.looks if sum(sample.is_worker for sample in look) >= SLOTS]
        most = max(map(_sum_mapped, several), default=0.0)
        return [look for look in several if _sum_mapped(look) >= MOST * most]

    def largest(self, name: str) -> float:
        """Return the largest value of a field that a worker had."""
        return max(getattr(sample, name) for look in self.looks for sample in look if sample.is_worker)


def _sum_mapped(look: Iterable[Sample]) -> float:
    return sum(sample.images_rss for sample in look if sample.is_worker)


def count_copies(look: Iterable[Sample]) -> float:
    """Return how often the mapped images are in memory: all shares together, over what one process has mapped."""
    samples = list(look)
    return sum(sample.images_pss for sample in samples) / max(sample.images_rss for sample in samples)


def parse_maps(text: str, folder: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return the sums in MiB of every field of an smaps text: over the files below ``folder``, and over everything."""
    images: dict[str, float] = {}
    everything: dict[str, float] = {}
    is_image = False
    for line in text.splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_image = folder in line
        elif found := re.match(r"(\w+): +(\d+) kB", line):
            for sums in (everything, images)[: 2 if is_image else 1]:
                sums[found[1]] = sums.get(found[1], 0.0) + int(found[2]) / 1024
    return images, everything


def take_look(folder: Path) -> list[Sample]:
    """Return one sample of every process that maps a file below ``folder``."""
    texts = []
    for process in Path("/proc").glob("[0-9]*"):
        # A process may end between two looks, and those of other users are closed to us.
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if str(folder) in (process / "maps").read_text():
                texts.append(process / "smaps")
    samples = []
    for path in texts:  # apart from the search: what is summed should be of one moment
        with suppress(FileNotFoundError, ProcessLookupError):
            images, all_maps = parse_maps(path.read_text(), str(folder))
            if images:
                private = all_maps["Private_Clean"] + all_maps["Private_Dirty"]
                is_worker = "orchestrator.driver.child_process" in path.with_name("cmdline").read_text()
                samples.append(Sample(images["Pss"], images["Rss"], private, all_maps["Rss"], is_worker))
    return samples


def watch(process: subprocess.Popen[bytes], folder: Path) -> Watch:
    """Look at all processes until ``process`` has ended."""
    seen = Watch()
    while process.poll() is None:
        seen.looks.append(take_look(folder))
        time.sleep(SAMPLE_SECONDS)
    return seen


# ------------------------------------------------------------------ the peer


def hold_copies(files: list[str], connection: Any) -> None:
    """Body of a peer process: say what private memory the images add, and hold them until told to stop."""
    before = read_private()
    held = [np.load(file) for file in files]
    connection.send((read_private() - before, sum(array.nbytes for array in held)))
    connection.recv()


def read_private() -> float:
    """Return the private memory of this process in MiB."""
    sums = parse_maps(Path("/proc/self/smaps_rollup").read_text(), "\n")[1]
    return sums["Private_Clean"] + sums["Private_Dirty"]


def measure_peer(files: list[str]) -> float:
    """Return the MiB that the images take in all peer processes together, which hold them at the same time."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(SLOTS)]
    processes = [context.Process(target=hold_copies, args=(files, theirs)) for _, theirs in pipes]
    for process in processes:
        process.start()
    taken = [ours.recv()[0] for ours, _ in pipes]
    for ours, _ in pipes:
        ours.send("stop")
    for process in processes:
        process.join()
    return sum(taken)


# ------------------------------------------------------------------ the line


def measure(num_images: int, epochs: int) -> Line:
    """Run the study and the peer; return the line.

    Raises:
        RuntimeError: the study failed, or two trials were never seen at the same time.
    """
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        cache = folder / "cache"
        text = STUDY
        for key, value in {"IMAGES": num_images, "EPOCHS": epochs, "CACHE": cache, "SLOTS": SLOTS}.items():
            text = text.replace(key, str(value))
        place = Place(folder / "study.yaml", folder / "ledger")
        place.study.write_text(text)
        run = place.start("run")
        seen = watch(run, cache / "data")
        if run.returncode != 0:
            output = (place.storage / "output.txt").read_text(errors="replace")
            raise RuntimeError(f"robustsweep run ended with exit code {run.returncode}:\n{output[-3000:]}")
        files = [str(path) for path in sorted(cache.glob("data/*/*.npy")) if not path.name.endswith(".masks.npy")]
        size = sum(Path(file).stat().st_size for file in files) / MIB
        peer = measure_peer(files)
    return make_line(seen, size=size, peer=peer)


def make_line(seen: Watch, *, size: float, peer: float) -> Line:
    """Return the line; sizes are in MiB.

    Raises:
        RuntimeError: two trials were never seen with the images at the same time.
    """
    if not seen.full:
        raise RuntimeError(
            f"never saw {SLOTS} processes with the images in {len(seen.looks)} looks: use more --images or --epochs"
        )
    ours = statistics.median(map(count_copies, seen.full))
    facts = {
        "images_mib": size,
        "copies": ours,
        "copies_of_peer": peer / size,
        "images_pss_mib": statistics.median(sum(sample.images_pss for sample in look) for look in seen.full),
        "images_mapped_mib": statistics.median(map(_sum_mapped, seen.full)),
        "peer_images_mib": peer,
        "private_per_worker_mib": seen.largest("private"),
        "peak_rss_per_worker_mib": seen.largest("rss"),
        "looks": len(seen.looks),
        "looks_that_count": len(seen.full),
    }
    return Line("memory", peer / size / ours, SLOTS / ONCE, facts)


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=4)
    asked = parser.parse_args()
    if sys.platform != "linux":
        parser.exit(1, "benchmarks/memory.py reads /proc/<pid>/smaps, which only Linux has\n")
    measure(asked.images, asked.epochs).emit()


if __name__ == "__main__":
    main()
