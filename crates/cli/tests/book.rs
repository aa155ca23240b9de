//! The book, executed: every chapter of `docs` and the README, each in a directory of its own.
//!
//! - A block of `sh` is executed by `sh -e`, with `firesight` on the path. One with a line that begins with `cargo ` is of a
//!   checkout of the repository, and left out.
//! - A block of `text` behind it is what it prints: each of its lines has to be there, in this order; `...` stands for
//!   anything.
//! - A block below a line that is the name of a file as code and a colon, and nothing else, is written to that file.
//! - A block of `console`, whose commands begin with `$ `, is what no test can do: a download, a GPU, a large model.
//! - Any other block of `toml` has to be that.
//!
//! What a chapter finds in its directory is in `support/prepared.rs`.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "support/blocks.rs"]
mod blocks;
#[path = "support/prepared.rs"]
mod prepared;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use blocks::{Problem, What, blocks};

#[test]
fn the_book_does_what_it_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let library = scratch.path().join("library");
    prepared::fill(&library, &root);
    let mut chapters: Vec<PathBuf> =
        fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    chapters.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    chapters.push(root.join("README.md"));
    chapters.sort();
    let (mut failures, mut executed) = (Vec::new(), 0);
    for chapter in &chapters {
        let name = chapter.strip_prefix(&root).unwrap().display().to_string();
        let directory = scratch.path().join(name.replace('/', "-"));
        prepared::copy(&library, &directory);
        match play(&fs::read_to_string(chapter).unwrap(), &directory) {
            Ok(blocks) => executed += blocks,
            Err((line, problem)) => failures.push(format!("{name}:{line}: {problem}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    // Otherwise the book would not be what it is, or not be found.
    assert!(chapters.len() > 10 && executed > 30, "{executed} blocks of {} chapters", chapters.len());
}

/// Does what a chapter says in a directory. Returns how many blocks were executed.
fn play(chapter: &str, directory: &Path) -> Result<usize, Problem> {
    let mut executed = 0;
    let mut said = None;
    for block in blocks(chapter)? {
        let problem = |problem: String| (block.line, problem);
        match block.what {
            What::Commands if block.text.contains("python3") && !has_python() => {
                eprintln!("left out, as there is no python3:\n{}", block.text);
                said = None;
            }
            What::Commands => {
                said = Some(execute(&block.text, directory).map_err(problem)?);
                executed += 1;
            }
            What::Output => {
                if let Some(said) = &said {
                    check_output(&block.text, said).map_err(problem)?;
                }
            }
            What::File(name) => {
                let path = directory.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, block.text).unwrap();
            }
            What::Shown => {}
        }
    }
    Ok(executed)
}

/// Returns what the commands print.
fn execute(commands: &str, directory: &Path) -> Result<String, String> {
    let program = Path::new(env!("CARGO_BIN_EXE_firesight"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap_or_default());
    let together = format!("exec 2>&1\n{commands}");
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", &together]).current_dir(directory).env("PATH", path).stdin(Stdio::null());
    let output = shell.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(said) } else { Err(format!("{}\n{commands}{said}", output.status)) }
}

/// Fails unless every line that is shown was said, in this order.
fn check_output(shown: &str, said: &str) -> Result<(), String> {
    let mut lines = said.lines();
    for shown in shown.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        if !lines.any(|line| is_like(shown, line.trim_end())) {
            return Err(format!("no further line {shown:?} in\n{said}"));
        }
    }
    Ok(())
}

/// Whether a line is as shown, where `...` stands for anything.
fn is_like(shown: &str, line: &str) -> bool {
    match shown.split_once("...") {
        None => line == shown,
        Some((start, rest)) => line.strip_prefix(start).is_some_and(|line| {
            let mut ends = line.char_indices().map(|(at, _)| at).chain([line.len()]);
            ends.any(|at| is_like(rest, &line[at..]))
        }),
    }
}

fn has_python() -> bool {
    Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Plays a chapter in an empty directory.
fn alone(chapter: &str) -> Result<usize, Problem> {
    play(chapter, tempfile::tempdir().unwrap().path())
}

#[test]
fn a_block_that_fails_is_reported_with_its_line_and_what_it_said() {
    let chapter = "# A\n\n```sh\ntrue\n```\n\nand\n\n```sh\necho before\nfalse\necho after\n```\n";
    let (line, problem) = alone(chapter).unwrap_err();
    assert_eq!(line, 9);
    assert!(problem.starts_with("exit status: 1\n") && problem.contains("before\n"), "{problem}");
    assert!(!problem.ends_with("after\n"), "{problem}");
    let said = alone("```sh\nfiresight frobnicate\n```\n").unwrap_err().1;
    assert!(said.contains("exit status: 2") && said.contains("unrecognized subcommand"), "{said}");
    assert_eq!(alone("```sh\nfiresight --version\n```\n"), Ok(1));
}

#[test]
fn what_is_shown_as_printed_has_to_be() {
    let printed =
        |shown: &str| alone(&format!("```sh\necho one two three; echo four >&2\n```\n\n```text\n{shown}\n```\n"));
    for shown in ["one two three\nfour", "four", "one...three", "...two...\n...\n", "one two three..."] {
        assert_eq!(printed(shown), Ok(1), "{shown}");
    }
    for shown in ["one two", "four\none two three", "one...two", "five", "one two three\none two three"] {
        let (line, problem) = printed(shown).unwrap_err();
        assert!(line == 5 && problem.starts_with("no further line"), "{shown}: {problem}");
    }
}

#[test]
fn files_that_are_shown_are_there_and_other_blocks_are_not_executed() {
    let chapter = "Write\n\n`a/b.py`:\n\n```python\nx = 1\n```\n\n```sh\n[ \"$(cat a/b.py)\" = 'x = 1' ]\n```\n\
                   ```console\n$ exit 1\n```\n```sh\nexport A=1\ncargo false\n```\n```toml\na = 1\n```\n```json\n{\n```\n";
    assert_eq!(alone(chapter), Ok(1));
    assert_eq!(alone("```console\n$ a\n```\n```text\nb\n```\n"), Ok(0));
}

#[test]
fn what_cannot_be_read_is_reported_with_its_line() {
    for (chapter, line, reason) in [
        ("\n```sh\ntrue\n", 2, "not closed"),
        ("- a\n\n  ```sh\n  true\n  ```\n", 3, "indented"),
        ("`/etc/a.toml`:\n```toml\na = 1\n```\n", 2, "/etc/a.toml"),
        ("`../a.toml`:\n```toml\na = 1\n```\n", 2, "../a.toml"),
        ("`[data]`:\n\n```toml\na = 1\n```\n", 3, "[data]"),
        ("Now do what is in `a.sh`:\n\n```sh\nfalse\n```\n", 3, "exit status"),
        ("```python\nprint()\n```\n", 1, "needs the name"),
        ("```console\nexit 1\n```\n", 1, "$ "),
        ("```toml\na =\n```\n", 1, "TOML"),
        ("```text\na\n```\n", 1, "no command"),
        ("`a.txt`:\n```json\n1\n```\n\n```text\na\n```\n", 6, "no command"),
    ] {
        let (found, problem) = alone(chapter).unwrap_err();
        assert!(found == line && problem.contains(reason), "{chapter}: {found}: {problem}");
    }
}
