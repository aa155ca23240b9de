//! Answers that go beyond a trained model.

use std::path::PathBuf;

use clap::Args;
use firesight_train::ExtrapolationConfig;

#[derive(Debug, Args)]
pub(crate) struct Extrapolation {
    /// Directory of the model that training began with: answers go on from it in the direction of training, beyond the
    /// trained model (delta-log-p, arXiv 2603.22117). Every token takes both models.
    #[arg(long)]
    base: Option<PathBuf>,
    /// How far beyond the trained model; 0 is that model itself.
    #[arg(long, default_value_t = 0.5, requires = "base", value_parser = not_negative)]
    gamma: f32,
    /// Where the trained model differs from the base by less than this, in nats, it answers alone.
    #[arg(long, default_value_t = 0.0, requires = "base", value_parser = not_negative)]
    threshold: f32,
}

fn not_negative(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(value) if (0.0..f32::INFINITY).contains(&value) => Ok(value),
        _ => Err("a number not below 0".into()),
    }
}

impl Extrapolation {
    /// Nothing without a base.
    pub(crate) fn config(&self) -> Option<ExtrapolationConfig> {
        let Self { base, gamma, threshold } = self;
        base.clone().map(|base| ExtrapolationConfig { base, gamma: *gamma, threshold: *threshold })
    }
}
