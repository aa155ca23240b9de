//! Conversations, and the Jinja template of a checkpoint that turns them into text.

mod python;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use minijinja_contrib::pycompat;
use serde::{Deserialize, Serialize};

use crate::Error;

const TEMPLATE: &str = "chat_template";

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Standing instructions.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation. Reads and writes the JSON that data sets use: `{"role": ..., "content": ...}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said and shown.
    pub content: Content,
}

/// What a message says and shows: a string, or a list of parts.
///
/// Templates can tell the two apart, and text-only ones take strings only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Text alone.
    Text(String),
    /// Texts and images in order.
    Parts(Vec<Part>),
}

/// A piece of a message: `{"type": "text", "text": ...}` or `{"type": "image"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Part {
    /// Place of the next image.
    Image,
    /// Text.
    Text {
        /// The text.
        text: String,
    },
}

impl Part {
    /// A piece of text.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<Part>> for Content {
    fn from(parts: Vec<Part>) -> Self {
        Self::Parts(parts)
    }
}

impl Message {
    /// Standing instructions.
    #[must_use]
    pub fn system(content: impl Into<Content>) -> Self {
        Self { role: Role::System, content: content.into() }
    }

    /// A question.
    #[must_use]
    pub fn user(content: impl Into<Content>) -> Self {
        Self { role: Role::User, content: content.into() }
    }

    /// An answer of the model.
    #[must_use]
    pub fn assistant(content: impl Into<Content>) -> Self {
        Self { role: Role::Assistant, content: content.into() }
    }

    /// Its texts in order.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        let (text, parts) = match &self.content {
            Content::Text(text) => (Some(text.as_str()), [].as_slice()),
            Content::Parts(parts) => (None, parts.as_slice()),
        };
        text.into_iter().chain(parts.iter().filter_map(|part| match part {
            Part::Text { text } => Some(text.as_str()),
            Part::Image => None,
        }))
    }
}

impl From<&Message> for Value {
    fn from(message: &Message) -> Self {
        let content = match &message.content {
            Content::Text(text) => Self::from(text),
            Content::Parts(parts) => parts.iter().map(Self::from).collect(),
        };
        Self::from_pairs([("role", Self::from(message.role.name())), ("content", content)])
    }
}

impl From<&Part> for Value {
    fn from(part: &Part) -> Self {
        match part {
            Part::Image => Self::from_pairs([("type", "image")]),
            Part::Text { text } => Self::from_pairs([("type", "text"), ("text", text)]),
        }
    }
}

/// Variables that a template knows beyond the messages, such as `enable_thinking`, `add_vision_id` or `tools`.
///
/// Read from any serde format; the order of keys is kept, for templates print tools as JSON.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct TemplateVariables(python::Object);

/// A checkpoint's chat template, compiled once. Clones share it.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    path: PathBuf,
    environment: Arc<Environment<'static>>,
}

impl ChatTemplate {
    /// Reads the template of a model directory: `chat_template.jinja`, else `chat_template` in `chat_template.json`,
    /// else in `tokenizer_config.json` (its `default` where it names several).
    ///
    /// # Errors
    /// [`Error::Template`] when there is none or it does not compile, [`Error::Json`] and [`Error::Io`] when a file
    /// cannot be read.
    pub fn from_dir(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("chat_template.jinja");
        if path.exists() {
            let source = std::fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
            return Self::new(source, path);
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let path = dir.join(name);
            if path.exists()
                && let Some(source) = crate::read_json::<Carrier>(&path)?.chat_template.and_then(Sources::into_default)
            {
                return Self::new(source, path);
            }
        }
        let missing = "neither chat_template.jinja nor chat_template.json nor tokenizer_config.json has one";
        Err(Error::Template { path: dir.into(), source: minijinja::Error::new(ErrorKind::TemplateNotFound, missing) })
    }

    /// Compiles a template; `path` is what errors call it.
    ///
    /// The environment is that of `apply_chat_template` of transformers: blocks are trimmed, strings have Python's
    /// methods, `tojson` writes as `json.dumps` does, `raise_exception` and `strftime_now` (in UTC) are there.
    ///
    /// # Errors
    /// [`Error::Template`] with the line that does not compile.
    pub fn new(source: String, path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        match environment(source) {
            Ok(environment) => Ok(Self { path, environment: Arc::new(environment) }),
            Err(source) => Err(Error::Template { path, source }),
        }
    }

    /// Text of a conversation; with `add_generation_prompt` it ends where the model's answer begins.
    ///
    /// # Errors
    /// [`Error::Template`] when the template refuses the messages.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        variables: &TemplateVariables,
    ) -> Result<String, Error> {
        // Later pairs win, so no variable can stand in for the messages.
        let messages: Value = messages.iter().map(Value::from).collect();
        let context = Value::from_pairs(variables.0.pairs().chain([
            (Value::from("messages"), messages),
            (Value::from("add_generation_prompt"), Value::from(add_generation_prompt)),
        ]));
        self.environment
            .get_template(TEMPLATE)
            .and_then(|template| template.render(context))
            .map_err(|source| Error::Template { path: self.path.clone(), source })
    }
}

