use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Cispo, Clip, Fipo, Sapo, Vespo};
use crate::Error;

/// What a surrogate is computed from. Every tensor is `[completions, tokens]`; on padding, log-probabilities and
/// log-ratios are zero and ratios are finite.
#[derive(Debug, Clone)]
pub struct SurrogateInput {
    /// Log-probabilities under the policy being trained; carry gradients.
    pub log_probs: Tensor<2>,
    /// Those minus the log-probabilities under the policy that sampled; carry gradients.
    pub log_ratio: Tensor<2>,
    /// The importance ratio at the level asked for; carries gradients.
    pub ratio: Tensor<2>,
    /// Advantage of the completion times the credit weight of the token.
    pub advantages: Tensor<2>,
}

/// Which bound of a surrogate keeps a token from moving further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The lower one: the token's probability has fallen enough.
    Low,
    /// The upper one: it has risen enough.
    High,
}

/// A surrogate objective: what stands in for the policy gradient away from the sampling policy.
pub trait PolicyLoss: Debug + Send + Sync {
    /// Loss of every token, to be minimised: `[completions, tokens]`. A token whose advantage is zero has loss zero.
    fn token_loss(&self, input: SurrogateInput) -> Tensor<2>;

    /// The bound that holds a token of this ratio and advantage, for the log. A surrogate without bounds has none.
    fn clipped(&self, _ratio: f32, _advantage: f32) -> Option<Bound> {
        None
    }

    /// Refuses settings that mean nothing.
    ///
    /// # Errors
    /// [`Error::Setting`] names the first.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Refuses a setting that is not above zero.
pub(super) fn above_zero(setting: &'static str, value: f32) -> Result<(), Error> {
    Error::unless(setting, value, |value| value.is_finite() && value > 0.0, "above zero")
}

/// Somebody's own surrogates are the same when they are one and the same object.
impl PartialEq for dyn PolicyLoss {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(self, other)
    }
}

/// Makes the enum out of one row a surrogate.
macro_rules! surrogates {
    ($($name:ident),+) => {
        /// The surrogate objectives. In a file: `{ name = "clip", low = 0.2, high = 0.28 }`.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "name", rename_all = "snake_case")]
        pub enum Surrogate {
            $(#[doc = concat!("See [`", stringify!($name), "`].")] $name($name),)+
            /// Somebody's own; it has no form in a file.
            #[serde(skip)]
            Custom(Arc<dyn PolicyLoss>),
        }

        impl Surrogate {
            fn chosen(&self) -> &dyn PolicyLoss {
                match self {
                    $(Self::$name(surrogate) => surrogate,)+
                    Self::Custom(surrogate) => surrogate.as_ref(),
                }
            }
        }
    };
}

surrogates! {
    Clip,
    Cispo,
    Fipo,
    Sapo,
    Vespo
}

impl PolicyLoss for Surrogate {
    fn token_loss(&self, input: SurrogateInput) -> Tensor<2> {
        self.chosen().token_loss(input)
    }

    fn clipped(&self, ratio: f32, advantage: f32) -> Option<Bound> {
        self.chosen().clipped(ratio, advantage)
    }

    fn check(&self) -> Result<(), Error> {
        self.chosen().check()
    }
}
