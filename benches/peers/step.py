"""Runs training steps of this project, of hand-written PyTorch and of TRL in turn, and prints their ratios.

usage: step.py ORACLE [--long] [--threads 1 2] [--rounds 5] [--steps 5] [--out FILE.json] [--peers torch trl]

ORACLE is a directory of reference values: its `bench/` is the model with its questions, its `scripts/` has the two
Python programs, which run under this interpreter. Before: cargo build --release --example bench_step.

`--long` is the second workload: one prompt of 1,000 tokens a step, 784 of them of one image, and 8 completions of 256
tokens. The Python programs have the sizes of the first in their text; they are changed there, and nowhere else.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# Threads that wait must not count as work.
PASSIVE = dict(os.environ, OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")
PROGRAM = Path(__file__).parents[2] / "target/release/examples/bench_step"
PROMPT_TOKENS, SIDE, CELL = 1000, 784, 28


def long_model(oracle, directory):
    """The bench model with images of 784 x 784 pixels and questions that fill 1,000 tokens."""
    from PIL import Image
    from tokenizers import Tokenizer

    shutil.copytree(oracle / "bench", directory, copy_function=shutil.copyfile)
    for path in [directory, directory / "data"]:
        path.chmod(0o755)
    for name in ["preprocessor_config.json", "video_preprocessor_config.json"]:
        config = json.loads((directory / name).read_text())
        config["max_pixels"] = SIDE * SIDE
        (directory / name).write_text(json.dumps(config))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    count = lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
    # The turns of the chat with their markers.
    around = count(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|vision_end|>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    room = PROMPT_TOKENS - around - (SIDE // CELL) ** 2
    rows = json.loads((directory / "data/prompts.json").read_text())
    text = " ".join(row["question"] for row in rows)
    for number, row in enumerate(rows):
        image = Image.open(directory / row["image"]).convert("RGB").resize((SIDE, SIDE), Image.BICUBIC)
        row["image"] = f"data/long-{number}.png"
        image.save(directory / row["image"])
        words = f"{row['question']} {text} {text} {text}".split(" ")
        while count(" ".join(words)) > room:
            words.pop()
        question = " ".join(words)
        while count(question) < room:
            question += "?"
        row["question"] = question
    (directory / "data/prompts.json").write_text(json.dumps(rows))


def changed(script, changes, directory):
    """A copy of a program with some of its text replaced; what is not there is an error."""
    text = script.read_text()
    for old, new in changes:
        if old not in text:
            sys.exit(f"{script} does not have the text {old!r} any more")
        text = text.replace(old, new)
    copy = directory / script.name
    copy.write_text(text)
    return copy


def run(command):
    output = subprocess.run(command, env=PASSIVE, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return json.loads(output.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("oracle", type=Path)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=["torch", "trl"])
    parser.add_argument("--firesight", nargs=argparse.REMAINDER, default=[], help="further options of bench_step, last")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        model, new, prompts = options.oracle / "bench", 64, 4
        changes = {"torch": [], "trl": []}
        if options.long:
            model, new, prompts = directory / "model", 256, 1
            long_model(options.oracle, model)
            changes["torch"] = [
                ("hi=12544", f"hi={SIDE * SIDE}"),
                ("(4 * st + j) % 16] for j in range(4)", "(st + j) % 16] for j in range(1)"),
                ("ntok = 4 * a.group", "ntok = a.group"),
                ("(4 * a.group, a.new)", "(a.group, a.new)"),
            ]
            changes["trl"] = [
                ("per_device_train_batch_size=4 * a.group", "per_device_train_batch_size=a.group"),
                ("list(zip(rows, ds))[:4]", "list(zip(rows, ds))[:1]"),
                ("ntok = 4 * a.group", "ntok = a.group"),
                ("(ptok + 4 * a.new)", "(ptok + a.new)"),
                ("[4 * a.group, a.new]", "[a.group, a.new]"),
            ]
        sizes = ["--new", str(new), "--steps", str(options.steps)]
        commands = {"firesight": [str(PROGRAM), str(model), "--prompts", str(prompts), *sizes, *options.firesight]}
        for peer in options.peers:
            script = changed(options.oracle / f"scripts/bench_{peer}.py", changes[peer], directory)
            commands[peer] = [sys.executable, str(script), "--model", str(model), *sizes]
        found = []
        for threads in options.threads:
            runs = {name: [] for name in commands}
            for _ in range(options.rounds):
                for name, command in commands.items():
                    runs[name].append(run([*command, "--threads", str(threads)]))
            found.append({"threads": threads, "runs": runs})
            table(threads, runs)
    if options.out:
        options.out.write_text(json.dumps({"long": options.long, "measured": found}, indent=1))


def table(threads, runs):
    median = statistics.median
    print(f"{threads} threads, medians of {len(runs['firesight'])} runs in turn; ratios of neighbouring runs")
    print("            CPU s a step      ratio   wall s a step      ratio   peak MB   start s")
    for name, found in runs.items():
        ratio = lambda key: median(ours[key] / peer[key] for ours, peer in zip(runs["firesight"], found))
        cpu, wall = (median(run[key] for run in found) for key in ["cpu_step_s_median", "step_s_median"])
        memory, start = (median(run[key] for run in found) for key in ["peak_rss_mb", "startup_to_first_step_s"])
        print(
            f"{name:10} {cpu:13.3f} {ratio('cpu_step_s_median'):10.2f} {wall:15.3f} {ratio('step_s_median'):10.2f}"
            f" {memory:9.0f} {start:9.2f}",
            flush=True,
        )


main()
