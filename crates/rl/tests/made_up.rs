//! The credit method that CONTRIBUTING.md makes up, as it stands there: it compiles against what a file of
//! `crates/rl/src/credit` sees, and works.
#![allow(clippy::unwrap_used, unreachable_pub)]

use firesight_rl::{
    Completion, CreditAssigner, CreditBatch, CreditInput, Error, Group, Signals, TokenCredit, assign_from_signals,
};

#[path = "made_up/recency.rs"]
mod recency;

#[test]
fn the_made_up_method_is_the_one_in_the_book_and_works() {
    let shown = include_str!("made_up/recency.rs");
    assert!(include_str!("../../../CONTRIBUTING.md").contains(shown), "CONTRIBUTING.md shows another method");
    let completion = Completion { tokens: vec![7; 3], ..Completion::default() };
    let group = Group { prompt: (), completions: vec![completion], rewards: Vec::new() };
    let found = assign_from_signals(&recency::Recency::default(), &[group], &Signals::default()).unwrap();
    assert_eq!(found[0].weights, [1.0, 1.5, 2.0]);
}
