//! Messages and images in, token ids out: the one place that knows where an image stands in a prompt.

use std::ops::Range;
use std::path::Path;

use image::RgbImage;

use crate::features::KeptFeatures;
use crate::sampling::GenerationConfig;
use crate::{
    ChatTemplate, Error, ImageProcessor, Message, ModelConfig, ProcessedImage, Sampling, TemplateVariables, Tokenizer,
    VisionConfig,
};

/// A prompt as the model reads it. It does not change, so that what a frozen vision tower makes of its images can be
/// kept with it.
#[derive(Debug, Clone)]
pub struct Prompt {
    input_ids: Vec<u32>,
    images: Vec<ProcessedImage>,
    image_spans: Vec<Range<usize>>,
    pub(crate) features: KeptFeatures,
}

impl Prompt {
    /// A prompt of these token ids, every visual token written out as the image placeholder; `image_spans` are the
    /// positions of each image's visual tokens among them, in the order of `images`.
    #[must_use]
    pub fn new(input_ids: Vec<u32>, images: Vec<ProcessedImage>, image_spans: Vec<Range<usize>>) -> Self {
        Self { input_ids, images, image_spans, features: KeptFeatures::default() }
    }

    /// Token ids; every visual token is written out as the image placeholder.
    #[must_use]
    pub fn input_ids(&self) -> &[u32] {
        &self.input_ids
    }

    /// Images in order of appearance.
    #[must_use]
    pub fn images(&self) -> &[ProcessedImage] {
        &self.images
    }

    /// Positions in [`Self::input_ids`] of each image's visual tokens, in the same order.
    #[must_use]
    pub fn image_spans(&self) -> &[Range<usize>] {
        &self.image_spans
    }
}

/// Tokenizer, chat template, image processor and generation settings of one checkpoint. Clones share all that is large.
#[derive(Debug, Clone)]
pub struct Processor {
    model_type: String,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    variables: TemplateVariables,
    /// `None` for a model of text alone.
    vision: Option<Vision>,
    stop_tokens: Vec<u32>,
    padding: Option<u32>,
    sampling: Sampling,
    /// Rows of the embedding table.
    rows: u32,
}

/// What turns images into tokens.
#[derive(Debug, Clone)]
struct Vision {
    images: ImageProcessor,
    image: Placeholder,
    video: Placeholder,
    /// What opens an image, and what closes it.
    marks: [Option<u32>; 2],
}

/// A token that stands for pixels.
#[derive(Debug, Clone)]
struct Placeholder {
    id: u32,
    text: String,
}

impl Placeholder {
    fn new(tokenizer: &Tokenizer, id: u32, field: &str) -> Result<Self, Error> {
        let text = tokenizer.token_text(id);
        // Templates write it as text, so the text must lead back to the id.
        if text.is_empty() || tokenizer.encode(&text)? != [id] {
            let problem = format!("{field} {id} of config.json is no special token");
            return Err(Error::Tokenizer { path: tokenizer.path().into(), problem });
        }
        Ok(Self { id, text })
    }
}

impl Vision {
    fn from_dir(dir: &Path, config: &ModelConfig, vision: &VisionConfig, tokenizer: &Tokenizer) -> Result<Self, Error> {
        let images = ImageProcessor::from_dir(dir)?;
        let refuse = |field: &str, problem: String| Error::Config {
            path: dir.join("config.json"),
            field: field.into(),
            problem,
        };
        for (field, found, expected) in [
            ("vision_config.patch_size", vision.patch_size, images.patch_size()),
            ("vision_config.temporal_patch_size", vision.temporal_patch_size, images.temporal_patch_size()),
            ("vision_config.spatial_merge_size", vision.spatial_merge_size, images.merge_size()),
        ] {
            if found != expected {
                return Err(refuse(field, format!("is {found}, the image processor's is {expected}")));
            }
        }
        let placeholder = |field: &str, id: Option<u32>| match id {
            Some(id) => Placeholder::new(tokenizer, id, field),
            None => Err(refuse(field, "is missing".into())),
        };
        Ok(Self {
            image: placeholder("image_token_id", config.image_token_id)?,
            video: placeholder("video_token_id", config.video_token_id)?,
            marks: [config.vision_start_token_id, config.vision_end_token_id],
            images,
        })
    }
}

