//! KAWHI inside real training steps: every weight that a step used is worked out again here from the model's queries
//! and keys, the picture's pixels and the text, by the equations and without any code of the crate; and every base
//! algorithm takes it.
#![allow(clippy::unwrap_used)]

#[path = "support/parity.rs"]
mod parity;

use std::path::Path;
use std::sync::Arc;

use burn::module::Module as _;
use burn::optim::AdamWConfig;
use burn::tensor::Device;
use firesight_kawhi::{
    Granularity, Heads, ImageView, KawhiConfig, Metric, RegionSelection, SgufConfig, VisualPrompt as _,
};
use firesight_rl::{
    Algorithm, Completion, CreditAssigner, MicroBatch, Options, Rope, Sampling, StepReport, Trainer, Uniform,
};
use firesight_train::task::Charts;
use firesight_train::{Purpose, Questions, VlmPolicy, VlmPrompt};
use firesight_vlm::{
    AttentionPoint, AttentionProbe, LastAttention, ModelConfig, Probe, Processor, Prompt, QwenVl, ResponseStates,
    Scored,
};
use parity::Parity;

const TEMPERATURE: f32 = 1.3;

fn policy() -> VlmPolicy {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen-small");
    let model = QwenVl::new(&ModelConfig::from_dir(&directory).unwrap(), 0, &Device::flex().autodiff());
    VlmPolicy::new(model, Arc::new(Processor::from_dir(&directory).unwrap())).unwrap()
}

/// Leaves nothing to chance: SGUF keeps no cell of a weak component.
fn config() -> KawhiConfig {
    KawhiConfig { sguf: SgufConfig { r_skip: 1.0, ..SgufConfig::default() }, ..KawhiConfig::default() }
}

/// The switches whose weights are worked out here.
fn switches() -> Vec<KawhiConfig> {
    let with = |change: fn(&mut KawhiConfig)| {
        let mut config = config();
        change(&mut config);
        config
    };
    vec![
        with(|_| ()),
        with(|config| config.regions = RegionSelection::All),
        with(|config| config.regions = RegionSelection::Inverse),
        with(|config| config.regions = RegionSelection::VisionZip),
        with(|config| config.metric = Metric::KeyKey),
        with(|config| config.rope = Rope::Before),
        with(|config| config.heads = Heads::List(vec![3, 0])),
        with(|config| config.granularity = Granularity::Token),
        with(|config| {
            (config.metric, config.rope, config.heads) = (Metric::KeyKey, Rope::Before, Heads::List(vec![2]));
        }),
    ]
}

fn step(
    algorithm: Algorithm,
    mini_batches: usize,
    credit: Box<dyn CreditAssigner<VlmPrompt> + Send>,
) -> (VlmPolicy, StepReport<VlmPrompt>) {
    let policy = policy();
    let questions = Questions::new(Charts::new().unwrap(), policy.processor().clone(), 0);
    let prompts = questions.batch(Purpose::Reinforcement, 0, 6).unwrap().into_iter().map(|question| question.prompt);
    let sampling = Sampling { temperature: TEMPERATURE, max_tokens: 32, seed: 2, first_stream: 0 };
    let options = Options {
        prompts_per_sampling_batch: 4,
        micro_batch: MicroBatch::Groups(2),
        mini_batches,
        threads: 2,
        ..Options::new(16, sampling)
    };
    let mut trainer = Trainer::new(policy.clone(), AdamWConfig::new().init(), algorithm, credit, options).unwrap();
    let report = trainer.step(&Parity, &prompts.collect::<Vec<_>>(), 1e-3).unwrap();
    (policy, report)
}

fn kawhi(config: KawhiConfig) -> Box<dyn CreditAssigner<VlmPrompt> + Send> {
    Box::new(policy().kawhi(config).unwrap())
}

