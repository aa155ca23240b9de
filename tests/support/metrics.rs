//! What a run wrote down, for tests that compare runs.

use std::path::Path;

/// Metrics without what a clock or the operating system decides.
pub(crate) fn metrics(directory: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(directory.join("metrics.jsonl")).unwrap();
    let mut lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &mut lines {
        line.as_object_mut()
            .unwrap()
            .retain(|name, _| !name.starts_with("time/") && !name.ends_with("_per_s") && !name.starts_with("memory/"));
    }
    lines
}
