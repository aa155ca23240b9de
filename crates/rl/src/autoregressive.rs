//! For policies that give logits token by token: what scoring and sampling have in common.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};
use rand::RngExt;

use crate::error::check_count;
use crate::rows::values;
use crate::{Completion, Error, Group, Positions, Sampling, Scores, Signals, stream};

/// Domain of the random streams that [`sample_from_logits`] draws from.
const DRAWS: u64 = 0x6472_6177;

impl Scores {
    /// Scores from the logits of every completion token, at `temperature`.
    ///
    /// `logits` has one row for each token of each completion of `groups`, one after another and without padding: what
    /// the policy thought of its next token when that token was drawn.
    ///
    /// # Shapes
    /// `logits`: `[tokens of all completions, vocabulary]`.
    ///
    /// # Errors
    /// [`Error::Count`] when the number of rows is another one.
    pub fn from_logits<P>(logits: Tensor<2>, groups: &[Group<P>], temperature: f32) -> Result<Self, Error> {
        let answers = || groups.iter().flat_map(|group| &group.completions).map(|completion| &completion.tokens);
        let targets: Vec<i64> = answers().flatten().map(|&token| i64::from(token)).collect();
        let count = targets.len();
        check_count("rows of logits", logits.dims()[0], count)?;
        let device = logits.device();
        let log_probs = log_softmax(logits / temperature, 1);
        let entropy = (log_probs.clone().exp() * log_probs.clone()).sum_dim(1).neg();
        let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [count, 1]), &device);
        let lengths: Vec<usize> = answers().map(Vec::len).collect();
        let padded = |tokens: Tensor<2>| rows(tokens, &lengths);
        Ok(Self {
            log_probs: padded(log_probs.gather(1, targets)),
            entropy: padded(entropy),
            signals: Signals::default(),
            positions: Positions::default(),
            continuation: None,
        })
    }
}

/// Right-pads a column of tokens, `[tokens, 1]`, into a row for each completion. Padding repeats the first token.
fn rows(tokens: Tensor<2>, lengths: &[usize]) -> Tensor<2> {
    let width = lengths.iter().copied().max().unwrap_or(0);
    if lengths.iter().all(|&length| length == width) {
        return tokens.reshape([lengths.len(), width]);
    }
    let mut places = vec![0; lengths.len() * width];
    let mut next = 0..;
    for (row, &length) in places.chunks_exact_mut(width).zip(lengths) {
        row[..length].iter_mut().zip(next.by_ref()).for_each(|(place, token)| *place = token);
    }
    let places = Tensor::<1, Int>::from_data(TensorData::new(places, [lengths.len() * width]), &tokens.device());
    tokens.select(0, places).reshape([lengths.len(), width])
}

/// Draws `group_size` completions for every prompt, token by token, all of them side by side.
///
/// `logits` gets the completions that are not finished, each as its prompt and its tokens so far, and returns
/// `[completions, vocabulary]`; a token that may not be said has minus infinity, here and in scoring. A completion ends
/// with `end`, which it contains, or at the length limit; without `end` that limit is its length. Texts stay empty: who
/// has a tokenizer decodes the tokens.
///
/// # Errors
/// [`Error::NonFiniteLogits`] when the logits give no distribution.
pub fn sample_from_logits<P>(
    prompts: &[P],
    group_size: usize,
    sampling: Sampling,
    end: Option<u32>,
    mut logits: impl FnMut(&[(&P, &[u32])]) -> Tensor<2>,
) -> Result<Vec<Vec<Completion>>, Error> {
    let count = prompts.len() * group_size;
    let mut streams: Vec<_> =
        (sampling.first_stream..).take(count).map(|index| stream(sampling.seed, DRAWS, index)).collect();
    let mut answers = vec![Completion { truncated: end.is_some(), ..Completion::default() }; count];
    let mut open: Vec<usize> = (0..count).collect();
    for _ in 0..sampling.max_tokens {
        if open.is_empty() {
            break;
        }
        let so_far: Vec<(&P, &[u32])> =
            open.iter().map(|&row| (&prompts[row / group_size], answers[row].tokens.as_slice())).collect();
        let logits = logits(&so_far);
        let greedy = sampling.temperature == 0.0;
        let log_probs = log_softmax(if greedy { logits } else { logits / sampling.temperature }, 1);
        let vocabulary = log_probs.dims()[1];
        for (&row, log_probs) in open.iter().zip(values(&log_probs)?.chunks_exact(vocabulary)) {
            let number: f32 = streams[row].random();
            if log_probs.iter().any(|log_prob| log_prob.is_nan()) {
                return Err(Error::NonFiniteLogits { completion: row % group_size, prompt: row / group_size });
            }
            let token = if greedy { most_likely(log_probs) } else { draw(log_probs, number) };
            answers[row].tokens.push(token as u32);
            answers[row].log_probs.push(log_probs[token]);
            if Some(token as u32) == end {
                answers[row].truncated = false;
            }
        }
        open.retain(|&row| end.is_none() || answers[row].truncated);
    }
    let mut answers = answers.into_iter();
    Ok(prompts.iter().map(|_| answers.by_ref().take(group_size).collect()).collect())
}

