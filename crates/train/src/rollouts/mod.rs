//! Everything that a step learnt from, for programs to read.
//!
//! `rollouts/step0012.jsonl.gz` is gzip of one line of JSON for every group of step 12, counted from 1; pandas reads it
//! as it is (`pandas.read_json(path, lines=True)`). A line has
//!
//! | key | what |
//! |---|---|
//! | `step`, `index` | the step, and the place of the group in it from 0 on |
//! | `question`, `answer` | the question without the chat template, and what rewards compare with, or null |
//! | `images` | the pictures, relative to the run directory: `images/<SHA-256 of the file>.png` |
//! | `origin` | where the question comes from: the heading of a chart, or a file and a row |
//! | `prompt_tokens` | token ids of the whole prompt, image placeholders expanded |
//! | `regions` | under KAWHI, what SGUF finds in every image of the prompt, whichever regions count; else null |
//! | `completions` | a list of completions |
//!
//! an image's regions have `rows` and `columns` of visual tokens and, for each of them in raster order, its `component`
//! and whether that is `structured`, and a completion has
//!
//! | key | what |
//! |---|---|
//! | `text`, `tokens` | the answer, decoded without special tokens and as token ids with its stop token |
//! | `pieces` | what each token adds to the text; the empty text for a special token and for a part of a character |
//! | `log_probs` | log-probability of each token when it was drawn, at the sampling temperature |
//! | `truncated` | whether it met the length limit |
//! | `reward`, `parts` | the number that is optimised, and its parts by name before they are weighted; null abstains |
//! | `advantage` | null when the update failed |
//! | `credit_weights` | how the advantage is split over the tokens, also of a completion that is left out of the loss; null where nobody asked |
//! | `evidence` | what the weights were made of, under KAWHI; else null |
//!
//! and evidence
//!
//! | key | what |
//! |---|---|
//! | `segments` | ranges of tokens with one weight each, `[first, end]`: the paragraphs |
//! | `alignment` | how closely each token attends to the chosen visual tokens, -1 to 1 |
//! | `visual_tokens` | the chosen visual tokens, counted over the images of the prompt in raster order |
//!
//! A number that is not finite is a text, `"NaN"`, `"inf"` or `"-inf"`: JSON has none. `failed/step0012.jsonl.gz` is
//! the same of a step whose update failed.

mod read;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

use firesight_kawhi::{ImageView, Regions, VisualPrompt as _, sguf};
use firesight_rl::{Group, StepReport, TokenCredit};
use firesight_vlm::Tokenizer;
use flate2::Compression;
use flate2::write::GzEncoder;
use image::RgbImage;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use rayon::prelude::*;
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::Error;
use crate::credit::Credit;
use crate::policy::VlmPrompt;
use crate::questions::Question;
use crate::run_directory::RunDirectory;

pub use read::{
    RolloutCompletion, RolloutEvidence, RolloutGroup, RolloutNumber, RolloutRegions, read_rollouts, rollout_steps,
};
pub(crate) use read::{open, rollout_files};

/// Writes rollouts into a run directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RolloutFiles<'a> {
    pub(crate) directory: &'a RunDirectory,
    pub(crate) credit: &'a Credit,
    pub(crate) tokenizer: &'a Tokenizer,
}

/// What an update made of a rollout; a failed one made nothing.
#[derive(Clone, Copy, Default)]
struct Learnt<'a> {
    /// `[group][completion]`.
    advantages: &'a [Vec<f32>],
    /// `[group][completion]`; groups that were not trained on have no completions, completions no tokens.
    credit: &'a [Vec<TokenCredit>],
}

