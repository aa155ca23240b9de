//! Published layouts, as JSONL and as Parquet, give the rows they mean.
#![allow(clippy::unwrap_used)]

mod fixtures;

use firesight_data::{Columns, DataSet, Layout, Message, Part, Role, Row};
use fixtures::{Both, Writing, message, picture, png, rows, text, user};
use serde_json::{Value, json};

/// What is expected of a row; images by the seeds of their pictures.
struct Expected {
    messages: Vec<Message>,
    prompt: &'static str,
    images: Vec<u8>,
    answer: Option<&'static str>,
    completion: Option<&'static str>,
}

fn assert_row(row: &Row, expected: &Expected) {
    assert_eq!(row.messages, expected.messages);
    assert_eq!(row.prompt, expected.prompt);
    assert_eq!(row.answer.as_deref(), expected.answer);
    assert_eq!(row.completion.as_deref(), expected.completion);
    let images: Vec<_> = row.images.iter().map(|image| image.decode().unwrap()).collect();
    assert_eq!(images, expected.images.iter().map(|seed| picture(*seed)).collect::<Vec<_>>());
}

/// Reads rows in both formats, with the expected result, and returns those of JSONL.
fn read(layout: &Layout, source: impl Fn(&dyn Fn(&[u8]) -> String) -> Vec<Value>, expected: &[Expected]) -> Vec<Row> {
    let mut first: Vec<Row> = Vec::new();
    let writings =
        [(1, true, fixtures::zstd()), (2, false, parquet::basic::Compression::SNAPPY), (100, true, fixtures::gzip())];
    for (rows_a_group, statistics, compression) in writings {
        let both = Both::write(&source, Writing { rows_a_group, statistics, compression });
        std::fs::write(both.path("1.png"), png(1)).unwrap();
        for data in both.open(layout, 0) {
            let rows = rows(&data.unwrap());
            assert_eq!(rows.len(), expected.len());
            for (number, (row, expected)) in rows.iter().zip(expected).enumerate() {
                assert_row(row, expected);
                assert_eq!(row.origin.row, number as u64 + 1);
                if let Some(first) = first.get(number) {
                    assert_eq!(row.columns, first.columns);
                }
            }
            first = rows;
        }
    }
    first
}

#[test]
fn a_prompt_with_images_in_every_form() {
    let source = |bytes: &dyn Fn(&[u8]) -> String| {
        vec![
            json!({"prompt": "One?", "images": [{"bytes": bytes(&png(1)), "path": "one.png"}], "answer": "1"}),
            json!({"prompt": "<image>Two? <image>", "images": [{"bytes": bytes(&png(2))}, {"path": "1.png"}],
                   "answer": "2", "completion": "Two."}),
            json!({"prompt": "None?", "images": [], "answer": null, "level": 3}),
            json!({"prompt": "Null?", "images": null}),
            json!({"prompt": "File?", "images": [{"path": "1.png"}]}),
        ]
    };
    let expected = [
        Expected {
            messages: user(vec![Part::Image, text("One?")]),
            prompt: "One?",
            images: vec![1],
            answer: Some("1"),
            completion: None,
        },
        Expected {
            messages: user(vec![Part::Image, text("Two? "), Part::Image]),
            prompt: "<image>Two? <image>",
            images: vec![2, 1],
            answer: Some("2"),
            completion: Some("Two."),
        },
        Expected {
            messages: user(vec![text("None?")]),
            prompt: "None?",
            images: vec![],
            answer: None,
            completion: None,
        },
        Expected {
            messages: user(vec![text("Null?")]),
            prompt: "Null?",
            images: vec![],
            answer: None,
            completion: None,
        },
        Expected {
            messages: user(vec![Part::Image, text("File?")]),
            prompt: "File?",
            images: vec![1],
            answer: None,
            completion: None,
        },
    ];
    let rows = read(&Layout::default(), source, &expected);
    let in_file = |row: usize, image: usize| {
        rows[row].images[image].file().map(|path| path.is_absolute() && path.ends_with("1.png"))
    };
    assert_eq!([in_file(0, 0), in_file(1, 0), in_file(1, 1), in_file(4, 0)], [None, None, Some(true), Some(true)]);
    assert_eq!(Value::Object(rows[2].columns.clone()), json!({"prompt": "None?", "level": 3}));
}

#[test]
fn an_image_as_text_is_a_path_base64_or_a_data_url() {
    let source = |_: &dyn Fn(&[u8]) -> String| {
        let base64 = fixtures::base64(&png(2));
        vec![
            json!({"question": "?", "image": "1.png"}),
            json!({"question": "?", "image": base64}),
            json!({"question": "?", "image": format!("data:image/png;base64,{base64}")}),
        ]
    };
    let expected = [1, 2, 2].map(|seed| Expected {
        messages: user(vec![Part::Image, text("?")]),
        prompt: "?",
        images: vec![seed],
        answer: None,
        completion: None,
    });
    let rows = read(&Layout::default(), source, &expected);
    assert_eq!([0, 1, 2].map(|row| rows[row].images[0].file().is_some()), [true, false, false]);
    assert_eq!(Value::Object(rows[1].columns.clone()), json!({"question": "?"}));
}

