use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::answer::{Marked, last_line, marked};
use crate::{Asked, Error, Response, Reward, Score};

/// `kind = "numeric"`: 1 when the final number is the reference within a tolerance, else 0.
///
/// The number is the only one in the last box, else the only one between the last tags, else the last one of the
/// response, thinking left out. A box with several numbers, or one that is not closed, has 0. Read are a sign,
/// thousands separators (`1,234.5`, `1{,}234`), an exponent (`1.5e3`), currency signs, a percent sign, and units behind
/// the number, with their powers (`12 cm^2`); a decimal comma and powers of ten (`10^5`) are not.
///
/// An answer `x` is right for the reference `r` when `|x - r| <= max(relative * |r|, absolute)`; without a tolerance
/// they have to be equal. A percent sign means hundredths or nothing: with one on one side only, 42%, 0.42 and 42 are
/// the same.
///
/// `relative = 0.05` is the relaxed accuracy of ChartQA (arXiv 2203.10244, section 5.1): numbers within 5 % of the
/// reference, and texts equal, as here, for a reference that is no number (upper and lower case are the same, and white
/// space around does not matter). ChartQA's usual evaluation divides by hundred at a percent sign, that of ChartQAPro
/// (arXiv 2504.05506) leaves it out; this accepts what either does. ChartQA has years within 5 % as well, ChartQAPro
/// compares exactly what the data marks as years: `exact_years` does so for every reference that looks like one.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Numeric {
    /// Tolerance as a share of the reference.
    pub relative: f64,
    /// Tolerance in units of the reference.
    pub absolute: f64,
    /// Whether references of four digits, 1000 to 2999, without sign, separator, point or percent, have to be met
    /// exactly.
    pub exact_years: bool,
}

/// What is left for decimal fractions, most of which have no binary form: 1.05 is within 5 % of 1, and 12.3% is 0.123.
const ROUNDING: f64 = 1e-12;

impl Numeric {
    pub(crate) fn checked(self) -> Result<Self, Error> {
        for (key, tolerance) in [("relative", self.relative), ("absolute", self.absolute)] {
            if !(tolerance >= 0.0 && tolerance.is_finite()) {
                return Err(Error::setting(key, "has to be a finite number, 0 or more"));
            }
        }
        Ok(self)
    }

    fn close(self, answer: Number, reference: Number, year: bool) -> bool {
        let near = |answer: f64, reference: f64| {
            let tolerance = if year { 0.0 } else { (self.relative * reference.abs()).max(self.absolute) };
            (answer - reference).abs() <= tolerance + ROUNDING * reference.abs()
        };
        let (found, expected) = (answer.value, reference.value);
        match (answer.percent, reference.percent) {
            (true, false) => near(found, expected) || near(found / 100.0, expected),
            (false, true) => near(found, expected) || near(found, expected / 100.0),
            _ => near(found, expected),
        }
    }
}

impl Reward for Numeric {
    fn score(&self, asked: &Asked<'_>, response: &Response<'_>) -> Result<Score, Error> {
        let text = asked.answer()?.trim();
        let Some(reference) = whole(text) else { return Ok(same_text(response.text, text).into()) };
        let found = match marked(response.text) {
            Marked::Answer(answer) => only(answer),
            Marked::Unclosed => None,
            Marked::Prose(prose) => numbers(prose).pop(),
        };
        let year = self.exact_years && text.len() == 4 && text.starts_with(['1', '2']);
        let year = year && text.bytes().all(|byte| byte.is_ascii_digit());
        Ok(found.is_some_and(|found| self.close(found, reference, year)).into())
    }
}

