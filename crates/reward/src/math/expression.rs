//! What an answer says, as a tree.

use num_rational::BigRational;

/// A mathematical answer. Sums, products and lists are flat, so that depth is nesting that the writer wrote.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expression {
    /// A number; `decimal` if it was written with a decimal point.
    Number {
        value: BigRational,
        decimal: bool,
    },
    Constant(Constant),
    /// A variable, with its subscript and primes, or a word.
    Symbol(String),
    Negative(Box<Self>),
    /// Both the expression and its negative.
    PlusMinus(Box<Self>),
    Sum(Vec<Self>),
    Product(Vec<Self>),
    Quotient(Box<Self>, Box<Self>),
    Power(Box<Self>, Box<Self>),
    Call(Function, Vec<Self>),
    Matrix(Vec<Vec<Self>>),
    /// Several things between brackets, or one between braces.
    Group {
        brackets: Brackets,
        items: Vec<Self>,
    },
    /// Things of which any will do: `x < 1` or `x > 3`.
    Alternatives(Vec<Self>),
    Sets(SetOperator, Box<Self>, Box<Self>),
    /// A chain such as `1 < x < 3`.
    Relation(Box<Self>, Vec<(Comparison, Self)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Constant {
    Pi,
    E,
    ImaginaryUnit,
    Infinity,
    Reals,
    EmptySet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Brackets {
    /// A list without any.
    None,
    Braces,
    /// Round, square, or one of each: a point, a vector or an interval.
    Interval {
        left_open: bool,
        right_open: bool,
    },
}

impl Brackets {
    pub(super) const ROUND: Self = Self::Interval { left_open: true, right_open: true };
    pub(super) const SQUARE: Self = Self::Interval { left_open: false, right_open: false };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetOperator {
    Union,
    Intersection,
    Difference,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Approximately,
    In,
}

impl Comparison {
    /// The comparison that holds when the sides change places.
    pub(super) fn flipped(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Greater => Self::Less,
            Self::GreaterOrEqual => Self::LessOrEqual,
            other => other,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Arcsin,
    Arccos,
    Arctan,
    Sinh,
    Cosh,
    Tanh,
    Exp,
    /// Natural, or of a base that is the second argument.
    Log,
    /// The second argument is the index.
    Root,
    Absolute,
    Floor,
    Ceiling,
    Factorial,
    Binomial,
    Maximum,
    Minimum,
    GreatestCommonDivisor,
    LeastCommonMultiple,
    /// An angle in degrees.
    Degrees,
    Percent,
    /// A number, and the base that it is written in: the digits count, not the value.
    InBase,
}

impl Function {
    /// The function of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "sin" => Self::Sin,
            "cos" => Self::Cos,
            "tan" | "tg" => Self::Tan,
            "cot" | "ctg" => Self::Cot,
            "sec" => Self::Sec,
            "csc" => Self::Csc,
            "arcsin" | "asin" => Self::Arcsin,
            "arccos" | "acos" => Self::Arccos,
            "arctan" | "atan" => Self::Arctan,
            "sinh" => Self::Sinh,
            "cosh" => Self::Cosh,
            "tanh" => Self::Tanh,
            "exp" => Self::Exp,
            "log" | "ln" | "lg" => Self::Log,
            "max" => Self::Maximum,
            "min" => Self::Minimum,
            "gcd" => Self::GreatestCommonDivisor,
            "lcm" => Self::LeastCommonMultiple,
            _ => return None,
        })
    }

    /// What `\sin^{-1}` means.
    pub(super) fn inverse(self) -> Option<Self> {
        match self {
            Self::Sin => Some(Self::Arcsin),
            Self::Cos => Some(Self::Arccos),
            Self::Tan => Some(Self::Arctan),
            _ => None,
        }
    }
}

impl Expression {
    pub(super) fn integer(value: i64) -> Self {
        Self::Number { value: BigRational::from_integer(value.into()), decimal: false }
    }

    pub(super) fn call(function: Function, argument: Self) -> Self {
        Self::Call(function, vec![argument])
    }

    /// The sum, without a sum inside.
    pub(super) fn plus(self, other: Self) -> Self {
        match self {
            Self::Sum(mut terms) => {
                terms.push(other);
                Self::Sum(terms)
            }
            first => Self::Sum(vec![first, other]),
        }
    }

    /// The product, without a product inside.
    pub(super) fn times(self, other: Self) -> Self {
        match self {
            Self::Product(mut factors) => {
                factors.push(other);
                Self::Product(factors)
            }
            first => Self::Product(vec![first, other]),
        }
    }

    pub(super) fn inverted(self) -> Self {
        Self::Quotient(Box::new(Self::integer(1)), Box::new(self))
    }

    /// What this is directly made of.
    fn parts(&self) -> Vec<&Self> {
        match self {
            Self::Number { .. } | Self::Constant(_) | Self::Symbol(_) => Vec::new(),
            Self::Negative(inside) | Self::PlusMinus(inside) => vec![inside],
            Self::Quotient(left, right) | Self::Power(left, right) | Self::Sets(_, left, right) => vec![left, right],
            Self::Sum(parts)
            | Self::Product(parts)
            | Self::Call(_, parts)
            | Self::Alternatives(parts)
            | Self::Group { items: parts, .. } => parts.iter().collect(),
            Self::Matrix(rows) => rows.iter().flatten().collect(),
            Self::Relation(first, rest) => {
                std::iter::once(&**first).chain(rest.iter().map(|(_, expression)| expression)).collect()
            }
        }
    }

    /// Whether this or anything in it is such an expression.
    pub(super) fn any(&self, is: &impl Fn(&Self) -> bool) -> bool {
        is(self) || self.parts().into_iter().any(|part| part.any(is))
    }

    /// The names of the variables, each once.
    pub(super) fn symbols(&self) -> Vec<&str> {
        let mut symbols = Vec::new();
        self.collect_symbols(&mut symbols);
        symbols.sort_unstable();
        symbols.dedup();
        symbols
    }

    fn collect_symbols<'a>(&'a self, symbols: &mut Vec<&'a str>) {
        if let Self::Symbol(name) = self {
            symbols.push(name);
        }
        for part in self.parts() {
            part.collect_symbols(symbols);
        }
    }

    /// The expression with every plus-minus as a plus, or as a minus.
    pub(super) fn with_sign(&self, negative: bool) -> Self {
        let part = |part: &Self| part.with_sign(negative);
        let parts = |parts: &[Self]| parts.iter().map(part).collect::<Vec<_>>();
        match self {
            Self::PlusMinus(inside) if negative => Self::Negative(part(inside).into()),
            Self::PlusMinus(inside) => part(inside),
            Self::Number { .. } | Self::Constant(_) | Self::Symbol(_) => self.clone(),
            Self::Negative(inside) => Self::Negative(part(inside).into()),
            Self::Quotient(left, right) => Self::Quotient(part(left).into(), part(right).into()),
            Self::Power(left, right) => Self::Power(part(left).into(), part(right).into()),
            Self::Sets(operator, left, right) => Self::Sets(*operator, part(left).into(), part(right).into()),
            Self::Sum(terms) => Self::Sum(parts(terms)),
            Self::Product(factors) => Self::Product(parts(factors)),
            Self::Call(function, arguments) => Self::Call(*function, parts(arguments)),
            Self::Alternatives(items) => Self::Alternatives(parts(items)),
            Self::Group { brackets, items } => Self::Group { brackets: *brackets, items: parts(items) },
            Self::Matrix(rows) => Self::Matrix(rows.iter().map(|row| parts(row)).collect()),
            Self::Relation(first, rest) => {
                let rest = rest.iter().map(|(comparison, expression)| (*comparison, part(expression)));
                Self::Relation(part(first).into(), rest.collect())
            }
        }
    }
}
