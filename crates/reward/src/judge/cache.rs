//! Replies in a file.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::Error;

/// How each line begins, as far as there is of it.
const BEGIN: &[u8] = b"{\"key\":";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    reply: String,
}

/// Replies by the hash of what was asked, in memory and in a file that only grows.
#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    replies: HashMap<String, String>,
}

impl Cache {
    /// Opens a file, or makes one.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let io = |reason| Error::Io { path: path.into(), reason };
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(io)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let mut replies = HashMap::new();
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let length = line.len().min(BEGIN.len());
            match serde_json::from_slice(line) {
                Ok(Line { key, reply }) => {
                    replies.insert(key, reply);
                }
                // One that was not written to its end, perhaps with others behind it.
                Err(error) if !error.is_data() && line[..length] == BEGIN[..length] => {}
                Err(error) => {
                    return Err(Error::Cache { path: path.into(), line: number + 1, problem: error.to_string() });
                }
            }
        }
        if bytes.last().is_some_and(|last| *last != b'\n') {
            file.write_all(b"\n").map_err(io)?;
        }
        Ok(Self { path: path.into(), open: Mutex::new(Open { file, replies }) })
    }

    pub(super) fn reply(&self, key: &str) -> Option<String> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).replies.get(key).cloned()
    }

    /// Keeps a reply.
    pub(super) fn keep(&self, key: String, reply: String) -> Result<(), Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let io = |reason| Error::Io { path: self.path.clone(), reason };
        let line = Line { key, reply };
        let mut bytes = serde_json::to_vec(&line).map_err(|error| io(error.into()))?;
        bytes.push(b'\n');
        // In one piece, so that lines of several processes stay apart.
        open.file.write_all(&bytes).map_err(io)?;
        open.replies.insert(line.key, line.reply);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn replies_are_there_again_whatever_the_last_line_is() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("judge.jsonl");
        let cache = Cache::open(&path).unwrap();
        cache.keep("a".into(), "1\n\"é\"".into()).unwrap();
        cache.keep("b".into(), "2".into()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(std::str::from_utf8(&whole).unwrap().lines().count(), 2);
        // Cut at every place of the last line.
        for length in whole.len() - 10..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let cache = Cache::open(&path).unwrap();
            assert_eq!(cache.reply("a").as_deref(), Some("1\n\"é\""));
            let complete = length >= whole.len() - 1;
            assert_eq!(cache.reply("b").is_some(), complete, "{length}");
            cache.keep("c".into(), "3".into()).unwrap();
            let again = Cache::open(&path).unwrap();
            assert_eq!(again.reply("c").as_deref(), Some("3"));
            assert_eq!(again.reply("b").is_some(), complete);
        }
    }

    #[test]
    fn a_file_that_is_something_else_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("data.jsonl");
        for (text, line) in [
            ("{\"question\": 1}\n", 1),
            ("{\"key\":\"a\",\"reply\":\"b\"}\nhello\n", 2),
            ("{\"key\":1,\"reply\":\"b\"}", 1),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Cache::open(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("data.jsonl:{line} is no line of a cache")), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert!(matches!(Cache::open(&scratch.path().join("no/such.jsonl")), Err(Error::Io { .. })));
    }
}
