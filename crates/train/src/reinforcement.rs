//! Learning from the verifiable reward alone.

use firesight_kawhi::Kawhi;
use firesight_rl::{CreditAssigner, Options, Sampling, StepReport, Trainer, Uniform};

use crate::Error;
use crate::config::{CreditConfig, RunConfig};
use crate::examples::{ChartTask, Purpose};
use crate::job::{HeldOut, Job};
use crate::policy::{VlmPolicy, VlmPrompt};
use crate::progress::{Field, Progress};
use crate::run_directory::RunDirectory;
use crate::samples::write_samples;
use crate::supervised::optimizer;

/// Prompts that are sampled together. A constant, so that it never decides a result.
const SAMPLING_BATCH: usize = 16;
const MAX_GRADIENT_NORM: f32 = 1.0;

/// Trains `policy` by rollouts and rewards.
///
/// # Errors
/// When the model, the credit assigner or the trainer fails, or the run directory cannot be written.
pub fn reinforcement(
    policy: VlmPolicy,
    config: &RunConfig,
    job: &Job,
    held_out: &HeldOut,
    run: &mut RunDirectory,
    progress: &mut Progress,
) -> Result<VlmPolicy, Error> {
    let settings = &config.reinforcement;
    let options = Options {
        group_size: settings.group_size,
        sampling: Sampling {
            temperature: settings.temperature,
            max_tokens: settings.max_tokens,
            seed: config.seed,
            first_stream: 0,
        },
        prompts_per_sampling_batch: SAMPLING_BATCH,
        groups_per_micro_batch: settings.micro_batch,
        mini_batches: settings.mini_batches,
        passes_per_rollout: 1,
        max_gradient_norm: Some(MAX_GRADIENT_NORM),
        threads: config.threads,
    };
    let credit = credit(&settings.credit, &policy)?;
    let algorithm = settings.algorithm.algorithm(settings.max_tokens);
    let mut trainer = Trainer::new(policy, optimizer(settings.weight_decay), algorithm, credit, options)?;
    progress.phase("reinforcement", settings.steps);
    let mut accuracy = None;
    for step in 0..settings.steps {
        let samples = job.questions.batch(Purpose::Reinforcement, step * settings.prompts, settings.prompts)?;
        let learning_rate = settings.schedule.at(step, settings.steps);
        let report = trainer.step(&ChartTask, &samples, learning_rate)?;
        let mut metrics = report.metrics.clone();
        metrics.push(("learning_rate".into(), learning_rate));
        metrics.extend(peak_memory().map(|bytes| ("memory/peak_bytes".into(), bytes)));
        let evaluate = config.evaluation.every > 0 && (step + 1) % config.evaluation.every == 0;
        if evaluate && step + 1 < settings.steps {
            accuracy = Some(held_out.accuracy(&trainer.policy)?);
            metrics.extend(accuracy.map(|accuracy| ("eval/accuracy".into(), accuracy)));
        }
        run.metrics("reinforcement", step + 1, &metrics)?;
        let metric = |name: &str| metrics.iter().find(|(found, _)| found == name).map(|&(_, value)| value);
        progress.step(&[
            Field::maybe("reward", metric("reward/mean")),
            Field::maybe("entropy", metric("entropy/mean")),
            Field::maybe("accuracy", accuracy),
        ]);
        if step == 0 || step + 1 == settings.steps {
            write_samples(run, step + 1, &samples, &report, config.evaluation.samples)?;
        }
    }
    progress.finish();
    Ok(trainer.policy)
}

fn credit(config: &CreditConfig, policy: &VlmPolicy) -> Result<Box<dyn CreditAssigner<VlmPrompt> + Send>, Error> {
    Ok(match config {
        CreditConfig::Uniform {} => Box::new(Uniform),
        CreditConfig::Kawhi(kawhi) => {
            let processor = policy.processor().clone();
            // Decoding skips special tokens, so the end of the turn is no paragraph of its own.
            let text = move |id: u32| processor.tokenizer().decode(&[id]).unwrap_or_default();
            Box::new(Kawhi::new(kawhi.clone(), text)?)
        }
    })
}

/// Largest resident memory of the process so far, where the operating system tells.
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes * 1024.0)
}

/// What [`write_samples`] gets of a step.
pub(crate) type Report = StepReport<VlmPrompt>;
