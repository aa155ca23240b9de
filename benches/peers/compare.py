"""Runs two programs in turn and compares their CPU seconds: machines are never as idle as they seem.

usage: compare.py ROUNDS "FIRST COMMAND" "SECOND COMMAND"

Each prints JSON on its last line, with seconds by name under `cpu_s`. Prints, for every name that both have, the medians
and the median of the ratios of neighbouring runs: above 1, the first is faster.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys

# Threads that wait must not count as work.
environment = dict(os.environ, OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")


def seconds(command):
    output = subprocess.run(
        shlex.split(command), env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return json.loads(output.strip().splitlines()[-1])["cpu_s"]


first, second = [], []
for round in range(int(sys.argv[1])):
    first.append(seconds(sys.argv[2]))
    second.append(seconds(sys.argv[3]))
for name in first[0]:
    if name in second[0]:
        a, b = [run[name] for run in first], [run[name] for run in second]
        ratio = statistics.median(y / x for x, y in zip(a, b))
        print(
            f"{name}: {statistics.median(a):.4f} s and {statistics.median(b):.4f} s of CPU,"
            f" ratio {ratio:.2f} ({min(y / x for x, y in zip(a, b)):.2f} to {max(y / x for x, y in zip(a, b)):.2f})"
        )