fn same_text(response: &str, reference: &str) -> bool {
    let answer = match marked(response) {
        Marked::Answer(answer) => Some(answer),
        Marked::Unclosed => None,
        Marked::Prose(prose) => last_line(prose),
    };
    answer.is_some_and(|answer| answer.trim().to_lowercase() == reference.to_lowercase())
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Number {
    value: f64,
    percent: bool,
}

/// The value of the only number in a text.
#[cfg(feature = "judge")]
pub(crate) fn only_value(text: &str) -> Option<f64> {
    only(text).map(|number| number.value)
}

/// The number that a text has, if it is the only one.
fn only(text: &str) -> Option<Number> {
    let found = numbers(text);
    (found.len() == 1).then(|| found[0])
}

/// The number that a text is: nothing but the number, its currency and percent sign.
fn whole(text: &str) -> Option<Number> {
    let letters = |character: char| character.is_alphabetic() && !matches!(character, 'e' | 'E');
    if text.to_lowercase().replace("percent", "%").contains(letters) { None } else { only(text) }
}

/// The numbers in a text, in order. Digits that belong to a word are none, as in `A3`, `x_{12}` and `12 cm^2`. The
/// power of a number, `10^5`, is a number of its own, so that a box with one has two, of which none is the answer.
fn numbers(text: &str) -> Vec<Number> {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
        let number = r"(?x)
            (?<script> \p{Alphabetic} [}$\ ]* \^ \{? | _ \{? )?
            (?<sign> [-+\u{2212}] )?
            (?: \p{Sc} \s* (?<inner> [-+\u{2212}] )? )?
            (?<digits> [0-9][0-9,]*(?: \.[0-9]+ )? | \.[0-9]+ )
            (?<exponent> [eE][-+]?[0-9]{1,4}\b )?
            \s* (?<percent> % | (?i: percent\b ) )?";
        Regex::new(number).expect("the expression is a constant")
    });
    // What LaTeX has to write otherwise.
    let text = text.replace("{,}", ",").replace("\\,", "").replace("\\!", "").replace("\\$", "$").replace("\\%", "%");
    let mut found = Vec::new();
    for captures in NUMBER.captures_iter(&text) {
        let part = |name| captures.name(name).map_or("", |part| part.as_str());
        let start = captures.get(0).map_or(0, |all| all.start());
        let in_word = text[..start].ends_with(|before: char| before.is_alphanumeric() || before == '_');
        // Behind a word or a number, a minus is a hyphen.
        let sign = if in_word { "" } else { part("sign") };
        let inside = in_word && captures[0].starts_with(|first: char| first.is_ascii_digit() || first == '.');
        if inside || captures.name("script").is_some() {
            continue;
        }
        let negative = [sign, part("inner")].iter().filter(|sign| matches!(**sign, "-" | "\u{2212}")).count() == 1;
        for digits in separated(part("digits")) {
            let Ok(value) = format!("{digits}{}", part("exponent")).parse::<f64>() else { continue };
            let value = if negative { -value } else { value };
            found.push(Number { value, percent: !part("percent").is_empty() });
        }
    }
    found
}

