//! What the dashboard shows: how far the phase is, its numbers, curves of some of them, and a completion.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use ratatui_core::buffer::Buffer;
use ratatui_core::layout::{Constraint, Layout, Rect};
use ratatui_core::style::{Color, Style, Stylize as _};
use ratatui_core::symbols::Marker;
use ratatui_core::text::{Line, Span};
use ratatui_core::widgets::Widget as _;
use ratatui_widgets::chart::{Axis, Chart, Dataset, GraphType};
use ratatui_widgets::gauge::LineGauge;
use ratatui_widgets::paragraph::{Paragraph, Wrap};

use super::curve::Curve;
use super::harmless::harmless;
use super::phase::Phase;
use super::{Field, Shown};

/// The numbers that have curves; the others are numbers only.
const CURVES: [&str; 3] = ["reward", "accuracy", "loss"];
/// The colours of the curves that lie side by side.
const COLOURS: [Color; 3] = [Color::Green, Color::Cyan, Color::Yellow];
/// Characters of a text that are kept: more than there is room for.
const CHARACTERS: usize = 8000;
/// A terminal with fewer rows under the curves has no room for the steps that they go through.
const ROWS_FOR_STEPS: u16 = 6;

/// What is known of a run, and how it is drawn.
#[derive(Debug)]
pub(super) struct Dashboard {
    phase: Phase,
    over: bool,
    series: Vec<Series>,
    rollout: Option<Rollout>,
}

/// The numbers of one name.
#[derive(Debug)]
struct Series {
    name: &'static str,
    last: Option<f64>,
    curve: Curve,
}

/// A completion, fit to be shown.
#[derive(Debug)]
struct Rollout {
    question: String,
    answer: Option<String>,
    response: String,
    reward: Option<f32>,
}

impl Dashboard {
    /// Of a phase that begins or goes on.
    pub(super) fn new(phase: Phase) -> Self {
        Self { phase, over: false, series: Vec::new(), rollout: None }
    }

    /// A step is done, after which the phase is `phase`.
    pub(super) fn step(&mut self, phase: Phase, fields: &[Field]) {
        self.phase = phase;
        for &Field { name, value } in fields {
            let place = self.series.iter().position(|series| series.name == name).unwrap_or_else(|| {
                self.series.push(Series { name, last: None, curve: Curve::default() });
                self.series.len() - 1
            });
            if let Some(value) = value {
                self.series[place].last = Some(value);
                self.series[place].curve.push(phase.step, value);
            }
        }
    }

    /// A completion of the last rollout.
    pub(super) fn rollout(&mut self, shown: &Shown<'_>) {
        let fit = |text: &str| harmless(&text.trim().chars().take(CHARACTERS).collect::<String>());
        self.rollout = Some(Rollout {
            question: fit(shown.question),
            answer: shown.answer.map(fit),
            response: fit(shown.response),
            reward: shown.reward,
        });
    }

    /// The phase is over.
    pub(super) fn finish(&mut self) {
        self.over = true;
    }

    /// The rows it takes on a terminal of so many: about half of them, and a single one until something has happened.
    pub(super) fn height(&self, rows: u16) -> u16 {
        let wanted = if self.series.is_empty() && self.rollout.is_none() { 1 } else { (rows / 2 + 2).clamp(10, 18) };
        // The cursor stands in the row below.
        wanted.min(rows.saturating_sub(1))
    }

    /// Draws it over all of `buffer`.
    pub(super) fn draw(&self, now: Instant, buffer: &mut Buffer) {
        let (curves, numbers): (Vec<_>, Vec<_>) = self.series.iter().partition(|series| CURVES.contains(&series.name));
        let share = |shown: bool| if shown { Constraint::Fill(1) } else { Constraint::Length(0) };
        let areas = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(u16::from(!numbers.is_empty())),
            share(!curves.is_empty()),
            share(self.rollout.is_some()),
        ]);
        let [head, below, charts, text] = areas.areas(buffer.area);
        self.draw_head(now, head, buffer);
        let numbers = numbers.iter().flat_map(|series| [series.label(), Span::raw("   ")]);
        numbers.collect::<Line<'_>>().render(below, buffer);
        let columns = Layout::horizontal(curves.iter().map(|_| Constraint::Fill(1))).spacing(2).split(charts);
        for ((series, &area), colour) in curves.iter().zip(columns.iter()).zip(COLOURS) {
            series.draw(self.phase.of_this_process(), colour, area, buffer);
        }
        if let Some(rollout) = &self.rollout {
            rollout.draw(text, buffer);
        }
    }

    fn draw_head(&self, now: Instant, area: Rect, buffer: &mut Buffer) {
        let phase = &self.phase;
        let mut times = format!(" {}", clock(now.saturating_duration_since(phase.started)));
        if let Some(left) = phase.left(now).filter(|_| !self.over) {
            let _ = write!(times, "  left {}", clock(left));
        }
        let times = Line::raw(times);
        let areas = Layout::horizontal([Constraint::Fill(1), Constraint::Length(times.width() as u16)]);
        let [gauge, right] = areas.areas(area);
        let label = [phase.name.bold(), format!(" {}/{}", phase.step, phase.steps).into()];
        LineGauge::default()
            .label(Line::from_iter(label))
            .filled_symbol("━")
            .unfilled_symbol("┄")
            .filled_style(Color::Green)
            .unfilled_style(Style::new().dim())
            .ratio(phase.share())
            .render(gauge, buffer);
        times.render(right, buffer);
    }
}

