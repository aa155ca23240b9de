//! Stands in for cubecl's LLVM compiler in a build that compiles its kernels with NVRTC.
//!
//! `cubecl-cuda` has two compilers, CUDA C++ through NVRTC and LLVM, and always builds both; its feature `cpp` says
//! which one runs. The real crate's build script downloads LLVM from outside the crate registry, which some machines
//! cannot reach. So this crate has the names that `cubecl-cuda` 0.11.3 takes from the real one and nothing behind them:
//! with `cpp` none of it is ever called, and without it every kernel fails with an error that says why.

use std::{convert::Infallible, ffi::c_char};

use cubecl_core::{
    CompilationError,
    environment::backtrace::BackTrace,
    ir::{attributes::BufferIOAttr, nvidia::SmArch},
    prelude::KernelDefinition,
};

use crate::nvptx::ptx_version::PtxVersion;

/// What to compile for: NVIDIA's devices are all that `cubecl-cuda` asks for.
#[derive(Clone, Copy, Debug)]
pub enum LlvmTarget {
    /// NVIDIA's assembly, PTX.
    Nvptx,
}

/// The compiler that is not here.
#[derive(Clone, Debug)]
pub struct PlironCompiler {
    /// What to compile for.
    pub target: LlvmTarget,
}

impl PlironCompiler {
    /// Compiles nothing.
    ///
    /// # Errors
    /// Always, and says that this build compiles kernels with NVRTC.
    pub fn compile(&mut self, _: KernelDefinition, _: &PlironOptions) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this build compiles kernels with NVRTC: it has no LLVM".into(),
            backtrace: BackTrace::capture(),
        })
    }

    /// The language that the real compiler writes.
    #[must_use]
    pub fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}

/// How to compile, with the fields that `cubecl-cuda` sets.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// The AMD architecture, which `cubecl-cuda` leaves out.
    pub arch: Option<Infallible>,
    /// The NVIDIA architecture.
    pub sm_arch: Option<SmArch>,
    /// The version of PTX to write.
    pub ptx_version: Option<PtxVersion>,
    /// Whether a kernel's metadata are parameters of its own.
    pub grid_constants: bool,
}

/// What [`PlironCompiler::compile`] would return.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// A module for an NVIDIA device.
    NvptxCode(NvptxModule),
}

/// A compiled module, with the fields that `cubecl-cuda` reads. None is ever made.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// The assembly.
    pub ptx: Vec<c_char>,
    /// The text of the intermediate representation.
    pub ir: String,
    /// The shared memory that a launch has to reserve, in bytes.
    pub shared_memory_size: usize,
    /// What the kernel does with each of its buffers.
    pub io: Vec<BufferIOAttr>,
}

/// NVIDIA's assembly.
pub mod nvptx {
    /// Versions of PTX.
    pub mod ptx_version {
        use std::fmt;

        /// A version of PTX. NVRTC picks its own, so this has no values.
        #[derive(Clone, Copy, Debug)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// The newest version that a driver loads: none that this crate could write.
            #[must_use]
            pub fn for_driver(_: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// What the targets have in common.
pub mod shared {
    /// What a device may say that it can do.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// A device that the real compiler compiles for.
        #[derive(Clone, Copy, Debug)]
        pub enum GpuTarget {
            /// An NVIDIA device.
            Nvptx,
        }

        /// Leaves `_properties` alone: the real function takes away what LLVM cannot compile, and no kernel gets there.
        pub fn restrict_features(_properties: &mut DeviceProperties, _: GpuTarget) {}
    }
}
