use serde::{Deserialize, Serialize};

use super::GroupFilter;
use crate::{Error, Reward};

/// The fidelity gate of PEARL (arXiv 2511.18437): who does not see right does not learn to reason. With R the mean over a
/// group of the share of a perception checklist that is right, the group is dropped where R is zero, and its advantages
/// are multiplied by min(R, cap) elsewhere.
///
/// The checklist is a part of the reward, say of a program that knows the facts; at weight zero it is the gate and nothing
/// else. A group of which it abstains keeps its advantages. The paper asks for the checklist in rollouts of their own,
/// which are trained on with weight 0.1. The formulas are known to us second-hand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pearl {
    /// Name of the part of the reward: the share, from 0 to 1, that is right.
    pub checklist: String,
    /// Largest factor.
    #[serde(default = "half")]
    pub cap: f32,
}

/// The paper's.
fn half() -> f32 {
    0.5
}

impl GroupFilter for Pearl {
    fn factor(&self, rewards: &[Reward]) -> Result<f32, Error> {
        let parts = || rewards.iter().flat_map(|reward| &reward.parts).filter(|part| part.name == self.checklist);
        // A reward that abstains as a whole has no parts.
        if parts().next().is_none() && rewards.iter().any(|reward| !reward.parts.is_empty()) {
            let reason = "no reward has a part of this name";
            return Err(Error::Setting { setting: "filters.pearl.checklist", value: self.checklist.clone(), reason });
        }
        let values = || parts().filter_map(|part| part.value);
        match values().count() {
            0 => Ok(1.0),
            count => Ok((values().sum::<f32>() / count as f32).clamp(0.0, self.cap)),
        }
    }

    fn check(&self) -> Result<(), Error> {
        Error::unless_share("filters.pearl.cap", self.cap)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::Pearl;
    use crate::{Error, GroupFilter as _, Reward};

    fn factor(checklists: &[Option<f32>]) -> Result<f32, Error> {
        let reward = |share: &Option<f32>| Reward::of("right", 1.0).and("facts", *share, 0.0);
        let rewards: Vec<Reward> = checklists.iter().map(reward).collect();
        Pearl { checklist: "facts".into(), cap: 0.5 }.factor(&rewards)
    }

    #[test]
    fn the_gate_is_the_mean_of_the_checklists_up_to_a_half() {
        // Hits (1, 1), (1, 0), (0, 0), (1, 1), (0, 1).
        assert_eq!(factor(&[1.0, 0.5, 0.0, 1.0, 0.5].map(Some)).unwrap(), 0.5);
        assert_eq!(factor(&[Some(0.0); 5]).unwrap(), 0.0);
        assert_eq!(factor(&[Some(0.4), Some(0.0)]).unwrap(), 0.2);
        // Who abstains takes no part, and a group of them is left alone.
        assert_eq!(factor(&[Some(0.4), None]).unwrap(), 0.4);
        assert_eq!(factor(&[None, None]).unwrap(), 1.0);
    }

    #[test]
    fn a_checklist_that_no_reward_has_is_an_error() {
        let gate = Pearl { checklist: "seen".into(), cap: 0.5 };
        let error = gate.factor(&[Reward::of("right", 1.0)]).unwrap_err().to_string();
        assert_eq!(error, "filters.pearl.checklist is seen: no reward has a part of this name");
        assert_eq!(gate.factor(&[Reward::abstain()]).unwrap(), 1.0);
    }
}
