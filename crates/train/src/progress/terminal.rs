//! The terminal of the process, shared by the run and the thread that draws on it.

use std::env;
use std::ffi::OsStr;
use std::io::{IsTerminal as _, Stderr};
use std::panic;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, TryLockError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use console::Term;
use ratatui_core::layout::Size;

use super::dashboard::Dashboard;
use super::phase::Phase;
use super::screen::Screen;
use super::{Field, Shown};

/// The smallest terminal that has room for the dashboard and some lines above it.
const SMALLEST: Size = Size::new(60, 16);
/// The time between two looks at what has changed.
const TICK: Duration = Duration::from_millis(100);
/// Tries to move the dashboard out of the way, a tick apart.
const TRIES: usize = 10;

/// The dashboard that is on the terminal; a terminal has room for one.
static SHOWN: Mutex<Weak<Mutex<Screen<Stderr>>>> = Mutex::new(Weak::new());
static HOOK: Once = Once::new();

/// The dashboard on the standard error stream, drawn by a thread of its own: steps may take minutes.
#[derive(Debug)]
pub(super) struct Terminal {
    screen: Arc<Mutex<Screen<Stderr>>>,
    /// The thread ends when its sender goes.
    drawing: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Terminal {
    /// None if the standard error stream is no terminal, is too small or cannot move its cursor, or has a dashboard.
    pub(super) fn detect() -> Option<Self> {
        let terminal = Term::stderr();
        let roomy = size().is_some_and(|size| size.width >= SMALLEST.width && size.height >= SMALLEST.height);
        // A Windows console has to be asked to read escape sequences; this does.
        let escapes = cfg!(unix) || terminal.features().colors_supported();
        let mut shown = lock(&SHOWN);
        if !std::io::stderr().is_terminal() || console::is_dumb() || !roomy || !escapes || shown.strong_count() > 0 {
            return None;
        }
        let colours = colours(env::var_os("NO_COLOR").as_deref());
        let screen = Arc::new(Mutex::new(Screen::new(std::io::stderr(), colours, Instant::now())));
        let (sender, ended) = mpsc::channel::<()>();
        let drawn = Arc::clone(&screen);
        let draw = move || {
            while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                if let Some(size) = size() {
                    lock(&drawn).tick(size, Instant::now());
                }
            }
        };
        let drawing = thread::Builder::new().name("dashboard".into()).spawn(draw).ok()?;
        *shown = Arc::downgrade(&screen);
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |panic| above(|| before(panic))));
        });
        Some(Self { screen, drawing: Some((sender, drawing)) })
    }

    pub(super) fn phase(&self, phase: Phase) {
        lock(&self.screen).begin(Dashboard::new(phase), phase.started);
    }

    pub(super) fn step(&self, phase: Phase, fields: &[Field]) {
        lock(&self.screen).change(|dashboard| dashboard.step(phase, fields));
    }

    pub(super) fn rollout(&self, shown: &Shown<'_>) {
        lock(&self.screen).change(|dashboard| dashboard.rollout(shown));
    }

    pub(super) fn note(&self, text: &str) {
        lock(&self.screen).note(text, size().unwrap_or(SMALLEST), Instant::now());
    }

    pub(super) fn finish(&self) {
        lock(&self.screen).finish(size().unwrap_or(SMALLEST), Instant::now());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some((sender, drawing)) = self.drawing.take() {
            drop(sender);
            let _ = drawing.join();
        }
        if !thread::panicking() {
            self.finish();
        }
    }
}

/// Has `write` write to the standard error stream above the dashboard, if there is one.
pub(crate) fn above(write: impl FnOnce()) {
    let shown = lock(&SHOWN).upgrade();
    match shown.as_deref().and_then(lock_soon) {
        Some(mut screen) => screen.above(size().unwrap_or(SMALLEST), write),
        None => write(),
    }
}

/// Columns and rows; none if it is no terminal, or does not know.
fn size() -> Option<Size> {
    Term::stderr().size_checked().map(|(rows, columns)| Size::new(columns, rows))
}

/// As <https://no-color.org> has it.
fn colours(no_color: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty)
}

/// A run does not end because drawing once failed.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for others, but not for ever: whoever panics while it draws has the lock itself.
fn lock_soon<T>(shared: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    for _ in 0..TRIES {
        match shared.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => thread::sleep(TICK),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_counts_when_it_is_set_and_not_empty() {
        assert!(colours(None));
        assert!(colours(Some(OsStr::new(""))));
        assert!(!colours(Some(OsStr::new("0"))));
    }

    #[test]
    fn nobody_waits_for_a_lock_that_it_holds_itself() {
        let shared = Mutex::new(0);
        let held = lock(&shared);
        assert!(lock_soon(&shared).is_none());
        drop(held);
        assert!(lock_soon(&shared).is_some());
    }
}