fn environment(source: String) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(pycompat::unknown_method_callback);
    environment.add_filter("tojson", python::to_json);
    environment.add_function("raise_exception", python::raise_exception);
    environment.add_function("strftime_now", python::strftime_now);
    environment.add_template_owned(TEMPLATE, source)?;
    Ok(environment)
}

/// A JSON file that may carry a template among other things.
#[derive(Deserialize)]
struct Carrier {
    chat_template: Option<Sources>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Sources {
    One(String),
    Named(Vec<NamedSource>),
}

#[derive(Deserialize)]
struct NamedSource {
    name: String,
    template: String,
}

impl Sources {
    fn into_default(self) -> Option<String> {
        match self {
            Self::One(source) => Some(source),
            Self::Named(sources) => {
                sources.into_iter().find(|source| source.name == "default").map(|source| source.template)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn render(source: &str, variables: &str) -> Result<String, Error> {
        let messages = [Message::system("Be brief."), Message::user(vec![Part::Image, Part::text("What?")])];
        let variables = serde_json::from_str(variables).unwrap();
        ChatTemplate::new(source.into(), "some/template.jinja")?.render(&messages, true, &variables)
    }

    #[test]
    fn messages_read_as_data_sets_write_them() {
        let json = r#"[{"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Ho"}]}]"#;
        let messages: Vec<Message> = serde_json::from_str(json).unwrap();
        let expected = [Message::user("Hi"), Message::assistant(vec![Part::Image, Part::text("Ho")])];
        assert_eq!(messages, expected);
        assert_eq!(messages.iter().flat_map(Message::texts).collect::<Vec<_>>(), ["Hi", "Ho"]);
        for bad in [r#"{"role": "robot", "content": ""}"#, r#"{"role": "user", "content": [{"type": "video"}]}"#] {
            assert!(serde_json::from_str::<Message>(bad).is_err());
        }
    }

    #[test]
    fn templates_see_strings_parts_and_variables() {
        let source = "{% for m in messages %}\n    {{- m.role }}:{% if m.content is string %}{{ m['content'] }}\
            {% else %}{% for p in m.content %}{{ p.type }}{{ 'image' in p }}{% if 'text' in p %}{{ p.text }}{% endif %}\
            {% endfor %}{% endif %};\n{% endfor %}\n{{ add_generation_prompt }} {{ thinking is defined }}";
        assert_eq!(render(source, "{}").unwrap(), "system:Be brief.;\nuser:imageFalsetextFalseWhat?;\nTrue False");
        // The messages are not for variables to replace.
        assert!(render(source, r#"{"messages": [], "thinking": 1}"#).unwrap().ends_with("What?;\nTrue True"));
    }

    #[test]
    fn lines_that_hold_only_a_block_leave_no_trace() {
        let source = "a\n  {% if true %}\n  b\n  {% endif %}\nc\n";
        assert_eq!(render(source, "{}").unwrap(), "a\n  b\nc");
    }

    #[test]
    fn text_is_not_escaped_and_python_methods_work() {
        let source = "{{ messages[0].content.split(' ')[-1].rstrip('.') }}<&>{{ x }}";
        assert_eq!(render(source, r#"{"x": "<b>"}"#).unwrap(), "brief<&><b>");
    }

    #[test]
    fn errors_name_the_template_and_the_reason() {
        let error = render("{{ raise_exception('no images, please') }}", "{}").unwrap_err();
        assert!(error.to_string().contains("some/template.jinja"), "{error}");
        let reason = std::error::Error::source(&error).unwrap().to_string();
        assert!(reason.contains("no images, please"), "{reason}");
        assert!(matches!(render("{% if %}", "{}"), Err(Error::Template { .. })));
    }

    #[test]
    fn templates_are_found_in_all_three_places() {
        let dir = tempfile::tempdir().unwrap();
        let variables = TemplateVariables::default();
        let found = || ChatTemplate::from_dir(dir.path()).and_then(|template| template.render(&[], false, &variables));
        assert!(found().unwrap_err().to_string().contains("chat template"));
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("tokenizer_config.json", r#"{"eos_token": "x"}"#);
        assert!(found().is_err());
        let named = r#"[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]"#;
        write("tokenizer_config.json", &format!(r#"{{"chat_template": {named}}}"#));
        assert_eq!(found().unwrap(), "d");
        write("chat_template.json", r#"{"chat_template": "json"}"#);
        assert_eq!(found().unwrap(), "json");
        write("chat_template.jinja", "jinja");
        assert_eq!(found().unwrap(), "jinja");
    }
}
