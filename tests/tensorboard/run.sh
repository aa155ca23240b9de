#!/usr/bin/env bash
# Shows that TensorBoard reads what firesight writes for it: installs it into target/tensorboard (200 MB, a minute) and
# runs the comparison that the test suite leaves out. With a run directory it compares that run instead.
set -euo pipefail
here="$(realpath "$(dirname "$0")")"
environment="$here/../../target/tensorboard"
python3 -m venv "$environment"
"$environment/bin/pip" install --quiet tensorboard==2.21.0
if [ $# -gt 0 ]; then
    exec "$environment/bin/python" "$here/compare.py" "$1"
fi
cd "$here/../.."
FIRESIGHT_PYTHON="$environment/bin/python" cargo test --workspace --test tensorboard -- --ignored --nocapture
