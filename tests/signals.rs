//! What credit assignment reads of a forward pass: states of the last decoder layer and attention in the vision tower,
//! recomputed here in double precision from what transformers feeds to those layers; what the decoder lets out, against
//! transformers' logits; and that drawing completions hands out what scoring them does.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::Tensor;
use firesight_vlm::{
    AttentionPoint, AttentionProbe, Error, Generation, LastAttention, LastHidden, Probe, ProcessedImage, Prompt,
    QwenVl, ResponseStates, Sampling, Scored,
};
use support::models::{Case, everything, models, real, scored, values};
use support::{Tensors, device, relative_error, tolerance};

const POINTS: [AttentionPoint; 2] = [AttentionPoint::BeforeRope, AttentionPoint::AfterRope];
const RESPONSES: [ResponseStates; 2] = [ResponseStates::Queries, ResponseStates::Keys];

fn probe(point: AttentionPoint, response: ResponseStates) -> Probe {
    let attention = AttentionProbe { point, response, heads: None, visual_tokens: None };
    Probe { attention: Some(attention), ..Probe::default() }
}

/// Weights by the end of their names.
struct Weights<'a>(&'a Tensors);

impl Weights<'_> {
    fn find(&self, end: &str) -> Option<(Vec<usize>, Vec<f64>)> {
        let mut names = self.0.names().filter(|name| name.ends_with(end));
        let (shape, values) = self.0.f32(names.next()?);
        assert!(names.next().is_none(), "{end} is ambiguous");
        Some((shape, values.into_iter().map(f64::from).collect()))
    }

    /// `x W^T + b`.
    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (shape, weight) = self.find(&format!("{name}.weight")).unwrap();
        let bias = self.find(&format!("{name}.bias")).map_or_else(|| vec![0.0; shape[0]], |(_, bias)| bias);
        let row = |weight: &[f64]| weight.iter().zip(x).map(|(a, b)| a * b).sum::<f64>();
        weight.chunks_exact(shape[1]).zip(bias).map(|(weight, bias)| row(weight) + bias).collect()
    }

    /// A layer norm where there is a bias, else a norm by the root of the mean square.
    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (_, weight) = self.find(&format!("{name}.weight")).unwrap();
        let bias = self.find(&format!("{name}.bias")).map(|(_, bias)| bias);
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / x.len() as f64;
        let centre = if bias.is_some() { mean(&mut x.iter().copied()) } else { 0.0 };
        let scale = (mean(&mut x.iter().map(|x| (x - centre).powi(2))) + 1e-6).sqrt();
        let scaled = x.iter().zip(weight).map(|(x, weight)| (x - centre) / scale * weight);
        scaled.zip(bias.unwrap_or_else(|| vec![0.0; x.len()])).map(|(x, bias)| x + bias).collect()
    }
}

/// `x cos + rotate_half(x) sin`.
fn rotated(x: &[f64], cos: &[f64], sin: &[f64]) -> Vec<f64> {
    let half = x.len() / 2;
    (0..x.len()).map(|i| x[i] * cos[i] + if i < half { -x[i + half] } else { x[i - half] } * sin[i]).collect()
}

/// Rows of a tensor whose last dimension is `width`.
fn rows(tensors: &Tensors, name: &str) -> Vec<Vec<f64>> {
    let (shape, values) = tensors.f32(name);
    values.chunks_exact(*shape.last().unwrap()).map(|row| row.iter().copied().map(f64::from).collect()).collect()
}

/// Queries or keys of the last layer at every position of a case's padded batch, head by head.
fn expected(case: &Case, weights: &Weights<'_>, model: &QwenVl, queries: bool, point: AttentionPoint) -> Vec<Vec<f64>> {
    let config = &model.config().text_config;
    let last = config.num_hidden_layers - 1;
    let layer = format!("layers.{last}");
    let part = if queries { "q" } else { "k" };
    let (cos, sin) = (rows(&case.tensors, "text.rope_cos"), rows(&case.tensors, "text.rope_sin"));
    let states = rows(&case.tensors, &format!("text.layer.{}", last - 1));
    states
        .iter()
        .enumerate()
        .map(|(position, x)| {
            let x = weights.norm(&format!("{layer}.input_layernorm"), x);
            let projected = weights.linear(&format!("{layer}.self_attn.{part}_proj"), &x);
            let head = |head: &[f64]| {
                let norm = format!("{layer}.self_attn.{part}_norm");
                let head = if config.qk_norm { weights.norm(&norm, head) } else { head.to_vec() };
                match point {
                    AttentionPoint::BeforeRope => head,
                    // Rows of text alone share their positions.
                    AttentionPoint::AfterRope => rotated(&head, &cos[position % cos.len()], &sin[position % sin.len()]),
                }
            };
            projected.chunks_exact(config.head_dim).flat_map(head).collect()
        })
        .collect()
}

