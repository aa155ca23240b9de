//! Text of others, for a terminal.

/// Text that stays in its place and colours nothing, whatever a model wrote: a control character, the begin of every
/// escape sequence, is its picture, and so is the end of a line; what turns the direction of writing is U+FFFD.
pub(super) fn harmless(text: &str) -> String {
    let picture = |character| match character {
        '\n' => '↵',
        '\t' => ' ',
        // The pictures of the 32 control characters lie in their order.
        '\0'..='\u{1f}' => char::from_u32(0x2400 + u32::from(character)).unwrap_or(char::REPLACEMENT_CHARACTER),
        '\u{7f}' => '␡',
        '\u{80}'..='\u{9f}'
        | '\u{61c}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' => char::REPLACEMENT_CHARACTER,
        other => other,
    };
    text.chars().map(picture).collect()
}

/// Text of models, data and other programs that a terminal can be shown: its lines stay lines, other control characters
/// are pictures of themselves.
#[must_use]
pub fn harmless_lines(text: &str) -> String {
    text.split('\n').map(harmless).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_lines() {
        assert_eq!(harmless_lines("a\u{1b}[1m\n\nb\r\n"), "a␛[1m\n\nb␍\n");
    }

    #[test]
    fn what_a_terminal_would_act_on_is_shown() {
        assert_eq!(harmless("\u{1b}[2J\u{1b}]0;title\u{7}a\r\nb\tc\u{8}"), "␛[2J␛]0;title␇a␍↵b c␈");
        assert_eq!(
            harmless("\u{9b}31m \u{7f}\u{202e}abc\u{2066}\u{85}\u{2028}"),
            "\u{fffd}31m ␡\u{fffd}abc\u{fffd}\u{fffd}\u{fffd}"
        );
        assert_eq!(harmless("naïve 图 👩‍👧"), "naïve 图 👩‍👧");
        let every = (char::MIN..=char::MAX).filter(|character| character.is_control()).collect::<String>();
        assert!(!harmless(&every).contains(char::is_control));
    }
}
