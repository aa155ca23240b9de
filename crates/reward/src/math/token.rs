//! From text to tokens. LaTeX commands and Unicode characters that mean the same give the same token, and what is there
//! only for the looks gives none: the tokens are the normal form that answers are compared in if they are no
//! mathematics.

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Whether there was a blank before it.
    pub(super) spaced: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// Digits with at most one point among them, and perhaps an exponent as in `1.5e-3`.
    Number(String),
    /// Letters that stand together.
    Word(String),
    /// What was in a `\text{...}`.
    Text(String),
    /// A command that no character stands for, `frac` for example.
    Command(String),
    Begin(String),
    End(String),
    /// Any other character; [`MARKS`] are the ones that stand for a command.
    Mark(char),
}

impl Token {
    pub(super) fn is(&self, mark: char) -> bool {
        self.kind == Kind::Mark(mark)
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(self.kind, Kind::Number(_))
    }
}

pub(super) const SET_OPEN: char = '⦃';
pub(super) const SET_CLOSE: char = '⦄';
pub(super) const ROW_END: char = '⏎';
pub(super) const OR: char = '∨';
/// A degree sign, and the circle of `^\circ`.
pub(super) const DEGREE: char = '°';

/// Commands, and the characters that stand for them.
const MARKS: &[(&str, char)] = &[
    ("cdot", '*'),
    ("times", '*'),
    ("ast", '*'),
    ("div", '/'),
    ("pm", '±'),
    ("mp", '∓'),
    ("le", '≤'),
    ("leq", '≤'),
    ("leqslant", '≤'),
    ("ge", '≥'),
    ("geq", '≥'),
    ("geqslant", '≥'),
    ("lt", '<'),
    ("gt", '>'),
    ("ne", '≠'),
    ("neq", '≠'),
    ("approx", '≈'),
    ("in", '∈'),
    ("cup", '∪'),
    ("cap", '∩'),
    ("setminus", '∖'),
    ("backslash", '∖'),
    ("infty", '∞'),
    ("pi", 'π'),
    ("emptyset", '∅'),
    ("varnothing", '∅'),
    ("circ", DEGREE),
    ("degree", DEGREE),
    ("sqrt", '√'),
    ("lbrace", SET_OPEN),
    ("rbrace", SET_CLOSE),
    ("lbrack", '['),
    ("rbrack", ']'),
    ("langle", '⟨'),
    ("rangle", '⟩'),
    ("lfloor", '⌊'),
    ("rfloor", '⌋'),
    ("lceil", '⌈'),
    ("rceil", '⌉'),
    ("lvert", '|'),
    ("rvert", '|'),
    ("vert", '|'),
    ("mid", '|'),
    ("prime", '\''),
    ("lor", OR),
    ("colon", ':'),
];

/// Commands for letters, and the letters.
const LETTERS: &[(&str, char)] = &[
    ("alpha", 'α'),
    ("beta", 'β'),
    ("gamma", 'γ'),
    ("delta", 'δ'),
    ("epsilon", 'ε'),
    ("varepsilon", 'ε'),
    ("theta", 'θ'),
    ("lambda", 'λ'),
    ("mu", 'μ'),
    ("nu", 'ν'),
    ("rho", 'ρ'),
    ("sigma", 'σ'),
    ("tau", 'τ'),
    ("phi", 'φ'),
    ("varphi", 'φ'),
    ("psi", 'ψ'),
    ("omega", 'ω'),
    ("Delta", 'Δ'),
    ("Omega", 'Ω'),
    ("ell", 'ℓ'),
];

/// Commands that change how something looks, and commands for blanks.
const LOOKS: &[&str] = &[
    "left",
    "right",
    "big",
    "Big",
    "bigl",
    "bigr",
    "Bigl",
    "Bigr",
    "bigg",
    "Bigg",
    "displaystyle",
    "textstyle",
    "limits",
    "rm",
    "bf",
    "it",
    "quad",
    "qquad",
    "nobreak",
    "space",
];

/// Commands whose argument is text, or letters in a certain font.
const FONTS: &[&str] = &[
    "text",
    "textbf",
    "textit",
    "textrm",
    "textsf",
    "texttt",
    "textnormal",
    "emph",
    "mbox",
    "hbox",
    "mathrm",
    "mathbf",
    "mathit",
    "mathsf",
    "mathbb",
    "mathcal",
    "operatorname",
    "boldsymbol",
    "bm",
    "mathop",
    "mathregular",
];

