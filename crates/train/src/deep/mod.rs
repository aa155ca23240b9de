//! What a device computes and how fast: its numbers against an oracle and the CPU, the rates of what a step is made of,
//! and whole steps.

mod agreement;
mod rates;
mod steps;

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use serde::Serialize;
use tempfile::TempDir;

use crate::Error;
use crate::device::{Part, device, part};
use crate::diagnosis::{Diagnosis, diagnosis};
use crate::error::chain;
use crate::panics::caught;

pub use agreement::Agreement;
pub use rates::Rate;
pub use steps::StepCost;

/// What [`deep_diagnosis`] found. Every number in it was measured on `hardware`, but for what is said to be another's.
#[derive(Debug, Clone, Serialize)]
pub struct DeepDiagnosis {
    /// The machine.
    pub machine: Diagnosis,
    /// The device's name in configurations.
    pub device: String,
    /// What its driver, or the operating system, calls it.
    pub hardware: String,
    /// Numbers against those of an oracle and of the CPU.
    pub agreement: Vec<Agreement>,
    /// How fast the parts of a step are.
    pub rates: Vec<Rate>,
    /// Whole steps.
    pub steps: Vec<StepCost>,
    /// What was not measured, and why.
    pub left_out: Vec<String>,
    /// How long all of it took.
    pub seconds: f64,
}

impl DeepDiagnosis {
    /// Whether everything that was computed is what it has to be.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.agreement.iter().all(Agreement::holds)
    }
}

/// Looks at one device closely. `oracle` is a directory of reference values with their models; without it two small
/// models that are part of the program are computed. `progress` is told what comes next.
///
/// # Errors
/// When there is no such device, or the oracle cannot be read. What fails on the device itself is part of the result.
pub fn deep_diagnosis(
    name: &str,
    oracle: Option<&Path>,
    progress: &mut dyn FnMut(&str),
) -> Result<DeepDiagnosis, Error> {
    let start = Instant::now();
    let device = device(name)?;
    let part = part(&device);
    let machine = diagnosis(Some(name));
    let hardware = part.as_ref().map_or_else(processor, |part| part.name.clone());
    let mut found = DeepDiagnosis {
        machine,
        device: name.into(),
        hardware,
        agreement: Vec::new(),
        rates: Vec::new(),
        steps: Vec::new(),
        left_out: Vec::new(),
        seconds: 0.0,
    };
    let fast = part.is_some_and(|Part { is_card, .. }| is_card);
    agreement::measure(&device, oracle, &mut found, progress)?;
    let peaks = rates::measure(&device, fast, &mut found, progress);
    steps::measure(name, &device, fast, peaks, &mut found, progress)?;
    found.seconds = start.elapsed().as_secs_f64();
    Ok(found)
}

/// Does a piece of work that may be too much for the device, whose backend then panics.
fn attempt<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, String> {
    caught(work)?.map_err(|error| chain(&error))
}

/// Files that are part of the program, in a directory that goes with what is returned.
fn unpacked(files: &[(&str, &[u8])]) -> Result<TempDir, Error> {
    let failed = |path: PathBuf| move |source| Error::Io { path, source };
    let directory = TempDir::with_prefix("firesight-").map_err(failed(std::env::temp_dir()))?;
    for (name, bytes) in files {
        let path = directory.path().join(name);
        let parent = path.parent().unwrap_or(directory.path());
        std::fs::create_dir_all(parent).map_err(failed(parent.into()))?;
        std::fs::write(&path, bytes).map_err(failed(path.clone()))?;
    }
    Ok(directory)
}

/// Waits until the device has done all that it was given.
fn finish(device: &Device) {
    // What went wrong shows in what is read back.
    let _ = device.sync();
}

fn processor() -> String {
    let found = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = found.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    name.map_or_else(|| std::env::consts::ARCH.into(), str::to_owned)
}

impl Display for DeepDiagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, device, hardware, .. } = self;
        writeln!(f, "measured on {hardware} ({device}), firesight {}, {}", machine.version, machine.platform)?;
        writeln!(f, "\nnumbers: differences, relative to what they differ from\n{}", agreement::shown(self))?;
        writeln!(f, "\nrates; the peak is what a probe of the backend reached here\n{}", rates::shown(self))?;
        writeln!(f, "\nsteps of reinforcement learning, the second of two\n{}", steps::shown(self))?;
        for why in &self.left_out {
            writeln!(f, "\nnot measured: {why}")?;
        }
        write!(f, "\n{:.0} s in all", self.seconds)
    }
}
