"""How fast the key regions of an image are found by the reference program of the oracle, in NumPy and SciPy.

usage: sguf.py ORACLE/scripts/kawhi_ref.py PHOTO.jpg [CELL] [ROUNDS]

On one thread, the image decoded before. Prints one line of JSON with what was found, as `examples/bench_sguf.rs` does.
"""

import importlib.util
import json
import sys
import time

import numpy
from PIL import Image

specification = importlib.util.spec_from_file_location("kawhi_ref", sys.argv[1])
reference = importlib.util.module_from_spec(specification)
specification.loader.exec_module(reference)
cell = int(sys.argv[3]) if len(sys.argv) > 3 else 28
rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 5
image = numpy.asarray(Image.open(sys.argv[2]).convert("RGB"))
image = image[: image.shape[0] // cell * cell, : image.shape[1] // cell * cell]
start = time.process_time()
for _ in range(rounds):
    found = reference.sguf(image, cell)
seconds = (time.process_time() - start) / rounds
print(
    json.dumps(
        {
            "bench": "reference",
            "pixels": image.shape[0] * image.shape[1],
            "components": len(found["energy"]),
            "key_cells": int(found["key"].sum()),
            "threshold": float(found["tau"]),
            "cpu_s": {"sguf": seconds},
        }
    )
)
