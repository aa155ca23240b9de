#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use super::*;
use crate::testing::{asked, nothing, response};

/// A reward that is a shell script.
fn sh(script: &str) -> Command {
    Command {
        command: ["sh", "-c", script].map(Into::into).into(),
        workers: 1,
        timeout_s: 20.0,
        retries: 0,
        directory: None,
    }
}

fn ask(programs: &Programs, text: &str) -> Result<Score, Error> {
    programs.score(&asked("2", &nothing()), &response(text))
}

fn value(programs: &Programs, text: &str) -> Option<f32> {
    ask(programs, text).unwrap().value
}

fn problem(programs: &Programs, text: &str) -> String {
    ask(programs, text).unwrap_err().to_string()
}

/// A process that exists, zombies left out where the system tells them apart.
fn is_alive(pid: &str) -> bool {
    if Path::new("/proc/self/stat").exists() {
        return std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    }
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::test_kill_process(pid).is_ok()
}

fn wait_for(what: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !what() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    what()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn one_process_is_asked_over_and_over() {
    let programs = sh("n=0; while read -r line; do n=$((n + 1)); echo $n; done").start().unwrap();
    assert_eq!([1, 2, 3].map(|_| value(&programs, "")), [Some(1.0), Some(2.0), Some(3.0)]);
}

#[test]
fn the_request_has_everything_on_one_line() {
    let scratch = tempfile::tempdir().unwrap();
    let command = Command { directory: Some(scratch.path().into()), ..sh("head -n 1 > asked; echo 1") };
    let programs = command.start().unwrap();
    let columns = serde_json::Map::from_iter([("level".into(), json!(3))]);
    let image = |path| crate::Image { original: (1, 1), resized: (1, 1), path };
    let asked = Asked {
        prompt: "1 + 1\n?",
        answer: None,
        images: &[image(Some(Path::new("a.png"))), image(None)],
        columns: &columns,
    };
    programs.score(&asked, &Response { text: "\"é\"\n\n2", tokens: 5, truncated: true }).unwrap();
    let line = read(&scratch.path().join("asked"));
    assert_eq!(line.lines().count(), 1);
    let expected = json!({
        "id": 0, "prompt": "1 + 1\n?", "response": "\"é\"\n\n2", "answer": null, "images": ["a.png", null],
        "columns": {"level": 3}, "tokens": 5, "truncated": true,
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), expected);
}

#[test]
fn workers_run_side_by_side() {
    // Each waits until the other has been asked as well.
    let scratch = tempfile::tempdir().unwrap();
    let script = "read -r line; touch $$.here
        while [ $(ls *.here | wc -l) -lt 2 ]; do sleep 0.01; done
        echo 1; cat > /dev/null";
    let command = Command { directory: Some(scratch.path().into()), workers: 2, ..sh(script) };
    let programs = command.start().unwrap();
    let values: Vec<_> = std::thread::scope(|scope| {
        let asking = [0, 1].map(|_| scope.spawn(|| value(&programs, "")));
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(values, [Some(1.0), Some(1.0)]);
}

#[test]
fn a_process_that_dies_is_an_error_with_its_last_words_and_started_again() {
    let script =
        "while read -r line; do case $line in *die*) echo one >&2; echo two >&2; exit 3;; *) echo 1;; esac; done";
    let programs = sh(script).start().unwrap();
    let error = problem(&programs, "die");
    assert!(error.starts_with("\"sh\" ended without a reply (exit status: 3)"), "{error}");
    assert!(error.ends_with("its standard error ends in:\none\ntwo"), "{error}");
    assert_eq!(value(&programs, ""), Some(1.0));
}

#[test]
fn a_response_is_tried_again() {
    let scratch = tempfile::tempdir().unwrap();
    // The first two processes die.
    let script = "read -r line; echo x >> tries; [ $(wc -l < tries) -lt 3 ] && exit 1; echo 7; cat > /dev/null";
    let command = |retries| Command { directory: Some(scratch.path().into()), retries, ..sh(script) };
    assert!(ask(&command(1).start().unwrap(), "").is_err());
    std::fs::remove_file(scratch.path().join("tries")).unwrap();
    assert_eq!(value(&command(2).start().unwrap(), ""), Some(7.0));
}

#[test]
fn a_process_that_hangs_is_killed_with_its_group() {
    let scratch = tempfile::tempdir().unwrap();
    // It ignores what can be ignored, and a child of it would live on.
    let script = "trap '' TERM HUP INT; sleep 1000 & echo $! > child; echo $$ > parent; cat > /dev/null & wait; wait";
    let command = Command { directory: Some(scratch.path().into()), timeout_s: 1.0, ..sh(script) };
    let programs = command.start().unwrap();
    let begin = Instant::now();
    assert_eq!(problem(&programs, ""), "\"sh\" gave no reply within 1 s");
    assert!(begin.elapsed() < Duration::from_secs(10));
    for name in ["child", "parent"] {
        let pid = read(&scratch.path().join(name));
        assert!(!pid.trim().is_empty());
        assert!(wait_for(|| !is_alive(pid.trim())), "{name} is alive");
    }
}

#[test]
fn a_process_that_does_not_read_cannot_block() {
    let programs = Command { timeout_s: 0.5, ..sh("sleep 1000") }.start().unwrap();
    assert_eq!(problem(&programs, &"x".repeat(1 << 20)), "\"sh\" gave no reply within 0.5 s");
}

#[test]
fn a_full_standard_error_cannot_block() {
    let noisy = "while read -r line; do head -c 300000 /dev/zero | tr '\\0' 'e' >&2; echo 1; done";
    let programs = sh(noisy).start().unwrap();
    assert_eq!([value(&programs, ""), value(&programs, "")], [Some(1.0), Some(1.0)]);
}

#[test]
fn nonsense_is_an_error_and_its_writer_replaced() {
    let script =
        "n=0; while read -r line; do n=$((n + 1)); case $line in *hello*) echo hello;; *) echo $n;; esac; done";
    let programs = sh(script).start().unwrap();
    assert_eq!(value(&programs, ""), Some(1.0));
    let error = problem(&programs, "hello");
    assert!(error.contains("wrote a line that is no reply") && error.ends_with("hello"), "{error}");
    assert_eq!(value(&programs, ""), Some(1.0), "it counts from the beginning");
}

#[test]
fn a_line_that_nobody_asked_for_is_no_answer_to_the_next() {
    let scratch = tempfile::tempdir().unwrap();
    let script = "while read -r line; do echo 1; echo 2; touch written; done";
    let programs = Command { directory: Some(scratch.path().into()), ..sh(script) }.start().unwrap();
    assert_eq!(value(&programs, ""), Some(1.0));
    assert!(wait_for(|| scratch.path().join("written").exists()));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(problem(&programs, ""), "\"sh\" wrote a line that nobody asked for: 2");
}

#[test]
fn a_line_without_end_is_an_error() {
    let programs = sh("read -r line; cat /dev/zero").start().unwrap();
    assert_eq!(problem(&programs, ""), "\"sh\" wrote a line of more than a mebibyte");
    let programs = sh("read -r line; printf '\\377\\n'; cat > /dev/null").start().unwrap();
    assert_eq!(problem(&programs, ""), "\"sh\" wrote a line that is not UTF-8");
    let programs = Command { timeout_s: 0.5, ..sh("while :; do printf 1; sleep 0.1; done") }.start().unwrap();
    assert_eq!(problem(&programs, ""), "\"sh\" gave no reply within 0.5 s");
}

#[test]
fn an_error_and_an_abstention_leave_the_process_alive() {
    let script = r#"n=0; while read -r line; do n=$((n + 1)); case $line in
        *bad*) echo '{"error": "no such thing"}';;
        *dont*) echo null;;
        *) echo "{\"overall\": $n, \"format\": 1}";; esac; done"#;
    let programs = Command { retries: 3, ..sh(script) }.start().unwrap();
    assert_eq!(problem(&programs, "bad"), "\"sh\" says: no such thing");
    assert_eq!(ask(&programs, "dont").unwrap(), Score::abstain());
    let expected = Score { value: Some(3.0), parts: vec![("format".into(), Some(1.0))] };
    assert_eq!(ask(&programs, "").unwrap(), expected);
}

