//! A prompt under a changed view: the same question about an image of which less can be seen, or nothing.

use std::sync::Arc;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use crate::initialize::stream;
use crate::{Error, ProcessedImage, Processor, Prompt};

/// Keeps these streams apart from the others of the same seed.
const DOMAIN: u64 = 0x7669_6577_0000_0000;

/// What becomes of the images of a prompt, at the size at which the model reads them. In a file:
/// `{ name = "blacken", share = 0.5 }`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageChange {
    /// Squares are blacked out at random (VPPO, arXiv 2510.09285).
    Blacken {
        /// Side of a square in pixels; squares are counted from the upper left, and cut at the right and below. 14 by
        /// default: with the patch size of the model a square is a patch.
        #[serde(default = "patch")]
        patch: u32,
        /// Probability of each to be black, from 0 to 1; 0.5 by default.
        #[serde(default = "share")]
        share: f32,
    },
    /// The images are taken out of the prompt, with the marks around them (ToR, arXiv 2603.25077).
    Remove {},
    /// Gaussian noise on every channel of every pixel.
    Noise {
        /// Its standard deviation in 8-bit levels; 64 by default.
        #[serde(default = "deviation")]
        deviation: f32,
    },
    /// Gaussian blur.
    Blur {
        /// Its standard deviation in pixels, at most 1000; 8 by default.
        #[serde(default = "sigma")]
        sigma: f32,
    },
    /// Made small and large again, bicubically (STIC, arXiv 2405.19716).
    LowResolution {
        /// Pixels of the shorter side in between; 20 by default. An image that is no larger stays as it is.
        #[serde(default = "side")]
        side: u32,
    },
}

fn patch() -> u32 {
    14
}

fn share() -> f32 {
    0.5
}

fn deviation() -> f32 {
    64.0
}

fn sigma() -> f32 {
    8.0
}

fn side() -> u32 {
    20
}

impl ImageChange {
    /// What cannot be done to an image: the field, and what is wrong with it.
    ///
    /// # Errors
    /// For sizes of zero, a share that is no probability, a deviation that is negative or not finite, and a `sigma`
    /// that is not above 0 or larger than 1000.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        match *self {
            Self::Blacken { patch: 0, .. } => Err(("patch", "must be at least 1".into())),
            Self::Blacken { share, .. } if !(0.0..=1.0).contains(&share) => {
                Err(("share", format!("is {share}; it must be from 0 to 1")))
            }
            Self::Noise { deviation } if !(deviation.is_finite() && deviation >= 0.0) => {
                Err(("deviation", format!("is {deviation}; it must be finite and not negative")))
            }
            Self::Blur { sigma } if !(sigma.is_normal() && sigma > 0.0 && sigma <= 1000.0) => {
                Err(("sigma", format!("is {sigma}; it must be above 0 and at most 1000")))
            }
            Self::LowResolution { side: 0 } => Err(("side", "must be at least 1".into())),
            _ => Ok(()),
        }
    }

    /// A picture of the same size.
    fn of(&self, image: &RgbImage, random: &mut ChaCha8Rng) -> RgbImage {
        let (width, height) = image.dimensions();
        match *self {
            Self::Blacken { patch, share } => {
                let columns = width.div_ceil(patch) as usize;
                let squares = columns * height.div_ceil(patch) as usize;
                let black: Vec<bool> = (0..squares).map(|_| random.random::<f32>() < share).collect();
                let square = |x, y| (y / patch) as usize * columns + (x / patch) as usize;
                RgbImage::from_fn(
                    width,
                    height,
                    |x, y| {
                        if black[square(x, y)] { Rgb([0; 3]) } else { *image.get_pixel(x, y) }
                    },
                )
            }
            Self::Remove {} => image.clone(),
            Self::Noise { deviation } => {
                let mut changed = image.clone();
                for level in changed.iter_mut() {
                    let normal: f32 = StandardNormal.sample(random);
                    // The conversion ends at black and at white.
                    *level = (f32::from(*level) + deviation * normal).round() as u8;
                }
                changed
            }
            Self::Blur { sigma } => imageops::blur(image, sigma),
            Self::LowResolution { side } => {
                let shorter = width.min(height);
                if side >= shorter {
                    return image.clone();
                }
                let [small_width, small_height] = [width, height].map(|length| {
                    let exact = f64::from(length) * f64::from(side) / f64::from(shorter);
                    exact.round() as u32
                });
                let small = imageops::resize(image, small_width, small_height, FilterType::CatmullRom);
                imageops::resize(&small, width, height, FilterType::CatmullRom)
            }
        }
    }
}

