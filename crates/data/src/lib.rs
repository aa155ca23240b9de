//! A user's data set: rows of JSONL and Parquet files, read at random and in a reproducible order.
//!
//! [`DataSet`] opens files of any size, checks every row once and keeps where rows are; [`Order`] says which row a run
//! asks for next; a [`Row`] is a conversation with images, an answer and what else the files hold.
//!
//! # Layouts
//!
//! What is published is read without settings:
//!
//! | layout | prompt | images | answer |
//! |---|---|---|---|
//! | ours | `prompt`, a text, or `messages`, a conversation | `images` or `image` | `answer` |
//! | [TRL] | `prompt`, a text or a conversation | `image`, `images` | `solution`, `answer` |
//! | [EasyR1] | `problem`, a text with `<image>` | `images` | `answer` |
//! | [verl] | `prompt`, a conversation with `<image>` | `images` | `reward_model.ground_truth` |
//!
//! [TRL]: https://huggingface.co/docs/trl/dataset_formats
//! [EasyR1]: https://huggingface.co/datasets/hiyouga/geometry3k
//! [verl]: https://github.com/volcengine/verl/blob/main/examples/data_preprocess/geo3k.py
//!
//! and [`Columns`] names the columns of others. Null is the same as nothing: Parquet cannot tell the two apart.
//!
//! - **A conversation** is a list of `{"role": ..., "content": ...}` with roles `system`, `user` and `assistant` and
//!   a content that is a text or a list of `{"type": "text", "text": ...}` and `{"type": "image"}`. It ends with the
//!   user's message; an assistant's after it is the worked answer. A text alone is the user's message.
//! - **Images** take the places of the parts `{"type": "image"}` or of the placeholders `<image>`, as many as there are
//!   images. Where there is neither they come before the text of the user's first message, as TRL has it.
//! - **An image** is a path from the data file's directory or [`Layout::image_root`]; a PNG, JPEG or WebP file in
//!   base64, as a `data:` URL or without its head; or `{"bytes": ..., "path": ...}`, the `Image` of Hugging Face's
//!   `datasets`: binary in Parquet, base64 in JSONL; without bytes the path counts. Parquet also has plain binary.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use firesight_data::{Columns, DataSet, Layout, Order};
//!
//! let directory = tempfile::tempdir()?;
//! let file = directory.path().join("train.jsonl");
//! std::fs::write(&file, r#"{"problem": "What is 6 * 7?", "truth": {"value": 42}}"#)?;
//!
//! let columns = Columns { answer: Some("truth.value".into()), ..Columns::default() };
//! let template = Some("{{ prompt }} Put the answer in \\boxed{}.".into());
//! let data = DataSet::open(&[file], &Layout { columns, template, ..Layout::default() }, 0)?;
//! let order = Order::new(0, data.len(), true);
//! let row = data.row(order.index(1_000_000))?;
//! assert_eq!((row.prompt.as_str(), row.answer.as_deref()), ("What is 6 * 7?", Some("42")));
//! # Ok(())
//! # }
//! ```

mod compose;
mod data_set;
mod error;
mod files;
mod image_source;
mod layout;
mod lines;
mod order;
mod parquet_columns;
mod parquet_file;
mod record;
mod row;
mod scan;
mod summary;

pub use data_set::DataSet;
pub use error::{BadRow, Error, Origin};
pub use image_source::ImageSource;
pub use layout::{Columns, Layout};
pub use order::Order;
pub use row::{Message, Part, Role, Row};
pub use scan::{ColumnType, ColumnTypes, Spread};
pub use summary::{FileSummary, Summary};
