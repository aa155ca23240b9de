//! Whether two answers are the same.

use super::evaluate::{Budget, Point};
use super::expression::{Brackets, Comparison, Expression, Function};
use super::region::region;
use super::value::Value;

/// At how many points two expressions with variables are compared.
const POINTS: u64 = 8;
/// At how many of them both need to have a value.
const MIN_POINTS: usize = 3;
/// A decimal number stands for all that it is the rounding of, to six places (math-verify does the same)...
const DECIMALS: f64 = 0.5e-6;
/// ...but for small numbers at least three digits count.
const DIGITS: f64 = 1e-3;
/// How many items lists may have.
const MAX_ITEMS: usize = 256;

/// Whether two answers are the same.
pub(super) fn same(left: &Expression, right: &Expression) -> bool {
    let budget = Budget::new();
    equal(left, right, &budget)
}

fn equal(left: &Expression, right: &Expression, budget: &Budget) -> bool {
    if budget.spend(20).is_none() {
        return false;
    }
    if left == right {
        return true;
    }
    match (left, right) {
        (Expression::Relation(..), Expression::Relation(..)) => return relations(left, right, budget),
        (Expression::Relation(..), _) | (_, Expression::Relation(..)) => {
            let (relation, other) =
                if matches!(left, Expression::Relation(..)) { (left, right) } else { (right, left) };
            return assigned(relation).is_some_and(|value| equal(value, other, budget))
                || regions(relation, other, budget);
        }
        (Expression::Matrix(left), Expression::Matrix(right)) => {
            let rows = left.iter().zip(right);
            let mut cells = rows.flat_map(|(left, right)| left.iter().zip(right));
            let shape = |rows: &[Vec<Expression>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
            return shape(left) == shape(right) && cells.all(|(left, right)| equal(left, right, budget));
        }
        _ => (),
    }
    match (Items::of(left), Items::of(right)) {
        (None, None) if !is_set(left) && !is_set(right) => values(left, right, budget),
        (Some(items), Some(others)) => items.same(&others, budget) || regions(left, right, budget),
        // An interval, or a single thing beside a list.
        (items, others) => {
            let [items, others] =
                [(items, left), (others, right)].map(|(items, whole)| items.or_else(|| Items::single(whole)));
            matches!((items, others), (Some(items), Some(others)) if items.same(&others, budget))
                || regions(left, right, budget)
        }
    }
}

/// What the left side of an equation is said to be: `x = 5`, `f(x) = 5`, `x \in [1, 5]`, `2 + 3 = 5`, `x = y + 1 = 5`.
///
/// An approximation of something else than a name says no more than the thing itself: `\sqrt{2} \approx 1.41`.
fn assigned(relation: &Expression) -> Option<&Expression> {
    let Expression::Relation(first, rest) = relation else { return None };
    let (last, value) = rest.last()?;
    let named = is_name(first);
    let constant = !first.any(&|part| matches!(part, Expression::Symbol(_)));
    let equations =
        rest.iter().all(|(comparison, _)| matches!(comparison, Comparison::Equal | Comparison::Approximately));
    if rest.len() == 1 && *last == Comparison::Approximately && !named {
        return Some(first);
    }
    if rest.len() == 1 && *last == Comparison::In && named {
        return Some(value);
    }
    (equations && (named || constant)).then_some(value)
}

/// Whether this names something and says nothing of it: `x`, `f(x)`, `AB`, `x:y`, `(x, y)`.
fn is_name(expression: &Expression) -> bool {
    match expression {
        Expression::Symbol(_) => true,
        Expression::Product(parts) | Expression::Group { items: parts, .. } => parts.iter().all(is_name),
        Expression::Quotient(left, right) => is_name(left) && is_name(right),
        _ => false,
    }
}

/// Things that an answer lists.
struct Items {
    things: Vec<Expression>,
    order: Order,
}

#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// A point or a vector, in such brackets.
    Matters(Brackets),
    /// Between braces.
    None,
    /// Without brackets: takes after the other side.
    Unknown,
}

