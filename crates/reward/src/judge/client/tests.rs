#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::Map;

use super::*;
use crate::testing::{asked, nothing, response};

/// A server that gives one scripted reply after the other, each to a connection of its own, and notes what it was sent.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new(replies: impl IntoIterator<Item = String> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/chat/completions", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let noted = requests.clone();
        let mut replies: Vec<String> = replies.into_iter().collect();
        replies.reverse();
        thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let Some(reply) = replies.pop() else { return };
                let mut stream = stream.unwrap();
                noted.lock().unwrap().push(request(&stream));
                stream.write_all(reply.as_bytes()).unwrap();
                if reply.is_empty() {
                    // Says nothing for as long as anybody waits.
                    silent.push(stream);
                }
            }
        });
        Self { url, requests }
    }

    fn judge(&self) -> Judge {
        toml::from_str(&format!(
            "url = '{}'\nmodel = 'm'\nprompt = '{{{{ response }}}}?'\nbackoff_s = 0.01\nretries = 1",
            self.url
        ))
        .unwrap()
    }

    fn asked(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

fn request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0);
    }
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap()];
    reader.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

fn http(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

fn says(content: &str) -> String {
    http("200 OK", "", &json!({"choices": [{"message": {"role": "assistant", "content": content}}]}).to_string())
}

fn ask(client: &Client, text: &str) -> Result<f32, Error> {
    Ok(client.score(&asked("2", &nothing()), &response(text))?.value.unwrap())
}

#[test]
fn the_judge_is_sent_the_rendered_prompt_and_its_score_is_read() {
    let server = Server::new([says("I give it 0.75")]);
    let judge = Judge {
        prompt: "{{ prompt }}|{{ response }}|{{ answer }}|{{ columns.level }}".into(),
        // Set wherever tests are run.
        api_key_env: Some("PATH".into()),
        ..server.judge()
    };
    let client = Client::new(&judge).unwrap();
    let columns = Map::from_iter([("level".into(), json!(3))]);
    let asked = Asked { prompt: "1 + 1", ..asked("<2>", &columns) };
    assert_eq!(client.score(&asked, &response("It's 2")).unwrap(), 0.75.into());
    let request = server.requests.lock().unwrap()[0].clone();
    assert!(request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"));
    let key = std::env::var("PATH").unwrap();
    assert!(
        request.lines().any(|line| line.eq_ignore_ascii_case(&format!("authorization: Bearer {key}"))),
        "{request}"
    );
    let body: serde_json::Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
    let messages = json!([{"role": "user", "content": "1 + 1|It's 2|<2>|3"}]);
    assert_eq!(body, json!({"model": "m", "temperature": 0, "messages": messages}));
}

#[test]
fn what_may_pass_is_tried_again() {
    let server = Server::new([http("500 Internal Server Error", "", "oh"), says("1")]);
    assert!((ask(&Client::new(&server.judge()).unwrap(), "").unwrap() - 1.0).abs() < 1e-6);
    assert_eq!(server.asked(), 2);
    let server = Server::new([http("503 Service Unavailable", "", "a"), http("502 Bad Gateway", "", "b"), says("1")]);
    let error = ask(&Client::new(&server.judge()).unwrap(), "").unwrap_err().to_string();
    assert_eq!(error, format!("{}: status 502 Bad Gateway: b", server.url));
}

#[test]
fn a_server_says_when_to_come_again() {
    let server = Server::new([http("429 Too Many Requests", "Retry-After: 1\r\n", ""), says("1")]);
    let begin = Instant::now();
    assert!(ask(&Client::new(&server.judge()).unwrap(), "").is_ok());
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    let of = |value: &str| retry_after(&HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())]));
    assert_eq!(of("7"), Some(Duration::from_secs(7)));
    assert_eq!(of("soon"), None);
    assert_eq!(of("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
    let later = of(&httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100))).unwrap();
    assert!((90..=100).contains(&later.as_secs()), "{later:?}");
}

