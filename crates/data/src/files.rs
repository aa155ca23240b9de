//! Which files a data set is made of.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::Error;

/// The kinds of files that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Lines,
    Parquet,
}

fn kind(path: &Path) -> Option<Kind> {
    match path.extension()?.to_str()? {
        "jsonl" | "ndjson" => Some(Kind::Lines),
        "parquet" => Some(Kind::Parquet),
        _ => None,
    }
}

/// The files that paths stand for: themselves, or of directories all data files in them by name.
pub(crate) fn expand(paths: &[PathBuf]) -> Result<Vec<(PathBuf, Kind)>, Error> {
    let mut files = Vec::new();
    for path in paths {
        if fs::metadata(path).map_err(|source| io(path, source))?.is_dir() {
            let read = || fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>();
            let mut entries = read().map_err(|source| io(path, source))?;
            entries.sort();
            let before = files.len();
            files.extend(entries.into_iter().filter_map(|entry| Some((kind(&entry)?, entry))).map(|(k, p)| (p, k)));
            if files.len() == before {
                return Err(Error::NoFiles { path: path.clone() });
            }
        } else if let Some(kind) = kind(path) {
            files.push((path.clone(), kind));
        } else {
            return Err(Error::Format { path: path.clone(), problem: advice(path) });
        }
    }
    Ok(files)
}

fn advice(path: &Path) -> String {
    let name = path.to_string_lossy();
    if name.ends_with(".json") {
        "a JSON file cannot be read row by row; write JSONL, one object a line (jq -c '.[]')".into()
    } else if name.ends_with(".gz") || name.ends_with(".zst") {
        "a compressed file cannot be read from the middle; uncompress it, or write Parquet".into()
    } else {
        "data files are .jsonl, .ndjson and .parquet".into()
    }
}

/// What tells that a file has been written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
}

/// Opens a file.
pub(crate) fn open(path: &Path) -> Result<(File, Stamp), Error> {
    let open = || {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        // Not every system keeps the time.
        Ok((file, Stamp { len: metadata.len(), modified: metadata.modified().ok() }))
    };
    open().map_err(|source| io(path, source))
}

/// Opens a file that must be as it was.
pub(crate) fn reopen(path: &Path, stamp: Stamp) -> Result<File, Error> {
    match open(path)? {
        (file, now) if now == stamp => Ok(file),
        _ => Err(Error::Changed { path: path.into() }),
    }
}

pub(crate) fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.into(), source }
}
