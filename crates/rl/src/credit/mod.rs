//! How the advantage of a completion is split over its tokens: the published methods, one file each, behind one seam.

mod list;
mod min_max;
#[cfg(test)]
mod testing;

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub(crate) use list::offered;
pub use list::{CreditList, assign_from_signals};

use crate::{Completion, Error, Group, SignalSet, Signals, View};

/// Splits the advantage of a completion over its tokens.
///
/// A method names the signals it wants and reads them; it never sees the model. It works in two halves, because states
/// are too large to keep while weights may compare the completions of a whole rollout: [`Self::reduce`] makes numbers
/// of states as soon as the pass that has them is over, [`Self::assign`] weights of the numbers. Methods that read
/// numbers alone have the second half only.
///
/// Weights are finite and not below zero, so that the sign of an advantage stays what it is.
pub trait CreditAssigner<P>: Sync {
    /// Its name, in errors and tables.
    fn name(&self) -> &str;

    /// What it needs to see of completions of these prompts. Of no prompts, what it needs whatever they are.
    ///
    /// # Errors
    /// When a prompt is nothing the method can work with.
    fn signals(&self, _prompts: &[&P]) -> Result<SignalSet, Error> {
        Ok(SignalSet::default())
    }

    /// Makes numbers of the states that were asked for, for every completion, those of all groups one after another;
    /// nothing at all unless it reads states.
    ///
    /// # Errors
    /// When a signal is missing or has another shape than the groups.
    fn reduce(&self, _groups: &[Group<P>], _signals: &Signals) -> Result<Vec<Evidence>, Error> {
        Ok(Vec::new())
    }

    /// Tokens of a completion without which the others are to be scored once more, see [`CreditInput::without`]; that
    /// takes a forward pass over completions that have such tokens.
    fn omission(&self, _completion: &CreditInput<'_, P>) -> Option<Range<usize>> {
        None
    }

    /// The weights of every completion of a rollout that is trained on.
    ///
    /// # Errors
    /// When a signal is missing or has another shape than the completions.
    fn assign(&self, rollout: &CreditBatch<'_, P>) -> Result<Vec<TokenCredit>, Error>;

    /// Refuses settings that mean nothing.
    ///
    /// # Errors
    /// [`Error::Setting`] names the first.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// The completions that credit is assigned to at a time: all that are trained on of a rollout, whatever it is cut into
/// afterwards.
#[derive(Debug)]
pub struct CreditBatch<'a, P> {
    /// The completions, those of a group one after another.
    pub completions: Vec<CreditInput<'a, P>>,
    /// Seed of what is left to chance.
    pub seed: u64,
    /// Number of the rollout, from 0.
    pub step: u64,
}

/// A completion as credit methods see it.
#[derive(Debug)]
pub struct CreditInput<'a, P> {
    /// Its prompt.
    pub prompt: &'a P,
    /// Number of its group in the rollout.
    pub group: usize,
    /// The tokens, and their log-probabilities under the policy that drew them.
    pub completion: &'a Completion,
    /// What its tokens would have without credit.
    pub advantage: f32,
    /// See [`SignalSet::entropy`]; empty unless asked for.
    pub entropy: &'a [f32],
    /// See [`SignalSet::top_p_entropy`]; empty unless asked for.
    pub top_p_entropy: &'a [f32],
    /// What this method's [`CreditAssigner::reduce`] made of it.
    pub evidence: Option<&'a Evidence>,
    /// See [`SignalSet::texts`]; empty unless asked for.
    pub texts: &'a [Arc<str>],
    /// See [`SignalSet::views`].
    pub(crate) views: &'a [(View, Vec<Vec<f32>>)],
    /// Log-probability of each token where the tokens of this method's [`CreditAssigner::omission`] are left out of what
    /// stands before it; of those tokens themselves, what it was when they were drawn. `None` without an omission.
    pub without: Option<&'a [f32]>,
    /// Number of the completion among all in the batch.
    pub(crate) row: usize,
}

impl<'a, P> CreditInput<'a, P> {
    /// One of which nothing is known yet.
    pub(crate) fn of(prompt: &'a P, group: usize, completion: &'a Completion) -> Self {
        Self {
            prompt,
            group,
            completion,
            advantage: 0.0,
            entropy: &[],
            top_p_entropy: &[],
            evidence: None,
            texts: &[],
            views: &[],
            without: None,
            row: 0,
        }
    }

    /// Log-probability of each token behind the prompt under a view.
    ///
    /// # Errors
    /// [`Error::MissingSignal`] when the view was not asked for.
    pub fn under(&self, view: &View) -> Result<&[f32], Error> {
        let found = self.views.iter().find(|(known, _)| known == view);
        let missing = || Error::MissingSignal { signal: format!("log-probabilities under the view {view}") };
        found.map(|(_, rows)| rows[self.row].as_slice()).ok_or_else(missing)
    }
}

