//! Text to token ids and back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::{
    DecodeStream, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
};

use crate::Error;

/// The tokenizer in `tokenizer.json`. Clones share the vocabulary.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    path: PathBuf,
    inner: Arc<tokenizers::Tokenizer>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in a model directory.
    ///
    /// Truncation and padding that the file asks for are switched off: training must not cut a text unnoticed.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the file is missing or no tokenizer.
    pub fn from_dir(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("tokenizer.json");
        let read = || {
            let mut inner = tokenizers::Tokenizer::from_file(&path)?;
            inner.with_truncation(None)?;
            inner.with_padding(None);
            Ok(Arc::new(inner))
        };
        let inner = read().map_err(|error: tokenizers::Error| problem(&path, &*error))?;
        Ok(Self { path, inner })
    }

    /// Token ids of a text. Special tokens written out in it count as such; none are added.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the vocabulary cannot express the text; byte-level ones always can.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| problem(&self.path, &*error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids, without special tokens. Ids that no token has are skipped; bytes that are no UTF-8 become
    /// U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer's decoder refuses the tokens; byte-level ones never do.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.inner.decode(ids, true).map_err(|error| problem(&self.path, &*error))
    }

    /// What each token adds to the text: joined, the pieces are what [`decode`](Self::decode) makes of `ids`. A
    /// character that is split over tokens belongs to the one that completes it, an incomplete one at the end to the
    /// last token.
    ///
    /// # Errors
    /// As for [`Self::decode`].
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<String>, Error> {
        let mut stream = self.text_stream();
        let pieces = ids.iter().map(|&id| Ok(stream.push(id)?.unwrap_or_default()));
        let mut pieces = pieces.collect::<Result<Vec<String>, Error>>()?;
        let (text, complete) = (self.decode(ids)?, pieces.iter().map(String::len).sum());
        if let (Some(last), Some(rest)) = (pieces.last_mut(), text.get(complete..)) {
            last.push_str(rest);
        }
        Ok(pieces)
    }

    /// Turns tokens into text one at a time, without special tokens.
    #[must_use]
    pub fn text_stream(&self) -> TextStream<'_> {
        TextStream { path: &self.path, inner: self.inner.decode_stream(true) }
    }

    /// What one token stands for, special tokens by name; empty for an id that no token has.
    ///
    /// A token that is part of a character becomes U+FFFD, so that joined texts can differ from
    /// [`decode`](Self::decode) there; ASCII, line breaks in particular, is exact.
    #[must_use]
    pub fn token_text(&self, id: u32) -> String {
        self.inner.decode(&[id], false).unwrap_or_default()
    }

    /// Id of a token by its name in the vocabulary, such as `<|im_end|>`.
    #[must_use]
    pub fn token_id(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(name)
    }

    /// Whether any token has this id.
    #[must_use]
    pub fn has_token(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some()
    }

    /// Number of tokens, added ones included. The model's embedding table may have more rows.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// File that the tokenizer was read from.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// A text that grows token by token.
pub struct TextStream<'a> {
    path: &'a Path,
    inner: DecodeStream<'a, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>,
}

impl TextStream<'_> {
    /// What `id` adds to the text; `None` while a character is incomplete.
    ///
    /// # Errors
    /// As for [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<Option<String>, Error> {
        self.inner.step(id).map_err(|error| problem(self.path, &*error))
    }
}

fn problem(path: &Path, error: &dyn std::error::Error) -> Error {
    Error::Tokenizer { path: path.into(), problem: error.to_string() }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use tokenizers::models::bpe::{BPE, Vocab};
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::{AddedToken, PaddingParams, TruncationParams};

    use super::*;

    /// Special tokens of [`byte_tokenizer`]; their ids start at 256.
    pub(crate) const SPECIAL: [&str; 6] =
        ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"];

    /// Writes a `tokenizer.json` with one token a byte and the special tokens of Qwen's chat format.
    pub(crate) fn byte_tokenizer(dir: &Path) {
        let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable();
        let vocabulary: Vocab = alphabet.iter().zip(0..).map(|(letter, id)| (letter.to_string(), id)).collect();
        let mut tokenizer = tokenizers::Tokenizer::new(BPE::new(vocabulary, vec![]));
        let bytes = ByteLevel::new(false, false, false);
        tokenizer.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes));
        tokenizer.add_special_tokens(SPECIAL.map(|name| AddedToken::from(name, true))).unwrap();
        tokenizer.with_truncation(Some(TruncationParams { max_length: 3, ..Default::default() })).unwrap();
        tokenizer.with_padding(Some(PaddingParams::default()));
        tokenizer.save(dir.join("tokenizer.json"), false).unwrap();
    }

    #[test]
    fn texts_come_back_and_special_tokens_are_recognised() {
        let dir = tempfile::tempdir().unwrap();
        byte_tokenizer(dir.path());
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        assert_eq!(tokenizer.vocab_size(), 262);
        assert_eq!(tokenizer.token_id("<|im_end|>"), Some(257));
        assert_eq!(tokenizer.token_id("absent"), None);
        // Longer than the truncation in the file.
        let ids = tokenizer.encode("é\n\n<|im_end|>").unwrap();
        assert_eq!(ids.len(), 5);
        assert_eq!(ids[4], 257);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "é\n\n");
        let texts: Vec<String> = ids.iter().map(|&id| tokenizer.token_text(id)).collect();
        assert_eq!(texts, ["\u{fffd}", "\u{fffd}", "\n", "\n", "<|im_end|>"]);
        assert_eq!(tokenizer.token_text(9999), "");
        let mut stream = tokenizer.text_stream();
        let pieces: Vec<Option<String>> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        // The first byte of a character says nothing yet, the token that ends the turn never does.
        assert_eq!(pieces, [None, Some("é".into()), Some("\n".into()), Some("\n".into()), None]);
    }

    #[test]
    fn the_pieces_of_a_text_are_the_text() {
        let dir = tempfile::tempdir().unwrap();
        byte_tokenizer(dir.path());
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let ids = tokenizer.encode("a€\n<|im_end|>é").unwrap();
        assert_eq!(tokenizer.pieces(&ids).unwrap(), ["a", "", "", "€", "\n", "", "", "é"]);
        // Whatever a model makes of bytes: characters that are cut off, begun twice, or split by a special token.
        let [a, first, second, third, ..] = ids[..] else { panic!("{ids:?}") };
        let bytes = [a, first, second, third, 257];
        for number in 0..5usize.pow(5) {
            let ids: Vec<u32> = (0..5).map(|place| bytes[number / 5usize.pow(place) % 5]).collect();
            for length in 0..=ids.len() {
                let (text, pieces) =
                    (tokenizer.decode(&ids[..length]).unwrap(), tokenizer.pieces(&ids[..length]).unwrap());
                assert_eq!((pieces.len(), pieces.concat()), (length, text), "{:?}", &ids[..length]);
            }
        }
    }

    #[test]
    fn broken_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Tokenizer::from_dir(dir.path()).unwrap_err().to_string().contains("tokenizer.json"));
        std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        assert!(Tokenizer::from_dir(dir.path()).unwrap_err().to_string().contains("tokenizer.json"));
    }
}