impl Processor {
    /// The prompt with its images changed, or without them. What it does not take out, it leaves in its place: images
    /// keep their size and so their visual tokens. A prompt without images stays as it is.
    ///
    /// What is random is a function of `seed` and `index` alone: other indices give other pictures.
    ///
    /// # Errors
    /// [`Error::ImageChange`] for what [`ImageChange::check`] refuses, [`Error::NoVision`] for a model of text alone,
    /// and [`Error::ImageSize`] for an image whose picture is not as large as its patches.
    pub fn changed(&self, prompt: &Prompt, change: &ImageChange, seed: u64, index: u64) -> Result<Prompt, Error> {
        change.check().map_err(|(field, problem)| Error::ImageChange { field, problem })?;
        if prompt.images().is_empty() {
            return Ok(prompt.clone());
        }
        if *change == (ImageChange::Remove {}) {
            return self.without_images(prompt);
        }
        let processor = self.image_processor()?;
        let mut random = stream(seed ^ DOMAIN, index);
        let changed = |image: &ProcessedImage| {
            let (width, height) = image.rgb.dimensions();
            let patch = processor.patch_size();
            let read = (image.grid.w * patch, image.grid.h * patch);
            if (width as usize, height as usize) != read {
                let problem = format!("its patches are those of {}x{}", read.0, read.1);
                return Err(Error::ImageSize { width, height, problem });
            }
            let rgb = change.of(&image.rgb, &mut random);
            let pixel_values = processor.patches(&rgb, image.grid).into();
            Ok(ProcessedImage { pixel_values, grid: image.grid, rgb: Arc::new(rgb) })
        };
        let images = prompt.images().iter().map(changed).collect::<Result<_, _>>()?;
        Ok(Prompt::new(prompt.input_ids().to_vec(), images, prompt.image_spans().to_vec()))
    }

