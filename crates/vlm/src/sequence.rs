//! Prompts, and completions behind them, laid out one after another for a pass through the decoder.

use std::ops::Range;

use crate::fused::Span;
use crate::processor::Prompt;
use crate::rope::Position;

/// Tokens in the order in which they run: each prompt once, and behind all of them the completions, which see its rows.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) ids: Vec<u32>,
    pub(crate) positions: Vec<Position>,
    /// Who sees what.
    pub(crate) spans: Vec<Span>,
    /// Rows of the visual tokens, in the order of their features.
    pub(crate) visual: Vec<usize>,
    /// Rows of each prompt.
    pub(crate) prompts: Vec<Range<usize>>,
    /// Position of what follows each prompt.
    pub(crate) next_positions: Vec<u32>,
}

impl Sequence {
    /// Prompts alone. `merge` is the side of a visual token in patches.
    pub(crate) fn new(prompts: &[&Prompt], merge: usize) -> Self {
        let mut sequence = Self {
            ids: Vec::new(),
            positions: Vec::new(),
            spans: Vec::with_capacity(prompts.len()),
            visual: Vec::new(),
            prompts: Vec::with_capacity(prompts.len()),
            next_positions: Vec::with_capacity(prompts.len()),
        };
        for prompt in prompts {
            let start = sequence.ids.len();
            sequence.ids.extend_from_slice(prompt.input_ids());
            let rows = start..sequence.ids.len();
            sequence.visual.extend(prompt.image_spans().iter().cloned().flatten().map(|position| start + position));
            let next = push_positions(prompt, merge, &mut sequence.positions);
            sequence.next_positions.push(next);
            sequence.spans.push(Span { queries: rows.clone(), own: rows.clone(), prompt: 0..0 });
            sequence.prompts.push(rows);
        }
        sequence
    }

    /// Lays out a completion of a prompt and returns its rows. Completions of a prompt follow each other.
    pub(crate) fn complete(&mut self, prompt: usize, tokens: &[u32]) -> Range<usize> {
        let start = self.ids.len();
        self.ids.extend_from_slice(tokens);
        let rows = start..self.ids.len();
        let first = self.next_positions[prompt];
        self.positions.extend((first..first + tokens.len() as u32).map(|position| [position; 3]));
        // A completion of one token may have none that has to run.
        if !rows.is_empty() {
            let prompt = self.prompts[prompt].clone();
            self.spans.push(Span { queries: rows.clone(), own: rows.clone(), prompt });
        }
        rows
    }
}

/// Adds the multimodal positions of a prompt's tokens; returns the position of what follows it.
///
/// Text advances by one on all axes; an image stands still in time, spreads its visual tokens over height and width, and
/// advances by its longer side.
fn push_positions(prompt: &Prompt, merge: usize, positions: &mut Vec<Position>) -> u32 {
    let mut spans = prompt.image_spans().iter().zip(prompt.images()).peekable();
    let (mut at, mut next) = (0, 0);
    while at < prompt.input_ids().len() {
        if let Some((span, image)) = spans.next_if(|(span, _)| span.start == at) {
            let (height, width) = (image.grid.h / merge, image.grid.w / merge);
            let position = |offset| [next, next + (offset / width % height) as u32, next + (offset % width) as u32];
            positions.extend((0..span.len()).map(position));
            next += height.max(width) as u32;
            at = span.end;
        } else {
            positions.push([next; 3]);
            next += 1;
            at += 1;
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_stand_behind_their_prompts() {
        let [long, short] = [vec![7; 3], vec![8; 2]].map(|ids| Prompt::new(ids, Vec::new(), Vec::new()));
        let mut sequence = Sequence::new(&[&long, &short], 1);
        assert_eq!(
            [(0, &[1, 2][..]), (1, &[]), (1, &[3])].map(|(prompt, ids)| sequence.complete(prompt, ids)),
            [5..7, 7..7, 7..8]
        );
        assert_eq!(sequence.ids, [7, 7, 7, 8, 8, 1, 2, 3]);
        assert_eq!(sequence.positions.iter().map(|position| position[0]).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 3, 4, 2]);
        let seen = |span: &Span| (span.queries.clone(), span.own.clone(), span.prompt.clone());
        // Nothing is seen by a completion of which nothing runs.
        let expected = [(0..3, 0..3, 0..0), (3..5, 3..5, 0..0), (5..7, 5..7, 0..3), (7..8, 7..8, 3..5)];
        assert_eq!(sequence.spans.iter().map(seen).collect::<Vec<_>>(), expected);
    }
}
