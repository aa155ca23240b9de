//! What the rest of the world can load: a run's model as a directory of its own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use firesight_vlm::{QwenVl, SaveOptions};

use crate::Error;
use crate::checkpoint;
use crate::config::{Data, RunConfig};
use crate::device::device;
use crate::files::{io, write_atomically};
use crate::job::Base;
use crate::outcome::Outcome;
use crate::run_directory::{CHECKPOINTS, CONFIG, OUTCOME, version};

/// The file that says what a model is and where it comes from.
const CARD: &str = "README.md";

/// Which of a run's models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The one it ended with; of a run that has not ended, its latest checkpoint.
    Last,
    /// The one with the highest held-out accuracy, as far as the run kept it.
    Best,
    /// The one before reinforcement learning.
    WarmUp,
}

/// Writes a model of the run in `run` to the directory `target`: weights with published names, adapters merged, the files
/// that the run's model came with, and a model card. Returns what was exported, in words.
///
/// # Errors
/// [`Error::NoRun`] when `run` is no run directory, [`Error::NoModel`] when it has no such model (yet); when `target`
/// holds anything already, or a file cannot be read or written.
pub fn export(run: &Path, target: &Path, which: Which, options: SaveOptions) -> Result<String, Error> {
    let path = run.join(CONFIG);
    if !path.is_file() {
        return Err(Error::NoRun { path: run.into() });
    }
    let text = std::fs::read_to_string(&path).map_err(|source| io(&path, source))?;
    let config = RunConfig::from_toml(&text, &path)?;
    let outcome = Outcome::read(&run.join(OUTCOME), run)?;
    let (from, what) = origin(run, which)?;
    // Nothing is computed: where there is a CPU backend, the device of the run need not be there.
    let device = device("flex").or_else(|_| device(&config.device))?;
    match from {
        From::Model(model) => QwenVl::from_dir(&model, &device)?.save(target, &model, options)?,
        From::Checkpoint(newest) => {
            let begun = Base::on(device, &config)?.policy(&config.trainable, config.seed)?;
            checkpoint::load(&newest, begun, &config)?.policy.model.save(target, &config.model, options)?;
        }
    }
    let card = card(&config, &text, outcome.as_ref().filter(|_| which == Which::Last), &what);
    write_atomically(&target.join(CARD), card.as_bytes())?;
    Ok(what)
}

/// Where a model is.
enum From {
    Model(PathBuf),
    Checkpoint(PathBuf),
}

fn origin(run: &Path, which: Which) -> Result<(From, String), Error> {
    let model = |name: &str, what: &str| {
        let path = run.join(name);
        path.is_dir().then(|| (From::Model(path), what.to_owned()))
    };
    let found = match which {
        Which::Best => model("best", "the policy with the highest held-out accuracy"),
        Which::WarmUp => model("warm-up", "the policy before reinforcement learning"),
        Which::Last => model("model", "the policy that the run ended with"),
    };
    let latest = || {
        let newest = checkpoint::list(&run.join(CHECKPOINTS))?.pop().filter(|_| which == Which::Last);
        let newest = newest.ok_or_else(|| Error::NoModel { path: run.into() })?;
        let position = checkpoint::position(&newest)?;
        let (supervised, reinforcement) = (position.supervised.steps, position.reinforcement.steps);
        let what = format!("a checkpoint after {supervised} supervised and {reinforcement} reinforcement steps");
        Ok((From::Checkpoint(newest), what))
    };
    found.map_or_else(latest, Ok)
}

fn card(config: &RunConfig, text: &str, outcome: Option<&Outcome>, what: &str) -> String {
    let base = config.model.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let data = match &config.data {
        Data::Charts(_) => "the built-in task of firesight (charts of public statistics, handwritten digits)".into(),
        Data::Files(files) => {
            let names: Vec<String> = files.train.iter().map(|path| format!("`{}`", path.display())).collect();
            names.join(", ")
        }
    };
    let version = version(text).unwrap_or("unknown");
    let mut card = format!(
        "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\nbase_model: {base:?}\ntags:\n- firesight\n\
         - reinforcement-learning\n---\n\n# {}\n\n{base}, trained with firesight {version}, for reinforcement learning with \
         verifiable rewards. These are the weights of {what}.\n\n\
         | | |\n|---|---|\n| base model | `{}` |\n| data | {data} |\n| seed | {} |\n| credit | {} |\n",
        config.name,
        config.model.display(),
        config.seed,
        config.reinforcement.credit.name(),
    );
    if let Some(lora) = &config.trainable.lora {
        let _ = writeln!(card, "| adapters | rank {}, merged into the weights |", lora.rank);
    }
    if let Some(outcome) = outcome {
        let _ = writeln!(
            card,
            "\n## Held-out accuracy\n\n{} questions, greedy answers, 95 % intervals.\n\n| | with picture | blind |\n\
             |---|---|---|",
            outcome.questions
        );
        let mut row = |name: &str, measured: &crate::held_out::HeldOutAccuracy| {
            let shown = |found: firesight_rl::Estimate| {
                let percent = |share: f64| format!("{:.1}", 100.0 * share);
                format!("{} % ({} to {})", percent(found.mean), percent(found.low), percent(found.high))
            };
            let _ = writeln!(card, "| {name} | {} | {} |", shown(measured.sighted.accuracy), shown(measured.blind));
        };
        row("before", &outcome.before);
        if outcome.supervised_cost.0 > 0 {
            row("after the warm-up", &outcome.supervised);
        }
        if outcome.reinforcement_cost.0 > 0 {
            row("after reinforcement learning", &outcome.reinforcement);
        }
    }
    let _ = write!(
        card,
        "\n## Use and limits\n\nFor research on the task that it was trained for; nothing was done to make it safe or \
         useful beyond that. The licence of the base model and of the data apply.\n\n## Configuration\n\n```toml\n{text}```\n"
    );
    card
}