#[test]
fn what_cannot_be_started_is_found_out_at_once() {
    let command = |program: &str| Command { command: vec![program.into()], ..sh("") };
    let error = command("/no/such/program").start().unwrap_err().to_string();
    assert!(error.starts_with("cannot start \"/no/such/program\": No such file"), "{error}");
    for (command, key) in [
        (command(""), "command"),
        (Command { command: Vec::new(), ..sh("") }, "command"),
        (Command { workers: 0, ..sh("") }, "workers"),
        (Command { workers: 257, ..sh("") }, "workers"),
        (Command { timeout_s: 0.0, ..sh("") }, "timeout_s"),
        (Command { timeout_s: f64::NAN, ..sh("") }, "timeout_s"),
        (Command { timeout_s: f64::INFINITY, ..sh("") }, "timeout_s"),
        (Command { directory: Some("/no/such/directory".into()), ..sh("") }, "directory"),
    ] {
        assert!(command.start().unwrap_err().to_string().starts_with(key));
    }
}

#[test]
fn dropping_the_reward_ends_its_processes() {
    let scratch = tempfile::tempdir().unwrap();
    let start = |script: &str| {
        let programs = Command { directory: Some(scratch.path().into()), ..sh(script) }.start().unwrap();
        assert_eq!(value(&programs, ""), Some(1.0));
        drop(programs);
        read(&scratch.path().join("pid"))
    };
    // One that ends with its input may say goodbye; one that does not is killed.
    let polite = start("echo $$ > pid; while read -r line; do echo 1; done; sleep 0.1; echo bye > bye");
    assert_eq!(read(&scratch.path().join("bye")), "bye\n");
    let stubborn = start("echo $$ > pid; read -r line; echo 1; while :; do sleep 1; done");
    for pid in [polite, stubborn] {
        assert!(!pid.trim().is_empty() && wait_for(|| !is_alive(pid.trim())));
    }
}
