//! Talking to a model about images.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::FloatDType;
use firesight_vlm::{
    Generated, Generation, Message, Part, ProcessedImage, Processor, QwenVl, Role, Sampling, TokenMask, read_image,
};

use crate::Error;
use crate::device::{device, precision};
use crate::extrapolation::ExtrapolationConfig;

/// How a model is loaded to talk to, and how it answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Speech {
    /// Model directory in Hugging Face layout.
    pub model: PathBuf,
    /// Directory of a LoRA adapter in PEFT's layout.
    pub adapter: Option<PathBuf>,
    /// See [`device`](crate::device()).
    pub device: String,
    /// Float type to compute in.
    pub dtype: FloatDType,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// Seed of the draws.
    pub seed: u64,
    /// 0 takes the most likely token; `None`, here and below, what `generation_config.json` says.
    pub temperature: Option<f32>,
    /// Only this many of the most likely tokens; 0 for all.
    pub top_k: Option<usize>,
    /// Only the most likely tokens that have this probability together.
    pub top_p: Option<f32>,
    /// Only tokens at least this share as likely as the likeliest.
    pub min_p: Option<f32>,
    /// Answers by what training has gained over another model.
    pub extrapolation: Option<ExtrapolationConfig>,
}

/// A conversation with a model.
#[derive(Debug)]
pub struct Conversation {
    model: QwenVl,
    /// The model that it was trained from, where answers extrapolate.
    base: Option<(QwenVl, ExtrapolationConfig)>,
    processor: Processor,
    mask: TokenMask,
    sampling: Sampling,
    max_tokens: usize,
    seed: u64,
    messages: Vec<Message>,
    images: Vec<ProcessedImage>,
    /// How many of the images have been shown.
    shown: usize,
}

/// What a model said.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Without special tokens.
    pub text: String,
    /// Its length.
    pub tokens: usize,
    /// Whether it met the length limit.
    pub truncated: bool,
}

impl Conversation {
    /// Loads a model, to be told `system` and shown the images with the first question.
    ///
    /// # Errors
    /// When an image or a file of the model cannot be read; that of an image comes before the weights are read.
    pub fn new(speech: &Speech, system: Option<String>, images: &[PathBuf]) -> Result<Self, Error> {
        let device = device(&speech.device)?;
        let processor = Processor::from_dir(&speech.model)?;
        let images = images.iter().map(|path| image(&processor, path)).collect::<Result<_, _>>()?;
        let mut model = QwenVl::from_dir_as(&speech.model, speech.dtype, &device)?;
        if let Some(adapter) = &speech.adapter {
            model = model.with_adapter(adapter)?.materialize();
        }
        let precision = precision(&speech.device, speech.dtype);
        let model = model.with_precision(precision);
        let base = |extrapolation: &ExtrapolationConfig| -> Result<_, Error> {
            let base = QwenVl::from_dir_as(&extrapolation.base, speech.dtype, &device)?;
            Ok((base.with_precision(precision), extrapolation.clone()))
        };
        let base = speech.extrapolation.as_ref().map(base).transpose()?;
        let published = processor.sampling();
        Ok(Self {
            mask: model.token_mask(processor.suppressed_tokens())?,
            sampling: Sampling {
                temperature: speech.temperature.unwrap_or(published.temperature),
                top_k: speech.top_k.unwrap_or(published.top_k),
                top_p: speech.top_p.unwrap_or(published.top_p),
                min_p: speech.min_p.unwrap_or(published.min_p),
            },
            max_tokens: speech.max_tokens,
            seed: speech.seed,
            messages: system.into_iter().map(Message::system).collect(),
            model,
            base,
            processor,
            images,
            shown: 0,
        })
    }

    /// Shows an image with the next question.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn show(&mut self, path: &Path) -> Result<(), Error> {
        self.images.push(image(&self.processor, path)?);
        Ok(())
    }

    /// Forgets what was said and shown, but for standing instructions.
    pub fn forget(&mut self) {
        self.messages.retain(|message| message.role == Role::System);
        self.images.clear();
        self.shown = 0;
    }

    /// Has `heard` hear the answer as it comes, and remembers both.
    ///
    /// # Errors
    /// When the conversation cannot be rendered or is too long, or the model fails.
    pub fn ask(&mut self, question: &str, mut heard: impl FnMut(&str)) -> Result<Answer, Error> {
        let said = self.messages.len();
        self.messages.push(self.asked(question));
        let answer = self.draw(1, &mut heard);
        let answer = match answer {
            Ok(mut answers) => answers.remove(0),
            Err(error) => {
                self.messages.truncate(said);
                return Err(error);
            }
        };
        self.shown = self.images.len();
        let answer = self.answer(&answer)?;
        self.messages.push(Message::assistant(answer.text.clone()));
        Ok(answer)
    }

    /// Several answers to one question, of which none is remembered.
    ///
    /// # Errors
    /// See [`Self::ask`].
    pub fn answers(&mut self, question: &str, count: usize) -> Result<Vec<Answer>, Error> {
        self.messages.push(self.asked(question));
        let drawn = self.draw(count, &mut |_| {});
        self.messages.pop();
        drawn?.iter().map(|drawn| self.answer(drawn)).collect()
    }

    /// A question with the images that have not been shown yet.
    fn asked(&self, question: &str) -> Message {
        let mut parts = vec![Part::Image; self.images.len() - self.shown];
        if parts.is_empty() {
            return Message::user(question);
        }
        parts.push(Part::text(question));
        Message::user(parts)
    }

    fn draw(&self, count: usize, heard: &mut dyn FnMut(&str)) -> Result<Vec<Generated>, Error> {
        let prompt = self.processor.prompt(&self.messages, &self.images)?;
        let room = self.model.config().text_config.max_position_embeddings.saturating_sub(prompt.input_ids().len());
        let generation = Generation {
            sampling: self.sampling,
            max_new_tokens: self.max_tokens.min(room),
            stop_tokens: self.processor.stop_tokens(),
            mask: &self.mask,
            seed: self.seed,
            first_stream: self.messages.len() as u64,
        };
        let mut text = self.processor.tokenizer().text_stream();
        let mut failed = None;
        let on_token = |completion, token| {
            if completion == 0 && failed.is_none() {
                match text.push(token) {
                    Ok(piece) => heard(&piece.unwrap_or_default()),
                    Err(error) => failed = Some(error),
                }
            }
        };
        let mut answers = match &self.base {
            None => self.model.generate_streaming(&[&prompt], count, &generation, on_token)?,
            Some((base, config)) => {
                let extrapolation = config.beyond(base);
                self.model.generate_extrapolated(&[&prompt], count, &generation, &extrapolation, on_token)?
            }
        };
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(answers.remove(0)),
        }
    }

    fn answer(&self, drawn: &Generated) -> Result<Answer, Error> {
        let text = self.processor.tokenizer().decode(&drawn.tokens)?;
        Ok(Answer { text, tokens: drawn.tokens.len(), truncated: !drawn.finished })
    }
}

fn image(processor: &Processor, path: &Path) -> Result<ProcessedImage, Error> {
    let shown = |source| Error::Example { origin: path.display().to_string(), source };
    read_image(path).and_then(|image| processor.image(&image)).map_err(shown)
}
