//! The value of an expression at a point.

use std::cell::Cell;
use std::f64::consts::{E, PI};

use num_bigint::BigInt;
use num_complex::Complex64;
use num_integer::Integer as _;
use num_rational::BigRational;
use num_traits::{Signed as _, ToPrimitive as _};
use statrs::function::gamma::gamma;

use super::expression::{Constant, Expression, Function};
use super::value::Value;

/// How much work one comparison may be, in about a tenth of a microsecond each.
const BUDGET: u64 = 200_000;
/// Factorials and binomial coefficients of larger numbers are not computed.
const MAX_FACTORIAL: u32 = 500;

/// What is left of the work that a comparison may be. With nothing left, no expression has a value.
pub(super) struct Budget(Cell<u64>);

impl Budget {
    pub(super) fn new() -> Self {
        Self(Cell::new(BUDGET))
    }

    pub(super) fn spend(&self, work: u64) -> Option<()> {
        let left = self.0.get().checked_sub(work);
        self.0.set(left.unwrap_or(0));
        left.map(|_| ())
    }
}

/// Where variables have values: numbers that depend on the name and on the number of the point, and on nothing else.
pub(super) struct Point<'a> {
    pub(super) number: u64,
    pub(super) budget: &'a Budget,
}

impl Point<'_> {
    /// The value of an expression; nothing if it has none, or if it is out of reach.
    pub(super) fn value(&self, expression: &Expression) -> Option<Value> {
        self.inside(expression, false)
    }

    /// A value in an angle, where degrees count, or elsewhere, where they are a unit.
    fn inside(&self, expression: &Expression, angle: bool) -> Option<Value> {
        self.budget.spend(5)?;
        let value = match expression {
            Expression::Number { value, .. } => Some(value.clone().into()),
            Expression::Symbol(name) => Some(self.variable(name)),
            Expression::Constant(constant) => match constant {
                Constant::Pi => Value::rounded(PI.into()),
                Constant::E => Value::rounded(E.into()),
                Constant::ImaginaryUnit => Value::rounded(Complex64::I),
                Constant::Infinity => Some(Value::Infinite { negative: false }),
                Constant::Reals | Constant::EmptySet => None,
            },
            Expression::Negative(inside) => Some(self.inside(inside, angle)?.negated()),
            Expression::Sum(terms) => self.fold(terms, angle, Value::plus),
            Expression::Product(factors) => self.fold(factors, angle, Value::times),
            Expression::Quotient(above, below) => self.inside(above, angle)?.over(&self.inside(below, angle)?),
            Expression::Power(base, exponent) => self.inside(base, angle)?.to_the(&self.inside(exponent, angle)?),
            Expression::Call(function, arguments) => self.call(*function, arguments, angle),
            Expression::PlusMinus(_)
            | Expression::Matrix(_)
            | Expression::Group { .. }
            | Expression::Alternatives(_)
            | Expression::Sets(..)
            | Expression::Relation(..) => None,
        }?;
        self.budget.spend(value.work())?;
        Some(value)
    }

    fn fold(&self, parts: &[Expression], angle: bool, join: impl Fn(&Value, &Value) -> Option<Value>) -> Option<Value> {
        let (first, rest) = parts.split_first()?;
        rest.iter().try_fold(self.inside(first, angle)?, |sum, part| {
            self.budget.spend(sum.work())?;
            join(&sum, &self.inside(part, angle)?)
        })
    }

    /// A number of at most three, a multiple of a sixty-fourth, of either sign.
    pub(super) fn variable(&self, name: &str) -> Value {
        // FNV-1a, and the finalizer of MurmurHash3 so that all bits count.
        let seed = 0xcbf2_9ce4_8422_2325 ^ self.number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = name.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        let numerator = 17 + (hash >> 34) as i64 % 176;
        let sign = if hash & 1 == 0 { 1 } else { -1 };
        BigRational::new((sign * numerator).into(), 64.into()).into()
    }

    fn call(&self, function: Function, arguments: &[Expression], angle: bool) -> Option<Value> {
        let (first, rest) = arguments.split_first()?;
        let argument = || self.value(first);
        let of_angle = |function: fn(Complex64) -> Complex64| self.inside(first, true)?.map(function);
        let second = || rest.first().map(|second| self.value(second));
        let one = Value::integer(1);
        match function {
            Function::Sin => exact_at_zero(&self.inside(first, true)?, 0, Complex64::sin),
            Function::Cos => exact_at_zero(&self.inside(first, true)?, 1, Complex64::cos),
            Function::Tan => of_angle(Complex64::sin)?.over(&of_angle(Complex64::cos)?),
            Function::Cot => of_angle(Complex64::cos)?.over(&of_angle(Complex64::sin)?),
            Function::Sec => one.over(&of_angle(Complex64::cos)?),
            Function::Csc => one.over(&of_angle(Complex64::sin)?),
            Function::Arcsin => argument()?.map(|x| if on_unit(x) { x.re.asin().into() } else { x.asin() }),
            Function::Arccos => argument()?.map(|x| if on_unit(x) { x.re.acos().into() } else { x.acos() }),
            Function::Arctan => argument()?.map(|x| if x.im == 0.0 { x.re.atan().into() } else { x.atan() }),
            Function::Sinh => argument()?.map(Complex64::sinh),
            Function::Cosh => argument()?.map(Complex64::cosh),
            Function::Tanh => argument()?.map(Complex64::tanh),
            Function::Exp => exact_at_zero(&argument()?, 1, Complex64::exp),
            Function::Log => {
                let logarithm = natural_logarithm(&argument()?)?;
                match second() {
                    Some(base) => logarithm.over(&natural_logarithm(&base?)?),
                    None => Some(logarithm),
                }
            }
            Function::Root => match second() {
                None => argument()?.root(2),
                Some(index) => {
                    let index = index?;
                    match index.as_integer().and_then(BigInt::to_u32) {
                        Some(index) => argument()?.root(index),
                        None => argument()?.to_the(&one.over(&index)?),
                    }
                }
            },
            Function::Absolute => argument()?.absolute(),
            Function::Floor => argument()?.floor(),
            Function::Ceiling => Some(argument()?.negated().floor()?.negated()),
            Function::Factorial => self.factorial(&argument()?),
            Function::Binomial => self.binomial(&argument()?, &second()??),
            Function::Maximum | Function::Minimum => {
                let wanted =
                    if function == Function::Maximum { std::cmp::Ordering::Less } else { std::cmp::Ordering::Greater };
                rest.iter().try_fold(argument()?, |best, next| {
                    let next = self.value(next)?;
                    Some(if best.order(&next)? == wanted { next } else { best })
                })
            }
            Function::GreatestCommonDivisor => self.integers(arguments, BigInt::gcd),
            Function::LeastCommonMultiple => self.integers(arguments, BigInt::lcm),
            Function::Degrees if angle => argument()?.times(&Value::rounded((PI / 180.0).into())?),
            Function::Degrees | Function::InBase => argument(),
            Function::Percent => argument()?.over(&Value::integer(100)),
        }
    }

    fn integers(&self, arguments: &[Expression], join: impl Fn(&BigInt, &BigInt) -> BigInt) -> Option<Value> {
        let mut result: Option<BigInt> = None;
        for argument in arguments {
            let value = self.value(argument)?;
            let integer = value.as_integer()?;
            result = Some(result.map_or_else(|| integer.clone(), |result| join(&result, integer)));
            self.budget.spend(Value::from(BigRational::from_integer(result.clone()?)).work())?;
        }
        Some(BigRational::from_integer(result?).into())
    }

    fn factorial(&self, argument: &Value) -> Option<Value> {
        if let Some(integer) = argument.as_integer() {
            let number = integer.to_u32().filter(|number| *number <= MAX_FACTORIAL)?;
            self.budget.spend(number.into())?;
            let product = (2..=number).fold(BigInt::from(1), |product, factor| product * factor);
            return Some(BigRational::from_integer(product).into());
        }
        // Between integers a factorial is the gamma function; only variables lead there.
        let (value, error) = argument.float()?;
        if value.im != 0.0 {
            return None;
        }
        let result = Value::rounded((gamma(value.re + 1.0)).into())?;
        // Ten digits are what the function promises; a wide margin, since nothing else depends on it.
        result
            .plus(&Value::Approximate { value: Complex64::default(), error: error + 1e-11 * result.float()?.0.norm() })
    }

    fn binomial(&self, above: &Value, below: &Value) -> Option<Value> {
        if let Some(chosen) = below.as_integer() {
            let chosen = if chosen.is_negative() { None } else { chosen.to_u32() };
            let chosen = chosen.filter(|chosen| *chosen <= MAX_FACTORIAL)?;
            return (0..chosen).try_fold(Value::integer(1), |product, step| {
                self.budget.spend(5 + 2 * product.work())?;
                let factor = above.plus(&Value::integer(-i64::from(step)))?;
                product.times(&factor)?.over(&Value::integer(i64::from(step) + 1))
            });
        }
        let rest = self.factorial(&above.plus(&below.clone().negated())?)?;
        self.factorial(above)?.over(&self.factorial(below)?.times(&rest)?)
    }
}

fn on_unit(x: Complex64) -> bool {
    x.im == 0.0 && x.re.abs() <= 1.0
}

fn exact_at_zero(argument: &Value, there: i64, function: fn(Complex64) -> Complex64) -> Option<Value> {
    if argument.is_zero() { Some(Value::integer(there)) } else { argument.map(function) }
}

fn natural_logarithm(argument: &Value) -> Option<Value> {
    if argument.same(&Value::integer(1)) {
        return Some(Value::integer(0));
    }
    let (value, error) = argument.float()?;
    if value.norm() <= error {
        None
    } else {
        argument.map(|x| if x.im == 0.0 && x.re > 0.0 { x.re.ln().into() } else { x.ln() })
    }
}
