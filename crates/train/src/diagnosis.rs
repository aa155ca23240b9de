//! What this build can use on this machine.

use std::fmt::{self, Display};
use std::time::Instant;

use burn::tensor::{Distribution, Tensor};
use serde::Serialize;

use crate::Error;
use crate::device::{NAMES, device};
use crate::panics::caught;

/// What this build can use on this machine.
#[derive(Debug, Clone, Serialize)]
pub struct Diagnosis {
    /// Of firesight.
    pub version: &'static str,
    /// Processor architecture and operating system.
    pub platform: String,
    /// Processors that threads can run on.
    pub processors: usize,
    /// Vector instructions of the processor that matter here.
    pub vectors: Vec<&'static str>,
    /// Memory of the machine in bytes, where the operating system tells.
    pub memory: Option<u64>,
    /// Every device that this build could have.
    pub devices: Vec<DeviceDiagnosis>,
}

/// Whether a device can be used.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceDiagnosis {
    /// Its name in configurations.
    pub name: String,
    /// Seconds that a product of two matrices of 1,024 x 1,024 took, when it was asked for once more.
    pub product_seconds: Option<f64>,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// Looks at every device of this build, or at the one called `name`, by having it do a piece of work.
#[must_use]
pub fn diagnosis(name: Option<&str>) -> Diagnosis {
    let names: Vec<&str> = name.map_or_else(|| NAMES.to_vec(), |name| vec![name]);
    Diagnosis {
        version: env!("CARGO_PKG_VERSION"),
        platform: format!("{} {}", std::env::consts::ARCH, std::env::consts::OS),
        processors: std::thread::available_parallelism().map_or(1, Into::into),
        vectors: vectors(),
        memory: memory(),
        devices: names.into_iter().map(examine).collect(),
    }
}

fn examine(name: &str) -> DeviceDiagnosis {
    let refused = |error| match error {
        Error::AbsentDevice { problem, .. } => problem,
        error => error.to_string(),
    };
    let worked = device(name).map_err(refused).and_then(|device| {
        let work = || {
            let matrix = Tensor::<2>::random([1024, 1024], Distribution::Default, &device);
            // One number of it, so that all devices have finished.
            let product = || matrix.clone().matmul(matrix.clone()).slice([0..1, 0..1]).into_scalar::<f32>();
            // The first one may compile what it runs.
            let first = product();
            let start = Instant::now();
            (first.is_finite() && product().is_finite(), start.elapsed().as_secs_f64())
        };
        match caught(work)? {
            (true, seconds) => Ok(seconds),
            (false, _) => Err("its numbers are not finite".into()),
        }
    });
    let (product_seconds, problem) = match worked {
        Ok(seconds) => (Some(seconds), None),
        Err(problem) => (None, Some(problem)),
    };
    DeviceDiagnosis { name: name.into(), product_seconds, problem }
}

#[cfg(target_arch = "x86_64")]
fn vectors() -> Vec<&'static str> {
    let there = [
        ("AVX2", std::is_x86_feature_detected!("avx2")),
        ("FMA", std::is_x86_feature_detected!("fma")),
        ("AVX-512", std::is_x86_feature_detected!("avx512f")),
    ];
    there.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn vectors() -> Vec<&'static str> {
    Vec::new()
}

fn memory() -> Option<u64> {
    let found = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = found.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

impl Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "firesight   {} on {}", self.version, self.platform)?;
        let vectors = if self.vectors.is_empty() { "none that matter".into() } else { self.vectors.join(", ") };
        writeln!(f, "processors  {}, vector instructions {vectors}", self.processors)?;
        if let Some(memory) = self.memory {
            writeln!(f, "memory      {:.1} GiB", memory as f64 / f64::from(1 << 30))?;
        }
        write!(f, "devices")?;
        for device in &self.devices {
            let found = match (&device.problem, device.product_seconds) {
                (Some(problem), _) => format!("cannot be used: {problem}"),
                (None, Some(seconds)) => {
                    let rate = 2.0 * 1024_f64.powi(3) / seconds / 1e9;
                    format!("works; a product of 1,024 x 1,024 matrices in {:.1} ms ({rate:.0} GFLOP/s)", 1e3 * seconds)
                }
                (None, None) => "works".into(),
            };
            write!(f, "\n  {:<10}{found}", device.name)?;
        }
        Ok(())
    }
}
