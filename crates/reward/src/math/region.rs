//! Sets of real numbers: unions of intervals.

use std::cmp::Ordering;

use super::evaluate::Point;
use super::expression::{Brackets, Comparison, Constant, Expression, SetOperator};
use super::value::Value;

/// How many intervals a union may have.
const MAX_INTERVALS: usize = 64;

/// Where an interval ends. At one number there is a cut before it and one behind it, so that no flags for open and
/// closed ends are needed: `[1, 2)` goes from before 1 to before 2.
#[derive(Debug, Clone)]
struct Cut {
    value: Value,
    behind: bool,
}

impl Cut {
    fn before(value: Value) -> Self {
        Self { value, behind: false }
    }

    fn behind(value: Value) -> Self {
        Self { value, behind: true }
    }

    fn order(&self, other: &Self) -> Option<Ordering> {
        Some(self.value.order(&other.value)?.then(self.behind.cmp(&other.behind)))
    }
}

/// A union of intervals: at each cut, in rising order, the numbers begin or cease to belong to it.
#[derive(Debug, Clone)]
pub(super) struct Region(Vec<Cut>);

fn infinity(negative: bool) -> Value {
    Value::Infinite { negative }
}

impl Region {
    fn empty() -> Self {
        Self(Vec::new())
    }

    /// All real numbers.
    fn full() -> Self {
        Self(vec![Cut::behind(infinity(true)), Cut::before(infinity(false))])
    }

    fn between(low: Cut, high: Cut) -> Option<Self> {
        // An infinite end is open, whatever the bracket says.
        let finite = |cut: Cut, behind: bool| {
            if matches!(cut.value, Value::Infinite { .. }) { Cut { behind, ..cut } } else { cut }
        };
        let (low, high) = (finite(low, true), finite(high, false));
        Some(if low.order(&high)? == Ordering::Less { Self(vec![low, high]) } else { Self::empty() })
    }

    fn point(value: Value) -> Self {
        Self(vec![Cut::before(value.clone()), Cut::behind(value)])
    }

    /// The numbers that are in both, or in the one or the other, or only in the first.
    fn combined(&self, other: &Self, operator: SetOperator) -> Option<Self> {
        if self.0.len() + other.0.len() > 2 * MAX_INTERVALS {
            return None;
        }
        let keep = |here: bool, there: bool| match operator {
            SetOperator::Union => here || there,
            SetOperator::Intersection => here && there,
            SetOperator::Difference => here && !there,
        };
        let (mut cuts, mut here, mut there) = (Vec::new(), 0, 0);
        let odd = |count: usize| count % 2 == 1;
        while here < self.0.len() || there < other.0.len() {
            let order = match (self.0.get(here), other.0.get(there)) {
                (Some(left), Some(right)) => left.order(right)?,
                (Some(_), None) => Ordering::Less,
                _ => Ordering::Greater,
            };
            let inside = keep(odd(here), odd(there));
            let cut = if order == Ordering::Greater { &other.0[there] } else { &self.0[here] };
            here += usize::from(order != Ordering::Greater);
            there += usize::from(order != Ordering::Less);
            if keep(odd(here), odd(there)) != inside {
                cuts.push(cut.clone());
            }
        }
        Some(Self(cuts))
    }

    pub(super) fn same(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        self.0.len() == other.0.len()
            && pairs.into_iter().all(|(left, right)| {
                left.behind == right.behind && left.value.order(&right.value) == Some(Ordering::Equal)
            })
    }
}

