//! Numbers: rational ones exactly, others as complex floats with a bound of their error.

use std::cmp::Ordering;

use num_bigint::BigInt;
use num_complex::Complex64;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};

/// How many bits numerator and denominator of an exact number may have.
const MAX_BITS: u64 = 4096;
/// What a function of the standard library may be off by, relative to its result.
const ROUNDING: f64 = 16.0 * f64::EPSILON;
/// With an error above this, relative to the value or to one, nothing is known.
const MAX_ERROR: f64 = 1e-9;

#[derive(Debug, Clone)]
pub(super) enum Value {
    Exact(BigRational),
    /// The error is absolute.
    Approximate {
        value: Complex64,
        error: f64,
    },
    Infinite {
        negative: bool,
    },
}

impl From<BigRational> for Value {
    fn from(value: BigRational) -> Self {
        Self::Exact(value)
    }
}

impl Value {
    pub(super) fn integer(value: i64) -> Self {
        Self::Exact(BigRational::from_integer(value.into()))
    }

    /// A float that was rounded once.
    pub(super) fn rounded(value: Complex64) -> Option<Self> {
        Self::approximate(value, 0.0)
    }

    /// What complex arithmetic gives, whose own rounding is yet to be added to the error.
    fn approximate(value: Complex64, error: f64) -> Option<Self> {
        let error = error + 4.0 * f64::EPSILON * value.norm();
        // A negative zero as the imaginary part would be on the other side of a branch cut.
        let value = value + Complex64::ZERO;
        (value.is_finite() && error.is_finite()).then_some(Self::Approximate { value, error })
    }

    fn exact(value: BigRational) -> Option<Self> {
        (bits(&value) <= MAX_BITS).then_some(Self::Exact(value))
    }

    /// The number as a float and the bound of its error; nothing if it is infinite.
    pub(super) fn float(&self) -> Option<(Complex64, f64)> {
        match self {
            Self::Exact(exact) => {
                let value = exact.to_f64().filter(|value| value.is_finite())?;
                let same = BigRational::from_float(value).is_some_and(|same| same == *exact);
                Some((value.into(), if same { 0.0 } else { value.abs() * f64::EPSILON + f64::MIN_POSITIVE }))
            }
            Self::Approximate { value, error } => Some((*value, *error)),
            Self::Infinite { .. } => None,
        }
    }

    /// How much work an operation with the number is.
    pub(super) fn work(&self) -> u64 {
        // The greatest common divisor that each operation takes goes with the square of the length.
        if let Self::Exact(value) = self { (bits(value) / 64).pow(2) / 4 } else { 0 }
    }

    pub(super) fn as_integer(&self) -> Option<&BigInt> {
        if let Self::Exact(value) = self { value.is_integer().then(|| value.numer()) } else { None }
    }

    pub(super) fn is_zero(&self) -> bool {
        matches!(self, Self::Exact(value) if value.is_zero())
    }

    /// Whether the number is negative, as far as one can tell.
    pub(super) fn is_negative(&self) -> bool {
        match self {
            Self::Exact(value) => value.is_negative(),
            Self::Approximate { value, error } => value.im == 0.0 && value.re < -error,
            Self::Infinite { negative } => *negative,
        }
    }

    pub(super) fn negated(self) -> Self {
        match self {
            Self::Exact(value) => Self::Exact(-value),
            Self::Approximate { value, error } => Self::Approximate { value: Complex64::ZERO - value, error },
            Self::Infinite { negative } => Self::Infinite { negative: !negative },
        }
    }

    pub(super) fn plus(&self, other: &Self) -> Option<Self> {
        if let (Self::Exact(left), Self::Exact(right)) = (self, other) {
            return Self::exact(left + right);
        }
        let ((left, left_error), (right, right_error)) = (self.float()?, other.float()?);
        Self::approximate(left + right, left_error + right_error)
    }