impl Processor {
    /// Reads `config.json`, `tokenizer.json`, the chat template, `generation_config.json` where there is one, and for a
    /// model with a vision tower the image processor's settings.
    ///
    /// # Errors
    /// When a file is missing or damaged, or when they are not of the same model: patch sizes differ, the tokenizer
    /// has more tokens than the embedding has rows, or lacks the placeholders that `config.json` names.
    pub fn from_dir(dir: &Path) -> Result<Self, Error> {
        let config = ModelConfig::from_dir(dir)?;
        let tokenizer = Tokenizer::from_dir(dir)?;
        let (tokens, rows) = (tokenizer.vocab_size(), config.text_config.vocab_size);
        if tokens > rows {
            let problem = format!("has {tokens} tokens, the embedding of config.json only {rows} rows");
            return Err(Error::Tokenizer { path: tokenizer.path().into(), problem });
        }
        let vision = config.vision_config.as_ref();
        let vision = vision.map(|vision| Vision::from_dir(dir, &config, vision, &tokenizer)).transpose()?;
        let generation = GenerationConfig::from_dir(dir)?;
        let mut stop_tokens = vec![config.text_config.eos_token_id];
        for &id in generation.eos_token_id.as_slice() {
            if !stop_tokens.contains(&id) {
                stop_tokens.push(id);
            }
        }
        Ok(Self {
            template: ChatTemplate::from_dir(dir)?,
            variables: TemplateVariables::default(),
            // Where one token does both, it has to be sampled.
            padding: generation.pad_token_id.filter(|id| !stop_tokens.contains(id)),
            sampling: generation.sampling(),
            model_type: config.model_type,
            rows: rows as u32,
            stop_tokens,
            tokenizer,
            vision,
        })
    }

    /// The same processor with these variables for the chat template, such as `enable_thinking`.
    #[must_use]
    pub fn with_template_variables(self, variables: TemplateVariables) -> Self {
        Self { variables, ..self }
    }

    /// The same processor with other bounds for the pixels of a resized image; see [`ImageProcessor::with_pixels`].
    /// A model of text alone has no such bounds, and stays as it is.
    ///
    /// # Errors
    /// As there.
    pub fn with_pixels(
        mut self,
        min_pixels: Option<u64>,
        max_pixels: Option<u64>,
    ) -> Result<Self, (&'static str, String)> {
        self.vision = match self.vision {
            Some(vision) => Some(Vision { images: vision.images.with_pixels(min_pixels, max_pixels)?, ..vision }),
            None => None,
        };
        Ok(self)
    }

    /// Renders a conversation up to where the model answers, and puts the images in place.
    ///
    /// `images` belong to the image parts of the messages, in order. Where they stand in the result follows from the
    /// template alone. A message whose text contains an image or video placeholder is refused: data must not be able
    /// to shift the images.
    ///
    /// # Errors
    /// [`Error::ImageCount`] when messages and images do not match, [`Error::PlaceholderInText`] as said above, and
    /// what [`ChatTemplate::render`] and [`Tokenizer::encode`] return.
    pub fn prompt(&self, messages: &[Message], images: &[ProcessedImage]) -> Result<Prompt, Error> {
        self.refuse_placeholders(messages)?;
        let text = self.text(messages)?;
        let pieces: Vec<&str> = match &self.vision {
            Some(vision) => text.split(vision.image.text.as_str()).collect(),
            None => vec![&text],
        };
        let placeholders = pieces.len() - 1;
        if !images.is_empty() {
            self.vision()?;
        }
        if placeholders != images.len() {
            return Err(Error::ImageCount { placeholders, images: images.len() });
        }
        // The placeholder is a special token, at which the tokenizer splits as well: the ids are those of the whole.
        let mut input_ids = self.tokenizer.encode(pieces[0])?;
        let mut image_spans = Vec::with_capacity(images.len());
        for (image, piece) in images.iter().zip(&pieces[1..]) {
            let vision = self.vision()?;
            let start = input_ids.len();
            let end = start + image.grid.visual_tokens(vision.images.merge_size());
            input_ids.resize(end, vision.image.id);
            input_ids.extend(self.tokenizer.encode(piece)?);
            image_spans.push(start..end);
        }
        Ok(Prompt::new(input_ids, images.to_vec(), image_spans))
    }

    /// A conversation as the template renders it, up to where the model answers: what [`Self::prompt`] encodes, with one
    /// placeholder for each image.
    ///
    /// # Errors
    /// What [`ChatTemplate::render`] returns.
    pub fn text(&self, messages: &[Message]) -> Result<String, Error> {
        self.template.render(messages, true, &self.variables)
    }

    /// The texts are joined first, because templates may join them too.
    fn refuse_placeholders(&self, messages: &[Message]) -> Result<(), Error> {
        let Some(vision) = &self.vision else { return Ok(()) };
        let text: String = messages.iter().flat_map(Message::texts).collect();
        match [&vision.image, &vision.video].into_iter().find(|placeholder| text.contains(&placeholder.text)) {
            Some(placeholder) => Err(Error::PlaceholderInText { token: placeholder.text.clone() }),
            None => Ok(()),
        }
    }