impl Items {
    fn of(expression: &Expression) -> Option<Self> {
        let (items, order) = match expression {
            Expression::Group { brackets: Brackets::None, items } | Expression::Alternatives(items) => {
                (items.as_slice(), Order::Unknown)
            }
            Expression::Group { brackets: Brackets::Braces, items } => (items.as_slice(), Order::None),
            Expression::Group { brackets, items } => (items.as_slice(), Order::Matters(*brackets)),
            _ if has_signs(expression) => (std::slice::from_ref(expression), Order::Unknown),
            _ => return None,
        };
        let mut things = Vec::new();
        for item in items {
            if has_signs(item) {
                things.extend([item.with_sign(false), item.with_sign(true)]);
            } else {
                things.push(item.clone());
            }
        }
        (things.len() <= MAX_ITEMS).then_some(Self { things, order })
    }

    fn single(expression: &Expression) -> Option<Self> {
        (!is_set(expression)).then(|| Self { things: vec![expression.clone()], order: Order::Unknown })
    }

    fn same(&self, other: &Self, budget: &Budget) -> bool {
        let in_order = || {
            self.things.len() == other.things.len()
                && self.things.iter().zip(&other.things).all(|(left, right)| equal(left, right, budget))
        };
        match (self.order, other.order) {
            (Order::Matters(left), Order::Matters(right)) => {
                // `[1, 2, 3]` is `(1, 2, 3)`, but `[1, 2]` is an interval and `(1, 2)` is another one or a point.
                let vectors = self.things.len() > 2
                    && [left, right].iter().all(|it| [Brackets::ROUND, Brackets::SQUARE].contains(it));
                (left == right || vectors) && in_order()
            }
            (Order::Matters(brackets), _) | (_, Order::Matters(brackets)) => {
                (brackets == Brackets::ROUND || (brackets == Brackets::SQUARE && self.things.len() > 2)) && in_order()
            }
            _ => {
                let within = |some: &[Expression], all: &[Expression]| {
                    some.iter().all(|thing| all.iter().any(|other| equal(thing, other, budget)))
                };
                within(&self.things, &other.things) && within(&other.things, &self.things)
            }
        }
    }
}

fn has_signs(expression: &Expression) -> bool {
    !matches!(expression, Expression::Group { .. } | Expression::Alternatives(_))
        && expression.any(&|part| matches!(part, Expression::PlusMinus(_)))
}

/// Whether only a union of intervals can say what this is.
fn is_set(expression: &Expression) -> bool {
    use super::expression::Constant::{EmptySet, Reals};
    expression.any(&|part| matches!(part, Expression::Sets(..) | Expression::Constant(Reals | EmptySet)))
}

fn regions(left: &Expression, right: &Expression, budget: &Budget) -> bool {
    let point = Point { number: 0, budget };
    let (mut variable, mut other) = (None, None);
    let both = region(left, &mut variable, &point).zip(region(right, &mut other, &point));
    let variables = variable.is_none() || other.is_none() || variable == other;
    variables && both.is_some_and(|(left, right)| left.same(&right))
}

/// Whether two relations say the same.
fn relations(left: &Expression, right: &Expression, budget: &Budget) -> bool {
    let (Expression::Relation(first, rest), Expression::Relation(other_first, other_rest)) = (left, right) else {
        return false;
    };
    if let (Some(value), Some(other)) = (assigned(left), assigned(right))
        && equal(first, other_first, budget)
    {
        return equal(value, other, budget);
    }
    let steps = |first, rest| chain(first, rest).collect::<Vec<_>>();
    let (steps, others) = (steps(first, rest), steps(other_first, other_rest));
    let matching = |others: &[&Step]| steps.iter().zip(others).all(|(step, other)| step.same(other, budget));
    let forwards: Vec<&Step> = others.iter().collect();
    let backwards: Vec<&Step> = others.iter().rev().collect();
    (steps.len() == others.len() && (matching(&forwards) || matching(&backwards))) || regions(left, right, budget)
}

/// One comparison of a chain.
struct Step<'a> {
    left: &'a Expression,
    comparison: Comparison,
    right: &'a Expression,
}

