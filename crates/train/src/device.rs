use burn::tensor::Device;

use crate::Error;

/// The devices that a build can have, as far as they can be named without looking.
pub(crate) const NAMES: [&str; 3] = ["flex", "cuda", "wgpu"];

/// The device called `name`: `flex`, `cuda`, `cuda:<index>` or `wgpu`, as far as the build has them.
///
/// # Errors
/// When the name is unknown or its backend is not compiled in.
pub fn device(name: &str) -> Result<Device, Error> {
    let (kind, index) = name.split_once(':').map_or((name, Some(0_usize)), |(kind, index)| (kind, index.parse().ok()));
    match (kind, index) {
        #[cfg(feature = "flex")]
        ("flex", Some(0)) => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        ("cuda", Some(index)) => Ok(Device::cuda(index)),
        #[cfg(feature = "wgpu")]
        ("wgpu", Some(0)) => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        _ => {
            let available: Vec<&str> =
                [("flex", cfg!(feature = "flex")), ("cuda", cfg!(feature = "cuda")), ("wgpu", cfg!(feature = "wgpu"))]
                    .into_iter()
                    .filter_map(|(name, there)| there.then_some(name))
                    .collect();
            Err(Error::Device { name: name.into(), available: available.join(", ") })
        }
    }
}
