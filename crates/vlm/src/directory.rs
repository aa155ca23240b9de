//! Directories that appear whole or not at all.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::Error;

/// Has `write` fill a directory beside `target`, and gives it that name when it is done.
///
/// # Errors
/// When `target` holds anything already, or cannot be written; what `write` returns.
pub(crate) fn publish(target: &Path, write: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let io = |source| Error::Io { path: target.into(), source };
    if fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(io(ErrorKind::AlreadyExists.into()));
    }
    let name = target.file_name().ok_or_else(|| io(ErrorKind::InvalidInput.into()))?;
    // The process keeps those of two runs apart; nothing that is there already is touched.
    let temporary = target.with_file_name(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id()));
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(io)?;
    }
    fs::create_dir(&temporary).map_err(io)?;
    let written = write(&temporary).and_then(|()| fs::rename(&temporary, target).map_err(io));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_directory_appears_whole_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("step.100");
        let entries = || fs::read_dir(parent.path()).unwrap().count();
        let write = |dir: &Path| fs::write(dir.join("a"), "1").map_err(|source| Error::Io { path: dir.into(), source });
        let failing = publish(&target, |dir| write(dir).and_then(|()| Err(Error::EmptyPrompt { index: 0 })));
        assert!(matches!(failing, Err(Error::EmptyPrompt { .. })) && entries() == 0);
        // A slash at the end changes nothing, nor does an empty directory in the place.
        fs::create_dir(&target).unwrap();
        publish(&target.join(""), write).unwrap();
        assert_eq!((fs::read_to_string(target.join("a")).unwrap().as_str(), entries()), ("1", 1));
        let taken = publish(&target, write).unwrap_err().to_string();
        assert!(taken.contains("step.100") && entries() == 1, "{taken}");
    }
}
