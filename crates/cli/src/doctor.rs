//! `firesight doctor`.

use std::path::PathBuf;

use clap::Args;
use firesight_train::{deep_diagnosis, diagnosis};

use crate::output::Output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Looks at this device alone, and fails if it cannot be used: flex, cuda, cuda:1..., wgpu, wgpu:1...
    #[arg(long)]
    device: Option<String>,
    /// Computes reference values and whole training steps on the device, against the CPU and the clock. Minutes on a GPU.
    #[arg(long, requires = "device")]
    deep: bool,
    /// Directory of reference values with their models, instead of the two models that are part of the program.
    #[arg(long, requires = "deep", value_name = "DIR")]
    oracle: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> anyhow::Result<()> {
    if let (true, Some(name)) = (arguments.deep, &arguments.device) {
        let progress = output.progress();
        let found = deep_diagnosis(name, arguments.oracle.as_deref(), &mut |what| progress.note(what))?;
        output.result(&found, &found)?;
        anyhow::ensure!(found.agrees(), "{name} does not compute what it has to");
        return Ok(());
    }
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