#[test]
fn the_weights_of_a_step_are_those_of_the_equations() {
    for (index, config) in switches().into_iter().enumerate() {
        // One mini-batch or two, the completions bring along what credit is made of.
        let mini_batches = 1 + index % 2;
        let (policy, report) = step(Algorithm { kl: None, ..Algorithm::grpo() }, mini_batches, kawhi(config.clone()));
        let (mut split, mut compared) = (0, 0);
        for (group, credit) in report.groups.iter().zip(&report.credit) {
            let states = dump(&policy, &group.prompt, &group.completions, &config);
            let key = key_cells(&group.prompt.images()[0], &config.sguf);
            let cells = states.image_attention.len();
            let selected: Vec<usize> = match config.regions {
                RegionSelection::Sguf => key,
                RegionSelection::Inverse => (0..cells).filter(|cell| !key.contains(cell)).collect(),
                RegionSelection::VisionZip => {
                    let mut order: Vec<usize> = (0..cells).collect();
                    order.sort_by(|&a, &b| states.image_attention[b].total_cmp(&states.image_attention[a]));
                    order[..cells.div_ceil(2)].to_vec()
                }
                _ => (0..cells).collect(),
            };
            let selected = if selected.is_empty() { (0..cells).collect() } else { selected };
            let heads = match &config.heads {
                Heads::List(heads) => heads.clone(),
                _ => (0..states.response[0][0].len()).collect(),
            };
            for (row, (completion, credit)) in group.completions.iter().zip(credit).enumerate() {
                let texts: Vec<String> = completion
                    .tokens
                    .iter()
                    .map(|&token| policy.processor().tokenizer().decode(&[token]).unwrap())
                    .collect();
                let segment = match config.granularity {
                    Granularity::Token => (0..texts.len()).collect(),
                    _ => paragraph_of_tokens(&texts),
                };
                let alignment: Vec<f64> =
                    (0..texts.len()).map(|token| alignment(&states, row, token, &heads, &selected)).collect();
                let expected = weights(&alignment, &segment);
                assert_eq!(credit.weights.len(), expected.len());
                for (found, expected) in credit.weights.iter().zip(&expected) {
                    let close = (f64::from(*found) - expected).abs() < 1e-5 * expected;
                    assert!(close, "{found} is not {expected} with {config:?}");
                }
                split += usize::from(segment.last() > segment.first());
                compared += 1;
            }
        }
        assert!(compared >= 60 && split >= 3, "{split} of {compared} completions have several paragraphs");
    }
}

#[test]
fn every_base_algorithm_takes_it() {
    let mut weights = Vec::new();
    for algorithm in
        [Algorithm::grpo(), Algorithm::dapo(), Algorithm::gspo(), Algorithm::sapo(), Algorithm::dr_grpo(32)]
    {
        let algorithm = Algorithm { kl: None, ..algorithm };
        let (_, with) = step(algorithm.clone(), 1, kawhi(config()));
        let (_, without) = step(algorithm, 1, Box::new(Uniform));
        let completions = |report: &StepReport<VlmPrompt>| {
            report.groups.iter().flat_map(|group| &group.completions).map(|one| one.tokens.clone()).collect::<Vec<_>>()
        };
        assert_eq!(completions(&with), completions(&without), "credit has no say in what is drawn");
        assert_eq!(with.advantages, without.advantages);
        let norm = |report: &StepReport<VlmPrompt>| report.metric("grad/norm").unwrap();
        assert!(norm(&with) > 0.0 && (norm(&with) - norm(&without)).abs() > 1e-6 * norm(&without));
        assert!(with.metric("credit/paragraphs_mean").unwrap() > 1.0);
        assert!(without.metric("credit/paragraphs_mean").is_none());
        weights.push(with.credit);
    }
    assert!(weights.iter().all(|credit| *credit == weights[0]), "the algorithm has no say in credit");
}

/// Queries or keys of the response `[completion][token][head]` and keys of visual tokens `[key head][visual token]` of
/// the last layer, and the attention that visual tokens receive.
struct States {
    response: Vec<Vec<Vec<Vec<f64>>>>,
    keys: Vec<Vec<Vec<f64>>>,
    image_attention: Vec<f64>,
}