fn chain<'a>(first: &'a Expression, rest: &'a [(Comparison, Expression)]) -> impl Iterator<Item = Step<'a>> {
    let lefts = std::iter::once(first).chain(rest.iter().map(|(_, right)| right));
    lefts.zip(rest).map(|(left, (comparison, right))| Step { left, comparison: *comparison, right })
}

impl Step<'_> {
    /// Whether the differences of the two sides are the same but for a factor: `y = 2x + 1`, `4x - 2y + 2 = 0`.
    fn same(&self, other: &Self, budget: &Budget) -> bool {
        if self.comparison == other.comparison && self.left == other.left && self.right == other.right {
            return true;
        }
        let flips = self.comparison.flipped() != self.comparison;
        let factor_is_negative = if self.comparison == other.comparison {
            if flips { Some(false) } else { None }
        } else if self.comparison == other.comparison.flipped() {
            Some(true)
        } else {
            return false;
        };
        let mut factor: Option<Value> = None;
        let mut points = 0;
        for number in 0..POINTS {
            let point = Point { number, budget };
            let difference = |step: &Self| point.value(step.left)?.plus(&point.value(step.right)?.negated());
            let Some((left, right)) = difference(self).zip(difference(other)) else { continue };
            let Some(ratio) = left.over(&right) else { continue };
            if factor.as_ref().is_some_and(|factor| !factor.same(&ratio)) {
                return false;
            }
            factor = Some(ratio);
            points += 1;
        }
        let zero = Value::integer(0);
        points >= MIN_POINTS
            && factor.is_some_and(|factor| {
                !factor.same(&zero) && factor_is_negative.is_none_or(|negative| factor.is_negative() == negative)
            })
    }
}

/// Whether two expressions have the same value, wherever both have one.
fn values(left: &Expression, right: &Expression, budget: &Budget) -> bool {
    if let (Expression::Call(Function::InBase, left), Expression::Call(Function::InBase, right)) = (left, right)
        && !equal(&left[1], &right[1], budget)
    {
        return false;
    }
    if let Some((left, right)) = without_percent(left, right)
        && values(left, right, budget)
    {
        return true;
    }
    let varies = |part: &Expression| matches!(part, Expression::Symbol(_));
    let decimal = is_decimal(left) || is_decimal(right);
    let same = |left: &Value, right: &Value| {
        left.same(right) || (decimal && left.within(right, |size| DECIMALS.min(DIGITS * size)))
    };
    let points = if left.any(&varies) || right.any(&varies) { POINTS } else { 1 };
    let mut both = 0;
    for number in 0..points {
        let point = Point { number, budget };
        let Some((left, right)) = point.value(left).zip(point.value(right)) else { continue };
        if !same(&left, &right) {
            return false;
        }
        both += 1;
    }
    both >= MIN_POINTS.min(points as usize)
}

/// The two sides without the percent sign that only one of them has behind a number: 50% is 50, and one half too.
fn without_percent<'a>(left: &'a Expression, right: &'a Expression) -> Option<(&'a Expression, &'a Expression)> {
    let bare = |expression: &'a Expression| match expression {
        Expression::Call(Function::Percent, inside) => inside.first(),
        _ => None,
    };
    match (bare(left), bare(right)) {
        (Some(left), None) if is_number(left) && is_number(right) => Some((left, right)),
        (None, Some(right)) if is_number(left) && is_number(right) => Some((left, right)),
        _ => None,
    }
}

fn is_number(expression: &Expression) -> bool {
    match expression {
        Expression::Number { .. } => true,
        Expression::Negative(inside) => is_number(inside),
        _ => false,
    }
}

/// Whether this is a number with a decimal point, perhaps with a sign or a unit.
fn is_decimal(expression: &Expression) -> bool {
    match expression {
        Expression::Number { decimal, .. } => *decimal,
        Expression::Negative(inside) => is_decimal(inside),
        Expression::Call(Function::Percent | Function::Degrees, inside) => inside.first().is_some_and(is_decimal),
        _ => false,
    }
}