impl Series {
    /// Its name and its last number.
    fn label(&self) -> Span<'static> {
        Span::raw(self.last.map_or_else(|| format!("{} -", self.name), |last| format!("{} {last:.3}", self.name)))
    }

    /// Its label, and below that its curve over these steps.
    fn draw(&self, steps: RangeInclusive<usize>, colour: Color, area: Rect, buffer: &mut Buffer) {
        let [title, area] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
        self.label().bold().fg(colour).render(title, buffer);
        let points = self.curve.points();
        if points.is_empty() {
            return;
        }
        let values = || points.iter().map(|&(_, value)| value);
        let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        let label = |value: f64| format!("{value:.3}");
        // A curve that is level has no height of its own.
        let (top, labels) =
            if low < high { (high, [label(low), label(high)]) } else { (low + 1.0, [label(low), String::new()]) };
        let line = Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).data(points).fg(colour);
        let (first, last) = (*steps.start(), *steps.end());
        let mut across = Axis::default().bounds([first as f64, last.max(first + 1) as f64]).dim();
        if area.height >= ROWS_FOR_STEPS {
            across = across.labels([first, last].map(|step| step.to_string()));
        }
        let up = Axis::default().bounds([low, top]).labels(labels).dim();
        Chart::new(vec![line]).x_axis(across).y_axis(up).render(area, buffer);
    }
}

impl Rollout {
    fn draw(&self, area: Rect, buffer: &mut Buffer) {
        let reward = self.reward.map_or_else(|| "abstained".into(), |reward| format!("{reward:.3}"));
        let mut line = vec!["rollout".bold(), format!("   reward {reward}").into()];
        line.extend(self.answer.as_ref().map(|answer| format!("   answer {answer}").into()));
        let question = Line::from_iter(["question ".dim(), self.question.as_str().into()]);
        let response = Line::from_iter(["response ".dim(), self.response.as_str().into()]);
        // A long question leaves most of the room to the response.
        let rows = question.width().div_ceil(usize::from(area.width.max(1))) as u16;
        let rows = Constraint::Length(rows.min((area.height / 4).max(1)));
        let [title, top, bottom] = Layout::vertical([Constraint::Length(1), rows, Constraint::Fill(1)]).areas(area);
        Line::from(line).render(title, buffer);
        draw_wrapped(question, top, buffer);
        draw_wrapped(response, bottom, buffer);
    }
}

/// Draws a text over several rows, and a sign at the end when there is more of it.
fn draw_wrapped(text: Line<'_>, area: Rect, buffer: &mut Buffer) {
    if area.is_empty() {
        return;
    }
    let text = Paragraph::new(text).wrap(Wrap { trim: true });
    (&text).render(area, buffer);
    let mut next = Buffer::empty(Rect { height: 1, ..area });
    text.scroll((area.height, 0)).render(next.area, &mut next);
    if next.content.iter().any(|cell| cell.symbol() != " ") {
        buffer[(area.right() - 1, area.bottom() - 1)].set_symbol("…");
    }
}

