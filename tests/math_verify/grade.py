"""Records what math-verify says of every pair of answers in pairs.tsv, or checks that it still says so.

A line of the file is an answer, a reference, and the verdict, with tabs between; a line that begins with # is a heading.
With --record lines without a verdict get one, and changed verdicts are replaced; with --check both are errors.
"""

import logging
import pathlib
import sys

from math_verify import parse, verify

PAIRS = pathlib.Path(__file__).with_name("pairs.tsv")


def verdict(answer: str, reference: str) -> str:
    answer, reference = (parse(f"\\boxed{{{text}}}") for text in (answer, reference))
    return str(verify(reference, answer)).lower()


def main() -> None:
    logging.disable()
    record = sys.argv[1:] == ["--record"]
    lines, changed = [], []
    for line in PAIRS.read_text().splitlines():
        if not line.startswith("#"):
            answer, reference, *before = line.split("\t")
            now = verdict(answer, reference)
            line = "\t".join([answer, reference, now])
            if before != [now]:
                changed.append(line)
        lines.append(line)
    if record:
        PAIRS.write_text("\n".join(lines) + "\n")
    pairs = sum(not line.startswith("#") for line in lines)
    print(f"{pairs} pairs, {len(changed)} new or changed verdicts of math-verify", *changed, sep="\n")
    sys.exit(bool(changed and not record))


main()
