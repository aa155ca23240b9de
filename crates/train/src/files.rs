//! Files and directories that are on the disk whole or not at all, and what a killed process leaves of those that are
//! not.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use crate::Error;

/// The file that keeps other processes out of a directory.
pub(crate) const LOCK: &str = "lock";
/// The end of names of what is not yet complete.
pub(crate) const PARTIAL: &str = ".partial";
/// The end of names of directories that are being replaced.
const OLD: &str = ".old";

/// Writes a file under another name, which no other process gives it, and renames it.
pub(crate) fn write_atomically(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let temporary = with_ending(path, &format!(".{}{PARTIAL}", std::process::id()));
    let written = write_synced(&temporary, contents)
        .and_then(|()| fs::rename(&temporary, path).map_err(|source| io(path, source)));
    if written.is_err() {
        // Whether or not it goes away, the first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Writes a file that is on the disk when this returns.
pub(crate) fn write_synced(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(contents)?;
        file.sync_all()
    };
    write().map_err(|source| io(path, source))
}

/// Has the names in a directory on the disk. Windows has no such call.
pub(crate) fn sync_directory(path: &Path) -> Result<(), Error> {
    if cfg!(unix) {
        File::open(path).and_then(|directory| directory.sync_all()).map_err(|source| io(path, source))?;
    }
    Ok(())
}

/// Has `write` make the directory `target`, whole or not at all, in the place of the one that may be there.
pub(crate) fn replace(
    target: &Path,
    write: impl FnOnce(&Path) -> Result<(), firesight_vlm::Error>,
) -> Result<(), Error> {
    if !target.exists() {
        return Ok(write(target)?);
    }
    let (new, old) = (with_ending(target, PARTIAL), with_ending(target, OLD));
    write(&new)?;
    // A process that ends between the two leaves the old one, which `clear` gives its name back.
    let renamed = fs::rename(target, &old).and_then(|()| fs::rename(&new, target));
    renamed.and_then(|()| fs::remove_dir_all(&old)).map_err(|source| io(target, source))
}

/// Takes a directory away; at no moment there is half of it.
pub(crate) fn remove(directory: &Path) -> Result<(), Error> {
    let temporary = with_ending(directory, PARTIAL);
    fs::rename(directory, &temporary)
        .and_then(|()| fs::remove_dir_all(&temporary))
        .map_err(|source| io(directory, source))
}

/// Removes what is not complete in a directory, and gives what was being replaced its name back.
pub(crate) fn clear(directory: &Path) -> Result<(), Error> {
    for path in entries(directory)? {
        let name = path.to_string_lossy();
        if name.ends_with(PARTIAL) {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|source| io(&path, source))?;
        } else if let Some(target) = name.strip_suffix(OLD).map(Path::new) {
            let restored = if target.exists() { fs::remove_dir_all(&path) } else { fs::rename(&path, target) };
            restored.map_err(|source| io(&path, source))?;
        }
    }
    Ok(())
}

/// What is in a directory; nothing if there is no such directory.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let read = || fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>();
    read().map_err(|source| io(directory, source))
}

/// Takes `directory`, which must be empty or absent, for one run, and for this process as long as the file is open.
/// With `again`, it may also hold what a run leaves that ends in its first moments.
pub(crate) fn claim(directory: &Path, again: bool) -> Result<File, Error> {
    fs::create_dir_all(directory).map_err(|source| io(directory, source))?;
    let taken = || Error::RunDirectoryExists { path: directory.into() };
    if holds_more_than(if again { &[LOCK] } else { &[] }, directory)? {
        return Err(taken());
    }
    let file = directory.join(LOCK);
    // Whoever makes this file owns the directory, should two runs have found it empty.
    let made = if again { File::create(&file) } else { File::create_new(&file) };
    let made = made.map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists => taken(),
        _ => io(&file, source),
    })?;
    let lock = lock(made, directory)?;
    clear(directory)?;
    Ok(lock)
}

/// Has `create` take the first of `parent/name`, `parent/name-2`, `parent/name-3`... that is free.
pub(crate) fn numbered<T>(parent: &Path, name: &str, create: impl Fn(&Path) -> Result<T, Error>) -> Result<T, Error> {
    let mut path = parent.join(name);
    for number in 2.. {
        match create(&path) {
            Err(Error::RunDirectoryExists { .. }) => path = parent.join(format!("{name}-{number}")),
            created => return created,
        }
    }
    unreachable!("the numbers do not end")
}

/// Whether a directory holds anything but `known` and what is not complete.
pub(crate) fn holds_more_than(known: &[&str], directory: &Path) -> Result<bool, Error> {
    let expected = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        known.iter().any(|known| *known == name) || (!known.is_empty() && name.ends_with(PARTIAL))
    };
    Ok(!entries(directory)?.iter().all(expected))
}

/// Keeps other processes out of `directory` for as long as the file is open; it belongs to a run already.
pub(crate) fn lock_again(directory: &Path) -> Result<File, Error> {
    let file = directory.join(LOCK);
    lock(File::create(&file).map_err(|source| io(&file, source))?, directory)
}

/// Keeps other processes out of `directory` as long as `file`, which is in it, is open.
fn lock(file: File, directory: &Path) -> Result<File, Error> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::RunDirectoryBusy { path: directory.into() }),
        Err(TryLockError::Error(source)) => Err(io(directory, source)),
    }
}

pub(crate) fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.into(), source }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_directory_is_replaced_whole_whenever_the_process_ends() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        let written = |text: &'static str| {
            move |directory: &Path| {
                fs::create_dir(directory).unwrap();
                fs::write(directory.join("a"), text).unwrap();
                Ok(())
            }
        };
        for text in ["1", "2", "3"] {
            replace(&path("best"), written(text)).unwrap();
            assert_eq!(fs::read_to_string(path("best/a")).unwrap(), text);
            assert_eq!(entries(scratch.path()).unwrap(), [path("best")]);
        }
        let make = |name: &str, text| written(text)(&path(name)).unwrap();
        // Before the two renames, between them, and before the old one is removed.
        for (there, text) in [
            (vec![("best", "4"), ("best.partial", "5")], "4"),
            (vec![("best.old", "4"), ("best.partial", "5")], "4"),
            (vec![("best", "5"), ("best.old", "4")], "5"),
        ] {
            fs::remove_dir_all(path("best")).unwrap();
            for (name, text) in there {
                make(name, text);
            }
            fs::write(path("config.toml.partial"), "").unwrap();
            clear(scratch.path()).unwrap();
            assert_eq!(fs::read_to_string(path("best/a")).unwrap(), text);
            assert_eq!(entries(scratch.path()).unwrap(), [path("best")]);
        }
    }
}
