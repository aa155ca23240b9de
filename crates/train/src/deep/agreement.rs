//! The models of an oracle on a device.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, FloatDType, Tensor};
use comfy_table::Table;
use firesight_vlm::{Precision, QwenVl, Scored, TokenMask, parameters};
use serde::Serialize;

use super::{DeepDiagnosis, attempt, unpacked};
use crate::Error;
use crate::oracle::{Case, allowed_in_bf16, case_names, distance, model_directories, relative_error};
use crate::table::table;

/// What float32 explains on a device whose functions and sums are less exact than the CPU's.
const SINGLE: f64 = 1e-3;
/// What the 8 bits of bfloat16 explain of log-probabilities, less what a few layers of rounding add up to.
const HALF: f64 = 3e-2;

/// One comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Agreement {
    /// Model and case.
    pub case: String,
    /// What was compared.
    pub what: &'static str,
    /// With whose numbers.
    pub reference: &'static str,
    /// Largest absolute difference over the largest absolute value; of gradients, the largest of all parameters. Of
    /// gradients in bfloat16 the length of the difference over that of the gradient: single numbers say little there.
    pub error: f64,
    /// How large it may be.
    pub allowed: f64,
}

impl Agreement {
    /// Whether it is no larger than it may be.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.error <= self.allowed
    }
}

macro_rules! embedded {
    ($path:literal) => {
        (
            concat!("models/", $path),
            include_bytes!(concat!("../../../../tests/fixtures/oracle/models/", $path)) as &[u8],
        )
    };
}

/// The models and cases that are part of the program.
const EMBEDDED: [(&str, &[u8]); 8] = [
    embedded!("qwen2_5_vl_tied/config.json"),
    embedded!("qwen2_5_vl_tied/model.safetensors"),
    embedded!("qwen2_5_vl_tied/expected/one_image.json"),
    embedded!("qwen2_5_vl_tied/expected/one_image.safetensors"),
    embedded!("qwen3_vl_tied/config.json"),
    embedded!("qwen3_vl_tied/model.safetensors"),
    embedded!("qwen3_vl_tied/expected/batch_mixed.json"),
    embedded!("qwen3_vl_tied/expected/batch_mixed.safetensors"),
];

pub(super) fn measure(
    device: &Device,
    oracle: Option<&Path>,
    found: &mut DeepDiagnosis,
    progress: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let files;
    let oracle = if let Some(oracle) = oracle {
        oracle
    } else {
        files = unpacked(&EMBEDDED)?;
        files.path()
    };
    for directory in model_directories(oracle)? {
        for name in case_names(&directory)? {
            let case = Case::read(&directory, &name)?;
            progress(&format!("numbers of {}", case.name));
            match attempt(|| compare(device, &directory, &case)) {
                Ok(comparisons) => found.agreement.extend(comparisons),
                Err(why) => found.agreement.push(Agreement {
                    case: format!("{}: {why}", case.name),
                    what: "nothing",
                    reference: "",
                    error: f64::INFINITY,
                    allowed: SINGLE,
                }),
            }
        }
    }
    Ok(())
}

fn compare(device: &Device, directory: &Path, case: &Case) -> Result<Vec<Agreement>, Error> {
    let model = QwenVl::from_dir(directory, device)?.train();
    let (log_probs, entropy, gradients) = scored(&model, case)?;
    let expected = |name| case.real("completion_mask", &case.tensors.floats(name)?.1);
    let agreement =
        |what, reference, error, allowed| Agreement { case: case.name.clone(), what, reference, error, allowed };
    let mut found = vec![
        agreement("log-probs", "oracle", relative_error(&log_probs, &expected("completion_logps")?), SINGLE),
        agreement("entropy", "oracle", relative_error(&entropy, &expected("completion_entropy")?), SINGLE),
    ];
    let on_cpu = QwenVl::from_dir(directory, &crate::device("flex")?)?.train();
    let (_, _, reference) = scored(&on_cpu, case)?;
    found.push(agreement("gradients", "flex", gradient_error(&gradients, &reference), SINGLE));
    if device.supports_dtype(FloatDType::BF16) {
        let (log_probs, _, gradients) = scored(&model.with_precision(Precision::mixed(FloatDType::BF16)), case)?;
        let error = relative_error(&log_probs, &expected("completion_logps")?);
        found.push(agreement("log-probs in bf16", "oracle", error, HALF));
        let rounded = QwenVl::from_dir_as(directory, FloatDType::BF16, &crate::device("flex")?)?;
        let (_, _, rounded) = scored(&rounded.with_precision(Precision::F32).train(), case)?;
        let off = |gradients: &Gradients| distance(&flat(gradients), &flat(&reference));
        let allowed = allowed_in_bf16(off(&rounded));
        found.push(agreement("gradients in bf16", "flex in f32", off(&gradients), allowed));
    }
    Ok(found)
}

type Gradients = BTreeMap<String, Vec<f32>>;

fn flat(gradients: &Gradients) -> Vec<f32> {
    gradients.values().flatten().copied().collect()
}

