//! What stands behind a value and is no part of it, and words that are no mathematics.

use super::expression::Function;
use super::token::{DEGREE, Kind, OR, Token};

/// Units and counted things that may follow a number without a blank.
const UNITS: &[&str] = &[
    "mm", "cm", "dm", "km", "ft", "in", "yd", "mi", "mg", "kg", "lb", "lbs", "oz", "ml", "mL", "ms", "min", "mins",
    "hr", "hrs", "sec", "secs", "kmh", "mph", "kph", "kmph", "rpm", "Hz", "kHz", "kW", "kWh", "MB", "GB", "cc", "sq",
    "gal", "inch", "inches", "feet", "foot", "yards", "miles", "mile", "meters", "meter", "metres", "hours", "hour",
    "minutes", "seconds", "days", "day", "years", "year", "units", "unit", "am", "pm", "AM", "PM", "th", "st", "nd",
    "rd", "deg", "rad", "mol", "cents", "dollars", "euros", "USD",
];
/// Units of one letter; they need a blank before them, or `2t` would be a number.
const LETTER_UNITS: &[&str] = &["m", "g", "s", "h", "L", "l", "N", "J", "W", "V", "A", "C", "F", "d"];

/// Words of two letters that answer a question.
const SHORT_WORDS: &[&str] = &["no", "on", "up", "in"];

/// Cuts off the unit behind a value: `5 \text{ cm}^2`, `5 apples`, `60\ \mathrm{km/h}`.
pub(super) fn strip(tokens: &mut Vec<Token>) {
    let mut start = tokens.len();
    // The last token of the unit that names it; digits and operators belong to it only if they come before.
    for at in (1..tokens.len()).rev() {
        if names_unit(&tokens[at], &tokens[..at]) {
            start = at;
        } else if !joins_units(&tokens[at].kind) {
            break;
        }
    }
    let follows_value = start < tokens.len() && ends_value(&tokens[start - 1].kind);
    // `x \text{ cm}` has a unit and so has `x = 5 cm`; `blue whale` has none.
    let text = tokens.get(start).is_some_and(|token| matches!(token.kind, Kind::Text(_)));
    let value = tokens[..start].iter().rev().take_while(|token| token.kind != Kind::Mark('='));
    let letters = value.into_iter().any(|token| matches!(token.kind, Kind::Word(_)));
    if follows_value && (text || !letters) {
        tokens.truncate(start);
    }
}

fn names_unit(token: &Token, before: &[Token]) -> bool {
    let Some(last) = before.last() else { return false };
    match &token.kind {
        Kind::Text(_) => true,
        Kind::Word(word) => {
            let behind = match &last.kind {
                Kind::Number(_) | Kind::Word(_) | Kind::Text(_) => true,
                Kind::Mark(mark) => "}/%π".contains(*mark) || *mark == DEGREE,
                _ => false,
            };
            let known = UNITS.contains(&word.as_str()) || (token.spaced && LETTER_UNITS.contains(&word.as_str()));
            let degrees = before.iter().rev().take(2).any(|token| token.kind == Kind::Mark(DEGREE));
            let part = last.kind == Kind::Mark('/') || (degrees && ["C", "F"].contains(&word.as_str()));
            behind && (known || part || (token.spaced && is_word(word)))
        }
        _ => false,
    }
}

/// Whether such a token may stand in a unit: `m/s^2`, `kg*m`.
fn joins_units(kind: &Kind) -> bool {
    matches!(kind, Kind::Number(_) | Kind::Mark('^' | '{' | '}' | '/' | '*' | '-' | '.'))
}

fn ends_value(kind: &Kind) -> bool {
    match kind {
        Kind::Number(_) | Kind::Word(_) => true,
        Kind::Mark(mark) => ")]}|!%π∞".contains(*mark) || *mark == DEGREE,
        _ => false,
    }
}

/// Whether letters spell a word rather than a product of variables: they are three or more, with a vowel.
fn is_word(letters: &str) -> bool {
    let vowel = letters.contains(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O', 'U']);
    letters.chars().count() >= 3 && (vowel || !letters.is_ascii()) && Function::named(letters).is_none()
}

/// Whether an answer is words and nothing else: `no solution`, `Tuesday`, `\text{red and blue}`.
pub(super) fn is_words(tokens: &[Token]) -> bool {
    let mut words = false;
    tokens.iter().all(|token| match &token.kind {
        Kind::Text(_) => {
            words = true;
            true
        }
        Kind::Word(word) => {
            words |= is_word(word) || SHORT_WORDS.contains(&word.to_lowercase().as_str());
            true
        }
        Kind::Mark(mark) => ",.-'!?:;&".contains(*mark) || *mark == OR,
        _ => false,
    }) && words
}

/// Makes one number of `1,234,567.8` if that is all there is, but perhaps for a sign and what it is the value of.
pub(super) fn join_thousands(tokens: &mut Vec<Token>) {
    let from = tokens.iter().rposition(|token| token.kind == Kind::Mark('=')).map_or(0, |at| at + 1);
    let from = from + usize::from(tokens.get(from).is_some_and(|token| token.kind == Kind::Mark('-')));
    let Some(Kind::Number(first)) = tokens.get(from).map(|token| &token.kind) else { return };
    let groups = tokens[from + 1..].chunks(2).map(|pair| match pair {
        [Token { kind: Kind::Mark(','), spaced: false }, Token { kind: Kind::Number(group), spaced: false }] => {
            Some(group.as_str())
        }
        _ => None,
    });
    let Some(groups) = groups.collect::<Option<Vec<_>>>() else { return };
    let is_group = |(at, group): (usize, &&str)| {
        let whole = if at + 1 == groups.len() { group.split('.').next().unwrap_or(group) } else { group };
        whole.len() == 3 && whole.bytes().all(|byte| byte.is_ascii_digit())
    };
    let begins =
        (1..=3).contains(&first.len()) && first.bytes().all(|byte| byte.is_ascii_digit()) && !first.starts_with('0');
    if !groups.is_empty() && begins && groups.iter().enumerate().all(is_group) {
        let joined = format!("{first}{}", groups.concat());
        tokens[from].kind = Kind::Number(joined);
        tokens.truncate(from + 1);
    }
}
