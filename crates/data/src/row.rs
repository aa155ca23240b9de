//! A row as a run uses it.

use serde_json::{Map, Value};

use crate::{ImageSource, Origin};

/// A question with all that belongs to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The conversation up to the user's message that is to be answered, template applied.
    pub messages: Vec<Message>,
    /// The text of that last message as it is in the file: before the template, placeholders in their places.
    pub prompt: String,
    /// The images of the conversation, one for each [`Part::Image`], in their order.
    pub images: Vec<ImageSource>,
    /// What a verifier compares with.
    pub answer: Option<String>,
    /// A worked answer.
    pub completion: Option<String>,
    /// All columns that hold something, except images and other binary data.
    pub columns: Map<String, Value>,
    /// Where the row comes from.
    pub origin: Origin,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said and shown. No text is empty and no two follow each other.
    pub parts: Vec<Part>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Standing instructions.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

/// A piece of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text.
    Text(String),
    /// Place of the next image.
    Image,
}