/// Log-probabilities and entropies of a case, and the gradients of its mean cross-entropy.
fn scored(model: &QwenVl, case: &Case) -> Result<(Vec<f32>, Vec<f32>, Gradients), Error> {
    let batch: Vec<Scored<'_>> =
        case.rows.iter().map(|(prompt, completion)| Scored { prompt, completions: vec![completion] }).collect();
    let everything = TokenMask::new(model.config().text_config.vocab_size, [])?;
    let scores = model.score(&batch, 1.0, &everything, None)?;
    let values = |tensor: Tensor<2>| tensor.into_data().iter::<f32>().collect::<Vec<f32>>();
    let real = |tensor: &Tensor<2>| case.real("completion_mask", &values(tensor.clone()));
    let (log_probs, entropy) = (real(&scores.log_probs)?, real(&scores.entropy)?);
    let tokens: usize = case.rows.iter().map(|(_, completion)| completion.len()).sum();
    let loss = scores.log_probs.clone().sum().neg() / tokens as f32;
    let gradients = scores.backward(&loss, model);
    let names = parameters(model).into_iter().map(|parameter| (parameter.id, parameter.name)).collect();
    let mut by_name = ByName { names, gradients, found: BTreeMap::new() };
    model.visit(&mut by_name);
    Ok((log_probs, entropy, by_name.found))
}

struct ByName {
    names: BTreeMap<ParamId, String>,
    gradients: GradientsParams,
    found: Gradients,
}

impl ModuleVisitor for ByName {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient =
            self.gradients.remove::<D>(param.id).map(|gradient| gradient.into_data().iter::<f32>().collect());
        if let (Some(name), Some(gradient)) = (self.names.get(&param.id), gradient) {
            self.found.insert(name.clone(), gradient);
        }
    }
}

/// The largest error of a parameter, relative to the largest of its gradient, or to a thousandth of the largest of all
/// where that is more: the gradient of a key's bias is zero but for rounding.
fn gradient_error(found: &Gradients, expected: &Gradients) -> f64 {
    let largest = |values: &[f32]| values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let floor = 1e-3 * expected.values().map(|values| largest(values)).fold(0.0, f32::max);
    let error = |(name, expected): (&String, &Vec<f32>)| {
        let Some(found) = found.get(name) else { return f64::INFINITY };
        let own = largest(expected);
        relative_error(found, expected) * f64::from(own.max(1e-6) / own.max(floor).max(1e-6))
    };
    if found.len() == expected.len() { expected.iter().map(error).fold(0.0, f64::max) } else { f64::INFINITY }
}

pub(super) fn shown(found: &DeepDiagnosis) -> Table {
    let row = |agreement: &Agreement| {
        let Agreement { case, what, reference, error, allowed } = agreement;
        let verdict = if agreement.holds() { "agrees" } else { "DIFFERS" };
        [
            format!("{case}: {what}"),
            (*reference).into(),
            format!("{error:.1e}"),
            format!("{allowed:.0e}"),
            verdict.into(),
        ]
    };
    table(["", "against", "difference", "allowed", ""], found.agreement.iter().map(row))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn gradients_differ_as_much_as_the_worst_of_them() {
        let gradients = |a: &[f32], b: f32| Gradients::from([("a".into(), a.to_vec()), ("b".into(), vec![b])]);
        let expected = gradients(&[2.0, 0.0], 1e-9);
        let error = |found: &Gradients| gradient_error(found, &expected);
        assert!(error(&expected) < 1e-12);
        // What is nothing but rounding noise is measured by the others.
        assert!(error(&gradients(&[2.0, 0.0], 3e-9)) < 2e-6);
        assert!((error(&gradients(&[2.0, 0.01], 1e-9)) - 5e-3).abs() < 1e-6);
        assert!(error(&gradients(&[2.0, f32::NAN], 1e-9)).is_infinite());
        assert!(error(&Gradients::from([("a".into(), vec![2.0, 0.0])])).is_infinite());
        let apart = |a: &[f32]| distance(&flat(&gradients(a, 0.0)), &flat(&gradients(&[3.0, 4.0], 0.0)));
        assert!((apart(&[3.0, 4.5]) - 0.1).abs() < 1e-9 && apart(&[3.0, f32::NAN]).is_infinite());
    }

    #[test]
    fn a_wrong_weight_is_seen() {
        let files = unpacked(&EMBEDDED).unwrap();
        let directory = files.path().join("models/qwen2_5_vl_tied");
        let case = Case::read(&directory, "one_image").unwrap();
        let device = crate::device("flex").unwrap();
        let all = compare(&device, &directory, &case).unwrap();
        assert!(all.len() == 5 && all.iter().all(Agreement::holds), "{all:?}");
        let weights = directory.join("model.safetensors");
        let mut bytes = std::fs::read(&weights).unwrap();
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&20f32.to_le_bytes());
        std::fs::write(&weights, bytes).unwrap();
        let wrong = compare(&device, &directory, &case).unwrap();
        assert!(!wrong[0].holds() && !wrong[1].holds(), "{wrong:?}");
    }
}