/// The token that `number`, uniform between 0 and 1, falls on.
fn draw(log_probs: &[f32], number: f32) -> usize {
    let mut left = number;
    let found = log_probs.iter().position(|log_prob| {
        left -= log_prob.exp();
        left < 0.0
    });
    // Probabilities may sum to a little less than one.
    found.or_else(|| log_probs.iter().rposition(|log_prob| *log_prob > f32::NEG_INFINITY)).unwrap_or(0)
}

fn most_likely(log_probs: &[f32]) -> usize {
    (1..log_probs.len()).fold(0, |best, token| if log_probs[token] > log_probs[best] { token } else { best })
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::{Completion, Group, Sampling, Scores, sample_from_logits};
    use crate::Error;

    /// After token t comes t + 1 with probability 3/4 and 0 with 1/4; 0 ends, 3 cannot be said.
    fn logits(rows: &[(&u32, &[u32])]) -> Tensor<2> {
        let row = |(prompt, tokens): &(&u32, &[u32])| {
            let last = *tokens.last().unwrap_or(prompt);
            let mut row = [f32::NEG_INFINITY; 4];
            row[0] = 0.25f32.ln();
            row[(last as usize % 2) + 1] = 0.75f32.ln();
            row
        };
        let rows: Vec<[f32; 4]> = rows.iter().map(row).collect();
        Tensor::<1>::from_floats(rows.concat().as_slice(), &Device::flex()).reshape([-1, 4])
    }

    fn sampling(temperature: f32, max_tokens: usize) -> Sampling {
        Sampling { temperature, max_tokens, seed: 4, first_stream: 0 }
    }

    #[test]
    fn completions_end_where_they_should_and_have_the_log_probs_that_scoring_gives() {
        let answers = sample_from_logits(&[1, 2], 200, sampling(1.0, 3), Some(0), logits).unwrap();
        let all: Vec<&Completion> = answers.iter().flatten().collect();
        for answer in &all {
            assert_eq!(answer.truncated, answer.tokens.last() != Some(&0));
            assert!(answer.tokens.len() == 3 || !answer.truncated);
            assert!(!answer.tokens.contains(&3));
        }
        let share = all.iter().filter(|answer| answer.tokens[0] == 0).count() as f32 / all.len() as f32;
        assert!((share - 0.25).abs() < 0.08, "{share}");

        let groups: Vec<Group<u32>> = [1, 2]
            .into_iter()
            .zip(answers)
            .map(|(prompt, completions)| Group { prompt, completions, rewards: Vec::new() })
            .collect();
        let prefixes: Vec<(&u32, &[u32])> = groups
            .iter()
            .flat_map(|group| group.completions.iter().map(move |answer| (&group.prompt, answer)))
            .flat_map(|(prompt, answer)| (0..answer.tokens.len()).map(move |length| (prompt, &answer.tokens[..length])))
            .collect();
        let scores = Scores::from_logits(logits(&prefixes), &groups, 1.0).unwrap();
        let [_, width] = scores.log_probs.dims();
        let scored: Vec<f32> = scores.log_probs.into_data().try_to_vec().unwrap();
        for (answer, scored) in groups.iter().flat_map(|group| &group.completions).zip(scored.chunks(width)) {
            assert_eq!(answer.log_probs, scored[..answer.tokens.len()]);
        }
    }

    #[test]
    fn a_completion_does_not_depend_on_what_is_drawn_beside_it() {
        let all = sample_from_logits(&[1, 2], 3, sampling(1.0, 5), Some(0), logits).unwrap();
        let second = Sampling { first_stream: 3, ..sampling(1.0, 5) };
        assert_eq!(sample_from_logits(&[2], 3, second, Some(0), logits).unwrap()[0], all[1]);
    }

    #[test]
    fn greedy_takes_the_most_likely_and_no_end_means_the_whole_length() {
        let answers = sample_from_logits(&[1], 1, sampling(0.0, 3), None, logits).unwrap();
        assert_eq!(answers[0][0].tokens, [2, 1, 2]);
        assert!(!answers[0][0].truncated);
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        let broken = |rows: &[(&u32, &[u32])]| Tensor::full([rows.len(), 4], f32::NAN, &Device::flex());
        let error = sample_from_logits(&[1, 2], 2, sampling(1.0, 3), None, broken).unwrap_err();
        assert!(matches!(error, Error::NonFiniteLogits { prompt: 0, completion: 0 }), "{error:?}");
    }
}