fn dump(policy: &VlmPolicy, prompt: &VlmPrompt, completions: &[Completion], config: &KawhiConfig) -> States {
    let images = prompt.images();
    // The image once more through the processor: what it makes of its own output is that output.
    let pixels = image::RgbImage::from_raw(images[0].width as u32, images[0].height as u32, images[0].pixels.to_vec());
    let image = policy.processor().image(&pixels.unwrap()).unwrap();
    assert_eq!(image.rgb.as_raw(), images[0].pixels);
    let placeholder = policy.model.config().image_token_id.unwrap();
    let visual: Vec<usize> = (0..prompt.tokens().len()).filter(|&at| prompt.tokens()[at] == placeholder).collect();
    let span = visual[0]..visual[visual.len() - 1] + 1;
    let prompt = Prompt::new(prompt.tokens().to_vec(), vec![image], vec![span]);
    let batch =
        [Scored { prompt: &prompt, completions: completions.iter().map(|one| one.tokens.as_slice()).collect() }];
    let point = if config.rope == Rope::After { AttentionPoint::AfterRope } else { AttentionPoint::BeforeRope };
    let keys = config.metric == Metric::KeyKey;
    let response = if keys { ResponseStates::Keys } else { ResponseStates::Queries };
    // Everything: what is chosen is chosen here.
    let attention = AttentionProbe { point, response, heads: None, visual_tokens: None };
    let probe = Probe { attention: Some(attention), image_attention: true, ..Probe::default() };
    let model = policy.model.valid();
    let probed = model.score(&batch, TEMPERATURE, &model.token_mask([]).unwrap(), Some(&probe)).unwrap().probed;
    let LastAttention { response, visual_keys, .. } = probed.attention.unwrap();
    let [_, heads, dim] = response.dims();
    let values: Vec<f64> = response.into_data().iter::<f32>().map(f64::from).collect();
    let nested = |values: &[f64]| values.chunks(dim).map(<[f64]>::to_vec).collect::<Vec<_>>();
    let mut tokens = values.chunks(heads * dim).map(nested);
    let response = completions.iter().map(|one| tokens.by_ref().take(one.tokens.len()).collect()).collect();
    let [_, visual, _] = visual_keys[0].dims();
    let values: Vec<f64> = visual_keys[0].clone().into_data().iter::<f32>().map(f64::from).collect();
    let image_attention = probed.image_attention.unwrap().remove(0).into_data().iter::<f32>().map(f64::from).collect();
    States { response, keys: values.chunks(visual * dim).map(nested).collect(), image_attention }
}

/// Equations 12 and 13, pair by pair.
fn alignment(states: &States, completion: usize, token: usize, heads: &[usize], selected: &[usize]) -> f64 {
    let all = &states.response[completion][token];
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosine = |a: &[f64], b: &[f64]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    let mut sum = 0.0;
    for &head in heads {
        let keys = &states.keys[head * states.keys.len() / all.len()];
        sum += selected.iter().map(|&visual| cosine(&all[head], &keys[visual])).sum::<f64>();
    }
    sum / (heads.len() * selected.len()) as f64
}

/// Number of the paragraph of every token: those that begin behind a blank line with text before and after it are one
/// further.
fn paragraph_of_tokens(texts: &[String]) -> Vec<usize> {
    let whole = texts.concat();
    let mut ends = Vec::new();
    let mut from = 0;
    while let Some(found) = whole[from..].find("\n\n") {
        let end = from + found + 2;
        let before = ends.last().copied().unwrap_or(0);
        if !whole[before..end].trim().is_empty() && !whole[end..].trim().is_empty() {
            ends.push(end);
        }
        from = end;
    }
    let mut start = 0;
    let mut number = |text: &String| {
        start += text.len();
        ends.iter().filter(|&&end| end <= start - text.len()).count()
    };
    let paragraphs: Vec<usize> = texts.iter().map(&mut number).collect();
    // Special tokens have no text: they belong with what is before them.
    (0..texts.len())
        .map(|token| {
            let spoken = (0..=token).rev().find(|&token| !texts[token].is_empty());
            spoken.map_or(paragraphs[token], |spoken| paragraphs[spoken])
        })
        .collect()
}

/// Equations 14 and 15 with tau 0.1, lambda 0.1 and weights from 0.1 to 1.
fn weights(alignment: &[f64], paragraph: &[usize]) -> Vec<f64> {
    let count = paragraph.last().map_or(0, |last| last + 1);
    let means: Vec<f64> = (0..count)
        .map(|wanted| {
            let of: Vec<f64> =
                alignment.iter().zip(paragraph).filter(|&(_, &at)| at == wanted).map(|(&value, _)| value).collect();
            of.iter().sum::<f64>() / of.len() as f64
        })
        .collect();
    let sum: f64 = means.iter().map(|mean| (mean / 0.1).exp()).sum();
    let share = |mean: &f64| 0.9 * (mean / 0.1).exp() / sum + 0.1 / count as f64;
    let weights: Vec<f64> = means.iter().map(|mean| 0.1 + 0.9 * share(mean)).collect();
    paragraph.iter().map(|&paragraph| weights[paragraph]).collect()
}

