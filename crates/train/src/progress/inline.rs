//! A frame that stays at the end of what is written to a terminal.
//!
//! It is drawn relative to the cursor, which rests in the row below it. So nothing has to be asked of the terminal,
//! which would take raw mode and what is typed meanwhile, and no mode of it outlives the process, however that ends.
//! Lines that a narrower terminal has wrapped are counted as most terminals do it; some rows of the old frame can stay
//! above the new one when that is drawn in the middle of such a change.

use std::io::Write;

use anstyle::{Effects, Style};
use ratatui_core::buffer::{Buffer, Cell, CellWidth as _};
use ratatui_core::style::Color;

/// The frame on a terminal.
#[derive(Debug)]
pub(super) struct Inline<W> {
    output: W,
    colours: bool,
    /// Columns that each line of the frame takes, from its first row on; empty when there is no frame.
    lines: Vec<u16>,
    /// What the terminal has not been sent yet.
    pending: Vec<u8>,
}

impl<W: Write> Inline<W> {
    /// Begins at the cursor, which is to be in the first column. Without `colours` the text has no attributes at all.
    pub(super) fn new(output: W, colours: bool) -> Self {
        Self { output, colours, lines: Vec::new(), pending: Vec::new() }
    }

    /// Draws `frame`, as wide as the terminal, in the place of the one before.
    pub(super) fn draw(&mut self, frame: &Buffer) {
        let columns = frame.area.width;
        // A character that is wider than it is thought to be does not break its line.
        self.push("\x1b[?7l");
        self.go_up(columns);
        self.lines.clear();
        for row in frame.content.chunks(usize::from(columns.max(1))) {
            let end = row.iter().rposition(|cell| *cell != Cell::EMPTY).map_or(0, |last| last + 1);
            // All of the row: part of one would still be to the terminal the line that it had been a part of.
            self.push("\x1b[2K");
            self.push_cells(&row[..end]);
            self.push("\r\n");
            self.lines.push(end as u16);
        }
        self.push("\x1b[J\x1b[?7h");
    }

    /// Takes the frame off a terminal that is now `columns` wide. The cursor is where it began.
    pub(super) fn erase(&mut self, columns: u16) {
        if !self.lines.is_empty() {
            self.go_up(columns);
            self.push("\x1b[J");
            self.lines.clear();
        }
    }

    /// Leaves the frame where it is: the next one comes below whatever is there by then.
    pub(super) fn leave(&mut self) {
        self.lines.clear();
    }

    /// Writes a line, where no frame is.
    pub(super) fn line(&mut self, text: &str) {
        self.push(text);
        self.push("\r\n");
    }

    /// Sends what was drawn, in one go. What a terminal that is gone does not take is lost.
    pub(super) fn flush(&mut self) {
        let _ = self.output.write_all(&self.pending).and_then(|()| self.output.flush());
        self.pending.clear();
    }

    /// Moves the cursor to the first row of the frame. A terminal that has become narrower has broken its lines.
    fn go_up(&mut self, columns: u16) {
        let rows: u16 = self.lines.iter().map(|line| line.div_ceil(columns.max(1)).max(1)).sum();
        self.push("\r");
        if rows > 0 {
            self.push(&format!("\x1b[{rows}A"));
        }
    }

    fn push_cells(&mut self, cells: &[Cell]) {
        let mut style = Style::new();
        let mut column = 0;
        while let Some(cell) = cells.get(column) {
            let wanted = if self.colours { style_of(cell) } else { Style::new() };
            if wanted != style {
                let change = format!("{}{}", style.render_reset(), wanted.render());
                self.push(&change);
                style = wanted;
            }
            self.push(cell.symbol());
            // A wide character hides what is next to it.
            column += usize::from(cell.cell_width().max(1));
        }
        let reset = style.render_reset().to_string();
        self.push(&reset);
    }

    fn push(&mut self, text: &str) {
        self.pending.extend_from_slice(text.as_bytes());
    }
}