fn check(case: &Case, what: &str, found: &[f32], expected: &[f64]) {
    let expected: Vec<f32> = expected.iter().map(|&value| value as f32).collect();
    let error = relative_error(found, &expected);
    println!("{:40} {what:60} {error:.1e}", case.name);
    assert!(error < tolerance(), "{} {what}: relative error {error:.2e}", case.name);
}

#[test]
fn states_of_the_last_layer_agree() {
    let mut checked = 0;
    for (dir, cases) in models() {
        let model = QwenVl::from_dir(&dir, &device()).unwrap();
        let layers = model.config().text_config.num_hidden_layers;
        // In a batch of text alone, positions there count the padding.
        let known = |case: &&Case| {
            case.tensors.contains("pixel_values") && case.tensors.contains(&format!("text.layer.{}", layers - 2))
        };
        for case in cases.iter().filter(known) {
            checked += 1;
            let file = Tensors::read(&dir.join("model.safetensors"));
            let weights = Weights(&file);
            let (shape, attended) = case.tensors.i64("attention_mask");
            for (point, response) in POINTS.into_iter().flat_map(|point| RESPONSES.map(|response| (point, response))) {
                let scores =
                    model.score(&scored(case), 1.0, &everything(&model), Some(&probe(point, response))).unwrap();
                let found = scores.probed.attention.unwrap();
                let [_, heads, dim] = found.response.dims();
                let config = &model.config().text_config;
                let sharing = config.num_attention_heads / config.num_key_value_heads;
                assert_eq!(found.key_heads, (0..heads).map(|head| head / sharing).collect::<Vec<_>>());
                let queries = response == ResponseStates::Queries;
                let of_response = expected(case, &weights, &model, queries, point);
                let keys = expected(case, &weights, &model, false, point);
                let response_values = values(found.response);
                let mut tokens = response_values.chunks_exact(heads * dim);
                for (row, (prompt, completion)) in case.rows.iter().enumerate() {
                    // Where the tokens of this row are in the padded batch.
                    let real = |offset: &usize| attended[row * shape[1] + offset] == 1;
                    let places: Vec<usize> = (0..shape[1]).filter(real).map(|offset| row * shape[1] + offset).collect();
                    let what = format!("{point:?} {response:?} of row {row}");
                    let (mut one, mut other) = (Vec::new(), Vec::new());
                    for (token, states) in tokens.by_ref().take(completion.len()).enumerate() {
                        one.extend_from_slice(states);
                        let place = places[prompt.input_ids().len() + token];
                        for head in (0..heads).map(|head| if queries { head } else { head / sharing }) {
                            other.extend_from_slice(&of_response[place][head * dim..(head + 1) * dim]);
                        }
                    }
                    check(case, &what, &one, &other);
                    let visual: Vec<usize> = prompt.image_spans().iter().cloned().flatten().collect();
                    assert_eq!(found.visual_keys[row].dims(), [heads / sharing, visual.len(), dim]);
                    let other: Vec<f64> = (0..heads / sharing)
                        .flat_map(|head| visual.iter().map(move |&token| (head, token)))
                        .flat_map(|(head, token)| keys[places[token]][head * dim..(head + 1) * dim].to_vec())
                        .collect();
                    check(case, &format!("{what}: visual keys"), &values(found.visual_keys[row].clone()), &other);
                }
            }
        }
    }
    assert!(checked > 0, "no case with states of a layer");
}

