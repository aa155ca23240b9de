//! Which groups are learnt from, and how much.

mod pearl;

use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use pearl::Pearl;

use crate::{Error, Reward};

/// Looks at a graded group and says how much of its advantages stays.
pub trait GroupFilter: Debug + Send + Sync {
    /// The factor of the group's advantages, not below zero; zero drops the group.
    ///
    /// # Errors
    /// When the rewards do not have what the filter looks at.
    fn factor(&self, rewards: &[Reward]) -> Result<f32, Error>;

    /// Refuses settings that mean nothing.
    ///
    /// # Errors
    /// [`Error::Setting`] names the first.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Somebody's own filters are the same when they are one and the same object.
impl PartialEq for dyn GroupFilter {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(self, other)
    }
}

/// The filters. In a file: `filters = [{ name = "pearl", checklist = "facts" }]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Filter {
    /// See [`Pearl`].
    Pearl(Pearl),
    /// Somebody's own; it has no form in a file.
    #[serde(skip)]
    Custom(Arc<dyn GroupFilter>),
}

impl Filter {
    fn chosen(&self) -> &dyn GroupFilter {
        match self {
            Self::Pearl(filter) => filter,
            Self::Custom(filter) => filter.as_ref(),
        }
    }
}

impl GroupFilter for Filter {
    fn factor(&self, rewards: &[Reward]) -> Result<f32, Error> {
        self.chosen().factor(rewards)
    }

    fn check(&self) -> Result<(), Error> {
        self.chosen().check()
    }
}
