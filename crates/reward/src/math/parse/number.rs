//! Numbers: decimals, mixed numbers, repeating decimals, numbers in another base.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Zero};

use super::{Expression, Function, Kind, Parser};

/// Digits that a number may have, and how far an exponent such as the one of `1e-9` may move the point.
const MAX_DIGITS: usize = 400;

impl Parser {
    /// A number, whose digits have been read, and what belongs to it: a repetend, a base.
    pub(super) fn number(&mut self, digits: &str) -> Option<Expression> {
        let (value, decimal) = value(digits)?;
        if digits.contains('.') && self.peek() == Some(&Kind::Command("overline".into())) {
            self.at += 1;
            return self.repetend(&value, digits);
        }
        if self.take('_') {
            let base = if self.take('{') { self.inside("}")? } else { self.argument()? };
            return Some(Expression::Call(Function::InBase, vec![Expression::Number { value, decimal }, base]));
        }
        Some(Expression::Number { value, decimal })
    }

    /// An atom, or `2\frac{1}{2}`, which is a sum.
    pub(super) fn mixed_number(&mut self) -> Option<Expression> {
        let atom = self.atom()?;
        if matches!(atom, Expression::Number { decimal: false, .. }) {
            let begin = self.at;
            if let Some(fraction) = self.fraction() {
                return Some(atom.plus(fraction));
            }
            self.at = begin;
        }
        Some(atom)
    }

    /// The fraction in `2\frac{1}{2}` or `2 1/2`, in digits.
    fn fraction(&mut self) -> Option<Expression> {
        let digits = |parser: &mut Self, braces: bool| -> Option<Expression> {
            if braces && !parser.take('{') {
                return None;
            }
            let Some(Kind::Number(digits)) = parser.peek() else { return None };
            let (value, decimal) = value(digits)?;
            parser.at += 1;
            let whole = !decimal && !value.is_zero() && (!braces || parser.take('}'));
            whole.then_some(Expression::Number { value, decimal })
        };
        let command = self.peek() == Some(&Kind::Command("frac".into()));
        if command {
            self.at += 1;
            if self.peek_mark() == Some('{') {
                let numerator = digits(self, true)?;
                return Some(Expression::Quotient(numerator.into(), digits(self, true)?.into()));
            }
            let Some(Kind::Number(both)) = self.peek() else { return None };
            let [above @ b'1'..=b'9', below @ b'1'..=b'9'] = both.as_bytes() else { return None };
            let [above, below] = [above, below].map(|digit| Expression::integer((digit - b'0').into()));
            self.at += 1;
            return Some(Expression::Quotient(above.into(), below.into()));
        }
        if !self.tokens.get(self.at)?.spaced {
            return None;
        }
        let numerator = digits(self, false)?;
        if !self.take('/') {
            return None;
        }
        Some(Expression::Quotient(numerator.into(), digits(self, false)?.into()))
    }

    /// The digits under the line of `0.1\overline{6}`, whose value without them is given.
    fn repetend(&mut self, value: &BigRational, before: &str) -> Option<Expression> {
        self.take('{');
        let Some(Kind::Number(digits)) = self.peek() else { return None };
        if digits.len() > MAX_DIGITS || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let ten = BigRational::from_integer(10.into());
        let decimals = before.len() - before.find('.')? - 1;
        let repeated = BigRational::new(digits.parse::<BigInt>().ok()?, BigInt::from(10).pow(digits.len() as u32) - 1);
        self.at += 1;
        self.take('}');
        let value = value + repeated / num_traits::pow(ten, decimals);
        Some(Expression::Number { value, decimal: false })
    }
}

/// The value of digits with a point and an exponent, and whether there is a point or an exponent.
fn value(digits: &str) -> Option<(BigRational, bool)> {
    let (mantissa, exponent) = digits.split_once(['e', 'E']).unwrap_or((digits, "0"));
    let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent = exponent.parse::<i64>().ok()? - decimals.len() as i64;
    if whole.len() + decimals.len() > MAX_DIGITS || exponent.unsigned_abs() > MAX_DIGITS as u64 {
        return None;
    }
    let number = BigRational::from_integer(format!("0{whole}{decimals}").parse().ok()?);
    let scale = BigInt::from(10).pow(exponent.unsigned_abs() as u32);
    let scale = if exponent < 0 { BigRational::new(BigInt::one(), scale) } else { BigRational::from_integer(scale) };
    Some((number * scale, mantissa != digits || mantissa.contains('.')))
}