impl RolloutFiles<'_> {
    /// Writes the rollout of a step that was learnt from.
    pub(crate) fn write_learnt(
        &self,
        step: usize,
        questions: &[Question],
        report: &StepReport<VlmPrompt>,
    ) -> Result<PathBuf, Error> {
        let learnt = Learnt { advantages: &report.advantages, credit: &report.credit };
        self.write("rollouts", step, questions, &report.groups, learnt)
    }

    /// Writes the rollout of a step whose update failed.
    pub(crate) fn write_failed(
        &self,
        step: usize,
        questions: &[Question],
        groups: &[Group<VlmPrompt>],
    ) -> Result<PathBuf, Error> {
        self.write("failed", step, questions, groups, Learnt::default())
    }

    fn write(
        &self,
        folder: &str,
        step: usize,
        questions: &[Question],
        groups: &[Group<VlmPrompt>],
        learnt: Learnt<'_>,
    ) -> Result<PathBuf, Error> {
        let run = self.directory;
        let name = format!("{folder}/step{step:04}.jsonl.gz");
        let io = |source| Error::Io { path: run.path().join(&name), source };
        let mut compressed = GzEncoder::new(Vec::new(), Compression::default());
        let regions = groups.par_iter().map(|group| regions(&group.prompt, self.credit));
        let mut regions = regions.collect::<Result<Vec<_>, _>>()?.into_iter();
        for (index, (question, group)) in questions.iter().zip(groups).enumerate() {
            let line = Line {
                step,
                index,
                question: &question.example.question,
                answer: question.example.answer.as_deref(),
                images: question
                    .example
                    .images
                    .iter()
                    .map(|image| write_image(run, &image.pixels))
                    .collect::<Result<_, _>>()?,
                origin: &question.example.origin,
                prompt_tokens: group.prompt.tokens(),
                regions: regions.next().flatten(),
                completions: completions(index, group, learnt, self.tokenizer)?,
            };
            serde_json::to_writer(&mut compressed, &line).map_err(|error| io(error.into()))?;
            compressed.write_all(b"\n").map_err(io)?;
        }
        run.write(&name, &compressed.finish().map_err(io)?)
    }
}

/// Writes a picture unless an equal one is there; returns its name.
fn write_image(run: &RunDirectory, image: &RgbImage) -> Result<String, Error> {
    let png = png(image);
    let name = format!("images/{:x}.png", Sha256::digest(&png));
    if !run.path().join(&name).exists() {
        run.write(&name, &png)?;
    }
    Ok(name)
}

/// A picture as a PNG file.
pub(crate) fn png(image: &RgbImage) -> Vec<u8> {
    let mut png = Vec::new();
    // The encoder's own choice is the fastest, whose files are nearly twice as large.
    let encoder = PngEncoder::new_with_quality(&mut png, CompressionType::Default, FilterType::Adaptive);
    image.write_with_encoder(encoder).expect("a picture with pixels is encoded into memory");
    png
}

fn completions<'a>(
    index: usize,
    group: &'a Group<VlmPrompt>,
    learnt: Learnt<'a>,
    tokenizer: &Tokenizer,
) -> Result<Vec<CompletionLine<'a>>, Error> {
    let (advantages, credit) = (learnt.advantages.get(index), learnt.credit.get(index));
    let each = group.completions.iter().zip(&group.rewards).enumerate();
    each.map(|(place, (completion, reward))| {
        let learnt = credit.and_then(|credit| credit.get(place)).filter(|credit| !credit.weights.is_empty());
        // What was seen as it was drawn, where it was not learnt from.
        let seen = || completion.observed.as_ref().and_then(|observed| observed.evidence.iter().flatten().next());
        let evidence = learnt.map_or_else(seen, |credit| credit.evidence.as_ref());
        Ok(CompletionLine {
            text: &completion.text,
            tokens: &completion.tokens,
            pieces: tokenizer.pieces(&completion.tokens)?,
            log_probs: numbers(&completion.log_probs),
            truncated: completion.truncated,
            reward: reward.total().map(Number),
            parts: reward.parts.iter().map(|part| (part.name.as_str(), part.value.map(Number))).collect(),
            advantage: advantages.and_then(|advantages| advantages.get(place)).copied().map(Number),
            credit_weights: learnt.map(|credit| numbers(&credit.weights)),
            evidence: evidence.map(|evidence| EvidenceLine {
                segments: evidence.segments.iter().map(|span| [span.start, span.end]).collect(),
                alignment: numbers(&evidence.alignment),
                visual_tokens: &evidence.visual_tokens,
            }),
        })
    })
    .collect()
}