#[test]
fn attention_that_visual_tokens_receive_agrees() {
    let mut checked = 0;
    for (dir, cases) in models() {
        let model = QwenVl::from_dir(&dir, &device()).unwrap();
        let config = support::json(&dir.join("config.json"));
        let vision = &config["vision_config"];
        let size = |key: &str| vision[key].as_u64().unwrap() as usize;
        let last_whole = |vision: &serde_json::Value| match vision["fullatt_block_indexes"].as_array() {
            Some(blocks) => blocks.iter().map(|block| block.as_u64().unwrap() as usize).max().unwrap(),
            None => vision["depth"].as_u64().unwrap() as usize - 1,
        };
        for case in &cases {
            if vision.is_null() || !case.tensors.contains(&format!("vision.block.{}", last_whole(vision) - 1)) {
                continue;
            }
            checked += 1;
            let block = last_whole(vision);
            let file = Tensors::read(&dir.join("model.safetensors"));
            let weights = Weights(&file);
            let (heads, width, merged) = (size("num_heads"), size("hidden_size"), size("spatial_merge_size").pow(2));
            let dim = width / heads;
            let states = rows(&case.tensors, &format!("vision.block.{}", block - 1));
            let (cos, sin) = (rows(&case.tensors, "vision.rope_cos"), rows(&case.tensors, "vision.rope_sin"));
            let projected: Vec<Vec<f64>> = states
                .iter()
                .map(|x| {
                    let x = weights.norm(&format!("blocks.{block}.norm1"), x);
                    weights.linear(&format!("blocks.{block}.attn.qkv"), &x)
                })
                .collect();
            // Qwen2.5-VL computes in window order; the rotary tables are in that of the image.
            let order: Vec<usize> = if case.tensors.contains("vision.window_index") {
                case.tensors.i64("vision.window_index").1.into_iter().map(|token| token as usize).collect()
            } else {
                (0..states.len() / merged).collect()
            };
            let turned = |patch: usize, start: usize| {
                let place = order[patch / merged] * merged + patch % merged;
                rotated(&projected[patch][start..start + dim], &cos[place], &sin[place])
            };
            let images: Vec<&ProcessedImage> = case.rows.iter().flat_map(|(prompt, _)| prompt.images()).collect();
            let mut received = vec![0.0; states.len()];
            let mut first = 0;
            for image in &images {
                let patches = first..first + image.grid.patches();
                first = patches.end;
                for head in 0..heads {
                    let keys: Vec<Vec<f64>> = patches.clone().map(|patch| turned(patch, width + head * dim)).collect();
                    for patch in patches.clone() {
                        let query = turned(patch, head * dim);
                        let score = |key: &Vec<f64>| {
                            (key.iter().zip(&query).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt()).exp()
                        };
                        let scores: Vec<f64> = keys.iter().map(score).collect();
                        let sum: f64 = scores.iter().sum();
                        for (place, score) in patches.clone().zip(scores) {
                            received[place] += score / sum / (heads * patches.len()) as f64;
                        }
                    }
                }
            }
            let of_tokens: Vec<f64> =
                received.chunks_exact(merged).map(|patches| patches.iter().sum::<f64>() / merged as f64).collect();
            let mut raster = vec![0.0; of_tokens.len()];
            for (token, received) in order.into_iter().zip(of_tokens) {
                raster[token] = received;
            }

            let asked = Probe { image_attention: true, ..Probe::default() };
            let scores = model.score(&scored(case), 1.0, &everything(&model), Some(&asked)).unwrap();
            let found = scores.probed.image_attention.unwrap();
            let counts: Vec<usize> = found.iter().map(|found| found.dims()[0]).collect();
            let visual = |(prompt, _): &(Prompt, _)| prompt.image_spans().iter().map(ExactSizeIterator::len).sum();
            assert_eq!(counts, case.rows.iter().map(visual).collect::<Vec<usize>>());
            check(case, "attention received", &found.into_iter().flat_map(values).collect::<Vec<_>>(), &raster);
        }
    }
    assert!(checked > 0, "no case with states of the vision tower");
}