#[test]
fn binary_columns_of_parquet_are_images_or_left_out() {
    let source = |bytes: &dyn Fn(&[u8]) -> String| {
        vec![
            json!({"prompt": "a", "bytes": bytes(&png(1)), "thumbnail": {"bytes": bytes(&png(3)), "size": 1}}),
            json!({"prompt": "b", "bytes": bytes(&png(2)), "thumbnail": {"bytes": bytes(&png(3)), "size": 2}}),
        ]
    };
    let both = Both::write(source, Writing::default());
    let columns = Columns { images: Some("bytes".into()), ..Columns::default() };
    let [_, parquet] = both.open(&Layout { columns, ..Layout::default() }, 0);
    let rows = rows(&parquet.unwrap());
    let images: Vec<_> = rows.iter().map(|row| row.images[0].decode().unwrap()).collect();
    assert_eq!(images, [picture(1), picture(2)]);
    assert_eq!(Value::Object(rows[1].columns.clone()), json!({"prompt": "b", "thumbnail": {"size": 2}}));
}

#[test]
fn numbers_and_truth_values_are_answers() {
    let answers =
        [json!(42), json!(-0.5), json!(3.0), json!(true), json!("B"), json!(["one"]), json!("<answer> 3 </answer>")];
    for (answer, expected) in answers.into_iter().zip(["42", "-0.5", "3", "true", "B", "one", "3"]) {
        let source = |_: &dyn Fn(&[u8]) -> String| vec![json!({"prompt": "?", "answer": answer})];
        let expected = Expected {
            messages: user(vec![text("?")]),
            prompt: "?",
            images: vec![],
            answer: Some(expected),
            completion: None,
        };
        read(&Layout::default(), source, &[expected]);
    }
}

