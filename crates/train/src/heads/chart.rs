//! The scores of a search for vision-critical heads as a picture.

use std::error::Error as StdError;
use std::path::Path;

use firesight_kawhi::VisionCriticalHeads;
use image::RgbImage;
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::drawing::IntoDrawingArea;
use plotters::element::{PathElement, Rectangle};
use plotters::prelude::BitMapBackend;
use plotters::series::DashedLineSeries;
use plotters::style::{BLACK, Color as _, RGBColor, WHITE};

use crate::Error;
use crate::rollouts::png;
use crate::task::{self, FONT_FAMILY, register_font};

/// Pixels.
const HEIGHT: u32 = 540;
const BESIDE: u32 = 100;
const LEAST_WIDTH: u32 = 720;
const BAR: u32 = 28;

const CRITICAL: RGBColor = RGBColor(220, 90, 0);
const OTHER: RGBColor = RGBColor(160, 178, 196);
const BASELINE: RGBColor = RGBColor(0, 90, 180);
const THRESHOLD: RGBColor = RGBColor(160, 40, 140);

/// A bar for every head, those of critical ones in another colour, with twice the standard error of the fall to both
/// sides; lines for the whole model and for the threshold. A PNG.
pub(super) fn chart(found: &VisionCriticalHeads) -> Result<Vec<u8>, Error> {
    register_font()?;
    let width = LEAST_WIDTH.max(BESIDE + BAR * found.scores.len() as u32);
    let mut image = RgbImage::new(width, HEIGHT);
    draw(found, &mut image, (width, HEIGHT)).map_err(|error| task::Error::Draw { problem: error.to_string() })?;
    Ok(png(&image))
}

fn draw(found: &VisionCriticalHeads, pixels: &mut [u8], size: (u32, u32)) -> Result<(), Box<dyn StdError>> {
    let percent = |share: f64| 100.0 * share;
    let top = |(score, error): (&f64, &f64)| score + 2.0 * error;
    let highest = found.scores.iter().zip(&found.standard_errors).map(top).fold(found.baseline, f64::max);
    let right = found.scores.len() as f64 - 0.5;
    let model = Path::new(&found.model).file_name().map_or(found.model.clone().into(), |name| name.to_string_lossy());

    let root = BitMapBackend::with_buffer(pixels, size).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("Accuracy of {model} without its heads of one index"), (FONT_FAMILY, 20))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(56)
        // Room for the legend above the bars.
        .build_cartesian_2d(-0.5..right, 0.0..(percent(highest) * 1.4).max(1.0))?;
    let questions = found.questions.map_or(String::new(), |questions| format!("{questions} "));
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(found.scores.len())
        .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() })
        .y_label_formatter(&|y| format!("{}", (y * 100.0).round() / 100.0))
        .x_desc("masked head, in every decoder layer at once")
        .y_desc(format!("right answers to {questions}questions in %"))
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.12))
        .label_style((FONT_FAMILY, 14))
        .draw()?;

    for (critical, colour, name) in [(true, CRITICAL, "critical"), (false, OTHER, "not critical")] {
        let heads: Vec<usize> =
            (0..found.scores.len()).filter(|head| found.critical.contains(head) == critical).collect();
        if heads.is_empty() {
            continue;
        }
        let bar = |head: &usize| {
            let (x, head) = (*head as f64, *head);
            Rectangle::new([(x - 0.36, 0.0), (x + 0.36, percent(found.scores[head]))], colour.filled())
        };
        chart
            .draw_series(heads.iter().map(bar))?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 18, y + 5)], colour.filled()));
    }
    let whiskers = found.scores.iter().zip(&found.standard_errors).enumerate().flat_map(|(head, (score, error))| {
        let (x, low, high) = (head as f64, percent(score - 2.0 * error), percent(score + 2.0 * error));
        [[(x, low), (x, high)], [(x - 0.08, low), (x + 0.08, low)], [(x - 0.08, high), (x + 0.08, high)]]
    });
    chart
        .draw_series(whiskers.map(|line| PathElement::new(line, BLACK)))?
        .label("2 standard errors of the fall, paired")
        .legend(|(x, y)| PathElement::new([(x + 9, y - 6), (x + 9, y + 6)], BLACK));
    let across = |share: f64| [(-0.5, percent(share)), (right, percent(share))];
    chart
        .draw_series([PathElement::new(across(found.baseline), BASELINE.stroke_width(2))])?
        .label(format!("whole model, {:.1} %", percent(found.baseline)))
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], BASELINE.stroke_width(2)));
    chart
        .draw_series(DashedLineSeries::new(across(found.limit()), 8, 5, THRESHOLD.stroke_width(2)))?
        .label(format!("threshold, {:.1} % less", percent(found.threshold)))
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], THRESHOLD.stroke_width(2)));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font((FONT_FAMILY, 14))
        .background_style(WHITE.mix(0.85))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn bars_are_as_high_as_scores_and_critical_ones_have_a_colour_of_their_own() {
        let mut scores: Vec<f64> = (0..28).map(|head| 0.6 + 0.002 * f64::from(head)).collect();
        (scores[3], scores[12]) = (0.2, 0.4);
        let found = VisionCriticalHeads {
            model: "models/some".into(),
            data: "charts".into(),
            source: None,
            questions: Some(600),
            baseline: 0.625,
            threshold: 0.1,
            critical: VisionCriticalHeads::by_threshold(0.625, 0.1, &scores),
            standard_errors: vec![0.004; 28],
            scores,
        };
        assert_eq!(found.critical, [3, 12]);
        let image = image::load_from_memory(&chart(&found).unwrap()).unwrap().into_rgb8();
        let area = |RGBColor(r, g, b)| image.pixels().filter(|pixel| pixel.0 == [r, g, b]).count();
        // Away from the legend, the heights of what stands side by side in the colour of critical heads.
        let height =
            |x: u32| (0..HEIGHT).filter(|&y| image.get_pixel(x, y).0 == [CRITICAL.0, CRITICAL.1, CRITICAL.2]).count();
        let heights: Vec<usize> = (0..500).map(height).collect();
        let bars: Vec<usize> =
            heights.split(|&height| height == 0).filter_map(|bar| bar.iter().max().copied()).collect();
        let &[low, high] = &bars[..] else { panic!("{bars:?}") };
        assert!((low as f64 / high as f64 - 0.5).abs() < 0.02, "{bars:?}");
        // Each of the lines is as long as the plot.
        assert!(area(BASELINE) > 1500 && area(THRESHOLD) > 800 && area(OTHER) > 26 * 20 * 200);
    }
}