/// Completion tokens and visual tokens have the states that transformers computes at their own positions: those of
/// which the output head makes its logits, and where the oracle has the states, these.
#[test]
fn hidden_states_agree() {
    for (dir, cases) in models() {
        let model = QwenVl::from_dir(&dir, &device()).unwrap();
        let file = Tensors::read(&dir.join("model.safetensors"));
        let head = if model.config().tie_word_embeddings { "embed_tokens.weight" } else { "lm_head.weight" };
        let (shape, head) = Weights(&file).find(head).unwrap();
        let logits_of = |states: &[f32]| -> Vec<f32> {
            let product =
                |state: &[f32], row: &[f64]| state.iter().zip(row).map(|(&a, b)| f64::from(a) * b).sum::<f64>();
            let states = states.chunks_exact(shape[1]);
            states.flat_map(|state| head.chunks_exact(shape[1]).map(|row| product(state, row) as f32)).collect()
        };
        for case in &cases {
            let asked = Probe { hidden: true, ..Probe::default() };
            let scores = model.score(&scored(case), 1.0, &everything(&model), Some(&asked)).unwrap();
            assert!(scores.probed.attention.is_none());
            let hidden = scores.probed.hidden.unwrap();
            // What a tensor of the oracle has at the same tokens.
            let expected = |name: &str| {
                let width = *case.tensors.f32(name).0.last().unwrap();
                let real = real(case, "attention_mask", &case.tensors.f32(name).1);
                let (mut of_response, mut of_visual, mut start) = (Vec::new(), Vec::new(), 0);
                for (prompt, completion) in &case.rows {
                    let end = start + prompt.input_ids().len();
                    let visual = prompt.image_spans().iter().cloned().flatten();
                    of_visual.extend(visual.flat_map(|at| &real[(start + at) * width..(start + at + 1) * width]));
                    start = end + completion.len();
                    of_response.extend(&real[end * width..start * width]);
                }
                assert_eq!(start * width, real.len());
                (of_response, of_visual)
            };
            let (response, visual) = (values(hidden.response), hidden.visual.into_iter().flat_map(values).collect());
            let check = |what: &str, found: Vec<f32>, expected: Vec<f32>| {
                let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
                assert_eq!(found.len(), expected.len());
                check(case, what, &found, &expected);
            };
            let visual: Vec<f32> = visual;
            let (of_response, of_visual) = expected("logits");
            check("logits of hidden states", logits_of(&response), of_response);
            if !visual.is_empty() {
                check("logits of visual hidden states", logits_of(&visual), of_visual);
            }
            if case.tensors.contains("text.final_norm") {
                let (of_response, of_visual) = expected("text.final_norm");
                check("hidden states", response, of_response);
                if !visual.is_empty() {
                    check("visual hidden states", visual, of_visual);
                }
            }
        }
    }
}

/// Entropy of the smallest set of most likely tokens that has `share` of the probability, by sorting all of them.
fn top_p_entropy(logits: &[f32], share: f64) -> f64 {
    let mut weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
    weights.sort_by(|a, b| b.total_cmp(a));
    let total: f64 = weights.iter().sum();
    let mut before = 0.0;
    weights.retain(|weight| {
        before += weight;
        before - weight < share * total
    });
    let total: f64 = weights.iter().sum();
    -weights.iter().map(|weight| weight / total * (weight / total).ln()).sum::<f64>()
}

#[test]
fn entropies_of_drawing_are_those_of_the_logits() {
    for (dir, cases) in models() {
        let model = QwenVl::from_dir(&dir, &device()).unwrap();
        let prompts: Vec<&Prompt> = cases[0].rows.iter().map(|(prompt, _)| prompt).collect();
        let mask = everything(&model);
        let ask = |share: Option<f32>, temperature: f32| {
            let sampling = Sampling::at(temperature);
            let stop_tokens: Vec<u32> = (0..model.config().text_config.vocab_size as u32).step_by(7).collect();
            let options = Generation {
                sampling,
                max_new_tokens: 6,
                stop_tokens: &stop_tokens,
                mask: &mask,
                seed: 5,
                first_stream: 0,
            };
            let probe = Probe { entropy: share.is_none(), top_p_entropy: share, ..Probe::default() };
            model.generate_probed(&prompts, 3, &options, &probe)
        };
        for (temperature, share) in [(1.0, 0.95), (0.7, 0.5), (0.0, 0.8), (1.0, 1.0)] {
            let (drawn, probed) = ask(Some(share), temperature).unwrap();
            assert!(probed.entropy.is_none() && probed.hidden.is_none() && probed.attention.is_none());
            let found = probed.top_p_entropy.unwrap();
            let (whole, probed) = ask(None, temperature).unwrap();
            assert_eq!(drawn, whole);
            assert!(probed.top_p_entropy.is_none());
            let whole = probed.entropy.unwrap();
            let divided = if temperature > 0.0 { temperature } else { 1.0 };
            let completions =
                prompts.iter().zip(&drawn).flat_map(|(prompt, group)| group.iter().map(move |c| (prompt, c)));
            for (number, (prompt, completion)) in completions.enumerate() {
                let ids = [prompt.input_ids(), &completion.tokens].concat();
                let sequence = Prompt::new(ids, prompt.images().to_vec(), prompt.image_spans().to_vec());
                let logits = model.prompt_logits(&[&sequence]).unwrap() / divided;
                let [_, tokens, vocabulary] = logits.dims();
                let logits = values(logits);
                let rows = logits.chunks_exact(vocabulary).take(tokens - 1).skip(prompt.input_ids().len() - 1);
                assert_eq!(found[number].len(), completion.tokens.len());
                assert_eq!(whole[number].len(), completion.tokens.len());
                for ((row, found), whole) in rows.zip(&found[number]).zip(&whole[number]) {
                    let expected = [top_p_entropy(row, f64::from(share)), top_p_entropy(row, 2.0)];
                    for (found, expected) in [found, whole].into_iter().zip(expected) {
                        let difference = (f64::from(*found) - expected).abs();
                        assert!(difference < tolerance(), "{}: {found} for {expected}", dir.display());
                    }
                }
            }
        }
        for share in [0.0, 1.1, f32::NAN] {
            assert!(matches!(ask(Some(share), 1.0), Err(Error::Probe { field: "top_p_entropy", .. })));
        }
        let asked = Probe { top_p_entropy: Some(0.9), ..Probe::default() };
        let refused = model.score(&scored(&cases[0]), 1.0, &mask, Some(&asked)).unwrap_err();
        assert!(refused.to_string().contains("only while completions are drawn"), "{refused}");
    }
}