    pub(super) fn times(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Exact(left), Self::Exact(right)) => return Self::exact(left * right),
            (zero, Self::Approximate { .. }) | (Self::Approximate { .. }, zero) if zero.is_zero() => {
                return Some(zero.clone());
            }
            _ => (),
        }
        let ((left, left_error), (right, right_error)) = (self.float()?, other.float()?);
        let error = left.norm() * right_error + right.norm() * left_error + left_error * right_error;
        Self::approximate(left * right, error)
    }

    pub(super) fn over(&self, other: &Self) -> Option<Self> {
        if let (Self::Exact(left), Self::Exact(right)) = (self, other) {
            return if right.is_zero() { None } else { Self::exact(left / right) };
        }
        let ((left, left_error), (right, right_error)) = (self.float()?, other.float()?);
        let least = right.norm() - right_error;
        if least <= 0.0 {
            return None;
        }
        let ratio = left / right;
        Self::approximate(ratio, (left_error + ratio.norm() * right_error) / least)
    }

    pub(super) fn to_the(&self, exponent: &Self) -> Option<Self> {
        if let (Self::Exact(base), Self::Exact(power)) = (self, exponent) {
            if let Some(power) = power.is_integer().then(|| power.numer()) {
                return integer_power(base, power);
            }
            if !base.is_negative()
                && let Some(index) = power.denom().to_u32()
                && let Some(root) = exact_root(base, index)
            {
                return integer_power(&root, power.numer());
            }
        }
        if let Self::Approximate { .. } = self
            && let Some(power) = exponent.as_integer().and_then(ToPrimitive::to_i32)
        {
            let (base, error) = self.float()?;
            let result = base.powi(power);
            let error = f64::from(power).abs() * (error / base.norm() + ROUNDING) * result.norm();
            return Self::approximate(result, error);
        }
        if self.is_zero() {
            return None;
        }
        let ((base, base_error), (power, power_error)) = (self.float()?, exponent.float()?);
        let result = if base.im == 0.0 && power.im == 0.0 && base.re > 0.0 {
            base.re.powf(power.re).into()
        } else {
            base.powc(power)
        };
        let logarithm = base.ln();
        let relative = power.norm() * base_error / base.norm()
            + logarithm.norm() * power_error
            + ROUNDING * (1.0 + (power * logarithm).norm());
        Self::approximate(result, relative * result.norm())
    }

    /// The root; of odd index, the real one of a real number.
    pub(super) fn root(&self, index: u32) -> Option<Self> {
        if index == 0 {
            return None;
        }
        if index % 2 == 1 && self.is_negative() {
            return Some(self.clone().negated().root(index)?.negated());
        }
        self.to_the(&Self::Exact(BigRational::new(1.into(), index.into())))
    }

    /// A function of one number, with the error that its argument gives it.
    pub(super) fn map(&self, function: impl Fn(Complex64) -> Complex64) -> Option<Self> {
        let (argument, error) = self.float()?;
        let value = function(argument);
        let mut spread = 0.0;
        if error > 0.0 {
            for step in [error, -error] {
                spread += (function(argument + step) - value).norm();
            }
            if argument.im != 0.0 {
                spread += (function(argument + Complex64::new(0.0, error)) - value).norm();
            }
        }
        Self::approximate(value, spread + ROUNDING * value.norm())
    }

    pub(super) fn absolute(&self) -> Option<Self> {
        match self {
            Self::Exact(value) => Some(Self::Exact(value.abs())),
            Self::Approximate { value, error } => Self::approximate(value.norm().into(), *error),
            Self::Infinite { .. } => Some(Self::Infinite { negative: false }),
        }
    }

    /// The largest integer that is no larger.
    pub(super) fn floor(&self) -> Option<Self> {
        match self {
            Self::Exact(value) => Some(Self::Exact(value.floor())),
            Self::Approximate { value, error } if value.im == 0.0 && *error < MAX_ERROR => {
                // The logarithm of 8 to base 2 is 3, and a float may be a little less.
                let nearest = value.re.round();
                let floor = if (value.re - nearest).abs() <= *error { nearest } else { value.re.floor() };
                BigRational::from_float(floor).and_then(Self::exact)
            }
            _ => None,
        }
    }

    /// Whether two numbers are the same, as far as one can tell.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(left), Self::Exact(right)) => left == right,
            (Self::Infinite { negative: left }, Self::Infinite { negative: right }) => left == right,
            _ => self.within(other, |_| 0.0),
        }
    }

    /// Whether two numbers differ by no more than `tolerance` of the larger absolute value, and what rounding explains.
    pub(super) fn within(&self, other: &Self, tolerance: impl Fn(f64) -> f64) -> bool {
        let (Some((left, left_error)), Some((right, right_error))) = (self.float(), other.float()) else {
            return false;
        };
        let size = left.norm().max(right.norm());
        let error = left_error + right_error;
        error <= MAX_ERROR * size.max(1.0) && (left - right).norm() <= tolerance(size) + error
    }

    /// The order of two real numbers.
    pub(super) fn order(&self, other: &Self) -> Option<Ordering> {
        let infinite = |value: &Self| match value {
            Self::Infinite { negative } => Some(if *negative { -1 } else { 1 }),
            _ => None,
        };
        match (infinite(self), infinite(other)) {
            (None, None) => (),
            (left, right) => return Some(left.unwrap_or(0).cmp(&right.unwrap_or(0))),
        }
        if self.same(other) {
            return Some(Ordering::Equal);
        }
        if let (Self::Exact(left), Self::Exact(right)) = (self, other) {
            return Some(left.cmp(right));
        }
        let ((left, _), (right, _)) = (self.float()?, other.float()?);
        let real = left.im == 0.0 && right.im == 0.0;
        left.re.partial_cmp(&right.re).filter(|_| real)
    }
}

fn bits(value: &BigRational) -> u64 {
    value.numer().bits() + value.denom().bits()
}

fn integer_power(base: &BigRational, power: &BigInt) -> Option<Value> {
    if base.is_zero() {
        // Zero to the zeroth is one, as everywhere in combinatorics.
        return (!power.is_negative()).then(|| Value::integer(power.is_zero().into()));
    }
    if base.abs().is_one() {
        let odd = power.bit(0);
        return Some(Value::integer(if base.is_negative() && odd { -1 } else { 1 }));
    }
    let power = power.to_i32()?;
    if bits(base).saturating_mul(power.unsigned_abs().into()) > MAX_BITS {
        return None;
    }
    Some(Value::Exact(num_traits::Pow::pow(base, power)))
}

/// The root if it is rational.
fn exact_root(value: &BigRational, index: u32) -> Option<BigRational> {
    let root = |number: &BigInt| {
        let root = number.nth_root(index);
        (root.pow(index) == *number).then_some(root)
    };
    if index == 0 || u64::from(index) > MAX_BITS {
        return None;
    }
    Some(BigRational::new(root(value.numer())?, root(value.denom())?))
}
