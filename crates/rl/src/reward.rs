use serde::{Deserialize, Serialize};

/// What a verifier says of one completion: named parts, whose weighted sum is optimised.
///
/// ```
/// # use firesight_rl::Reward;
/// let reward = Reward::of("accuracy", 1.0).and("brevity", Some(0.5), 0.2).and("format", Some(1.0), 0.0);
/// assert_eq!(reward.total(), Some(1.1));
/// assert_eq!(Reward::abstain().total(), None);
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reward {
    /// The parts, in the same order for every completion of a batch where an estimator tells them apart.
    pub parts: Vec<RewardPart>,
}

/// One of the things that a completion is rewarded for.
#[derive(Debug, Clone, PartialEq)]
pub struct RewardPart {
    /// Its name in the log.
    pub name: String,
    /// Its value; `None` abstains, as a reward that does not apply to the sample has to.
    pub value: Option<f32>,
    /// Its factor in the sum. A part of weight zero is logged and has no other effect.
    pub weight: f32,
}

impl Reward {
    /// A reward of one part, of weight one.
    #[must_use]
    pub fn of(name: impl Into<String>, value: f32) -> Self {
        Self::abstain().and(name, Some(value), 1.0)
    }

    /// No opinion: the completion takes no part in the baseline of its group, and its advantage is zero.
    #[must_use]
    pub fn abstain() -> Self {
        Self::default()
    }

    /// The same with one part more.
    #[must_use]
    pub fn and(mut self, name: impl Into<String>, value: Option<f32>, weight: f32) -> Self {
        self.parts.push(RewardPart { name: name.into(), value, weight });
        self
    }

    /// The weighted sum of the parts that do not abstain; `None` when all of them do.
    #[must_use]
    pub fn total(&self) -> Option<f32> {
        let weighted = self.parts.iter().filter(|part| part.weight != 0.0);
        weighted.filter_map(|part| Some(part.value? * part.weight)).reduce(|sum, value| sum + value)
    }

    /// Whether the completion is right: what the first part says is above one half.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.parts.first().and_then(|part| part.value).is_some_and(|value| value > 0.5)
    }
}

/// The soft overlong punishment of DAPO (arXiv 2503.14476, eq. 13): nothing up to `max_tokens - buffer`, then falling
/// linearly to -1 at `max_tokens`, and -1 beyond.
///
/// The paper has `max_tokens` 20,480 with a buffer of 4,096, and weight 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlong {
    /// Length in tokens from which the punishment is whole.
    pub max_tokens: usize,
    /// Tokens before `max_tokens` over which it grows.
    pub buffer: usize,
    /// Its factor in the reward.
    pub weight: f32,
}

impl Overlong {
    /// The value for a completion of `length` tokens, before the weight.
    #[must_use]
    pub fn punishment(&self, length: usize) -> f32 {
        let over = (length + self.buffer).saturating_sub(self.max_tokens);
        -(over.min(self.buffer) as f32 / self.buffer.max(1) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::{Overlong, Reward};

    #[test]
    fn parts_that_abstain_or_weigh_nothing_are_left_out_of_the_sum() {
        let reward = Reward::of("a", 0.5).and("b", None, 2.0).and("c", Some(3.0), 0.0).and("d", Some(-1.0), 0.25);
        assert_eq!(reward.total(), Some(0.25));
        assert_eq!(Reward::abstain().and("c", Some(3.0), 0.0).total(), None);
        assert_eq!(Reward::abstain().and("b", None, 1.0).total(), None);
    }

    #[test]
    fn the_punishment_of_length_is_a_ramp() {
        let overlong = Overlong { max_tokens: 20, buffer: 4, weight: 1.0 };
        let found = [0, 16, 17, 18, 20, 25].map(|length| overlong.punishment(length));
        assert_eq!(found, [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]);
    }
}
