use burn::tensor::{Device, Tensor, TensorData};

use crate::{Completion, Error, Group, Scores};

/// Right-pads ragged rows with zeros: `[rows, width]`.
pub(crate) fn pad<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]>, width: usize, device: &Device) -> Tensor<2> {
    let count = rows.len();
    let mut values = vec![0.0; count * width];
    for (place, row) in values.chunks_exact_mut(width.max(1)).zip(rows) {
        place[..row.len()].copy_from_slice(row);
    }
    Tensor::from_data(TensorData::new(values, [count, width]), device)
}

/// One on the tokens of each row, zero behind them: `[rows, width]`.
pub(crate) fn mask(lengths: &[usize], width: usize, device: &Device) -> Tensor<2> {
    let ones = vec![1.0; width];
    let rows: Vec<&[f32]> = lengths.iter().map(|&length| &ones[..length]).collect();
    pad(rows.into_iter(), width, device)
}

/// Log-probabilities under the policy that sampled, a row a completion.
pub(crate) fn sampled<P>(groups: &[Group<P>]) -> Vec<&[f32]> {
    groups.iter().flat_map(|group| &group.completions).map(|completion| completion.log_probs.as_slice()).collect()
}

/// The log-probabilities that a completion was drawn with; an expert's was not.
pub(crate) fn drawn_with(completion: &Completion) -> &[f32] {
    if completion.expert { &[] } else { &completion.log_probs }
}

/// Values of a `[rows, width]` tensor, row-major.
pub(crate) fn values(tensor: &Tensor<2>) -> Result<Vec<f32>, Error> {
    tensor.clone().detach().try_into_vec_as::<f32>().map_err(|error| Error::Policy(Box::new(error)))
}

/// The rows of a padded tensor, cut to `lengths`.
pub(crate) fn unpad(tensor: &Tensor<2>, lengths: &[usize]) -> Result<Vec<Vec<f32>>, Error> {
    let width = tensor.dims()[1];
    let values = values(tensor)?;
    Ok(values.chunks_exact(width.max(1)).zip(lengths).map(|(row, &length)| row[..length].to_vec()).collect())
}

/// Refuses scores that do not have a row for each completion and a column for each token.
pub(crate) fn check_shape(scores: &Scores, lengths: &[usize]) -> Result<(), Error> {
    let expected = [lengths.len(), lengths.iter().copied().max().unwrap_or(0)];
    for found in [scores.log_probs.dims(), scores.entropy.dims()] {
        if found[0] != expected[0] || found[1] < expected[1] || found != scores.log_probs.dims() {
            return Err(Error::ScoreShape { found, expected });
        }
    }
    Ok(())
}