/// Values of the states of the completions, and of the visual keys.
fn flat(found: LastAttention) -> [Vec<f32>; 2] {
    [values(found.response), found.visual_keys.into_iter().flat_map(values).collect()]
}

/// Values of the states of the completions, and of the visual tokens.
fn hidden(found: LastHidden) -> [Vec<f32>; 2] {
    [values(found.response), found.visual.into_iter().flat_map(values).collect()]
}

/// Completions of several lengths, some of which end long before the others: what the passes that drew them hand out is
/// what a pass that scores them does.
#[test]
fn drawing_hands_out_what_scoring_does() {
    for (dir, cases) in models() {
        let model = QwenVl::from_dir(&dir, &device()).unwrap();
        let case = &cases[0];
        let one = &case.rows[0].0;
        let short = Prompt::new(one.input_ids()[one.input_ids().len() - 3..].to_vec(), Vec::new(), Vec::new());
        let prompts = [one, &short, one, &short];
        let mask = everything(&model);
        // A third of the vocabulary ends a completion.
        let stop_tokens: Vec<u32> = (0..model.config().text_config.vocab_size as u32).step_by(3).collect();
        let options = |seed| Generation {
            sampling: Sampling::at(1.0),
            // All completions of one token end together.
            max_new_tokens: if seed % 4 == 3 { 1 } else { 9 },
            stop_tokens: &stop_tokens,
            mask: &mask,
            seed,
            first_stream: 0,
        };
        let mut some_closed = 0;
        for seed in 0..12 {
            let (point, response) = (POINTS[seed as usize % 2], RESPONSES[seed as usize / 2 % 2]);
            let mut probe = Probe { entropy: true, hidden: seed % 3 > 0, ..probe(point, response) };
            if seed % 3 > 1 {
                probe.attention = None;
            }
            let (drawn, probed) = model.generate_probed(&prompts, 2, &options(seed), &probe).unwrap();
            assert_eq!(drawn, model.generate(&prompts, 2, &options(seed)).unwrap(), "looking changes nothing");
            let lengths: Vec<usize> = drawn.iter().flatten().map(|completion| completion.tokens.len()).collect();
            let longest = lengths.iter().copied().max().unwrap();
            let open = drawn.iter().filter(|group| group.iter().any(|one| one.tokens.len() == longest)).count();
            some_closed += usize::from(open < prompts.len());
            let batch: Vec<Scored<'_>> = prompts
                .iter()
                .zip(&drawn)
                .map(|(prompt, group)| Scored {
                    prompt,
                    completions: group.iter().map(|completion| completion.tokens.as_slice()).collect(),
                })
                .collect();
            let scores = model.score(&batch, 1.0, &mask, Some(&probe)).unwrap();
            let alike = |what: &str, found: [Vec<f32>; 2], expected: [Vec<f32>; 2]| {
                for (found, expected) in found.into_iter().zip(expected) {
                    assert_eq!(found.len(), expected.len());
                    let error = if found.is_empty() { 0.0 } else { relative_error(&found, &expected) };
                    assert!(error < 1e-5, "{} {what}: {point:?} {response:?}: {error:.1e}", dir.display());
                }
            };
            assert_eq!(probed.attention.is_some(), probe.attention.is_some());
            if let (Some(found), Some(expected)) = (probed.attention, scores.probed.attention) {
                alike("attention", flat(found), flat(expected));
            }
            assert_eq!(probed.hidden.is_some(), probe.hidden);
            if let (Some(found), Some(expected)) = (probed.hidden, scores.probed.hidden) {
                assert_eq!(found.response.dims()[0], lengths.iter().sum::<usize>());
                let visual: Vec<usize> = found.visual.iter().map(|states| states.dims()[0]).collect();
                let count = |prompt: &Prompt| prompt.image_spans().iter().map(ExactSizeIterator::len).sum::<usize>();
                assert_eq!(visual, prompts.map(count));
                alike("hidden states", hidden(found), hidden(expected));
            }
            let found = probed.entropy.unwrap();
            assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), lengths);
            let entropy = values(scores.entropy);
            let expected = entropy.chunks_exact(longest).zip(&lengths).flat_map(|(row, &length)| &row[..length]);
            alike("entropy", [found.concat(), Vec::new()], [expected.copied().collect(), Vec::new()]);
        }
        assert!((1..12).contains(&some_closed), "{}: prompts ended together {some_closed} times", dir.display());
    }
}

