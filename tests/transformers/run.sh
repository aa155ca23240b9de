#!/usr/bin/env bash
# Shows that transformers and PEFT read what firesight writes, and the other way round: installs them into
# target/transformers (6 GB, a few minutes) and runs the comparison that the test suite leaves out.
set -euo pipefail
cd "$(dirname "$0")/../.."
environment="$PWD/target/transformers"
python3 -m venv "$environment"
"$environment/bin/pip" install --quiet torch==2.15.0 torchvision==0.29.2 transformers==5.23.0 peft==0.21.2 \
    pillow==13.0.0 safetensors==0.8.0
FIRESIGHT_PYTHON="$environment/bin/python" cargo test --workspace --test transformers -- --ignored --nocapture
