//! A process that goes away with everything that it started.

use std::io;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a process may take to end by itself.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// A process, on Unix the first of a group of its own: a signal from the terminal is for the run, and the whole group
/// is killed at once. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// Whether it has been waited for, so that its number may be another process's by now.
    over: bool,
}

/// The streams of a process.
pub(super) struct Streams {
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
}

impl Process {
    pub(super) fn start(command: &[String], directory: Option<&Path>) -> io::Result<(Self, Streams)> {
        let mut starting = Command::new(&command[0]);
        starting.args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(directory) = directory {
            starting.current_dir(directory);
        }
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut starting, 0);
        let mut child = starting.spawn()?;
        let streams = child.stdin.take().zip(child.stdout.take()).zip(child.stderr.take());
        let ((stdin, stdout), stderr) = streams.expect("all three are pipes");
        Ok((Self { child, over: false }, Streams { stdin, stdout, stderr }))
    }

    /// Kills what has not ended by itself within a while, and all that it started. Returns how it ended.
    pub(super) fn end(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        if !self.over {
            self.ends_within(grace);
            self.kill_all();
            // What cannot be killed, say another user's process, is left alone.
            self.over = self.ends_within(GRACE);
        }
        if self.over { self.child.wait() } else { Err(io::Error::other("it cannot be killed")) }
    }

    fn ends_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.has_ended() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Looks without waiting for it: as long as nobody does, the number of the group is its own.
    #[cfg(unix)]
    fn has_ended(&mut self) -> bool {
        use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(Pid::from_child(&self.child)), look), Ok(None))
    }

    #[cfg(not(unix))]
    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// One that has ended already cannot be killed, which is as good.
    #[cfg(unix)]
    fn kill_all(&mut self) {
        use rustix::process::{Pid, Signal, kill_process_group};
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }

    #[cfg(not(unix))]
    fn kill_all(&mut self) {
        let _ = self.child.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // There is nothing left to try should this fail.
        let _ = self.end(GRACE);
    }
}