#[test]
fn chosen_heads_and_visual_tokens_are_handed_out_and_no_others() {
    for (dir, cases) in models() {
        let model = QwenVl::from_dir(&dir, &device()).unwrap();
        let Some(case) = cases.iter().find(|case| case.rows.iter().any(|(prompt, _)| !prompt.images().is_empty()))
        else {
            continue;
        };
        let visual: Vec<usize> =
            case.rows.iter().map(|(prompt, _)| prompt.image_spans().iter().map(ExactSizeIterator::len).sum()).collect();
        let chosen: Vec<Vec<usize>> = visual.iter().map(|&count| (0..count).rev().step_by(2).collect()).collect();
        let (heads, sharing) = (vec![3, 0], 4 / model.config().text_config.num_key_value_heads);
        let score = |probe: &Probe| model.score(&scored(case), 1.0, &everything(&model), Some(probe));
        for response in RESPONSES {
            let mut probe = probe(AttentionPoint::AfterRope, response);
            let all = score(&probe).unwrap().probed.attention.unwrap();
            let attention = probe.attention.as_mut().unwrap();
            attention.heads = Some(heads.clone());
            attention.visual_tokens = Some(chosen.clone());
            let some = score(&probe).unwrap().probed.attention.unwrap();
            assert_eq!(some.key_heads, heads.iter().map(|head| head / sharing).collect::<Vec<_>>());
            let of_head = |head: usize| all.response.clone().narrow(1, head, 1);
            let expected = Tensor::cat(heads.iter().map(|&head| of_head(head)).collect(), 1);
            assert_eq!(values(some.response), values(expected));
            for ((some, all), chosen) in some.visual_keys.into_iter().zip(all.visual_keys).zip(&chosen) {
                assert_eq!(some.dims()[1], chosen.len());
                for (place, &token) in chosen.iter().enumerate() {
                    let (some, all) = (some.clone().narrow(1, place, 1), all.clone().narrow(1, token, 1));
                    assert_eq!(values(some), values(all));
                }
            }
        }

        let refused = |change: fn(&mut AttentionProbe)| {
            let mut probe = probe(AttentionPoint::AfterRope, ResponseStates::Queries);
            change(probe.attention.as_mut().unwrap());
            match score(&probe) {
                Err(Error::ProbeOutOfRange { what, index, count }) => (what, index, count),
                other => panic!("{:?}", other.map(|_| ())),
            }
        };
        assert_eq!(refused(|probe| probe.heads = Some(vec![1, 4])), ("query head", 4, 4));
        assert_eq!(refused(|probe| probe.visual_tokens = Some(Vec::new())).0, "list of visual tokens");
        assert_eq!(refused(|probe| probe.visual_tokens = Some(vec![vec![9999]; 2])).0, {
            if visual.len() == 2 { "visual token" } else { "list of visual tokens" }
        });
    }
}
