use std::collections::BTreeMap;
use std::time::Duration;

use crate::advantage::mean;
use crate::{Bound, Deviation, Group, Positions, Reward, Rollout, TokenCredit};

/// Names and values in the order they are written.
pub type Metrics = Vec<(String, f64)>;

/// Wall-clock time of the parts of a step. They add up to the step but for bookkeeping.
///
/// Inside the update, forward and backward passes of several threads overlap; the time of the phase is divided between
/// `score` and `update` in the proportion of the time the threads spent on each. So is sampling between `sample` and
/// `credit`. On devices that run asynchronously a forward pass only queues work, so there most of the phase reads as
/// `update`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// Drawing completions.
    pub sample: Duration,
    /// Grading them.
    pub reward: Duration,
    /// Assigning credit: what is read as completions are drawn, and the passes that nothing else needs, such as those
    /// under a changed view.
    pub credit: Duration,
    /// Forward passes over completions, with and without gradients.
    pub score: Duration,
    /// Loss and backward passes.
    pub update: Duration,
    /// Clipping and optimizer.
    pub optimizer: Duration,
}

/// Sums over the tokens of micro-batches, on the host.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenSums {
    pub(crate) tokens: usize,
    /// Weighted by the aggregation coefficients, so these are sums of the batch's loss.
    pub(crate) policy_loss: f64,
    pub(crate) kl_loss: f64,
    pub(crate) kl: f64,
    pub(crate) entropy: f64,
    pub(crate) ratio: f64,
    pub(crate) ratio_max: f64,
    pub(crate) clipped_low: usize,
    pub(crate) clipped_high: usize,
    pub(crate) credit: f64,
    /// |sampled - scored| log-probability, only of the first update, whose weights are the sampler's.
    pub(crate) difference_tokens: usize,
    pub(crate) difference: f64,
    pub(crate) difference_max: f64,
    /// Token positions of passes with gradients.
    pub(crate) positions: Positions,
    /// Time a thread spent in the forward pass, and in all of the micro-batch.
    pub(crate) forward: Duration,
    pub(crate) busy: Duration,
}

