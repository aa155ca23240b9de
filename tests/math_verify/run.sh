#!/usr/bin/env bash
# Compares the mathematical grader with Python's math-verify, which it installs into a temporary directory: whether
# math-verify still says of the pairs in pairs.tsv what was recorded, and whether ours says the same but for what
# disagreements.tsv lists. New pairs are added to pairs.tsv without a verdict; `run.sh --record` fills it in.
set -euo pipefail
cd "$(dirname "$0")"
environment="$(mktemp -d)"
trap 'rm -rf "$environment"' EXIT
python3 -m venv "$environment"
"$environment/bin/pip" install --quiet --disable-pip-version-check math-verify==0.9.0 latex2sympy2_extended==1.11.0 \
    sympy==1.14.0 antlr4-python3-runtime==4.13.2
"$environment/bin/python" grade.py "${1:---check}"
cargo test --manifest-path ../../crates/reward/Cargo.toml --test math verdicts