    fn vision(&self) -> Result<&Vision, Error> {
        self.vision.as_ref().ok_or_else(|| Error::NoVision { model: self.model_type.clone() })
    }

    /// The tokens that open and close an image.
    pub(crate) fn image_marks(&self) -> Result<[Option<u32>; 2], Error> {
        Ok(self.vision()?.marks)
    }

    /// See [`ImageProcessor::process`].
    ///
    /// # Errors
    /// [`Error::ImageSize`] when the image is empty or too narrow, [`Error::NoVision`] for a model of text alone.
    pub fn image(&self, image: &RgbImage) -> Result<ProcessedImage, Error> {
        self.vision()?.images.process(image)
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The image processor.
    ///
    /// # Errors
    /// [`Error::NoVision`] for a model of text alone.
    pub fn image_processor(&self) -> Result<&ImageProcessor, Error> {
        Ok(&self.vision()?.images)
    }

    /// The token that ends an answer.
    #[must_use]
    pub fn eos_token_id(&self) -> u32 {
        self.stop_tokens[0]
    }

    /// Every token that ends an answer: that of `config.json` first, then those of `generation_config.json`.
    #[must_use]
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// Tokens that no answer can hold: padding, and ids of the embedding table that the tokenizer does not have.
    /// [`QwenVl::token_mask`](crate::QwenVl::token_mask) adds the placeholders of images.
    pub fn suppressed_tokens(&self) -> impl Iterator<Item = u32> {
        self.padding.into_iter().chain((0..self.rows).filter(|&id| !self.tokenizer.has_token(id)))
    }

    /// How `generation_config.json` draws tokens; the most likely one where it does not say.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        self.sampling
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::tokenizer::tests::byte_tokenizer;
    use crate::{Part, tokenizer};

    const CONFIG: &str = r#"{"model_type": "qwen3_vl", "image_token_id": 260, "video_token_id": 261,
        "vision_start_token_id": 258, "vision_end_token_id": 259,
        "text_config": {"vocab_size": 272, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-6,
            "rope_theta": 1e4, "rope_scaling": {"mrope_section": [4, 2, 2]}, "max_position_embeddings": 64,
            "eos_token_id": 257},
        "vision_config": {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "in_channels": 3,
            "patch_size": 2, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32,
            "num_position_embeddings": 16, "deepstack_visual_indexes": []}}"#;
    const PREPROCESSOR: &str = r#"{"min_pixels": 16, "max_pixels": 1024, "patch_size": 2, "temporal_patch_size": 2,
        "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"#;
    /// Shows images of users only, and joins the texts of a message.
    const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{% if m.content is string %}{{ m.content }}{% else %}\
        {% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% elif m.role == 'user' %}\
        <|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}{{ tail }}";

    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        byte_tokenizer(dir.path());
        for (name, text) in
            [("config.json", CONFIG), ("preprocessor_config.json", PREPROCESSOR), ("chat_template.jinja", TEMPLATE)]
        {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    pub(crate) fn processor() -> Processor {
        Processor::from_dir(directory().path()).unwrap()
    }

    #[test]
    fn images_take_the_places_the_template_gives_them() {
        let processor = processor();
        let images = [(4, 8), (12, 4)].map(|(w, h)| processor.image(&RgbImage::new(w, h)).unwrap());
        let parts = vec![Part::text("a"), Part::Image, Part::text("b"), Part::Image];
        let prompt = processor.prompt(&[Message::system("s"), Message::user(parts)], &images).unwrap();
        let byte = |text: &str| processor.tokenizer().token_id(text).unwrap();
        let (start, end, vision, vision_end, pad) = (256, 257, 258, 259, 260);
        // 4 x 8 pixels are 2 x 4 patches and 2 tokens; 12 x 4 are 3.
        let expected = [
            vec![start, byte("s"), end, start, byte("a"), vision, pad, pad, vision_end],
            vec![byte("b"), vision, pad, pad, pad, vision_end, end],
        ];
        assert_eq!(prompt.input_ids, expected.concat());
        assert_eq!(prompt.image_spans, [6..8, 11..14]);
        assert_eq!(prompt.images.len(), 2);
        assert_eq!(prompt.images[1].grid, images[1].grid);
        assert_eq!(processor.eos_token_id(), end);
    }

    #[test]
    fn template_variables_reach_the_template() {
        let variables = serde_json::from_str(r#"{"tail": "!"}"#).unwrap();
        let processor = processor().with_template_variables(variables);
        let prompt = processor.prompt(&[Message::user("x")], &[]).unwrap();
        assert_eq!(processor.tokenizer().decode(&prompt.input_ids).unwrap(), "x!");
        assert!(prompt.image_spans.is_empty());
    }

    #[test]
    fn a_model_of_text_alone_needs_no_image_settings() {
        let dir = directory();
        std::fs::remove_file(dir.path().join("preprocessor_config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(CONFIG).unwrap();
        let mut text = config["text_config"].take();
        text["model_type"] = "qwen3".into();
        std::fs::write(dir.path().join("config.json"), text.to_string()).unwrap();
        let write = |stop: &str| {
            let generation =
                format!(r#"{{"eos_token_id": {stop}, "pad_token_id": 256, "do_sample": true, "top_k": 5}}"#);
            std::fs::write(dir.path().join("generation_config.json"), generation).unwrap();
            Processor::from_dir(dir.path()).unwrap()
        };
        let processor = write("[257, 256]");
        assert!(!processor.prompt(&[Message::user("x")], &[]).unwrap().input_ids.is_empty());
        assert!(matches!(processor.image(&RgbImage::new(4, 4)), Err(Error::NoVision { .. })));
        let image = self::processor().image(&RgbImage::new(4, 4)).unwrap();
        assert!(matches!(processor.prompt(&[Message::user("x")], &[image]), Err(Error::NoVision { .. })));
        assert_eq!(processor.stop_tokens(), [257, 256]);
        assert_eq!(processor.sampling(), Sampling { top_k: 5, ..Sampling::at(1.0) });
        // The rows of the embedding table that no token has, and padding unless it ends an answer as well.
        let no_token: Vec<u32> = (262..272).collect();
        assert_eq!(processor.suppressed_tokens().collect::<Vec<u32>>(), no_token);
        assert_eq!(write("257").suppressed_tokens().collect::<Vec<u32>>(), [&[256], no_token.as_slice()].concat());
    }

    #[test]
    fn images_and_placeholders_must_match() {
        let processor = processor();
        let image = processor.image(&RgbImage::new(4, 4)).unwrap();
        let one = [Message::user(vec![Part::Image])];
        assert!(matches!(processor.prompt(&one, &[]), Err(Error::ImageCount { placeholders: 1, images: 0 })));
        let two = [image.clone(), image.clone()];
        assert!(matches!(processor.prompt(&one, &two), Err(Error::ImageCount { placeholders: 1, images: 2 })));
        // The template shows no images of the system.
        let hidden = [Message::system(vec![Part::Image])];
        assert!(matches!(processor.prompt(&hidden, &[image]), Err(Error::ImageCount { placeholders: 0, images: 1 })));
    }

    #[test]
    fn text_cannot_pass_for_an_image() {
        let processor = processor();
        let image = processor.image(&RgbImage::new(4, 4)).unwrap();
        // Split over two parts around an image that the template drops, so that the counts would agree.
        let split = vec![Part::text("<|image_"), Part::Image, Part::text("pad|>")];
        for message in [
            Message::user("what is <|image_pad|>?"),
            Message::user(vec![Part::Image, Part::text("<|video_pad|>")]),
            Message::system(split),
        ] {
            let error = processor.prompt(&[message], std::slice::from_ref(&image)).unwrap_err();
            assert!(matches!(error, Error::PlaceholderInText { .. }), "{error}");
        }
    }

    #[test]
    fn files_of_different_models_are_refused() {
        // Every id that this configuration names has a row; only the tokenizer has more tokens.
        let few_rows = CONFIG.replacen(r#""video_token_id": 261"#, r#""video_token_id": 255"#, 1);
        for (config, from, to, word) in [
            (CONFIG, r#""patch_size": 2"#, r#""patch_size": 4"#, "vision_config.patch_size"),
            (&few_rows, r#""vocab_size": 272"#, r#""vocab_size": 261"#, "261 rows"),
            (CONFIG, r#""image_token_id": 260"#, r#""image_token_id": 270"#, "image_token_id"),
            (CONFIG, r#""video_token_id": 261"#, r#""video_token_id": 271"#, "video_token_id"),
            (CONFIG, r#""video_token_id": 261"#, r#""video_token_id": 3000"#, "video_token_id"),
        ] {
            let dir = directory();
            let config = config.replacen(from, to, 1);
            std::fs::write(dir.path().join("config.json"), config).unwrap();
            let error = Processor::from_dir(dir.path()).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        assert_eq!(tokenizer::tests::SPECIAL[4], processor().vision.unwrap().image.text);
    }
}
