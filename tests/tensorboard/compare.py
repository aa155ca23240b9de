"""Compares what TensorBoard reads of a run directory with its metrics.jsonl: every tag, step and value, in order."""

import json
import math
import struct
import sys
from collections import defaultdict
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def as_float32(value):
    """TensorBoard keeps scalars in single precision; metrics.jsonl has null for what is not finite."""
    if value is None:
        return None
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return None


def main():
    run = Path(sys.argv[1])
    expected = defaultdict(list)
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        phase, step = row.pop("phase"), row.pop("step")
        for name, value in row.items():
            expected[f"{phase}/{name}"].append((step, as_float32(value)))

    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0})
    accumulator.Reload()
    found = {
        tag: [(event.step, event.value if math.isfinite(event.value) else None) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    differ = [tag for tag in expected.keys() & found.keys() if expected[tag] != found[tag]]
    for what, tags in [("missing", missing), ("surplus", surplus), ("different", differ)]:
        for tag in tags:
            print(f"{what}: {tag}\n  metrics.jsonl {expected[tag]}\n  TensorBoard {found.get(tag)}")
    if missing or surplus or differ or not expected:
        sys.exit(1)
    print(f"{len(expected)} tags, {sum(map(len, expected.values()))} values: TensorBoard reads what metrics.jsonl says")


main()
