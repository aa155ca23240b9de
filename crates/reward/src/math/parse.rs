//! From tokens to a tree: a parser by binding powers (V. Pratt, Top down operator precedence, POPL 1973).

mod number;

use super::expression::{Brackets, Comparison, Constant, Expression, Function, SetOperator};
use super::token::{DEGREE, Kind, OR, ROW_END, SET_CLOSE, SET_OPEN, Token};

/// How deep the tree may be, and the calls that make it.
const MAX_DEPTH: usize = 100;
/// Binding powers, from loose to tight.
mod power {
    pub(super) const LIST: u8 = 1;
    pub(super) const RELATION: u8 = 2;
    pub(super) const SETS: u8 = 3;
    pub(super) const SUM: u8 = 4;
    pub(super) const PRODUCT: u8 = 5;
    /// A product without a sign: `1/2x` is one over two x.
    pub(super) const SIGNLESS: u8 = 6;
    pub(super) const POSTFIX: u8 = 7;
}

/// The answer that the tokens spell, if they are mathematics.
pub(super) fn parse(tokens: Vec<Token>) -> Option<Expression> {
    let letters: Vec<char> = tokens.iter().filter_map(Token::word).flat_map(str::chars).collect();
    // `X` for `x` is a slip, unless both are there.
    let fold = !letters.iter().any(|letter| letter.is_lowercase() && letters.contains(&letter.to_ascii_uppercase()));
    let mut parser = Parser { tokens, at: 0, depth: 0, bars: 0, bare_argument: false, fold };
    let expression = parser.expression(power::LIST)?;
    (parser.at == parser.tokens.len()).then_some(expression)
}

impl Token {
    fn word(&self) -> Option<&str> {
        if let Kind::Word(word) = &self.kind { Some(word) } else { None }
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    /// How many bars of absolute values are open; within, a bar closes.
    bars: usize,
    /// Whether this is the argument of a function without brackets, which ends before the next function.
    bare_argument: bool,
    fold: bool,
}

impl Parser {
    fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    fn peek_mark(&self) -> Option<char> {
        if let Some(Kind::Mark(mark)) = self.peek() { Some(*mark) } else { None }
    }

    fn take(&mut self, mark: char) -> bool {
        let there = self.peek_mark() == Some(mark);
        self.at += usize::from(there);
        there
    }

    /// Notes that the tree becomes deeper; nothing if it would be too deep.
    fn deeper(&mut self) -> Option<()> {
        self.depth += 1;
        (self.depth <= MAX_DEPTH).then_some(())
    }

    /// Parses as far as operators bind at least so tightly.
    fn expression(&mut self, minimum: u8) -> Option<Expression> {
        self.deeper()?;
        let mut left = self.prefix()?;
        while let Some((power, mark)) = self.infix()
            && power >= minimum
        {
            left = self.after(left, power, mark)?;
        }
        self.depth -= 1;
        Some(left)
    }

    /// The binding power of the next operator, and the operator; that of a product without a sign is a blank.
    fn infix(&self) -> Option<(u8, char)> {
        let Some(mark) = self.peek_mark() else { return self.begins_factor().then_some((power::SIGNLESS, ' ')) };
        let power = match mark {
            ',' | ';' | OR => power::LIST,
            '=' | '≠' | '<' | '≤' | '>' | '≥' | '≈' | '∈' => power::RELATION,
            '∪' | '∩' | '∖' => power::SETS,
            '+' | '-' | '±' | '∓' => power::SUM,
            '*' | '/' | ':' => power::PRODUCT,
            '^' | '!' | '%' | DEGREE => power::POSTFIX,
            _ if self.begins_factor() => return Some((power::SIGNLESS, ' ')),
            _ => return None,
        };
        Some((power, mark))
    }

    /// Whether the next token can begin a factor of a product without a sign.
    fn begins_factor(&self) -> bool {
        match self.peek() {
            // Two numbers side by side are no product.
            Some(Kind::Number(_)) => !self.tokens[self.at - 1].is_number(),
            Some(Kind::Word(word)) => !(self.bare_argument && Function::named(word).is_some()),
            Some(Kind::Text(_) | Kind::Begin(_)) => true,
            Some(Kind::Command(name)) => !(self.bare_argument && Function::named(name).is_some()),
            Some(Kind::Mark(mark)) => {
                "([{π∞√⌊⌈".contains(*mark) || *mark == SET_OPEN || (*mark == '|' && self.bars == 0)
            }
            _ => false,
        }
    }

