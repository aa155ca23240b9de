//! `firesight doctor`.

use clap::Args;
use firesight_train::diagnosis;

use crate::output::Output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Looks at this device alone, and fails if it cannot be used: flex, cuda, cuda:1... or wgpu.
    #[arg(long)]
    device: Option<String>,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> anyhow::Result<()> {
    let found = diagnosis(arguments.device.as_deref());
    output.result(&found, &found)?;
    match (&arguments.device, found.devices.first()) {
        (Some(name), Some(device)) => match &device.problem {
            Some(problem) => anyhow::bail!("{name} cannot be used: {problem}"),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}