/// Words for powers of ten, with the number of zeros.
const SCALES: &[(&str, usize)] = &[("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12)];

/// Superscripts, and what they stand for.
const SUPERSCRIPTS: &str = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const SUBSCRIPTS: &str = "₀₁₂₃₄₅₆₇₈₉";
const FRACTIONS: &[(char, &str, &str)] = &[
    ('½', "1", "2"),
    ('⅓', "1", "3"),
    ('⅔', "2", "3"),
    ('¼', "1", "4"),
    ('¾', "3", "4"),
    ('⅕', "1", "5"),
    ('⅖', "2", "5"),
    ('⅗', "3", "5"),
    ('⅘', "4", "5"),
    ('⅙', "1", "6"),
    ('⅚', "5", "6"),
    ('⅛', "1", "8"),
    ('⅜', "3", "8"),
    ('⅝', "5", "8"),
    ('⅞', "7", "8"),
];

/// The tokens of an answer.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let text = text.trim_matches(|letter: char| letter.is_whitespace() || "*$".contains(letter));
    let text = text.trim_end_matches(|letter: char| letter.is_whitespace() || ".,;".contains(letter));
    // A text that went through JSON once too often has two backslashes; in a matrix they end a row.
    let rows = ["matrix", "array", "cases"].iter().any(|environment| text.contains(environment));
    let mut lexer = Lexer { rest: text, rows, tokens: Vec::new(), spaced: false };
    while lexer.token() {}
    lexer.tokens
}

/// The tokens of one answer as a text without blanks: equal for texts that differ by looks and by case.
pub(super) fn canonical(tokens: &[Token]) -> String {
    let mut text = String::new();
    for Token { kind, .. } in tokens {
        match kind {
            Kind::Number(word) | Kind::Word(word) => text.push_str(&word.to_lowercase()),
            Kind::Text(words) => {
                text.extend(words.to_lowercase().chars().filter(|letter| !letter.is_whitespace()));
            }
            Kind::Command(name) | Kind::Begin(name) => text.extend(["\\", name]),
            Kind::End(name) => text.extend(["\\end", name]),
            Kind::Mark(mark) => text.push(*mark),
        }
    }
    text
}

struct Lexer<'a> {
    rest: &'a str,
    rows: bool,
    tokens: Vec<Token>,
    spaced: bool,
}

