//! Learning from the verifiable reward alone.

use std::time::Instant;

use firesight_kawhi::Kawhi;
use firesight_rl::{
    CreditAssigner, Error as TrainerError, Group, Options, Reward, Sampling, StepReport, Trainer, Uniform,
};

use crate::Error;
use crate::config::{CreditConfig, RunConfig};
use crate::evaluate::Accuracy;
use crate::examples::{ChartTask, Purpose, Question};
use crate::held_out::HeldOut;
use crate::job::Job;
use crate::policy::{VlmPolicy, VlmPrompt};
use crate::progress::{Field, Progress};
use crate::rollouts::{write_failed, write_rollout};
use crate::run_directory::RunDirectory;
use crate::samples::write_samples;
use crate::supervised::optimizer;

/// Prompts that are sampled together. A constant, so that it never decides a result.
const SAMPLING_BATCH: usize = 16;

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
    let mut trainer = trainer(policy, config)?;
    progress.phase("reinforcement", settings.steps);
    let mut accuracy = None;
    for step in 0..settings.steps {
        let samples = job.questions.batch(Purpose::Reinforcement, step * settings.prompts, settings.prompts)?;
        let learning_rate = settings.schedule.at(step, settings.steps);
        let start = Instant::now();
        let rollout = trainer.rollout(&ChartTask, &samples)?;
        let update = match trainer.update(&rollout.groups, learning_rate) {
            Ok(update) => update,
            Err(source) => {
                return Err(keep_failed_update(source, step + 1, &trainer.policy, &samples, &rollout.groups, run)?);
            }
        };
        let report = StepReport::new(rollout, update, start.elapsed());
        let mut metrics = report.metrics.clone();
        metrics.push(("learning_rate".into(), learning_rate));
        let rewards: Vec<f64> = report.groups.iter().map(mean_reward).collect();
        // The overall mean comes first, and the trainer reports that already.
        metrics.extend(Accuracy::of(&samples, &rewards).metrics("reward/mean").into_iter().skip(1));
        metrics.extend(peak_memory().map(|bytes| ("memory/peak_bytes".into(), bytes)));
        let evaluate = config.evaluation.every > 0 && (step + 1) % config.evaluation.every == 0;
        if evaluate && step + 1 < settings.steps {
            metrics.extend(held_out.while_learning(&trainer.policy)?);
        }
        run.metrics("reinforcement", step + 1, &metrics)?;
        let metric = |name: &str| metrics.iter().find(|(found, _)| found == name).map(|&(_, value)| value);
        accuracy = metric("eval/accuracy").or(accuracy);
        progress.step(&[
            Field::maybe("reward", metric("reward/mean")),
            Field::maybe("entropy", metric("entropy/mean")),
            Field::maybe("accuracy", accuracy),
        ]);
        if step == 0 || step + 1 == settings.steps {
            write_samples(run, step + 1, &samples, &report, config.evaluation.samples)?;
        }
        if config.log.writes_rollout(step, settings.steps) {
            write_rollout(run, step + 1, &samples, &report)?;
        }
    }
    progress.finish();
    Ok(trainer.policy)
}

fn trainer(policy: VlmPolicy, config: &RunConfig) -> Result<Trainer<VlmPolicy>, Error> {
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
        reward_failure: settings.reward_failure,
        micro_batch: settings.micro_batch,
        mini_batches: settings.mini_batches,
        passes_per_rollout: settings.passes,
        max_gradient_norm: Some(settings.max_gradient_norm),
        threads: config.threads,
    };
    let credit = credit(&settings.credit, &policy)?;
    let optimizer = optimizer(&policy, settings.weight_decay, settings.weight_decay_on);
    Ok(Trainer::new(policy, optimizer, settings.algorithm.clone(), credit, options)?)
}

/// Writes what an update failed on, and the policy as it was, so that nothing learnt so far is lost; returns the error
/// that says where.
fn keep_failed_update(
    source: TrainerError,
    step: usize,
    policy: &VlmPolicy,
    samples: &[Question],
    groups: &[Group<VlmPrompt>],
    run: &RunDirectory,
) -> Result<Error, Error> {
    let batch = write_failed(run, step, samples, groups)?;
    let policy = run.save_model("model-before-failure", policy)?;
    Ok(Error::Update { step, batch, policy, source })
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

fn mean_reward(group: &Group<VlmPrompt>) -> f64 {
    let totals = || group.rewards.iter().filter_map(Reward::total).map(f64::from);
    totals().sum::<f64>() / totals().count().max(1) as f64
}

/// Largest resident memory of the process so far, where the operating system tells.
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read as _;
    use std::path::Path;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn a_failed_update_leaves_its_batch_and_the_policy_before_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut config = RunConfig::from_file(&root.join("examples/configs/qwen-small.toml")).unwrap();
        config.model = root.join(&config.model);
        config.reinforcement.group_size = 2;
        let scratch = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(&scratch.path().join("run"), &config).unwrap();
        let job = Job::new(&config).unwrap();
        let mut trainer = trainer(job.policy(&config.trainable, 0).unwrap(), &config).unwrap();
        let samples = job.questions.batch(Purpose::Reinforcement, 0, 2).unwrap();
        let mut groups = trainer.rollout(&ChartTask, &samples).unwrap().groups;
        groups[1].rewards[0] = Reward::of("accuracy", f32::NAN);
        let source = trainer.update(&groups, 1e-3).unwrap_err();

        let error = keep_failed_update(source, 12, &trainer.policy, &samples, &groups, &run).unwrap();
        let Error::Update { step: 12, batch, policy, source } = error else { panic!("{error}") };
        assert!(matches!(source, TrainerError::NonFiniteReward { group: 1, completion: 0 }), "{source}");
        let mut text = String::new();
        GzDecoder::new(std::fs::File::open(batch).unwrap()).read_to_string(&mut text).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["completions"][0]["reward"], "NaN");
        assert!(lines[1]["completions"][0]["advantage"].is_null());
        let tokens = serde_json::to_value(&groups[1].completions[0].tokens).unwrap();
        assert_eq!(lines[1]["completions"][0]["tokens"], tokens);
        assert!(run.path().join(lines[0]["image"].as_str().unwrap()).is_file());
        firesight_vlm::QwenVl::from_dir(&policy, &burn::tensor::Device::flex()).unwrap();
    }
}
