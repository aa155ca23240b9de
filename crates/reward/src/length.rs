use serde::{Deserialize, Serialize};

use crate::{Asked, Error, Response, Reward, Score};

/// `kind = "length"`: the soft overlong punishment of DAPO (arXiv 2503.14476, eq. 13): 0 up to `max_tokens - buffer`
/// tokens, then falling linearly to -1 at `max_tokens`, and -1 beyond.
///
/// The paper has `max_tokens` 20,480 with a buffer of 4,096. With `min_tokens` the same holds, mirrored, for responses
/// that are too short: -1 up to `min_tokens`, 0 from `min_tokens + buffer` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Length {
    /// Length in tokens from which the punishment is whole.
    pub max_tokens: usize,
    /// Tokens over which it grows.
    pub buffer: usize,
    /// Length in tokens up to which a response is as bad as one that is too long; absent, none is too short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_tokens: Option<usize>,
}

impl Length {
    pub(crate) fn checked(self) -> Result<Self, Error> {
        // In between, there has to be a length that is not punished.
        let least = self.min_tokens.map_or(Some(0), |least| least.checked_add(self.buffer));
        match least.and_then(|least| least.checked_add(self.buffer)) {
            _ if self.buffer == 0 => Err(Error::setting("buffer", "has to be positive")),
            Some(least) if least <= self.max_tokens => Ok(self),
            _ => Err(Error::setting("max_tokens", "leaves no length without punishment: the buffer is too long")),
        }
    }
}

impl Reward for Length {
    fn score(&self, _: &Asked<'_>, response: &Response<'_>) -> Result<Score, Error> {
        let over = response.tokens.saturating_sub(self.max_tokens - self.buffer);
        let under = self.min_tokens.map_or(0, |least| (least + self.buffer).saturating_sub(response.tokens));
        Ok((-(over.max(under).min(self.buffer) as f32 / self.buffer as f32)).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{asked, nothing};

    fn values(length: Length, tokens: &[usize]) -> Vec<f32> {
        let length = length.checked().expect("a range");
        let of = |&tokens| {
            let response = Response { text: "", tokens, truncated: false };
            length.score(&asked("", &nothing()), &response).expect("a score").value.expect("a value")
        };
        tokens.iter().map(of).collect()
    }

    #[test]
    fn the_punishment_is_a_ramp() {
        let length = Length { max_tokens: 20, buffer: 4, min_tokens: None };
        assert_eq!(values(length, &[0, 16, 17, 18, 20, 25]), [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]);
        let whole = Length { max_tokens: 4, buffer: 4, min_tokens: None };
        assert_eq!(values(whole, &[0, 1, 4, 5]), [0.0, -0.25, -1.0, -1.0]);
    }

    #[test]
    fn a_band_has_two() {
        let length = Length { max_tokens: 20, buffer: 4, min_tokens: Some(2) };
        let expected = [-1.0, -1.0, -0.75, -0.25, 0.0, 0.0, -0.25, -1.0, -1.0];
        assert_eq!(values(length, &[0, 2, 3, 5, 6, 16, 17, 20, 21]), expected);
    }

    #[test]
    fn a_range_without_a_free_length_is_refused() {
        for (max_tokens, buffer, min_tokens) in
            [(20, 0, None), (3, 4, None), (9, 4, Some(2)), (9, 4, Some(usize::MAX)), (9, usize::MAX, None)]
        {
            assert!(Length { max_tokens, buffer, min_tokens }.checked().is_err(), "{max_tokens} {buffer}");
        }
        assert!(Length { max_tokens: 10, buffer: 4, min_tokens: Some(2) }.checked().is_ok());
    }
}
