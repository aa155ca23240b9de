//! When the dashboard is drawn, and where other lines go meanwhile.

use std::io::Write;
use std::time::{Duration, Instant};

use ratatui_core::buffer::Buffer;
use ratatui_core::layout::{Rect, Size};

use super::dashboard::Dashboard;
use super::harmless::harmless;
use super::inline::Inline;

/// Its clock moves this often.
const CLOCK: Duration = Duration::from_secs(1);
/// Somebody who has not drawn for so long has been stopped, and the terminal may show the work of others.
const STOPPED: Duration = Duration::from_secs(5);

/// A dashboard on a terminal.
#[derive(Debug)]
pub(super) struct Screen<W> {
    inline: Inline<W>,
    /// What is shown, from the begin of a phase to its end.
    dashboard: Option<Dashboard>,
    changed: bool,
    size: Size,
    drawn: Instant,
}

impl<W: Write> Screen<W> {
    /// A screen of the terminal behind `output`, without any dashboard yet.
    pub(super) fn new(output: W, colours: bool, now: Instant) -> Self {
        let inline = Inline::new(output, colours);
        Self { inline, dashboard: None, changed: false, size: Size::default(), drawn: now }
    }

    /// Shows a dashboard from the next tick on.
    pub(super) fn begin(&mut self, dashboard: Dashboard, now: Instant) {
        (self.dashboard, self.changed, self.drawn) = (Some(dashboard), true, now);
    }

