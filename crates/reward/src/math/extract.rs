use crate::answer::after_thinking;

/// The commands that draw a box.
const COMMANDS: [&str; 2] = ["\\boxed", "\\fbox"];
/// How many boxes are peeled off an answer, one from around the other.
const MAX_BOXES: usize = 4;
/// The tags that some prompts ask to put the answer in.
const TAGS: (&str, &str) = ("<answer>", "</answer>");

/// The final answer in a completion: what is in the last box inside of the last `<answer>...</answer>`, else in the
/// last box, else in the last `<answer>...</answer>`; without the blanks around it.
///
/// Thinking, all up to the last `</think>`, is left out; when it is not closed, there is no answer. A box is `\boxed{...}` or `\fbox{...}`, or `\boxed 5` up to the next blank or dollar. A last box that is never
/// closed is of a completion that was cut off: there is no answer then, whatever else was boxed before.
#[must_use]
pub fn final_answer(completion: &str) -> Option<&str> {
    let text = after_thinking(completion);
    let tagged = last_tagged(text);
    let answer = match (tagged.map(last_box), last_box(text)) {
        (Some(LastBox::Closed(inside)), _) | (_, LastBox::Closed(inside)) => Some(inside),
        (_, LastBox::Unclosed) => None,
        (_, LastBox::None) => tagged,
    };
    answer.map(str::trim).filter(|answer| !answer.is_empty())
}

/// What is inside of the box or boxes that a text consists of, or the text itself.
pub(super) fn peel(text: &str) -> &str {
    let mut text = text.trim();
    // Each box is looked through to its end, so that no end of boxes would take its time.
    for _ in 0..MAX_BOXES {
        let Some(inside) = whole_box(text.trim_matches('$').trim()) else { break };
        text = inside.trim();
    }
    text
}

fn whole_box(text: &str) -> Option<&str> {
    let inside = COMMANDS.iter().find_map(|command| text.strip_prefix(command))?.trim_start().strip_prefix('{')?;
    (closing(inside)? + 1 == inside.len()).then(|| &inside[..inside.len() - 1])
}

fn last_tagged(text: &str) -> Option<&str> {
    let end = text.rfind(TAGS.1)?;
    let start = text[..end].rfind(TAGS.0)? + TAGS.0.len();
    Some(&text[start..end])
}

enum LastBox<'a> {
    None,
    Unclosed,
    Closed(&'a str),
}

fn last_box(text: &str) -> LastBox<'_> {
    for (start, _) in text.rmatch_indices('\\') {
        let Some(command) = COMMANDS.iter().find(|command| text[start..].starts_with(**command)) else { continue };
        let after = &text[start + command.len()..];
        let inside = after.trim_start();
        if let Some(inside) = inside.strip_prefix('{') {
            return closing(inside).map_or(LastBox::Unclosed, |end| LastBox::Closed(&inside[..end]));
        }
        // `\boxed 5`; in `\boxed.` and `\boxedfoo` the command stands for something else.
        if inside.len() < after.len() {
            let end = inside.find(|letter: char| letter.is_whitespace() || letter == '$').unwrap_or(inside.len());
            if end > 0 {
                return LastBox::Closed(&inside[..end]);
            }
        }
    }
    LastBox::None
}

/// Where the brace is that closes the one before the text.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'{' => open += 1,
            b'}' => open -= 1,
            _ => (),
        }
        if open == 0 {
            return Some(at);
        }
    }
    None
}