#[derive(Serialize)]
struct Line<'a> {
    step: usize,
    index: usize,
    question: &'a str,
    answer: Option<&'a str>,
    images: Vec<String>,
    origin: &'a str,
    prompt_tokens: &'a [u32],
    regions: Option<Vec<RegionsLine>>,
    completions: Vec<CompletionLine<'a>>,
}

#[derive(Serialize)]
struct CompletionLine<'a> {
    text: &'a str,
    tokens: &'a [u32],
    pieces: Vec<String>,
    log_probs: Vec<Number>,
    truncated: bool,
    reward: Option<Number>,
    parts: BTreeMap<&'a str, Option<Number>>,
    advantage: Option<Number>,
    credit_weights: Option<Vec<Number>>,
    evidence: Option<EvidenceLine<'a>>,
}

#[derive(Serialize)]
struct RegionsLine {
    rows: usize,
    columns: usize,
    component: Vec<usize>,
    structured: Vec<bool>,
}

#[derive(Serialize)]
struct EvidenceLine<'a> {
    segments: Vec<[usize; 2]>,
    alignment: Vec<Number>,
    visual_tokens: &'a [usize],
}

/// What SGUF finds in the images of a prompt, as the vision encoder sees them.
fn regions(prompt: &VlmPrompt, credit: &Credit) -> Result<Option<Vec<RegionsLine>>, Error> {
    let Some(kawhi) = credit.kawhi() else { return Ok(None) };
    let found = |image: &ImageView<'_>| {
        let Regions { structure, component, structured, .. } = sguf(image, &kawhi.sguf)?;
        let (rows, columns) = structure.grid;
        Ok(RegionsLine { rows, columns, component, structured })
    };
    prompt.images().iter().map(found).collect::<Result<_, Error>>().map(Some)
}

/// A number, or a text where JSON has no number for it: one that is not finite may be just what is looked for.
#[derive(Clone, Copy)]
struct Number(f32);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() { serializer.serialize_f32(self.0) } else { serializer.collect_str(&self.0) }
    }
}