/// Minutes and seconds, with hours where there are any.
fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ratatui_core::backend::TestBackend;
    use ratatui_core::terminal::Terminal;

    use super::*;

    /// What is drawn some seconds after the last of 40 steps of 3 s, of which the first 20 were another process's.
    fn after_some_steps(columns: u16, rows: u16, response: &str) -> TestBackend {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let mut phase = Phase::begin("reinforcement", 300, 20, began);
        let mut dashboard = Dashboard::new(phase);
        for step in 1..=20_u32 {
            phase.step(at(3 * u64::from(step)));
            let reward = f64::from(step * step) / 800.0 + f64::from(step % 2) / 10.0;
            let accuracy = (step >= 8).then_some(f64::from(step / 8) / 4.0);
            let fields =
                [Field::new("reward", reward), Field::new("entropy", 1.25), Field::maybe("accuracy", accuracy)];
            dashboard.step(phase, &fields);
        }
        let question = "How many red squares are there?";
        dashboard.rollout(&Shown { question, answer: Some("7"), response, reward: Some(0.5) });
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal.draw(|frame| dashboard.draw(at(72), frame.buffer_mut())).unwrap();
        terminal.backend().clone()
    }

    /// The rows of a terminal, without the blanks at their ends.
    fn rows(drawn: &TestBackend) -> Vec<String> {
        drawn.to_string().lines().map(|row| row.trim_matches('"').trim_end().to_owned()).collect()
    }

    const RESPONSE: &str = "There are \u{1b}[31mthree\u{1b}[0m in the first row,\nand four in the second, and then \
        there are some more that lie below those and are not quite as red, but red enough to count them. That makes 7.";

    #[test]
    fn everything_has_its_place_on_a_terminal_of_24_rows() {
        let expected = [
            "reinforcement 40/300 ━━━━━┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄ 1:12  left 12:48",
            "entropy 1.250",
            "reward 0.500                             accuracy 0.500",
            "0.551│                           ⢀  ⡔⠑⠢  0.500│                         ⢸⠉⠉⠉⠉⠉⠉⠉",
            "     │                       ⢀⢄⡀⡰⠁⠉⠊          │                         ⡇",
            "     │                ⢀⢄⡀⢀⠎⠢⡠⠃ ⠈              │                        ⢠⠃",
            "     │   ⢀   ⡀  ⡠⣀⢀⠎⠒⢄⠎ ⠈⠊                    │                        ⢸",
            "0.005│⠑⢄⠔⠁⠑⠔⠊⠈⠢⠊  ⠁                      0.250│            ⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⡇",
            "rollout   reward 0.500   answer 7",
            "question How many red squares are there?",
            "response There are ␛[31mthree␛[0m in the first row,↵and four in the second, and",
            "then there are some more that lie below those and are not quite as red, but red",
            "enough to count them. That makes 7.",
            "",
        ];
        assert_eq!(rows(&after_some_steps(80, 14, RESPONSE)), expected);
    }

    #[test]
    fn a_small_one_cuts_the_texts_and_leaves_out_the_steps() {
        let expected = [
            "reinforcement 40/300 ━━┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄ 1:12  left 12:48",
            "entropy 1.250",
            "reward 0.500                   accuracy 0.500",
            "0.551│                ⢀ ⢀⠤⡠⠊⠑  0.500│                 ⢠⠋⠉⠉⠉⠉",
            "     │         ⢀ ⢀⠤⡠⠒⠤⠃⠉⠊           │                 ⡜",
            "0.005│⠢⡠⠔⢄⠎⠒⠔⠉⠒⠁⠑⠁             0.250│        ⢀⣀⣀⣀⣀⣀⣀⣀⣠⠃",
            "rollout   reward 0.500   answer 7",
            "question How many red squares are there?",
            "response There are ␛[31mthree␛[0m in the first row,↵and four",
            "in the second, and then there are some more that lie below …",
        ];
        assert_eq!(rows(&after_some_steps(60, 10, RESPONSE)), expected);
    }

    #[test]
    fn no_size_and_no_text_is_too_much() {
        let long = "图\u{1b}\u{301}👩‍👧 ".repeat(3000);
        for columns in [1, 2, 3, 7, 20, 59, 80, 300] {
            for rows in 1..20 {
                let drawn = after_some_steps(columns, rows, &long);
                assert!(drawn.buffer().content.iter().all(|cell| !cell.symbol().contains(char::is_control)));
            }
        }
    }

    #[test]
    fn it_is_a_row_at_first_and_about_half_of_the_terminal_then() {
        let mut phase = Phase::begin("heads", 64, 0, Instant::now());
        let mut dashboard = Dashboard::new(phase);
        assert_eq!([0, 1, 2, 24].map(|rows| dashboard.height(rows)), [0, 0, 1, 1]);
        phase.step(Instant::now());
        dashboard.step(phase, &[Field::new("accuracy", 0.5)]);
        assert_eq!([0, 3, 10, 16, 24, 30, 100].map(|rows| dashboard.height(rows)), [0, 2, 9, 10, 14, 17, 18]);
    }

    #[test]
    fn a_phase_that_is_over_has_no_time_left() {
        let began = Instant::now();
        let mut phase = Phase::begin("supervised", 3, 0, began);
        let mut dashboard = Dashboard::new(phase);
        phase.step(began + Duration::from_secs(4000));
        dashboard.step(phase, &[Field::new("loss", f64::NAN)]);
        let head = |dashboard: &Dashboard| {
            let mut terminal = Terminal::new(TestBackend::new(60, 3)).unwrap();
            let now = began + Duration::from_secs(4001);
            terminal.draw(|frame| dashboard.draw(now, frame.buffer_mut())).unwrap();
            terminal.backend().to_string()
        };
        let running = head(&dashboard);
        assert!(running.starts_with("\"supervised 1/3 ━") && running.contains("1:06:41  left 2:13:19\""), "{running}");
        assert!(running.contains("loss NaN"), "{running}");
        dashboard.finish();
        let over = head(&dashboard);
        assert!(over.contains(" 1:06:41\""), "{over}");
    }
}