/// How the advantage of a completion is split over its tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenCredit {
    /// For every token the factor of the advantage.
    pub weights: Vec<f32>,
    /// The tokens that means of the loss are taken over, for methods that leave the others out altogether; `None` is
    /// all, also where a weight is zero.
    pub kept: Option<Vec<bool>>,
    /// What the weights were made of, for those who want to look; methods that look at nothing have none.
    pub evidence: Option<Evidence>,
}

/// What was seen of a completion in the passes that drew it, for credit to be assigned by.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// See [`SignalSet::entropy`]; empty unless asked for.
    pub entropy: Vec<f32>,
    /// See [`SignalSet::top_p_entropy`]; empty unless asked for.
    pub top_p_entropy: Vec<f32>,
    /// For each credit method what its [`CreditAssigner::reduce`] made of states.
    pub evidence: Vec<Option<Evidence>>,
}

/// What a method went by.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evidence {
    /// Ranges of tokens that have one weight each; they partition the completion.
    pub segments: Vec<Range<usize>>,
    /// How closely each token attends to the visual tokens, or depends on them; empty where there are none.
    pub alignment: Vec<f32>,
    /// The visual tokens that the completion was compared with, in the order of the prompt.
    pub visual_tokens: Arc<[usize]>,
}

impl Evidence {
    /// A number a token.
    fn by_token(alignment: Vec<f32>, visual_tokens: Arc<[usize]>) -> Self {
        Self { segments: (0..alignment.len()).map(|token| token..token + 1).collect(), alignment, visual_tokens }
    }
}

impl From<Vec<f32>> for TokenCredit {
    fn from(weights: Vec<f32>) -> Self {
        Self { weights, ..Self::default() }
    }
}

macro_rules! forward_to_contents {
    ($($pointer:ident),*) => {$(
        impl<P, C: CreditAssigner<P> + Send + ?Sized> CreditAssigner<P> for $pointer<C> {
            fn name(&self) -> &str {
                (**self).name()
            }

            fn signals(&self, prompts: &[&P]) -> Result<SignalSet, Error> {
                (**self).signals(prompts)
            }

            fn reduce(&self, groups: &[Group<P>], signals: &Signals) -> Result<Vec<Evidence>, Error> {
                (**self).reduce(groups, signals)
            }

            fn omission(&self, completion: &CreditInput<'_, P>) -> Option<Range<usize>> {
                (**self).omission(completion)
            }

            fn assign(&self, rollout: &CreditBatch<'_, P>) -> Result<Vec<TokenCredit>, Error> {
                (**self).assign(rollout)
            }

            fn check(&self) -> Result<(), Error> {
                (**self).check()
            }
        }
    )*};
}

forward_to_contents!(Box, Arc);

/// Makes a module and a row of every method; the types of its settings come in braces.
macro_rules! methods {
    ($($(#[$what:meta])* $file:ident: $name:ident $({ $($setting:ident),+ })?),+ $(,)?) => {
        $(mod $file; pub use $file::{$name $(, $($setting),+)?};)+

        /// The credit methods of this crate with their settings. In a file: `{ name = "vppo", share = 0.4 }`.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "name", rename_all = "snake_case")]
        pub enum CreditMethod {
            $($(#[$what])* $name($name),)+
        }

        impl CreditMethod {
            /// Every method with the settings of its paper, by name.
            #[must_use]
            pub fn presets() -> Vec<(&'static str, Self)> {
                vec![$((stringify!($file), Self::$name($name::default()))),+]
            }

            /// Its name in files.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($file)),+ }
            }

            /// The method at work.
            #[must_use]
            pub fn assigner<P>(&self) -> Box<dyn CreditAssigner<P> + Send> {
                match self { $(Self::$name(method) => Box::new(method.clone())),+ }
            }
        }
    };
}

methods! {
    /// Every token gets the whole advantage.
    uniform: Uniform,
    /// The tokens of the highest entropy alone.
    ft_rl: FtRl,
    /// Unlikely tokens count more.
    delta_log_p: DeltaLogP,
    /// Tokens of high entropy, and those that depend on the image.
    tor: Tor,
    /// The tokens that depend most on the image, and completions that depend on it.
    vppo: Vppo,
    /// Tokens, and completions, whose states look like the image's.
    vgpo: Vgpo { Compensation, Focus },
    /// Perception against a changed image, reasoning against a response without its perception.
    srpo: Srpo { Perception },
}
