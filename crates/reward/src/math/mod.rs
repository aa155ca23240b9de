//! Mathematical answers: where they stand in a completion, and when two are the same.
//!
//! The verdicts are those of Python's [math-verify](https://github.com/huggingface/Math-Verify) but for listed cases.
//! An answer goes from text to tokens, which leave out what is there only for the looks, from tokens to a tree, and two
//! trees are compared by what they are: rational numbers exactly, other numbers as floats with a bound of their error,
//! expressions with variables at a few points (J. T. Schwartz, Fast probabilistic algorithms for verification of
//! polynomial identities, J. ACM 1980), sets of real numbers as unions of intervals. What is no mathematics is compared
//! as a text. Whatever a model writes, the work is bounded: by the length of an answer, its nesting, the bits of a
//! number and the operations of a comparison.

mod compare;
mod evaluate;
mod expression;
mod extract;
mod parse;
mod region;
mod token;
mod units;
mod value;

use expression::Expression;
use token::{Kind, Token};

pub use extract::final_answer;

/// Longer answers, in bytes, are compared as they are written.
const MAX_LENGTH: usize = 2000;

/// Whether two answers are the same, whatever they are written like. An answer may be in a box.
///
/// The order of the two does not matter. A blank answer is the same as no other.
#[must_use]
pub fn equivalent(answer: &str, reference: &str) -> bool {
    let [answer, reference] = [answer, reference].map(extract::peel);
    if answer.is_empty() || reference.is_empty() {
        return false;
    }
    if answer == reference {
        return true;
    }
    if answer.len().max(reference.len()) > MAX_LENGTH {
        return false;
    }
    let [answer, reference] = [answer, reference].map(read);
    let texts = [&answer, &reference].map(|tokens| token::canonical(tokens));
    if texts[0] == texts[1] {
        return !texts[0].is_empty();
    }
    if units::is_words(&answer) && units::is_words(&reference) {
        return words(&answer) == words(&reference);
    }
    matches!((tree(answer), tree(reference)), (Some(answer), Some(reference)) if compare::same(&answer, &reference))
}

/// Whether the final answer of a completion is the reference.
#[must_use]
pub fn grade(completion: &str, reference: &str) -> bool {
    final_answer(completion).is_some_and(|answer| equivalent(answer, reference))
}

fn read(text: &str) -> Vec<Token> {
    let mut tokens = token::tokens(text);
    // `= 5` and `\approx 5` say 5.
    let empty = tokens.iter().take_while(|token| token.is('=') || token.is('≈')).count();
    tokens.drain(..empty);
    if !units::is_words(&tokens) {
        units::strip(&mut tokens);
        units::join_thousands(&mut tokens);
    }
    tokens
}

/// The items of a list of words, in any order: `red, blue`.
fn words(tokens: &[Token]) -> Vec<String> {
    let words = tokens.iter().flat_map(|token| match &token.kind {
        Kind::Text(text) => token::tokens(text),
        _ => vec![token.clone()],
    });
    let words: Vec<_> = words.collect();
    let items = words.split(|token| token.is(',') || token.is(token::OR));
    let mut items: Vec<_> = items.map(token::canonical).filter(|item| !item.is_empty()).collect();
    items.sort_unstable();
    items
}

/// The tree of an answer, if it is mathematics.
fn tree(tokens: Vec<Token>) -> Option<Expression> {
    if units::is_words(&tokens) { None } else { parse::parse(tokens) }
}
