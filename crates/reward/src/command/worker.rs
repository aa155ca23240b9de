//! One process that is asked over and over.
//!
//! Its three streams have a thread each, so none of them can block the one who asks. A thread ends when its stream
//! does; nobody waits for that longer than a moment, since a process that has left the group may keep a stream open.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::process::{GRACE, Process, Streams};

/// Longest line that is read, in bytes.
const LONGEST: usize = 1 << 20;
/// How much of the end of a standard error is kept, in bytes.
const TAIL: usize = 4096;
/// How much of it is told, in lines.
const TAIL_LINES: usize = 20;

/// A process and the ends of its streams.
#[derive(Debug)]
pub(super) struct Worker {
    process: Process,
    /// Requests; without it, the input of the process ends.
    requests: Option<Sender<String>>,
    replies: Receiver<Line>,
    errors: Arc<Mutex<VecDeque<u8>>>,
    /// Nothing comes out of it; it is closed when the standard error is.
    no_more_errors: Receiver<()>,
}

/// A line of a process, or why there is none.
type Line = Result<String, &'static str>;

/// What a process did instead of answering.
#[derive(Debug, PartialEq)]
pub(super) enum Problem {
    /// It has closed its output.
    Ended,
    /// It took longer than this.
    Late(Duration),
    /// It wrote something else.
    Nonsense(String),
}

impl Worker {
    pub(super) fn start(command: &[String], directory: Option<&Path>) -> io::Result<Self> {
        let (process, Streams { stdin, stdout, stderr }) = Process::start(command, directory)?;
        let thread = |name: &str| thread::Builder::new().name(format!("reward {name}"));
        let (requests, to_write) = channel();
        thread("requests").spawn(move || write(stdin, &to_write))?;
        // A process that writes more than it is asked for has to wait.
        let (lines, replies) = sync_channel(1);
        thread("replies").spawn(move || read(stdout, &lines))?;
        let (open, no_more_errors) = channel();
        let errors = Arc::new(Mutex::new(VecDeque::new()));
        let tail = errors.clone();
        thread("errors").spawn(move || drain(stderr, &tail, open))?;
        Ok(Self { process, requests: Some(requests), replies, errors, no_more_errors })
    }

    /// Sends a line and waits for one.
    pub(super) fn ask(&mut self, request: &str, limit: Duration) -> Result<String, Problem> {
        let told = |line: Line| line.map_err(|problem| Problem::Nonsense(problem.into()));
        match self.replies.try_recv() {
            Ok(line) => {
                let shown: String = told(line)?.trim_end().chars().take(200).collect();
                return Err(Problem::Nonsense(format!("wrote a line that nobody asked for: {shown}")));
            }
            Err(TryRecvError::Disconnected) => return Err(Problem::Ended),
            Err(TryRecvError::Empty) => {}
        }
        if let Some(requests) = &self.requests {
            // A process that has closed its input may answer all the same; it is late otherwise.
            let _ = requests.send(format!("{request}\n"));
        }
        match self.replies.recv_timeout(limit) {
            Ok(line) => told(line),
            Err(RecvTimeoutError::Timeout) => Err(Problem::Late(limit)),
            Err(RecvTimeoutError::Disconnected) => Err(Problem::Ended),
        }
    }

    /// Ends the process; returns what it did, in words, and the last lines of its standard error.
    pub(super) fn end(mut self, problem: Problem) -> (String, String) {
        self.requests = None;
        // What a process ends with by itself is of interest.
        let status = self.process.end(if problem == Problem::Ended { GRACE } else { Duration::ZERO });
        let problem = match problem {
            Problem::Ended => {
                format!(
                    "ended without a reply ({})",
                    status.map_or_else(|error| error.to_string(), |status| status.to_string())
                )
            }
            Problem::Late(limit) => format!("gave no reply within {} s", limit.as_secs_f64()),
            Problem::Nonsense(problem) => problem,
        };
        let _ = self.no_more_errors.recv_timeout(GRACE);
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(errors.make_contiguous()).into_owned();
        let lines: Vec<&str> = text.trim_end().lines().collect();
        (problem, lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The input ends first; the process has a moment then.
        self.requests = None;
    }
}

fn write(mut stdin: ChildStdin, requests: &Receiver<String>) {
    for request in requests {
        if stdin.write_all(request.as_bytes()).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

fn read(stdout: ChildStdout, lines: &SyncSender<Line>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let length = (&mut stdout).take(LONGEST as u64 + 1).read_until(b'\n', &mut line);
        let line = match length {
            Ok(0) | Err(_) => return,
            Ok(length) if length > LONGEST => Err("wrote a line of more than a mebibyte"),
            Ok(_) => String::from_utf8(line).map_err(|_| "wrote a line that is not UTF-8"),
        };
        let last = line.is_err();
        if lines.send(line).is_err() || last {
            return;
        }
    }
}

/// Reads a standard error so that it does not fill up, and keeps its end.
fn drain(mut stderr: ChildStderr, tail: &Mutex<VecDeque<u8>>, open: Sender<()>) {
    let mut some = [0; TAIL];
    while let Ok(length @ 1..) = stderr.read(&mut some) {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(&some[..length]);
        let over = tail.len().saturating_sub(TAIL);
        tail.drain(..over);
    }
    drop(open);
}