fn style_of(cell: &Cell) -> Style {
    // "The terminal's own colour" is none to anstyle.
    let colour = (cell.fg != Color::Reset).then(|| cell.fg.into());
    Style::new().fg_color(colour).effects(Effects::from(cell.modifier))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io;

    use ratatui_core::layout::Rect;
    use ratatui_core::style::{Modifier, Style};

    use super::*;

    fn frame(lines: &[&str]) -> Buffer {
        let mut frame = Buffer::empty(Rect::new(0, 0, 20, lines.len() as u16));
        for (row, line) in (0..).zip(lines) {
            frame.set_string(0, row, line, Style::default());
        }
        frame
    }

    /// What a terminal of 20 columns and 8 rows shows of this, and the row and column of its cursor.
    fn shown(bytes: &[u8]) -> (String, (u16, u16)) {
        let mut terminal = vt100::Parser::new(8.try_into().unwrap(), 20.try_into().unwrap(), 0);
        terminal.process(bytes);
        (terminal.screen().contents(), terminal.screen().cursor_position())
    }

    #[test]
    fn a_frame_takes_the_place_of_the_one_before_and_lines_come_above_it() {
        let mut inline = Inline::new(Vec::new(), true);
        inline.line("before");
        inline.draw(&frame(&["one", "a line of 20 columns", "图 three"]));
        inline.flush();
        assert_eq!(shown(&inline.output), ("before\none\na line of 20 columns\n图 three".into(), (4, 0)));
        inline.draw(&frame(&["1", "", "3", "4"]));
        inline.flush();
        assert_eq!(shown(&inline.output), ("before\n1\n\n3\n4".into(), (5, 0)));
        inline.erase(20);
        inline.line("a line that is longer than the terminal is wide");
        inline.draw(&frame(&["I", "II"]));
        inline.flush();
        let above = "before\na line that is longer than the terminal is wide";
        assert_eq!(shown(&inline.output), (format!("{above}\nI\nII"), (6, 0)));
        inline.leave();
        inline.draw(&frame(&["below"]));
        inline.flush();
        assert_eq!(shown(&inline.output), (format!("{above}\nI\nII\nbelow"), (7, 0)));
        inline.draw(&frame(&["still below"]));
        inline.flush();
        assert_eq!(shown(&inline.output), (format!("{above}\nI\nII\nstill below"), (7, 0)));
    }

    #[test]
    fn a_narrower_terminal_has_broken_the_lines() {
        let mut inline = Inline::new(Vec::new(), true);
        inline.draw(&frame(&["", "1234567", "12345678", "12345678901234567890"]));
        inline.pending.clear();
        inline.erase(7);
        // One row, one, two and three.
        assert_eq!(inline.pending, b"\r\x1b[7A\x1b[J");
    }

    #[test]
    fn text_has_attributes_only_if_they_are_asked_for() {
        let mut frame = frame(&["plain", ""]);
        frame.set_string(6, 0, "green", Style::new().fg(Color::Green).add_modifier(Modifier::BOLD));
        frame.set_string(0, 1, "dim", Style::new().add_modifier(Modifier::DIM));
        let drawn = |colours| {
            let mut inline = Inline::new(Vec::new(), colours);
            inline.draw(&frame);
            inline.flush();
            String::from_utf8_lossy(&inline.output).replace('\x1b', "ESC")
        };
        assert_eq!(
            drawn(true),
            "ESC[?7l\rESC[2Kplain ESC[1mESC[32mgreenESC[0m\r\nESC[2KESC[2mdimESC[0m\r\nESC[JESC[?7h"
        );
        assert_eq!(drawn(false), "ESC[?7l\rESC[2Kplain green\r\nESC[2Kdim\r\nESC[JESC[?7h");
    }

    #[test]
    fn a_terminal_that_is_gone_is_drawn_on_in_vain() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let mut inline = Inline::new(Gone, true);
        inline.draw(&frame(&["one"]));
        inline.flush();
        assert!(inline.pending.is_empty());
    }
}
