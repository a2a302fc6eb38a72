"""How long an image set takes to load: `python benchmarks/loading.py --data FOLDER_OR_PARQUET [--runs N]`.

The files are read from the page cache after the first run; the median of the runs is what to quote.
"""

import argparse
import os
import time
from statistics import median

from bnas.search.data import load_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    seconds = []
    for _ in range(arguments.runs):
        start = time.perf_counter()
        images = load_images(arguments.data)
        seconds.append(time.perf_counter() - start)
    count = sum(len(s.labels) for s in (images.train, images.validation, images.test))
    print(
        f"{count:,} images of {images.shape}: median {median(seconds):.2f} s of {arguments.runs} runs, "
        f"{os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