    /// Changes what the next tick shows.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Dashboard)) {
        if let Some(dashboard) = &mut self.dashboard {
            change(dashboard);
            self.changed = true;
        }
    }

    /// Draws what has changed since the last time on a terminal that has this size.
    pub(super) fn tick(&mut self, size: Size, now: Instant) {
        if self.dashboard.is_some() {
            let since = now.saturating_duration_since(self.drawn);
            if since > STOPPED {
                self.inline.leave();
            }
            if self.changed || size != self.size || since >= CLOCK {
                self.draw(size, now);
                self.inline.flush();
            }
        }
    }

    /// Writes lines above the dashboard.
    pub(super) fn note(&mut self, text: &str, size: Size, now: Instant) {
        self.inline.erase(size.width);
        for line in text.lines() {
            self.inline.line(&harmless(line));
        }
        self.draw(size, now);
        self.inline.flush();
    }

    /// Has `write` write above the dashboard, which the next tick shows again.
    pub(super) fn above(&mut self, size: Size, write: impl FnOnce()) {
        self.inline.erase(size.width);
        self.inline.flush();
        write();
        self.changed = true;
    }

    /// Draws the dashboard once more, and leaves it where it is.
    pub(super) fn finish(&mut self, size: Size, now: Instant) {
        self.change(Dashboard::finish);
        self.draw(size, now);
        self.inline.flush();
        self.inline.leave();
        self.dashboard = None;
    }

    fn draw(&mut self, size: Size, now: Instant) {
        if let Some(dashboard) = &self.dashboard {
            let mut frame = Buffer::empty(Rect::new(0, 0, size.width, dashboard.height(size.height)));
            dashboard.draw(now, &mut frame);
            self.inline.draw(&frame);
            (self.changed, self.size, self.drawn) = (false, size, now);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::RefCell;
    use std::io;
    use std::rc::Rc;

    use super::super::Field;
    use super::super::phase::Phase;
    use super::*;

    const SIZE: Size = Size::new(60, 16);

    /// What a terminal got.
    #[derive(Clone, Default)]
    struct Output(Rc<RefCell<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output {
        fn length(&self) -> usize {
            self.0.borrow().len()
        }

        /// All lines that a person can scroll through.
        fn lines(&self) -> Vec<String> {
            let mut terminal = vt100::Parser::new(1000.try_into().unwrap(), SIZE.width.try_into().unwrap(), 0);
            terminal.process(&self.0.borrow());
            terminal.screen().contents().lines().map(|line| line.trim_end().to_owned()).collect()
        }

        /// The lines that begin so.
        fn lines_with(&self, begin: &str) -> Vec<String> {
            self.lines().into_iter().filter(|line| line.starts_with(begin)).collect()
        }
    }

    fn begun() -> (Screen<Output>, Output, Phase, Instant) {
        let (output, now) = (Output::default(), Instant::now());
        let mut screen = Screen::new(output.clone(), false, now);
        screen.note("a table\nof two rows", SIZE, now);
        let phase = Phase::begin("reinforcement", 100, 0, now);
        screen.begin(Dashboard::new(phase), now);
        (screen, output, phase, now)
    }

    #[test]
    fn notes_stay_and_the_dashboard_is_there_once() {
        let (mut screen, output, mut phase, began) = begun();
        for step in 1..=50_u32 {
            let now = began + Duration::from_millis(700) * step;
            phase.step(now);
            screen.change(|dashboard| dashboard.step(phase, &[Field::new("reward", f64::from(step))]));
            screen.tick(SIZE, now);
            if step.is_multiple_of(10) {
                screen.note(&format!("note {step} \u{1b}[2J"), SIZE, now);
            }
        }
        let notes = ["note 10 ␛[2J", "note 20 ␛[2J", "note 30 ␛[2J", "note 40 ␛[2J", "note 50 ␛[2J"];
        let lines = output.lines();
        assert_eq!(lines[..2], ["a table", "of two rows"]);
        assert_eq!(lines[2..7], notes);
        assert!(lines[7].starts_with("reinforcement 50/100 ━"), "{lines:?}");
        assert!(lines[8].starts_with("reward 50.000"), "{lines:?}");
        assert_eq!(output.lines_with("reinforcement").len(), 1, "{lines:?}");
        let dashboard = lines.len() - 7;
        assert_eq!(dashboard, 10);

        // The last state of a phase stays above whatever comes.
        let end = began + Duration::from_secs(36);
        screen.finish(SIZE, end);
        screen.note("between", SIZE, end);
        screen.tick(SIZE, end + CLOCK);
        screen.begin(Dashboard::new(Phase::begin("heads", 3, 0, end)), end);
        screen.tick(SIZE, end + CLOCK);
        let lines = output.lines();
        assert!(lines[7].starts_with("reinforcement 50/100 ━") && lines[7].ends_with(" 0:36"), "{lines:?}");
        assert_eq!(lines[7 + dashboard], "between");
        assert!(lines[8 + dashboard].starts_with("heads 0/3 "), "{lines:?}");
        assert_eq!(lines.len(), 9 + dashboard);
    }

    #[test]
    fn it_is_drawn_when_something_changed_or_the_clock_moves() {
        let (mut screen, output, mut phase, began) = begun();
        let at = |milliseconds| began + Duration::from_millis(milliseconds);
        let drawn = |screen: &mut Screen<Output>, size, now| {
            let before = output.length();
            screen.tick(size, now);
            output.length() > before
        };
        assert!(drawn(&mut screen, SIZE, at(0)));
        assert!(!drawn(&mut screen, SIZE, at(900)));
        assert!(drawn(&mut screen, SIZE, at(1000)));
        phase.step(at(1050));
        screen.change(|dashboard| dashboard.step(phase, &[Field::new("loss", 0.5)]));
        assert!(drawn(&mut screen, SIZE, at(1100)));
        assert!(!drawn(&mut screen, SIZE, at(1200)));
        assert!(drawn(&mut screen, Size::new(59, 16), at(1300)));
        screen.finish(SIZE, at(1400));
        assert!(!drawn(&mut screen, SIZE, at(9000)));
    }

    #[test]
    fn others_write_above_it() {
        let (mut screen, output, _, began) = begun();
        screen.tick(SIZE, began);
        let mut other = output.clone();
        screen.above(SIZE, || other.write_all(b"a message\r\nof others\r\n").unwrap());
        screen.tick(SIZE, began);
        let lines = output.lines();
        assert_eq!(lines[..4], ["a table", "of two rows", "a message", "of others"]);
        assert!(lines[4].starts_with("reinforcement 0/100 "), "{lines:?}");
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn what_a_shell_wrote_while_the_process_was_stopped_stays() {
        let (mut screen, output, _, began) = begun();
        screen.tick(SIZE, began);
        output.clone().write_all(b"$ ls\r\nfiles\r\n").unwrap();
        screen.tick(SIZE, began + Duration::from_secs(20));
        screen.tick(SIZE, began + Duration::from_secs(21));
        let lines = output.lines();
        assert_eq!(lines[3..5], ["$ ls", "files"]);
        assert!(lines[5].ends_with(" 0:21"), "{lines:?}");
        assert_eq!(lines.len(), 6);
    }
}