    /// The prompt without its images and the marks right before and behind each.
    fn without_images(&self, prompt: &Prompt) -> Result<Prompt, Error> {
        let [opens, closes] = self.image_marks()?;
        let ids = prompt.input_ids();
        let mut kept = Vec::with_capacity(ids.len());
        let mut end = 0;
        for span in prompt.image_spans() {
            kept.extend_from_slice(&ids[end..span.start]);
            // What was kept before another image is not right before this one.
            if span.start > end && opens.is_some_and(|mark| kept.last() == Some(&mark)) {
                kept.pop();
            }
            end = span.end;
            if closes.is_some_and(|mark| ids.get(end) == Some(&mark)) {
                end += 1;
            }
        }
        kept.extend_from_slice(&ids[end..]);
        Ok(Prompt::new(kept, Vec::new(), Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::processor::tests::processor;
    use crate::{Message, Part};

    /// 28 x 20 pixels, none of them black.
    fn picture() -> RgbImage {
        RgbImage::from_fn(28, 20, |x, y| Rgb([x as u8 + 1, y as u8 + 100, ((x * y) % 200) as u8 + 20]))
    }

    fn prompt(picture: &RgbImage) -> Prompt {
        let processor = processor();
        let image = processor.image(picture).unwrap();
        assert_eq!(*image.rgb, *picture, "no test means to resize");
        processor.prompt(&[Message::user(vec![Part::text("a"), Part::Image])], &[image]).unwrap()
    }

    fn change(prompt: &Prompt, change: &ImageChange, index: u64) -> Prompt {
        let changed = processor().changed(prompt, change, 7, index).unwrap();
        assert_eq!(changed.input_ids(), prompt.input_ids());
        assert_eq!(changed.image_spans(), prompt.image_spans());
        for (changed, image) in changed.images().iter().zip(prompt.images()) {
            assert_eq!(changed.grid, image.grid);
            // As if the changed picture had come from a file.
            assert_eq!(changed.pixel_values, processor().image(&changed.rgb).unwrap().pixel_values);
        }
        changed
    }

    fn seen(picture: &RgbImage, how: ImageChange, index: u64) -> RgbImage {
        change(&prompt(picture), &how, index).images()[0].rgb.as_ref().clone()
    }

    #[test]
    fn squares_are_black_whole_and_as_often_as_asked() {
        let picture = picture();
        let blacken = |share| ImageChange::Blacken { patch: 3, share };
        assert!(seen(&picture, blacken(1.0), 0).iter().all(|&level| level == 0));
        let (before, after) = (prompt(&picture), change(&prompt(&picture), &blacken(0.0), 0));
        assert_eq!(before.images()[0].pixel_values, after.images()[0].pixel_values);
        assert_eq!(before.images()[0].rgb, after.images()[0].rgb);
        // 10 columns, the last of 1 pixel, and 7 rows, the last of 2.
        let (mut black, mut edges) = (0, [0; 2]);
        for index in 0..60 {
            let changed = seen(&picture, blacken(0.5), index);
            for (column, row) in (0..10).flat_map(|column| (0..7).map(move |row| (column, row))) {
                let pixels = || {
                    (column * 3..picture.width().min(column * 3 + 3))
                        .flat_map(|x| (row * 3..picture.height().min(row * 3 + 3)).map(move |y| (x, y)))
                };
                let is_black = pixels().all(|(x, y)| changed.get_pixel(x, y).0 == [0; 3]);
                let is_kept = pixels().all(|(x, y)| changed.get_pixel(x, y) == picture.get_pixel(x, y));
                assert!(is_black != is_kept, "square {column}, {row}");
                black += usize::from(is_black);
                edges[0] += usize::from(is_black && column == 9);
                edges[1] += usize::from(is_black && row == 6);
            }
        }
        // Four deviations of a coin.
        for (black, of) in [(black, 4200.0), (edges[0], 420.0), (edges[1], 600.0)] {
            assert!((black as f64 / of - 0.5).abs() < 2.0 / f64::sqrt(of), "{black} of {of}");
        }
    }

    #[test]
    fn seed_and_index_make_the_picture() {
        let (processor, picture) = (processor(), picture());
        let image = processor.image(&picture).unwrap();
        let parts = vec![Part::Image, Part::Image];
        let two = processor.prompt(&[Message::user(parts)], &[image.clone(), image]).unwrap();
        for how in [ImageChange::Blacken { patch: 2, share: 0.5 }, ImageChange::Noise { deviation: 9.0 }] {
            let pictures = |seed, index| {
                let changed = processor.changed(&two, &how, seed, index).unwrap();
                [0, 1].map(|image| changed.images()[image].rgb.as_ref().clone())
            };
            let [first, second] = pictures(1, 2);
            assert_eq!([first.clone(), second.clone()], pictures(1, 2));
            for other in [second, pictures(1, 3)[0].clone(), pictures(2, 2)[0].clone(), picture.clone()] {
                assert!(first != other, "{how:?}");
            }
        }
    }

    #[test]
    fn noise_has_its_deviation() {
        let grey = RgbImage::from_pixel(32, 32, Rgb([128; 3]));
        let differences: Vec<f64> = seen(&grey, ImageChange::Noise { deviation: 16.0 }, 0)
            .iter()
            .map(|&level| f64::from(level) - 128.0)
            .collect();
        let count = differences.len() as f64;
        let mean = differences.iter().sum::<f64>() / count;
        let deviation = (differences.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / count).sqrt();
        // Four deviations of each.
        assert!(mean.abs() < 64.0 / count.sqrt() && (deviation - 16.0).abs() < 64.0 / (2.0 * count).sqrt());
        assert_eq!(seen(&grey, ImageChange::Noise { deviation: 0.0 }, 0), grey);
        // What would be darker than black or brighter than white is not.
        let black = seen(&RgbImage::new(32, 32), ImageChange::Noise { deviation: 64.0 }, 0);
        let none = black.iter().map(|&level| if level == 0 { 1.0 } else { 0.0 }).sum::<f64>() / count;
        assert!((none - 0.5).abs() < 0.04, "{none}");
    }

    /// A board of single pixels, dark on the left and bright on the right.
    fn board() -> RgbImage {
        RgbImage::from_fn(28, 20, |x, y| Rgb([if x < 14 { 40 } else { 160 } + 40 * ((x + y) % 2) as u8; 3]))
    }

    /// Greatest difference of neighbours far from the border of dark and bright, and the means there.
    fn roughness_and_means(image: &RgbImage) -> (u8, [f64; 2]) {
        let level = |x, y| image.get_pixel(x, y).0[1];
        let rough = |x: u32, y: u32| level(x, y).abs_diff(level(x + 1, y));
        let sides = [2..6, 22..26].map(|columns| columns.flat_map(|x| (4..16).map(move |y| (x, y))));
        let means = sides.clone().map(|side| side.map(|(x, y)| f64::from(level(x, y))).sum::<f64>() / 48.0);
        (sides.into_iter().flatten().map(|(x, y)| rough(x, y)).max().unwrap(), means)
    }

    #[test]
    fn blurred_and_reduced_pictures_lose_what_is_fine_and_keep_what_is_coarse() {
        assert_eq!(roughness_and_means(&board()), (40, [60.0, 180.0]));
        for how in [ImageChange::Blur { sigma: 2.0 }, ImageChange::LowResolution { side: 5 }] {
            let changed = seen(&board(), how, 0);
            let (rough, [dark, bright]) = roughness_and_means(&changed);
            assert!(rough < 10 && (dark - 60.0).abs() < 5.0 && (bright - 180.0).abs() < 5.0, "{how:?}: {rough} {dark}");
            assert_eq!(changed, seen(&board(), how, 1), "nothing of it is random");
        }
        for side in [20, 28, u32::MAX] {
            assert_eq!(seen(&board(), ImageChange::LowResolution { side }, 0), board());
        }
        assert_ne!(seen(&board(), ImageChange::LowResolution { side: 19 }, 0), board());
    }

    #[test]
    fn images_go_with_the_marks_right_around_them() {
        let image = processor().image(&RgbImage::new(4, 4)).unwrap();
        let remove = |ids: &[u32], spans: &[(usize, usize)]| {
            let spans: Vec<_> = spans.iter().map(|&(start, end)| start..end).collect();
            let prompt = Prompt::new(ids.to_vec(), vec![image.clone(); spans.len()], spans);
            let without = processor().changed(&prompt, &ImageChange::Remove {}, 0, 0).unwrap();
            assert!(without.images().is_empty() && without.image_spans().is_empty());
            without.input_ids().to_vec()
        };
        let (opens, closes, pad) = (258, 259, 260);
        let two = [1, opens, pad, pad, closes, 2, 3, opens, pad, closes, 4];
        assert_eq!(remove(&two, &[(2, 4), (8, 9)]), [1, 2, 3, 4]);
        // Side by side, at both ends, and without marks.
        let dense = [opens, pad, closes, opens, pad, closes];
        assert!(remove(&dense, &[(1, 2), (4, 5)]).is_empty());
        assert_eq!(remove(&[1, pad, pad, 2], &[(1, 2), (2, 3)]), [1, 2]);
        // Marks that are not right beside an image, and those of nothing, stay.
        let apart = [opens, 1, pad, 2, closes, opens, closes];
        assert_eq!(remove(&apart, &[(2, 3)]), [opens, 1, 2, closes, opens, closes]);
    }

    #[test]
    fn a_prompt_without_images_stays_and_what_cannot_be_changed_is_refused() {
        let processor = processor();
        let text = processor.prompt(&[Message::user("a")], &[]).unwrap();
        for how in [ImageChange::Remove {}, ImageChange::Blur { sigma: 8.0 }] {
            assert_eq!(processor.changed(&text, &how, 0, 0).unwrap().input_ids(), text.input_ids());
        }
        let how = ImageChange::Blacken { patch: 0, share: 0.5 };
        let error = processor.changed(&text, &how, 0, 0).unwrap_err();
        assert!(matches!(error, Error::ImageChange { field: "patch", .. }), "{error}");
        // A picture that the patches were not cut from.
        let mut image = processor.image(&picture()).unwrap();
        image.rgb = Arc::default();
        let prompt = Prompt::new(vec![260; 35], vec![image], std::iter::once(0..35).collect());
        let error = processor.changed(&prompt, &ImageChange::Noise { deviation: 1.0 }, 0, 0).unwrap_err();
        assert!(error.to_string().contains("28x20"), "{error}");
    }

    #[test]
    fn changes_are_read_with_their_defaults_and_checked() {
        let read = |text: &str| serde_json::from_str::<ImageChange>(text);
        for (name, expected) in [
            ("blacken", ImageChange::Blacken { patch: 14, share: 0.5 }),
            ("remove", ImageChange::Remove {}),
            ("noise", ImageChange::Noise { deviation: 64.0 }),
            ("blur", ImageChange::Blur { sigma: 8.0 }),
            ("low_resolution", ImageChange::LowResolution { side: 20 }),
        ] {
            assert_eq!(read(&format!(r#"{{"name": "{name}"}}"#)).unwrap(), expected);
            assert!(read(&format!(r#"{{"name": "{name}", "colour": 1}}"#)).is_err());
            expected.check().unwrap();
        }
        for (change, expected) in [
            (ImageChange::Blacken { patch: 0, share: 0.5 }, "patch"),
            (ImageChange::Blacken { patch: 1, share: 1.1 }, "share"),
            (ImageChange::Blacken { patch: 1, share: f32::NAN }, "share"),
            (ImageChange::Noise { deviation: -1.0 }, "deviation"),
            (ImageChange::Noise { deviation: f32::INFINITY }, "deviation"),
            (ImageChange::Blur { sigma: 0.0 }, "sigma"),
            (ImageChange::Blur { sigma: 1e9 }, "sigma"),
            (ImageChange::LowResolution { side: 0 }, "side"),
        ] {
            assert_eq!(change.check().unwrap_err().0, expected);
        }
    }
}
