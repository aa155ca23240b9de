//! What of a rollout is trained on, in the parts that go through a scoring pass.

use std::ops::Range;

use crate::{Completion, Group, MicroBatch};

/// Completions of a rollout in pieces: each is a group, or as much of one as fits into a pass.
///
/// Rows are completions, those of all pieces one after another; `starts[p]` is the first of piece `p`.
pub(crate) struct Batch<P> {
    pub(crate) pieces: Vec<Group<P>>,
    /// Group of each piece, in the rollout.
    pub(crate) groups: Vec<usize>,
    /// Group and place in it of each row, in the rollout.
    pub(crate) places: Vec<(usize, usize)>,
    pub(crate) starts: Vec<usize>,
    pub(crate) lengths: Vec<usize>,
    /// Tokens of each piece's prompt.
    prompt_tokens: Vec<usize>,
    budget: MicroBatch,
}

impl<P: Clone> Batch<P> {
    /// Takes the completions that `keep` names, as (group, place in it).
    pub(crate) fn new(
        groups: &[Group<P>],
        keep: impl Fn(usize, usize) -> bool,
        budget: MicroBatch,
        prompt_tokens: impl Fn(&P) -> usize,
    ) -> Self {
        let mut batch = Self {
            pieces: Vec::new(),
            groups: Vec::new(),
            places: Vec::new(),
            starts: vec![0],
            lengths: Vec::new(),
            prompt_tokens: Vec::new(),
            budget,
        };
        for (index, group) in groups.iter().enumerate() {
            let kept: Vec<usize> = (0..group.completions.len()).filter(|&place| keep(index, place)).collect();
            let tokens = prompt_tokens(&group.prompt);
            for places in kept.chunks(batch.largest_piece(&group.completions, &kept, tokens)) {
                let completions: Vec<Completion> =
                    places.iter().map(|&place| group.completions[place].clone()).collect();
                batch.places.extend(places.iter().map(|&place| (index, place)));
                batch.lengths.extend(completions.iter().map(|completion| completion.tokens.len()));
                batch.starts.push(batch.lengths.len());
                batch.groups.push(index);
                batch.prompt_tokens.push(tokens);
                batch.pieces.push(Group { prompt: group.prompt.clone(), completions, rewards: Vec::new() });
            }
        }
        batch
    }

    /// Completions of a group that go into one piece.
    fn largest_piece(&self, completions: &[Completion], kept: &[usize], prompt_tokens: usize) -> usize {
        match self.budget {
            MicroBatch::Groups(_) => kept.len().max(1),
            MicroBatch::Tokens(budget) => {
                let longest = kept.iter().map(|&place| completions[place].tokens.len()).max().unwrap_or(0).max(1);
                (budget.saturating_sub(prompt_tokens) / longest).max(1)
            }
        }
    }

    pub(crate) fn rows(&self, pieces: &Range<usize>) -> Range<usize> {
        self.starts[pieces.start]..self.starts[pieces.end]
    }

    /// Cuts a range of pieces into those that go through a pass together.
    pub(crate) fn micro_batches(&self, pieces: Range<usize>) -> Vec<Range<usize>> {
        let mut cut: Vec<Range<usize>> = Vec::new();
        // Of the last micro-batch: tokens of its prompts, and its longest completion.
        let (mut prompts, mut longest) = (0, 0);
        for piece in pieces {
            let tokens = self.prompt_tokens[piece];
            let length = self.lengths[self.rows(&(piece..piece + 1))].iter().copied().max().unwrap_or(0);
            let fits = |last: &Range<usize>| match self.budget {
                MicroBatch::Groups(size) => last.len() < size,
                MicroBatch::Tokens(budget) => {
                    let rows = self.rows(&(last.start..piece + 1)).len();
                    prompts + tokens + rows * length.max(longest) <= budget
                }
            };
            if let Some(last) = cut.last_mut().filter(|last| fits(last)) {
                last.end = piece + 1;
                (prompts, longest) = (prompts + tokens, longest.max(length));
            } else {
                cut.push(piece..piece + 1);
                (prompts, longest) = (tokens, length);
            }
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::Batch;
    use crate::{Completion, Group, MicroBatch};

    fn groups(lengths: &[&[usize]]) -> Vec<Group<usize>> {
        let completion = |&length: &usize| Completion { tokens: vec![0; length], ..Completion::default() };
        let group = |lengths: &&[usize]| Group {
            prompt: 10,
            completions: lengths.iter().map(completion).collect(),
            rewards: Vec::new(),
        };
        lengths.iter().map(group).collect()
    }

    fn cut(lengths: &[&[usize]], micro_batch: MicroBatch) -> (Vec<Vec<usize>>, Vec<std::ops::Range<usize>>) {
        let batch = Batch::new(&groups(lengths), |_, _| true, micro_batch, |&tokens| tokens);
        let pieces = batch.starts.windows(2).map(|ends| batch.lengths[ends[0]..ends[1]].to_vec()).collect();
        (pieces, batch.micro_batches(0..batch.pieces.len()))
    }

    #[test]
    fn a_budget_of_groups_counts_groups() {
        let (pieces, cut) = cut(&[&[3, 4], &[5, 5], &[1, 9]], MicroBatch::Groups(2));
        assert_eq!((pieces.len(), cut), (3, vec![0..2, 2..3]));
    }

    #[test]
    fn a_budget_of_tokens_counts_prompts_and_padding() {
        // Two groups: prompts 20, completions 4 x 5 with padding.
        let all: &[&[usize]] = &[&[3, 4], &[5, 5], &[1, 5]];
        assert_eq!(cut(all, MicroBatch::Tokens(40)).1, [0..2, 2..3]);
        assert_eq!(cut(all, MicroBatch::Tokens(39)).1, [0..1, 1..2, 2..3]);
        assert_eq!(cut(all, MicroBatch::Tokens(60)).1.len(), 1);
    }

    #[test]
    fn a_group_beyond_the_budget_is_cut_and_a_completion_is_not() {
        let (pieces, cuts) = cut(&[&[3, 4, 2]], MicroBatch::Tokens(18));
        assert_eq!((pieces, cuts), (vec![vec![3, 4], vec![2]], vec![0..1, 1..2]));
        assert_eq!(cut(&[&[30, 40]], MicroBatch::Tokens(18)).0, [vec![30], vec![40]]);
    }

    #[test]
    fn what_is_not_kept_leaves_its_place_to_nobody() {
        let batch = Batch::new(
            &groups(&[&[1, 2], &[3], &[4, 5]]),
            |group, place| (group, place) != (0, 1) && group != 1,
            MicroBatch::Groups(8),
            |_| 0,
        );
        assert_eq!(batch.places, [(0, 0), (2, 0), (2, 1)]);
        assert_eq!((batch.groups, batch.lengths), (vec![0, 2], vec![1, 4, 5]));
    }
}