fn numbers(values: &[f32]) -> Vec<Number> {
    values.iter().copied().map(Number).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read as _;
    use std::path::Path;

    use firesight_kawhi::KawhiConfig;
    use firesight_rl::{Completion, Evidence, Reward};
    use flate2::read::GzDecoder;
    use serde_json::{Value, json};

    use super::*;
    use crate::CreditConfig;
    use crate::config::RunConfig;
    use crate::job::Job;
    use crate::questions::Purpose;

    fn lines(path: &Path) -> Vec<Value> {
        let mut text = String::new();
        GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_rollout_is_read_back_with_all_its_numbers() {
        let config = RunConfig::example("models/qwen-small");
        let scratch = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(&scratch.path().join("run"), &config).unwrap();
        // The second and the third group show the same picture.
        let mut questions = Job::new(&config).unwrap().questions.batch(Purpose::Reinforcement, 0, 2).unwrap();
        questions.push(questions[1].clone());
        let completion = |text: &str, log_probs: &[f32]| Completion {
            tokens: (7..).take(log_probs.len()).collect(),
            log_probs: log_probs.to_vec(),
            text: text.into(),
            truncated: text.is_empty(),
            ..Completion::default()
        };
        let reward =
            |accuracy| Reward::of("accuracy", accuracy).and("format", Some(0.5), 0.0).and("brevity", None, 1.0);
        let groups: Vec<Group<VlmPrompt>> = questions
            .iter()
            .map(|question| Group {
                prompt: question.prompt.clone(),
                completions: vec![completion("a \"1\"\n", &[-0.1, f32::NEG_INFINITY]), completion("", &[-1.5])],
                rewards: vec![reward(1.0), reward(0.0)],
            })
            .collect();
        let evidence =
            Evidence { segments: vec![0..1, 1..2], alignment: vec![-0.5, 0.1], visual_tokens: [0, 2].into() };
        let credit = TokenCredit { weights: vec![0.25, 1.0], kept: None, evidence: Some(evidence) };
        let report = StepReport {
            groups: groups.clone(),
            advantages: vec![vec![0.0, 0.0], vec![0.7, -0.7], vec![0.0, 0.0]],
            credit: vec![
                vec![],
                vec![credit.clone(), vec![1.0].into()],
                vec![TokenCredit::default(), vec![1.0].into()],
            ],
            optimizer_steps: 1,
            metrics: Vec::new(),
        };

        let tokenizer = Tokenizer::from_dir(&config.model).unwrap();
        let pieces = [tokenizer.decode(&[7]).unwrap(), tokenizer.decode(&[8]).unwrap()];
        let kawhi = CreditConfig::Kawhi(KawhiConfig::default()).into();
        let files = RolloutFiles { directory: &run, credit: &kawhi, tokenizer: &tokenizer };
        let path = files.write_learnt(12, &questions, &report).unwrap();
        assert_eq!(path, run.path().join("rollouts/step0012.jsonl.gz"));
        let lines_found = lines(&path);
        assert_eq!(lines_found.len(), 3);
        let Value::Object(line) = &lines_found[1] else { panic!("{}", lines_found[1]) };
        assert_eq!(line["step"], 12);
        assert_eq!(line["index"], 1);
        assert_eq!(line["question"], questions[1].example.question);
        assert_eq!(line["answer"], json!(questions[1].example.answer));
        assert_eq!(line["prompt_tokens"], json!(questions[1].prompt.tokens()));
        // As short as they are exact: -0.1 and not -0.10000000149011612.
        assert_eq!(
            line["completions"],
            json!([
                {
                    "text": "a \"1\"\n", "tokens": [7, 8], "pieces": pieces, "log_probs": [-0.1, "-inf"], "truncated": false,
                    "reward": 1.0, "parts": { "accuracy": 1.0, "brevity": null, "format": 0.5 },
                    "advantage": 0.7, "credit_weights": [0.25, 1.0],
                    "evidence": { "segments": [[0, 1], [1, 2]], "alignment": [-0.5, 0.1], "visual_tokens": [0, 2] },
                },
                {
                    "text": "", "tokens": [7], "pieces": [pieces[0]], "log_probs": [-1.5], "truncated": true,
                    "reward": 0.0, "parts": { "accuracy": 0.0, "brevity": null, "format": 0.5 },
                    "advantage": -0.7, "credit_weights": [1.0], "evidence": null,
                },
            ])
        );
        assert!(lines_found[0]["completions"][0]["credit_weights"].is_null());
        let image = questions[1].prompt.images()[0];
        let (cells, regions) = (image.grid().unwrap(), &line["regions"][0]);
        assert_eq!((&regions["rows"], &regions["columns"]), (&json!(cells.0), &json!(cells.1)));
        let found = sguf(&image, &KawhiConfig::default().sguf).unwrap();
        assert_eq!(
            (&regions["component"], &regions["structured"]),
            (&json!(found.component), &json!(found.structured))
        );
        assert_eq!(lines_found[0]["completions"][0]["advantage"], 0.0);
        assert!(lines_found[2]["completions"][0]["credit_weights"].is_null());

        let image = |line: &Value| run.path().join(line["images"][0].as_str().unwrap());
        for (line, question) in lines_found.iter().zip(&questions) {
            assert_eq!(image::open(image(line)).unwrap().to_rgb8(), question.example.images[0].pixels);
            let hash = Sha256::digest(std::fs::read(image(line)).unwrap());
            assert_eq!(line["images"], json!([format!("images/{hash:x}.png")]));
        }
        assert_eq!(image(&lines_found[1]), image(&lines_found[2]));
        assert_eq!(std::fs::read_dir(run.path().join("images")).unwrap().count(), 2);

        // A step that is run again leaves the same file; one that failed has no advantages.
        let before = std::fs::read(&path).unwrap();
        files.write_learnt(12, &questions, &report).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), before);
        let failed = files.write_failed(12, &questions, &groups).unwrap();
        assert_eq!(failed, run.path().join("failed/step0012.jsonl.gz"));
        let mut expected = lines_found;
        for completion in expected.iter_mut().flat_map(|line| line["completions"].as_array_mut().unwrap()) {
            completion["advantage"] = Value::Null;
            completion["credit_weights"] = Value::Null;
            completion["evidence"] = Value::Null;
        }
        assert_eq!(lines(&failed), expected);
    }
}