    /// Goes on behind `left` with an operator of [`Self::infix`].
    fn after(&mut self, left: Expression, power: u8, mark: char) -> Option<Expression> {
        if mark == ' ' {
            return Some(left.times(self.expression(power::POSTFIX)?));
        }
        self.at += 1;
        match mark {
            ',' | ';' | OR => return self.list(left, mark == OR),
            '!' => return self.postfix(Function::Factorial, left),
            '%' => return self.postfix(Function::Percent, left),
            DEGREE => return self.postfix(Function::Degrees, left),
            '^' => return self.power(left),
            _ => (),
        }
        let right = self.expression(power + 1)?;
        if power == power::SETS {
            // Stays deeper: a chain of these is as deep as it is long.
            self.deeper()?;
        }
        Some(match mark {
            '∪' => Expression::Sets(SetOperator::Union, left.into(), right.into()),
            '∩' => Expression::Sets(SetOperator::Intersection, left.into(), right.into()),
            '∖' => Expression::Sets(SetOperator::Difference, left.into(), right.into()),
            '+' => left.plus(right),
            '-' => left.plus(Expression::Negative(right.into())),
            '±' => left.plus(Expression::PlusMinus(right.into())),
            '∓' => left.plus(Expression::Negative(Expression::PlusMinus(right.into()).into())),
            '*' => left.times(right),
            '/' | ':' => match left {
                // Flat, so that a long chain is not deep.
                Expression::Product(_) | Expression::Quotient(..) => left.times(right.inverted()),
                left => Expression::Quotient(left.into(), right.into()),
            },
            _ => relation(left, mark, right)?,
        })
    }

    /// A list, whose first item and separator have been read.
    fn list(&mut self, first: Expression, alternatives: bool) -> Option<Expression> {
        let mut items = vec![first];
        let mut any = alternatives;
        loop {
            // `1, 2, and 3`.
            while let Some(mark @ (',' | ';' | OR)) = self.peek_mark() {
                any |= mark == OR;
                self.at += 1;
            }
            items.push(self.expression(power::RELATION)?);
            if !matches!(self.peek_mark(), Some(',' | ';' | OR)) {
                break;
            }
        }
        Some(if any { Expression::Alternatives(items) } else { Expression::Group { brackets: Brackets::None, items } })
    }

    fn postfix(&mut self, function: Function, left: Expression) -> Option<Expression> {
        // Stays deeper, as above.
        self.deeper()?;
        // `5!!` is another function.
        let repeated = matches!(&left, Expression::Call(inner, _) if *inner == function && !self.closed_before());
        (!repeated).then(|| Expression::call(function, left))
    }

    /// Whether a bracket was closed before the last token.
    fn closed_before(&self) -> bool {
        self.at >= 2 && [')', ']', '}', '|'].iter().any(|mark| self.tokens[self.at - 2].is(*mark))
    }

    /// A power, whose base and sign have been read.
    fn power(&mut self, base: Expression) -> Option<Expression> {
        if matches!(base, Expression::Power(..)) && !self.closed_before() {
            return None;
        }
        if self.take(DEGREE) {
            return self.postfix(Function::Degrees, base);
        }
        if self.take('\'') {
            return primed(base);
        }
        let begin = self.at;
        if self.take('{') {
            if self.take(DEGREE) && self.take('}') {
                return self.postfix(Function::Degrees, base);
            }
            self.at = begin;
        }
        let exponent = self.exponent()?;
        Some(Expression::Power(base.into(), exponent.into()))
    }

    fn exponent(&mut self) -> Option<Expression> {
        self.deeper()?;
        let exponent = if self.take('-') {
            Expression::Negative(self.exponent()?.into())
        } else if self.take('+') {
            self.exponent()?
        } else {
            let exponent = self.atom()?;
            // Towers lean to the right: `2^3^4`.
            if self.take('^') { self.power(exponent)? } else { exponent }
        };
        self.depth -= 1;
        Some(exponent)
    }

    fn prefix(&mut self) -> Option<Expression> {
        let sign = self.peek_mark().filter(|mark| "+-±∓".contains(*mark));
        let Some(sign) = sign else { return self.mixed_number() };
        self.at += 1;
        let inside = self.expression(power::SIGNLESS)?;
        Some(match sign {
            '-' => Expression::Negative(inside.into()),
            '±' => Expression::PlusMinus(inside.into()),
            '∓' => Expression::Negative(Expression::PlusMinus(inside.into()).into()),
            _ => inside,
        })
    }

