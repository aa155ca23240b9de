//! The devices that a build can have.

use burn::tensor::{Device, FloatDType};
use firesight_rl::Threads;
use firesight_vlm::{Hardware, Precision};

use crate::Error;
#[cfg(feature = "nvrtc")]
use crate::panics::caught;

/// The devices that a build can have, as far as they can be named without looking.
pub(crate) const NAMES: [&str; 3] = ["flex", "cuda", "wgpu"];

/// The device called `name`: `flex`, `cuda`, `cuda:<index>`, `wgpu` or `wgpu:<index>`, as far as the build has them.
///
/// # Errors
/// When the name is unknown, its backend is not compiled in, or the machine has no such device.
pub fn device(name: &str) -> Result<Device, Error> {
    let (kind, index) =
        name.split_once(':').map_or((name, Some(None)), |(kind, index)| (kind, index.parse().ok().map(Some)));
    match (kind, index) {
        #[cfg(feature = "flex")]
        ("flex", Some(None | Some(0_usize))) => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        ("cuda", Some(index)) => {
            let found = Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec();
            let found = nth(name, found, index.unwrap_or(0), "NVIDIA GPU with a driver")?;
            #[cfg(feature = "nvrtc")]
            check_compiler(name)?;
            Ok(found)
        }
        #[cfg(feature = "wgpu-untuned")]
        ("wgpu", Some(index)) => {
            let found = Device::enumerate(burn::tensor::DeviceType::Wgpu).into_vec();
            match index {
                // Of several, the fastest.
                None if !found.is_empty() => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
                _ => nth(name, found, index.unwrap_or(0), "GPU with a driver for Vulkan, Metal or DirectX 12"),
            }
        }
        _ => {
            let available: Vec<&str> = [
                ("flex", cfg!(feature = "flex")),
                ("cuda", cfg!(feature = "cuda")),
                ("wgpu", cfg!(feature = "wgpu-untuned")),
            ]
            .into_iter()
            .filter_map(|(name, there)| there.then_some(name))
            .collect();
            Err(Error::Device { name: name.into(), available: available.join(", ") })
        }
    }
}

#[cfg(any(feature = "cuda", feature = "wgpu-untuned"))]
fn nth(name: &str, mut found: Vec<Device>, index: usize, kind: &str) -> Result<Device, Error> {
    if index < found.len() {
        return Ok(found.swap_remove(index));
    }
    let problem = match found.len() {
        0 => format!("no {kind} is found"),
        count => format!("there are {count} devices of its kind, counted from 0"),
    };
    Err(Error::AbsentDevice { name: name.into(), problem })
}

/// A device as its driver sees it.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) name: String,
    /// Whether it is a card, and not a processor that plays one.
    pub(crate) is_card: bool,
}

/// The most that a device was seen to do by the probes of its backend.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Peaks {
    /// Floating-point operations a second, in float32 and in bfloat16.
    pub(crate) single: Option<f64>,
    pub(crate) half: Option<f64>,
    /// Bytes a second that are read.
    pub(crate) memory: Option<f64>,
}

/// `None` where the backend does not tell.
#[cfg(any(feature = "cuda", feature = "wgpu-untuned"))]
pub(crate) fn part(device: &Device) -> Option<Part> {
    device.identity().map(|identity| Part { name: identity.name, is_card: identity.physical.is_some() })
}

/// `None` where the backend does not tell.
#[cfg(not(any(feature = "cuda", feature = "wgpu-untuned")))]
pub(crate) fn part(_: &Device) -> Option<Part> {
    None
}

#[cfg(any(feature = "cuda", feature = "wgpu-untuned"))]
pub(crate) fn peaks(device: &Device) -> Peaks {
    use burn::tensor::{MemoryAccess, ThroughputKey, ThroughputMode};
    use cubecl::ir::{ElemType, FloatKind};
    use cubecl::throughput::compute_throughput_key;

    let [single, half] = [FloatKind::F32, FloatKind::BF16].map(ElemType::Float);
    let memory = ThroughputKey { mode: ThroughputMode::memory(MemoryAccess::Read) };
    let keys = [
        compute_throughput_key(None, single, single),
        compute_throughput_key(Some((16, 16, 16)), half, single),
        memory,
    ];
    let mut rates = device.performance_stats(&keys).into_iter().map(|stat| {
        let value = stat.value.ok()?;
        let rate = if stat.key == memory { value.bytes_per_s(&memory) } else { value.ops_per_s() };
        rate.is_finite().then_some(rate)
    });
    let mut next = || rates.next().flatten();
    Peaks { single: next(), half: next(), memory: next() }
}

#[cfg(not(any(feature = "cuda", feature = "wgpu-untuned")))]
pub(crate) fn peaks(_: &Device) -> Peaks {
    Peaks::default()
}

/// What this number of threads comes to on the device of this name; see [`Threads::on`].
pub(crate) fn threads(name: &str, wanted: usize) -> Threads {
    match hardware(name) {
        Hardware::Cpu => Threads::Own(wanted),
        Hardware::Gpu => Threads::Caller,
    }
}

/// What the device of this name computes on.
pub(crate) fn hardware(name: &str) -> Hardware {
    if name.starts_with("flex") { Hardware::Cpu } else { Hardware::Gpu }
}

/// What `dtype` means on the device of this name.
pub(crate) fn precision(name: &str, dtype: FloatDType) -> Precision {
    match hardware(name) {
        Hardware::Cpu => Precision::stored(dtype),
        Hardware::Gpu => Precision::mixed(dtype),
    }
}

/// Refuses a machine where kernels cannot be compiled: every operation on the device would panic.
#[cfg(feature = "nvrtc")]
fn check_compiler(name: &str) -> Result<(), Error> {
    use std::sync::OnceLock;

    use cudarc::nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts};

    static PROBLEM: OnceLock<Option<String>> = OnceLock::new();
    let look = || {
        let Some(path) = cubecl_cuda::install::cuda_path() else {
            let places = "CUDA_PATH, /usr/local/cuda, /opt/cuda and beside /usr/bin/nvcc";
            return Some(format!("the headers of a CUDA toolkit are not there, looked for in {places}"));
        };
        let include = path.join("include").display().to_string();
        // One that every kernel in half precision needs.
        let program = "#include <cuda_bf16.h>\nextern \"C\" __global__ void nothing() {}";
        let options = CompileOptions { include_paths: vec![include.clone()], ..CompileOptions::default() };
        match caught(|| compile_ptx_with_opts(program, options)) {
            Ok(Ok(_)) => None,
            Ok(Err(CompileError::CompileError { log, .. })) => {
                let log = log.to_string_lossy();
                let first = log.lines().next().unwrap_or_default();
                Some(format!("NVRTC cannot use the CUDA headers in {include}: {first}"))
            }
            Ok(Err(error)) => Some(format!("NVRTC fails: {error}")),
            // cudarc panics where it finds no library.
            Err(_) => Some("libnvrtc.so, which compiles its kernels, cannot be loaded; a CUDA toolkit has it".into()),
        }
    };
    match PROBLEM.get_or_init(look) {
        None => Ok(()),
        Some(problem) => Err(Error::AbsentDevice { name: name.into(), problem: problem.clone() }),
    }
}