impl<'a> Lexer<'a> {
    fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { kind, spaced: std::mem::take(&mut self.spaced) });
    }

    fn mark(&mut self, mark: char) {
        self.push(Kind::Mark(mark));
    }

    /// Reads a token, or what gives none; false at the end.
    fn token(&mut self) -> bool {
        let Some(first) = self.rest.chars().next() else { return false };
        if first.is_ascii_digit() || (first == '.' && self.rest[1..].starts_with(|next: char| next.is_ascii_digit())) {
            self.number();
            return true;
        }
        if first.is_ascii_alphabetic() {
            let word = self.take_while(|letter| letter.is_ascii_alphabetic());
            self.word(word);
            return true;
        }
        self.rest = &self.rest[first.len_utf8()..];
        match first {
            '\\' => self.command(),
            _ if first.is_whitespace() || first == '~' => self.spaced = true,
            // Dollars are delimiters or, as the others, units; a zero-width space is nothing.
            '$' | '€' | '£' | '¥' | '₹' | '"' | '`' | '“' | '”' | '\u{200b}' => (),
            '−' | '–' | '—' => self.mark('-'),
            '×' | '·' | '⋅' | '∗' | '•' => self.mark('*'),
            '÷' | '∕' | '⁄' => self.mark('/'),
            '⩽' => self.mark('≤'),
            '⩾' => self.mark('≥'),
            '∘' | 'º' => self.mark(DEGREE),
            '’' | '′' => self.mark('\''),
            '（' => self.mark('('),
            '）' => self.mark(')'),
            '，' => self.mark(','),
            '<' | '>' | '!' if self.take("=") => self.mark(match first {
                '<' => '≤',
                '>' => '≥',
                _ => '≠',
            }),
            '*' if self.take("*") => self.mark('^'),
            _ => self.other(first),
        }
        true
    }

    fn other(&mut self, letter: char) {
        let script = |scripts: &str| scripts.chars().position(|script| script == letter);
        if let Some(&(_, above, below)) = FRACTIONS.iter().find(|(fraction, ..)| *fraction == letter) {
            self.push(Kind::Command("frac".into()));
            for part in [above, below] {
                self.mark('{');
                self.push(Kind::Number(part.into()));
                self.mark('}');
            }
        } else if let Some(digit) = script(SUPERSCRIPTS) {
            self.scripted('^', SUPERSCRIPTS, digit);
        } else if let Some(digit) = script(SUBSCRIPTS) {
            self.scripted('_', SUBSCRIPTS, digit);
        } else if letter.is_alphabetic() && !"ℝ".contains(letter) {
            self.push(Kind::Word(letter.into()));
        } else {
            self.mark(letter);
        }
    }

    /// A superscript or a subscript in characters of their own, the first of which has been read.
    fn scripted(&mut self, mark: char, scripts: &str, first: usize) {
        let mut digits = first.to_string();
        while let Some(digit) = self.rest.chars().next().and_then(|next| scripts.chars().position(|it| it == next)) {
            digits.push_str(&digit.to_string());
            self.take_while_count(1);
        }
        self.mark(mark);
        self.push(Kind::Number(digits));
    }

    fn word(&mut self, word: &str) {
        match word.to_ascii_lowercase().as_str() {
            "and" => self.mark(','),
            "or" => self.mark(OR),
            "percent" | "pct" | "percentage" => self.mark('%'),
            "infinity" | "inf" | "oo" => self.mark('∞'),
            "pi" => self.mark('π'),
            "sqrt" => self.mark('√'),
            "degrees" | "degree" => self.mark(DEGREE),
            word if let Some((_, zeros)) = SCALES.iter().find(|(scale, _)| *scale == word) => {
                self.mark('*');
                self.push(Kind::Number(format!("1{}", "0".repeat(*zeros))));
            }
            _ => self.push(Kind::Word(word.into())),
        }
    }

    fn number(&mut self) {
        let digits = |letter: char| letter.is_ascii_digit();
        let mut number = self.take_while(digits).to_owned();
        // `1{,}234` and `1\,234`: separators of thousands that cannot be anything else.
        while let Some(rest) = ["{,}", ",\\!", "\\,", "\\!"].iter().find_map(|mark| self.rest.strip_prefix(mark)) {
            let group = rest.len() - rest.trim_start_matches(digits).len();
            if group != 3 || number.is_empty() {
                break;
            }
            number.push_str(&rest[..group]);
            self.rest = &rest[group..];
        }
        // The point of `5.` ends a sentence, unless an overline follows: `0.\overline{3}`.
        let after = self.rest.strip_prefix('.');
        if after.is_some_and(|rest| rest.starts_with(digits) || rest.starts_with("\\overline")) {
            self.rest = &self.rest[1..];
            number.push('.');
            number.push_str(self.take_while(digits));
        }
        if let Some(rest) = self.rest.strip_prefix(['e', 'E']) {
            let unsigned = rest.strip_prefix(['+', '-']).unwrap_or(rest);
            let after = unsigned.trim_start_matches(digits);
            if after.len() < unsigned.len() && !after.starts_with(|next: char| next.is_alphabetic()) {
                let length = self.rest.len() - after.len();
                number.push_str(&self.rest[..length]);
                self.rest = after;
            }
        }
        self.push(Kind::Number(number));
    }

    /// Reads what comes after a backslash.
    fn command(&mut self) {
        let name = self.take_while(|letter| letter.is_ascii_alphabetic());
        if name.is_empty() {
            return self.escaped();
        }
        let named = |table: &[(&str, char)]| table.iter().find(|(command, _)| *command == name).map(|(_, mark)| *mark);
        if LOOKS.contains(&name) {
            self.spaced |= name.ends_with("quad") || name == "space";
            if name == "left" || name == "right" {
                self.take(".");
            }
        } else if let Some(mark) = named(MARKS) {
            self.mark(mark);
        } else if let Some(letter) = named(LETTERS) {
            self.push(Kind::Word(letter.into()));
        } else if FONTS.contains(&name) {
            let argument = self.argument();
            self.text(name, argument.trim());
        } else if name == "begin" {
            let environment = self.argument().into();
            self.push(Kind::Begin(environment));
        } else if name == "end" {
            let environment = self.argument().into();
            self.push(Kind::End(environment));
        } else {
            let name = match name {
                "dfrac" | "tfrac" | "cfrac" => "frac",
                "dbinom" | "tbinom" => "binom",
                name => name,
            };
            self.push(Kind::Command(name.into()));
        }
    }

    /// Reads what comes after a backslash if it is no letter.
    fn escaped(&mut self) {
        let Some(escaped) = self.rest.chars().next() else { return };
        self.rest = &self.rest[escaped.len_utf8()..];
        match escaped {
            '\\' if !self.rows && self.rest.starts_with(|next: char| next.is_ascii_alphabetic()) => self.command(),
            '\\' => self.mark(ROW_END),
            '{' => self.mark(SET_OPEN),
            '}' => self.mark(SET_CLOSE),
            '%' => self.mark('%'),
            '|' => self.mark('‖'),
            ',' | ';' | ':' | ' ' | '>' => self.spaced = true,
            // Delimiters of formulas, a negative blank, a dollar.
            '(' | ')' | '[' | ']' | '!' | '$' => (),
            _ => self.other(escaped),
        }
    }

    /// What a command of [`FONTS`] has inside.
    fn text(&mut self, font: &str, inside: &str) {
        match (font, inside) {
            (_, "") => self.spaced = true,
            ("mathbb", "R") => self.mark('ℝ'),
            ("mathbb", _) => self.push(Kind::Command(format!("mathbb {inside}"))),
            ("operatorname", _) => self.push(Kind::Word(inside.into())),
            _ => {
                let bare = inside.trim_matches(|letter: char| letter == ',' || letter.is_whitespace());
                let letters = bare.trim_matches(['(', ')']);
                // `3\text{m}` has a unit, `\text{A}` and `2\mathbf{i}` have none.
                let unit = !font.ends_with("bf") && self.tokens.last().is_some_and(Token::is_number);
                let single = (letters.len() <= 1 && !unit) || letters.bytes().all(|byte| byte.is_ascii_digit());
                match bare {
                    "and" | "or" | "percent" | "pct" | "%" | "degrees" | "degree" | "inf" | "infinity" => {
                        self.inline(bare);
                    }
                    // A choice such as (A), a variable in bold, a number.
                    _ if single => self.inline(inside),
                    _ if super::expression::Function::named(bare).is_some() => self.push(Kind::Word(bare.into())),
                    _ => self.push(Kind::Text(inside.into())),
                }
            }
        }
    }

    /// Reads a text that has no commands in place of what comes next.
    fn inline(&mut self, text: &str) {
        let mut inside =
            Lexer { rest: text, rows: self.rows, tokens: std::mem::take(&mut self.tokens), spaced: self.spaced };
        while inside.rest.starts_with(|first| first != '\\') && inside.token() {}
        (self.tokens, self.spaced) = (inside.tokens, false);
    }

    /// The argument of a command: what is between the braces, or one character.
    fn argument(&mut self) -> &'a str {
        self.rest = self.rest.trim_start();
        let rest = self.rest;
        let Some(inside) = rest.strip_prefix('{') else { return self.take_while_count(1) };
        let mut open = 1;
        for (at, byte) in inside.bytes().enumerate() {
            open += i32::from(byte == b'{') - i32::from(byte == b'}');
            if open == 0 {
                self.rest = &inside[at + 1..];
                return &inside[..at];
            }
        }
        self.rest = "";
        inside
    }

    fn take(&mut self, prefix: &str) -> bool {
        let rest = self.rest.strip_prefix(prefix);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn take_while(&mut self, is: impl Fn(char) -> bool) -> &'a str {
        let (rest, after) = (self.rest, self.rest.trim_start_matches(is));
        self.rest = after;
        &rest[..rest.len() - after.len()]
    }

    fn take_while_count(&mut self, count: usize) -> &'a str {
        let end = self.rest.char_indices().nth(count).map_or(self.rest.len(), |(at, _)| at);
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }
}