/// https://huggingface.co/docs/trl/dataset_formats
#[test]
fn trl_conversations() {
    let source = |bytes: &dyn Fn(&[u8]) -> String| {
        let image = json!({"bytes": bytes(&png(1)), "path": null});
        vec![
            json!({"prompt": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                              {"role": "user", "content": [{"type": "text", "text": "See "}, {"type": "image"},
                                                           {"type": "text", "text": "?"}, {"type": "text", "text": "!"}]}],
                   "completion": [{"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}],
                   "image": image, "solution": "yes"}),
            json!({"prompt": [{"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
                              {"role": "user", "content": [{"type": "text", "text": "First."}]},
                              {"role": "assistant", "content": [{"type": "text", "text": "Go on."}]},
                              {"role": "user", "content": [{"type": "text", "text": "Second."}]}],
                   "image": image, "solution": "no"}),
        ]
    };
    let expected = [
        Expected {
            messages: vec![
                message(Role::System, vec![text("Be brief.")]),
                message(Role::User, vec![text("See "), Part::Image, text("?!")]),
            ],
            prompt: "See <image>?!",
            images: vec![1],
            answer: Some("yes"),
            completion: Some("Yes."),
        },
        Expected {
            messages: vec![
                message(Role::System, vec![text("Be kind.")]),
                message(Role::User, vec![Part::Image, text("First.")]),
                message(Role::Assistant, vec![text("Go on.")]),
                message(Role::User, vec![text("Second.")]),
            ],
            prompt: "Second.",
            images: vec![1],
            answer: Some("no"),
            completion: None,
        },
    ];
    read(&Layout::default(), source, &expected);
}

#[test]
fn an_answer_at_the_end_of_messages_is_the_completion() {
    let source = |_: &dyn Fn(&[u8]) -> String| {
        vec![json!({"messages": [{"role": "user", "content": "Sum <image>."}, {"role": "assistant", "content": "7"}],
                    "image": "1.png"})]
    };
    let expected = Expected {
        messages: user(vec![text("Sum "), Part::Image, text(".")]),
        prompt: "Sum <image>.",
        images: vec![1],
        answer: None,
        completion: Some("7"),
    };
    read(&Layout::default(), source, &[expected]);
}

/// https://huggingface.co/datasets/hiyouga/geometry3k with EasyR1's examples/format_prompt/math.jinja, shortened.
#[test]
fn easyr1_with_its_template() {
    let layout = Layout {
        template: Some("{{ content | trim }} The final answer MUST BE put in \\boxed{}.".into()),
        system: Some("You see.".into()),
        ..Layout::default()
    };
    let source = |bytes: &dyn Fn(&[u8]) -> String| {
        vec![
            json!({"images": [{"bytes": bytes(&png(5)), "path": null}], "problem": "<image>Find $x$. \n", "answer": "3"}),
        ]
    };
    let expected = Expected {
        messages: vec![
            message(Role::System, vec![text("You see.")]),
            message(Role::User, vec![Part::Image, text("Find $x$. The final answer MUST BE put in \\boxed{}.")]),
        ],
        prompt: "<image>Find $x$. \n",
        images: vec![5],
        answer: Some("3"),
        completion: None,
    };
    read(&layout, source, &[expected]);
}

/// examples/data_preprocess/geo3k.py of https://github.com/volcengine/verl
#[test]
fn verl_with_its_nested_answer() {
    let source = |bytes: &dyn Fn(&[u8]) -> String| {
        let row = |seed: u8, truth: &str| {
            json!({"data_source": "hiyouga/geometry3k",
                   "prompt": [{"role": "user", "content": "<image>Find <image>."}],
                   "images": [{"bytes": bytes(&png(seed))}, {"bytes": bytes(&png(seed + 1))}],
                   "ability": "math",
                   "reward_model": {"style": "rule", "ground_truth": truth},
                   "extra_info": {"split": "train", "index": seed, "answer": "other", "question": "Find."}})
        };
        vec![row(1, "a"), row(3, "b"), row(5, "c")]
    };
    let expected = |seed, answer| Expected {
        messages: user(vec![Part::Image, text("Find "), Part::Image, text(".")]),
        prompt: "<image>Find <image>.",
        images: vec![seed, seed + 1],
        answer: Some(answer),
        completion: None,
    };
    let rows = read(&Layout::default(), source, &[expected(1, "a"), expected(3, "b"), expected(5, "c")]);
    assert_eq!(rows[1].columns["extra_info"]["index"], 3);
    assert!(!rows[1].columns.contains_key("images"));

    let columns = Columns { answer: Some("extra_info.answer".into()), ..Columns::default() };
    let expected = [(1, "other"), (3, "other"), (5, "other")].map(|(seed, answer)| expected(seed, answer));
    read(&Layout { columns, ..Layout::default() }, source, &expected);
}

#[test]
fn a_template_sees_the_columns() {
    let layout = Layout {
        template: Some("{{ prompt }}\n{% for choice in columns.choices %}- {{ choice }}\n{% endfor %}".into()),
        placeholder: "[img]".into(),
        ..Layout::default()
    };
    let source = |_: &dyn Fn(&[u8]) -> String| {
        vec![json!({"prompt": "Which <image> & [img]?", "image": "1.png", "choices": ["a", "<b>"]})]
    };
    let expected = Expected {
        messages: user(vec![text("Which <image> & "), Part::Image, text("?\n- a\n- <b>\n")]),
        prompt: "Which <image> & [img]?",
        images: vec![1],
        answer: None,
        completion: None,
    };
    read(&layout, source, &[expected]);
}

#[test]
fn a_directory_is_its_files_by_name_and_columns_may_differ() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let prompts = |first: usize, count| (first..first + count).map(|n| format!("{n}")).collect::<Vec<_>>();
    let of = |key: &str, first, count| {
        prompts(first, count).into_iter().map(|prompt| json!({key: prompt})).collect::<Vec<_>>()
    };
    fixtures::write_parquet(&path("b.parquet"), &of("prompt", 3, 5), Writing::default());
    fixtures::write_jsonl(&path("a.jsonl"), &of("problem", 0, 3));
    fixtures::write_jsonl(&path("c.ndjson"), &of("question", 8, 2));
    std::fs::write(path("README.md"), "no data").unwrap();
    std::fs::write(path("dataset_infos.json"), "{}").unwrap();
    let data = DataSet::open(&[scratch.path().into()], &Layout::default(), 0).unwrap();
    assert_eq!(rows(&data).into_iter().map(|row| row.prompt).collect::<Vec<_>>(), prompts(0, 10));
    let names: Vec<_> = data.columns().keys().collect();
    assert_eq!(names, ["problem", "prompt", "question"]);
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_line() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data.jsonl");
    for (text, numbers) in
        [("{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n", [1, 2]), ("\n{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}", [2, 3])]
    {
        std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
        let rows = rows(&DataSet::open(std::slice::from_ref(&path), &Layout::default(), 0).unwrap());
        let found: Vec<_> = rows.iter().map(|row| (row.prompt.as_str(), row.origin.row)).collect();
        assert_eq!(found, [("a", numbers[0]), ("b", numbers[1])]);
    }
}

#[test]
fn the_directory_of_images_can_be_another() {
    let both = Both::write(|_| vec![json!({"prompt": "?", "image": "x/1.png"})], Writing::default());
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::create_dir(elsewhere.path().join("x")).unwrap();
    std::fs::write(elsewhere.path().join("x/1.png"), png(1)).unwrap();
    for data in both.open(&Layout { image_root: Some(elsewhere.path().into()), ..Layout::default() }, 0) {
        let image = &rows(&data.unwrap())[0].images[0];
        assert_eq!(image.decode().unwrap(), picture(1));
        assert_eq!(image.file(), Some(elsewhere.path().join("x/1.png").as_path()));
    }
}

#[test]
fn the_file_of_an_image_is_absolute_where_its_directory_is_not() {
    // Cargo runs tests in the directory of the package; what is in the file does not matter until it is decoded.
    let both = Both::write(|_| vec![json!({"prompt": "?", "image": "layouts.rs"})], Writing::default());
    for data in both.open(&Layout { image_root: Some("tests".into()), ..Layout::default() }, 0) {
        let expected = std::env::current_dir().unwrap().join("tests/layouts.rs");
        assert_eq!(rows(&data.unwrap())[0].images[0].file(), Some(expected.as_path()));
    }
}
