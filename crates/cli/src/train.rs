//! `firesight train` and `firesight sft`.

use std::path::PathBuf;

use clap::Args;
use firesight_train::{Destination, Ending, Error, RunConfig, Stop};
use serde_json::json;

use crate::configuration::Configuration;
use crate::output::Output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    configuration: Configuration,
    /// Run directory; must not hold anything yet [default: one under runs, named after the run].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Goes on with the run in the run directory; if none was begun there, one begins.
    #[arg(long, requires = "out")]
    resume: bool,
}

pub(crate) fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let config = arguments.configuration.read()?;
    train(arguments, &config, "train", output)
}

pub(crate) fn sft(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let mut config = arguments.configuration.read()?;
    if config.supervised.max_steps == 0 {
        let (path, problem) = (arguments.configuration.config, "is 0; there is nothing to learn".into());
        return Err(Error::Config { path, key: "supervised.max_steps", problem }.into());
    }
    config.reinforcement.steps = 0;
    train(arguments, &config, "sft", output)
}

fn train(arguments: Arguments, config: &RunConfig, command: &str, output: Output) -> anyhow::Result<()> {
    let Arguments { configuration, out, resume } = arguments;
    let (set, path) = (configuration.overrides(), configuration.config);
    let destination = Destination::of(out, resume);
    match firesight_train::run(config, &destination, &Stop::on_signals()?, &mut output.progress())? {
        Ending::Complete(outcome) => {
            let found = json!({ "complete": true, "directory": outcome.directory, "outcome": outcome });
            output.result(&found, outcome.table())
        }
        Ending::Stopped { directory } => {
            let set = set.iter().fold(String::new(), |said, set| said + " --set " + &quoted(set));
            let [path, out] = [&path, &directory].map(|path| quoted(&path.display().to_string()));
            let again = format!("firesight {command} {path}{set} --out {out} --resume");
            let found = json!({ "complete": false, "directory": directory, "resume": again });
            output.result(&found, format!("stopped; to go on: {again}"))
        }
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_./=,:+@%".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_word_stays_one_in_a_shell() {
        for (word, expected) in [("a/b.toml", "a/b.toml"), ("", "''"), ("a b", "'a b'"), ("it's", r"'it'\''s'")] {
            assert_eq!(quoted(word), expected);
        }
    }
}
