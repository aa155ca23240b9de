//! Bar charts and line charts.

use image::RgbImage;
use plotters::style::RGBColor;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::sheet::{PICTURE_WIDTH, Sheet};
use super::{Error, HIGHEST_LEVEL, ITEMS, LETTERS, Reading};

/// Where the vertical axis stands. The plot reaches to the right edge, so that each item falls into its quarter of the
/// picture.
const LEFT: i32 = 24;
const RIGHT: i32 = PICTURE_WIDTH as i32 - 4;

/// A drawn pair of axes: where an item's column and a level's height lie. It differs a little from chart to chart.
struct Axes {
    baseline: i32,
    step: i32,
    shift: i32,
}

impl Axes {
    /// Draws title, axes, ticks, letters and, in three charts of four, grid lines.
    fn draw(title: &str, random: &mut ChaCha8Rng) -> Result<(Sheet, Self), Error> {
        let mut sheet = Sheet::new(title, random)?;
        let axes = Self {
            baseline: random.random_range(159..=163),
            step: random.random_range(25..=27),
            shift: random.random_range(-6..=6),
        };
        let grid = random.random_bool(0.75).then(|| sheet.shade(random.random_range(25..=50)));
        let dark = sheet.text_colour();
        for level in 0..=HIGHEST_LEVEL {
            let y = axes.height(level);
            if let Some(colour) = grid {
                sheet.rectangle((LEFT, y), (RIGHT, y + 2), colour)?;
            }
            sheet.rectangle((LEFT - 4, y), (LEFT, y + 2), dark)?;
            sheet.tick_label(level, (LEFT - 7, y))?;
        }
        sheet.rectangle((LEFT, axes.height(HIGHEST_LEVEL)), (LEFT + 2, axes.baseline), dark)?;
        sheet.rectangle((LEFT, axes.baseline), (RIGHT, axes.baseline + 2), dark)?;
        for (item, letter) in LETTERS.into_iter().enumerate() {
            sheet.letter(letter, axes.column(item))?;
        }
        Ok((sheet, axes))
    }

    /// The middle of an item's column.
    fn column(&self, item: usize) -> i32 {
        LEFT + (2 * item as i32 + 1) * (RIGHT - LEFT) / (2 * ITEMS as i32) + self.shift
    }

    /// The row of pixels of a level; rows count downwards.
    fn height(&self, level: u8) -> i32 {
        self.baseline - self.step * i32::from(level)
    }

    /// Where the tip of an item's bar or its marker lies.
    fn tip(&self, item: usize, value: u8) -> (i32, i32) {
        (self.column(item), self.height(value))
    }
}

/// Either one colour for all items or one for each.
fn inks(sheet: &Sheet, random: &mut ChaCha8Rng) -> [RGBColor; ITEMS] {
    if random.random_bool(0.5) { [sheet.ink(random); ITEMS] } else { [(); ITEMS].map(|()| sheet.ink(random)) }
}

/// Draws a bar chart.
pub(super) fn draw_bars(reading: &Reading, random: &mut ChaCha8Rng) -> Result<RgbImage, Error> {
    let (mut sheet, axes) = Axes::draw(&reading.title, random)?;
    let half_width = random.random_range(15..=28);
    let inks = inks(&sheet, random);
    for (item, (value, ink)) in reading.values.into_iter().zip(inks).enumerate() {
        let (x, y) = axes.tip(item, value);
        sheet.rectangle((x - half_width, y), (x + half_width, axes.baseline), ink)?;
    }
    Ok(sheet.finish(random))
}

/// How the markers of a line chart are tied together.
#[derive(Clone, Copy)]
enum Thread {
    Line,
    Stems,
    Nothing,
}

/// Draws a line chart: a marker for each item, joined by a line, standing on stems, or alone.
pub(super) fn draw_line(reading: &Reading, random: &mut ChaCha8Rng) -> Result<RgbImage, Error> {
    let (mut sheet, axes) = Axes::draw(&reading.title, random)?;
    let thread = [Thread::Line, Thread::Stems, Thread::Nothing][random.random_range(0..3)];
    let width = random.random_range(3..=6);
    let (line, inks) = (sheet.ink(random), inks(&sheet, random));
    let mut tips = [(0, 0); ITEMS];
    for (item, (tip, value)) in tips.iter_mut().zip(reading.values).enumerate() {
        *tip = axes.tip(item, value);
    }
    match thread {
        Thread::Line => sheet.path(&tips, width, line)?,
        Thread::Stems => {
            let half_width = (width / 2) as i32;
            for (x, y) in tips {
                sheet.rectangle((x - half_width, y), (x + half_width, axes.baseline), line)?;
            }
        }
        Thread::Nothing => {}
    }
    let (shape, radius) = (random.random_range(0..4), random.random_range(7..=9));
    for ((x, y), ink) in tips.into_iter().zip(inks) {
        match shape {
            0 => sheet.disc((x, y), radius as u32, ink)?,
            1 => sheet.rectangle((x - radius, y - radius), (x + radius, y + radius), ink)?,
            2 => sheet.polygon(&[(x - radius, y), (x, y - radius), (x + radius, y), (x, y + radius)], ink)?,
            _ => sheet.polygon(&[(x - radius, y + radius), (x, y - radius), (x + radius, y + radius)], ink)?,
        }
    }
    Ok(sheet.finish(random))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rand::SeedableRng;

    use super::super::sheet::register_font;
    use super::*;

    /// Rows in the column of an item, from the top, that differ from the same column of a chart of zeros.
    fn changed_rows(values: [u8; ITEMS], item: usize, seed: u64) -> (Vec<i32>, Axes) {
        register_font().unwrap();
        let draw = |values| {
            let reading = Reading { title: "Test".into(), items: [(); ITEMS].map(|()| String::new()), values };
            draw_bars(&reading, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap()
        };
        let (_, axes) = Axes::draw("Test", &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
        let (chart, empty) = (draw(values), draw([0; ITEMS]));
        let x = axes.column(item) as u32;
        let rows = 0..chart.height();
        (rows.filter(|&y| chart.get_pixel(x, y) != empty.get_pixel(x, y)).map(|y| y as i32).collect(), axes)
    }

    #[test]
    fn bars_reach_from_the_baseline_to_the_tick_of_their_value() {
        for seed in 0..20 {
            for (item, value) in [(0, 1), (1, 5), (2, 3), (3, 0)] {
                let (rows, axes) = changed_rows([1, 5, 3, 0], item, seed);
                let expected: Vec<i32> = (axes.height(value)..axes.baseline).collect();
                assert_eq!(rows, expected, "seed {seed}, item {item}");
            }
        }
    }

    #[test]
    fn every_item_stays_near_its_quarter_and_every_level_on_the_plot() {
        register_font().unwrap();
        for seed in 0..50 {
            let (_, axes) = Axes::draw("Test", &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
            for item in 0..ITEMS {
                let quarter = PICTURE_WIDTH as i32 / ITEMS as i32;
                assert_eq!(axes.column(item) / quarter, item as i32);
            }
            assert!(axes.height(HIGHEST_LEVEL) > 20, "below the title");
        }
    }
}