/// A number without its thousands separators; where commas do not separate thousands, the numbers between them.
fn separated(digits: &str) -> Vec<String> {
    let (whole, fraction) = digits.split_once('.').map_or((digits, ""), |(whole, _)| (whole, &digits[whole.len()..]));
    let mut groups = whole.trim_end_matches(',').split(',');
    let first = groups.next().unwrap_or_default();
    if (1..=3).contains(&first.len()) && groups.all(|group| group.len() == 3) {
        return vec![whole.replace(',', "") + fraction];
    }
    digits.split(',').filter(|part| !part.is_empty()).map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::value;

    fn right(numeric: Numeric, text: &str, answer: &str) -> bool {
        value(&numeric.checked().expect("in range"), text, answer) > 0.5
    }

    fn equal(text: &str, answer: &str) -> bool {
        right(Numeric::default(), text, answer)
    }

    const CHART_QA: Numeric = Numeric { relative: 0.05, absolute: 0.0, exact_years: false };

    #[test]
    fn numbers_are_read_as_they_are_written() {
        let values = |text| numbers(text).iter().map(|number| number.value).collect::<Vec<_>>();
        assert_eq!(values("-3.5 and +2, .5; 1,234,567.25 or 1,23"), [-3.5, 2.0, 0.5, 1_234_567.25, 1.0, 23.0]);
        assert_eq!(values("from 2019-2020 \u{2212}7 - 8"), [2019.0, 2020.0, -7.0, 8.0]);
        assert_eq!(values("$1,200.50, -$3, $-4, €5, \\$6"), [1200.5, -3.0, -4.0, 5.0, 6.0]);
        assert_eq!(values("1.5e3 2E-2 3em"), [1500.0, 0.02, 3.0]);
        assert_eq!(values("A3 x2 n_1 B12 3km 1{,}234 5\\,000"), [3.0, 1234.0, 5000.0]);
        assert_eq!(values("1234,"), [1234.0]);
        assert_eq!(
            values(r"12 cm^2 3 m^{2} 4\text{ km}^2 5 m$^2$ 6 m s^{-1} 7 m/s^-2"),
            [12.0, 3.0, 4.0, 5.0, 6.0, 7.0]
        );
        assert_eq!(values(r"x_1 x_{12} a_{1}=3 \log_{10} 100"), [3.0, 100.0]);
        assert_eq!(values("2 x 10^5 and 10^{-5}"), [2.0, 10.0, 5.0, 10.0, -5.0]);
        assert_eq!(
            numbers("42% 5 percent 7\\%, 8 percentage"),
            [
                Number { value: 42.0, percent: true },
                Number { value: 5.0, percent: true },
                Number { value: 7.0, percent: true },
                Number { value: 8.0, percent: false },
            ]
        );
    }

    #[test]
    fn the_final_number_is_the_boxed_the_tagged_or_the_last() {
        assert!(equal(r"3 \boxed{4} 5", "4"));
        assert!(equal("<answer>about 4 km</answer> 5", "4"));
        assert!(equal("<think>5</think>It is 3, no, 4.", "4"));
        assert!(!equal(r"4 \boxed{5} \boxed{4", "4"));
        assert!(!equal(r"\boxed{3 or 4}", "4") && !equal(r"\boxed{4 or 3}", "4"), "a box holds one number");
        assert!(!equal(r"\boxed{none} 4", "4"));
        assert!(!equal("none", "4"));
        assert!(equal(r"\boxed{\$1,000}", "1000.0"));
        assert!(equal(r"\boxed{12\text{ cm}^2}", "12") && equal("It is 12 cm^2.", "12"));
        assert!(!equal(r"\boxed{10^5}", "10") && !equal(r"\boxed{(-3)^2}", "-3"), "a power is no unit");
        assert!(!equal("<think>It is 4", "4"));
    }

    #[test]
    fn a_tolerance_is_relative_or_absolute() {
        assert!(!equal("4.01", "4"));
        let relative = Numeric { relative: 0.5, ..Numeric::default() };
        assert!(right(relative, "6", "4") && right(relative, "2", "4") && right(relative, "-6", "-4"));
        assert!(!right(relative, "6.01", "4") && !right(relative, "1.99", "4"));
        assert!(right(CHART_QA, "1.05", "1") && !right(CHART_QA, "1.050001", "1"), "up to the rounding of fractions");
        assert!(right(relative, "0", "0") && !right(relative, "0.01", "0"));
        let absolute = Numeric { absolute: 0.25, ..relative };
        assert!(right(absolute, "0.25", "0") && !right(absolute, "0.26", "0") && right(absolute, "6", "4"));
        for tolerance in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(Numeric { relative: tolerance, ..Numeric::default() }.checked().is_err());
            assert!(Numeric { absolute: tolerance, ..Numeric::default() }.checked().is_err());
        }
    }

    #[test]
    fn percent_is_hundredths_or_nothing() {
        assert!(equal("42%", "42") && equal("42%", "0.42") && equal("42%", "42%"));
        assert!(equal("42", "42%") && equal("0.42", "42%") && equal("12.3%", "0.123") && equal("0.07", "7%"));
        assert!(!equal("0.42%", "42%") && !equal("0.42", "42"));
    }

    #[test]
    fn relaxed_accuracy_is_that_of_chart_qa() {
        assert!(right(CHART_QA, r"\boxed{105}", "100") && !right(CHART_QA, r"\boxed{105.1}", "100"));
        assert!(right(CHART_QA, r"\boxed{ Germany }", "germany") && !right(CHART_QA, r"\boxed{Germany}", "France"));
        assert!(right(CHART_QA, "It is\nGermany", "Germany") && !right(CHART_QA, "It is Germany", "Germany"));
        assert!(right(CHART_QA, r"\boxed{2010}", "2015"));
        let years = Numeric { exact_years: true, ..CHART_QA };
        assert!(!right(years, r"\boxed{2010}", "2015") && right(years, r"\boxed{2015}", "2015"));
        assert!(right(years, r"\boxed{2010}", "2,015") && right(years, r"\boxed{2010.1}", "2015.0"));
        assert!(right(CHART_QA, r"\boxed{Q3 2015}", "Q3 2015"), "a reference with letters is a text");
    }
}