/// SGUF (section 3.2) as slowly as it is written.
fn key_cells(image: &ImageView<'_>, config: &SgufConfig) -> Vec<usize> {
    let (width, height, cell) = (image.width as isize, image.height as isize, image.cell);
    let mirrored = |at: isize, length: isize| {
        if at < 0 {
            -at
        } else if at >= length {
            2 * length - 2 - at
        } else {
            at
        }
    };
    let at = |x: isize, y: isize| (mirrored(y, height) * width + mirrored(x, width)) as usize;
    let lightness: Vec<f64> = image
        .pixels
        .chunks(3)
        .map(|rgb| {
            let linear = |byte: u8| {
                let value = f64::from(byte) / 255.0;
                if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
            };
            let y = 0.212_672_9 * linear(rgb[0]) + 0.715_152_2 * linear(rgb[1]) + 0.072_175_0 * linear(rgb[2]);
            116.0
                * if y > (6.0f64 / 29.0).powi(3) { y.cbrt() } else { y / (3.0 * (6.0f64 / 29.0).powi(2)) + 4.0 / 29.0 }
                - 16.0
        })
        .collect();
    let kernel: Vec<f64> = (-4..=4).map(|x| (-0.5 * f64::from(x * x)).exp()).collect();
    let total: f64 = kernel.iter().sum();
    let pixels = || (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let smooth: Vec<f64> = pixels()
        .map(|(x, y)| {
            let window = (-4..=4).flat_map(|dy| (-4..=4).map(move |dx| (dx, dy)));
            window
                .map(|(dx, dy)| kernel[(dx + 4) as usize] * kernel[(dy + 4) as usize] * lightness[at(x + dx, y + dy)])
                .sum::<f64>()
                / (total * total)
        })
        .collect();
    let (rows, columns) = (image.height / cell, image.width / cell);
    let mut sums = vec![[0.0; 4]; rows * columns];
    for (x, y) in pixels() {
        let s = |dx: isize, dy: isize| smooth[at(x + dx, y + dy)];
        let gx = s(1, -1) + 2.0 * s(1, 0) + s(1, 1) - s(-1, -1) - 2.0 * s(-1, 0) - s(-1, 1);
        let gy = s(-1, 1) + 2.0 * s(0, 1) + s(1, 1) - s(-1, -1) - 2.0 * s(0, -1) - s(1, -1);
        let sums = &mut sums[y as usize / cell * columns + x as usize / cell];
        for (sum, value) in sums.iter_mut().zip([gx * gx, gx * gy, gy * gy, s(0, 0)]) {
            *sum += value / (cell * cell) as f64;
        }
    }
    let eigenvalues = |[xx, xy, yy, _]: [f64; 4]| {
        let root = (((xx - yy) / 2.0).powi(2) + xy * xy).sqrt();
        let centre = f64::midpoint(xx, yy);
        (centre + root, (centre - root).max(0.0))
    };
    let alike = |a: usize, b: usize| {
        let ((max_a, min_a), (max_b, min_b)) = (eigenvalues(sums[a]), eigenvalues(sums[b]));
        (max_a - max_b).hypot(min_a - min_b) / max_a.max(max_b).max(1e-6) < config.delta_s
            && (sums[a][3] - sums[b][3]).abs() < config.delta_l
    };
    // Flooding: a cell joins a neighbour's component until nothing changes.
    let mut component: Vec<usize> = (0..rows * columns).collect();
    loop {
        let before = component.clone();
        for a in 0..component.len() {
            let right = ((a + 1) % columns != 0).then_some(a + 1);
            let below = (a + columns < component.len()).then_some(a + columns);
            for b in [right, below].into_iter().flatten().filter(|&b| alike(a, b)) {
                let smaller = component[a].min(component[b]);
                (component[a], component[b]) = (smaller, smaller);
            }
        }
        if component == before {
            break;
        }
    }
    let energy = |wanted: usize| {
        let cells: Vec<usize> = (0..component.len()).filter(|&cell| component[cell] == wanted).collect();
        cells.iter().map(|&cell| eigenvalues(sums[cell]).0 + eigenvalues(sums[cell]).1).sum::<f64>()
            / cells.len() as f64
    };
    let mut numbers = component.clone();
    numbers.sort_unstable();
    numbers.dedup();
    let mut energies: Vec<f64> = numbers.iter().map(|&number| energy(number)).collect();
    energies.sort_by(f64::total_cmp);
    let median = f64::midpoint(energies[(energies.len() - 1) / 2], energies[energies.len() / 2]);
    let key: Vec<usize> = (0..component.len()).filter(|&cell| energy(component[cell]) > config.beta * median).collect();
    if key.is_empty() { (0..component.len()).collect() } else { key }
}