impl TokenSums {
    pub(crate) fn count_clip(&mut self, bound: Option<Bound>) {
        match bound {
            Some(Bound::Low) => self.clipped_low += 1,
            Some(Bound::High) => self.clipped_high += 1,
            None => {}
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.policy_loss += other.policy_loss;
        self.kl_loss += other.kl_loss;
        self.kl += other.kl;
        self.entropy += other.entropy;
        self.ratio += other.ratio;
        self.ratio_max = self.ratio_max.max(other.ratio_max);
        self.clipped_low += other.clipped_low;
        self.clipped_high += other.clipped_high;
        self.credit += other.credit;
        self.difference_tokens += other.difference_tokens;
        self.difference += other.difference;
        self.difference_max = self.difference_max.max(other.difference_max);
        self.positions.used += other.positions.used;
        self.positions.padding += other.positions.padding;
        self.forward += other.forward;
        self.busy += other.busy;
    }
}

/// What is known of a batch before any update: rewards, lengths, advantages.
pub(crate) fn batch_metrics<P>(rollout: &Rollout<P>, advantages: &[Vec<f32>]) -> Metrics {
    let Rollout { groups, drawn, .. } = rollout;
    let own = || groups.iter().flat_map(Group::drawn);
    let rewards = || own().map(|(_, reward)| reward);
    let totals = || rewards().filter_map(Reward::total).map(f64::from);
    let completions = || own().map(|(completion, _)| completion);
    let mut parts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for part in rewards().flat_map(|reward| &reward.parts) {
        parts.entry(&part.name).or_default().extend(part.value.map(f64::from));
    }
    let advantages = || advantages.iter().flatten().map(|&advantage| f64::from(advantage));
    let experts = groups.iter().flat_map(|group| &group.completions).filter(|completion| completion.expert).count();

    let mut metrics =
        vec![("reward/mean".into(), mean(totals())), ("reward/std".into(), Deviation::Sample.of(totals()))];
    let known = parts.into_iter().filter(|(_, values)| !values.is_empty());
    metrics.extend(known.map(|(name, values)| (format!("reward/{name}"), mean(values.into_iter()))));
    let abstained = rewards().count() - totals().count();
    if abstained > 0 {
        metrics.push(("reward/abstained_fraction".into(), abstained as f64 / rewards().count() as f64));
    }
    let equal = groups.iter().filter(|group| group.rewards_are_equal()).count();
    metrics.push(("reward/zero_std_fraction".into(), equal as f64 / groups.len().max(1) as f64));
    if *drawn > groups.len() {
        metrics.push(("rollout/dropped_fraction".into(), (drawn - groups.len()) as f64 / *drawn as f64));
    }
    if experts > 0 {
        metrics.push(("rollout/experts".into(), experts as f64));
    }
    metrics.extend([
        ("advantage/min".into(), advantages().reduce(f64::min).unwrap_or(0.0)),
        ("advantage/max".into(), advantages().reduce(f64::max).unwrap_or(0.0)),
        ("completion/length_mean".into(), mean(completions().map(|completion| completion.tokens.len() as f64))),
        (
            "completion/truncated_fraction".into(),
            mean(completions().map(|completion| f64::from(u8::from(completion.truncated)))),
        ),
    ]);
    metrics
}

/// What the updates of a batch did. Losses and norms are means over the optimizer steps, everything else is a mean
/// over tokens; without an optimizer step there is nothing to tell but the number of steps.
pub(crate) fn update_metrics(sums: &TokenSums, norms: &[f64], kl: bool, credit: &[Vec<TokenCredit>]) -> Metrics {
    let steps = norms.len() as f64;
    let mut metrics = vec![("update/optimizer_steps".into(), steps)];
    if norms.is_empty() {
        return metrics;
    }
    let tokens = sums.tokens.max(1) as f64;
    metrics.push(("loss/policy".into(), sums.policy_loss / steps));
    if kl {
        metrics.push(("loss/kl".into(), sums.kl_loss / steps));
        metrics.push(("kl/mean".into(), sums.kl / tokens));
    }
    metrics.extend([
        ("entropy/mean".into(), sums.entropy / tokens),
        ("clip/low_fraction".into(), sums.clipped_low as f64 / tokens),
        ("clip/high_fraction".into(), sums.clipped_high as f64 / tokens),
        ("ratio/mean".into(), sums.ratio / tokens),
        ("ratio/max".into(), sums.ratio_max),
        ("grad/norm".into(), mean(norms.iter().copied())),
        ("credit/weight_mean".into(), sums.credit / tokens),
    ]);
    let segments: Vec<f64> =
        credit.iter().flatten().filter_map(|credit| Some(credit.evidence.as_ref()?.segments.len() as f64)).collect();
    if !segments.is_empty() {
        metrics.push(("credit/paragraphs_mean".into(), mean(segments.into_iter())));
    }
    let computed = sums.positions.used + sums.positions.padding;
    if computed > 0 {
        metrics.push(("tokens/padding_fraction".into(), sums.positions.padding as f64 / computed as f64));
    }
    metrics.extend([
        ("rollout/log_prob_diff_max".into(), sums.difference_max),
        ("rollout/log_prob_diff_mean".into(), sums.difference / sums.difference_tokens.max(1) as f64),
    ]);
    metrics
}

/// Seconds and rates. Rates are left out where nothing was done.
pub(crate) fn timing_metrics(timing: Timing, step: Duration, generated: usize, trained: usize) -> Metrics {
    let mut metrics: Metrics = [
        ("time/sample_s", timing.sample),
        ("time/reward_s", timing.reward),
        ("time/credit_s", timing.credit),
        ("time/score_s", timing.score),
        ("time/update_s", timing.update),
        ("time/optimizer_s", timing.optimizer),
        ("time/step_s", step),
    ]
    .map(|(name, duration)| (name.into(), duration.as_secs_f64()))
    .into();
    let rates = [
        ("tokens/generated_per_s", generated, timing.sample),
        ("tokens/trained_per_s", trained, timing.score + timing.update + timing.optimizer),
    ];
    for (name, tokens, duration) in rates {
        if tokens > 0 && !duration.is_zero() {
            metrics.push((name.into(), tokens as f64 / duration.as_secs_f64()));
        }
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::batch_metrics;
    use crate::{Completion, Group, Reward, Rollout, Timing};

    #[test]
    fn rewards_and_lengths_of_two_groups() {
        let group = |totals: [f32; 2]| Group {
            prompt: (),
            completions: [1, 3]
                .map(|length| Completion { tokens: vec![0; length], truncated: length == 3, ..Completion::default() })
                .into(),
            rewards: totals.map(|total| Reward::of("right", total).and("format", Some(total * 2.0), 0.0)).into(),
        };
        let mut groups = vec![group([1.0, 1.0]), group([0.0, 1.0])];
        let rollout = |groups| Rollout { groups, drawn: 3, failures: Vec::new(), timing: Timing::default() };
        let advantages = [vec![0.0, 0.0], vec![-0.7, 0.7]];
        let metrics = batch_metrics(&rollout(groups.clone()), &advantages);
        let find = |name: &str| metrics.iter().find(|(found, _)| found == name).map(|&(_, value)| value);
        assert_eq!(find("reward/mean"), Some(0.75));
        // Squared deviations 3/16 + 9/16 over 3.
        assert_eq!(find("reward/std"), Some(0.5));
        assert_eq!(find("reward/right"), Some(0.75));
        assert_eq!(find("reward/format"), Some(1.5));
        assert_eq!(find("reward/abstained_fraction"), None);
        assert_eq!(find("reward/zero_std_fraction"), Some(0.5));
        assert_eq!(find("rollout/dropped_fraction"), Some(1.0 / 3.0));
        assert_eq!(find("completion/length_mean"), Some(2.0));
        assert_eq!(find("completion/truncated_fraction"), Some(0.5));
        assert_eq!(find("advantage/max"), Some(f64::from(0.7f32)));

        // Who abstains moves no mean; of one reward there is nothing to compare.
        groups[1].rewards[0] = Reward::abstain();
        let metrics = batch_metrics(&rollout(groups), &advantages);
        let find = |name: &str| metrics.iter().find(|(found, _)| found == name).map(|&(_, value)| value);
        assert_eq!(find("reward/mean"), Some(1.0));
        assert_eq!(find("reward/abstained_fraction"), Some(0.25));
        assert_eq!(find("reward/zero_std_fraction"), Some(1.0));
    }
}