/// The real numbers that an answer describes, if it does so without a variable, or with `variable` alone, which is set
/// to the first one that is found.
pub(super) fn region<'a>(expression: &'a Expression, variable: &mut Option<&'a str>, point: &Point) -> Option<Region> {
    match expression {
        Expression::Constant(Constant::Reals) => Some(Region::full()),
        Expression::Constant(Constant::EmptySet) => Some(Region::empty()),
        Expression::Group { brackets: Brackets::Interval { left_open, right_open }, items } => {
            let [low, high] = items.as_slice() else { return None };
            let [low, high] = [constant(low, point)?, constant(high, point)?];
            // `(3, 2)` is a point of the plane.
            if low.order(&high)? != Ordering::Less {
                return None;
            }
            Region::between(Cut { value: low, behind: *left_open }, Cut { value: high, behind: !right_open })
        }
        Expression::Group { brackets: Brackets::Braces, items } => {
            items.iter().try_fold(Region::empty(), |all, item| {
                all.combined(&Region::point(constant(item, point)?), SetOperator::Union)
            })
        }
        Expression::Group { brackets: Brackets::None, items } => items.iter().try_fold(Region::full(), |all, item| {
            let condition = matches!(item, Expression::Relation(..));
            all.combined(&region(item, variable, point).filter(|_| condition)?, SetOperator::Intersection)
        }),
        Expression::Alternatives(items) => items
            .iter()
            .try_fold(Region::empty(), |all, item| all.combined(&region(item, variable, point)?, SetOperator::Union)),
        Expression::Sets(operator, left, right) => {
            region(left, variable, point)?.combined(&region(right, variable, point)?, *operator)
        }
        // The set of the real numbers without some, written with a minus.
        Expression::Sum(terms) => match terms.as_slice() {
            [all, Expression::Negative(without)] => {
                region(all, variable, point)?.combined(&region(without, variable, point)?, SetOperator::Difference)
            }
            _ => None,
        },
        Expression::Relation(first, rest) => {
            let mut all = Region::full();
            let mut left = &**first;
            for (comparison, right) in rest {
                let part = solution(left, *comparison, right, variable, point)?;
                all = all.combined(&part, SetOperator::Intersection)?;
                left = right;
            }
            Some(all)
        }
        _ => None,
    }
}

fn constant(expression: &Expression, point: &Point) -> Option<Value> {
    let varies = expression.any(&|part| matches!(part, Expression::Symbol(_)));
    if varies { None } else { point.value(expression) }
}

/// The solutions of a comparison that is linear in its only variable.
fn solution<'a>(
    left: &'a Expression,
    comparison: Comparison,
    right: &'a Expression,
    variable: &mut Option<&'a str>,
    point: &Point,
) -> Option<Region> {
    let mut symbols = [left.symbols(), right.symbols()].concat();
    symbols.dedup();
    let [symbol] = symbols.as_slice() else { return None };
    if *variable.get_or_insert(symbol) != *symbol {
        return None;
    }
    if comparison == Comparison::In {
        return if matches!(left, Expression::Symbol(_)) { region(right, variable, point) } else { None };
    }
    let (bound, rising) = bound(left, right, point)?;
    let comparison = if rising { comparison } else { comparison.flipped() };
    let everything = (Cut::behind(infinity(true)), Cut::before(infinity(false)));
    match comparison {
        Comparison::Less => Region::between(everything.0, Cut::before(bound)),
        Comparison::LessOrEqual => Region::between(everything.0, Cut::behind(bound)),
        Comparison::Greater => Region::between(Cut::behind(bound), everything.1),
        Comparison::GreaterOrEqual => Region::between(Cut::before(bound), everything.1),
        Comparison::NotEqual => Region::full().combined(&Region::point(bound), SetOperator::Difference),
        Comparison::Equal => Some(Region::point(bound)),
        Comparison::Approximately | Comparison::In => None,
    }
}

/// Where two sides are equal that are linear in one variable, and whether left minus right rises with it.
fn bound(left: &Expression, right: &Expression, point: &Point) -> Option<(Value, bool)> {
    match (left, right) {
        (Expression::Symbol(_), bound) => return Some((constant(bound, point)?, true)),
        (bound, Expression::Symbol(_)) => return Some((constant(bound, point)?, false)),
        _ => (),
    }
    let symbol = [left.symbols(), right.symbols()].concat().first().copied()?;
    let differences = [0, 1, 2].map(|number| {
        let there = Point { number, budget: point.budget };
        let difference = there.value(left)?.plus(&there.value(right)?.negated())?;
        Some((there.variable(symbol), difference))
    });
    let [Some((x0, y0)), Some((x1, y1)), Some((x2, y2))] = differences else { return None };
    let slope = |x: &Value, y: &Value| y.plus(&y0.clone().negated())?.over(&x.plus(&x0.clone().negated())?);
    let (slope, again) = (slope(&x1, &y1)?, slope(&x2, &y2)?);
    if !slope.same(&again) || slope.is_zero() {
        return None;
    }
    let bound = x0.plus(&y0.over(&slope)?.negated())?;
    Some((bound, !slope.is_negative()))
}