    fn atom(&mut self) -> Option<Expression> {
        self.deeper()?;
        let kind = self.peek()?.clone();
        let atom = match kind {
            Kind::Word(word) => self.word(&word),
            Kind::Number(digits) => {
                self.at += 1;
                self.number(&digits)
            }
            Kind::Text(text) => {
                self.at += 1;
                Some(Expression::Symbol(text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")))
            }
            Kind::Command(name) => {
                self.at += 1;
                self.command(&name)
            }
            Kind::Begin(environment) => {
                self.at += 1;
                self.matrix(&environment)
            }
            Kind::End(_) => None,
            Kind::Mark(mark) => {
                self.at += 1;
                self.mark(mark)
            }
        };
        self.depth -= 1;
        atom
    }

    fn mark(&mut self, mark: char) -> Option<Expression> {
        match mark {
            'π' => Some(Expression::Constant(Constant::Pi)),
            '∞' => Some(Expression::Constant(Constant::Infinity)),
            'ℝ' => Some(Expression::Constant(Constant::Reals)),
            '∅' => Some(Expression::Constant(Constant::EmptySet)),
            '√' => self.root(),
            '(' | '[' => self.brackets(mark),
            '⟨' => {
                let inside = self.inside("⟩")?;
                Some(Expression::Group { brackets: Brackets::ROUND, items: items(inside) })
            }
            '{' => self.inside("}"),
            '|' => {
                self.bars += 1;
                let inside = self.expression(power::SUM);
                self.bars -= 1;
                self.take('|').then_some(Expression::call(Function::Absolute, inside?))
            }
            '⌊' => Some(Expression::call(Function::Floor, self.inside("⌋")?)),
            '⌈' => Some(Expression::call(Function::Ceiling, self.inside("⌉")?)),
            SET_OPEN if self.take(SET_CLOSE) => Some(Expression::Constant(Constant::EmptySet)),
            SET_OPEN => {
                let inside = self.inside(&SET_CLOSE.to_string())?;
                Some(Expression::Group { brackets: Brackets::Braces, items: items(inside) })
            }
            _ => None,
        }
    }

    /// What is up to a closing bracket, which is read too.
    fn inside(&mut self, close: &str) -> Option<Expression> {
        let (bars, argument) = (std::mem::take(&mut self.bars), std::mem::take(&mut self.bare_argument));
        let inside = self.expression(power::LIST);
        (self.bars, self.bare_argument) = (bars, argument);
        let closed = self.peek_mark().is_some_and(|mark| close.contains(mark));
        self.at += 1;
        inside.filter(|_| closed)
    }

    fn brackets(&mut self, open: char) -> Option<Expression> {
        let inside = self.inside(")]")?;
        let right_open = self.tokens[self.at - 1].is(')');
        let left_open = open == '(';
        match inside {
            Expression::Group { brackets: Brackets::None, items } | Expression::Alternatives(items) => {
                Some(Expression::Group { brackets: Brackets::Interval { left_open, right_open }, items })
            }
            single => (left_open == right_open).then_some(single),
        }
    }

    /// The argument of a LaTeX command, which takes one digit of `\frac12`.
    fn argument(&mut self) -> Option<Expression> {
        if let Some(Token { kind: Kind::Number(digits), .. }) = self.tokens.get_mut(self.at)
            && digits.len() > 1
        {
            let first = digits.remove(0).to_digit(10)?;
            return Some(Expression::integer(first.into()));
        }
        let sign = self.take('-');
        let argument = self.atom()?;
        Some(if sign { Expression::Negative(argument.into()) } else { argument })
    }

    fn root(&mut self) -> Option<Expression> {
        let index = if self.take('[') { Some(self.inside("]")?) } else { None };
        // To LaTeX, `\sqrt12` is the root of one before a two; whoever writes it means the root of 12.
        let inside = self.atom()?;
        let arguments = std::iter::once(inside).chain(index).collect();
        Some(Expression::Call(Function::Root, arguments))
    }

    fn command(&mut self, name: &str) -> Option<Expression> {
        if let Some(function) = Function::named(name) {
            return self.function(function, name);
        }
        match name {
            "frac" => {
                let numerator = self.argument()?;
                Some(Expression::Quotient(numerator.into(), self.argument()?.into()))
            }
            "binom" => {
                let above = self.argument()?;
                Some(Expression::Call(Function::Binomial, vec![above, self.argument()?]))
            }
            "overline" | "vec" | "bar" | "hat" | "widehat" | "overrightarrow" => {
                let from = self.at;
                let _ = self.argument()?;
                let inside = super::token::canonical(&self.tokens[from..self.at]);
                Some(Expression::Symbol(format!("\\{name}{inside}")))
            }
            // The corners may be several letters.
            "angle" | "measuredangle" | "triangle" => {
                let corners = self.tokens.get(self.at)?.word()?.to_owned();
                self.at += 1;
                Some(Expression::Symbol(format!("\\{name} {corners}")))
            }
            _ => None,
        }
    }

    /// Letters that stand together: a name, or a product, whose first factor is taken.
    fn word(&mut self, word: &str) -> Option<Expression> {
        if let Some(function) = Function::named(word) {
            self.at += 1;
            return self.function(function, word);
        }
        let first = word.chars().next()?;
        let rest = &word[first.len_utf8()..];
        if rest.is_empty() {
            self.at += 1;
        } else {
            self.tokens[self.at].kind = Kind::Word(rest.into());
        }
        match first {
            'e' => return Some(Expression::Constant(Constant::E)),
            'i' => return Some(Expression::Constant(Constant::ImaginaryUnit)),
            _ => (),
        }
        let mut name = first.to_string();
        if self.fold {
            name = name.to_lowercase();
        }
        if rest.is_empty() {
            if let Some(subscript) = self.subscript()? {
                name.push('_');
                name.push_str(&subscript);
            }
            while self.take('\'') {
                name.push('\'');
            }
        }
        Some(Expression::Symbol(name))
    }

    /// The subscript that may come next, as a text; nothing at all if it is none.
    #[expect(clippy::option_option, reason = "no subscript is no error")]
    fn subscript(&mut self) -> Option<Option<String>> {
        if !self.take('_') {
            return Some(None);
        }
        let from = self.at;
        if self.take('{') {
            while !self.take('}') {
                let nested = self.peek()? == &Kind::Mark('{');
                self.at += 1;
                if nested {
                    return None;
                }
            }
            return Some(Some(super::token::canonical(&self.tokens[from + 1..self.at - 1])));
        }
        self.peek()?;
        self.at += 1;
        Some(Some(super::token::canonical(&self.tokens[from..self.at])))
    }

    /// A function, whose name has been read.
    fn function(&mut self, mut function: Function, name: &str) -> Option<Expression> {
        let mut base = if name == "lg" || name == "log" { Some(Expression::integer(10)) } else { None };
        if self.take('_') {
            base = Some(if self.take('{') { self.inside("}")? } else { self.argument()? });
        }
        let mut exponent = None;
        if self.take('^') {
            let power = self.exponent()?;
            match (function.inverse(), power == Expression::Negative(Expression::integer(1).into())) {
                (Some(inverse), true) => function = inverse,
                _ => exponent = Some(power),
            }
        }
        let inside = if matches!(self.peek_mark(), Some('(' | '[' | '{' | '|')) {
            self.atom()?
        } else {
            let outer = std::mem::replace(&mut self.bare_argument, true);
            let inside = self.expression(power::SIGNLESS);
            self.bare_argument = outer;
            inside?
        };
        let mut arguments = match inside {
            Expression::Group { items, .. } => items,
            inside => vec![inside],
        };
        let several = matches!(
            function,
            Function::Maximum | Function::Minimum | Function::GreatestCommonDivisor | Function::LeastCommonMultiple
        );
        if !several && arguments.len() != 1 {
            return None;
        }
        if function == Function::Log {
            arguments.extend(base);
        } else if base.is_some() {
            return None;
        }
        let call = Expression::Call(function, arguments);
        Some(match exponent {
            Some(exponent) => Expression::Power(call.into(), exponent.into()),
            None => call,
        })
    }

    fn matrix(&mut self, environment: &str) -> Option<Expression> {
        if !["matrix", "pmatrix", "bmatrix", "array"].contains(&environment) {
            return None;
        }
        // The columns of an array: `{cc}`.
        if environment == "array" && self.take('{') {
            while !self.take('}') {
                self.peek()?;
                self.at += 1;
            }
        }
        let mut rows = vec![Vec::new()];
        loop {
            rows.last_mut()?.push(self.expression(power::SUM)?);
            if self.take('&') {
                continue;
            }
            let ended = self.take(ROW_END);
            if matches!(self.peek(), Some(Kind::End(name)) if name == environment) {
                self.at += 1;
                break;
            }
            if !ended {
                return None;
            }
            rows.push(Vec::new());
        }
        Some(Expression::Matrix(rows))
    }
}

/// The items of a list, or the one thing that is no list.
fn items(inside: Expression) -> Vec<Expression> {
    match inside {
        Expression::Group { brackets: Brackets::None, items } | Expression::Alternatives(items) => items,
        single => vec![single],
    }
}

fn primed(base: Expression) -> Option<Expression> {
    if let Expression::Symbol(name) = base { Some(Expression::Symbol(name + "'")) } else { None }
}

fn relation(left: Expression, mark: char, right: Expression) -> Option<Expression> {
    let comparison = match mark {
        '=' => Comparison::Equal,
        '≠' => Comparison::NotEqual,
        '<' => Comparison::Less,
        '≤' => Comparison::LessOrEqual,
        '>' => Comparison::Greater,
        '≥' => Comparison::GreaterOrEqual,
        '≈' => Comparison::Approximately,
        '∈' => Comparison::In,
        _ => return None,
    };
    Some(match left {
        Expression::Relation(first, mut rest) => {
            rest.push((comparison, right));
            Expression::Relation(first, rest)
        }
        left => Expression::Relation(left.into(), vec![(comparison, right)]),
    })
}