#[test]
fn what_will_not_pass_is_an_error_at_once() {
    let problem = |reply: String| {
        let server = Server::new([reply, says("1")]);
        let error = ask(&Client::new(&server.judge()).unwrap(), "").unwrap_err().to_string();
        assert_eq!(server.asked(), 1);
        error.replace(&server.url, "url")
    };
    assert_eq!(problem(http("401 Unauthorized", "", "no key")), "url: status 401 Unauthorized: no key");
    assert_eq!(problem(says("well")), "url: a reply without one clear score: well");
    assert_eq!(problem(http("200 OK", "", "{}")), "url: a reply without choices[0].message.content: {}");
    assert_eq!(problem(http("200 OK", "", "oops")), "url: a reply without choices[0].message.content: oops");
}

#[test]
fn a_server_that_says_nothing_is_late() {
    let server = Server::new([String::new(), String::new()]);
    let client = Client::new(&Judge { timeout_s: 0.3, ..server.judge() }).unwrap();
    let begin = Instant::now();
    let error = ask(&client, "").unwrap_err().to_string();
    assert!(error.contains("timeout"), "{error}");
    assert_eq!(server.asked(), 2);
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn nobody_there_is_an_error() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let judge = Judge { url: format!("http://{free}/"), ..Server::new([]).judge() };
    assert!(ask(&Client::new(&judge).unwrap(), "").unwrap_err().to_string().starts_with(&format!("http://{free}/: ")));
}

#[test]
fn what_was_asked_once_is_not_asked_again() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("judge.jsonl");
    let server = Server::new(["none", "1", "2", "3"].map(says));
    let judge = Judge { cache: Some(path.clone()), ..server.judge() };
    let client = Client::new(&judge).unwrap();
    let near = |found: Result<f32, Error>, expected: f32| assert!((found.unwrap() - expected).abs() < 1e-6);
    assert!(ask(&client, "a").is_err(), "a reply of no use is not kept");
    near(ask(&client, "a"), 1.0);
    near(ask(&client, "a"), 1.0);
    near(ask(&client, "b"), 2.0);
    assert_eq!(server.asked(), 3);
    // In another run, with a last line that is torn, which is the reply to `b`.
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    let client = Client::new(&judge).unwrap();
    near(ask(&client, "a"), 1.0);
    near(ask(&client, "b"), 3.0);
    assert_eq!(server.asked(), 4);
    let key = format!("{:x}", Sha256::digest(format!("{}\n{}", judge.url, body("b"))));
    assert!(String::from_utf8(std::fs::read(&path).unwrap()).unwrap().contains(&key));
}

/// The request of [`Server::judge`] for a response.
fn body(text: &str) -> String {
    json!({"model": "m", "temperature": 0, "messages": [{"role": "user", "content": format!("{text}?")}]}).to_string()
}

#[test]
fn a_prompt_that_names_what_is_not_there_is_an_error() {
    let judge = Judge { prompt: "{{ answer }}".into(), ..Server::new([]).judge() };
    let columns = nothing();
    let asked = Asked { answer: None, ..asked("", &columns) };
    let error = Client::new(&judge).unwrap().score(&asked, &response("")).unwrap_err().to_string();
    assert!(error.contains("the prompt cannot be rendered: undefined value"), "{error}");
}

#[test]
fn settings_of_no_use_are_refused() {
    let good = Server::new([]).judge();
    for (judge, problem) in [
        (Judge { url: "localhost:8000".into(), ..good.clone() }, "url has to be a whole address"),
        (Judge { prompt: "{{".into(), ..good.clone() }, "prompt is no template: syntax error"),
        (Judge { api_key_env: Some("NO_SUCH_VARIABLE_IN_TESTS".into()), ..good.clone() }, "api_key_env names"),
        (Judge { timeout_s: 0.0, ..good.clone() }, "timeout_s has to be 0.001 to 86400 seconds"),
        (Judge { timeout_s: -1.0, ..good.clone() }, "timeout_s has to be"),
        (Judge { backoff_s: f64::NAN, ..good.clone() }, "backoff_s has to be 0 to 60 seconds"),
        (Judge { parallel: 0, ..good.clone() }, "parallel has to be 1 to 256"),
    ] {
        let error = Client::new(&judge).err().unwrap().to_string();
        assert!(error.starts_with(problem), "{error}");
    }
}
